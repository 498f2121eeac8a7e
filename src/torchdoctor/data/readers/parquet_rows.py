"""Read the rows of Parquet files, with the columns that Hugging Face uses or the user names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from torchdoctor.data.readers.columns import IMAGES, LABELS, find_column, split_column
from torchdoctor.data.readers.parquet_blocks import read_index
from torchdoctor.types import InputError, first_line

OPTIONAL = ("mask", "bbox", "group")
CATEGORIES = b"categories"  # the key of the schema's metadata under which the names of categories are kept


def columns_of(path: Path, image: str | None = None, label: str | None = None) -> dict[str, str]:
    """Find the columns of a Parquet file.

    Args:
        path: The file.
        image: The column of the images; None: the one with a usual name.
        label: The column of the labels; None: the one with a usual name.

    Returns:
        The columns by the names that they have here: `image`, `label` and, where the file has them, `mask`,
        `bbox`, `group` and, for the column that may name the split of each row, `split`.

    Raises:
        InputError: The file cannot be read, or lacks a column.
    """
    with _reading(path):
        names = pq.read_schema(path).names
    chosen = {
        "image": find_column(names, image, IMAGES, "--image-column", str(path)),
        "label": find_column(names, label, LABELS, "--label-column", str(path)),
    }
    chosen |= {name: name for name in OPTIONAL if name in names and name not in chosen.values()}
    split = split_column([name for name in names if name not in chosen.values()])
    return chosen | ({} if split is None else {"split": split})


def read_rows(paths: Sequence[Path], columns: Mapping[Path, Mapping[str, str]], on_disk: bool = False) -> Any:
    """Read the files of a split.

    Args:
        paths: The files.
        columns: For each file what `columns_of` returns.
        on_disk: Whether the images are left on disk, see `read_index`.

    Returns:
        An Arrow table with these columns.

    Raises:
        InputError: A file cannot be read, or has a column of the wrong type, or the files differ in their
            columns or in the names of the categories.
    """
    tables = []
    for path in paths:
        chosen = columns[path]
        with _reading(path):
            if on_disk:
                table = read_index(path, chosen)
            else:
                table = pq.read_table(path, columns=list(chosen.values()), memory_map=True, partitioning=None)
        stored = json.dumps(_names_of_hub(table, chosen["label"]))
        table = table.select(list(chosen.values())).rename_columns(list(chosen))
        tables.append(table.replace_schema_metadata({CATEGORIES: stored}))
        check_columns(tables[-1], path)
    names = agreed_names(dict(zip(map(str, paths), tables, strict=True)), str(paths[0].parent))
    try:
        rows = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise InputError(f"{paths[0].parent}: the shards of one split differ in their columns") from error
    if on_disk:  # the index was read row group by row group
        rows = rows.combine_chunks()
    return rows.replace_schema_metadata({CATEGORIES: json.dumps(names)})


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise InputError where a file cannot be read."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: cannot be read as Parquet ({first_line(error)}); fetch the file again"
        ) from error


def check_columns(rows: Any, path: Path) -> None:
    """Check the types of the columns.

    Args:
        rows: The Arrow table.
        path: The file that it was read from, for error messages.

    Raises:
        InputError: Images or masks are not structs with a field `bytes`, labels are neither numbers nor
            text, or a row has no image or no label.
    """
    for column in ("image", "mask"):
        if column in rows.column_names:
            kind = rows.schema.field(column).type
            if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
                raise InputError(f"{path}: column {column!r} is {kind}, expected struct<bytes, path>")
    kind = rows.schema.field("label").type
    if not (_is_number(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"{path}: column 'label' is {kind}, expected whole numbers or names")
    contents = pc.struct_field(rows.column("image"), "bytes")
    if rows.num_rows and contents.null_count == rows.num_rows:
        raise InputError(
            f"{path}: the images are stored by their paths alone, expected their content in 'bytes'; write "
            "the file with embedded images, or make a table: of the paths"
        )
    if rows.column("label").null_count or contents.null_count:
        raise InputError(f"{path}: some rows have no label or no image bytes; remove them")


def _is_number(kind: Any) -> bool:
    """Return whether an Arrow type is one of numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _names_of_hub(rows: Any, label: str) -> list[str] | None:
    """Return the names of categories that the library `datasets` stores in the metadata of the schema."""
    if not _is_number(rows.schema.field(label).type):
        return None
    try:
        stored = json.loads((rows.schema.metadata or {})[b"huggingface"])
        return [str(name) for name in stored["info"]["features"][label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def stored_names(rows: Any) -> tuple[str, ...] | None:
    """Return the names of the categories that a file stores.

    Args:
        rows: The Arrow table, as `read_rows` returns it.

    Returns:
        The names, or None where the file holds none or the labels are text.
    """
    names = json.loads(rows.schema.metadata[CATEGORIES])
    return None if names is None else tuple(names)


def agreed_names(rows: Mapping[str, Any], origin: str) -> tuple[str, ...] | None:
    """Return the names of the categories that several Arrow tables store.

    Args:
        rows: The tables by name.
        origin: What they belong to, for error messages.

    Returns:
        The names; None where no table holds names.

    Raises:
        InputError: Two tables hold different names, or two categories have one name.
    """
    stored = {name: names for name, table in rows.items() if (names := stored_names(table)) is not None}
    if not stored:
        return None
    first = "train" if "train" in stored else min(stored)
    classes = stored[first]
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise InputError(
            f"{origin}: {first} names the categories {list(classes)}, {twice[0]!r} twice; give each one name"
        )
    for name, own_classes in stored.items():
        if own_classes != classes:
            raise InputError(
                f"{origin}: {name} names the categories {list(own_classes)}, but {first} {list(classes)}; "
                "write all files with the same names"
            )
    return classes

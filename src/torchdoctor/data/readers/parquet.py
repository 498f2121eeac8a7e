"""Read `parquet:PATH`: encoded images in Parquet files, with the columns that Hugging Face uses."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Int
from PIL.Image import Image

from torchdoctor.data.annotations import check_mask_size, mask_from_boxes, mask_from_png
from torchdoctor.data.boxes import Box, boxes_of, check_boxes, refuse_turned
from torchdoctor.data.decoding import decode_image, orientation_of, size_of
from torchdoctor.data.fingerprints import stamp_of_bytes
from torchdoctor.data.labels import categories_of, label_text
from torchdoctor.data.splitting import divide, is_split_name
from torchdoctor.data.table import ImageTable, Tables
from torchdoctor.types import InputError

LAYOUT = "expected train-*.parquet with test-*.parquet or validation-*.parquet, or one .parquet file"
REQUIRED, OPTIONAL = ("image", "label"), ("mask", "bbox")


@dataclass(frozen=True)
class ParquetImages:
    """The encoded images of a split in Arrow memory, decoded when they are read.

    Attributes:
        rows: The Arrow table, a row for each image.
        names: The name of each image, for error messages.
    """

    rows: Any
    names: tuple[str, ...]

    def __call__(self, position: int) -> tuple[Image, Image | None]:
        """Decode an image, and its mask from the column `mask` or, where that is empty, from its boxes.

        Args:
            position: The position of the image in the split.

        Returns:
            The RGB image, and its mask (an L image) or None.

        Raises:
            InputError: The image, the mask or a box cannot be used.
        """
        row = {column: self.rows.column(column)[position].as_py() for column in self.rows.column_names}
        name = self.names[position]
        image = decode_image(row["image"]["bytes"], name)
        if row.get("mask") is not None:
            mask = mask_from_png(row["mask"]["bytes"], f"{name} (mask)")
            return image, check_mask_size(mask, image.size, name, orientation_of(row["image"]["bytes"]))
        boxes = boxes_of(row.get("bbox"), name)
        if not boxes:
            return image, None
        refuse_turned(orientation_of(row["image"]["bytes"]), name)
        return image, mask_from_boxes(boxes, image.width, image.height, name)

    def stamp(self, position: int) -> tuple[bytes, bytes]:
        """Return bytes that change with an image and with its mask (see `data.fingerprints`).

        Args:
            position: The position of the image in the split.

        Returns:
            The stamps of the image, and of the mask or the boxes.
        """
        image, mask = self._encoded("image", position), self._encoded("mask", position)
        if not mask and "bbox" in self.rows.column_names:
            mask = repr(self.rows.column("bbox")[position].as_py()).encode()
        return image, mask

    def _encoded(self, column: str, position: int) -> bytes:
        """Return the stamp of a cell, without copying the cell."""
        if column not in self.rows.column_names:
            return b""
        cell = self.rows.column(column)[position]
        content = cell["bytes"].as_buffer() if cell.is_valid else None
        return b"" if content is None else stamp_of_bytes(content)


def read_parquet(location: str, seed: int, validation_share: float) -> Tables:
    """Read Parquet files.

    Args:
        location: A Parquet file, or a folder of them (see `split_files`); `~` is the home folder.
        seed: The seed by which missing splits are divided off.
        validation_share: The share of the training images that becomes the validation split where the
            source has none.

    Returns:
        The data set, not yet decoded.

    Raises:
        InputError: A file or column is missing or cannot be used; the message says what was expected.
    """
    path, origin = Path(location).expanduser(), f"parquet:{location}"
    files = {"train": [path]} if path.is_file() else split_files(path)
    if "train" not in files:
        raise InputError(f"{origin}: found {sorted(files) or 'no .parquet files'}; {LAYOUT}")
    rows = {name: read_rows(paths) for name, paths in files.items()}
    places = {name: f"{files[name][0]} (split {name})" for name in files}
    _check_boxes(rows, places)
    names = _agreed_names(rows, origin)
    if names is None:
        texts = {name: _label_texts(table, places[name]) for name, table in rows.items()}
        classes, numbers = categories_of({name: Counter(labels) for name, labels in texts.items()}, origin)
        labels = {name: np.array([numbers[text] for text in texts[name]], dtype=np.int64) for name in rows}
    else:
        classes = names
        labels = {name: _named_labels(table, classes, places[name]) for name, table in rows.items()}
    splits = {name: parquet_table(table, classes, labels[name]) for name, table in rows.items()}
    return divide(splits, origin, seed, validation_share)


def split_files(folder: Path) -> dict[str, list[Path]]:
    """Return the Parquet files of each split.

    Args:
        folder: The folder; without files of splits, its subfolder `data` is searched.

    Returns:
        The files by the name of the split, which is the part of the file's name before the first `-`, in
        the order of their names. A single file of any other name is `train`.
    """
    files: dict[str, list[Path]] = {}
    for place in (folder, folder / "data"):
        for path in sorted(place.glob("*.parquet")):
            name = re.sub(r"-.*", "", path.stem)
            if is_split_name(name):
                files.setdefault(name, []).append(path)
        if files:
            break
    everything = sorted(folder.glob("*.parquet"))
    return files if files or len(everything) != 1 else {"train": everything}


def read_rows(paths: Sequence[Path]) -> Any:
    """Read the files of a split.

    Args:
        paths: The files.

    Returns:
        An Arrow table with the columns `image` and `label` and, where the files have them, `mask` and
        `bbox`.

    Raises:
        InputError: A file cannot be read, lacks a column, or has a column of the wrong type, or the files
            differ in their columns or in the names of the categories.
    """
    tables = []
    for path in paths:
        try:
            names = pq.read_schema(path).names
            missing = [column for column in REQUIRED if column not in names]
            if missing:
                raise InputError(
                    f"{path}: column {missing[0]!r} is missing; found {names}, expected {REQUIRED}"
                )
            columns = [column for column in (*REQUIRED, *OPTIONAL) if column in names]
            tables.append(pq.read_table(path, columns=columns, memory_map=True, partitioning=None))
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: cannot be read as Parquet ({reason}); fetch the file again") from error
        check_columns(tables[-1], path)
    names = _agreed_names(dict(zip(map(str, paths), tables, strict=True)), str(paths[0].parent))
    try:
        rows = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise InputError(f"{paths[0].parent}: the shards of one split differ in their columns") from error
    stored = next((table.schema.metadata for table in tables if stored_names(table) == names), None)
    return rows.replace_schema_metadata(stored) if names is not None else rows


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
    if rows.column("label").null_count or pc.struct_field(rows.column("image"), "bytes").null_count:
        raise InputError(f"{path}: some rows have no label or no image bytes; remove them")


def _is_number(kind: Any) -> bool:
    """Return whether an Arrow type is one of numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def stored_names(rows: Any) -> tuple[str, ...] | None:
    """Return the names of the categories that the file stores as Hugging Face does.

    Args:
        rows: The Arrow table.

    Returns:
        The names, or None where the metadata of the schema holds none or the labels are text.
    """
    if not _is_number(rows.schema.field("label").type):
        return None
    try:
        stored = json.loads((rows.schema.metadata or {})[b"huggingface"])
        return tuple(str(name) for name in stored["info"]["features"]["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _check_boxes(rows: Mapping[str, Any], places: Mapping[str, str]) -> None:
    """Check the boxes of all splits together."""
    cells = [
        (name, row, boxes)
        for name, table in rows.items()
        for row, boxes in enumerate(_boxes_in_use(table, places[name]))
    ]

    def size(position: int) -> tuple[int, int] | None:
        name, row, _ = cells[position]
        return size_of(rows[name].column("image")[row]["bytes"].as_py())

    def named(position: int) -> str:
        name, row, _ = cells[position]
        return f"{places[name]}, row {row}"

    check_boxes([boxes for _, _, boxes in cells], named, size)


def _boxes_in_use(rows: Any, place: str) -> list[tuple[Box, ...]]:
    """Return the boxes of each image of a split, without those of images that have a mask."""
    if "bbox" not in rows.column_names:
        return []
    boxes = [
        boxes_of(cell, f"{place}, row {row}") for row, cell in enumerate(rows.column("bbox").to_pylist())
    ]
    if "mask" in rows.column_names:
        masked = pc.struct_field(rows.column("mask"), "bytes").is_valid().to_pylist()
        boxes = [() if has_mask else own for own, has_mask in zip(boxes, masked, strict=True)]
    return boxes


def _agreed_names(rows: Mapping[str, Any], origin: str) -> tuple[str, ...] | None:
    """Return the names of the categories that the splits store; InputError where they differ."""
    stored = {name: names for name, table in rows.items() if (names := stored_names(table)) is not None}
    if not stored:
        return None
    first = "train" if "train" in stored else min(stored)
    classes = stored[first]
    for name, own_classes in stored.items():
        if own_classes != classes:
            raise InputError(
                f"{origin}: {name} names the categories {list(own_classes)}, but {first} {list(classes)}; "
                "write all files with the same names"
            )
    return classes


def _label_texts(rows: Any, place: str) -> list[str]:
    """Return the labels of a split as text."""
    return [
        label_text(label, f"{place}, row {row}") for row, label in enumerate(rows.column("label").to_pylist())
    ]


def _named_labels(rows: Any, classes: tuple[str, ...], place: str) -> Int[np.ndarray, " image"]:
    """Return labels that are numbers of named categories; InputError for one that is not."""
    labels: Int[np.ndarray, " image"] = np.asarray(rows.column("label").to_numpy())
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)) | (labels != np.floor(labels)))
    if len(wrong):
        raise InputError(
            f"{place}: label {labels[wrong[0]]} in row {wrong[0]}; expected 0 to {len(classes) - 1} for the "
            f"{len(classes)} categories that the file names; remove such rows ({len(wrong)} of this split)"
        )
    return labels.astype(np.int64)


def parquet_table(rows: Any, classes: tuple[str, ...], labels: Int[np.ndarray, " image"]) -> ImageTable:
    """Return the images of a split.

    Args:
        rows: The Arrow table.
        classes: The names of the categories.
        labels: For each row the number of its category.

    Returns:
        The table; ids are the numbers of the rows, over all files of the split.
    """
    names = row_names(rows)
    return ImageTable(
        classes, labels, names, np.arange(len(names)), ParquetImages(rows, names), rows_with_mask(rows)
    )


def row_names(rows: Any) -> tuple[str, ...]:
    """Return a name for every image.

    Args:
        rows: The Arrow table.

    Returns:
        The stored path of each image, or the number of its row where no path is stored.
    """
    image = rows.column("image")
    paths = [None] * len(image)
    if image.type.get_field_index("path") >= 0:
        paths = pc.struct_field(image, "path").to_pylist()
    return tuple(path or f"row {number}" for number, path in enumerate(paths))


def rows_with_mask(rows: Any) -> Bool[np.ndarray, " image"]:
    """Return which images have an object mask.

    Args:
        rows: The Arrow table.

    Returns:
        For each row, whether it has a mask or a box.
    """
    has_mask: Int[np.ndarray, " image"] = np.zeros(rows.num_rows, dtype=bool)
    if "mask" in rows.column_names:
        has_mask |= pc.struct_field(rows.column("mask"), "bytes").is_valid().to_numpy()
    if "bbox" in rows.column_names:
        has_mask |= np.array([bool(boxes) for boxes in _boxes_in_use(rows, "bbox")], dtype=bool)
    return has_mask

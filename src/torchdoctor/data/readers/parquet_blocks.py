"""Read Parquet files whose images do not fit into memory: an index of the rows, and row groups at need."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

from torchdoctor.types import InputError, first_line

ENCODED_BYTES = 2**30  # more bytes of encoded images than this are not kept in memory
WINDOW_BYTES = 2**28  # row groups of this size together are read, kept, and shuffled among themselves
APART_BYTES = 2**26  # images read out of turn (those added for their masks) that are kept
CONTENT = ("image", "mask")  # the columns with encoded images


def encoded_bytes(paths: Sequence[Path], columns: Mapping[Path, Mapping[str, str]]) -> int:
    """Return the size of the encoded images and masks in Parquet files, uncompressed.

    Args:
        paths: The files.
        columns: For each file its columns, by the names that they have here.

    Returns:
        The size in bytes, as the files tell it.
    """
    total = 0
    for path in paths:
        wanted = {columns[path][name] for name in CONTENT if name in columns[path]}
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            total += _group_bytes(metadata.row_group(group), wanted)
    return total


def _group_bytes(group: Any, columns: set[str]) -> int:
    """Return the uncompressed size of some columns of a row group."""
    chunks = [group.column(number) for number in range(group.num_columns)]
    return sum(
        chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns
    )


@dataclass
class RowGroups:
    """The encoded images of Parquet files, of which some row groups at a time are in memory.

    Attributes:
        paths: The file of each row group.
        numbers: The number of each row group in its file.
        starts: The position of the first image of each row group.
        sizes: The uncompressed size of each row group's images, in bytes.
        columns: The columns of images and masks in each file, by the names that they have here.
        images: The number of images.
    """

    paths: tuple[Path, ...]
    numbers: tuple[int, ...]
    starts: Int[np.ndarray, " group"]
    sizes: Int[np.ndarray, " group"]
    columns: Mapping[Path, Mapping[str, str]]
    images: int
    _groups: OrderedDict[int, Any] = field(default_factory=OrderedDict, repr=False, compare=False)
    _apart: OrderedDict[int, dict[str, Any]] = field(default_factory=OrderedDict, repr=False, compare=False)
    _handed: Mapping[int, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.RLock, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: not what is in memory."""
        return {
            name: value for name, value in self.__dict__.items()
            if name not in ("_groups", "_apart", "_handed", "_lock")
        }  # fmt: skip

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Take what `__getstate__` returned."""
        self.__init__(**state)

    @property
    def blocks(self) -> Int[np.ndarray, " image"]:
        """The number of the row group of each image."""
        lengths = np.diff(self.starts, append=self.images)
        return np.repeat(np.arange(len(self.starts)), lengths)

    @property
    def window(self) -> int:
        """How many row groups are kept in memory: those of `WINDOW_BYTES`, at least 1."""
        return max(1, int(WINDOW_BYTES // max(1, int(self.sizes.mean()))))

    def content(self, position: int, apart: bool = False) -> dict[str, Any]:
        """Return an encoded image and its mask.

        Args:
            position: The position of the image.
            apart: Whether the image is needed out of turn: its row group then takes no place in memory.

        Returns:
            `image` and, where the file has the column, `mask`: the content of a file; None without a mask.

        Raises:
            InputError: The file cannot be read, or the image has no content.
        """
        if position in self._handed:
            return self._handed[position]
        with self._lock:
            group = int(np.searchsorted(self.starts, position, side="right")) - 1
            if group in self._groups or not apart:
                return self._cell(self._kept(group), group, position)
            if position not in self._apart:
                self._apart[position] = self._cell(self._read(group), group, position)
                mean = self.sizes.sum() / max(1, self.images)
                while len(self._apart) > max(1, APART_BYTES // max(1, mean)):
                    self._apart.popitem(last=False)
            self._apart.move_to_end(position)
            return self._apart[position]

    def hand_over(self, contents: Mapping[int, Any]) -> None:
        """Keep contents that another process has read, for the images that are decoded next.

        Args:
            contents: What `content` returned, by the position of the image; earlier ones are dropped.
        """
        self._handed = contents

    def _kept(self, group: int) -> Any:
        """Return a row group, and keep it until others take its place."""
        if group not in self._groups:
            while len(self._groups) >= self.window:
                self._groups.popitem(last=False)
            self._groups[group] = self._read(group)
        self._groups.move_to_end(group)
        return self._groups[group]

    def _read(self, group: int) -> Any:
        """Read the images of a row group."""
        path = self.paths[group]
        names = {there: here for here, there in self.columns[path].items() if here in CONTENT}
        try:
            with pq.ParquetFile(path) as file:
                rows = file.read_row_group(self.numbers[group], columns=list(names), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path}: row group {self.numbers[group]} cannot be read ({first_line(error)}); fetch the "
                "file again"
            ) from error
        return rows.rename_columns([names[name] for name in rows.column_names])

    def _cell(self, rows: Any, group: int, position: int) -> dict[str, Any]:
        """Return the encoded image and mask of a row."""
        row = position - int(self.starts[group])
        cells = {name: rows.column(name)[row].as_py() for name in rows.column_names}
        content = {name: None if cell is None else cell["bytes"] for name, cell in cells.items()}
        if content["image"] is None:
            raise InputError(
                f"{self.paths[group]}: row {row} of row group {self.numbers[group]} has no image bytes; "
                "remove such rows"
            )
        return content


def row_groups(paths: Sequence[Path], columns: Mapping[Path, Mapping[str, str]]) -> RowGroups:
    """Find the row groups of the files of a split.

    Args:
        paths: The files.
        columns: For each file its columns, by the names that they have here.

    Returns:
        The row groups in order; nothing is read but what the files tell about themselves.
    """
    places: list[tuple[Path, int]] = []
    lengths: list[int] = []
    sizes: list[int] = []
    for path in paths:
        wanted = {columns[path][name] for name in CONTENT if name in columns[path]}
        metadata = pq.read_metadata(path)
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if group.num_rows:
                places.append((path, number))
                lengths.append(group.num_rows)
                sizes.append(_group_bytes(group, wanted))
    ends = np.cumsum(np.array(lengths, dtype=np.int64))
    return RowGroups(
        paths=tuple(path for path, _ in places),
        numbers=tuple(number for _, number in places),
        starts=ends - np.array(lengths, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int64),
        columns={path: dict(columns[path]) for path in paths},
        images=int(ends[-1]) if len(ends) else 0,
    )


def notes_on_size(splits: Sequence[RowGroups]) -> tuple[str, ...]:
    """Say where row groups are so large that reading a single one takes much memory.

    Args:
        splits: The row groups of each split.

    Returns:
        A sentence; none where all row groups are smaller than `WINDOW_BYTES`.
    """
    largest = max((int(split.sizes.max(initial=0)) for split in splits), default=0)
    if largest <= WINDOW_BYTES:
        return ()
    return (
        f"row groups of up to {largest / 2**20:.0f} MB, each of which is read as a whole: write the files "
        "with smaller ones (row_group_size=100), which takes less memory and shuffles better",
    )


def read_index(path: Path, columns: Mapping[str, str]) -> Any:
    """Read everything of a Parquet file but the images.

    Args:
        path: The file.
        columns: Its columns, by the names that they have here.

    Returns:
        An Arrow table with the same columns under the names of the file. `image` has the field `path` where
        the file has it, and of `bytes` in `image` and `mask` only whether it is there.
    """
    schema = pq.read_schema(path)
    others = [there for here, there in columns.items() if here not in CONTENT]
    table = pq.read_table(path, columns=others, partitioning=None)
    for here in CONTENT:
        if here in columns:
            kind = schema.field(columns[here]).type
            if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
                raise InputError(f"{path}: column {here!r} is {kind}, expected struct<bytes, path>")
            table = table.append_column(columns[here], _presence(path, columns[here], here, kind))
    return table


def _presence(path: Path, column: str, here: str, kind: Any) -> Any:
    """Return the cells of a column of images without their content: where there is one, and its path."""
    parts = []
    with pq.ParquetFile(path) as file:
        stored = here == "image" and kind.get_field_index("path") >= 0
        for number in range(file.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            present, paths = _all_present(file.metadata.row_group(number), column), None
            if present is None:
                cells = file.read_row_group(number, columns=[column], use_threads=False).column(0)
                present = pc.struct_field(cells, "bytes").is_valid().combine_chunks()
            else:
                present = pa.array(np.ones(rows, dtype=bool))
            valid = pc.if_else(present, True, None)
            if stored:
                cells = file.read_row_group(number, columns=[f"{column}.path"], use_threads=False).column(0)
                paths = pc.struct_field(cells, "path").combine_chunks()
            fields = {"bytes": valid} if paths is None else {"bytes": valid, "path": paths}
            parts.append(pa.StructArray.from_arrays(list(fields.values()), names=list(fields)))
    return pa.chunked_array(parts) if parts else pa.chunked_array([], pa.struct([("bytes", pa.bool_())]))


def _all_present(group: Any, column: str) -> bool | None:
    """Return True where a row group says that every cell has content; None where it does not say so."""
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.path_in_schema == f"{column}.bytes":
            told = chunk.statistics
            return True if told is not None and told.has_null_count and told.null_count == 0 else None
    return None

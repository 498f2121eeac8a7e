"""Read `parquet:PATH`: encoded images in Parquet files, with the columns that Hugging Face uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Int
from PIL.Image import Image

from torchdoctor.data.annotations import mask_from_boxes
from torchdoctor.data.blocks import OnDisk
from torchdoctor.data.boxes import Box, boxes_of, check_boxes, refuse_turned
from torchdoctor.data.decoding import orientation_of, size_of
from torchdoctor.data.fingerprints import stamp_of_bytes
from torchdoctor.data.labels import categories_of, label_text, notes_on_labels
from torchdoctor.data.masked_image import decode_masked
from torchdoctor.data.readers import parquet_blocks
from torchdoctor.data.readers.columns import group_text, groups_of, splits_of_column
from torchdoctor.data.readers.parquet_blocks import RowGroups, encoded_bytes, notes_on_size, row_groups
from torchdoctor.data.readers.parquet_rows import agreed_names, columns_of, read_rows
from torchdoctor.data.readers.shard_files import split_files
from torchdoctor.data.settings import BoxFormat, DataSettings
from torchdoctor.data.splitting import divide
from torchdoctor.data.table import ImageTable, Tables
from torchdoctor.types import InputError

Part = tuple[str, Int[np.ndarray, " row"]]  # the table that a split is in, and its rows


@dataclass(frozen=True)
class ParquetImages:
    """The encoded images of a split in Arrow memory or on disk, decoded when they are read.

    Attributes:
        rows: The Arrow table, a row for each image.
        names: The name of each image, for error messages.
        box_format: How the column `bbox` is written.
        groups: The row groups that hold the images, where `rows` does not.
    """

    rows: Any
    names: tuple[str, ...]
    box_format: BoxFormat = "auto"
    groups: RowGroups | None = None

    def __call__(self, position: int) -> tuple[Image, Image | None]:
        """Decode an image, and its mask from the column `mask` or, where that is empty, from its boxes.

        Args:
            position: The position of the image in the split.

        Returns:
            The RGB image, and its mask (an L image) or None.

        Raises:
            InputError: The image, the mask or a box cannot be used.
        """
        name = self.names[position]
        content, encoded_mask = self._contents(position)
        image, mask = decode_masked(content, name, encoded_mask)
        if mask is not None:
            return image, mask
        boxes = boxes_of(self._boxes(position), name, self.box_format)
        if not boxes:
            return image, None
        refuse_turned(orientation_of(content), name)
        return image, mask_from_boxes(boxes, image.width, image.height, name)

    def stamp(self, position: int) -> tuple[bytes, bytes]:
        """Return bytes that change with an image and with its mask (see `data.fingerprints`).

        Args:
            position: The position of the image in the split.

        Returns:
            The stamps of the image, and of the mask or the boxes.
        """
        image, mask = self._stamp("image", position), self._stamp("mask", position)
        if not mask and "bbox" in self.rows.column_names:
            mask = repr(self._boxes(position)).encode()
        return image, mask

    @property
    def on_disk(self) -> OnDisk | None:
        """The images in the row groups that they lie in; None where they are in memory."""
        return None if self.groups is None else OnDisk(self.groups, np.arange(len(self.names)))

    def encoded(self, position: int) -> bytes:
        """Return an encoded image.

        Args:
            position: The position of the image in the split.

        Returns:
            The content of an image file.
        """
        return self._contents(position)[0]

    def _contents(self, position: int) -> tuple[bytes, bytes | None]:
        """Return an encoded image, and its encoded mask or None."""
        if self.groups is not None:
            content = self.groups.content(position)
            return content["image"], content.get("mask")
        cells = {
            name: self.rows.column(name)[position].as_py()
            for name in parquet_blocks.CONTENT if name in self.rows.column_names
        }  # fmt: skip
        mask = cells.get("mask")
        return cells["image"]["bytes"], None if mask is None else mask["bytes"]

    def _boxes(self, position: int) -> Any:
        """Return the content of the column of boxes; None without such a column."""
        if "bbox" not in self.rows.column_names:
            return None
        return self.rows.column("bbox")[position].as_py()

    def _stamp(self, column: str, position: int) -> bytes:
        """Return the stamp of a cell, without copying the cell."""
        if column not in self.rows.column_names:
            return b""
        if self.groups is not None:
            read = self.groups.content(position)[column]
            return b"" if read is None else stamp_of_bytes(read)
        cell = self.rows.column(column)[position]
        content = cell["bytes"].as_buffer() if cell.is_valid else None
        return b"" if content is None else stamp_of_bytes(content)


def read_parquet(location: str, seed: int, settings: DataSettings) -> Tables:
    """Read Parquet files.

    Args:
        location: A Parquet file, or a folder of them (see `split_files`); `~` is the home folder.
        seed: The seed by which missing splits are divided off.
        settings: The columns, how boxes are written, and the share of the training images that becomes the
            validation split where the source has none.

    Returns:
        The data set, not yet decoded.

    Raises:
        InputError: A file or column is missing or cannot be used; the message says what was expected.
    """
    path, origin = Path(location).expanduser(), f"parquet:{location}"
    files, notes = ({"train": [path]}, ()) if path.is_file() else split_files(path, origin)
    columns = {
        file: columns_of(file, settings.image_column, settings.label_column)
        for paths in files.values() for file in paths
    }  # fmt: skip
    large = encoded_bytes(list(columns), columns) > parquet_blocks.ENCODED_BYTES
    rows = {name: read_rows(paths, columns, on_disk=large) for name, paths in files.items()}
    groups = {name: row_groups(paths, columns) if large else None for name, paths in files.items()}
    places = {name: f"{files[name][0]} (split {name})" for name in files}
    form = settings.box_format
    boxes = {name: _boxes_in_use(table, places[name], form) for name, table in rows.items()}
    whole = {
        name: parquet_table(table, (), np.zeros(table.num_rows, np.int64), boxes[name], form, groups[name])
        for name, table in rows.items()
    }
    _check_boxes(whole, boxes, places, form)
    notes += notes_on_size([each for each in groups.values() if each is not None])
    parts, more = _parts(rows, places, origin)
    classes, labels = _labels(rows, parts, places, origin)
    splits = {
        split: replace(whole[name], classes=classes, labels=labels[name]).select(chosen)
        for split, (name, chosen) in parts.items()
    }
    divided = divide(splits, origin, seed, settings.validation_share)
    return replace(divided, notes=notes + more + notes_on_labels(classes))


def _parts(
    rows: Mapping[str, Any], places: Mapping[str, str], origin: str
) -> tuple[dict[str, Part], tuple[str, ...]]:
    """Return the rows of each split: those of its files, or those that a column of the one table tells."""
    whole = {name: (name, np.arange(table.num_rows)) for name, table in rows.items()}
    columns = {name: table.column("split") for name, table in rows.items() if "split" in table.column_names}
    if list(rows) != ["train"]:
        told = any(len(column.unique()) > 1 for column in columns.values())
        return whole, ("the column of splits: the names of the files tell them",) if told else ()
    if not columns:
        return whole, ()
    cells = splits_of_column(
        columns["train"].to_pylist(), "the column of splits has", lambda row: f"{places['train']}, row {row}"
    )
    if cells is None:
        return whole, ("the column split, subset, set or partition, whose cells name no split",)
    if len(set(cells)) == 1:
        return whole, ()
    if "train" not in cells:
        raise InputError(f"{origin}: found the splits {sorted(set(cells))} without train")
    of_row = np.array(cells)
    return {name: ("train", np.flatnonzero(of_row == name)) for name in sorted(set(cells))}, ()


def _labels(
    rows: Mapping[str, Any], parts: Mapping[str, Part], places: Mapping[str, str], origin: str
) -> tuple[tuple[str, ...], dict[str, Int[np.ndarray, " image"]]]:
    """Return the categories, and the labels of the rows of each table."""
    names = agreed_names(rows, origin)
    if names is not None:
        return names, {name: _named_labels(table, names, places[name]) for name, table in rows.items()}
    texts = {name: _label_texts(table, places[name]) for name, table in rows.items()}
    written = {
        split: Counter(texts[name][row] for row in chosen.tolist()) for split, (name, chosen) in parts.items()
    }
    classes, numbers = categories_of(written, origin)
    return classes, {name: np.array([numbers[text] for text in texts[name]], dtype=np.int64) for name in rows}


def _check_boxes(
    tables: Mapping[str, ImageTable],
    boxes: Mapping[str, list[tuple[Box, ...]]],
    places: Mapping[str, str],
    box_format: BoxFormat,
) -> None:
    """Check the boxes of all splits together."""
    cells = [(name, row, own) for name in tables for row, own in enumerate(boxes[name])]

    def size(position: int) -> tuple[int, int] | None:
        name, row, _ = cells[position]
        return size_of(tables[name].read.encoded(row))  # type: ignore[attr-defined]

    def named(position: int) -> str:
        name, row, _ = cells[position]
        return f"{places[name]}, row {row}"

    check_boxes([own for _, _, own in cells], named, size, box_format)


def _boxes_in_use(rows: Any, place: str, box_format: BoxFormat) -> list[tuple[Box, ...]]:
    """Return the boxes of each image of a split, without those of images that have a mask."""
    if "bbox" not in rows.column_names:
        return [()] * rows.num_rows
    boxes = [
        boxes_of(cell, f"{place}, row {row}", box_format)
        for row, cell in enumerate(rows.column("bbox").to_pylist())
    ]
    if "mask" in rows.column_names:
        masked = pc.struct_field(rows.column("mask"), "bytes").is_valid().to_pylist()
        boxes = [() if has_mask else own for own, has_mask in zip(boxes, masked, strict=True)]
    return boxes


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


def parquet_table(
    rows: Any,
    classes: tuple[str, ...],
    labels: Int[np.ndarray, " image"],
    boxes: Sequence[tuple[Box, ...]],
    box_format: BoxFormat,
    groups: RowGroups | None = None,
) -> ImageTable:
    """Return the images of a split.

    Args:
        rows: The Arrow table.
        classes: The names of the categories.
        labels: For each row the number of its category.
        boxes: For each row its boxes.
        box_format: How the column of boxes is written.
        groups: The row groups that hold the images, where `rows` does not.

    Returns:
        The table; ids are the numbers of the rows, over all files of the split.
    """
    names = row_names(rows)
    has_mask = np.array([bool(own) for own in boxes], dtype=bool)
    if "mask" in rows.column_names:
        has_mask |= pc.struct_field(rows.column("mask"), "bytes").is_valid().to_numpy()
    read = ParquetImages(rows, names, box_format, groups)
    circumstances = None
    if "group" in rows.column_names:
        circumstances = groups_of([group_text(cell) for cell in rows.column("group").to_pylist()])
    return ImageTable(classes, labels, names, np.arange(len(names)), read, has_mask, circumstances)


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

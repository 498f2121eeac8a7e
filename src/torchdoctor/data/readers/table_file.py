"""Read `table:FILE`: a CSV, TSV or JSON Lines file, a line per image: path, label[, mask, bbox, split]."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from torchdoctor.data.annotations import mask_from_boxes
from torchdoctor.data.boxes import boxes_of, check_boxes, refuse_turned
from torchdoctor.data.decoding import orientation_of, size_of
from torchdoctor.data.fingerprints import stamp_of_file
from torchdoctor.data.labels import categories_of, label_text, notes_on_labels
from torchdoctor.data.masked_image import decode_masked
from torchdoctor.data.readers.columns import (
    LABELS,
    PATHS,
    find_column,
    group_text,
    groups_of,
    split_column,
    splits_of_column,
)
from torchdoctor.data.readers.table_rows import TableRow, one_row_each
from torchdoctor.data.settings import DataSettings
from torchdoctor.data.splitting import divide
from torchdoctor.data.table import ImageTable, Tables
from torchdoctor.types import InputError

OPTIONAL = ("mask", "bbox", "split", "group")
LONGEST_LINE = 100_000  # characters; a file with a longer line is refused
ENDINGS = {".csv": ",", ".tsv": "\t"}
DELIMITERS = (",", ";", "\t", "|")
JSON_ENDINGS = (".jsonl", ".ndjson")
LAYOUT = f"expected .csv, .tsv or .jsonl with path, label and perhaps {', '.join(OPTIONAL)}"


@dataclass(frozen=True)
class TableImages:
    """The images of the lines, decoded when they are read.

    Attributes:
        rows: The lines.
    """

    rows: tuple[TableRow, ...]

    def __call__(self, position: int) -> tuple[Image, Image | None]:
        """Decode an image, and its mask from the mask file or, without such a file, from its boxes.

        Args:
            position: The position of the image in the split.

        Returns:
            The RGB image, and its mask (an L image) or None.

        Raises:
            InputError: A file is damaged, or the mask or a box does not fit the image.
        """
        row = self.rows[position]
        image, mask = decode_masked(row.path, str(row.path), row.mask, str(row.mask))
        if mask is None and row.boxes:
            refuse_turned(orientation_of(row.path), str(row.path))
            return image, mask_from_boxes(row.boxes, image.width, image.height, str(row.path))
        return image, mask

    def file(self, position: int) -> Path:
        """Return the file of an image.

        Args:
            position: The position of the image in the split.

        Returns:
            The file.
        """
        return self.rows[position].path

    def stamp(self, position: int) -> tuple[bytes, bytes]:
        """Return bytes that change with an image and with its mask (see `data.fingerprints`).

        Args:
            position: The position of the image in the split.

        Returns:
            The stamps of the image file, and of the mask file or the boxes.
        """
        row = self.rows[position]
        mask = repr(row.boxes).encode() if row.mask is None else stamp_of_file(row.mask)
        return stamp_of_file(row.path), mask


def read_table_file(location: str, seed: int, settings: DataSettings) -> Tables:
    """Read a table of images.

    Paths in the file are relative to its folder and must stay inside it. Categories are the labels of
    the training split (see `data.labels`). Without a column `split`, splits are divided off by seed.

    Args:
        location: The file; `~` is the home folder.
        seed: The seed by which missing splits are divided off.
        settings: The columns, how boxes are written, whether links are followed, and the share of the
            training images that becomes the validation split where the source has none.

    Returns:
        The data set, not yet decoded.

    Raises:
        InputError: The file or a line cannot be used; the message names the line.
    """
    file, origin = Path(location).expanduser(), f"table:{location}"
    if not file.is_file():
        raise InputError(f"{origin}: is not a file; {LAYOUT}")
    written_rows, unused = _rows(file, settings)
    rows, repeated = one_row_each(written_rows, origin)
    if not rows:
        raise InputError(f"{origin}: no line with an image; {LAYOUT}")
    check_boxes(
        [row.boxes if row.mask is None else () for row in rows],
        lambda position: str(rows[position].path),
        lambda position: size_of(rows[position].path),
        settings.box_format,
    )
    by_split: dict[str, list[TableRow]] = {}
    for row in rows:
        by_split.setdefault(row.split, []).append(row)
    if "train" not in by_split:
        raise InputError(f"{origin}: found the splits {sorted(by_split)} without train")
    written = {name: Counter(row.label for row in own_rows) for name, own_rows in by_split.items()}
    classes, numbers = categories_of(written, origin)
    splits = {
        name: _table(tuple(own_rows), classes, numbers, file.parent) for name, own_rows in by_split.items()
    }
    notes = (f"the columns {', '.join(map(repr, unused))}, which have no meaning here",) if unused else ()
    divided = divide(splits, origin, seed, settings.validation_share)
    return replace(divided, notes=notes + repeated + notes_on_labels(classes))


def _rows(file: Path, settings: DataSettings) -> tuple[list[TableRow], list[str]]:
    """Read and check all lines, and name unused columns; the first line tells which columns there are."""
    rows, columns, unused, split = [], None, list[str](), None
    lines: list[int] = []
    cells: list[object] = []
    for line, as_named in _lines(file):
        fields = {name.lower() if name.lower() in OPTIONAL else name: as_named[name] for name in as_named}
        if columns is None:
            columns = (
                find_column(list(fields), settings.image_column, PATHS, "--image-column", str(file)),
                find_column(list(fields), settings.label_column, LABELS, "--label-column", str(file)),
            )
            split = split_column([name for name in fields if name not in columns])
            unused = [name for name in fields if name not in (*columns, *OPTIONAL, split)]
        lines.append(line)
        cells.append(None if split is None else fields.get(split))
        rows.append(_row(file, line, fields, columns, settings))
    if split is None:
        return rows, unused
    splits = splits_of_column(cells, split, lambda row: f"{file}, line {lines[row]}")
    if splits is None:
        return rows, [*unused, split]
    return [replace(row, split=name) for row, name in zip(rows, splits, strict=True)], unused


def _lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (number, fields) of every line that is not empty."""
    ending = file.suffix.lower()
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            if ending in JSON_ENDINGS:
                yield from _json_lines(file, stream)
            elif ending in ENDINGS:
                yield from _csv_lines(file, stream, ENDINGS[ending])
            else:
                raise InputError(f"{file}: unknown ending {ending!r}; {LAYOUT}")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def _csv_lines(file: Path, stream: Any, delimiter: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (number, fields) of the lines of a CSV file, whose first line names the fields."""
    header = stream.readline(LONGEST_LINE)
    stream.seek(0)
    if delimiter not in header:
        delimiter = max(DELIMITERS, key=header.count)
    reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        if len(set(names)) < len(names):
            raise InputError(f"{file}: found the columns {names}; give each column a name of its own")
        reader.fieldnames = names
        for fields in reader:
            if None in fields:
                raise InputError(f"{file}, line {reader.line_num}: more values than columns; quote commas")
            yield reader.line_num, fields
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.line_num}: is not CSV ({error})") from error


def _json_lines(file: Path, stream: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (number, fields) of the lines of a JSON Lines file."""
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise InputError(
                f"{file}, line {number}: over {LONGEST_LINE} characters; expected one image a line"
            )
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}, line {number}: is not JSON ({error})") from error
        if not isinstance(fields, dict):
            raise InputError(f"{file}, line {number}: {type(fields).__name__}; expected an object")
        yield number, fields


def _row(
    file: Path, line: int, fields: Mapping[str, Any], columns: tuple[str, str], settings: DataSettings
) -> TableRow:
    """Check the fields of a line; `columns` are those of the path and of the label."""
    path, label = columns
    place = f"{file}, line {line}"
    mask = fields.get("mask")
    return TableRow(
        path=file_inside(file.parent, fields.get(path), f"{place}: {path}", settings.follow_links),
        label=label_text(fields.get(label), place),
        mask=file_inside(file.parent, mask, f"{place}: mask", settings.follow_links) if mask else None,
        boxes=boxes_of(fields.get("bbox"), place, settings.box_format),
        group=group_text(fields.get("group")),
    )


def file_inside(folder: Path, name: object, place: str, follow_links: bool | None = None) -> Path:
    """Return a file that a data set names, after checking that it exists and is inside a folder.

    Args:
        folder: The folder.
        name: The path of the file relative to the folder; backslashes may stand for slashes.
        place: Where the name stands, for error messages.
        follow_links: Whether the file may be a link that leads out of the folder; None: no, and there is no
            option for it.

    Returns:
        The path of the file.

    Raises:
        InputError: It is no name of a file, leads out of the folder, or does not exist.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise InputError(f"{place} {name!r}; expected a file's name, relative to {folder}")
    path, home = folder / name, folder.resolve()
    if "\\" in name and not path.is_file():
        path = folder / name.replace("\\", "/")
    written = Path(os.path.normpath(path.absolute()))
    here = next((place for place in (home, folder.absolute()) if written.is_relative_to(place)), None)
    inside = here is not None
    if not (path.resolve().is_relative_to(home) or (follow_links and inside)):
        hint = ", or give --follow-links" if follow_links is False and inside else ""
        raise InputError(f"{place} {name!r} leads out of {folder}; copy the file there{hint}")
    if not path.is_file():
        raise InputError(f"{place} {name!r}: no such file in {folder}")
    if not Path(name.replace("\\", "/")).is_absolute():
        return path
    if path.resolve().is_relative_to(home):
        return folder / path.resolve().relative_to(home)
    return path if here is None else folder / written.relative_to(here)


def _table(
    rows: tuple[TableRow, ...], classes: tuple[str, ...], numbers: Mapping[str, int], folder: Path
) -> ImageTable:
    """Return the table of a split; ids number its lines."""
    return ImageTable(
        classes=classes,
        labels=np.array([numbers[row.label] for row in rows], dtype=np.int64),
        names=tuple(row.path.relative_to(folder).as_posix() for row in rows),
        ids=np.arange(len(rows)),
        read=TableImages(rows),
        has_mask=np.array([row.mask is not None or bool(row.boxes) for row in rows], dtype=bool),
        groups=groups_of([row.group for row in rows]),
    )

"""The rows of a table of images, and what becomes of an image that stands in several of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from torchdoctor.data.boxes import Box
from torchdoctor.display.counts import count_of
from torchdoctor.types import InputError


@dataclass(frozen=True)
class TableRow:
    """A line of the file, checked.

    Attributes:
        path: The image file.
        label: The name or number of its category, as written.
        mask: The mask file, or None.
        boxes: Boxes (xmin, ymin, xmax, ymax) around the object in pixels, edges included.
        split: The name of the split that the image belongs to.
        group: Under which circumstances the image was taken; empty where the file does not say.
    """

    path: Path
    label: str
    mask: Path | None
    boxes: tuple[Box, ...]
    split: str = "train"
    group: str = ""


def one_row_each(rows: Sequence[TableRow], place: str) -> tuple[list[TableRow], tuple[str, ...]]:
    """Join the rows of an image that stands in several, a row for each of its objects.

    Args:
        rows: All rows of the table.
        place: The file, for error messages.

    Returns:
        A row for each image, with all boxes around its objects, in the order in which the images appear
        first; and a sentence where rows were joined.

    Raises:
        InputError: The rows of an image differ in the label, the split, the mask or the group.
    """
    of_image: dict[str, list[TableRow]] = {}
    for row in rows:
        of_image.setdefault(os.path.normpath(row.path), []).append(row)
    joined = []
    for group in of_image.values():
        first = group[0]
        for told, of_row in (
            ("label", "label"),
            ("split", "split"),
            ("mask", "mask"),
            ("group", "group"),
        ):
            values = sorted({str(getattr(row, of_row)) for row in group if getattr(row, of_row) is not None})
            if len(values) > 1:
                raise InputError(
                    f"{place}: the image {first.path} stands in {len(group)} rows with another {told} each: "
                    f"{' and '.join(map(repr, values[:3]))}; expected one {told} for each image: "
                    "keep one of these rows"
                )
        boxes = tuple(dict.fromkeys(chain.from_iterable(row.boxes for row in group)))
        mask = next((row.mask for row in group if row.mask is not None), None)
        joined.append(replace(first, mask=mask, boxes=boxes))
    if len(joined) == len(rows):
        return joined, ()
    repeated = sum(len(group) > 1 for group in of_image.values())
    return joined, (
        f"{count_of(len(rows) - len(joined), 'further row')} of "
        f"{count_of(repeated, 'image that stands', 'images that stand')} in several: each is one "
        "image, with all boxes of its rows",
    )

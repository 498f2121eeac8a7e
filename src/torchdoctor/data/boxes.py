"""Read boxes around objects, and check that a whole column of them is xmin, ymin, xmax, ymax in pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import numpy as np

from torchdoctor.data.settings import BoxFormat
from torchdoctor.types import InputError

Box = tuple[float, float, float, float]
EXPECTED = "expected xmin, ymin, xmax, ymax in pixels"
SIZES = 5000  # images whose size is compared with their boxes, evenly spread
ENOUGH = 20  # boxes aside of the middle from which on their side says something
MOST_BEYOND = 0.05  # the share of boxes that may reach beyond their image, by more than this share of a side


def boxes_of(value: object, place: str, box_format: BoxFormat = "auto") -> tuple[Box, ...]:
    """Read the boxes of an image.

    Args:
        value: A list of four numbers, a list of such lists, or either as text; None or empty for no box.
        place: Where it stands, for error messages.
        box_format: With `xywh`, the four numbers are x, y, width, height.

    Returns:
        The boxes (xmin, ymin, xmax, ymax), both ends included.

    Raises:
        InputError: It is something else, a number is not finite, or the only box is 0, 0, 0, 0.
    """
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return ()
    expected = f"{place}: bbox {str(value)[:80]!r}; {EXPECTED}, or a list of such"
    if isinstance(value, str):
        try:
            value = json.loads(value if value.lstrip().startswith("[") else f"[{value}]")
        except (ValueError, RecursionError) as error:
            raise InputError(expected) from error
    if value == []:
        return ()
    if not isinstance(value, Sequence):
        raise InputError(expected)
    boxes = value if isinstance(value[0], Sequence) else [value]
    for box in boxes:
        all_numbers = isinstance(box, Sequence) and all(
            isinstance(edge, int | float) and not isinstance(edge, bool) and math.isfinite(edge)
            for edge in box
        )
        if not all_numbers or len(box) != 4:
            raise InputError(expected)
    if len(boxes) == 1 and not any(boxes[0]):
        raise InputError(f"{place}: bbox 0, 0, 0, 0; leave it empty where an image has no object")
    corners = [tuple(map(float, box)) for box in boxes]
    if box_format != "xywh":
        return tuple((left, top, right, bottom) for left, top, right, bottom in corners)
    if any(width <= 0 or height <= 0 for _, _, width, height in corners):
        raise InputError(f"{place}: bbox {str(value)[:80]!r}; expected x, y, and a width and height above 0")
    return tuple((x, y, x + width - 1, y + height - 1) for x, y, width, height in corners)


def check_boxes(
    boxes: Sequence[tuple[Box, ...]],
    name_of: Callable[[int], str],
    size_of: Callable[[int], tuple[int, int] | None],
    box_format: BoxFormat = "auto",
) -> None:
    """Check that boxes can be xmin, ymin, xmax, ymax in pixels.

    All boxes are looked at together, so that a source in another convention is never read in part.

    Args:
        boxes: The boxes of each image.
        name_of: Returns the name of an image by its position, for error messages.
        size_of: Returns the width and height of an image by its position; None where they are not known.
        box_format: With `auto`, boxes that are probably x, y, width, height are refused as well.

    Raises:
        InputError: The boxes are shares of the image's sides, x, y, width, height, or of other images.
    """
    owners = [position for position, own in enumerate(boxes) for _ in own]
    if not owners:
        return
    values = np.array(list(chain.from_iterable(boxes)), dtype=np.float64)
    inside_one = ((values >= 0) & (values <= 1)).all(axis=1)
    shares = inside_one & (values != np.round(values)).any(axis=1)
    if values.min() >= -1 and values.max() <= 2:
        shares[:] = True
    if shares.any():
        raise InputError(
            f"{_first(shares, values, owners, name_of)}: {EXPECTED}, but these seem to be shares of the "
            "image's width and height, from 0 to 1 (normalised, as YOLO has them); multiply them by width "
            "and height, and turn centre, width, height into corners"
        )
    backwards = (values[:, 2] < values[:, 0]) | (values[:, 3] < values[:, 1])
    if backwards.any():
        raise InputError(
            f"{_first(backwards, values, owners, name_of)}: {EXPECTED}, but xmax < xmin or ymax < ymin: "
            "they seem to be x, y, width, height (as COCO has them), which --box-format xywh reads, or "
            "centre, width, height, which must be turned into corners"
        )
    sizes = _sizes(boxes, size_of)
    _refuse_beyond(boxes, name_of, sizes)
    if box_format == "auto":
        _refuse_likely_xywh(boxes, name_of, sizes)


def _first(
    wrong: np.ndarray, values: np.ndarray, owners: Sequence[int], name_of: Callable[[int], str]
) -> str:
    """Name the first of the boxes that are wrong, and say how many are."""
    row = int(np.flatnonzero(wrong)[0])
    box = [float(f"{edge:.6g}") for edge in values[row].tolist()]
    return f"{name_of(owners[row])}: box {box}, and {int(wrong.sum())} of {len(values)} boxes are like it"


def _sizes(
    boxes: Sequence[tuple[Box, ...]], size_of: Callable[[int], tuple[int, int] | None]
) -> dict[int, tuple[int, int]]:
    """Return the known sizes of images with boxes by their position; of many images, of an even choice."""
    boxed = [position for position, own in enumerate(boxes) if own]
    chosen = {boxed[int(index)] for index in np.linspace(0, len(boxed) - 1, min(SIZES, len(boxed)))}
    return {position: size for position in sorted(chosen) if (size := size_of(position)) is not None}


def _refuse_beyond(
    boxes: Sequence[tuple[Box, ...]], name_of: Callable[[int], str], sizes: Mapping[int, tuple[int, int]]
) -> None:
    """Raise InputError where more than a few boxes reach beyond their image."""
    number, beyond = 0, []
    for position, (width, height) in sizes.items():
        wide, high = max(2, MOST_BEYOND * width), max(2, MOST_BEYOND * height)
        for left, top, right, bottom in boxes[position]:
            number += 1
            if left < -wide or top < -high or right > width + wide or bottom > height + high:
                beyond.append((position, (left, top, right, bottom)))
    if len(beyond) > MOST_BEYOND * number:
        position, box = beyond[0]
        width, height = sizes[position]
        raise InputError(
            f"{name_of(position)}: box {list(box)} reaches beyond the image of {width} x {height} pixels, as "
            f"do {len(beyond)} of {number} boxes; {EXPECTED}. Were they drawn on images of another size, or "
            "do they hold the numbers in another order?"
        )


def _refuse_likely_xywh(
    boxes: Sequence[tuple[Box, ...]], name_of: Callable[[int], str], sizes: Mapping[int, tuple[int, int]]
) -> None:
    """Raise InputError where boxes read as corners are all to the left of the middle and above it.

    Of x, y, width, height no x + width exceeds the image's width, which says just that of these numbers taken
    for corners. Boxes near the middle and boxes that repeat say nothing.
    """
    aside = {"x": set[Box](), "y": set[Box]()}
    for position, size in sizes.items():
        for box in boxes[position]:
            for axis, side in enumerate(size):
                distance = box[axis] + box[axis + 2] + 1 - side  # 0 for a box in the middle
                if distance > MOST_BEYOND * side:
                    return
                if distance < -MOST_BEYOND * side:
                    aside["xy"[axis]].add(box)
    if min(map(len, aside.values())) >= ENOUGH:
        position = next(iter(sizes))
        raise InputError(
            f"{name_of(position)}: box {list(boxes[position][0])}: {EXPECTED}, but then all boxes lie to the "
            "left of the middle of their image or above it and none to the right or below: they are probably "
            "x, y, width, height (as COCO has them); --box-format xywh reads them so, xyxy as corners"
        )


def refuse_turned(orientation: int, name: str) -> None:
    """Check that an image with boxes is not turned by EXIF: nothing tells on which side up they were drawn.

    Args:
        orientation: The EXIF orientation of the image; 1: it is not turned.
        name: How error messages call the image.

    Raises:
        InputError: The image is turned.
    """
    if orientation != 1:
        raise InputError(
            f"{name}: an image with EXIF orientation {orientation}, and boxes that may be drawn on the image "
            "as stored or as shown; save the image upright without EXIF orientation, and draw the boxes on "
            "that"
        )

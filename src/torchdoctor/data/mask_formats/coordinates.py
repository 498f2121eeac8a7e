"""Check the coordinates that annotations hold, before anything is computed from them."""

from __future__ import annotations

import math

from torchdoctor.data.annotations import MaskError

FARTHEST = 1e7  # pixels; coordinates beyond are no places on an image
MOST_POINTS = 100_000  # of a single shape


def points_of(value: object, least: int) -> list[tuple[float, float]]:
    """Read the points of a shape.

    Args:
        value: Pairs of numbers, x and y.
        least: How many points the shape needs.

    Returns:
        The points.

    Raises:
        MaskError: It is something else, a number is not finite or far off any image, or there are fewer.
    """
    if not isinstance(value, list | tuple):
        raise MaskError(f"points {_short(value)}; expected pairs of numbers", "shape")
    if len(value) > MOST_POINTS:
        raise MaskError(f"{len(value)} points; expected at most {MOST_POINTS}", "shape")
    points = []
    for point in value:
        if not isinstance(point, list | tuple) or len(point) != 2:
            raise MaskError(f"point {_short(point)}; expected x and y", "shape")
        points.append((number_of(point[0], "x"), number_of(point[1], "y")))
    if len(points) < least:
        raise MaskError(f"{len(points)} points; expected at least {least}", "shape")
    return points


def number_of(value: object, name: str) -> float:
    """Read a coordinate or length.

    Args:
        value: A number, or text that holds one.
        name: What it is, for error messages.

    Returns:
        The number.

    Raises:
        MaskError: It is no number, not finite, or far off any image.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= FARTHEST:
        raise MaskError(f"{name} is {_short(value)}; expected a finite number of pixels", "shape")
    return number


def _short(value: object) -> str:
    """Return a value as text that fits into an error message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

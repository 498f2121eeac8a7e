"""The eight objects of the data set `scenes`: outlines within -1..1, drawn with smooth edges."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

DRAWING = 4  # outlines are drawn this many times larger and then averaged, which makes edges smooth

Outline = Float[np.ndarray, "point 2"]  # corners (x to the right, y downwards)
Part = tuple[Outline, bool]  # an outline, and whether it adds to the object (True) or cuts a hole (False)


def polygon(*points: tuple[float, float]) -> Outline:
    """Return the outline with these corners.

    Args:
        *points: The corners (x to the right, y downwards).

    Returns:
        The outline.
    """
    return np.array(points, dtype=np.float64)


def disc(x: float, y: float, radius: float) -> Outline:
    """Return a circle, as a polygon of 32 corners.

    Args:
        x: The centre, to the right.
        y: The centre, downwards.
        radius: The radius.

    Returns:
        The outline.
    """
    turn = np.linspace(0.0, 2.0 * np.pi, 32, endpoint=False)
    return np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], axis=1)


def box(left: float, top: float, right: float, bottom: float) -> Outline:
    """Return an upright rectangle.

    Args:
        left: The smallest x.
        top: The smallest y.
        right: The largest x.
        bottom: The largest y.

    Returns:
        The outline.
    """
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def star(points: int, inner: float) -> Outline:
    """Return a star of radius 1.

    Args:
        points: The number of its points.
        inner: The radius of the corners between the points.

    Returns:
        The outline.
    """
    turn = np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return np.stack([radius * np.sin(turn), -radius * np.cos(turn)], axis=1)


# The parts of each object, in the order in which they are drawn.
SILHOUETTES: dict[str, tuple[Part, ...]] = {
    "ring": ((disc(0.0, 0.0, 0.95), True), (disc(0.0, 0.0, 0.5), False)),
    "cross": ((box(-0.3, -0.95, 0.3, 0.95), True), (box(-0.95, -0.3, 0.95, 0.3), True)),
    "arrow": (
        (polygon((0.0, -1.0), (0.85, 0.05), (-0.85, 0.05)), True),
        (box(-0.28, 0.0, 0.28, 1.0), True),
    ),
    "crescent": ((disc(0.0, 0.0, 0.97), True), (disc(0.45, 0.0, 0.75), False)),
    "star": ((star(5, 0.42), True),),
    "heart": (
        (disc(-0.45, -0.4, 0.5), True),
        (disc(0.45, -0.4, 0.5), True),
        (polygon((-0.91, -0.2), (0.0, -0.3), (0.91, -0.2), (0.0, 0.98)), True),
    ),
    "key": (
        (disc(0.0, -0.5, 0.5), True),
        (disc(0.0, -0.5, 0.2), False),
        (box(-0.15, -0.1, 0.15, 1.0), True),
        (box(0.0, 0.3, 0.5, 0.52), True),
        (box(0.0, 0.75, 0.5, 1.0), True),
    ),
    "mug": (
        (disc(0.5, 0.0, 0.48), True),
        (disc(0.5, 0.0, 0.22), False),
        (box(-0.8, -0.8, 0.5, 0.8), True),
    ),
}


def draw_silhouette(
    name: str, size: int, centre: tuple[float, float], radius: float, turn: float, flipped: bool
) -> UInt8[np.ndarray, "height width"]:
    """Draw an object.

    Args:
        name: The name of the object in `SILHOUETTES`.
        size: The side of the square image in pixels.
        centre: The centre of the object (x, y) in pixels.
        radius: The length in pixels of a unit of the outline.
        turn: The rotation in radians.
        flipped: Whether the object is mirrored before it is rotated.

    Returns:
        How much of each pixel the object covers, from 0 (nothing) to 255 (all).
    """
    cosine, sine = np.cos(turn), np.sin(turn)
    rotation = np.array([[cosine, sine], [-sine, cosine]]) * (DRAWING * radius)
    if flipped:
        rotation[0] *= -1.0
    canvas = Image.new("L", (size * DRAWING, size * DRAWING))
    pen = ImageDraw.Draw(canvas)
    for outline, adds in SILHOUETTES[name]:
        corners = outline @ rotation + np.array(centre) * DRAWING
        pen.polygon([(x, y) for x, y in np.rint(corners).tolist()], fill=255 if adds else 0)
    return np.asarray(canvas.reduce(DRAWING))

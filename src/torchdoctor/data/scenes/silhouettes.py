"""The eight objects of the embedded data set: outlines in the unit square, drawn antialiased."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

DRAWING = 4  # outlines are drawn this many times larger, then averaged: antialiased edges

Outline = Float[np.ndarray, "point 2"]
Part = tuple[Outline, bool]


def polygon(*points: tuple[float, float]) -> Outline:
    """Return the outline through `points`, x to the right and y downwards."""
    return np.array(points, dtype=np.float64)


def disc(x: float, y: float, radius: float) -> Outline:
    """Return a circle as a polygon of 32 corners."""
    turn = np.linspace(0.0, 2.0 * np.pi, 32, endpoint=False)
    return np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], axis=1)


def box(left: float, top: float, right: float, bottom: float) -> Outline:
    """Return an upright rectangle."""
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def star(points: int, inner: float) -> Outline:
    """Return a star of radius 1 whose notches lie at radius `inner`."""
    turn = np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return np.stack([radius * np.sin(turn), -radius * np.cos(turn)], axis=1)


# Part by part: an outline, and whether it adds to the object or cuts a hole.
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
    """Return how much of each pixel the object covers, 0 to 255, on a square of `size` pixels.

    `centre` and `radius` are in pixels, `turn` in radians; `flipped` mirrors the object first.
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

"""The eight background textures of the data set `scenes`: grey patterns that repeat.

Textures differ in their pattern alone: rotation, scale, phase and colours are drawn anew for every image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Grid = Float[np.ndarray, "height width"]


def wave(cycles: Grid) -> Grid:
    """Return a sine wave with steep flanks.

    Args:
        cycles: The phase of each pixel, in periods.

    Returns:
        The wave, in 0..1.
    """
    return np.clip(0.5 + 0.9 * np.sin(2.0 * np.pi * cycles), 0.0, 1.0)


def stripes(u: Grid, v: Grid) -> Grid:
    """Return parallel stripes.

    Args:
        u: The first coordinate of each pixel, in periods.
        v: The second coordinate of each pixel, in periods.

    Returns:
        The pattern, in 0..1.
    """
    return wave(u)


def checks(u: Grid, v: Grid) -> Grid:
    """Return a chequerboard.

    Args:
        u: The first coordinate of each pixel, in periods.
        v: The second coordinate of each pixel, in periods.

    Returns:
        The pattern, in 0..1.
    """
    return np.clip(0.5 + 1.6 * np.sin(np.pi * u) * np.sin(np.pi * v), 0.0, 1.0)


def dots(u: Grid, v: Grid) -> Grid:
    """Return round dots on a square lattice.

    Args:
        u: The first coordinate of each pixel, in periods.
        v: The second coordinate of each pixel, in periods.

    Returns:
        The pattern, in 0..1.
    """
    return np.clip(3.0 - 8.0 * np.hypot(u % 1.0 - 0.5, v % 1.0 - 0.5), 0.0, 1.0)


def bricks(u: Grid, v: Grid) -> Grid:
    """Return rows of bricks with dark joints; every other row is shifted by half a brick.

    Args:
        u: The first coordinate of each pixel, in periods.
        v: The second coordinate of each pixel, in periods.

    Returns:
        The pattern, in 0..1.
    """
    row = np.floor(v)
    along = (0.5 * u + 0.5 * (row % 2.0)) % 1.0
    return np.where((v - row < 0.22) | (along < 0.11), 0.0, 1.0)


def waves(u: Grid, v: Grid) -> Grid:
    """Return wavy stripes.

    Args:
        u: The first coordinate of each pixel, in periods.
        v: The second coordinate of each pixel, in periods.

    Returns:
        The pattern, in 0..1.
    """
    return wave(u + 0.35 * np.sin(np.pi * v))


def ripples(u: Grid, v: Grid) -> Grid:
    """Return rings around centres that are six periods apart.

    Args:
        u: The first coordinate of each pixel, in periods.
        v: The second coordinate of each pixel, in periods.

    Returns:
        The pattern, in 0..1.
    """
    return wave(np.hypot(u % 6.0 - 3.0, v % 6.0 - 3.0))


def mosaic(u: Grid, v: Grid) -> Grid:
    """Return square tiles of half a period, each with a grey value computed by a hash of its position.

    Args:
        u: The first coordinate of each pixel, in periods.
        v: The second coordinate of each pixel, in periods.

    Returns:
        The pattern, in 0..1.
    """
    place = np.floor(2.0 * u).astype(np.int64) * 73856093 ^ np.floor(2.0 * v).astype(np.int64) * 19349663
    return (place * 2654435761 >> 16 & 255) / 255.0


def weave(u: Grid, v: Grid) -> Grid:
    """Return squares of fine stripes, alternately along and across.

    Args:
        u: The first coordinate of each pixel, in periods.
        v: The second coordinate of each pixel, in periods.

    Returns:
        The pattern, in 0..1.
    """
    return wave(np.where((np.floor(u) + np.floor(v)) % 2.0 == 0.0, 2.0 * u, 2.0 * v))


# In the order of the categories: in training, most images of the n-th category have the n-th texture.
TEXTURES: dict[str, Callable[[Grid, Grid], Grid]] = {
    "stripes": stripes,
    "checks": checks,
    "dots": dots,
    "bricks": bricks,
    "waves": waves,
    "ripples": ripples,
    "mosaic": mosaic,
    "weave": weave,
}


def draw_texture(name: str, size: int, period: float, turn: float, phase: tuple[float, float]) -> Grid:
    """Draw a texture.

    Args:
        name: The name of the texture in `TEXTURES`.
        size: The side of the square image in pixels.
        period: The period of the pattern in pixels.
        turn: The rotation in radians.
        phase: The shift of the pattern along its two coordinates, in periods.

    Returns:
        The pattern, in 0..1.
    """
    along = np.arange(size, dtype=np.float64) / period
    cosine, sine = np.cos(turn), np.sin(turn)
    u = cosine * along[None, :] + sine * along[:, None] + phase[0]
    v = cosine * along[:, None] - sine * along[None, :] + phase[1]
    return TEXTURES[name](u, v)

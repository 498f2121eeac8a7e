"""The eight background textures of the embedded data set: grey patterns over a grid of periods.

A family is told apart by its pattern alone; turn, scale, phase and colours are drawn for every image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Grid = Float[np.ndarray, "height width"]


def wave(cycles: Grid) -> Grid:
    """Return a sine over `cycles` with steep flanks, from 0 to 1."""
    return np.clip(0.5 + 0.9 * np.sin(2.0 * np.pi * cycles), 0.0, 1.0)


def stripes(u: Grid, v: Grid) -> Grid:
    """Return parallel stripes."""
    return wave(u)


def checks(u: Grid, v: Grid) -> Grid:
    """Return a chequerboard."""
    return np.clip(0.5 + 1.6 * np.sin(np.pi * u) * np.sin(np.pi * v), 0.0, 1.0)


def dots(u: Grid, v: Grid) -> Grid:
    """Return round dots on a square lattice."""
    return np.clip(3.0 - 8.0 * np.hypot(u % 1.0 - 0.5, v % 1.0 - 0.5), 0.0, 1.0)


def bricks(u: Grid, v: Grid) -> Grid:
    """Return rows of bricks, every other row moved by half a brick, with dark joints."""
    row = np.floor(v)
    along = (0.5 * u + 0.5 * (row % 2.0)) % 1.0
    return np.where((v - row < 0.22) | (along < 0.11), 0.0, 1.0)


def waves(u: Grid, v: Grid) -> Grid:
    """Return stripes that wind."""
    return wave(u + 0.35 * np.sin(np.pi * v))


def ripples(u: Grid, v: Grid) -> Grid:
    """Return rings around centres six periods apart."""
    return wave(np.hypot(u % 6.0 - 3.0, v % 6.0 - 3.0))


def mosaic(u: Grid, v: Grid) -> Grid:
    """Return half-period tiles, each with a grey that is hashed from its place."""
    place = np.floor(2.0 * u).astype(np.int64) * 73856093 ^ np.floor(2.0 * v).astype(np.int64) * 19349663
    return (place * 2654435761 >> 16 & 255) / 255.0


def weave(u: Grid, v: Grid) -> Grid:
    """Return squares of fine stripes, alternately along and across."""
    return wave(np.where((np.floor(u) + np.floor(v)) % 2.0 == 0.0, 2.0 * u, 2.0 * v))


# In the order of the categories: in training, most images of the n-th category show the n-th family.
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
    """Return a square pattern of `size` pixels, 0 to 1; `period` in pixels, `turn` in radians."""
    along = np.arange(size, dtype=np.float64) / period
    cosine, sine = np.cos(turn), np.sin(turn)
    u = cosine * along[None, :] + sine * along[:, None] + phase[0]
    v = cosine * along[:, None] - sine * along[None, :] + phase[1]
    return TEXTURES[name](u, v)

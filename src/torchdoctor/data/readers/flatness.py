"""Tell masks from photographs by their pixels: a mask is flat, of few grey values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

FEW_VALUES = 32  # a file with more values than this is no mask, unless it is named as one of an image
SAMPLED = 5  # pairs of a mask and its photograph that are looked at


def is_flat(file: Path) -> bool:
    """Return whether an image is flat: it has few grey values, or as a JPEG is nearly black and white.

    Args:
        file: The file.

    Returns:
        False also for a file that cannot be read.
    """
    read = _histogram(file)
    if read is None:
        return False
    counts, lossy, _ = read
    if lossy:  # nearly all pixels are nearly black or nearly white
        return sum(counts[16:240]) < sum(counts) / 10
    return sum(map(bool, counts)) <= FEW_VALUES


def are_masks(pairs: Sequence[tuple[Path, Path]], soft: bool = False) -> bool:
    """Return whether files are masks of photographs that they belong to by their names.

    Args:
        pairs: The file that may be a mask, and the file that may be its photograph; some are looked at.
        soft: Whether the edges of objects may be soft, because the names say that these are masks.

    Returns:
        True where every file is flat and no photograph is.
    """
    if not pairs:
        return False
    rows = np.unique(np.linspace(0, len(pairs) - 1, SAMPLED).astype(int)).tolist()
    chosen = [pairs[row] for row in rows]
    return all(is_flat(mask) or (soft and _is_soft(mask)) for mask, _ in chosen) and not any(
        is_flat(photograph) for _, photograph in chosen
    )


def _is_soft(file: Path) -> bool:
    """Return whether an image is grey, and most of its pixels are nearly black or nearly white."""
    read = _histogram(file)
    if read is None:
        return False
    counts, _, grey = read
    return grey and sum(counts[16:240]) < sum(counts) / 2


def _histogram(file: Path) -> tuple[list[int], bool, bool] | None:
    """Return how often each grey value occurs, and whether the file is a JPEG and grey; None if damaged."""
    try:
        with Image.open(file) as image:
            lossy = image.format in ("JPEG", "MPO")
            grey = image.mode in ("1", "L", "LA") or bool(
                np.ptp(np.asarray(image.convert("RGB")), axis=2).max() == 0
            )
            return image.convert("L").histogram(), lossy, grey
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None

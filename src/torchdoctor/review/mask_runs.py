"""Send masks as the lengths of runs, row by row: background first, then object, and so on in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from torchdoctor.types import InputError


def runs_of(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """Return a mask as the lengths of its runs.

    Args:
        mask: True on the object.

    Returns:
        Numbers of pixels: the first of background (it may be 0), the second of object, and so on.
    """
    flat = np.concatenate(([False], mask.ravel()))
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate(([0], changes, [mask.size]))).tolist()


def mask_of_runs(runs: Sequence[Any], width: int, height: int) -> Bool[np.ndarray, "height width"]:
    """Return the mask that runs describe.

    Args:
        runs: As `runs_of` returns them; they may come from anywhere.
        width: The width of the mask in pixels.
        height: Its height.

    Returns:
        True on the object.

    Raises:
        InputError: A length is no whole number above 0 (0 is allowed for the first), or they do not fill the
            mask.
    """
    whole = all(type(length) is int and 0 <= length <= width * height for length in runs)
    if not whole or 0 in list(runs)[1:] or sum(runs) != width * height:
        raise InputError(
            f"a mask of {width} x {height} pixels came as runs that do not fill it: load the page again"
        )
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, np.array(runs, dtype=np.int64)).reshape(height, width)

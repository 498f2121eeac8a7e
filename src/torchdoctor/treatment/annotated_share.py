"""Choose which share of each batch is drawn from the images with masks."""

from __future__ import annotations

from typing import Literal

USUAL = 0.125  # share of a batch that is drawn from annotated images where nothing else is said
HALF = 0.5  # share of a batch that shall be annotated where backgrounds mislead; `swap` changes no more


def share_drawn(asked: float | Literal["auto"]) -> float:
    """Return which share of each batch is drawn from annotated images.

    Args:
        asked: The share, 0..1, or "auto".

    Returns:
        What was asked for; "auto": `USUAL`.
    """
    return USUAL if asked == "auto" else asked


def share_against_backgrounds(masked: int, images: int) -> float:
    """Return the share that is drawn where misleading backgrounds are the main cause of errors.

    Images without masks keep teaching the backgrounds. So half of each batch shall be annotated, counting
    images that are drawn and those that come up anyway.

    Args:
        masked: The number of annotated images.
        images: The number of training images; those with masks among them.

    Returns:
        The share, from `USUAL` to `HALF`.
    """
    anyway = min(masked / max(images, 1), 1.0)
    return max(USUAL, (HALF - anyway) / (1 - anyway)) if anyway < HALF else USUAL

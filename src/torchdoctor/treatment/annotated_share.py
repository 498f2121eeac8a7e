"""Choose which share of each batch is drawn from the images with masks."""

from __future__ import annotations

from typing import Literal

from torchdoctor.treatment.masked_remedies import MOST_SWAPPED

USUAL = 0.125  # share of a batch that is drawn from annotated images where nothing else is said


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

    Images without masks keep teaching the backgrounds. So as much of each batch shall be annotated as the arm
    `swap` changes (`MOST_SWAPPED`), counting images that are drawn and those that come up anyway.

    Args:
        masked: The number of annotated images.
        images: The number of training images; those with masks among them.

    Returns:
        The share, from `USUAL` to `MOST_SWAPPED`.
    """
    anyway = min(masked / max(images, 1), 1.0)
    return max(USUAL, (MOST_SWAPPED - anyway) / (1 - anyway)) if anyway < MOST_SWAPPED else USUAL

"""Turn object masks of images into background masks of feature maps (the I_bg of Eq. 6)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def default_expansion(image_side: int) -> int:
    """Return how far the object grows by default, in input pixels.

    `Differs from the paper:` its 30 pixels come without an image size; we read them at 224.
    """
    return round(30 / 224 * image_side)


def background_mask(
    masks: Float[Tensor, "batch 1 height width"], size: tuple[int, int], expand_pixels: int = 0
) -> Float[Tensor, "batch 1 map_height map_width"]:
    """Grow the object by `expand_pixels` input pixels, resize by area average, return 1 - object.

    Values lie in [0, 1]: the share of each map cell that is background.
    """
    grown = masks
    if expand_pixels > 0:
        # A square window is a row of columns: one after the other costs its side, not its area.
        side = 2 * expand_pixels + 1
        rows = functional.max_pool2d(masks, (1, side), stride=1, padding=(0, expand_pixels))
        grown = functional.max_pool2d(rows, (side, 1), stride=1, padding=(expand_pixels, 0))
    return 1.0 - functional.interpolate(grown, size=size, mode="area").clamp(0.0, 1.0)

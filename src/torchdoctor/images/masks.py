"""Turn object masks of images into background masks of feature maps (the I_bg of Eq. 6)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def default_expansion(image_side: int) -> int:
    """Return by how many pixels an object mask is widened by default.

    `Differs from the paper:` the paper widens by 30 pixels and does not say for which image size; here
    these 30 pixels belong to images of 224 pixels, and smaller images get proportionally less.

    Args:
        image_side: The side of the image in pixels.

    Returns:
        The widening in pixels of that image.
    """
    return round(30 / 224 * image_side)


def background_mask(
    masks: Float[Tensor, "batch 1 height width"], size: tuple[int, int], expand_pixels: int = 0
) -> Float[Tensor, "batch 1 map_height map_width"]:
    """Return which part of each cell of a feature map is background.

    Args:
        masks: The object masks: 1 on the object, 0 on the background.
        size: The height and width of the feature map.
        expand_pixels: By how many image pixels the object is widened in all directions first.

    Returns:
        The share of each cell that is background, in [0, 1]: masks are averaged over the cell's area.
    """
    grown = masks
    if expand_pixels > 0:
        # A square window's maximum is that of its rows, then of its columns: much cheaper for large windows.
        side = 2 * expand_pixels + 1
        rows = functional.max_pool2d(masks, (1, side), stride=1, padding=(0, expand_pixels))
        grown = functional.max_pool2d(rows, (side, 1), stride=1, padding=(expand_pixels, 0))
    return 1.0 - functional.interpolate(grown, size=size, mode="area").clamp(0.0, 1.0)

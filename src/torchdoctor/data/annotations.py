"""Turn annotations (PNG files, boxes) into object masks: L images, 255 on the object and 0 elsewhere."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from torchdoctor.types import InputError

__all__ = ["check_mask_size", "mask_from_boxes", "mask_from_png"]


def mask_from_png(source: bytes | Path, name: str = "mask") -> Image.Image:
    """Read an object mask from a PNG file.

    Pixels of 128 and more are the object. In a file whose brightest pixel is 1, the pixels of 1 are. Of 16
    bits the upper 8 count.

    Args:
        source: The file, or its content.
        name: How error messages call it.

    Returns:
        The mask as an L image: 255 on the object, 0 elsewhere.

    Raises:
        InputError: It is no image, or marks no pixel.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            grey = np.asarray(file if file.mode.startswith("I") else file.convert("L"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: cannot be decoded as a mask ({error}); expected a PNG image") from error
    threshold = 1 if grey.max(initial=0) <= 1 else 128
    if grey.dtype != np.uint8 and threshold > 1:
        grey = grey // 257
    if not (grey >= threshold).any():
        raise InputError(
            f"{name}: the mask marks no pixel (its brightest value is {grey.max(initial=0)}); expected "
            "the object in white, or 1 in a 0/1 mask. Images without an object need no mask file"
        )
    return Image.fromarray(np.where(grey >= threshold, 255, 0).astype(np.uint8))


def mask_from_boxes(
    boxes: Sequence[Sequence[int | float]], width: int, height: int, name: str = "image"
) -> Image.Image:
    """Make an object mask from boxes; where they overlap or lie apart, the mask is their union.

    Args:
        boxes: Boxes (xmin, ymin, xmax, ymax) in pixels; all four edges belong to the box. What lies outside
            the image is cut off.
        width: The width of the image in pixels.
        height: The height of the image in pixels.
        name: How error messages call the image.

    Returns:
        The mask as an L image: 255 inside the boxes, 0 elsewhere.

    Raises:
        InputError: A box is not four finite numbers in order, or lies wholly outside the image.
    """
    mask = np.zeros((height, width), dtype=np.uint8)
    for box in boxes:
        if len(box) != 4 or not np.isfinite(box).all() or box[0] > box[2] or box[1] > box[3]:
            raise InputError(
                f"{name}: box {list(box)}: expected xmin <= xmax, ymin <= ymax, four numbers in all"
            )
        left, top, right, bottom = (round(edge) for edge in box)
        if right < 0 or bottom < 0 or left >= width or top >= height:
            raise InputError(f"{name}: box {list(box)} lies off the image of {width} x {height} pixels")
        mask[max(top, 0) : bottom + 1, max(left, 0) : right + 1] = 255
    return Image.fromarray(mask)


def check_mask_size(mask: Image.Image, size: tuple[int, int], name: str) -> Image.Image:
    """Check that a mask is as large as its image.

    Args:
        mask: The mask.
        size: The width and height of the image in pixels.
        name: How error messages call the image.

    Returns:
        The mask, unchanged.

    Raises:
        InputError: The sizes differ.
    """
    if mask.size != size:
        mask_size, image_size = ("{} x {}".format(*pair) for pair in (mask.size, size))
        raise InputError(
            f"{name}: the mask is {mask_size} pixels but the image is {image_size}; draw the mask on the "
            "full image"
        )
    return mask

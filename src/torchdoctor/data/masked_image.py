"""Decode an image together with its mask, which must fit it."""

from __future__ import annotations

from pathlib import Path

from PIL.Image import Image

from torchdoctor.data.annotations import check_mask_size, mask_from_png
from torchdoctor.data.decoding import decode_image, orientation_of


def decode_masked(
    source: bytes | Path, name: str, mask: bytes | Path | None, mask_name: str | None = None
) -> tuple[Image, Image | None]:
    """Decode an image and its mask.

    Args:
        source: The image file, or its content.
        name: How error messages call it.
        mask: The mask file, or its content; None where the image has none.
        mask_name: How error messages call the mask; None: the mask of `name`.

    Returns:
        The RGB image, upright, and its mask (an L image of the same size) or None.

    Raises:
        InputError: One of them is damaged, or the mask does not fit the image.
    """
    image = decode_image(source, name)
    if mask is None:
        return image, None
    drawn = mask_from_png(mask, mask_name or f"{name} (mask)")
    return image, check_mask_size(drawn, image.size, name, orientation_of(source))

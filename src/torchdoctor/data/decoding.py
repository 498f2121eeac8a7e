"""Decode image files completely, so that a damaged file is named before it reaches the network."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from torchdoctor.types import InputError

LARGEST_PIXELS = 100_000_000  # a file that claims more pixels is refused before it is decoded
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def decode_image(source: bytes | Path, name: str) -> Image.Image:
    """Decode an image file to RGB, turned upright as its EXIF orientation says.

    torchvision's `ImageFolder` does not turn images. Of a file with several pictures the first is decoded.
    Grey images of 16 bits keep their upper 8 bits; CMYK and palettes are converted; alpha is dropped.

    Args:
        source: The file, or its content.
        name: How error messages call it.

    Returns:
        The RGB image.

    Raises:
        InputError: The file is damaged, is no image, or claims more than `LARGEST_PIXELS` pixels.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            if file.width * file.height > LARGEST_PIXELS:
                raise InputError(
                    f"{name}: {file.width} x {file.height} pixels, expected at most {LARGEST_PIXELS} in all; "
                    "scale the image down"
                )
            return to_eight_bits(ImageOps.exif_transpose(file)).convert("RGB")
    except DAMAGED as error:
        raise InputError(
            f"{name}: cannot be decoded as an image ({error}); repair or remove the file"
        ) from error


def orientation_of(source: bytes | Path) -> int:
    """Return the EXIF orientation of an image file that `decode_image` has read.

    Args:
        source: The file, or its content.

    Returns:
        1 to 8; 1 where the file says nothing that can be used.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def size_of(source: bytes | Path) -> tuple[int, int] | None:
    """Return the size of an image file without decoding it.

    Args:
        source: The file, or its content.

    Returns:
        Width and height in pixels; None where the file is damaged or EXIF turns the image.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            return file.size if file.getexif().get(ExifTags.Base.Orientation, 1) in (0, 1) else None
    except DAMAGED:
        return None


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Reduce a grey image of 16 bits to its upper 8 bits.

    Args:
        image: The image.

    Returns:
        An L image; an image of any other mode is returned unchanged.
    """
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))

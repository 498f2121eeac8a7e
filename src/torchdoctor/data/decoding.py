"""Decode image files completely, so that a damaged file is named before it reaches the network."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from torchdoctor.types import InputError

DARKEST = 4096  # an image of 16 bits that never uses the upper 4 of them is refused
LARGEST_PIXELS = 100_000_000  # a file that claims more pixels is refused before it is decoded
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def decode_image(source: bytes | Path, name: str) -> Image.Image:
    """Decode an image file to RGB, turned upright as its EXIF orientation says.

    torchvision's `ImageFolder` does not turn images. Of a file with several pictures the first is decoded.
    Grey images of 16 bits keep their upper 8 bits (see `to_eight_bits`); CMYK and palettes are converted;
    alpha is dropped.

    Args:
        source: The file, or its content.
        name: How error messages call it.

    Returns:
        The RGB image.

    Raises:
        InputError: The file is damaged, is no image, claims more than `LARGEST_PIXELS` pixels, or has grey
            values of which nothing tells what white is.
    """
    try:
        with stream_of(source) as stream, Image.open(stream) as file:
            if file.width * file.height > LARGEST_PIXELS:
                raise InputError(
                    f"{name}: {file.width} x {file.height} pixels, expected at most {LARGEST_PIXELS} in all; "
                    "scale the image down"
                )
            return to_eight_bits(ImageOps.exif_transpose(file), name).convert("RGB")
    except DAMAGED as error:
        raise InputError(
            f"{name}: cannot be decoded as an image ({error}); repair or remove the file"
        ) from error


def stream_of(source: bytes | Path) -> io.BytesIO | io.BufferedReader:
    """Open an image file as a stream.

    Pillow maps uncompressed files that it is given by path into memory, and scrambles those that it turns.

    Args:
        source: The file, or its content.

    Returns:
        The stream, to be closed by the caller.
    """
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


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


def to_eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Reduce a grey image of 16 or 32 bits, or of fractions, to 8 bits.

    Of 16 bits the upper 8 are kept. Whole numbers of 32 bits up to 255 are kept, larger ones are taken for 16
    bits. Fractions from 0 to 1 are multiplied by 255, and those up to 255 are kept.

    Args:
        image: The image.
        name: How error messages call it.

    Returns:
        An L image; an image of any other mode is returned unchanged.

    Raises:
        InputError: The values leave these ranges, or of 16 bits the upper 4 are never used.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    least, most = values.min(initial=0), values.max(initial=0)
    told = f"{name}: a grey image with values from {least:g} to {most:g}"
    save = "scale the values of all images alike, and save them as images of 8 bits"
    if image.mode == "F":
        if not (np.isfinite(values).all() and least >= 0 and most <= 255):
            raise InputError(f"{told}; expected fractions from 0 to 1 or numbers up to 255: {save}")
        return Image.fromarray(np.round(values * (255 if most <= 1 else 1)).astype(np.uint8))
    if least < 0 or most > 65535:
        raise InputError(f"{told}; expected whole numbers from 0 to 65535: {save}")
    if image.mode == "I" and most <= 255:
        return Image.fromarray(values.astype(np.uint8))
    if 0 < most < DARKEST:
        raise InputError(
            f"{told}, which is nearly black: white is 65535 in 16 bits, and nothing tells that it is less; "
            f"{save}"
        )
    return Image.fromarray((values // 257).astype(np.uint8))

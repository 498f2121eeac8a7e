"""Turn annotations (PNG files, boxes) into object masks: L images, 255 on the object and 0 elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from PIL import Image, ImageOps

from torchdoctor.data.decoding import DAMAGED, LARGEST_PIXELS, stream_of
from torchdoctor.types import InputError

__all__ = [
    "MaskError", "MaskProblem", "check_mask_size", "mask_from_boxes", "mask_from_ids", "mask_from_png",
]  # fmt: skip

# What can be wrong with a mask: it cannot be read, marks nothing, has another size than its image, lies off
# it, may be drawn before or after the image was turned by EXIF; a shape cannot be drawn; the image itself
# cannot be decoded or found, or there are several; the shapes are of another category than the image.
MaskProblem = Literal[
    "unreadable", "empty", "wrong size", "off the image", "turned by EXIF", "shape", "image",
    "several images", "other category",
]  # fmt: skip
Marked = Bool[np.ndarray, "height width"]
BLACK, VOC_BORDER = (0, 0, 0), (224, 224, 192)
MOST_COLOURS = 256  # a coloured mask with more colours is a photograph
TURNS = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = tuple(TURNS)  # the EXIF orientations that exchange width and height
LARGEST_CLASS = 63  # grey values up to here, beside the highest value alone, are class numbers
FEW_COLOURS = 16  # a picture of so few is drawn, not photographed
NEARLY = 16  # grey values so close to black or white belong to it where there are more than FEW_LEVELS
FEW_LEVELS = 6
TRIMAP = 127  # the usual value of what is undecided in a trimap is this or one more
LOSSY_SHARE = 0.01  # the share of pixels in flat areas of one grey that compression does not explain


class MaskError(InputError):
    """A mask that cannot be used.

    Attributes:
        kind: What is wrong with it, in one or two words.
    """

    def __init__(self, text: str, kind: MaskProblem) -> None:
        """Keep what is wrong.

        Args:
            text: The whole message.
            kind: What is wrong, in one or two words.
        """
        super().__init__(text)
        self.kind: MaskProblem = kind


def mask_from_png(source: bytes | Path, name: str = "mask") -> Image.Image:
    """Read an object mask from an image file.

    What marks the object depends on the file:

    - black and white or grey: pixels of 128 and more; where the brightest value is 1, ones. Of 16 bits the
      upper 8 count.
    - class numbers with an ignore border, that is grey values up to 63 beside the highest value (255): the
      class numbers other than 0.
    - coloured palette (as in Pascal VOC), where the index 0 is black: all indices but 0 and the border 255;
      where another index is black, by colours.
    - flat colours on black: every colour except black and the border colour (224, 224, 192) of Pascal VOC.
    - transparency: the opaque pixels, where some are transparent.

    A border that is to be ignored is not the object: half of it lies on either side of the true outline, so
    each of its pixels belongs to the object or the background by the nearest pixel that is not border.

    Args:
        source: The file, or its content.
        name: How error messages call it.

    Returns:
        The mask as an L image: 255 on the object, 0 elsewhere.

    Raises:
        InputError: It is no image, marks no pixel, or can be read in two ways.
    """
    marked, brightest = _marked(*_loaded(source, name), name)
    if not marked.any():
        if 1 < brightest <= LARGEST_CLASS:
            raise MaskError(
                f"{name}: grey values up to {brightest} seem to be class numbers; nothing tells which is the "
                "object. Write the object as 255 and the rest as 0, or let `torchdoctor masks import --ids` "
                "take every number but 0 for the object",
                "unreadable",
            )
        raise MaskError(
            f"{name}: the mask marks no pixel (its brightest value is {brightest}); expected "
            "the object in white, or 1 in a 0/1 mask. Images without an object need no mask file",
            "empty",
        )
    return Image.fromarray(np.where(marked, 255, 0).astype(np.uint8))


def mask_from_ids(source: bytes | Path, name: str = "mask") -> Image.Image:
    """Read an object mask from an image of numbers: each is an instance or a class, 0 is the background.

    The highest value that the file can hold (255, or 65535 in 16 bits) beside other numbers is a border that
    is to be ignored; each of its pixels belongs to the object or the background by the nearest other pixel.

    Args:
        source: The file, or its content.
        name: How error messages call it.

    Returns:
        The mask as an L image: 255 on the object, 0 elsewhere.

    Raises:
        MaskError: It is no image of numbers, or holds none but 0.
    """
    upright, lossy = _loaded(source, name)
    if lossy or (upright.mode not in ("1", "L", "P") and not upright.mode.startswith("I")):
        found = "a format that changes numbers" if lossy else f"an image of mode {upright.mode}"
        text = f"{name}: {found}; expected numbers in a grey image or a palette without lossy compression"
        raise MaskError(text, "unreadable")
    values = np.asarray(upright)
    highest, others = values.max(initial=0), np.setdiff1d(np.unique(values), [0])
    ignored = values == highest if highest in (255, 65535) and len(others) > 1 else values < 0
    marked = _without_border((values > 0) & ~ignored, ignored)
    if not marked.any():
        raise MaskError(f"{name}: every pixel has the number 0, the background", "empty")
    return Image.fromarray(np.where(marked, 255, 0).astype(np.uint8))


def _loaded(source: bytes | Path, name: str) -> tuple[Image.Image, bool]:
    """Decode a mask file, turned upright, and say whether it has lost detail in compression."""
    try:
        with stream_of(source) as stream, Image.open(stream) as file:
            if file.width * file.height > LARGEST_PIXELS:
                text = (
                    f"{name}: {file.width} x {file.height} pixels; expected at most {LARGEST_PIXELS} in all"
                )
                raise MaskError(text, "unreadable")
            return ImageOps.exif_transpose(file), _is_lossy(file, source)
    except DAMAGED as error:
        text = f"{name}: cannot be decoded as a mask ({error}); expected a PNG image"
        raise MaskError(text, "unreadable") from error


def _is_lossy(file: Image.Image, source: bytes | Path) -> bool:
    """Return whether an image file has lost detail in compression."""
    if file.format != "WEBP":
        return file.format in ("JPEG", "MPO", "AVIF")
    with stream_of(source) as stream:
        return b"VP8L" not in stream.read(64)


def _marked(file: Image.Image, lossy: bool, name: str) -> tuple[Marked, int]:
    """Return which pixels of a mask file are the object, and its brightest value."""
    if file.mode in ("RGBA", "LA", "PA") or "transparency" in file.info:
        colours = file.convert("RGBA")
        alpha = np.asarray(colours.getchannel("A"))
        if alpha.min(initial=255) < 255:
            if _is_drawn_on_black(np.asarray(colours.convert("RGB"))[alpha >= 128]):
                raise InputError(
                    f"{name}: black and white pixels as well as transparent ones; expected the object in "
                    "white without transparency, or the object alone as opaque"
                )
            return alpha >= 128, int(alpha.max(initial=0))
        file = colours.convert("RGB")
    if file.mode == "P" and _is_coloured(np.asarray(file.convert("RGB")), 0):
        found = _paletted(np.asarray(file), np.asarray(file.convert("RGB")), name)
        if found is not None:
            return found
    if file.mode not in ("1", "L", "F") and not file.mode.startswith("I"):
        colours = file.convert("RGB")
        if _is_coloured(np.asarray(colours), 24 if lossy else 0):
            return _coloured(colours, lossy, name)
    return _grey(np.asarray(file if file.mode.startswith("I") else file.convert("L")), lossy, name)


def _paletted(
    indices: UInt8[np.ndarray, "height width"], pixels: UInt8[np.ndarray, "height width 3"], name: str
) -> tuple[Marked, int] | None:
    """Return the object in a palette whose index 0 is black; None where another index is."""
    first = indices == 0
    if first.any() and not pixels[first].any():
        return _without_border((indices > 0) & (indices < 255), indices == 255), int(indices.max())
    if (pixels == BLACK).all(axis=2).any():
        return None
    found = "the palette index 0 is not black" if first.any() else "no pixel has the palette index 0"
    raise InputError(
        f"{name}: {found}; expected 0 in black on the background, 255 on an ignored border, other indices on "
        "the object"
    )


def _is_drawn_on_black(pixels: UInt8[np.ndarray, "pixel 3"]) -> bool:
    """Return whether pixels are black ones and others of a drawn mask: flat colours, or black to white."""
    black = (pixels == BLACK).all(axis=1)
    if not black.any() or black.all():
        return False
    if len(np.unique(pixels, axis=0)) <= FEW_COLOURS:
        return True
    grey = not np.ptp(pixels, axis=1).any()
    extreme = (pixels[:, 0] <= NEARLY) | (pixels[:, 0] >= 255 - NEARLY)
    return grey and bool(extreme.mean() > 0.5 and pixels.max() >= 255 - NEARLY)


def _is_coloured(pixels: UInt8[np.ndarray, "height width 3"], tolerance: int) -> bool:
    """Return whether the channels of any pixel differ by more than a tolerance."""
    return bool((np.ptp(pixels, axis=2) > tolerance).any())


def _coloured(file: Image.Image, lossy: bool, name: str) -> tuple[Marked, int]:
    """Return the pixels in colours other than black and the border colour of Pascal VOC."""
    colours = file.getcolors(MOST_COLOURS)
    if colours is None or BLACK not in {colour for _, colour in colours}:
        raise InputError(
            f"{name}: a coloured mask of more than {MOST_COLOURS} colours or without black; expected the "
            "object in white or in flat colours on black"
        )
    if lossy:
        raise InputError(
            f"{name}: a coloured mask in a format that changes colours along edges; save it as PNG from the "
            "original, or the object in white on black"
        )
    pixels = np.asarray(file)
    border = (pixels == VOC_BORDER).all(axis=2)
    return _without_border((pixels != BLACK).any(axis=2) & ~border, border), int(pixels.max(initial=0))


def _grey(values: Integer[np.ndarray, "height width"], lossy: bool, name: str) -> tuple[Marked, int]:
    """Return the object's pixels in a grey mask, or in class numbers with an ignore border."""
    brightest = int(values.max(initial=0))
    if brightest <= 1:
        return values == 1, brightest
    between = np.setdiff1d(np.unique(values), [0, brightest])
    if brightest in (255, 65535) and len(between) and between.max() <= LARGEST_CLASS and not lossy:
        return _without_border((values > 0) & (values < brightest), values == brightest), brightest
    levels = values if brightest <= 255 else values // 257
    flat = _flat_levels(levels, lossy) if len(between) and levels.max() >= 128 else []
    if flat:
        raise InputError(
            f"{name}: flat areas of the grey values {', '.join(map(str, flat[:4]))} as well as brighter "
            f"ones, up to {brightest}: nothing tells which of them are the object. Write the object as 255 "
            "and the rest as 0"
        )
    return levels >= 128, int(levels.max(initial=0))


def _flat_levels(levels: Integer[np.ndarray, "height width"], lossy: bool) -> list[int]:
    """Return the grey values below the middle, other than black and those of trimaps, that fill areas."""
    core = levels[1:-1, 1:-1]
    same = np.ones(core.shape, dtype=bool)
    for row in (0, 1, 2):
        for column in (0, 1, 2):
            same &= levels[row : row + core.shape[0], column : column + core.shape[1]] == core
    many = len(np.unique(levels)) > FEW_LEVELS
    lowest, least = (NEARLY, LOSSY_SHARE * levels.size if lossy else 0) if many else (0, 0)
    found, counts = np.unique(core[same], return_counts=True)
    return [
        int(level) for level, count in zip(found, counts, strict=True)
        if lowest < level < TRIMAP and count > least
    ]  # fmt: skip


def _without_border(marked: Marked, border: Marked) -> Marked:
    """Return the object, with each pixel of the border counted as its nearest pixel outside the border."""
    if not border.any() or border.all():
        return marked
    from scipy.ndimage import distance_transform_edt  # here, because it takes time to import

    rows, columns = distance_transform_edt(border, return_distances=False, return_indices=True)
    return marked[rows, columns]


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
            text = f"{name}: box {list(box)} lies off the image of {width} x {height} pixels"
            raise MaskError(text, "off the image")
        mask[max(top, 0) : bottom + 1, max(left, 0) : right + 1] = 255
    return Image.fromarray(mask)


def check_mask_size(mask: Image.Image, size: tuple[int, int], name: str, orientation: int = 1) -> Image.Image:
    """Check that a mask is as large as its image, and turn it along with an image that EXIF turns.

    Args:
        mask: The mask.
        size: The width and height of the upright image in pixels.
        name: How error messages call the image.
        orientation: The EXIF orientation by which the image was turned upright; 1: it was not turned.

    Returns:
        The mask. It is turned where it has the size of the image as stored and not that of the upright image.

    Raises:
        InputError: The sizes differ, or do not tell whether the mask was drawn before or after the turn.
    """
    stored = size[::-1] if orientation in SIDEWAYS else size
    if orientation != 1 and mask.size == stored == size:
        raise MaskError(
            f"{name}: an image with EXIF orientation {orientation}, and a mask that may be drawn on "
            "the image as stored or as shown; save the image upright without EXIF orientation, and draw the "
            "mask on that",
            "turned by EXIF",
        )
    if mask.size == stored != size:
        return mask.transpose(TURNS[orientation])
    if mask.size != size:
        mask_size, image_size = ("{} x {}".format(*pair) for pair in (mask.size, size))
        raise MaskError(
            f"{name}: the mask is {mask_size} pixels but the image is {image_size}; draw the mask on the "
            "full image",
            "wrong size",
        )
    return mask

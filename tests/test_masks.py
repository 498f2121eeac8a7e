"""Mask files: which pixels are the object, in every way that tools write it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from torchdoctor.data.annotations import check_mask_size, mask_from_png
from torchdoctor.data.decoding import decode_image, orientation_of
from torchdoctor.types import InputError

OBJECT = np.zeros((12, 12), dtype=np.uint8)
OBJECT[3:9, 3:9] = 1
BORDER = np.zeros((12, 12), dtype=bool)
BORDER[2:10, 2:10] = True
BORDER[4:8, 4:8] = False
WHITE = np.full((12, 12), 255, dtype=np.uint8)


def written(image: Image.Image, kind: str = "PNG") -> bytes:
    """Return the content of an image file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def paletted(indices: np.ndarray, colours: dict[int, tuple[int, int, int]]) -> Image.Image:
    """Return a palette image."""
    image = Image.fromarray(indices.astype(np.uint8)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    palette = np.zeros((256, 3), dtype=np.uint8)
    for index, colour in colours.items():
        palette[index] = colour
    image.putpalette(palette.ravel().tolist())
    return image


RIM = WHITE.copy()
RIM[0] = 0
SOFT = np.asarray(Image.fromarray(OBJECT * 255).filter(ImageFilter.GaussianBlur(0.5)))
VOC = {7: (128, 128, 128), 15: (192, 128, 128), 255: (224, 224, 192)}
NUMBERED = np.where(BORDER, 255, OBJECT * 15)
CASES = {
    "palette with a border": (paletted(NUMBERED, VOC), OBJECT == 1),
    "palette without a border": (paletted(OBJECT * 15, VOC), OBJECT == 1),
    "palette in black and white, white first": (paletted(1 - OBJECT, {0: (255, 255, 255)}), OBJECT == 1),
    "class numbers with a border": (
        Image.fromarray(np.where(BORDER, 255, OBJECT).astype(np.uint8)), OBJECT == 1,
    ),
    "class numbers of 16 bits": (
        Image.fromarray(np.where(BORDER, 65535, OBJECT).astype(np.uint16)), OBJECT == 1,
    ),
    "colours with a border": (paletted(NUMBERED, VOC).convert("RGB"), OBJECT == 1),
    "red on black": (Image.fromarray(np.dstack([OBJECT * 255, OBJECT * 0, OBJECT * 0])), OBJECT == 1),
    "one bit": (Image.fromarray(OBJECT * 255).convert("1"), OBJECT == 1),
    "RGBA": (Image.fromarray(np.dstack([WHITE, WHITE, WHITE, OBJECT * 255])), OBJECT == 1),
    "LA": (Image.fromarray(np.dstack([WHITE, OBJECT * 255])), OBJECT == 1),
    "RGBA without transparency": (
        Image.fromarray(np.dstack([OBJECT * 255] * 3)).convert("RGBA"), OBJECT == 1,
    ),
    "red on black with other indices": (
        paletted(1 - OBJECT, {0: (128, 0, 0), 1: (0, 0, 0)}), OBJECT == 1,
    ),
    "red on black as quantised": (
        Image.fromarray(np.dstack([OBJECT * 128, OBJECT * 0, OBJECT * 0])).quantize(8), OBJECT == 1,
    ),
    "8 bits in 16": (Image.fromarray((OBJECT * 255).astype(np.uint16)), OBJECT == 1),
    "grey objects above the middle": (
        Image.fromarray(np.where(BORDER, 150, OBJECT * 200).astype(np.uint8)), BORDER | (OBJECT == 1),
    ),
    "trimap": (Image.fromarray(np.where(BORDER, 128, OBJECT * 255).astype(np.uint8)), BORDER | (OBJECT == 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_object_is_marked_however_it_is_written(case):
    image, expected = CASES[case]
    assert np.array_equal(np.asarray(mask_from_png(written(image))) == 255, expected)


def test_a_jpeg_mask_is_read_by_brightness():
    large = Image.fromarray(OBJECT * 255).resize((96, 96), Image.Resampling.NEAREST)
    marked = np.asarray(mask_from_png(written(large, "JPEG"))) == 255
    assert np.array_equal(marked, np.asarray(large) == 255)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_coloured_masks_in_lossy_formats_are_refused(kind):
    large = np.asarray(Image.fromarray(OBJECT * 255).resize((48, 48), Image.Resampling.NEAREST))
    coloured = Image.fromarray(np.dstack([large, large * 0, large * 0]))
    with pytest.raises(InputError, match="a coloured mask in a format that changes colours along edges"):
        mask_from_png(written(coloured, kind))
    soft = Image.fromarray(large).filter(ImageFilter.GaussianBlur(2))
    assert np.array_equal(np.asarray(mask_from_png(written(soft))) == 255, np.asarray(soft) >= 128)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (paletted(OBJECT + 1, VOC | {1: (9, 0, 0), 2: (0, 9, 0)}), "no pixel has the palette index 0"),
        (paletted(OBJECT, {0: (90, 0, 90), 1: (200, 200, 0)}), "the palette index 0 is not black"),
        (
            Image.fromarray(np.where(BORDER, 255, OBJECT * 88).astype(np.uint8)),
            "grey values 88 as well",
        ),
        (
            Image.fromarray(np.where(BORDER, 254, OBJECT).astype(np.uint8)),
            "grey values 1 as",
        ),
        (
            Image.fromarray(OBJECT * np.repeat([100, 200], 6).astype(np.uint8)),
            "grey values 100 as",
        ),
        (
            Image.fromarray(np.dstack([OBJECT * 255, OBJECT * 0, OBJECT * 0, RIM])),
            "black and white pixels as well",
        ),
        (
            Image.fromarray(np.dstack([SOFT, SOFT, SOFT, RIM])),
            "black and white pixels as well as transparent",
        ),
        (paletted(np.where(BORDER, 255, 0), VOC), "marks no pixel"),
        (Image.fromarray(np.dstack([WHITE, WHITE, WHITE, OBJECT * 0])), "marks no pixel"),
        (
            Image.fromarray(np.dstack([OBJECT * 255] * 3 + [WHITE * (np.arange(12) > 5).astype(np.uint8)])),
            "black and white pixels as well as transparent",
        ),
        (
            Image.fromarray(np.arange(24 * 24 * 3, dtype=np.uint16).astype(np.uint8).reshape(24, 24, 3)),
            "m: a coloured mask of more than",
        ),
    ],
)
def test_masks_that_can_be_read_in_two_ways_are_refused(image, text):
    with pytest.raises(InputError, match=text):
        mask_from_png(written(image), "m")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_uncompressed_files_are_turned_as_compressed_ones_are(compression, orientation, tmp_path):
    pixels = np.zeros((24, 32), dtype=np.uint8)
    pixels[2:8, 3:20] = 255
    file = tmp_path / "1.tif"
    Image.fromarray(pixels).save(file, tiffinfo={0x0112: orientation}, compression=compression)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "1.png", exif=exif)
    upright = np.asarray(decode_image(tmp_path / "1.png", "1.png").convert("L"))
    assert np.array_equal(np.asarray(decode_image(file, "1.tif").convert("L")), upright)
    assert np.array_equal(np.asarray(mask_from_png(file)), upright)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_mask_is_turned_along_with_its_photograph(orientation, tmp_path):
    pixels = np.zeros((24, 32), dtype=np.uint8)
    pixels[2:8, 3:20] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "1.png"
    Image.fromarray(np.dstack([pixels] * 3)).save(file, exif=exif)
    mask = mask_from_png(written(Image.fromarray(pixels)))
    upright = decode_image(file, "1.png")
    if orientation < 5:
        with pytest.raises(InputError, match=f"EXIF orientation {orientation}, and a mask that may be"):
            check_mask_size(mask, upright.size, "1.png", orientation_of(file))
    else:
        turned = check_mask_size(mask, upright.size, "1.png", orientation_of(file))
        assert np.array_equal(np.asarray(turned), np.asarray(upright.convert("L")))
        again = check_mask_size(turned, upright.size, "1.png", orientation_of(file))
        assert again is turned  # drawn on the upright image


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (2, "grey values up to 2 seem to be class numbers.*Write the object as 255 and the rest as 0"),
        (63, "grey values up to 63 seem to be class numbers"),
        (0, "marks no pixel.*Images without an object need no mask file"),
        (100, "marks no pixel"),
    ],
)
def test_masks_without_an_object_say_what_to_do(classes, said):
    mask = Image.fromarray((OBJECT * classes).astype(np.uint8))
    with pytest.raises(InputError, match=said):
        mask_from_png(written(mask))

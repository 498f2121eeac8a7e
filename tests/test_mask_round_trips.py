"""What is written in a format is read back with the same area, holes and several parts among it."""

from __future__ import annotations

import io
import json
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from torchdoctor.data.mask_formats.annotation import MaskedImage, MaskSet, draw_shapes
from torchdoctor.data.mask_formats.brush import decode_brush, encode_brush
from torchdoctor.data.mask_formats.coco import counts_of_text
from torchdoctor.data.mask_formats.registry import FORMATS, FormatName, read_annotations, recognised
from torchdoctor.data.mask_formats.shapes import drawn, outlines, without_holes
from torchdoctor.data.mask_import import draw_annotations

QUICK = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CLASSES = ("blue", "red")


@st.composite
def areas(draw):
    """A mask: rectangles that are added or cut out one after the other, and sometimes single pixels."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 50))
    area = np.zeros((height, width), dtype=bool)
    for _ in range(draw(st.integers(1, 7))):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        wide, high = draw(st.integers(1, 30)), draw(st.integers(1, 30))
        area[top : top + high, left : left + wide] = draw(st.sampled_from([True, True, False]))
    for _ in range(draw(st.integers(0, 6))):
        row, column = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        area[row, column] ^= True
    assume(area.any())
    return area


RING = np.pad(np.pad(np.zeros((3, 4), dtype=bool), 2, constant_values=True), 1)
CHECKERS = np.indices((7, 9)).sum(axis=0) % 2 == 0
TWO_HOLES = np.ones((9, 12), dtype=bool)
TWO_HOLES[2:4, 2:5] = TWO_HOLES[5:8, 2:9] = False


def masked(area, name="cats/1.jpg", label="red"):
    def encoded():
        content = io.BytesIO()
        Image.new("RGB", area.shape[::-1]).save(content, "png")
        return content.getvalue()

    return MaskedImage(name, PurePosixPath(name).with_suffix("").as_posix(), label, area, None, encoded)


def write(name, images, folder):
    for path, content in FORMATS[name].write(MaskSet(images, CLASSES, folder)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize("name", get_args(FormatName))
@QUICK
@given(area=areas())
@example(area=RING)
@example(area=CHECKERS)
@example(area=TWO_HOLES)
@example(area=np.ones((5, 3), dtype=bool))
def test_a_round_trip_keeps_the_area(name, area):
    with TemporaryDirectory() as place:
        folder = Path(place)
        write(name, [masked(area)], folder)
        found, read = read_annotations(folder)
        assert found == name and not read.problems
        (image,) = read.images
        again = draw_shapes(image, area.shape[1], area.shape[0])
    assert overlap(area, again) >= 0.99
    assert PurePosixPath(image.name).stem == "1"
    assert image.labels == (() if name == "png" else ("red",))
    assert image.size in (None, area.shape[::-1])


def test_round_trips_are_exact_for_ordinary_objects():
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(0).random((120, 161)), 6)
    area = noise > np.quantile(noise, 0.6)
    for name in get_args(FormatName):
        with TemporaryDirectory() as place:
            write(name, [masked(area)], Path(place))
            _, read = read_annotations(Path(place), name)
            assert np.array_equal(draw_shapes(read.images[0], 161, 120), area), name


@pytest.mark.parametrize("name", get_args(FormatName))
def test_several_images_of_equal_names_stay_apart(name, tmp_path):
    one, other = np.zeros((12, 16), dtype=bool), np.zeros((10, 14), dtype=bool)
    one[2:5, 3:9] = other[4:9, 1:3] = True
    write(name, [masked(one, "cats/1.jpg"), masked(other, "dogs/1.jpg", "blue")], tmp_path)
    assert recognised(tmp_path) == name
    _, read = read_annotations(tmp_path)
    assert len({image.name for image in read.images}) == 2
    areas_read = {
        PurePosixPath(image.name).parent.name: draw_shapes(
            image, *((16, 12) if "cats" in image.name else (14, 10))
        )
        for image in read.images
    }
    assert np.array_equal(areas_read["cats"], one) and np.array_equal(areas_read["dogs"], other)


@QUICK
@given(box=st.tuples(*[st.integers(0, 20)] * 4))
def test_boxes_of_voc_alone_come_back(box):
    left, top, wide, high = box
    area = np.zeros((44, 44), dtype=bool)
    area[top : top + high + 1, left : left + wide + 1] = True
    with TemporaryDirectory() as place:
        folder = Path(place)
        write("voc", [masked(area)], folder)
        _, read = read_annotations(folder / "Annotations")
        (image,) = read.images
    assert np.array_equal(draw_shapes(image, 44, 44), area)


@QUICK
@given(area=areas())
@example(area=CHECKERS)
def test_outlines_and_cuts_cover_the_same_pixels(area):
    parts = outlines(area)
    height, width = area.shape
    assert np.array_equal(drawn(parts)(width, height), area)
    pieces = [piece for part in parts for piece in without_holes(part)]
    assert not any(piece.interiors for piece in pieces)
    assert sum(piece.area for piece in pieces) == pytest.approx(area.sum())
    assert np.array_equal(drawn(pieces)(width, height), area)


@QUICK
@given(area=areas())
def test_brush_strokes_come_back(area):
    assert np.array_equal(decode_brush(encode_brush(area), area.shape[1], area.shape[0]), area)


@QUICK
@given(area=areas())
def test_compressed_run_lengths_are_those_of_coco(area):
    from pycocotools import mask as library

    runs = library.encode(np.asfortranarray(area.astype(np.uint8)))
    counts = counts_of_text(runs["counts"].decode())
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(area.shape, order="F")
    assert np.array_equal(values, area)


def test_labelme_embeds_an_image_that_has_no_file(tmp_path):
    area = np.ones((4, 6), dtype=bool)
    write("labelme", [masked(area)], tmp_path)
    content = json.loads((tmp_path / "cats" / "1.json").read_text())
    assert content["imageData"] and content["imagePath"] == "1.jpg"
    drawn_masks = draw_annotations(read_annotations(tmp_path)[1])
    assert [mask.place for mask in drawn_masks.masks] == ["cats/1"]
    assert drawn_masks.masks[0].share == 1 and "1 mask of a whole image" in drawn_masks.notes

"""Annotations that are damaged, hostile or do not fit: one clear sentence each, that names file and shape."""

from __future__ import annotations

import copy
import json
import struct
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from test_mask_formats import (
    BLOCK,
    CORNERS,
    HEIGHT,
    STUDIO_BOX,
    WIDTH,
    YOLO_BOX,
    coco,
    cvat_images,
    encoded,
    flat,
    labelme,
    labelme_xml,
    on_seven,
    photograph,
    shape,
    studio,
    studio_result,
    voc_box,
    voc_xml,
    written,
    xml_polygon,
    yolo_corners,
)
from torchdoctor.data.annotations import MaskError
from torchdoctor.data.mask_formats import files
from torchdoctor.data.mask_formats.brush import decode_brush, encode_brush
from torchdoctor.data.mask_formats.registry import read_annotations
from torchdoctor.data.mask_import import draw_annotations
from torchdoctor.types import InputError

MANY = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
NAN, INF = float("nan"), float("inf")


def one_problem(source, name):
    """Read and draw a source in which one image cannot be used; return what is said of it."""
    drawn = draw_annotations(read_annotations(source, name)[1])
    assert drawn.masks == () and len(drawn.problems) == 1, drawn
    return drawn.problems[0]


# Shapes that do not fit, in every format


@pytest.mark.parametrize(
    ("record", "kind", "said"),
    [
        (shape("polygon", [[1, 2], [3, 4]]), "shape", "2 points; expected at least 3"),
        (
            shape("polygon", [[1, 2], [3, 4], [1, 2]]),
            "shape",
            "2 different points; a polygon needs at least 3",
        ),
        (shape("polygon", [[1, 1], [5, 5], [9, 9]]), "shape", "whose points lie on a line; it has no area"),
        (shape("polygon", [[1, 2], [NAN, 4], [5, 5]]), "shape", "x is nan; expected a finite number"),
        (shape("polygon", [[1, 2], [3, INF], [5, 5]]), "shape", "y is inf; expected a finite number"),
        (shape("polygon", [[1, 2], [3, 1e300], [5, 5]]), "shape", "y is 1e[+]300"),
        (shape("polygon", [[1, 2], [3, 10**400], [5, 5]]), "shape", "y is 1000.*; expected a finite number"),
        (shape("polygon", [[1, 2], [3, "4 px"], [5, 5]]), "shape", "y is '4 px'"),
        (shape("polygon", [[1, 2], [3, True], [5, 5]]), "shape", "y is True"),
        (shape("polygon", [[1, 2], [3], [5, 5]]), "shape", r"point \[3\]; expected x and y"),
        (
            shape("polygon", [[100, 100], [120, 100], [110, 120]]),
            "off the image",
            "lies off the image of 40 x 30",
        ),
        (
            shape("polygon", [[-9e6, 5], [9e6, 25], [-9e6, 25], [9e6, 5]]),
            "off the image",
            "crosses itself and reaches far beyond the image of 40 x 30",
        ),
        (shape("rectangle", [[-9, -9], [0, 0]]), "off the image", "lies off the image of 40 x 30 pixels"),
        (shape("rectangle", [[5, 5], [5, 9]]), "shape", "expected a width and height above 0"),
        (shape("circle", [[5, 5], [5, 5]]), "shape", "radii 0 and 0"),
        (shape("spline", CORNERS), "shape", "unknown kind of shape; expected polygon, rectangle"),
        (shape("mask", [[1, 1], [5, 5]]), "shape", "a shape of pixels without mask"),
        (shape("mask", [[1, 1], [5, 5]], mask="!!"), "unreadable", "the mask cannot be decoded"),
        (shape("mask", [[50, 1], [5, 5]], mask=""), "unreadable", "the mask cannot be decoded"),
        (shape("polygon", [[5.1, 5.1], [5.3, 5.1], [5.2, 5.3]]), "empty", "cover no pixel"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(record, kind, said, tmp_path):
    written(tmp_path / "1.json", labelme(record))
    problem = one_problem(tmp_path, "labelme")
    assert problem.kind == kind and problem.text.startswith(str(tmp_path / "1.json"))
    assert kind == "empty" or f"1.json: shape 1 ({record['shape_type']} 'cat'): " in problem.text
    with pytest.raises(InputError, match=said):
        raise InputError(problem.text)


OFF = [[100, 100], [120, 100], [110, 120]]
BAD = {
    "coco": {
        "points": (coco(on_seven(segmentation=[[1, 2, 3, 4]])), "annotation 1 (id 1): 2 points"),
        "odd": (coco(on_seven(segmentation=[[1, 2, 3, 4, 5, 6, 7]])), "an odd number of coordinates"),
        "nan": (coco(on_seven(segmentation=[[1, 2, NAN, 4, 5, 6]])), "x is nan"),
        "off": (coco(on_seven(segmentation=[flat(OFF)])), "annotation 1 (id 1): lies off the image"),
        "none": (coco(on_seven(segmentation=[])), "neither a segmentation nor a bbox"),
        "box": (coco(on_seven(bbox=[1, 2, 0, 5])), "expected a width and height above 0"),
        "short runs": (
            coco(on_seven(segmentation={"size": [30, 40], "counts": [3, 4]})),
            "of 7 pixels in all",
        ),
        "huge runs": (
            coco(on_seven(segmentation={"size": [30, 40], "counts": [0, 10**12]})),
            "of 1e+12 pixels in all",
        ),
        "negative runs": (
            coco(on_seven(segmentation={"size": [30, 40], "counts": [1300, -100]})),
            "whole numbers from 0",
        ),
        "huge size": (
            coco(on_seven(segmentation={"size": [10**6, 10**6], "counts": [10**12]})),
            "100000000 pixels in all",
        ),
        "other size": (
            coco(on_seven(segmentation={"size": [40, 30], "counts": [1200]})),
            "run lengths for 30 x 40 pixels; the image is 40 x 30",
        ),
        "text": (
            coco(on_seven(segmentation={"size": [30, 40], "counts": "\u00e9"})),
            "letters that they cannot",
        ),
        "cut text": (coco(on_seven(segmentation={"size": [30, 40], "counts": "oo"})), "end within a number"),
        "long text": (
            coco(on_seven(segmentation={"size": [30, 40], "counts": "o" * 99})),
            "letters that they",
        ),
    },
    "label-studio": {
        "points": (
            studio(studio_result("polygonlabels", {"points": [[1, 2]]})),
            "result 1 (polygonlabels): 1 p",
        ),
        "nan": (studio(studio_result("rectanglelabels", {**STUDIO_BOX, "x": NAN})), "x is nan"),
        "missing": (studio(studio_result("rectanglelabels", {"x": 1})), "y is None"),
        "off": (studio(studio_result("rectanglelabels", {**STUDIO_BOX, "x": 200})), "lies off the image"),
        "empty": (studio(studio_result("rectanglelabels", {**STUDIO_BOX, "width": 0})), "above 0"),
        "strokes": (studio(studio_result("brushlabels", {"rle": encode_brush(BLOCK)[:30]})), "end too early"),
        "no strokes": (studio(studio_result("brushlabels", {"rle": "abc"})), "numbers from 0 to 255"),
        "huge strokes": (
            studio(
                studio_result("brushlabels", {"rle": [255] * 20}, original_width=10**6, original_height=10**6)
            ),
            "pixels in all",
        ),
        "other strokes": (
            studio(studio_result("brushlabels", {"rle": encode_brush(BLOCK[:9])})),
            "values; expected 4 x 40 x 30",
        ),
        "no image": ([{"data": {"text": "x"}, "annotations": []}], "without the path or address of an image"),
        "two sizes": (
            studio(
                studio_result("rectanglelabels", STUDIO_BOX),
                studio_result("rectanglelabels", STUDIO_BOX, original_width=50),
            ),
            "for images of the sizes [(40, 30), (50, 30)]",
        ),
    },
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in BAD for case in BAD[name]])
def test_json_that_does_not_fit_is_named(name, case, tmp_path):
    content, said = BAD[name][case]
    written(tmp_path / "a.json", content)
    text = one_problem(tmp_path, name).text
    assert text.startswith(str(tmp_path / "a.json")) and said in text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("voc", voc_xml(voc_box((6, "nan", 25, 20))), "object 1 ('cat'): ymin is 'nan'"),
        ("voc", voc_xml(voc_box((60, 11, 70, 20))), "object 1 ('cat'): lies off the image"),
        ("voc", voc_xml(voc_box((25, 11, 6, 20))), "above 0"),
        ("voc", voc_xml("<object><name>cat</name></object>"), "object 1 ('cat'): no bndbox"),
        ("cvat", labelme_xml(xml_polygon(CORNERS[:2])), "object 1 ('cat'): 2 points"),
        ("cvat", labelme_xml(xml_polygon([[1, 1], [2, "inf"], [3, 4]])), "y is 'inf'"),
        (
            "cvat",
            labelme_xml("<object><segm><mask>x.png</mask></segm></object>"),
            "mask 'x.png': no such file",
        ),
        ("cvat", cvat_images('<polygon label="cat" points="1,2;3,4"/>'), "shape 1 (polygon 'cat'): 2 points"),
        ("cvat", cvat_images('<polygon label="cat" points="1,2;3;4,5"/>'), "expected x and y"),
        ("cvat", cvat_images('<cuboid label="cat"/>'), "unknown kind of shape"),
        (
            "cvat",
            cvat_images('<mask rle="1,2" left="0" top="0" width="9" height="9"/>'),
            "run lengths of 3 pixels",
        ),
        (
            "cvat",
            cvat_images('<mask rle="1,99999999999999" left="0" top="0" width="9" height="9"/>'),
            "rle is '99999999999999'",
        ),
        (
            "cvat",
            cvat_images('<mask rle="9" left="0" top="0" width="999999" height="999999"/>'),
            "a mask of 999999",
        ),
        ("cvat", "<annotations><version>1.1</version><track/></annotations>", "tracks of a video"),
    ],
)
def test_xml_that_does_not_fit_is_named(name, content, said, tmp_path):
    written(tmp_path / "1.xml", content)
    text = one_problem(tmp_path, name).text
    assert text.startswith(str(tmp_path / "1.xml")) and said in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("cat 0.1 0.2 0.3 0.4", "line 2: 'cat'; expected the number of a class"),
        ("0 0.1 0.2 0.3", "4 numbers; expected a class and at least 4 shares"),
        ("0 nan 0.2 0.3 0.4", "a share is 'nan'"),
        ("0 15 20 10 10", "20; expected shares of the image's width and height"),
        ("0 0.5 0.5 0 0.4", "expected a width and height above 0"),
        ("0 0.9 0.5 0.9 0.4", "a box that reaches to 1.35"),
        ("0 0.1 0.1 0.1 0.1 0.2 0.2", "2 different points"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3", "lie on a line"),
    ],
)
def test_lines_of_yolo_that_do_not_fit_are_named(line, said, tmp_path):
    photograph(tmp_path / "1.jpg")
    written(tmp_path / "1.txt", f"{YOLO_BOX}\n{line}\n")
    text = one_problem(tmp_path, "yolo").text
    assert text.startswith(str(tmp_path / "1.txt")) and said in text


# One bad image does not take the others along


def test_other_images_are_read(tmp_path):
    written(tmp_path / "1.json", labelme(shape("polygon", CORNERS)))
    written(tmp_path / "2.json", labelme(shape("polygon", CORNERS[:2]), imagePath="2.jpg"))
    written(tmp_path / "3.json", "{")
    written(tmp_path / "4.json", labelme(imagePath="4.jpg"))
    drawn = draw_annotations(read_annotations(tmp_path)[1])
    assert [mask.image for mask in drawn.masks] == ["1.jpg"] and drawn.without_shapes == ("4.jpg",)
    assert [problem.image for problem in drawn.problems] == ["2.json", "3.json"]


# Files that are no annotations


@pytest.mark.parametrize("ending", [".json", ".xml"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b"<a>", b"<a/>", b"\0"])
@pytest.mark.parametrize("name", ["labelme", "coco", "label-studio", "voc", "cvat"])
def test_other_files_are_named(name, content, ending, tmp_path):
    file = written(tmp_path / f"1{ending}", content)
    if (ending == ".json") != (name in ("labelme", "coco", "label-studio")):
        with pytest.raises(InputError, match="nothing of the format"):
            read_annotations(tmp_path, name)
    else:
        assert one_problem(tmp_path, name).text.startswith(str(file))
    with pytest.raises(InputError, match=str(tmp_path)):
        read_annotations(file)


@pytest.mark.parametrize("name", ["labelme", "coco", "label-studio"])
def test_deeply_nested_json_is_named(name, tmp_path):
    written(tmp_path / "1.json", '{"shapes":' + "[" * 200_000 + "]" * 200_000 + "}")
    assert "nested too deeply" in one_problem(tmp_path, name).text


def test_deeply_nested_values_are_no_shapes(tmp_path):
    written(tmp_path / "1.json", labelme(shape("polygon", [[[[[1]]]]])))
    assert "shape 1 (polygon 'cat'): point [[[[1]]]]" in one_problem(tmp_path, "labelme").text


def test_huge_files_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_FILE", 1000)
    written(tmp_path / "1.json", labelme(shape("polygon", CORNERS), imageData="A" * 1000))
    assert "bytes; expected at most 1000: divide the annotations" in one_problem(tmp_path, "labelme").text


BILLION = '<!DOCTYPE a [<!ENTITY b "cat"><!ENTITY c "&b;&b;&b;">]>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize("name", ["voc", "cvat"])
@pytest.mark.parametrize("start", [BILLION, OUTSIDE, '<!DOCTYPE a SYSTEM "http://example.org/x.dtd">'])
def test_entities_of_xml_are_not_read(start, name, tmp_path):
    written(tmp_path / "1.xml", start + voc_xml(voc_box(label="&c;" if start is BILLION else "cat")))
    assert "declares a document type or entities" in one_problem(tmp_path, name).text


def bomb(side=30_000):
    """A valid PNG header that claims nearly a billion pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_500, 30_000])  # more than is allowed here, and more than Pillow allows
def test_images_that_claim_too_many_pixels_are_refused(side, tmp_path):
    import base64

    written(tmp_path / "png" / "1.png", bomb(side))
    assert one_problem(tmp_path / "png", "png").kind == "unreadable"
    packed = base64.b64encode(bomb(side)).decode()
    written(tmp_path / "json" / "1.json", labelme(shape("mask", [[1, 1], [5, 5]], mask=packed)))
    assert "1.json: shape 1 (mask 'cat'): " in one_problem(tmp_path / "json", "labelme").text
    written(tmp_path / "cvat" / "labelmap.txt", "cat:1,2,3::\n")
    written(tmp_path / "cvat" / "SegmentationClass" / "1.png", bomb(side))
    assert "1.png" in one_problem(tmp_path / "cvat", "cvat").text


def test_brush_strokes_that_claim_too_much_set_no_memory_aside():
    start = np.unpackbits(np.frombuffer(struct.pack(">I", 2**32 - 1), dtype=np.uint8)).tolist()
    numbers = np.packbits(np.array(start + [0] * 40, dtype=np.uint8)).tolist()
    with pytest.raises(MaskError, match="brush strokes of 4294967295 values; expected 4 x 3 x 2"):
        decode_brush(numbers, 3, 2)
    with pytest.raises(MaskError, match="brush strokes on 100000 x 100000"):
        decode_brush(numbers, 100_000, 100_000)


# Sizes, and images that EXIF turns


def test_annotations_of_another_size_are_refused(tmp_path):
    photograph(tmp_path / "1.jpg", (80, 60))
    written(tmp_path / "1.json", labelme(shape("polygon", CORNERS)))
    problem = one_problem(tmp_path, "labelme")
    assert (
        problem.kind == "wrong size" and "drawn on 40 x 30 pixels, but the image is 80 x 60" in problem.text
    )
    written(tmp_path / "1.json", labelme(shape("polygon", CORNERS), imageWidth=-3, imageHeight=4))
    assert "expected 1 to" in one_problem(tmp_path, "labelme").text


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_images_that_exif_turns(orientation, tmp_path):
    photograph(tmp_path / "1.jpg", orientation=orientation)
    sideways = orientation in (6, 8)
    size = (HEIGHT, WIDTH) if sideways else (WIDTH, HEIGHT)
    points = [[1, 1], [9, 1], [9, 3], [1, 3]]

    # LabelMe shows the upright image.
    written(tmp_path / "1.json", labelme(shape("polygon", points), imageWidth=size[0], imageHeight=size[1]))
    (mask,) = draw_annotations(read_annotations(tmp_path, "labelme")[1]).masks
    upright = np.asarray(_opened(mask.png)) > 0
    assert upright.shape == size[::-1] and upright[1:3, 1:9].all() and upright.sum() == 16

    # COCO does not say; the size tells where the image is turned sideways.
    images = [{"id": 7, "file_name": "1.jpg", "width": WIDTH, "height": HEIGHT}]
    written(tmp_path / "coco.json", coco(on_seven(segmentation=[flat(points)]), images=images))
    (tmp_path / "1.json").unlink()
    drawn = draw_annotations(read_annotations(tmp_path, "coco")[1])
    if sideways:
        turned = np.asarray(_opened(drawn.masks[0].png)) > 0
        assert turned.shape == size[::-1] and turned.sum() == 16 and turned.any(axis=0).sum() == 2
    else:
        assert drawn.problems[0].kind == "turned by EXIF"

    # YOLO's shares say nothing.
    written(tmp_path / "1.txt", f"0 {yolo_corners()}")
    assert one_problem(tmp_path, "yolo").kind == "turned by EXIF"


def _opened(content):
    import io

    from PIL import Image

    return Image.open(io.BytesIO(content))


# Anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
SOUND = {
    "labelme": labelme(shape("polygon", CORNERS), shape("circle", [[20, 15], [20, 7]])),
    "coco": coco(
        on_seven(segmentation=[flat(CORNERS)], bbox=[1, 2, 3, 4]),
        on_seven(segmentation={"size": [HEIGHT, WIDTH], "counts": [160, 20, 1020]}),
    ),
    "label-studio": studio(
        studio_result("rectanglelabels", STUDIO_BOX),
        studio_result("brushlabels", {"rle": encode_brush(BLOCK)[:60]}),
    ),
}


def places(value, path=()):
    """Yield the path of every value inside a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from places(child, (*path, key))


def changed(value, path, new):
    if not path:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


@pytest.mark.parametrize("name", sorted(SOUND))
@MANY
@given(data=st.data())
def test_one_wrong_value_never_breaks_the_reader(name, data):
    path = data.draw(st.sampled_from(list(places(SOUND[name]))))
    content = changed(SOUND[name], path, data.draw(JSON))
    check_never_breaks(json.dumps(content), name, ".json")


@pytest.mark.parametrize("name", ["labelme", "coco", "label-studio", "voc", "cvat", "yolo"])
@MANY
@given(data=st.data())
def test_damaged_files_never_break_the_reader(name, data):
    sound = {
        **{key: json.dumps(value) for key, value in SOUND.items()},
        "voc": voc_xml(voc_box()), "cvat": cvat_images('<polygon label="cat" points="1,2;30,4;5,20"/>'),
        "yolo": f"{YOLO_BOX}\n0 {yolo_corners()}",
    }[name].encode()  # fmt: skip
    start = data.draw(st.integers(0, len(sound)))
    end = data.draw(st.integers(start, min(len(sound), start + 30)))
    content = sound[:start] + data.draw(st.binary(max_size=8)) + sound[end:]
    ending = {"voc": ".xml", "cvat": ".xml", "yolo": ".txt"}.get(name, ".json")
    check_never_breaks(content, name, ending)


COORDINATES = st.one_of(
    st.floats(),
    st.floats(-100, 100),
    st.integers(-(10**9), 10**9),
    st.sampled_from([0, 0.0, -0.0, 40, 30, 1e7, 1e-300]),
)


@MANY
@given(
    st.lists(st.tuples(COORDINATES, COORDINATES), max_size=7),
    st.sampled_from(["polygon", "circle", "rectangle", "line", "points"]),
)
def test_any_coordinates_give_an_area_or_a_sentence(points, kind):
    with TemporaryDirectory() as folder:
        written(Path(folder) / "1.json", labelme(shape(kind, [list(point) for point in points])))
        drawn = draw_annotations(read_annotations(Path(folder), "labelme")[1])
    assert len(drawn.masks) + len(drawn.problems) == 1
    for problem in drawn.problems:
        assert "1.json: " in problem.text and (problem.kind == "empty" or "shape 1 (" in problem.text)
    for mask in drawn.masks:
        assert 0 < mask.share <= 1


def check_never_breaks(content, name, ending):
    """Read and draw; a file that cannot be used gives problems or InputError, nothing else."""
    with TemporaryDirectory() as folder:
        file = written(Path(folder) / f"1{ending}", content)
        photograph(Path(folder) / "1.png")
        for source in (Path(folder), file):
            try:
                drawn = draw_annotations(read_annotations(source, name)[1])
            except InputError as error:
                assert folder in str(error)
                continue
            assert all(problem.text for problem in drawn.problems)


def test_masks_of_pixels_are_compared_with_their_image(tmp_path):
    photograph(tmp_path / "JPEGImages" / "1.jpg", (20, 20))
    written(tmp_path / "SegmentationClass" / "1.png", encoded(np.where(BLOCK, 1, 0).astype(np.uint8)))
    problem = one_problem(tmp_path, "voc")
    assert (
        problem.kind == "wrong size" and "drawn on 40 x 30 pixels, but the image is 20 x 20" in problem.text
    )

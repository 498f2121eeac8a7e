"""A small example of each format as its program writes it, and what other programs make of that format."""

from __future__ import annotations

import base64
import io
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchdoctor.data.mask_formats.annotation import draw_shapes, safe_path
from torchdoctor.data.mask_formats.brush import encode_brush
from torchdoctor.data.mask_formats.registry import read_annotations, recognised
from torchdoctor.data.mask_import import draw_annotations
from torchdoctor.types import InputError

WIDTH, HEIGHT = 40, 30
BLOCK = np.zeros((HEIGHT, WIDTH), dtype=bool)
BLOCK[10:20, 5:25] = True  # rows 10 to 19, columns 5 to 24
CORNERS = [[5, 10], [25, 10], [25, 20], [5, 20]]


def encoded(pixels, mode=None):
    content = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.convert(mode or image.mode).save(content, "png")
    return content.getvalue()


def photograph(file: Path, size=(WIDTH, HEIGHT), orientation=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, exif=exif)


def written(file: Path, content) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def only_area(source, name, width=WIDTH, height=HEIGHT):
    """Read a source that is recognised as a format and holds one image; return the image and its area."""
    assert recognised(source) == name
    _, read = read_annotations(source)
    assert not read.problems, read.problems
    (image,) = read.images
    return image, draw_shapes(image, width, height)


# LabelMe


def labelme(*shapes, **fields):
    record = {
        "version": "5.2.1", "flags": {}, "shapes": list(shapes), "imagePath": "1.jpg", "imageData": None,
        "imageHeight": HEIGHT, "imageWidth": WIDTH,
    }  # fmt: skip
    return {**record, **fields}


def shape(kind, points, label="cat", **fields):
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **fields}


def test_labelme_polygon(tmp_path):
    written(tmp_path / "1.json", labelme(shape("polygon", CORNERS)))
    image, area = only_area(tmp_path, "labelme")
    assert image.name == "1.jpg" and image.labels == ("cat",) and image.size == (WIDTH, HEIGHT)
    assert np.array_equal(area, BLOCK)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (shape("rectangle", [[25, 20], [5, 10]]), BLOCK.sum()),  # drawn from the lower right corner
        (shape("oriented_rectangle", CORNERS), BLOCK.sum()),
        (shape("circle", [[20, 15], [20, 7]]), math.pi * 64),
        (shape("line", [[5, 15], [30, 15]]), 25 * 10),
        (shape("linestrip", [[8, 15], [20, 15], [30, 15]]), 22 * 10),
        (shape("point", [[20, 15]]), math.pi * 25),
        (shape("points", [[8, 15], [30, 15]]), 2 * math.pi * 25),
    ],
)
def test_labelme_shapes_have_their_area(record, expected, tmp_path):
    written(tmp_path / "1.json", labelme(record))
    assert only_area(tmp_path, "labelme")[1].sum() == pytest.approx(expected, rel=0.06)


def test_outlines_that_cross_themselves_leave_out_what_they_enclose_twice(tmp_path):
    star = [
        [20 + 14 * math.sin(4 * math.pi * k / 5), 15 - 14 * math.cos(4 * math.pi * k / 5)] for k in range(5)
    ]
    for number, moved in enumerate((0, -25)):
        points = [[x + moved, y] for x, y in star]
        written(tmp_path / f"{number}.json", labelme(shape("polygon", points), imagePath=f"{number}.jpg"))
    whole, cut = (draw_shapes(image, WIDTH, HEIGHT) for image in read_annotations(tmp_path)[1].images)
    assert not whole[15, 20] and whole[6, 20] and np.array_equal(whole[:, 25:], cut[:, :15])


def test_scribbles_take_no_time(tmp_path):
    scribble = (np.random.default_rng(0).random((3000, 2)) * (WIDTH, HEIGHT)).tolist()
    for number, kind in enumerate(("polygon", "linestrip", "points")):
        written(tmp_path / f"{number}.json", labelme(shape(kind, scribble), imagePath=f"{number}.jpg"))
    started = time.process_time()
    assert len(draw_annotations(read_annotations(tmp_path)[1]).masks) == 3
    assert time.process_time() - started < 10  # make_valid of shapely takes minutes for a tenth of it


def test_labelme_mask(tmp_path):
    ring = np.ones((10, 20), dtype=bool)
    ring[3:6, 4:9] = False
    mask = base64.b64encode(encoded(Image.fromarray(ring))).decode()
    written(tmp_path / "1.json", labelme(shape("mask", [[5, 10], [24, 19]], mask=mask)))
    area = only_area(tmp_path, "labelme")[1]
    assert np.array_equal(area[10:20, 5:25], ring) and area.sum() == ring.sum()


def test_labelme_shapes_are_a_union_and_background_is_cut_out(tmp_path):
    hole = [[10, 12], [15, 12], [15, 16], [10, 16]]
    written(
        tmp_path / "1.json",
        labelme(
            shape("rectangle", [[5, 10], [15, 20]], group_id=1),
            shape("rectangle", [[12, 10], [25, 20]], group_id=1),
            shape("polygon", hole, label="_background_"),
            shape("rectangle", [[30, 0], [40, 5]], label="__ignore__"),
        ),
    )
    image, area = only_area(tmp_path, "labelme")
    assert area.sum() == BLOCK.sum() - 20 and image.labels == ("cat",)
    assert read_annotations(tmp_path)[1].notes == (
        "1 shape labelled _background_: cut out of the shapes before them",
        "1 shape labelled __ignore__: left out",
    )


def test_labelme_of_old_versions(tmp_path):
    """Before version 3.17 there were no shape types and no sizes; on Windows, paths have backslashes."""
    photograph(tmp_path / "images" / "CAT 1.JPG")
    record = labelme(
        {"label": "cat", "points": CORNERS, "line_color": None}, imagePath="..\\images\\CAT 1.JPG"
    )
    for name in ("imageHeight", "imageWidth", "version", "flags"):
        del record[name]
    written(tmp_path / "labels" / "1.json", record)
    read = read_annotations(tmp_path / "labels")[1]
    assert read.images[0].file is not None and read.images[0].size is None
    (mask,) = draw_annotations(read).masks
    assert mask.place == "CAT 1" and mask.share == BLOCK.mean()


def test_labelme_with_an_embedded_image_alone(tmp_path):
    data = base64.b64encode(encoded(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8))).decode()
    written(
        tmp_path / "1.json",
        labelme(shape("polygon", CORNERS), imageData=data, imageHeight=None, imageWidth=None),
    )
    (mask,) = draw_annotations(read_annotations(tmp_path)[1]).masks
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(mask.png))) == 255, BLOCK)


# COCO


def coco(*annotations, images=None, categories=({"id": 18, "name": "dog"}, {"id": 90, "name": "cat"})):
    images = images or [{"id": 7, "file_name": "train2017\\000001.JPG", "width": WIDTH, "height": HEIGHT}]
    return {"info": {}, "images": images, "annotations": list(annotations), "categories": list(categories)}


def on_seven(**fields):
    return {"id": 1, "image_id": 7, "category_id": 90, "iscrowd": 0, **fields}


def flat(corners):
    return [edge for corner in corners for edge in corner]


def test_coco_polygons(tmp_path):
    written(tmp_path / "a.json", coco(on_seven(segmentation=[flat(CORNERS)], bbox=[5, 10, 20, 10])))
    image, area = only_area(tmp_path / "a.json", "coco")
    assert image.name == "train2017/000001.JPG" and image.labels == ("cat",)
    assert np.array_equal(area, BLOCK)


@pytest.mark.parametrize("compressed", [False, True])
def test_coco_run_lengths(compressed, tmp_path):
    from pycocotools import mask as library

    runs = library.encode(np.asfortranarray(BLOCK.astype(np.uint8)))
    counts = [160, *[10, 20] * 19, 10, 460]
    segmentation = {
        "size": [HEIGHT, WIDTH], "counts": runs["counts"].decode() if compressed else counts
    }  # fmt: skip
    written(tmp_path / "a.json", coco(on_seven(segmentation=segmentation, iscrowd=1)))
    image, area = only_area(tmp_path, "coco")
    assert np.array_equal(area, BLOCK) and image.labels == ("cat",)
    assert "1 annotation of crowds (iscrowd): read as objects" in read_annotations(tmp_path)[1].notes


@pytest.mark.parametrize("empty", [[], None])
def test_coco_boxes_where_there_is_no_segmentation(empty, tmp_path):
    record = on_seven(segmentation=empty, bbox=[5.0, 10.0, 20.0, 10.0], category_id=4)
    written(tmp_path / "a.json", coco(record))
    image, area = only_area(tmp_path, "coco")
    assert np.array_equal(area, BLOCK) and image.labels == ()
    notes = read_annotations(tmp_path)[1].notes
    assert "1 annotation without segmentation: the boxes are taken" in notes
    assert any("category_id that the file does not explain" in note for note in notes)


def test_coco_images_without_annotations_are_named(tmp_path):
    images = [
        {"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT} for number in (7, 9)
    ]
    content = coco(on_seven(segmentation=[flat(CORNERS)]), images=images)
    content["annotations"].append({**on_seven(segmentation=[]), "image_id": 12, "id": 2})
    written(tmp_path / "a.json", content)
    drawn = draw_annotations(read_annotations(tmp_path)[1])
    assert [mask.image for mask in drawn.masks] == ["7.jpg"] and drawn.without_shapes == ("9.jpg",)
    assert "image_id 12 is not among the images" in drawn.problems[0].text


# Pascal VOC


def voc_xml(*objects, name="1.jpg", size=(WIDTH, HEIGHT)):
    return (
        f"<annotation><folder>x</folder><filename>{name}</filename><path>C:\\x\\{name}</path>"
        f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>{''.join(objects)}"
        "</annotation>"
    )


def voc_box(edges=(6, 11, 25, 20), label="cat"):
    names = ("xmin", "ymin", "xmax", "ymax")
    inner = "".join(f"<{name}>{edge}</{name}>" for name, edge in zip(names, edges, strict=True))
    return f"<object><name>{label}</name><difficult>0</difficult><bndbox>{inner}</bndbox></object>"


def test_voc_boxes_count_pixels_from_one(tmp_path):
    written(tmp_path / "1.xml", voc_xml(voc_box()))
    image, area = only_area(tmp_path, "voc")
    assert image.name == "1.jpg" and image.labels == ("cat",) and np.array_equal(area, BLOCK)


def test_voc_turned_boxes(tmp_path):
    inner = "<cx>20</cx><cy>15</cy><w>10</w><h>4</h><angle>1.5707963</angle>"
    written(
        tmp_path / "1.xml",
        voc_xml(f"<object><name>cat</name><robndbox>{inner}</robndbox></object>"),
    )
    area = only_area(tmp_path, "voc")[1]
    assert area[10:20, 18:22].all() and area.sum() == 40


def test_voc_class_masks_go_before_boxes(tmp_path):
    palette = Image.fromarray(np.where(BLOCK, 12, 0).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0] + [9, 99, 199] * 255)
    written(tmp_path / "SegmentationClass" / "1.png", encoded(palette))
    written(tmp_path / "Annotations" / "1.xml", voc_xml(voc_box((1, 1, 40, 30))))
    written(tmp_path / "Annotations" / "2.xml", voc_xml(voc_box(), name="2.jpg"))
    photograph(tmp_path / "JPEGImages" / "1.jpg")
    assert recognised(tmp_path) == "voc"
    read = read_annotations(tmp_path)[1]
    masked, boxed = read.images
    assert np.array_equal(draw_shapes(masked, WIDTH, HEIGHT), BLOCK)
    assert masked.labels == ("cat",) and masked.file is not None
    assert np.array_equal(draw_shapes(boxed, WIDTH, HEIGHT), BLOCK)
    assert read.notes == ("1 image with boxes and without a class mask: the boxes are taken",)


# YOLO


def yolo_corners(corners=CORNERS):
    return " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in corners)


YOLO_BOX = f"1 {15 / WIDTH:.6f} {15 / HEIGHT:.6f} {20 / WIDTH:.6f} {10 / HEIGHT:.6f}"


@pytest.mark.parametrize(
    "line",
    [
        YOLO_BOX,
        f"1 {yolo_corners()}",
        f"{YOLO_BOX} 0.98",
        f"1 {yolo_corners()} 0.5",
        f"{YOLO_BOX}\n\n{YOLO_BOX}\r",
    ],
)
@pytest.mark.parametrize("names", ["data.yaml", "classes.txt", "mapping"])
def test_yolo_lines(line, names, tmp_path):
    photograph(tmp_path / "images" / "train" / "1.JPG")
    written(tmp_path / "labels" / "train" / "1.txt", line)
    if names == "classes.txt":
        written(tmp_path / names, "dog\ncat\n")
    else:
        written(
            tmp_path / "data.yaml",
            "names: [dog, cat]" if names == "data.yaml" else "names:\n  0: dog\n  1: cat\n",
        )
    image, area = only_area(tmp_path, "yolo")
    assert image.name == "train/1.JPG" and image.labels == ("cat",) and image.file is not None
    assert np.array_equal(area, BLOCK)


def test_yolo_boxes_and_outlines_in_one_file_beside_the_image(tmp_path):
    photograph(tmp_path / "1.jpg")
    written(tmp_path / "1.txt", f"{YOLO_BOX}\n0 {yolo_corners([[30, 2], [38, 2], [38, 8], [30, 8]])}\n")
    written(tmp_path / "2.txt", "")
    drawn = draw_annotations(read_annotations(tmp_path, "yolo")[1])
    assert [mask.share for mask in drawn.masks] == [(BLOCK.sum() + 48) / BLOCK.size]
    assert drawn.without_shapes == ("2",)


def test_yolo_shares_slightly_outside_are_cut_off(tmp_path):
    photograph(tmp_path / "1.jpg")
    written(tmp_path / "1.txt", f"0 -0.01 0 1.02 0 1.02 1.0001 -0.01 1\n0 {yolo_corners()}")
    assert only_area(tmp_path, "yolo")[1].all()


def test_yolo_key_points_leave_the_box(tmp_path):
    photograph(tmp_path / "images" / "1.jpg")
    written(tmp_path / "data.yaml", "kpt_shape: [2, 3]\nnames: {0: dog, 1: cat}\n")
    written(tmp_path / "labels" / "1.txt", f"{YOLO_BOX} 0.1 0.1 2 0.9 0.9 2")
    problems = read_annotations(tmp_path)[1].problems
    assert not problems
    assert np.array_equal(only_area(tmp_path, "yolo")[1], BLOCK)


def test_yolo_needs_the_size_of_the_image(tmp_path):
    written(tmp_path / "1.txt", YOLO_BOX)
    drawn = draw_annotations(read_annotations(tmp_path)[1])
    assert "1.txt: the size of the image '1' is not known; put the image beside" in drawn.problems[0].text


# CVAT


def cvat_images(*shapes, name="cats\\1.jpg"):
    return (
        f'<annotations><version>1.1</version><meta><task/></meta><image id="0" name="{name}" '
        f'width="{WIDTH}" height="{HEIGHT}">{"".join(shapes)}</image></annotations>'
    )


@pytest.mark.parametrize(
    ("written_shape", "expected"),
    [
        ('<polygon label="cat" points="5.0,10.0;25.0,10.0;25.0,20.0;5.0,20.0" z_order="0"></polygon>', 200),
        ('<box label="cat" occluded="0" xtl="5" ytl="10" xbr="25" ybr="20" z_order="0"/>', 200),
        ('<box label="cat" xtl="5" ytl="10" xbr="25" ybr="20" rotation="90.0"/>', 200),
        ('<ellipse label="cat" cx="20" cy="15" rx="10" ry="5"/>', math.pi * 50),
        ('<mask label="cat" rle="0, 30, 5, 5" left="5" top="10" width="10" height="4"/>', 35),
        ('<polyline label="cat" points="5,15;30,15"/>', 250),
        ('<points label="cat" points="20,15"/>', math.pi * 25),
    ],
)
def test_cvat_images(written_shape, expected, tmp_path):
    written(tmp_path / "annotations.xml", cvat_images('<tag label="cat"/>', written_shape))
    image, area = only_area(tmp_path, "cvat")
    assert image.name == "cats/1.jpg" and image.labels == ("cat",)
    assert area.sum() == pytest.approx(expected, rel=0.05)


def test_cvat_masks_go_row_by_row(tmp_path):
    written(
        tmp_path / "annotations.xml",
        cvat_images('<mask label="cat" rle="3, 4, 3" left="5" top="10" width="5" height="2"/>'),
    )
    area = only_area(tmp_path, "cvat")[1]
    assert area[10, 5:10].tolist() == [False, False, False, True, True]
    assert area[11, 5:10].tolist() == [True, True, False, False, False]


def labelme_xml(*objects):
    return (
        "<annotation><filename>1.jpg</filename><folder></folder><source><sourceImage/></source>"
        f"<imagesize><nrows>\n{HEIGHT}\n</nrows><ncols>{WIDTH}</ncols></imagesize>{''.join(objects)}</annotation>"
    )


def xml_polygon(corners=CORNERS, deleted=0):
    points = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in corners)
    return (
        f"<object><name>cat</name><deleted>{deleted}</deleted><verified>0</verified>"
        f"<polygon>{points}<username></username></polygon><attributes></attributes></object>"
    )


def test_cvat_labelme_leaves_out_what_was_deleted(tmp_path):
    everything = [[0, 0], [40, 0], [40, 30], [0, 30]]
    written(tmp_path / "1.xml", labelme_xml(xml_polygon(), xml_polygon(everything, deleted=1)))
    image, area = only_area(tmp_path, "cvat")
    assert np.array_equal(area, BLOCK) and image.size == (WIDTH, HEIGHT)
    assert read_annotations(tmp_path)[1].notes == ("1 shape marked as deleted: left out",)


@pytest.mark.parametrize("whole", [True, False])
def test_cvat_labelme_masks(whole, tmp_path):
    pixels = np.where(BLOCK if whole else np.ones((10, 20), dtype=bool), 255, 0).astype(np.uint8)
    if not whole:
        pixels[0, 0] = 0
    written(tmp_path / "Masks" / "1_mask_0.png", encoded(pixels))
    box = "<box><xmin>5</xmin><ymin>10</ymin><xmax>25</xmax><ymax>20</ymax></box>"
    written(
        tmp_path / "1.xml",
        labelme_xml(
            f"<object><name>cat</name><deleted>0</deleted><segm>{box}<mask>1_mask_0.png</mask></segm></object>"
        ),
    )
    area = only_area(tmp_path, "cvat")[1]
    assert area.sum() == BLOCK.sum() - (not whole) and not (area & ~BLOCK).any()


def test_cvat_mask_folders(tmp_path):
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[BLOCK] = (250, 50, 83)
    pixels[0:3, 0:3] = (1, 2, 3)
    written(tmp_path / "SegmentationClass" / "cats" / "1.png", encoded(pixels))
    written(
        tmp_path / "labelmap.txt",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\nold: tail:1,2,3::\n",
    )
    image, area = only_area(tmp_path, "cvat")
    assert image.labels == ("cat", "old: tail") and area.sum() == BLOCK.sum() + 9
    positions = np.where(BLOCK, 1, 0).astype(np.uint8)
    written(tmp_path / "SegmentationClass" / "cats" / "1.png", encoded(positions))
    image, area = only_area(tmp_path, "cvat")
    assert image.labels == ("cat",) and np.array_equal(area, BLOCK)
    pixels[29, 39] = (7, 7, 7)
    written(tmp_path / "SegmentationClass" / "cats" / "1.png", encoded(pixels))
    assert "colour (7, 7, 7) is not in" in read_annotations(tmp_path)[1].problems[0].text


# Label Studio


def studio_result(kind, value, **fields):
    return {
        "id": "x", "type": kind, "from_name": "label", "to_name": "image", "original_width": WIDTH,
        "original_height": HEIGHT, "image_rotation": 0, "value": {**value, kind: ["cat"]}, **fields,
    }  # fmt: skip


def studio(*results, address="/data/upload/1/0a1b2c3d-cat%201.jpg", **fields):
    return [{"id": 1, "data": {"image": address}, "annotations": [{"result": list(results)}], **fields}]


PERCENTS = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in CORNERS]
STUDIO_BOX = {"x": 12.5, "y": 100 / 3, "width": 50, "height": 100 / 3, "rotation": 0}


@pytest.mark.parametrize(
    "result",
    [
        studio_result("polygonlabels", {"points": PERCENTS, "closed": True}),
        studio_result("rectanglelabels", STUDIO_BOX),
        studio_result("brushlabels", {"format": "rle", "rle": encode_brush(BLOCK)}),
        # Turned by 90 degrees clockwise around its corner (25, 10), to the left of it.
        studio_result(
            "rectanglelabels",
            {"x": 62.5, "y": 100 / 3, "width": 25, "height": 200 / 3, "rotation": 90},
        ),
    ],
)
def test_label_studio_shapes(result, tmp_path):
    written(tmp_path / "tasks.json", studio(result))
    image, area = only_area(tmp_path, "label-studio")
    assert image.name == "data/upload/1/0a1b2c3d-cat 1.jpg" and image.labels == ("cat",)
    assert image.other_names == ("data/upload/1/cat 1.jpg",)
    assert np.array_equal(area, BLOCK)


def test_label_studio_ellipses_turn_around_their_centre(tmp_path):
    value = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 10, "rotation": 90}
    written(tmp_path / "tasks.json", studio(studio_result("ellipselabels", value)))
    area = only_area(tmp_path, "label-studio")[1]
    rows, columns = np.nonzero(area)
    assert np.ptp(rows) + 1 == 20 and np.ptp(columns) + 1 == 6
    assert area.sum() == pytest.approx(math.pi * 30, rel=0.05)


def test_label_studio_in_short(tmp_path):
    value = {**STUDIO_BOX, "rectanglelabels": ["cat"], "original_width": WIDTH, "original_height": HEIGHT}
    record = {"image": "/data/local-files/?d=cats%2F1.jpg", "id": 1, "annotation_id": 3, "label": [value]}
    written(tmp_path / "tasks.json", [record])
    image, area = only_area(tmp_path, "label-studio")
    assert image.name == "cats/1.jpg" and np.array_equal(area, BLOCK)


def test_label_studio_annotations_of_several_people(tmp_path):
    one = studio_result("rectanglelabels", STUDIO_BOX)
    other = studio_result("rectanglelabels", {"x": 0, "y": 0, "width": 10, "height": 10})
    skipped = studio_result("rectanglelabels", {"x": 0, "y": 0, "width": 100, "height": 100})
    annotations = [{"result": [one]}, {"result": [other]}, {"result": [skipped], "was_cancelled": True}]
    task = studio()[0] | {"annotations": annotations}
    written(tmp_path / "tasks.json", [task])
    assert only_area(tmp_path, "label-studio")[1].sum() == BLOCK.sum() + 4 * 3
    annotations[0]["ground_truth"] = True
    written(tmp_path / "tasks.json", [task])
    assert np.array_equal(only_area(tmp_path, "label-studio")[1], BLOCK)


def test_label_studio_images_turned_in_the_program_are_refused(tmp_path):
    result = studio_result("rectanglelabels", STUDIO_BOX, image_rotation=90)
    written(tmp_path / "tasks.json", studio(result))
    problems = read_annotations(tmp_path)[1].problems
    assert "task 1, result 1 (rectanglelabels): drawn on the image turned by 90" in problems[0].text


# Mask files


def test_png_masks_beside_photographs_and_in_parts(tmp_path):
    photograph(tmp_path / "1.jpg")
    written(tmp_path / "1_mask_1.png", encoded(np.where(BLOCK, 255, 0).astype(np.uint8)))
    other = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    other[0:2, 0:2] = 255
    written(tmp_path / "1_mask_2.png", encoded(other))
    assert recognised(tmp_path) == "png"
    (mask,) = draw_annotations(read_annotations(tmp_path)[1]).masks
    assert mask.place == "1" and mask.share == (BLOCK.sum() + 4) / BLOCK.size


def test_png_numbers(tmp_path):
    numbers = np.where(BLOCK, 3, 0).astype(np.uint8)
    numbers[0:4, 0:4] = 140
    written(tmp_path / "1.png", encoded(numbers))
    with pytest.raises(InputError, match="flat areas of the grey values"):
        only_area(tmp_path, "png")
    _, read = read_annotations(tmp_path, "png", ids=True)
    assert draw_shapes(read.images[0], WIDTH, HEIGHT).sum() == BLOCK.sum() + 16
    numbers[0:4, 0:4] = 255  # to be ignored: each pixel goes with its nearest
    written(tmp_path / "1.png", encoded(numbers))
    assert np.array_equal(draw_shapes(read.images[0], WIDTH, HEIGHT), BLOCK)
    with pytest.raises(InputError, match="--ids is for mask files"):
        written(tmp_path / "x" / "1.json", labelme(shape("polygon", CORNERS)))
        read_annotations(tmp_path / "x", ids=True)


def test_png_numbers_of_sixteen_bits(tmp_path):
    Image.fromarray(np.where(BLOCK, 300, 0).astype(np.uint16)).save(tmp_path / "1.png")
    _, read = read_annotations(tmp_path, "png", ids=True)
    assert np.array_equal(draw_shapes(read.images[0], WIDTH, HEIGHT), BLOCK)


# Recognising


def test_formats_that_are_mixed_or_unknown_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        read_annotations(tmp_path / "nowhere")
    written(tmp_path / "notes.md", "nothing")
    with pytest.raises(InputError, match=r"found 1 file \.md; no format .* labelme \(LabelMe"):
        read_annotations(tmp_path)
    written(tmp_path / "1.json", labelme(shape("polygon", CORNERS)))
    written(tmp_path / "2.json", coco())
    with pytest.raises(InputError, match=r"of the formats labelme and coco; choose one with --format"):
        read_annotations(tmp_path)
    problems = read_annotations(tmp_path, "labelme")[1].problems
    assert len(problems) == 1 and "2.json: no LabelMe file" in problems[0].text
    with pytest.raises(InputError, match="--format 'xml': expected one of auto, png, labelme"):
        read_annotations(tmp_path, "xml")
    with pytest.raises(InputError, match="nothing of the format yolo in it; found"):
        read_annotations(tmp_path, "yolo")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("..\\..\\etc\\passwd", "etc/passwd"),
        ("C:\\photos\\cat 1.JPG", "photos/cat 1.JPG"),
        ("/root/./a//b.png", "root/a/b.png"),
        ("../..", "."),
    ],
)
def test_paths_never_lead_out_of_a_folder(name, path):
    assert safe_path(name).as_posix() == path

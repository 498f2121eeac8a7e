"""Boxes in tables and Parquet files: those that are not xmin, ymin, xmax, ymax in pixels are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pictures import scene
from test_parquet import write_parquet
from torchdoctor.data.boxes import boxes_of, check_boxes
from torchdoctor.data.load import load_data, load_tables
from torchdoctor.data.settings import DataSettings
from torchdoctor.types import InputError

CORNERS = [(2, 3, 20, 25), (10, 11, 30, 31), (0, 0, 31, 31), (15, 20, 25, 28)]


def as_shares(box):
    return tuple(edge / 32 for edge in box)


def as_coco(box):
    left, top, right, bottom = box
    return left, top, right - left + 1, bottom - top + 1


def as_yolo(box):
    left, top, right, bottom = box
    return (left + right) / 64, (top + bottom) / 64, (right - left) / 32, (bottom - top) / 32


def as_centre(box):
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def as_larger(box):
    return tuple(4 * edge for edge in box)


def table_of(folder: Path, boxes: list[object]) -> str:
    lines = ["path,label,bbox"]
    for number, box in enumerate(boxes):
        scene(number)[0].save(folder / f"{number}.png")
        text = "" if box is None else ",".join(map(str, box))
        lines.append(f'{number}.png,{"ab"[number % 2]},"{text}"')
    (folder / "t.csv").write_text("\n".join(lines))
    return f"table:{folder / 't.csv'}"


def parquet_of(folder: Path, boxes: list[object]) -> str:
    column = pa.array(
        [None if box is None else list(map(float, box)) for box in boxes], pa.list_(pa.float64())
    )
    write_parquet(folder / "all.parquet", [number % 2 for number in range(len(boxes))], bbox=column)
    return f"parquet:{folder / 'all.parquet'}"


SOURCES = pytest.mark.parametrize("written", [table_of, parquet_of])


@SOURCES
@pytest.mark.parametrize(
    ("convention", "said"),
    [
        (as_shares, "16 of 16 boxes are like it: .* shares of the image's width and height"),
        (as_yolo, "shares of the image's width and height"),
        (as_coco, r"x, y, width, height \(as COCO has them\), which --box-format xywh reads"),
        (as_centre, "or centre, width, height"),
        (as_larger, "beyond the image of 32 x 32 pixels, as do 16 of 16 boxes"),
    ],
)
def test_other_conventions_are_refused_as_a_whole(tmp_path, written, convention, said):
    spec = written(tmp_path, [convention(box) for box in CORNERS * 4])
    for on_error in ("fail", "skip"):
        with pytest.raises(InputError, match=said):
            load_data(spec, settings=DataSettings(on_error=on_error))


@SOURCES
def test_corners_in_pixels_are_read(tmp_path, written):
    tables = load_tables(written(tmp_path, [*CORNERS * 4, None, None]))
    assert (
        sum(int(table.has_mask.sum()) for table in (tables.train, tables.validation, *tables.tests.values()))
        == 16
    )
    row = int(np.flatnonzero(tables.train.has_mask)[0])
    left, top, right, bottom = CORNERS[int(tables.train.ids[row]) % 4]
    mask = np.asarray(tables.train.read(row)[1])
    assert mask.sum() == 255 * (right - left + 1) * (bottom - top + 1) and mask[top, left] == 255


@SOURCES
def test_one_box_in_shares_among_pixels_is_refused(tmp_path, written):
    with pytest.raises(InputError, match="1 of 16 boxes are like it"):
        load_tables(written(tmp_path, [*CORNERS * 3, (0.25, 0.25, 0.75, 0.75), *CORNERS[:3]]))


def checked(*boxes, size=(32, 32)):
    check_boxes([(tuple(map(float, box)),) for box in boxes], "image {}".format, lambda _: size)


def test_boxes_that_are_fine():
    checked((0, 0, 32, 32), (3, 4, 33.5, 20))  # ends that are excluded, and sloppy ones
    checked((5, 5, 5, 9), (5, 5, 5, 5))  # one pixel wide
    checked(*[(3, 3, 20, 20)] * 39, (40, 40, 50, 50))  # a single damaged box is left to decoding
    checked((300, 300, 900, 900), size=None)  # the size is not known
    checked((0, 0, 1, 1), (3, 4, 20, 20))
    check_boxes([(), ()], "image {}".format, lambda _: None)


def test_boxes_of_shares_that_leave_the_image_a_little():
    with pytest.raises(InputError, match=r"image 0: box .* shares"):
        checked((-0.01, 0.2, 0.5, 1.02), (0.1, 0.1, 0.4, 0.5))


@pytest.mark.parametrize(
    "value", [[float("nan"), 0, 1, 1], [float("inf"), 0, 1, 1], "1,2,NaN,3", {"a": 1}, [None]]
)
def test_what_is_no_box(value):
    with pytest.raises(InputError, match=r"line 3: bbox .*; expected xmin, ymin, xmax, ymax in pixels"):
        boxes_of(value, "x.csv, line 3")


@pytest.mark.parametrize("value", [None, "", "  ", [], "[]"])
def test_no_box(value):
    assert boxes_of(value, "x.csv, line 3") == ()


def test_a_box_of_zeros_alone_is_no_object():
    with pytest.raises(InputError, match="leave it empty where an image has no object"):
        boxes_of([0, 0, 0, 0], "x.csv, line 3")
    assert len(boxes_of([[0, 0, 0, 0], [1, 1, 5, 5]], "x.csv, line 3")) == 2


def test_boxes_on_an_image_that_exif_turns_are_refused(tmp_path):
    spec = table_of(tmp_path, CORNERS * 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(16):
        scene(number)[0].save(tmp_path / f"{number}.png", exif=exif)
    with pytest.raises(InputError, match="EXIF orientation 6, and boxes that may be drawn on the image"):
        load_tables(spec).train.read(0)


def places(count: int, side: int = 32) -> list[tuple[int, int, int, int]]:
    generator = np.random.default_rng(0)
    edges = np.sort(generator.integers(0, side, (count, 2, 2)), axis=1)
    return [(left, top, right, bottom) for (left, top), (right, bottom) in edges.tolist()]


@SOURCES
def test_boxes_of_coco_that_never_look_turned_around_are_refused(tmp_path, written):
    small = [box for box in places(400) if box[2] - 2 * box[0] >= 0 and box[3] - 2 * box[1] >= 0][:30]
    spec = written(tmp_path, [as_coco(box) for box in small])
    with pytest.raises(InputError, match=r"probably x, y, width, height .* --box-format xywh reads them so"):
        load_tables(spec)
    tables = load_tables(spec, settings=DataSettings(box_format="xywh"))
    left, top, right, bottom = small[int(tables.train.ids[0])]
    mask = np.asarray(tables.train.read(0)[1])
    assert mask.sum() == 255 * (right - left + 1) * (bottom - top + 1) and mask[bottom, right] == 255
    assert load_tables(spec, settings=DataSettings(box_format="xyxy")).classes == tables.classes


@SOURCES
def test_boxes_of_coco_are_read_where_asked(tmp_path, written):
    xywh = DataSettings(box_format="xywh")
    assert load_tables(
        written(tmp_path, [as_coco(box) for box in CORNERS * 4]), settings=xywh
    ).train.has_mask.all()
    with pytest.raises(InputError, match="and a width and height above 0"):
        load_tables(written(tmp_path, [*CORNERS * 3, (2, 2, 0, 5)]), settings=xywh)
    for convention in (as_shares, as_larger):
        with pytest.raises(InputError, match="box"):
            load_tables(written(tmp_path, [convention(box) for box in CORNERS * 4]), settings=xywh)


def test_boxes_in_ordinary_places_are_corners():
    checked(*places(60))
    checked(*[(6, 6, 9, 9)] * 60)  # one box for all images says nothing
    checked(*[(left, 1, 31 - left, 30) for left in range(14)] * 3)  # all in the middle
    checked(*places(19, 16))  # too few to tell

"""Tables and folders: how images are numbered and divided, and what errors say."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pictures import scene, table_of, write_split
from torchdoctor.data.annotations import mask_from_png
from torchdoctor.data.decoding import decode_image
from torchdoctor.data.load import load_data, load_tables
from torchdoctor.data.settings import DataSettings
from torchdoctor.data.table import ImageTable, carve, limit_per_category
from torchdoctor.types import InputError


def test_select_keeps_ids_and_reads_the_right_image():
    table = table_of(9).select([7, 2, 5]).select([2, 0])
    assert table.ids.tolist() == [5, 7] and table.names == ("image 5", "image 7")
    assert np.array_equal(table.read(1)[0], scene(7)[0])


def test_carve_is_stratified_and_repeats():
    labels = np.array([0] * 40 + [1] * 10 + [2] * 2 + [3])
    table = table_of(53, 4)
    table = ImageTable(table.classes, labels, table.names, table.ids, table.read, table.has_mask)
    kept, away = carve(table, 0.1, 5)
    assert np.bincount(away.labels, minlength=4).tolist() == [4, 1, 1, 0]
    assert np.bincount(kept.labels, minlength=4).tolist() == [36, 9, 1, 1]
    assert sorted([*kept.ids, *away.ids]) == list(range(53))
    assert carve(table, 0.1, 5)[1].ids.tolist() == away.ids.tolist()
    assert carve(table, 0.1, 6)[1].ids.tolist() != away.ids.tolist()


def test_limit_keeps_the_same_few_of_each_category():
    table = table_of(30)
    few, more = limit_per_category(table, 3, 1), limit_per_category(table, 5, 1)
    assert np.bincount(few.labels).tolist() == [3, 3, 3] and set(few.ids) < set(more.ids)
    assert limit_per_category(table, 99, 1).ids.tolist() == list(range(30))
    with pytest.raises(InputError, match="limit 0"):
        limit_per_category(table, 0, 1)


def test_folder_with_train_and_test(tmp_path):
    write_split(tmp_path / "train", {"cat": 10, "dog": 10}, masked=True)
    write_split(tmp_path / "test", {"dog": 3})
    tables = load_tables(f"folder:{tmp_path}")
    assert tables.classes == ("cat", "dog") and tables.primary == "test"
    assert (len(tables.train), len(tables.validation), len(tables.tests["test"])) == (18, 2, 3)
    assert tables.tests["test"].labels.tolist() == [1, 1, 1] and not tables.tests["test"].has_mask.any()
    assert tables.train.has_mask.all()
    image, mask = tables.train.read(0)
    red = (np.asarray(image) == (255, 0, 0)).all(axis=2)
    assert np.array_equal(red, np.asarray(mask) == 255)
    splits = load_data(f"folder:{tmp_path}")  # its loaders bring the names, for diagnose and compare
    assert splits.train.select([0]).classes == splits.tests["test"].classes == ("cat", "dog")


def test_folder_val_is_the_test_split_without_another(tmp_path):
    write_split(tmp_path / "train", {"cat": 10, "dog": 10})
    write_split(tmp_path / "val", {"cat": 4, "dog": 4})
    tables = load_tables(f"folder:{tmp_path}")
    assert list(tables.tests) == ["val"] == [tables.primary]
    assert len(tables.validation) == 2 and len(tables.train) == 18


def test_folder_val_is_validation_beside_test(tmp_path):
    write_split(tmp_path / "train", {"cat": 5, "dog": 5})
    write_split(tmp_path / "val", {"cat": 3, "dog": 3})
    write_split(tmp_path / "test", {"cat": 2, "dog": 2})
    write_split(tmp_path / "test_night", {"cat": 2})
    tables = load_tables(f"folder:{tmp_path}", settings=DataSettings(primary="test_night"))
    assert (len(tables.train), len(tables.validation)) == (10, 6)
    assert sorted(tables.tests) == ["test", "test_night"] and tables.primary == "test_night"
    assert not set(tables.train.ids) & set(tables.validation.ids)


def test_folder_with_a_single_split_is_divided_by_seed(tmp_path):
    write_split(tmp_path, {"cat": 20, "dog": 20})
    tables = load_tables(f"folder:{tmp_path}", seed=3)
    ids = [set(t.ids.tolist()) for t in (tables.train, tables.validation, tables.tests["test"])]
    assert [len(one) for one in ids] == [28, 4, 8] and len(set.union(*ids)) == 40
    assert np.bincount(tables.tests["test"].labels).tolist() == [4, 4]
    assert load_tables(f"folder:{tmp_path}", seed=3).train.ids.tolist() == tables.train.ids.tolist()


def test_folder_errors_name_the_file(tmp_path):
    write_split(tmp_path / "a" / "train", {"cat": 3, "dog": 3})
    write_split(tmp_path / "a" / "test", {"cow": 3})
    with pytest.raises(InputError, match=r"\['cow'\] are unknown to training, which has \['cat', 'dog'\]"):
        load_tables(f"folder:{tmp_path / 'a'}")
    write_split(tmp_path / "b", {"cat": 3, "dog": 3})
    (tmp_path / "b" / "cat" / "out.png").symlink_to(tmp_path / "a" / "train" / "cat" / "0.png")
    with pytest.raises(InputError, match=r"out\.png: a link that leads out"):
        load_tables(f"folder:{tmp_path / 'b'}")
    (tmp_path / "b" / "cat" / "out.png").unlink()
    (tmp_path / "b" / "cat" / "again").symlink_to(tmp_path / "b")
    with pytest.raises(InputError, match="again: a link that leads in a circle"):
        load_tables(f"folder:{tmp_path / 'b'}")
    write_split(tmp_path / "d" / "val", {"cat": 3, "dog": 3})
    with pytest.raises(InputError, match="found val without train; expected CLASS"):
        load_tables(f"folder:{tmp_path / 'd'}")
    (tmp_path / "c" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match="no images"):
        load_tables(f"folder:{tmp_path / 'c'}")


def test_damaged_and_odd_images(tmp_path):
    write_split(tmp_path, {"cat": 4, "dog": 4})
    whole = io.BytesIO()
    scene(0)[0].save(whole, "JPEG")
    (tmp_path / "cat" / "cut.jpg").write_bytes(whole.getvalue()[:-200])
    with pytest.raises(InputError, match=r"cut\.jpg: cannot be decoded as an image"):
        load_data(f"folder:{tmp_path}", image_size=32)
        for batch in (splits := load_data(f"folder:{tmp_path}", image_size=32)).train:
            assert len(batch.images)
        list(splits.validation), list(splits.tests["test"])
    (tmp_path / "cat" / "cut.jpg").unlink()
    Image.fromarray(np.full((32, 32), 65535, dtype=np.uint16)).save(tmp_path / "cat" / "0.png")
    Image.new("CMYK", (32, 32)).save(tmp_path / "cat" / "1.jpg")
    Image.new("RGB", (10, 32)).save(
        tmp_path / "cat" / "2.jpg",
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    )
    tables = load_tables(f"folder:{tmp_path}")
    read = {}
    for table in (tables.train, tables.validation, tables.tests["test"]):
        read |= {name: table.read(position)[0] for position, name in enumerate(table.names)}
    assert np.asarray(read["cat/0.png"]).min() == 255
    assert read["cat/1.jpg"].mode == "RGB" and np.asarray(read["cat/1.jpg"]).min() > 250
    assert read["cat/2.jpg"].size == (32, 10)


@pytest.mark.parametrize(
    ("kind", "ending", "factor"),
    [(np.float32, "TIFF", 1 / 255), (np.float32, "TIFF", 1), (np.int32, "TIFF", 1), (np.int32, "TIFF", 257),
     (np.uint16, "TIFF", 257), (np.uint16, "PNG", 257)],
)  # fmt: skip
def test_grey_values_of_any_depth_are_scaled(kind, ending, factor):
    file = io.BytesIO()
    Image.fromarray((np.array([[0, 40], [200, 255]]) * factor).astype(kind)).save(file, ending)
    assert np.asarray(decode_image(file.getvalue(), "m").convert("L")).tolist() == [[0, 40], [200, 255]]


@pytest.mark.parametrize(
    ("kind", "ending", "most", "said"),
    [(np.uint16, "PNG", 255, "nearly black"), (np.uint16, "TIFF", 4095, "from 0 to 4095, which"),
     (np.int32, "TIFF", 70000, "expected whole numbers from 0 to 65535"), (np.int32, "TIFF", 900, "nearly"),
     (np.float32, "TIFF", 256, "expected fractions"), (np.float32, "TIFF", -1, "from -1 to 0; expected"),
     (np.float32, "TIFF", np.nan, "expected fractions")],
)  # fmt: skip
def test_grey_values_without_a_known_white_are_refused(kind, ending, most, said):
    file = io.BytesIO()
    Image.fromarray(np.array([[0, most], [0, 0]]).astype(kind)).save(file, ending)
    with pytest.raises(InputError, match=f"m: a grey image with values .*{said}"):
        decode_image(file.getvalue(), "m")


def test_a_black_image_of_16_bits_is_black():
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(file, "PNG")
    assert not np.asarray(decode_image(file.getvalue(), "m")).any()


def test_a_mask_of_the_wrong_size_names_both(tmp_path):
    write_split(tmp_path, {"cat": 4, "dog": 4})
    for number in range(4):
        Image.new("L", (8, 16), 255).save(tmp_path / "cat" / f"{number}.mask.png")
    tables = load_tables(f"folder:{tmp_path}")
    with pytest.raises(InputError, match=r"\.png: the mask is 8 x 16 pixels but the image is 32 x 32"):
        tables.train.read(int(np.flatnonzero(tables.train.has_mask)[0]))


@pytest.mark.parametrize("top", [1, 255, 65535, 300, 0])
def test_masks_of_any_depth_mark_the_object(top):
    kind = np.uint16 if top > 255 else np.uint8
    pixels = np.zeros((8, 8), dtype=kind)
    pixels[2:4, 2:4] = top
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    if top in (0, 300):  # nothing there, and black as good as
        with pytest.raises(
            InputError, match=f"m: the mask marks no pixel .its brightest value is {top // 257}"
        ):
            mask_from_png(file.getvalue(), "m")
    else:
        assert int((np.asarray(mask_from_png(file.getvalue(), "m")) == 255).sum()) == 4


def test_a_damaged_test_image_is_found_before_training(tmp_path):
    write_split(tmp_path / "train", {"cat": 4, "dog": 4})
    write_split(tmp_path / "test", {"cat": 2, "dog": 2})
    (tmp_path / "test" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"0\.png: cannot be decoded"):
        load_data(f"folder:{tmp_path}", image_size=32).tests["test"].check()


def test_sizes_are_those_of_the_data(tmp_path):
    write_split(tmp_path, {"cat": 5, "dog": 5})
    assert load_data(f"folder:{tmp_path}").preprocessing.image_size == 32
    assert load_data(f"folder:{tmp_path}", image_size=48).preprocessing.image_size == 48
    for file in (tmp_path / "cat").iterdir():
        Image.new("RGB", (20, 30)).save(file)
    splits = load_data(f"folder:{tmp_path}")
    assert splits.preprocessing.image_size == 224 and not splits.has_masks
    assert next(iter(splits.train)).images.shape[1:] == (3, 224, 224)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("scense", "data 'scense': unknown kind 'scense'; expected folder:PATH.*did you mean 'scenes'"),
        ("http://x", "unknown kind 'http'; expected folder:PATH, parquet:PATH, table:FILE, NAME@ROOT"),
        ("folder:", "data 'folder:': the path is missing"),
        ("folder:{tmp}/imagse", "no such file or folder; did you mean .*images"),
        ("{tmp}/images", "a path without its kind.*did you mean 'folder:.*images'"),
    ],
)
def test_spec_errors(spec, text, tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match=text) as caught:
        load_tables(spec.format(tmp=tmp_path))
    assert "\n" not in str(caught.value)


def test_primary_must_be_a_test_split(tmp_path):
    write_split(tmp_path, {"cat": 5, "dog": 5})
    with pytest.raises(InputError, match=r"primary 'shifted': no such test split; .* has test"):
        load_tables(f"folder:{tmp_path}", settings=DataSettings(primary="shifted"))

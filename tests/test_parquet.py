"""Parquet files, annotations, and real data where there are some."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pictures import scene
from torchdoctor.data.annotations import mask_from_boxes, mask_from_png
from torchdoctor.data.load import load_data, load_tables
from torchdoctor.data.settings import DataSettings
from torchdoctor.types import InputError


def test_boxes_are_inclusive_united_and_cut():
    mask = np.asarray(mask_from_boxes([[1, 2, 3, 4], [6, 0, 99, 0]], 8, 6)) == 255
    expected = np.zeros((6, 8), dtype=bool)
    expected[2:5, 1:4] = True
    expected[0, 6:] = True
    assert np.array_equal(mask, expected)
    for box in ([3, 0, 1, 5], [0, 0, float("nan"), 5], [8, 0, 9, 5], [0, 0, 5]):
        with pytest.raises(InputError, match="box"):
            mask_from_boxes([box], 8, 6)


def test_png_masks_of_several_kinds():
    for mode, bright in (("L", 255), ("L", 1), ("1", 1), ("RGB", (255, 255, 255))):
        image, file = Image.new(mode, (4, 4)), io.BytesIO()
        image.putpixel((1, 2), bright)
        image.save(file, "PNG")
        mask = np.asarray(mask_from_png(file.getvalue()))
        assert mask[2, 1] == 255 and mask.sum() == 255
    with pytest.raises(InputError, match="scribble: cannot be decoded as a mask"):
        mask_from_png(b"nothing", "scribble")


def encoded(image: Image.Image) -> dict[str, object]:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write_parquet(path: Path, labels: list[int], names: list[str] | None = None, **extra: object) -> None:
    images = [encoded(scene(number)[0]) for number in range(len(labels))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(images, kind), "label": pa.array(labels, pa.int64()), **extra}
    rows = pa.table(columns)
    if names:
        features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}
        rows = rows.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path)


def test_a_parquet_file_names_the_group_of_each_image(tmp_path):
    groups = pa.array(["day", None, "night", "day"] * 5)
    write_parquet(tmp_path / "train.parquet", [0, 1] * 10, ["a", "b"], group=groups)
    write_parquet(tmp_path / "test.parquet", [0, 1], ["a", "b"], group=pa.array(["day", "night"]))
    tables = load_tables(f"parquet:{tmp_path}")
    for table in (tables.train, tables.validation):
        assert table.groups == tuple(("day", "", "night", "day")[row % 4] for row in table.ids.tolist())
    assert tables.tests["test"].groups == ("day", "night")


def test_parquet_folder_with_shards_masks_and_names(tmp_path):
    masks = pa.array([encoded(scene(n)[1]) if n else None for n in range(6)])
    for shard in (0, 1):
        path = tmp_path / "data" / f"train-0000{shard}-of-00002.parquet"
        write_parquet(path, [0, 1] * 3, ["cat", "dog"], mask=masks, other=pa.array(["x"] * 6))
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", [1, 1], ["cat", "dog"])
    tables = load_tables(f"parquet:{tmp_path}")
    assert tables.classes == ("cat", "dog") and list(tables.tests) == ["validation"]
    assert len(tables.train) + len(tables.validation) == 12
    whole = {
        int(i): bool(m)
        for t in (tables.train, tables.validation)
        for i, m in zip(t.ids, t.has_mask, strict=True)
    }
    assert whole == {number: number % 6 != 0 for number in range(12)}
    for position, identity in enumerate(tables.train.ids.tolist()):
        image, mask = tables.train.read(position)
        assert np.array_equal(image, scene(identity % 6)[0])
        assert (mask is None) == (identity % 6 == 0)
        assert mask is None or np.array_equal(mask, scene(identity % 6)[1])


def test_single_parquet_file_with_boxes(tmp_path):
    boxes = pa.array([[1, 2, 3, 4], None] * 10, pa.list_(pa.int32()))
    write_parquet(tmp_path / "all.parquet", [0, 2] * 10, bbox=boxes)
    for spec in (f"parquet:{tmp_path}", f"parquet:{tmp_path / 'all.parquet'}"):
        tables = load_tables(spec)
        assert tables.classes == ("0", "2") and len(tables.tests["test"]) == 4
        assert np.array_equal(tables.train.has_mask, tables.train.ids % 2 == 0)
        mask = np.asarray(tables.train.read(int(np.flatnonzero(tables.train.has_mask)[0]))[1])
        assert mask.sum() == 9 * 255 and mask[4, 3] == 255


def test_a_list_of_boxes_is_their_union(tmp_path):
    boxes = pa.array([[[0, 0, 0, 0], [5, 5, 6, 6]], [], None, [[0, 0, 1, 1]]] * 5)
    write_parquet(tmp_path / "all.parquet", [0, 1, 0, 1] * 5, bbox=boxes)
    train = load_tables(f"parquet:{tmp_path}").train
    assert np.array_equal(train.has_mask, np.isin(train.ids % 4, [0, 3]))
    row = int(np.flatnonzero(train.ids % 4 == 0)[0])
    assert np.asarray(train.read(row)[1]).sum() == 5 * 255


def test_parquet_errors(tmp_path):
    pq.write_table(pa.table({"picture": [1], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"column 'image' is missing; found \['picture', 'label'\]"):
        load_tables(f"parquet:{tmp_path / 'a.parquet'}")
    write_parquet(tmp_path / "b.parquet", [0, 5, 1], ["cat", "dog"])
    with pytest.raises(InputError, match="label 5 in row 1; expected 0 to 1"):
        load_tables(f"parquet:{tmp_path / 'b.parquet'}")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"c\.parquet: cannot be read as Parquet"):
        load_tables(f"parquet:{tmp_path / 'c.parquet'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.parquet files; expected train-\*\.parquet"):
        load_tables(f"parquet:{tmp_path / 'empty'}")
    write_parquet(tmp_path / "d" / "train-0.parquet", [0, 1], ["cat", "dog"])
    write_parquet(tmp_path / "d" / "test-0.parquet", [0, 1], ["dog", "cat"])
    with pytest.raises(InputError, match="test names the categories"):
        load_tables(f"parquet:{tmp_path / 'd'}")


@pytest.mark.parametrize(
    ("other", "split"),
    [("Test-0", "test"), ("testing-0", "test"), ("eval-0", "test"), ("holdout-0", "test"), ("TEST", "test"),
     ("validation_0", "validation"), ("test_0", "test_0"), ("test/0000", "test")],
)  # fmt: skip
def test_parquet_files_under_the_usual_names_of_splits(other, split, tmp_path):
    train = "train/0000" if "/" in other else "train-0"
    write_parquet(tmp_path / f"{train}.parquet", [0, 1] * 4)
    write_parquet(tmp_path / f"{other}.parquet", [0, 1])
    tables = load_tables(f"parquet:{tmp_path}")
    assert list(tables.tests) == [split] and len(tables.tests[split]) == 2 and tables.notes == ()


def test_parquet_files_that_may_be_the_test_split_are_not_passed_over(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00003.parquet", [0, 1] * 4)
    assert load_tables(f"parquet:{tmp_path}").notes == (
        "the rest of the split train: 1 of its 3 files are here",
    )
    write_parquet(tmp_path / "unseen.parquet", [0, 1])
    with pytest.raises(InputError, match=r"found unseen\.parquet beside the training images.*call it test-0"):
        load_tables(f"parquet:{tmp_path}")
    write_parquet(tmp_path / "test.parquet", [0, 1])
    assert (
        "1 .parquet file whose name tells no split: unseen.parquet"
        in load_tables(f"parquet:{tmp_path}").notes
    )
    (tmp_path / "test.parquet").rename(tmp_path / "more.parquet")
    (tmp_path / "train-00000-of-00003.parquet").unlink()
    with pytest.raises(InputError, match=r"found \['more\.parquet', 'unseen\.parquet'\]; expected train-"):
        load_tables(f"parquet:{tmp_path}")


@pytest.mark.parametrize("column", ["split", "Subset", "set"])
def test_a_column_tells_the_splits_of_a_parquet_file(column, tmp_path):
    file = tmp_path / "all.parquet"
    write_parquet(file, [0, 1] * 6, **{column: pa.array(["Train"] * 8 + ["test"] * 4)})
    tables = load_tables(f"parquet:{file}")
    assert tables.tests["test"].ids.tolist() == [8, 9, 10, 11] and not tables.test_divided_off
    assert np.array_equal(tables.tests["test"].read(0)[0], scene(8)[0])
    write_parquet(file, [0, 1] * 6, **{column: pa.array(["train"] * 8 + ["later"] * 4)})
    with pytest.raises(InputError, match="row 8: the column of splits has 'later'; expected train"):
        load_tables(f"parquet:{file}")
    write_parquet(file, [0, 1] * 6, **{column: pa.array(["a", "b"] * 6)})
    assert "whose cells name no split" in load_tables(f"parquet:{file}").notes[0]


def test_names_given_twice_and_images_by_path_alone_are_refused(tmp_path):
    file = tmp_path / "all.parquet"
    write_parquet(file, [0, 1] * 4, ["cat", "cat"])
    with pytest.raises(InputError, match="'cat' twice; give each one name"):
        load_tables(f"parquet:{file}")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": "1.png"}] * 2, kind)
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), file)
    with pytest.raises(InputError, match="stored by their paths alone"):
        load_tables(f"parquet:{file}")


def real(name: str) -> str:
    root = os.environ.get("TORCHDOCTOR_DATA")
    if not root or not Path(root, name).is_dir():
        pytest.skip("TORCHDOCTOR_DATA does not hold this data set")
    return f"parquet:{Path(root, name)}"


@pytest.mark.parametrize(
    ("name", "classes", "train", "test", "size"),
    [("stl10_2", 2, 700, 300, 96), ("tiny_imagenet20", 20, 8000, 3000, 64)],
)
def test_real_data_with_masks(name, classes, train, test, size):
    splits = load_data(real(name), batch_size=32)
    assert len(splits.classes) == classes and splits.has_masks
    assert len(splits.train) + len(splits.validation) == train and len(splits.tests["test"]) == test
    assert splits.preprocessing.image_size == size
    few = splits.train.select(splits.train.table.ids[:40])
    for batch in few.epoch(0, 0):
        assert batch.annotated.all() and 0.02 < batch.masks.mean() < 0.95
        assert torch.isfinite(batch.images).all() and batch.images.shape[1:] == (3, size, size)


def test_real_data_limited_to_the_papers_setting():
    tables = load_tables(real("mini_imagenet30"), settings=DataSettings(validation_share=0.04, limit=100))
    assert set(np.bincount(tables.train.labels)) == {100} and set(np.bincount(tables.validation.labels)) == {
        20
    }
    assert not tables.train.has_mask.any() and tables.train.read(5)[0].size == (84, 84)

"""Labels of tables and Parquet files: which categories they make, and which are refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pictures import scene
from test_parquet import encoded, write_parquet
from torchdoctor.data.labels import categories_of, label_text, note_on_codes, notes_on_labels
from torchdoctor.data.load import load_tables
from torchdoctor.types import InputError


def classes_of(*train: str, **others: list[str]) -> tuple[str, ...]:
    splits = {"train": Counter(train), **{name: Counter(labels) for name, labels in others.items()}}
    return categories_of(splits, "table:x.csv")[0]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("2", "10", "1"), ("1", "2", "10")),
        (("2.0", "10.0", "1.0"), ("1", "2", "10")),
        (("1", "1.0", "2.", "1e1", "+3"), ("1", "2", "3", "10")),
        (("-1", "1"), ("-1", "1")),
        (("-2", "0", "-10"), ("-10", "-2", "0")),
        (("1.5", "0.25", "1.0"), ("0.25", "1", "1.5")),
        (("010", "002", "001"), ("001", "002", "010")),
        (("b", "10", "2"), ("10", "2", "b")),
        (("1e3", "a4", "ff"), ("1e3", "a4", "ff")),  # not all are numbers: names as written
        (("9" * 25, "1" + "0" * 25, "0"), ("0", "9" * 25, "1" + "0" * 25)),
        (("1e999999999", "2"), ("1e999999999", "2")),
        (("9" * 5000, "1"), ("1", "9" * 5000)),
        (("--1", "²", "٣"), ("--1", "²", "٣")),
        (("True", "False"), ("False", "True")),
    ],
)
def test_categories_and_their_order(labels, classes):
    assert classes_of(*labels) == classes == classes_of(*reversed(labels))


def test_every_writing_of_a_whole_number_is_one_category():
    classes, numbers = categories_of({"train": Counter(["1", "1.0", "2"]), "test": Counter(["1e0"])}, "x")
    assert classes == ("1", "2") and numbers == {"1": 0, "1.0": 0, "1e0": 0, "2": 1}


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (("0.5", "0.50", "1"), "labels '0.5' and '0.50' are the same number"),
        (("1", "1.0", "cat"), "labels '1' and '1.0' are the same number"),
        (("0", "1", "2", "-1", "-1"), "2 rows have the label '-1' and all others one of 0 or more"),
        (("0", "1", "2", "-1.0"), "1 row has the label '-1.0'"),
        (("0", "1", "NA", "None"), "2 rows have the label 'NA', 'None' and all others a number"),
    ],
)
def test_labels_that_can_mean_two_things_are_refused(train, said):
    with pytest.raises(InputError, match=said):
        classes_of(*train)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (["0", "1"], ["0", "-1", "-1"], "in the split test 2 rows have the label '-1', which is unknown"),
        (["cat", "dog"], ["cow"], r"label 'cow', which is unknown to training \(it has 'cat', 'dog'\)"),
        (["1.0", "2.0"], ["1", "3"], "in the split test 1 row has the label '3'"),
    ],
)
def test_a_label_of_another_split_alone_is_no_category(train, test, said):
    with pytest.raises(InputError, match=said):
        classes_of(*train, test=test)


def test_a_category_may_be_missing_from_a_test_split():
    assert classes_of("cat", "dog", test=["cat"]) == ("cat", "dog")


@pytest.mark.parametrize("value", [None, "", "  ", True, False, [1], {}, float("nan"), float("inf")])
def test_what_is_no_label(value):
    with pytest.raises(InputError, match=r"line 3: label .*; expected a category's name or number"):
        label_text(value, "x.csv, line 3")


@pytest.mark.parametrize("value", ["nan", "NaN", " <NA> "])
def test_missing_values_of_pandas_are_no_names(value):
    with pytest.raises(InputError, match=r"line 3: label .* marks a missing value"):
        label_text(value, "x.csv, line 3")


def table(folder: Path, labels: list[object], splits: list[str], ending: str = ".csv") -> str:
    folder.mkdir(exist_ok=True)
    for number in range(len(labels)):
        scene(number)[0].save(folder / f"{number}.png")
    rows = [
        {"path": f"{n}.png", "label": label, "split": split}
        for n, (label, split) in enumerate(zip(labels, splits, strict=True))
    ]
    file = folder / f"t{ending}"
    if ending == ".csv":
        lines = [f"{row['path']},{row['label']},{row['split']}" for row in rows]
        file.write_text("\n".join(["path,label,split", *lines]))
    else:
        file.write_text("\n".join(map(json.dumps, rows)))
    return f"table:{file}"


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_table_with_labels_of_any_writing(tmp_path, ending):
    spec = table(tmp_path, [10.0, 2.0, 1.0, 10.0, 2, " 1 "], ["train"] * 5 + ["test"], ending)
    tables = load_tables(spec)
    assert tables.classes == ("1", "2", "10") and tables.tests["test"].labels.tolist() == [0]


def test_a_table_with_a_hidden_label_is_refused(tmp_path):
    spec = table(tmp_path, [0, 1, 0, 1, -1, -1], ["train"] * 4 + ["test"] * 2)
    with pytest.raises(InputError, match="in the split test 2 rows have the label '-1'"):
        load_tables(spec)


@pytest.mark.parametrize(
    ("labels", "classes"), [([1, 2, 3] * 4, ("1", "2", "3")), ([0, 5, 10] * 4, ("0", "5", "10"))]
)
def test_parquet_labels_without_names_make_only_categories_with_images(tmp_path, labels, classes):
    write_parquet(tmp_path / "all.parquet", labels)
    assert load_tables(f"parquet:{tmp_path}").classes == classes


def test_a_parquet_label_of_the_test_split_alone_is_refused(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [0, 1, 2] * 2)
    write_parquet(tmp_path / "test-0.parquet", [0, -1, -1])
    with pytest.raises(InputError, match="in the split test 2 rows have the label '-1'"):
        load_tables(f"parquet:{tmp_path}")
    write_parquet(tmp_path / "train-0.parquet", [0, 1] * 3, ["cat", "dog"])
    with pytest.raises(
        InputError, match=r"split test\): label -1 in row 1; expected 0 to 1 .*2 of this split"
    ):
        load_tables(f"parquet:{tmp_path}")


def test_shards_that_name_other_categories_are_refused(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [0, 1], ["cat", "dog"])
    write_parquet(tmp_path / "train-1.parquet", [0, 1], ["dog", "cat"])
    with pytest.raises(InputError, match=r"train-1.parquet names the categories \['dog', 'cat'\], but"):
        load_tables(f"parquet:{tmp_path}")
    write_parquet(tmp_path / "train-0.parquet", [0, 1] * 4)  # one shard with names is enough
    assert load_tables(f"parquet:{tmp_path}").classes == ("dog", "cat")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (pa.array(["dog", "cat"] * 3), ("cat", "dog")),
        (pa.array([2.0, 10.0] * 3), ("2", "10")),
        (pa.array([2, 10] * 3, pa.uint8()), ("2", "10")),
    ],
)
def test_parquet_labels_of_several_types(tmp_path, labels, classes):
    images = pa.array([encoded(scene(n)[0]) for n in range(6)])
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "all.parquet")
    assert load_tables(f"parquet:{tmp_path}").classes == classes


@pytest.mark.parametrize(
    "labels", [pa.array([True, False]), pa.array([0, None]), pa.array([0.0, float("nan")])]
)
def test_parquet_labels_that_are_none(tmp_path, labels):
    images = pa.array([encoded(scene(n)[0]) for n in range(2)])
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "all.parquet")
    with pytest.raises(InputError, match="label"):
        load_tables(f"parquet:{tmp_path}")


def test_codes_with_zeros_before_them_are_categories_with_one_order():
    for written in (("1", "01", "2"), ("2", "01", "1"), ("01", "2", "1")):
        assert categories_of({"train": Counter(written)}, "table:t")[0] == ("01", "1", "2")
    assert "'01' are categories of their own" in note_on_codes(("01", "1", "2"))[0]
    assert note_on_codes(("1", "2")) == note_on_codes(("01", "02")) == ()


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("None", "a", "b"), "the label 'None', which may mark images"),
        (("?", "a"), r"the label '\?', which may"),
        (("a", "Unlabeled"), "the label 'Unlabeled', which may"),
        (("0", "1", "2", "255"), "the label '255', which may"),
        (("caf\u00e9", "cafe\u0301"), r"names that look alike are .*: 'caf\\xe9', 'cafe\\u0301'"),
        (("disc", "disc\u200b", "x"), r"names that look alike .*'disc', 'disc\\u200b'"),
        (("Disc", "disc ", "x"), "names that look alike"),
    ],
)
def test_doubtful_categories_are_said(classes, said):
    (note,) = notes_on_labels(classes)
    assert re.match(said, note)


@pytest.mark.parametrize("classes", [("a", "b"), ("1", "99", "100"), ("0", "1"), ("255", "999"), ("x",), ()])
def test_usual_categories_are_not_doubtful(classes):
    assert notes_on_labels(classes) == ()


@pytest.mark.parametrize("mark", ["-9", "-99", "-999"])
def test_a_negative_number_among_others_marks_no_label(mark):
    with pytest.raises(InputError, match=f"1 row has the label '{mark}' and all others one of 0 or more"):
        categories_of({"train": Counter(["0", "1", "2", mark])}, "table:x.csv")

"""Tables as people have them: other column names, delimiters and slashes, and links that leave the folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pictures import scene, write_split
from test_parquet import encoded
from torchdoctor.data.checking import check_data
from torchdoctor.data.load import load_tables
from torchdoctor.data.settings import DataSettings
from torchdoctor.types import InputError


def write_table(folder: Path, header: str, name: str = "t.csv", mark: str = ",", inner: str = "") -> str:
    folder.mkdir(exist_ok=True)
    lines = [header]
    for number in range(8):
        scene(number)[0].save(folder / f"{number}.png")
        cells = [f"{inner}{number}.png", "ab"[number % 2], "cd"[number // 4]]
        lines.append(mark.join(cells[: len(header.split(mark))]))
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return f"table:{folder / name}"


def write_parquet(folder: Path, *names: str) -> str:
    folder.mkdir(exist_ok=True)
    columns = [pa.array([encoded(scene(n)[0]) for n in range(8)])]
    columns += [pa.array(["ab"[n % 2] for n in range(8)]), pa.array(["cd"[n // 4] for n in range(8)])]
    rows = pa.table(dict(zip(names, columns, strict=False)))
    pq.write_table(rows, folder / "all.parquet")
    return f"parquet:{folder / 'all.parquet'}"


@pytest.mark.parametrize(
    "header",
    ["path,label", "image,label", "file_name,class", "Filename, Category", "img,fine_label,coarse_label",
     "image_path,target", "path,label,class"],
)  # fmt: skip
def test_usual_columns_of_a_table(tmp_path, header):
    assert load_tables(write_table(tmp_path, header)).classes == ("a", "b")


@pytest.mark.parametrize(
    "names", [("image", "label"), ("img", "fine_label", "coarse_label"), ("image", "labels")]
)
def test_usual_columns_of_parquet_files(tmp_path, names):
    assert load_tables(write_parquet(tmp_path, *names)).classes == ("a", "b")


@pytest.mark.parametrize("write", [
    lambda folder, *names: write_table(folder, ",".join(names)), write_parquet,
])  # fmt: skip
def test_columns_by_name(tmp_path, write):
    spec = write(tmp_path / "a", "shot", "kind", "weather")
    settings = DataSettings(image_column="shot", label_column="weather")
    assert load_tables(spec, settings=settings).classes == ("c", "d")
    with pytest.raises(
        InputError, match=r"found \['shot', 'kind', 'weather'\].*--image-column names another"
    ):
        load_tables(spec)
    with pytest.raises(InputError, match=r"column 'label' is missing; .*--label-column names another"):
        load_tables(spec, settings=settings.but(label_column=None))
    with pytest.raises(InputError, match="--label-column 'sort': no such column; found"):
        load_tables(spec, settings=settings.but(label_column="sort"))
    spec = write(tmp_path / "b", "image", "class", "category")
    with pytest.raises(
        InputError, match="'class', 'category' may all be meant; choose one with --label-column"
    ):
        load_tables(spec)
    assert load_tables(spec, settings=DataSettings(label_column="category")).classes == ("c", "d")


def test_settings_of_a_source_are_refused_elsewhere(tmp_path):
    write_split(tmp_path, {"a": 6, "b": 6})
    with pytest.raises(
        InputError, match="--label-column is for table:, parquet:, datasets: and webdataset: sources"
    ):
        load_tables(f"folder:{tmp_path}", settings=DataSettings(label_column="x"))
    with pytest.raises(InputError, match="--follow-links is for folder: and table: sources"):
        load_tables("scenes", settings=DataSettings(follow_links=True))


def test_columns_of_splits_in_upper_case_and_columns_that_are_not_used(tmp_path):
    spec = write_table(tmp_path, "path,label,Split,fold")
    file = tmp_path / "t.csv"
    head, *lines = file.read_text().splitlines()
    rows = [f"{line.rpartition(',')[0]},{'test' if n > 5 else 'train'},3" for n, line in enumerate(lines)]
    file.write_text("\n".join([head, *rows]))
    tables = load_tables(spec)
    assert len(tables.tests["test"]) == 2
    assert tables.notes == ("the columns 'fold', which have no meaning here",)
    spec = write_table(tmp_path / "plain", "path,label")
    assert load_tables(spec).notes == ()


@pytest.mark.parametrize("column", ["subset", "Set", "partition", "split"])
def test_a_column_of_another_name_tells_the_splits(column, tmp_path):
    spec = write_table(tmp_path, f"path,label,{column}")
    file = tmp_path / "t.csv"
    head, *lines = file.read_text().splitlines()

    def write(first, second):
        rows = [f"{line.rpartition(',')[0]},{second if n > 5 else first}" for n, line in enumerate(lines)]
        file.write_text("\n".join([head, *rows]))

    write("Train", "TEST")
    tables = load_tables(spec)
    assert len(tables.tests["test"]) == 2 and not tables.test_divided_off and tables.notes == ()
    write("train", "later")
    with pytest.raises(InputError, match=r"t\.csv, line 8: \w+ 'later'; expected train"):
        load_tables(spec)
    if column != "split":
        write("1", "2")
        assert load_tables(spec).notes == (f"the columns {column!r}, which have no meaning here",)


def test_an_image_in_several_rows_is_one_image_with_all_its_boxes(tmp_path):
    spec = write_table(tmp_path, "path,label")
    file = tmp_path / "t.csv"
    _, *lines = file.read_text().splitlines()
    boxes = ["0 0 3 3", "4 4 7 7"]

    def write(rows):
        file.write_text("\n".join(["path,label,split,bbox", *rows]))

    rows = [
        f'{line},{"test" if n > 5 else "train"},"{box.replace(" ", ",")}"'
        for n, line in enumerate(lines)
        for box in boxes
    ]
    write(rows)
    tables = load_tables(spec)
    assert [len(tables.train) + len(tables.validation), len(tables.tests["test"])] == [6, 2]
    assert (np.asarray(tables.train.read(0)[1]) == 255).sum() == 32
    assert tables.notes == (
        "8 further rows of 8 images that stand in several: each is one image, with all boxes of its rows",
    )
    write([*rows, rows[0].replace("train", "test")])
    with pytest.raises(InputError, match="in 3 rows with another split each: 'test' and 'train'"):
        load_tables(spec)
    label = lines[0].rpartition(",")[2]
    write([*rows, rows[0].replace(f",{label},", ",other,")])
    with pytest.raises(InputError, match=r"with another label each: .*keep one of these rows"):
        load_tables(spec)


def test_two_columns_of_one_name_are_refused(tmp_path):
    with pytest.raises(InputError, match="give each column a name of its own"):
        load_tables(write_table(tmp_path, "path,label,label"))


@pytest.mark.parametrize("mark", [";", "\t", "|", ","])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_delimiters_are_read_from_the_first_line(tmp_path, mark, name):
    spec = write_table(tmp_path, f"path{mark}label", name, mark)
    assert load_tables(spec).classes == ("a", "b")


@pytest.mark.parametrize("inner", ["sub\\", ".\\sub\\", "sub/"])
def test_backslashes_in_paths(tmp_path, inner):
    write_table(tmp_path / "sub", "path,label")
    tables = load_tables(write_table(tmp_path, "path,label", inner=inner))
    assert {Path(name).parent.name for name in tables.train.names} == {"sub"}
    with pytest.raises(InputError, match="leads out of"):
        load_tables(write_table(tmp_path, "path,label", inner="..\\"))
    with pytest.raises(InputError, match="no such file"):
        load_tables(write_table(tmp_path, "path,label", inner="C:\\data\\"))


FOLLOW = DataSettings(follow_links=True)


@pytest.fixture
def linked(tmp_path):
    """A folder whose images are links into a store beside it, as data version tools make them."""
    (tmp_path / "store").mkdir()
    for number in range(16):
        scene(number)[0].save(tmp_path / "store" / f"{number}", "PNG")
        place = tmp_path / "data" / ("train", "test")[number // 12] / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").symlink_to(tmp_path / "store" / f"{number}")
    return tmp_path / "data"


def test_links_that_leave_a_folder_are_followed_where_asked(linked):
    with pytest.raises(InputError, match=r"a link that leads out of .*there instead, or give --follow-links"):
        load_tables(f"folder:{linked}")
    tables = load_tables(f"folder:{linked}", settings=FOLLOW)
    assert len(tables.train) + len(tables.validation) == 12 and tables.train.read(0)[0].size == (32, 32)
    (linked / "test" / "b" / "again.png").symlink_to(linked.parent / "store" / "0")
    groups = check_data(load_tables(f"folder:{linked}", settings=FOLLOW)).duplicates
    assert len(groups) == 1 and {split for split, _, _ in groups[0]} >= {"test"}


def test_a_linked_folder_is_followed(linked):
    whole = linked.parent / "other"
    whole.mkdir()
    (whole / "train").symlink_to(linked / "train")
    (whole / "test").symlink_to(linked / "test")
    assert load_tables(f"folder:{whole}", settings=FOLLOW).classes == ("a", "b")


def test_links_in_a_circle_and_to_nothing_are_named(linked):
    outside = linked.parent / "outside"
    outside.mkdir()
    (linked / "train" / "a" / "out").symlink_to(outside)
    (outside / "back").symlink_to(linked / "train" / "a")
    with pytest.raises(InputError, match="back: a link that leads in a circle"):
        load_tables(f"folder:{linked}", settings=FOLLOW)
    (outside / "back").unlink()
    (outside / "self").symlink_to(outside / "self")
    with pytest.raises(InputError, match="self: a link"):
        load_tables(f"folder:{linked}", settings=FOLLOW)
    (outside / "self").unlink()
    (outside / "gone.png").symlink_to(linked.parent / "nothing.png")
    with pytest.raises(InputError, match=r"gone\.png: a link to .*nothing\.png, which does not exist"):
        load_tables(f"folder:{linked}", settings=FOLLOW)


def test_two_categories_that_lead_into_each_other_do_not_hang(tmp_path):
    write_split(tmp_path, {"a": 6, "b": 6})
    (tmp_path / "a" / "x").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "y").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match="a link that leads in a circle"):
        load_tables(f"folder:{tmp_path}")


def test_a_table_of_links(linked):
    files = sorted((linked / "train").rglob("*.png"))
    for named in (lambda file: file.relative_to(linked), lambda file: file):
        lines = [f"{named(file)},{file.parent.name}" for file in files]
        (linked / "t.csv").write_text("\n".join(["path,label", *lines]))
        with pytest.raises(InputError, match=r"leads out of .*, or give --follow-links"):
            load_tables(f"table:{linked / 't.csv'}")
        tables = load_tables(f"table:{linked / 't.csv'}", settings=FOLLOW)
        assert set(tables.train.names) <= {file.relative_to(linked).as_posix() for file in files}
    (linked / "t.csv").write_text("path,label\n../store/0,a\n")
    with pytest.raises(InputError, match=r"leads out of [^,]*; copy the file there$"):
        load_tables(f"table:{linked / 't.csv'}", settings=FOLLOW)

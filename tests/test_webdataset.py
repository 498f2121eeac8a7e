"""Tar archives in the layout of WebDataset: images, labels and masks, and what can be wrong with them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pictures import RAW, png, same, scene
from torchdoctor.data import pixels
from torchdoctor.data.fingerprints import fingerprint
from torchdoctor.data.load import load_tables
from torchdoctor.data.loader import Loader
from torchdoctor.data.readers.webdataset import expanded
from torchdoctor.data.settings import DataSettings
from torchdoctor.types import InputError


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(numbers: range, label=lambda n: f"{n % 2}", masked: bool = False) -> dict[str, bytes]:
    members = {}
    for n in numbers:
        members[f"all/{n:04d}.png"] = png(scene(n)[0])
        members[f"all/{n:04d}.cls"] = label(n).encode()
        if masked and n % 2:
            members[f"all/{n:04d}.mask.png"] = png(scene(n)[1])
    return members


def test_archives_give_images_labels_masks_and_splits(tmp_path, monkeypatch):
    for shard in range(3):
        write_tar(tmp_path / f"train-{shard:03d}.tar", samples(range(shard * 8, shard * 8 + 8), masked=True))
    write_tar(tmp_path / "test-000.tar", samples(range(30, 36), masked=True))
    (tmp_path / "classes.txt").write_text("even\nodd\n")
    tables = load_tables(f"webdataset:{tmp_path}")
    assert tables.classes == ("even", "odd") and tables.notes == ()
    assert sorted([*tables.train.ids, *tables.validation.ids]) == list(range(24))
    for table, first in ((tables.train, 0), (tables.validation, 0), (tables.tests["test"], 30)):
        for place, identity in enumerate(table.ids.tolist()):
            number = first + identity
            image, mask = table.read(place)
            assert np.array_equal(image, scene(number)[0]) and table.labels[place] == number % 2
            assert (mask is not None) == bool(table.has_mask[place]) == bool(number % 2)
            assert mask is None or np.array_equal(mask, scene(number)[1])
    assert tables.tests["test"].names[0] == "test-000.tar/all/0030.png"
    pattern = load_tables(f"webdataset:{tmp_path}/{{train-{{000..002}},test-000}}.tar")
    assert fingerprint(pattern.train) == fingerprint(tables.train)
    assert set(pattern.tests) == {"test"}
    monkeypatch.setattr(pixels, "CACHE_BYTES", 0)
    alone = list(Loader(tables.train, RAW, 5, workers=0).epoch(1, 2))
    read_by_two = Loader(pickle.loads(pickle.dumps(tables.train)), RAW, 5, workers=2).epoch(1, 2)
    assert all(same(one, other) for one, other in zip(alone, read_by_two, strict=True))
    before = fingerprint(tables.train)
    changed = samples(range(8), masked=True)
    changed["all/0003.mask.png"] = png(scene(9)[1])
    write_tar(tmp_path / "train-000.tar", changed)
    again = fingerprint(load_tables(f"webdataset:{tmp_path}").train)
    assert again["masks_sha256"] != before["masks_sha256"]
    assert again["labels_sha256"] == before["labels_sha256"]


def test_folders_tell_splits_and_archives_without_a_name_are_divided(tmp_path):
    for split in ("train", "val", "test"):
        write_tar(tmp_path / "a" / split / "shard-0.tar", samples(range(10)))
    tables = load_tables(f"webdataset:{tmp_path / 'a'}")
    assert len(tables.train) == len(tables.validation) == len(tables.tests["test"]) == 10
    for shard in range(2):
        write_tar(tmp_path / "b" / f"shards-{shard:03d}.tar", samples(range(shard * 20, shard * 20 + 20)))
    for location in (
        tmp_path / "b",
        tmp_path / "b" / "shards-{000..001}.tar",
        tmp_path / "b" / "shards-*.tar",
    ):
        tables = load_tables(f"webdataset:{location}")
        ids = [*tables.train.ids, *tables.validation.ids, *tables.tests["test"].ids]
        assert tables.test_divided_off and sorted(ids) == list(range(40))
    one = load_tables(f"webdataset:{tmp_path / 'b' / 'shards-000.tar'}")
    assert len(one.train) + len(one.validation) + len(one.tests["test"]) == 20


def test_labels_stand_in_json_or_under_an_ending(tmp_path):
    members = {}
    for n in range(20):
        members[f"{n}.PNG"] = png(scene(n)[0])
        members[f"{n}.json"] = json.dumps({"label": ["cat", "dog"][n % 2], "colour": "ab"[n // 10]}).encode()
        members[f"{n}.kind"] = f"k{n % 2}".encode()
    spec = f"webdataset:{write_tar(tmp_path / 'a.tar', members)}"
    assert load_tables(spec).classes == ("cat", "dog")
    assert load_tables(spec, settings=DataSettings(label_column="colour")).classes == ("a", "b")
    assert load_tables(spec, settings=DataSettings(label_column="kind")).classes == ("k0", "k1")
    with pytest.raises(InputError, match=r"a\.tar: member '0\.json': --label-column 'size': no such column"):
        load_tables(spec, settings=DataSettings(label_column="size"))
    assert expanded("s-{08..10}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert sorted(expanded("{a,b}-{0..1}")) == ["a-0", "a-1", "b-0", "b-1"]


def missing(members: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: content for name, content in members.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: missing(m, "all/0003.cls"),
            r"a\.tar: member 'all/0003\.png' has no label; expected",
        ),
        (lambda m: missing(m, "all/0003.png"), r"a\.tar: member 'all/0003\.cls' has no image beside it"),
        (lambda m: m | {"all/0019.jpg": m["all/0019.png"]}, "are two images of one sample"),
        (lambda m: m | {"all/0003.cls": b""}, r"member 'all/0003\.cls': label ''; expected a category"),
        (lambda m: m | {"all/0003.cls": b"\xff"}, r"member 'all/0003\.cls': is no text in UTF-8"),
        (lambda m: missing(m, "all/0019.cls") | {"all/0019.json": b"{"}, r"'all/0019\.json': is no JSON"),
    ],
)
def test_samples_that_lack_something_are_named(change, message, tmp_path):
    write_tar(tmp_path / "a.tar", change(samples(range(20))))
    with pytest.raises(InputError, match=message):
        load_tables(f"webdataset:{tmp_path}")


def test_damaged_archives_are_named(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", samples(range(20))).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        last, middle = tar.getmembers()[-1], tar.getmember("all/0009.png")
    file = tmp_path / "cut.tar"
    for content, message in (
        (
            whole[: middle.offset_data + 20],
            r"cut\.tar: is cut off: it ends inside the member 'all/0009",
        ),
        (whole[: middle.offset + 100], r"cut\.tar: is damaged or cut off after the member 'all/0008\.cls'"),
        (whole[: middle.offset] + b"x" * 1024, r"cut\.tar: is damaged or cut off after the member"),
        (b"no archive", r"cut\.tar: cannot be read as a tar archive after its beginning"),
        (gzip.compress(whole), r"cut\.tar: is compressed \(gzip\)"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_tables(f"webdataset:{file}")
    file.write_bytes(whole[: last.offset_data + 512])
    assert load_tables(f"webdataset:{file}").notes == (
        "cut.tar: ends without the mark of its end, so it may be cut off",
    )
    tables = load_tables(f"webdataset:{tmp_path / 'whole.tar'}")
    (tmp_path / "whole.tar").write_bytes(whole[:2000])
    with pytest.raises(InputError, match=r"whole\.tar: ends inside the member"):
        list(Loader(tables.train, RAW))


def test_what_is_missing_beside_the_archives_is_said(tmp_path):
    write_tar(tmp_path / "train-0.tar", samples(range(20)))
    (tmp_path / "classes.txt").write_text("zero\n")
    with pytest.raises(InputError, match=r"classes\.txt: names 1 category, .* have the label '1'"):
        load_tables(f"webdataset:{tmp_path}")
    with pytest.raises(InputError, match=r"no such file: .*train-1\.tar; expected a folder of \.tar files"):
        load_tables(f"webdataset:{tmp_path}/train-{{0..1}}.tar")
    (tmp_path / "classes.txt").unlink()
    write_tar(tmp_path / "holiday-0.tar", samples(range(20)))
    with pytest.raises(InputError, match=r"found holiday-0\.tar beside the training images"):
        load_tables(f"webdataset:{tmp_path}")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"found no \.tar files; expected train-\*\.tar"):
        load_tables(f"webdataset:{tmp_path / 'none'}")
    with pytest.raises(InputError, match="did you mean 'webdataset:"):
        load_tables(str(tmp_path / "train-0.tar"))

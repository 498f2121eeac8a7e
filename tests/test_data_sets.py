"""The paper's data sets in their original formats, table files, drawn categories, grey images, the check."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets

from pictures import scene, write_split
from torchdoctor.data.catalogue import DATASETS, DataEntry
from torchdoctor.data.checking import check_data, without_broken
from torchdoctor.data.load import load_data, load_tables
from torchdoctor.data.settings import DataSettings
from torchdoctor.types import InputError

DATA = os.environ.get("TORCHDOCTOR_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="TORCHDOCTOR_DATA is not set")


def md5_of(path: Path) -> str:
    """Return the digest that torchvision compares."""
    return hashlib.md5(path.read_bytes()).hexdigest()


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Return random images as bytes."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_mnist(root: Path, kind: str = "MNIST") -> dict[str, np.ndarray]:
    """Write the four files of MNIST with 40 and 20 images; return the images."""
    raw = root / kind / "raw"
    raw.mkdir(parents=True)
    kept = {}
    for ours, name, count in (("train", "train", 40), ("test", "t10k", 20)):
        images, labels = pixels(count, 28, 28, seed=count), np.arange(count, dtype=np.uint8) % 10
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
        kept[ours] = np.repeat(images[..., None], 3, axis=3)
    return kept


def write_cifar(root: Path, monkeypatch, kind: type) -> dict[str, np.ndarray]:
    """Write the pickled batches of CIFAR-10 or CIFAR-100; torchvision's own digests are set to theirs."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    names = [f"class {n}" for n in range(100 if kind is datasets.CIFAR100 else 10)]
    key = "fine_labels" if kind is datasets.CIFAR100 else "labels"
    kept: dict[str, list] = {"train": [], "test": []}

    def write(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, md5_of(folder / name)]

    for ours, attribute in (("train", "train_list"), ("test", "test_list")):
        entries = []
        for number, (name, _) in enumerate(getattr(kind, attribute)):
            images = pixels(20, 3072, seed=number + 50 * (ours == "test"))
            kept[ours].append(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels = [(number + row) % 10 for row in range(20)]
            entries.append(write(name, {"data": images, key: labels}))
        monkeypatch.setattr(kind, attribute, entries)
    meta = write(kind.meta["filename"], {kind.meta["key"]: names})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": meta[1]})
    return {ours: np.concatenate(parts) for ours, parts in kept.items()}


def write_svhn(root: Path, monkeypatch) -> dict[str, np.ndarray]:
    """Write the two files of SVHN, where the digit 0 is called 10."""
    root.mkdir(parents=True, exist_ok=True)
    kept, entries = {}, dict(datasets.SVHN.split_list)
    for ours, count in (("train", 40), ("test", 20)):
        images = pixels(count, 32, 32, 3, seed=count)
        labels = np.arange(count) % 10
        labels[labels == 0] = 10
        file = root / f"{ours}_32x32.mat"
        scipy.io.savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None]})
        entries[ours] = [entries[ours][0], file.name, md5_of(file)]
        kept[ours] = images
    monkeypatch.setattr(datasets.SVHN, "split_list", entries)
    return kept


def write_stl10(root: Path, monkeypatch) -> dict[str, np.ndarray]:
    """Write the binary files of STL-10, whose images are stored transposed and whose labels begin at 1."""
    folder = root / datasets.STL10.base_folder
    folder.mkdir(parents=True)
    kept = {}
    for ours, count in (("train", 40), ("test", 20)):
        images = pixels(count, 3, 96, 96, seed=count)
        (folder / f"{ours}_X.bin").write_bytes(images.tobytes())
        (folder / f"{ours}_y.bin").write_bytes((np.arange(count) % 10 + 1).astype(np.uint8).tobytes())
        kept[ours] = images.transpose(0, 3, 2, 1)
    (folder / "class_names.txt").write_text("\n".join(f"thing{n}" for n in range(10)))
    (folder / "unlabeled_X.bin").write_bytes(b"")
    for attribute in ("train_list", "test_list"):
        entries = [[name, md5_of(folder / name)] for name, _ in getattr(datasets.STL10, attribute)]
        monkeypatch.setattr(datasets.STL10, attribute, entries)
    return kept


WRITERS = {
    "mnist": (lambda root, _patch: write_mnist(root), "MNIST"),
    "fashion_mnist": (lambda root, _patch: write_mnist(root, "FashionMNIST"), "FashionMNIST"),
    "cifar10": (lambda root, patch: write_cifar(root, patch, datasets.CIFAR10), "CIFAR10"),
    "cifar100": (lambda root, patch: write_cifar(root, patch, datasets.CIFAR100), "CIFAR100"),
    "svhn": (write_svhn, "SVHN"),
    "stl10": (write_stl10, "STL10"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_original_formats_by_name_and_by_torchvisions_class(name, tmp_path, monkeypatch):
    writer, kind = WRITERS[name]
    wanted = writer(tmp_path / "root", monkeypatch)
    for spec in (f"{name}@{tmp_path}/root", f"torchvision:{kind}@{tmp_path}/root"):
        tables = load_tables(spec)
        assert len(tables.train) + len(tables.validation) == len(wanted["train"])
        found = tables.tests["test"]
        assert len(tables.classes) >= 10 and len(found) == len(wanted["test"])
        assert found.labels.tolist()[:10] == list(range(10))
        for position in (0, 7):
            image, mask = found.read(position)
            assert mask is None and np.array_equal(np.asarray(image), wanted["test"][position])
    first = int(tables.train.ids[3])
    assert np.array_equal(np.asarray(tables.train.read(3)[0]), wanted["train"][first])
    splits = load_data(f"{name}@{tmp_path}/root", batch_size=8)
    assert splits.preprocessing.image_size == DATASETS[name].image_size
    assert not set(splits.train.table.ids) & set(splits.validation.table.ids)


def test_the_inner_folder_will_do_too(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    assert len(load_tables(f"cifar10@{tmp_path}/cifar-10-batches-py").tests["test"]) == 20


def test_files_that_are_missing_damaged_or_unknown_are_said(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"cifar-10-batches-py.*--download fetches it"):
        load_tables(f"cifar10@{tmp_path}")
    root = tmp_path / "damaged"
    write_cifar(root, monkeypatch, datasets.CIFAR10)
    batch = root / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1] + b"!")
    with pytest.raises(InputError, match="corrupted"):
        load_tables(f"cifar10@{root}")
    for spec, said in (
        (f"cifar11@{tmp_path}", "did you mean cifar10"),
        ("cifar10", "expected cifar10@ROOT"),
        ("cifar10@", "the folder is missing"),
        (f"torchvision:CIFAR11@{tmp_path}", "did you mean CIFAR10"),
        (f"cifar10@{tmp_path}/none", "no such file or folder"),
        (f"torchvision:CocoCaptions@{tmp_path}", "needs more than a folder"),
    ):
        with pytest.raises(InputError, match=said):
            load_tables(spec)


def test_download_is_passed_on(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda self: asked.append(self.root))
    with pytest.raises(InputError, match="not found or corrupted"):
        load_tables(f"cifar10@{tmp_path}/new", settings=DataSettings(download=True))
    assert asked == [tmp_path / "new"]
    with pytest.raises(InputError, match="cannot be downloaded"):
        load_tables(f"mini_imagenet@{tmp_path}", settings=DataSettings(download=True))


def few_shot(root: Path, count: int = 10) -> None:
    """Write three splits of different categories."""
    for split, names in (("train", "abc"), ("val", "d"), ("test", "ef")):
        write_split(root / split, {f"n{letter}": count for letter in names})


def test_mini_imagenet_layouts_give_the_same_division(tmp_path):
    few_shot(tmp_path / "folders")
    lists = tmp_path / "lists"
    (lists / "images").mkdir(parents=True)
    for split in ("train", "val", "test"):
        lines = ["filename,label"]
        for file in sorted((tmp_path / "folders" / split).rglob("*.png")):
            name = f"{file.parent.name}{file.stem}.png"
            (lists / "images" / name).write_bytes(file.read_bytes())
            lines.append(f"{name},{file.parent.name}")
        (lists / f"{split}.csv").write_text("\n".join(lines))
    plain = tmp_path / "plain"
    for folder in (tmp_path / "folders").glob("*/*"):
        write_split(plain, {folder.name: 10})
    found = [
        load_tables(f"mini_imagenet@{tmp_path}/{kind}", seed=4) for kind in ("folders", "lists", "plain")
    ]
    for tables in found:
        assert tables.classes == ("na", "nb", "nc", "nd", "ne", "nf")
        assert np.bincount(tables.tests["test"].labels).tolist() == [2] * 6
        assert np.bincount(tables.train.labels).tolist() == [7] * 6
    assert found[0].tests["test"].ids.tolist() == found[1].tests["test"].ids.tolist()
    other = load_tables(f"mini_imagenet@{tmp_path}/folders", seed=5).tests["test"].ids.tolist()
    assert other != found[0].tests["test"].ids.tolist()


def test_six_hundred_images_become_480_and_120(tmp_path):
    for split, names in (("train", "a"), ("test", "b")):
        for letter in names:
            folder = tmp_path / split / letter
            folder.mkdir(parents=True)
            whole = folder / "0.png"
            Image.fromarray(pixels(1, 4, 4, 3)[0]).save(whole)
            for number in range(1, 600):
                os.link(whole, folder / f"{number}.png")
    tables = load_tables(f"mini_imagenet@{tmp_path}")
    assert np.bincount(tables.tests["test"].labels).tolist() == [120, 120]
    assert np.bincount([*tables.train.labels, *tables.validation.labels]).tolist() == [480, 480]


def test_a_classification_split_of_mini_imagenet_is_kept(tmp_path):
    write_split(tmp_path / "train", {"a": 6, "b": 6})
    write_split(tmp_path / "test", {"a": 2, "b": 2})
    tables = load_tables(f"mini_imagenet@{tmp_path}")
    assert len(tables.tests["test"]) == 4 and len(tables.train) + len(tables.validation) == 12
    (tmp_path / "train.csv").write_text("filename,label\n../../secret.png,a\n")
    with pytest.raises(InputError, match=r"line 2: '\.\./\.\./secret.png'"):
        load_tables(f"mini_imagenet@{tmp_path}")


def write_table(folder: Path, lines: list[dict], ending: str) -> Path:
    """Write a table file beside six scenes with masks."""
    for number in range(6):
        image, mask = scene(number)
        image.save(folder / f"{number}.png")
        mask.save(folder / f"{number}m.png")
    file = folder / f"list{ending}"
    if ending == ".jsonl":
        file.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    else:
        mark = "\t" if ending == ".tsv" else ","
        names = list(dict.fromkeys(name for line in lines for name in line))

        def cell(value: object) -> str:
            text = str(value) if not isinstance(value, list) else json.dumps(value)
            return '"' + text.replace('"', '""') + '"'

        rows = [mark.join(names)] + [mark.join(cell(line.get(name, "")) for name in names) for line in lines]
        file.write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    return file


LINES = [
    {"path": "0.png", "label": "cat", "mask": "0m.png", "split": "train"},
    {"path": "1.png", "label": "dog", "bbox": [1, 2, 10, 12], "split": "train"},
    {"path": "2.png", "label": "cat", "bbox": [[0, 0, 3, 3], [5, 5, 6, 6]], "split": "train"},
    {"path": "3.png", "label": "dog", "split": "train"},
    {"path": "4.png", "label": "cat", "split": "test"},
    {"path": "5.png", "label": "dog", "split": "test_night"},
]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_table_files(tmp_path, ending):
    tables = load_tables(
        f"table:{write_table(tmp_path, LINES, ending)}", settings=DataSettings(validation_share=0.4)
    )
    assert tables.classes == ("cat", "dog") and set(tables.tests) == {"test", "test_night"}
    parts = (tables.train, tables.validation)
    both = {table.names[at]: table.read(at)[1] for table in parts for at in range(len(table))}
    assert np.array_equal(np.asarray(both["0.png"]), np.asarray(scene(0)[1]))
    assert np.asarray(both["1.png"]).astype(bool).sum() == 10 * 11
    assert np.asarray(both["2.png"]).astype(bool).sum() == 16 + 4
    assert both["3.png"] is None


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_table_names_the_group_of_each_image(tmp_path, ending):
    lines = [{**line, "Group": (" day ", 7, "")[place % 3]} for place, line in enumerate(LINES)]
    tables = load_tables(f"table:{write_table(tmp_path, lines, ending)}")
    assert not any("group" in note.lower() for note in tables.notes)  # it has a meaning
    found = {
        name: group
        for table in (tables.train, tables.validation, *tables.tests.values())
        for name, group in zip(table.names, table.groups or ("",) * len(table), strict=True)
    }
    assert found == {f"{place}.png": ("day", "7", "")[place % 3] for place in range(6)}
    assert load_tables(f"table:{write_table(tmp_path, LINES, ending)}").train.groups is None
    twice = [*lines, {**lines[0], "Group": "night"}]
    with pytest.raises(InputError, match="another group each: 'day' and 'night'"):
        load_tables(f"table:{write_table(tmp_path, twice, ending)}")


def test_labels_that_are_numbers_are_sorted_as_numbers(tmp_path):
    files = [f"{n}.png" for n in range(6)] + [f"{n}m.png" for n in range(3)]
    lines = [{"path": file, "label": (2, 10, 9)[n % 3]} for n, file in enumerate(files)]
    assert load_tables(f"table:{write_table(tmp_path, lines, '.jsonl')}").classes == ("2", "9", "10")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"label": "cat"}, "path None"),
        ({"path": "0.png"}, "label None"),
        ({"path": "0.png", "label": True}, "label True"),
        ({"path": "none.png", "label": "cat"}, "'none.png': no such file"),
        ({"path": "../up.png", "label": "cat"}, "leads out of"),
        ({"path": "/etc/hostname", "label": "cat"}, "leads out of"),
        ({"path": "0.png", "label": "cat", "bbox": [1, 2, 3]}, "xmin, ymin, xmax, ymax"),
        ({"path": "0.png", "label": "cat", "bbox": "a,b,c,d"}, "xmin, ymin, xmax, ymax"),
        ({"path": "0.png", "label": "cat", "mask": "gone.png"}, "mask 'gone.png'"),
        ({"path": "0.png", "label": "cat", "split": "later"}, "split 'later'"),
    ],
)
def test_lines_that_cannot_be_used_are_named(tmp_path, line, said):
    file = write_table(tmp_path, [LINES[0], line], ".jsonl")
    (tmp_path.parent / "up.png").write_bytes((tmp_path / "0.png").read_bytes())
    with pytest.raises(InputError, match=said) as caught:
        load_tables(f"table:{file}")
    assert "line 2" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "[" * 90_000, "line 1: is not JSON"),
        ("a.jsonl", '{"path": "' + "x" * 200_000, "over 100000 characters"),
        ("a.jsonl", "[1, 2]", "expected an object"),
        ("a.jsonl", "", "no line with an image"),
        ("a.csv", "number,label\n1,2", "column 'path' is missing"),
        ("a.csv", "path,label\na,b,c", "line 2: more values than columns"),
        ("a.csv", 'path,label\n"a,b', "is not CSV"),
        ("a.csv", "path,label\n" + "x" * 140_000 + ",b", "is not CSV"),
        ("a.txt", "x", "unknown ending"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        load_tables(f"table:{tmp_path / name}")
    (tmp_path / "b.csv").write_bytes(b"path,label\n\xff\xfe,cat")
    with pytest.raises(InputError, match="not UTF-8"):
        load_tables(f"table:{tmp_path / 'b.csv'}")


def test_the_share_of_validation_can_be_chosen(tmp_path):
    write_split(tmp_path / "train", {"a": 50, "b": 25})
    write_split(tmp_path / "test", {"a": 1, "b": 1})
    sizes = {
        share: np.bincount(
            load_data(f"folder:{tmp_path}", settings=DataSettings(validation_share=share)).train.table.labels
        ).tolist()
        for share in (0.1, 0.04, 0.4)
    }
    assert sizes == {0.1: [45, 23], 0.04: [48, 24], 0.4: [30, 15]}
    with pytest.raises(InputError, match="between 0 and 1"):
        load_data(f"folder:{tmp_path}", settings=DataSettings(validation_share=1.0))


def test_drawn_categories_are_the_same_everywhere(tmp_path):
    for split, count in (("train", 10), ("test", 3)):
        write_split(tmp_path / split, {f"c{n}": count for n in range(8)})
    whole = load_tables(f"folder:{tmp_path}")
    few = load_tables(f"folder:{tmp_path}", settings=DataSettings(classes=3, classes_seed=3))
    assert (
        few.classes
        == load_tables(f"folder:{tmp_path}", settings=DataSettings(classes=3, classes_seed=3)).classes
    )
    draws = {
        load_tables(f"folder:{tmp_path}", settings=DataSettings(classes=3, classes_seed=seed)).classes
        for seed in range(6)
    }
    assert len(draws) > 1 and list(few.classes) == sorted(few.classes)
    for one, other in ((few.train, whole.train), (few.tests["test"], whole.tests["test"])):
        assert set(np.unique(one.labels)) == {0, 1, 2}
        names = dict(zip(other.ids.tolist(), other.names, strict=True))
        for identity, name, label in zip(one.ids.tolist(), one.names, one.labels.tolist(), strict=True):
            assert names[identity] == name and name.startswith(few.classes[label] + "/")
    for number in (1, 9):
        with pytest.raises(InputError, match=f"classes {number}: expected 2 to 8"):
            load_tables(f"folder:{tmp_path}", settings=DataSettings(classes=number))


def test_grey_images(tmp_path):
    write_split(tmp_path / "train", {"a": 6, "b": 6}, masked=True)
    splits = load_data(f"folder:{tmp_path}", channels=1, batch_size=4)
    assert splits.preprocessing.channels == 1 and splits.preprocessing.mean == pytest.approx((0.449,))
    batch = next(iter(splits.train))
    assert batch.images.shape == (4, 1, 32, 32) and batch.masks is not None
    grey = np.asarray(splits.train.table.read(0)[0].convert("L"), dtype=np.float32) / 255
    kept = splits.preprocessing
    assert torch.allclose(
        batch.images[0, 0], (torch.from_numpy(grey) - kept.mean[0]) / kept.std[0], atol=1e-5
    )
    assert type(kept).from_json(kept.to_json()) == kept
    with pytest.raises(InputError, match="channels 2"):
        load_data(f"folder:{tmp_path}", channels=2)


@pytest.mark.parametrize("augment", ["crop", "crop_flip"])
def test_masks_follow_every_augmentation(tmp_path, augment):
    write_split(tmp_path / "train", {"a": 30, "b": 30}, masked=True)
    splits = load_data(f"folder:{tmp_path}", mean=(0.0,) * 3, std=(1.0,) * 3, augment=augment, batch_size=16)
    moved = 0
    for batch in splits.train.epoch(1, 7):
        red = ((batch.images[:, 0] == 1) & (batch.images[:, 1] == 0)).float()
        assert torch.equal(red, batch.masks[:, 0])
        moved += int((batch.masks.sum((1, 2, 3)) > 0).sum())
    assert moved > 40


def broken_set(root: Path) -> Path:
    """Write a folder with a JPEG that breaks late, a lie, a copy across splits and one across categories."""
    write_split(root / "train", {"a": 6, "b": 6})
    write_split(root / "test", {"a": 2, "b": 2})
    whole = root / "train" / "a" / "late.jpg"
    Image.fromarray(pixels(1, 200, 200, 3)[0]).save(whole, quality=95)
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) * 2 // 3])
    (root / "train" / "b" / "lie.png").write_text("I am a picture")
    Image.fromarray(pixels(1, 32, 32, 3, seed=9)[0]).save(root / "train" / "a" / "copy ünder <b>.png")
    (root / "test" / "b" / "again.png").write_bytes(
        (root / "train" / "a" / "copy ünder <b>.png").read_bytes()
    )
    return root


def test_the_check_counts_and_finds_what_is_wrong(tmp_path):
    with Image.open(broken_set(tmp_path) / "train" / "a" / "late.jpg") as file:
        assert file.size == (200, 200)  # the header alone shows nothing wrong
    found = check_data(load_tables(f"folder:{tmp_path}", settings=DataSettings(validation_share=0.2)))
    assert found.broken == 2
    reasons = {name: reason for one in found.splits.values() for name, reason in one.broken.items()}
    assert set(reasons) == {"a/late.jpg", "b/lie.png"} and "cannot be decoded" in reasons["b/lie.png"]
    assert sum(one.images for name, one in found.splits.items() if name != "test") == 15
    assert found.splits["test"].per_category == {"a": 2, "b": 3}
    assert found.splits["test"].sizes == {(32, 32): 5}
    groups = [{(split, name) for split, name, _ in group} for group in found.duplicates]
    assert any({name for _, name in group} == {"a/copy ünder <b>.png", "b/again.png"} for group in groups)
    assert json.dumps(found.to_json())


def test_broken_images_are_left_out_on_request(tmp_path):
    tables = load_tables(f"folder:{broken_set(tmp_path)}")
    sound, skipped = without_broken(tables)
    assert len(skipped) == 2 and len(sound.train) + len(sound.validation) == 13
    splits = load_data(f"folder:{tmp_path}", settings=DataSettings(on_error="skip"), image_size=16)
    assert splits.skipped == skipped
    for loader in (splits.train, splits.validation, *splits.tests.values()):
        loader.check()
    with pytest.raises(InputError, match=r"late.jpg|lie.png"):
        load_data(f"folder:{tmp_path}", image_size=16).train.check()


@pytest.fixture
def command(capsys, monkeypatch):
    """Run the command line in this process: exit code, stdout, stderr."""
    from torchdoctor.cli.app import main

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["torchdoctor", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_data_check_and_datasets_on_the_command_line(command, tmp_path):
    root = broken_set(tmp_path)
    code, out, err = command("data", "check", "--data", f"folder:{root}", "--json")
    assert code == 2 and "2 images" in err and "--on-error skip" in err
    assert json.loads(out)["broken"] == 2
    code, out, _ = command("data", "check", "--data", f"folder:{root}", "--on-error", "skip")
    assert code == 0 and "late.jpg" in out and "again.png" in out
    assert command("data", "check", "--data", "folder:none")[0] == 2
    assert command("data", "check", "--data", f"folder:{root}", "--on-error", "perhaps")[0] == 2
    listed = json.loads(command("datasets", "--json")[1])
    assert [one["name"] for one in listed] == list(DATASETS)


def test_training_skips_draws_and_reads_grey_on_the_command_line(command, tmp_path, blank_figures):
    root = broken_set(tmp_path / "data")
    words = ("train", "--model", "small_resnet", "--data", f"folder:{root}", "--epochs", 1, "--batch-size", 4)
    code, _, err = command(*words, "--out", tmp_path / "one")
    assert code == 2 and "cannot be decoded" in err
    code, out, _ = command(
        *words, "--on-error", "skip", "--channels", 1, "--image-size", 32, "--json", "--out", tmp_path / "two"
    )
    assert code == 0
    record = json.loads(out)
    assert record["preprocessing"]["image_size"] == 32 and len(record["preprocessing"]["mean"]) == 1
    assert len(record["skipped_images"]) == 2
    assert json.loads((tmp_path / "two" / "data.json").read_text()) == {
        "preprocessing": record["preprocessing"], "skipped_images": record["skipped_images"],
    }  # fmt: skip
    code, out, err = command(
        "diagnose", "--weights", record["weights"], "--data", f"folder:{root}", "--on-error", "skip",
        "--confidence", 0, "--draws", 0, "--out", tmp_path / "three",
    )  # fmt: skip
    assert code == 0 and "grey" in out and err.count("left out") == 2 and "left out" not in out


def test_a_data_set_from_outside_the_package(monkeypatch, tmp_path):
    from torchdoctor.data.readers.folder import read_folder

    def read(location: str, seed: int, validation_share: float, _download: bool):
        return read_folder(location, seed, validation_share)

    entry = DataEntry("mine", "Pictures of mine", 2, 32, 3, "CLASS/*.png", read)
    monkeypatch.setitem(DATASETS, "mine", entry)
    write_split(tmp_path, {"a": 6, "b": 6})
    assert load_tables(f"mine@{tmp_path}").classes == ("a", "b")


def test_other_classes_of_torchvision(tmp_path):
    write_mnist(tmp_path, "KMNIST")
    assert len(load_tables(f"torchvision:KMNIST@{tmp_path}").tests["test"]) == 20


@needs_data
def test_real_cifar10_and_the_papers_mini_imagenet_draw():
    cifar = load_data(f"cifar10@{DATA}/cifar10", limit=3)
    assert len(cifar.classes) == 10 and cifar.preprocessing.image_size == 32
    mini = load_data(
        f"mini_imagenet@{DATA}/mini_imagenet30", classes=10, settings=DataSettings(classes_seed=3), limit=2
    )
    assert len(mini.classes) == 10 and len(mini.train) == 20
    assert np.bincount(mini.tests["test"].table.labels).tolist() == [100] * 10
    grey = load_data(f"mnist@{DATA}/mnist", channels=1, limit=1)
    assert next(iter(grey.train)).images.shape == (10, 1, 28, 28)


def test_absolute_paths_in_a_table_that_is_named_relatively(tmp_path, monkeypatch):
    (tmp_path / "t").mkdir()
    lines = ["path,label"]
    for number in range(12):
        file = tmp_path / "t" / f"{number}.png"
        Image.new("RGB", (8, 8)).save(file)
        lines.append(f"{file},{'ab'[number % 2]}")
    (tmp_path / "t" / "l.csv").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert set(load_tables("table:t/l.csv").train.names) <= {f"{number}.png" for number in range(12)}

"""A data set's fingerprint sees what changes the numbers, and nothing else."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from torchdoctor.data.fingerprints import ENDS, fingerprint, stamp_of_bytes, stamp_of_file
from torchdoctor.data.load import load_data
from torchdoctor.data.scenes.scenes import Scenes, scenes_table


def prints(spec, **more):
    return load_data(spec, image_size=16, **more).fingerprints


def differing(one, two):
    """Return which entries of which splits differ."""
    return {f"{split}.{name}" for split in one for name in one[split] if one[split][name] != two[split][name]}


def picture(shade, size=16):
    return Image.new("RGB", (size, size), (shade, 255 - shade, 7))


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A folder of two categories, one image with a mask in every split."""
    for split in ("train", "val", "test"):
        for category in "ab":
            place = tmp_path / "photos" / split / category
            place.mkdir(parents=True)
            for number in range(4):
                picture(20 * number).save(place / f"{number}.png")
            Image.new("L", (16, 16), 255).save(place / "0.mask.png")
    return tmp_path / "photos"


def test_a_copy_is_the_same_data(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    one, two = prints(f"folder:{folder}"), prints(f"folder:{tmp_path / 'copy'}")
    assert one == two and set(one) == {"train", "validation", "test"}
    assert one["train"]["images"] == 8 and one["train"]["masks"] == 2
    digests = [value for split in one.values() for value in split.values() if isinstance(value, str)]
    assert all(len(value) == 16 for value in digests)


def test_what_changed_in_a_folder_is_named(folder):
    one = prints(f"folder:{folder}")
    picture(99).save(folder / "test/b/2.png")
    two = prints(f"folder:{folder}")
    assert differing(one, two) == {"test.images_sha256"}
    Image.new("L", (16, 16), 200).save(folder / "train/a/0.mask.png")
    three = prints(f"folder:{folder}")
    assert differing(two, three) == {"train.masks_sha256"}
    shutil.copy(folder / "train/a/0.mask.png", folder / "train/a/1.mask.png")
    four = prints(f"folder:{folder}")
    assert differing(three, four) == {"train.masks_sha256", "train.masks"}
    (folder / "train/a/3.png").rename(folder / "train/b/9.png")
    found = differing(four, prints(f"folder:{folder}"))  # another row has the mask now
    assert found == {"train.labels_sha256", "train.images_sha256", "train.masks_sha256"}


def test_division_and_drawn_scenes(folder):
    for split in ("val", "test"):
        shutil.rmtree(folder / split)
    one, two = (prints(f"folder:{folder}", seed=seed) for seed in (0, 5))
    assert differing(one, two) >= {"train.labels_sha256"}
    drawn = [{"train": fingerprint(scenes_table(Scenes(seed, 0, 9, 1.0), "t"))} for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert differing(drawn[0], drawn[2]) == {"train.images_sha256", "train.masks_sha256"}


def parquet(path, shades, masks, boxes):
    """Write a Parquet file."""
    rows = {
        "image": [{"bytes": encoded(picture(shade)), "path": None} for shade in shades],
        "label": [number % 2 for number in range(len(shades))],
        "mask": [
            None if mask is None else {"bytes": encoded(Image.new("L", (16, 16), mask)), "path": None}
            for mask in masks
        ],
        "bbox": boxes,
    }
    pq.write_table(pa.table(rows), path)


def test_what_changed_in_parquet_is_named(tmp_path):
    shades, masks = list(range(20)), [255, 255] + [None] * 18
    boxes = [None] * 10 + [[1.0, 1.0, 9.0, 9.0]] * 10

    def written(*given):
        for split in ("train", "validation", "test"):
            parquet(tmp_path / f"{split}-0.parquet", *(given if split == "train" else (shades, masks, boxes)))
        return prints(f"parquet:{tmp_path}")

    one = written(shades, masks, boxes)
    assert written(shades, masks, boxes) == one and one["train"]["masks"] == 12
    assert differing(one, written([50, *shades[1:]], masks, boxes)) == {"train.images_sha256"}
    assert differing(one, written(shades, [255, 254, *masks[2:]], boxes)) == {"train.masks_sha256"}
    moved = [*boxes[:-1], [1.0, 1.0, 9.0, 8.0]]
    assert differing(one, written(shades, masks, moved)) == {"train.masks_sha256"}


def test_what_changed_in_a_table_is_named(folder):
    lines = [f"{s}/{c}/{n}.png,{c},{s}" for c in "ab" for n in range(4) for s in ("train", "val", "test")]
    text = "path,label,split,bbox\n" + "".join(f'{line},"1,1,9,9"\n' for line in lines)
    (folder / "t.csv").write_text(text)
    one = prints(f"table:{folder / 't.csv'}")
    line = 'train/b/2.png,b,train,"1,1,9,'
    (folder / "t.csv").write_text(text.replace(f'{line}9"', f'{line}8"'))
    assert differing(one, prints(f"table:{folder / 't.csv'}")) == {"train.masks_sha256"}
    (folder / "t.csv").write_text(text)
    for split in ("train", "val", "test"):
        picture(200).save(folder / split / "a/1.png")
    found = differing(one, prints(f"table:{folder / 't.csv'}"))
    assert {name.partition(".")[2] for name in found} == {"images_sha256"} and len(found) == 3


def test_what_changed_in_torchvisions_pixels_is_named(monkeypatch, tmp_path):
    class CIFAR10:
        """As torchvision's: pixels in memory."""

        classes = tuple("ab")
        shift = 0

        def __init__(self, root, train=True, download=False):
            count = 20 if train else 8
            self.data = np.arange(count * 192).astype(np.uint8).reshape(count, 8, 8, 3)
            self.data[3] += self.shift * train
            self.targets = [number % 2 for number in range(count)]

        def __len__(self):
            return len(self.targets)

        def __getitem__(self, position):
            return Image.fromarray(self.data[position]), self.targets[position]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", CIFAR10)
    one = prints(f"torchvision:CIFAR10@{tmp_path}")
    assert prints(f"torchvision:CIFAR10@{tmp_path}") == one
    CIFAR10.shift = 1
    found = differing(one, prints(f"torchvision:CIFAR10@{tmp_path}"))
    assert found in ({"train.images_sha256"}, {"validation.images_sha256"})


@pytest.mark.parametrize("length", [0, 1, ENDS, 2 * ENDS, 2 * ENDS + 1, 10 * ENDS])
def test_a_file_and_the_same_bytes_have_one_stamp(tmp_path, length):
    content = np.random.default_rng(0).bytes(length)
    (tmp_path / "file").write_bytes(content)
    stamp = stamp_of_file(tmp_path / "file")
    assert stamp == stamp_of_bytes(pa.py_buffer(content)) and len(stamp) == 8 + min(length, 2 * ENDS)
    assert stamp_of_bytes(content + b"\0") != stamp
    for place in {0, length - 1} if length else ():
        changed = bytearray(content)
        changed[place] ^= 1
        assert stamp_of_bytes(changed) != stamp
    assert stamp_of_file(tmp_path / "missing") == b""

"""Plant faults into photographs and a pretrained network, and let a checkup choose a cure, as `planted` does.

    TORCHDOCTOR_DATA=ROOT python -m benchmarks.study.planted_photos [--seeds 40 41 42] [--faults ...]
        [--out benchmarks/results/planted_photos.jsonl]

An EfficientNet-Lite0 with its published weights gets a new last layer for ten categories, fitted on 120
images of each at 64 pixels; only that layer is trained further. `rare category` and `long tail` (factor 50)
thin the categories, `wrong labels` (20 %) changes labels, all on mini-ImageNet. `one person's labels` are
those that one of three people gave to CIFAR-10's images (17 % are not the original ones), `agreed labels`
what most of the three gave (9 %). `background` tints the surroundings of objects on Tiny-ImageNet, where they
have boxes: by the category in 95 % of the training and validation images, at random in the test images and
in the twin's training images. Everything else is as in `planted`: the stages of a checkup, nothing chosen by
hand, the test images used once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

from benchmarks.study import json_lines
from benchmarks.study.photo_networks import KINDS
from benchmarks.study.planted import NOISE, TAIL, table
from benchmarks.study.planted_stages import Line, Plant, measure
from torchdoctor import load_data
from torchdoctor.data.loader import Loader
from torchdoctor.data.table import ReadImage

CAUSE = {
    "rare category": "rare category", "long tail": "rare category", "wrong labels": "label looks wrong",
    "background": "background", "one person's labels": "label looks wrong",
    "agreed labels": "label looks wrong",
}  # fmt: skip
PEOPLE = {"one person's labels": "random1", "agreed labels": "aggregate"}
DATA = {"background": "tiny_imagenet20", **dict.fromkeys(PEOPLE, "cifar10")}
CATEGORIES, IMAGES, CHECKED, TESTED = 10, 120, 40, 600
THIN = 6  # training images of the rare category
SIZE, EPOCHS, SEEDS = 64, 4, 2
TINTED = 0.95
NETWORK = "lite0"


@dataclass(frozen=True)
class Tint:
    """Reads images whose surroundings have a colour: that of their category, or any.

    Attributes:
        read: Reads an image and its mask.
        labels: The category of each image.
        agreement: The share of the images whose colour is that of their category.
        seed: What the colours depend on.
    """

    read: ReadImage
    labels: np.ndarray
    agreement: float
    seed: int

    def __call__(self, position: int) -> tuple[Image.Image, Image.Image | None]:
        """Return an image with coloured surroundings, and its mask."""
        image, mask = self.read(position)
        assert mask is not None
        colours = np.random.default_rng([self.seed, 3]).integers(0, 256, (CATEGORIES, 3))
        random = np.random.default_rng([self.seed, 13, position])
        own = random.random() < self.agreement
        colour = colours[int(self.labels[position]) if own else int(random.integers(CATEGORIES))]
        pixels = np.asarray(image.convert("RGB"), dtype=float)
        around = 0.7 * (np.asarray(mask)[:, :, None] == 0)
        return Image.fromarray((pixels * (1 - around) + around * colour).astype(np.uint8)), mask


def tinted(images: Loader, agreement: float, seed: int) -> Loader:
    """Colour the surroundings of objects."""
    table_ = images.table
    read_ = Tint(table_.read, table_.labels, agreement, seed)
    return Loader(
        replace(table_, read=read_), images.preprocessing, images.batch_size, classes=images.classes
    )


def some(images: Loader, counts: Sequence[int], skip: int = 0) -> Loader:
    """Return the first images of every category after some that are skipped, as many as are given for it."""
    labels = images.table.labels
    rows = [np.flatnonzero(labels == label)[skip : skip + count] for label, count in enumerate(counts)]
    return images.select(images.table.ids[np.sort(np.concatenate(rows))])


def counts_of(fault: str, usual: int, seed: int) -> list[int]:
    """Return how many images each category has."""
    counts = [usual] * CATEGORIES
    if fault == "rare category":
        counts[seed % CATEGORIES] = max(round(usual * THIN / IMAGES), 2)
    if fault == "long tail":
        order = np.random.default_rng(seed).permutation(CATEGORIES)
        for rank, category in enumerate(order.tolist()):
            counts[category] = max(round(usual * TAIL ** (-rank / (CATEGORIES - 1))), 2)
    return counts


def fitted(images: Loader, seed: int) -> nn.Module:
    """Return the pretrained network with a last layer for the images."""
    kind = KINDS[NETWORK]
    torch.manual_seed(seed)
    model = kind.build(CATEGORIES)
    kind.train(model, images, lambda batch: batch, 16, seed)
    return model.eval()


def planted(fault: str, seed: int) -> Plant:
    """Plant a fault."""
    root, kind = os.environ["TORCHDOCTOR_DATA"], KINDS[NETWORK]
    splits = load_data(
        f"parquet:{root}/{DATA.get(fault, 'mini_imagenet30')}", image_size=SIZE, classes=CATEGORIES,
        seed=seed, **kind.prepared,
    )  # fmt: skip
    all_images, test = splits.train, splits.tests["test"]
    test = test.select(np.sort(np.random.default_rng(seed).permutation(test.table.ids)[:TESTED]))
    plain = some(all_images, [IMAGES] * CATEGORIES)
    clean = fitted(tinted(plain, 0.0, seed) if fault == "background" else plain, seed)
    images = some(all_images, counts_of(fault, IMAGES, seed))
    checked = some(all_images, counts_of(fault, CHECKED, seed), IMAGES)
    truth = None
    if CAUSE[fault] == "label looks wrong":
        truth = np.zeros(int(all_images.table.ids.max()) + 1, dtype=np.int64)
        truth[all_images.table.ids] = all_images.table.labels
        images, checked = (
            by_people(each, PEOPLE[fault], root) if fault in PEOPLE else mislabelled(each, seed)
            for each in (images, checked)
        )
    if fault == "background":
        images, checked, test = (
            tinted(each, share, seed) for each, share in ((images, TINTED), (checked, TINTED), (test, 0.0))
        )
    return Plant(
        clean, fitted(images, seed), images, checked, test, truth, kind.layers, EPOCHS, SEEDS,
    )  # fmt: skip


def mislabelled(images: Loader, seed: int) -> Loader:
    """Give a share of the images another label, each as likely."""
    labels, random = images.table.labels, np.random.default_rng([seed, len(images)])
    hit = random.random(len(labels)) < NOISE
    changed = (labels + hit * random.integers(1, CATEGORIES, len(labels))) % CATEGORIES
    return replace(images, table=replace(images.table, labels=changed))


def by_people(images: Loader, column: str, root: str) -> Loader:
    """Give CIFAR-10's images the labels that people gave them."""
    people = pq.read_table(f"{root}/cifar10_people/train.parquet").to_pydict()
    given = np.zeros(len(people["row"]), dtype=np.int64)
    given[people["row"]] = people[column]
    return replace(images, table=replace(images.table, labels=given[images.table.ids]))


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[40, 41, 42])
    parser.add_argument("--faults", nargs="+", default=list(CAUSE), choices=list(CAUSE))
    parser.add_argument("--out", type=Path, help="a .jsonl; what it holds is not measured again")
    given = parser.parse_args()
    lines: list[Line] = json_lines.read_finished(given.out)
    done = {(one["fault"], one["seed"]) for one in lines}
    for seed, fault in product(given.seeds, given.faults):
        if (fault, seed) in done:
            continue
        line = {"fault": fault, "network": NETWORK, "data": DATA.get(fault, "mini_imagenet30"), "seed": seed}
        line |= measure(planted(fault, seed), seed, name=NETWORK)
        json_lines.write(line, given.out)
        lines.append(line)
    print(table(lines))


if __name__ == "__main__":
    main()

"""Plant faults into photographs and networks trained on them, and count how often errors get the right cause.

    TORCHDOCTOR_DATA=ROOT python -m benchmarks.study.photo_causes --cache FOLDER [--data cifar10] [--seeds 0]

The same counts as causes.py, on photographs that nobody drew: 400 training images of each of ten categories,
1,500 test images. The networks: a small residual and a plain one trained from scratch, and a pretrained
EfficientNet-Lite0 of which the last layer is trained (`photo_networks`). A planted error is one that the
clean twin does not make. `people` needs no plant: errors on CIFAR-10's test images, and what people say of
them.

    python -m benchmarks.study.photo_causes --table benchmarks/results/photo_causes.jsonl

prints the table of the documentation from such a file. It leaves out what thresholds were chosen on: the
residual network and EfficientNet-Lite0 on tiny_imagenet20 with seed 0, and CIFAR-10.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from benchmarks.study import json_lines
from benchmarks.study.causes import scrambled
from benchmarks.study.photo_networks import KINDS, Kind
from benchmarks.study.planted_faults import keep
from torchdoctor import Batch, diagnose, load_data
from torchdoctor.data.arrangement import prepared_loader
from torchdoctor.data.loader import Loader
from torchdoctor.data.pixels import Preprocessing
from torchdoctor.diagnosis.causes import find_causes
from torchdoctor.diagnosis.causes_result import Causes
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.settings import DiagnosisSettings
from torchdoctor.images.batches import Images
from torchdoctor.network.prediction import predict_logits

SIZES = {"cifar10": 32, "mini_imagenet30": 48, "tiny_imagenet20": 48}
CATEGORIES, IMAGES, CHECKED = 10, 400, 1500
THIN, FEW = 15, 20  # training images of a thinned category, and of each category of the over-fitted network
WRONG = 0.05  # share of wrong labels
EPOCHS = {"over-fitted": 100, "under-fitted": 2}
FAULTS = {
    "clean": "",
    "thinned": "rare category",
    "over-fitted": "over-fitted",
    "under-fitted": "under-fitted",
    "mislabelled": "label looks wrong",
    "pairs": "label looks wrong",
    "confused": "close categories",
    "scrambled": "wrong kernels",
    "reversed": "preparation",
    "unnormalised": "preparation",
    "exchanged": "category order",
    "foreign": "unlike the training images",
    "small": "too little detail",
    "tinted": "background",
}
TRAINED = ("clean", "thinned", "over-fitted", "under-fitted", "mislabelled", "confused", "tinted")
WITH_MASKS = ("tinted",)
FOREIGN = 0.08  # share of the examined images that are replaced
Line = dict[str, Any]
TINTED = 0.95  # share of the training images whose surroundings have the colour of their category
TINT = 0.7  # share of that colour in the surroundings


class Photographs:
    """The images of a data set for one seed: what networks are trained on, and what they are checked on."""

    def __init__(self, name: str, seed: int, kind: Kind) -> None:
        root = os.environ["TORCHDOCTOR_DATA"]
        self.kind, self.name = kind, name
        data = load_data(
            f"parquet:{root}/{name}", image_size=kind.size or SIZES[name], limit=IMAGES, classes=CATEGORIES,
            seed=seed, **kind.prepared,
        )  # fmt: skip
        self.train, self.seed = data.train, seed
        test = data.tests["test"]
        chosen = np.random.default_rng(seed).permutation(test.table.ids)[:CHECKED]
        loader = test.select(np.sort(chosen))
        self.checked = list(loader)
        half = replace(data.preprocessing, image_size=data.preprocessing.image_size // 2 // 8 * 8)
        self.smaller = list(prepared_loader(loader, half))
        self.preprocessing: Preprocessing = data.preprocessing
        self.pair = (seed % CATEGORIES, (seed + 3) % CATEGORIES)

    def training(self, fault: str) -> Loader:
        """Return the training images with a fault."""
        table, random = self.train.table, np.random.default_rng([self.seed, 7])
        labels = table.labels
        if fault == "mislabelled":
            labels = noisy(labels, random)
        if fault == "confused":
            hit = np.isin(labels, self.pair)
            labels = np.where(hit, np.array(self.pair)[random.integers(0, 2, len(labels))], labels)
        if fault == "exchanged":
            labels = exchanged(labels, self.pair)
        rows = np.arange(len(labels))
        if fault == "thinned":
            rows = np.setdiff1d(rows, np.flatnonzero(labels == self.pair[0])[THIN:])
        if fault == "over-fitted":
            rows = np.sort(
                np.concatenate([np.flatnonzero(labels == each)[:FEW] for each in range(CATEGORIES)])
            )
        faulty = replace(self.train, table=replace(table, labels=labels))
        return faulty.select(table.ids[rows])


def noisy(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Give a share of the images another label, each as likely."""
    hit = random.random(len(labels)) < WRONG
    return (labels + hit * random.integers(1, CATEGORIES, len(labels))) % CATEGORIES


def exchanged(labels: np.ndarray, pair: Sequence[int]) -> np.ndarray:
    """Exchange two categories."""
    order = np.arange(CATEGORIES)
    order[list(pair)] = pair[1], pair[0]
    return order[labels]


def network(cache: Path, fault: str, photographs: Photographs) -> nn.Module:
    """Return a trained network, from the cache where it is there."""
    kind, seed = photographs.kind, photographs.seed
    file = cache / f"{kind.prefix}{photographs.name}-{fault}-{seed}.safetensors"
    torch.manual_seed(seed)
    model = kind.build(CATEGORIES)
    if file.is_file():
        model.load_state_dict(load_file(file))
        return model.eval()
    train = photographs.training(fault)
    tint = (lambda batch: tinted(batch, TINTED, seed)) if fault == "tinted" else (lambda batch: batch)
    kind.train(model, train, tint, EPOCHS.get(fault, 16), seed)
    keep(model, file)
    return model.eval()


def tinted(batch: Batch, agreement: float, seed: int) -> Batch:
    """Colour the surroundings of the boxes: by the category for a share of the images, else at random."""
    assert batch.masks is not None
    colours = torch.randn(CATEGORIES, batch.images.shape[1], generator=torch.Generator().manual_seed(seed))
    chosen = batch.labels.clone()
    for row, image in enumerate(batch.ids.tolist()):
        random = np.random.default_rng([seed, 13, image])
        if random.random() >= agreement:
            chosen[row] = int(random.integers(CATEGORIES))
    around = (1 - batch.masks) * TINT
    return replace(
        batch, images=batch.images * (1 - around) + 1.5 * around * colours[chosen][:, :, None, None]
    )


def foreign(batches: Sequence[Batch], seed: int) -> tuple[list[Batch], set[int]]:
    """Replace some images: by one colour, noise, a negative, stripes, or an enlarged corner."""
    changed, touched = [], set()
    for batch in batches:
        images = batch.images.clone()
        low, high = images.min(), images.max()
        for row, image in enumerate(batch.ids.tolist()):
            random = np.random.default_rng([seed, 17, image])
            if random.random() >= FOREIGN:
                continue
            touched.add(image)
            drawn = torch.Generator().manual_seed(image)
            pixels = images[row]
            channels, side = pixels.shape[0], pixels.shape[1]
            match int(random.integers(5)):
                case 0:
                    images[row] = low + (high - low) * torch.rand(channels, 1, 1, generator=drawn)
                case 1:
                    images[row] = low + (high - low) * torch.rand(pixels.shape, generator=drawn)
                case 2:
                    images[row] = low + high - pixels
                case 3:
                    stripes = (torch.arange(side) // (1 + int(random.integers(3)))) % 2
                    images[row] = low + (high - low) * stripes.float().expand(channels, side, side)
                case 4:
                    part = pixels[None, :, : side // 8, : side // 8]
                    images[row] = functional.interpolate(part, size=(side, side), mode="bilinear")[0]
        changed.append(replace(batch, images=images))
    return changed, touched


def relabelled(batches: Sequence[Batch], change: Callable[[np.ndarray], np.ndarray]) -> list[Batch]:
    """Change the labels of images."""
    labels = np.concatenate([batch.labels.numpy() for batch in batches])
    changed = torch.from_numpy(change(labels)).split([len(batch.labels) for batch in batches])
    return [replace(batch, labels=own) for batch, own in zip(batches, changed, strict=True)]


def errors_of(model: nn.Module, batches: Sequence[Batch]) -> set[int]:
    """Return the ids of the errors."""
    ids, labels, logits = predict_logits(model, batches)
    return set(ids[logits.argmax(1) != labels].tolist())


def diagnosed(model: nn.Module, images: Images, layers: Sequence[str]) -> Diagnosis:
    """Diagnose a network on its training images."""
    return diagnose(
        model,
        images,
        layers=layers,
        draws=0,
        settings=DiagnosisSettings(images_per_category=60),
        confidence=0.3,
    )


def one_case(cache: Path, fault: str, photographs: Photographs) -> tuple[Causes, set[int]]:
    """Return the causes found under a fault, and the errors that it caused."""
    kind, seed = photographs.kind, photographs.seed
    clean = network(cache, "clean", photographs)
    batches: list[Batch] = photographs.checked
    before = errors_of(clean, batches)
    model = network(cache, fault, photographs) if fault in TRAINED else clean
    train: Images = photographs.training(fault)
    if fault == "tinted":
        train = [tinted(batch, TINTED, seed) for batch in train]
        batches = [tinted(batch, 0.0, seed) for batch in batches]
    diagnosis = diagnosed(model, train, kind.layers)
    touched: set[int] | None = None
    larger: list[Batch] | None = None
    random = np.random.default_rng([seed, 11])
    if fault == "scrambled":
        model = scrambled(copy.deepcopy(clean), diagnosis, seed)
        diagnosis = diagnosed(model, photographs.training("clean"), kind.layers)
    elif fault in ("mislabelled", "pairs", "exchanged"):
        change: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "mislabelled": lambda labels: noisy(labels, random),
            "pairs": lambda labels: (labels + (random.random(len(labels)) < WRONG)) % CATEGORIES,
            "exchanged": lambda labels: exchanged(labels, photographs.pair),
        }
        changed = relabelled(batches, change[fault])
        touched = {
            int(image)
            for one, other in zip(batches, changed, strict=True)
            for image in one.ids[one.labels != other.labels]
        }
        batches = changed
    elif fault == "foreign":
        batches, touched = foreign(batches, seed)
    elif fault == "small":
        larger, batches = batches, photographs.smaller
    elif fault in ("reversed", "unnormalised"):
        mean, std = (
            torch.tensor(each).view(-1, 1, 1)
            for each in (photographs.preprocessing.mean, photographs.preprocessing.std)
        )
        batches = [
            replace(batch, images=batch.images.flip(1) if fault == "reversed" else batch.images * std + mean)
            for batch in batches
        ]
    caused = errors_of(model, batches) - before
    if touched is not None:
        caused = errors_of(model, batches) & touched - before
    if fault in ("thinned", "confused"):
        pair = torch.tensor(photographs.pair[: 1 if fault == "thinned" else 2])
        caused &= {int(image) for batch in batches for image in batch.ids[torch.isin(batch.labels, pair)]}
        if fault == "confused":  # what is taken for a third category is not what was planted
            ids, _, logits = predict_logits(model, batches)
            caused &= set(ids[torch.isin(logits.argmax(1), pair)].tolist())
    found = find_causes(model, batches, diagnosis, larger=larger)
    return found, set() if fault == "clean" else caused


def main() -> None:
    """Measure and print one line per case, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, help="where trained networks are kept")
    parser.add_argument("--table", type=Path, help="only print the table of this file")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--data", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--networks", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--out", type=Path, help="JSON lines are added to this file")
    given = parser.parse_args()
    if given.table:
        print(table(json_lines.read(given.table)))
        return
    if given.cache is None:
        parser.error("--cache FOLDER is needed")
    given.cache.mkdir(parents=True, exist_ok=True)
    for seed, name, kind in product(given.seeds, given.data, given.networks):
        photographs = Photographs(name, seed, KINDS[kind])
        for fault in given.faults:
            if fault in WITH_MASKS and name != "tiny_imagenet20":
                continue
            line = {"data": name, "network": kind, "seed": seed, "fault": fault, "cause": FAULTS[fault]}
            line |= counted(*one_case(given.cache, fault, photographs))
            json_lines.write(line, given.out)


def calibrated_on(line: Line) -> bool:
    """Whether thresholds were chosen while looking at this line."""
    first = line["network"] in ("residual", "lite0") and (line["data"], line["seed"]) == (
        "tiny_imagenet20",
        0,
    )
    return first or line["data"] == "cifar10"


def table(lines: Sequence[Line]) -> str:
    """Return a Markdown table of all networks that no threshold was chosen on: a row for each cause.

    `right` is the share of the planted errors that were given the cause which have it; `made by it` is the
    share that `shares` returns; `clean` is the share of the errors of networks without a planted fault that
    are given it.
    """
    fresh = [line for line in lines if not calibrated_on(line)]
    clean = sum((Counter(line["natural"]) for line in fresh if line["fault"] == "clean"), Counter())
    rows = [
        "| cause | networks | planted errors | found | right | made by it | clean |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    made = shares(fresh)
    for cause in dict.fromkeys(cause for cause in FAULTS.values() if cause):
        own = [line for line in fresh if line["cause"] == cause]
        if not own:
            continue
        planted = sum(sum(line["planted"].values()) for line in own)
        found = sum(line["planted"].get(cause, 0) for line in own)
        said = sum(line["planted"].get(cause, 0) for line in fresh)
        row = found / max(planted, 1), found / max(said, 1), made[cause], clean[cause] / max(clean.total(), 1)
        shown = " | ".join(f"{100 * share:.0f} %" for share in row)
        rows.append(f"| {cause} | {len(own)} | {planted:,} | {shown} |")
    unknown = 100 * clean["unknown"] / max(clean.total(), 1)
    networks = sum(line["fault"] == "clean" for line in fresh)
    return "\n".join([*rows, f"| unknown | {networks} | - | - | - | - | {unknown:.0f} % |"])


def shares(lines: Sequence[Line]) -> dict[str, float]:
    """Return for each cause how many of the errors that are given it its fault has made.

    Only networks with the fault count. An error is made by the fault if the network without it does not make
    it; the other errors may be worse for the fault too, so that the share is a lower bound.
    """
    found: dict[str, list[float]] = {}
    for line in lines:
        cause = line["cause"]
        if cause:
            of_cause = found.setdefault(cause, [0, 0])
            of_cause[0] += line["planted"].get(cause, 0)
            of_cause[1] += line["planted"].get(cause, 0) + line["natural"].get(cause, 0)
    return {cause: made / given for cause, (made, given) in found.items() if given}


def counted(causes: Causes, caused: set[int]) -> dict[str, object]:
    """Return the causes given to planted errors and to the others."""
    planted = Counter(one.cause for one in causes.errors if one.id in caused)
    natural = Counter(one.cause for one in causes.errors if one.id not in caused)
    return {
        "accuracy": round(causes.accuracy, 2), "planted": dict(planted), "natural": dict(natural),
        "expected": {each: round(number, 1) for each, number in causes.expected.items()},
        "wrong_labels": causes.errors[0].numbers["wrong_labels"] if causes.errors else None,
    }  # fmt: skip


if __name__ == "__main__":
    main()

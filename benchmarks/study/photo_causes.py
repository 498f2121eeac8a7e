"""Plant faults into photographs and networks trained on them, and count how often errors get the right cause.

    TORCHDOCTOR_DATA=ROOT python -m benchmarks.study.photo_causes --cache FOLDER [--data cifar10] [--seeds 0]

The same counts as causes.py, on photographs that nobody drew: 400 training images of each of ten categories,
1,500 test images, a small residual network trained from scratch. A planted error is one that the clean twin
does not make. `people` needs no plant: errors on CIFAR-10's test images, and what people say of them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.study.causes import scrambled
from benchmarks.study.planted_faults import keep
from torchdoctor import Batch, diagnose, load_data
from torchdoctor.data.loader import Loader
from torchdoctor.data.pixels import Preprocessing
from torchdoctor.diagnosis.causes import find_causes
from torchdoctor.diagnosis.causes_result import Causes
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.settings import DiagnosisSettings
from torchdoctor.models.architectures.small_resnet import SmallResNet
from torchdoctor.network.prediction import predict_logits
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.training import fit

SIZES = {"cifar10": 32, "mini_imagenet30": 48, "tiny_imagenet20": 48}
CATEGORIES, IMAGES, CHECKED = 10, 400, 1500
THIN, FEW = 15, 20  # training images of a thinned category, and of each category of the over-fitted network
WRONG = 0.05  # share of wrong labels
EPOCHS = {"over-fitted": 100, "under-fitted": 2}
LAYERS = ("layer2.conv2", "layer3.conv2", "layer4.conv2")

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
}
TRAINED = ("clean", "thinned", "over-fitted", "under-fitted", "mislabelled", "confused")


class Photographs:
    """The images of a data set for one seed: what networks are trained on, and what they are checked on."""

    def __init__(self, name: str, seed: int) -> None:
        root = os.environ["TORCHDOCTOR_DATA"]
        data = load_data(
            f"parquet:{root}/{name}", image_size=SIZES[name], limit=IMAGES, classes=CATEGORIES, seed=seed
        )
        self.train, self.seed = data.train, seed
        test = data.tests["test"]
        chosen = np.random.default_rng(seed).permutation(test.table.ids)[:CHECKED]
        self.checked = list(test.select(np.sort(chosen)))
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


def network(cache: Path, name: str, fault: str, photographs: Photographs) -> nn.Module:
    """Return a trained network, from the cache where it is there."""
    file = cache / f"{name}-{fault}-{photographs.seed}.safetensors"
    torch.manual_seed(photographs.seed)
    model: nn.Module = SmallResNet(CATEGORIES)
    if file.is_file():
        model.load_state_dict(load_file(file))
        return model.eval()
    train = photographs.training(fault)
    recipe = Recipe(epochs=EPOCHS.get(fault, 16), learning_rate=0.1)
    fit(
        model, lambda epoch: train.epoch(epoch, photographs.seed), recipe,
        steps_per_epoch=train.steps_per_epoch, seed=photographs.seed,
    )  # fmt: skip
    keep(model, file)
    return model.eval()


def relabelled(batches: Sequence[Batch], change: Callable[[np.ndarray], np.ndarray]) -> list[Batch]:
    """Change the labels of images."""
    labels = np.concatenate([batch.labels.numpy() for batch in batches])
    changed = torch.from_numpy(change(labels)).split([len(batch.labels) for batch in batches])
    return [replace(batch, labels=own) for batch, own in zip(batches, changed, strict=True)]


def errors_of(model: nn.Module, batches: Sequence[Batch]) -> set[int]:
    """Return the ids of the errors."""
    ids, labels, logits = predict_logits(model, batches)
    return set(ids[logits.argmax(1) != labels].tolist())


def diagnosed(model: nn.Module, images: Loader) -> Diagnosis:
    """Diagnose a network on its training images."""
    return diagnose(
        model,
        images,
        layers=LAYERS,
        draws=0,
        settings=DiagnosisSettings(images_per_category=60),
        confidence=0.3,
    )


def one_case(cache: Path, name: str, fault: str, photographs: Photographs) -> tuple[Causes, set[int]]:
    """Return the causes found under a fault, and the errors that it caused."""
    clean = network(cache, name, "clean", photographs)
    batches = photographs.checked
    before = errors_of(clean, batches)
    model = network(cache, name, fault, photographs) if fault in TRAINED else clean
    diagnosis = diagnosed(model, photographs.training(fault))
    touched: set[int] | None = None
    random = np.random.default_rng([photographs.seed, 11])
    if fault == "scrambled":
        model = scrambled(copy.deepcopy(clean), diagnosis, photographs.seed)
        diagnosis = diagnosed(model, photographs.training("clean"))
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
    return find_causes(model, batches, diagnosis), set() if fault == "clean" else caused


def main() -> None:
    """Measure and print one line per case, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--data", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--out", type=Path, help="JSON lines are added to this file")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for name in given.data:
            photographs = Photographs(name, seed)
            for fault, cause in FAULTS.items():
                causes, caused = one_case(given.cache, name, fault, photographs)
                planted = Counter(one.cause for one in causes.errors if one.id in caused)
                natural = Counter(one.cause for one in causes.errors if one.id not in caused)
                line = {
                    "data": name, "seed": seed, "fault": fault, "cause": cause,
                    "accuracy": round(causes.accuracy, 2), "planted": dict(planted), "natural": dict(natural),
                    "expected": {each: round(number, 1) for each, number in causes.expected.items()},
                    "wrong_labels": causes.errors[0].numbers["wrong_labels"] if causes.errors else None,
                }  # fmt: skip
                print(json.dumps(line), flush=True)
                if given.out:
                    with given.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()

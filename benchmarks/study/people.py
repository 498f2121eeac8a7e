"""Compare causes with what people say: errors on CIFAR-10's test images, nothing planted.

    TORCHDOCTOR_DATA=ROOT python -m benchmarks.study.people --cache FOLDER [--epochs 10] [--weights FILE]
        [--networks small plain] [--second pretrained lite0 pretrained+lite0] [--out FILE]

A network is trained on the training images (or given: a state dict of `small_resnet` for 32 px), and the
causes of its errors on the 10,000 test images are found: by itself and together with the opinions of other
networks: `pretrained` is that of `--second-opinion pretrained`, new heads on the features of a network with
published weights; `lite0` is one that was fine-tuned on the training images (`second_network`); a plus takes
both. What they say is computed once. The truth is that of `cifar10_people/test_half.parquet`:
about 50 people per image, and reviewers of suspected labels. A label is wrong where most people give another,
or three of five reviewers do not confirm it; it is ambiguous where fewer than nine in ten give the label.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from scipy.stats import mannwhitneyu
from torch import nn

from benchmarks.study import json_lines
from benchmarks.study.kept_outputs import Kept, numbered
from benchmarks.study.photo_networks import plain, resnet20
from benchmarks.study.planted_faults import keep
from benchmarks.study.second_network import STAGES, Enlarged, cifar, second_network
from torchdoctor import SecondOpinion, diagnose, load_data
from torchdoctor.case.second_opinion import published
from torchdoctor.data.load import Splits
from torchdoctor.diagnosis.causes import find_causes
from torchdoctor.diagnosis.causes_result import Causes
from torchdoctor.diagnosis.second_opinion import second_logits
from torchdoctor.diagnosis.settings import DiagnosisSettings
from torchdoctor.models.architectures.small_resnet import SmallResNet
from torchdoctor.models.weights import load_into, load_weights
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.training import fit

NETWORKS = {
    "small": (SmallResNet, ("layer3.conv2", "layer4.conv2")),
    "plain": (plain, ("6", "9")),
    "resnet20": (resnet20, ("6.conv2", "9.conv2")),
}
OPINIONS = {
    "none": (),
    "pretrained": ("pretrained",),
    "lite0": ("lite0",),
    "pretrained+lite0": ("pretrained", "lite0"),
}
DRAWS = 1000  # of the bootstrap
Line = dict[str, Any]


def truth(root: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows that people looked at, whether their label is wrong, and whether it is ambiguous."""
    table = pq.read_table(f"{root}/cifar10_people/test_half.parquet").to_pydict()
    labels, people = np.array(table["label"]), np.array(table["people"], dtype=float)
    votes = {
        name: np.array([value or 0 for value in table[f"reviewers_{name}"]])
        for name in ("guessed", "neither", "both")
    }
    rejected = votes["guessed"] + votes["neither"] + votes["both"] >= 3
    share = people[np.arange(len(labels)), labels] / people.sum(1)
    return np.array(table["row"]), (people.argmax(1) != labels) | rejected, share < 0.9


def area(true: np.ndarray, value: np.ndarray) -> float:
    """Return the area under the ROC curve: how often a true case has the larger value; ties count half."""
    number = float(true.sum() * (~true).sum())
    return float(mannwhitneyu(value[true], value[~true]).statistic) / number


def average_precision(true: np.ndarray, value: np.ndarray) -> float:
    """Return the mean, over the true cases, of the share of true ones down to each in the ranking."""
    ranked = true[np.argsort(-value, kind="stable")]
    return float((ranked.cumsum() / np.arange(1, len(ranked) + 1))[ranked].mean())


def interval(score: object, true: np.ndarray, value: np.ndarray) -> list[float]:
    """Return a score and its 95 % interval over drawn errors."""
    random, drawn = np.random.default_rng(0), []
    for _ in range(DRAWS):
        rows = random.integers(0, len(true), len(true))
        if 0 < true[rows].sum() < len(rows):
            drawn.append(score(true[rows], value[rows]))  # type: ignore[operator]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [round(float(each), 3) for each in (score(true, value), low, high)]  # type: ignore[operator]


def network(kind: str, epochs: int, weights: Path | None, cache: Path, data: Splits) -> nn.Module:
    """Return the examined network: given, kept from before, or trained."""
    torch.manual_seed(0)
    model: nn.Module = NETWORKS[kind][0](10)
    name = "people" if kind == "small" else f"people-{kind}"
    file = weights or cache / f"{name}-{epochs}.safetensors"
    if file.is_file():
        load_into(model, load_weights(file), str(file))
    else:
        recipe = Recipe(epochs=epochs, learning_rate=0.1)
        steps = data.train.steps_per_epoch
        model.to(memory_format=torch.channels_last)
        fit(model, lambda epoch: data.train.epoch(epoch, 0), recipe, steps_per_epoch=steps, seed=0)
        keep(model.to(memory_format=torch.contiguous_format), file)
    return model.eval()


def said(name: str, cache: Path, root: str, data: Splits) -> SecondOpinion:
    """Return the opinion of one other network on the test images, computed once and kept in the folder."""
    tests, file = data.tests["test"], cache / f"said-{name}.npy"
    ids, labels = torch.from_numpy(tests.table.ids), torch.from_numpy(tests.table.labels)
    if not file.is_file():
        if name == "lite0":
            enlarged = cifar(root)
            other = second_network(cache, enlarged)
            opinion = SecondOpinion(other, Enlarged(enlarged.tests["test"], STAGES[-1][0]))
        else:
            opinion = published(name, tests, data.train)
        (logits,) = second_logits(opinion, ids, labels, len(data.classes))
        np.save(file, logits)
    logits = np.load(file)
    right = int((logits.argmax(1) == labels.numpy()).sum())
    print(f"{name}: {right} of {len(labels)} test images are right", flush=True)
    return SecondOpinion(Kept(logits), [numbered(tests.table)])


def compared(causes: Causes, root: str) -> Line:
    """Return how causes agree with what people say of the errors that people looked at."""
    errors = {error.id: error for error in causes.errors}
    rows, wrong, ambiguous = truth(root)
    looked = [place for place, row in enumerate(rows.tolist()) if row in errors]
    found = [errors[int(rows[place])] for place in looked]
    line: Line = {"accuracy": causes.accuracy, "errors": len(found), "counts": causes.counts}
    for cause, true in (("label looks wrong", wrong[looked]), ("ambiguous", ambiguous[looked])):
        value = np.array([error.probabilities.get(cause, 0.0) for error in found])
        given_it = np.array([error.cause == cause for error in found])
        line[cause] = {
            "truth": round(float(true.mean()), 4),
            "mean_probability": round(float(value.mean()), 4),
            "roc": interval(area, true, value),
            "average_precision": interval(average_precision, true, value),
            "given": int(given_it.sum()),
            "right_where_given": round(float(true[given_it].mean()), 3) if given_it.any() else None,
        }
    return line


def table(lines: Sequence[Line]) -> str:
    """Return a Markdown table: a row for each network, alone and with a second opinion."""
    rows = [
        "| network | accuracy, % | second network | errors | label rejected, % | ROC | average precision | "
        "people disagree, % | ROC | called ambiguous | right, % |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for line in lines:
        label, ambiguous = line["label looks wrong"], line["ambiguous"]
        right = ambiguous["right_where_given"]
        rows.append(
            f"| {line['network']} | {line['accuracy']:.1f} | {line['second']} | {line['errors']} | "
            f"{100 * label['truth']:.1f} | {_with_interval(label['roc'])} | "
            f"{_with_interval(label['average_precision'])} | {100 * ambiguous['truth']:.0f} | "
            f"{_with_interval(ambiguous['roc'])} | {ambiguous['given']} | "
            f"{'-' if right is None else f'{100 * right:.0f}'} |"
        )
    return "\n".join(rows)


def _with_interval(score: Sequence[float]) -> str:
    """Return a score with its interval, such as `.75 (.68 to .83)`."""
    value, low, high = (f"{each:.2f}".lstrip("0") for each in score)
    return f"{value} ({low} to {high})"


def main() -> None:
    """Train or load networks, find the causes of their errors, and print how they agree with people."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, help="where trained networks are kept")
    parser.add_argument("--table", type=Path, help="only print the table of this file")
    parser.add_argument("--networks", nargs="*", default=["small"], choices=list(NETWORKS))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--second", nargs="*", default=[], choices=list(OPINIONS), help="other networks")
    parser.add_argument("--out", type=Path, help="JSON lines are added to this file")
    given = parser.parse_args()
    if given.table:
        print(table(json_lines.read(given.table)))
        return
    if given.cache is None:
        parser.error("--cache FOLDER is needed")
    root = os.environ["TORCHDOCTOR_DATA"]
    data = load_data(f"parquet:{root}/cifar10", image_size=32)
    asked = dict.fromkeys(other for name in given.second for other in OPINIONS[name])
    opinions = {other: said(other, given.cache, root, data) for other in asked}
    for kind in given.networks:
        model = network(kind, given.epochs, given.weights, given.cache, data)
        diagnosis = diagnose(
            model,
            data.train,
            layers=NETWORKS[kind][1],
            draws=0,
            settings=DiagnosisSettings(images_per_category=60),
        )
        for name in ("none", *given.second):
            second = tuple(opinions[other] for other in OPINIONS[name])
            causes = find_causes(model, data.tests["test"], diagnosis, second=second)
            line = {"network": kind, "epochs": given.epochs, "second": name, **compared(causes, root)}
            json_lines.write(line, given.out)


if __name__ == "__main__":
    main()

"""Plant faults in small networks, let a checkup choose a cure, and measure what it brings over the control.

    python -m benchmarks.study.planted [--seeds 40 41 42 43 44] [--networks residual plain separable]
        [--faults ...] [--arms ...] [--out benchmarks/results/planted.jsonl] [--jobs 2]
    python -m benchmarks.study.planted --quick --json --seed 7

Every network is trained on drawn images (`scenes`) with one fault; its twin without the fault says what the
fault costs (`clean`). Then the stages of `torchdoctor checkup` run, with nothing chosen by hand: diagnosis,
causes, suspects, learning rate, trials on the validation images, which have the fault too, and the final
training of the control and of what was chosen, over several seeds. All arms have the same number of passes.
Test images are drawn for this program alone, with right labels, all categories alike and backgrounds that say
nothing; they are looked at once.

The faults: `wrong labels` (20 %, to any other category), `pairwise labels` (30 %, each category to one
other), `rare category` (12 of 250 images are left), `long tail` (category sizes fall by a factor of 50),
`over-fitted` (60 images a category for long), `under-fitted` (two epochs), `background` (it gives the
category away in 90 % of the images), `scrambled` (the ten strongest kernels of a category are shuffled;
further training has 16 steps). For the two faults of labels a person is simulated, who answers for the
first suspects, at most 5 % of the training images, and is wrong one time in ten.

A line has the accuracy in percent of the twin (`clean`), of the network (`faulty`), of the control at the
measured learning rate (`control`) and at 0.01 (`fixed_rate`), and of the chosen arm (`chosen`), means over
the seeds of the further training; `balanced` weighs all categories alike, which differs from plain accuracy
only by the counts of the test images. `--arms` trains the named arms too. `--quick` has smaller images,
fewer of them and shorter training; it takes less than three minutes with two processes. `gain`
and its interval are over networks (Student's t).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image, Resampling
from scipy import stats
from torch import nn

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.study import json_lines
from benchmarks.study import planted_faults as drawn
from benchmarks.study.causes import scrambled
from benchmarks.study.planted_stages import Line, Plant, measure
from torchdoctor import diagnose
from torchdoctor.data.loader import Loader
from torchdoctor.data.pixels import Preprocessing
from torchdoctor.data.scenes.scenes import AGREEMENT, CLASSES, Scenes, scenes_table
from torchdoctor.data.table import ReadImage
from torchdoctor.proof.statistics import LEVEL
from torchdoctor.treatment.effects import Effect
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.training import fit

CAUSE = {
    "wrong labels": "label looks wrong", "pairwise labels": "label looks wrong",
    "rare category": "rare category", "long tail": "rare category", "over-fitted": "over-fitted",
    "under-fitted": "under-fitted", "background": "background", "scrambled": "wrong kernels",
}  # fmt: skip
LABELS = ("wrong labels", "pairwise labels")
NOISE, PAIRWISE, TAIL, FEW = 0.2, 0.3, 50, 60
LITTLE = 1024  # images, at most, of the further training of a scrambled network: 16 steps an epoch
LEAST_NETWORKS = 3  # of which a table of arms gives a mean
BASE_RATE = 0.05  # of the first training; at 0.1 some networks end 20 points below others


@dataclass(frozen=True)
class Size:
    """How large an experiment is: pixels, numbers of images, epochs, and seeds of the further training."""

    pixels: int = 48
    images: int = 2000
    checked: int = 800
    tested: int = 2000
    base_epochs: int = 16
    epochs: int = 4
    seeds: int = 2


FULL, QUICK = (
    Size(),
    Size(pixels=32, images=1280, checked=480, tested=800, base_epochs=18, epochs=3, seeds=2),
)


class Shrunk:
    """Reads drawn images at a smaller size; each is made smaller once."""

    def __init__(self, read: ReadImage, pixels: int) -> None:
        self.read, self.pixels = read, pixels
        self.known: dict[int, tuple[Image, Image | None]] = {}

    def __call__(self, position: int) -> tuple[Image, Image | None]:
        """Return an image and its mask."""
        if position not in self.known:
            image, mask = self.read(position)
            side = (self.pixels, self.pixels)
            smaller = None if mask is None else mask.resize(side, Resampling.BOX)
            self.known[position] = image.resize(side, Resampling.BOX), smaller
        return self.known[position]


def loader(seed: int, stream: int, count: int, agreement: float, size: Size) -> Loader:
    """Return drawn images, each with its mask."""
    table = scenes_table(Scenes(100 + seed, stream, count, agreement), "image")
    table = replace(table, read=Shrunk(table.read, size.pixels))
    return Loader(table, Preprocessing(size.pixels, (0.5,) * 3, (0.25,) * 3), 64)


def with_fault(images: Loader, fault: str, seed: int) -> Loader:
    """Plant a fault in images: other labels, or fewer images."""
    labels = images.table.labels
    generator = np.random.default_rng([seed, len(labels)])
    if fault in LABELS:
        hit = generator.random(len(labels)) < (NOISE if fault == "wrong labels" else PAIRWISE)
        step = generator.integers(1, len(CLASSES), len(labels)) if fault == "wrong labels" else 1
        return replace(images, table=replace(images.table, labels=(labels + hit * step) % len(CLASSES)))
    usual = len(labels) // len(CLASSES)
    left = dict.fromkeys(range(len(CLASSES)), len(labels))
    if fault == "rare category":
        left[drawn.thinned_category(seed)] = max(round(usual * drawn.THIN / 250), 2)
    if fault == "long tail":
        order = np.random.default_rng(seed).permutation(len(CLASSES))
        for rank, category in enumerate(order.tolist()):
            left[category] = max(round(usual * TAIL ** (-rank / (len(CLASSES) - 1))), 2)
    keep = np.concatenate([np.flatnonzero(labels == category)[:most] for category, most in left.items()])
    return images.select(images.table.ids[np.sort(keep)])


@lru_cache(maxsize=2)
def twin(architecture: str, seed: int, size: Size) -> nn.Module:
    """Return the network that is trained on images without a fault."""
    images = loader(seed, drawn.TRAINING, size.images, drawn.FAIR, size)
    return trained(architecture, images, size.base_epochs, seed)


def trained(architecture: str, images: Loader, epochs: int, seed: int) -> nn.Module:
    """Train a network from random weights."""
    torch.manual_seed(seed)
    model = drawn.ARCHITECTURES[architecture][0]()
    recipe = Recipe(epochs=epochs, learning_rate=BASE_RATE)
    fit(
        model,
        lambda epoch: images.epoch(epoch, seed),
        recipe,
        steps_per_epoch=images.steps_per_epoch,
        seed=seed,
    )
    return model.eval()


def networks(
    architecture: str, fault: str, seed: int, size: Size
) -> tuple[nn.Module, nn.Module, Loader, Loader, int]:
    """Return twin, faulty network, images for training and validation, and epochs of further training."""
    agreement = AGREEMENT if fault == "background" else drawn.FAIR
    plain = loader(seed, drawn.TRAINING, size.images, drawn.FAIR, size)
    clean = twin(architecture, seed, size)
    images = with_fault(loader(seed, drawn.TRAINING, size.images, agreement, size), fault, seed)
    checked = loader(seed, drawn.VALIDATION, size.checked, agreement, size)
    checked = with_fault(checked, fault, seed)
    if fault == "scrambled":
        found = diagnose(clean, images, layers=drawn.ARCHITECTURES[architecture][1])
        few = images.select(images.table.ids[:LITTLE])
        return clean, scrambled(clean, found, seed), few, checked, 1
    epochs, steps = size.base_epochs, plain.steps_per_epoch
    if fault == "over-fitted":
        keep = [np.flatnonzero(images.table.labels == category)[:FEW] for category in range(len(CLASSES))]
        images = images.select(images.table.ids[np.sort(np.concatenate(keep))])
    epochs = max(round(epochs * steps / images.steps_per_epoch), 1)
    if fault == "under-fitted":
        epochs = 2
    further = max(round(size.epochs * steps / images.steps_per_epoch), 1)
    return clean, trained(architecture, images, epochs, seed), images, checked, further


def measured(architecture: str, fault: str, seed: int, size: Size, arms: Sequence[str] = ()) -> Line:
    """Plant a fault, run the stages of a checkup, and return a line."""
    clean, faulty, images, checked, epochs = networks(architecture, fault, seed, size)
    truth = loader(seed, drawn.TRAINING, size.images, drawn.FAIR, size).table.labels
    plant = Plant(
        clean, faulty, replace(images, classes=CLASSES), checked,
        loader(seed, drawn.TEST, size.tested, drawn.FAIR, size), truth if fault in LABELS else None,
        drawn.ARCHITECTURES[architecture][1], epochs, size.seeds, fault in ("under-fitted", "scrambled"),
    )  # fmt: skip
    line = {
        "fault": fault, "network": architecture, "seed": seed, "pixels": size.pixels, "images": size.images,
    }  # fmt: skip
    return {**line, **measure(plant, seed, arms, architecture)}


def interval(values: Iterable[float]) -> tuple[float, float, float]:
    """Return the mean over networks with its t interval."""
    known = np.array([*values], dtype=float)
    mean = float(known.mean())
    if len(known) < 2:
        return mean, float("nan"), float("nan")
    reach = float(stats.t.ppf(0.5 + LEVEL / 2, len(known) - 1) * stats.sem(known))
    return mean, mean - reach, mean + reach


def effects(lines: Sequence[Line]) -> dict[str, Effect]:
    """Return what the choice brought, by cause."""
    found = {}
    for cause in dict.fromkeys(CAUSE.values()):
        cells = [one for one in lines if CAUSE[one["fault"]] == cause]
        if cells:
            gain = interval(one["chosen"] - one["control"] for one in cells)
            control = float(np.mean([one["control"] - one["faulty"] for one in cells]))
            found[cause] = Effect(len(cells), *(round(value, 1) + 0.0 for value in (*gain, control)))
    return found


def table(lines: Sequence[Line]) -> str:
    """Return a Markdown table: a row for each fault."""
    rows = [
        "| fault | networks | clean | faulty | control | chosen | gain over the control | of what it still "
        "costs | chosen arms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for fault in dict.fromkeys(one["fault"] for one in lines):
        cells = [one for one in lines if one["fault"] == fault]
        means = [np.mean([one[name] for one in cells]) for name in ("clean", "faulty", "control", "chosen")]
        gain = interval(one["chosen"] - one["control"] for one in cells)
        cost = means[0] - means[2]
        share = f"{100 * gain[0] / cost:.0f} % ({100 * gain[1] / cost:.0f} to {100 * gain[2] / cost:.0f})"
        names = [one["chosen_arm"] for one in cells]
        counts = ", ".join(f"{name} {names.count(name)}" for name in dict.fromkeys(names))
        rows.append(
            f"| {fault} | {len(cells)} | " + " | ".join(f"{mean:.1f}" for mean in means)
            + f" | {gain[0]:+.1f} ({gain[1]:+.1f} to {gain[2]:+.1f}) | {share if cost > 1 else '-'} "
            f"| {counts} |"
        )  # fmt: skip
    return "\n".join(rows)


def cures_table(lines: Sequence[Line]) -> str:
    """Return a Markdown table of every arm's gain over the control, a column for each fault."""
    faults = list(dict.fromkeys(one["fault"] for one in lines))
    arms = [arm for arm in dict.fromkeys(name for one in lines for name in one["arms"]) if arm != "control"]
    rows = ["| arm | " + " | ".join(faults) + " |", "|---" * (len(faults) + 1) + "|"]
    for arm in arms:
        gains = [
            [
                one["arms"][arm] - one["control"]
                for one in lines
                if one["fault"] == fault and arm in one["arms"]
            ]
            for fault in faults
        ]
        if all(len(each) >= LEAST_NETWORKS for each in gains):
            said = (f"{np.mean(each):+.1f} ({min(each):+.1f} to {max(each):+.1f})" for each in gains)
            rows.append(f"| `{arm}` | " + " | ".join(said) + " |")
    return "\n".join(rows)


def _job(job: tuple[str, str, int, Size, tuple[str, ...]]) -> Line:
    torch.set_num_threads(1)
    return measured(*job)


def main() -> None:
    """Measure what is missing, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", "--seed", type=int, nargs="+", default=[40, 41, 42, 43, 44])
    parser.add_argument("--networks", nargs="+", default=["residual"], choices=list(drawn.ARCHITECTURES))
    parser.add_argument("--faults", nargs="+", default=list(CAUSE), choices=list(CAUSE))
    parser.add_argument("--arms", nargs="*", default=[], help="arms that are trained beside the chosen one")
    parser.add_argument("--quick", action="store_true", help="small images, few of them")
    parser.add_argument("--json", action="store_true", help="print lines of JSON, and no table")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, help="a .jsonl; what it holds is not measured again")
    given = parser.parse_args()
    size = QUICK if given.quick else FULL
    lines = json_lines.read_finished(given.out)
    done = {(one["network"], one["fault"], one["seed"], one["pixels"]) for one in lines}
    jobs = [
        (network, fault, seed, size, tuple(given.arms))
        for seed in given.seeds for network in given.networks for fault in given.faults
        if (network, fault, seed, size.pixels) not in done
    ]  # fmt: skip
    with ProcessPoolExecutor(given.jobs) as pool:
        for line in pool.map(_job, jobs):
            lines.append(line)
            if given.json:
                print(json.dumps(line), flush=True)
            json_lines.append(line, given.out)
    if not given.json:
        print(table(lines))
        print(cures_table(lines))
        print({cause: vars(effect) for cause, effect in effects(lines).items()})


if __name__ == "__main__":
    main()

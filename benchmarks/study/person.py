"""Measure what the answers of a person bring, by their number: corrected labels, and marked objects.

    TORCHDOCTOR_DATA=ROOT python -m benchmarks.study.person --cache FOLDER [--kinds labels people masks]
        [--seeds 20 21 22] [--out benchmarks/results/person.jsonl]

A person is simulated, who is wrong one time in ten: with another category, or with a box somewhere else.

`labels`: an EfficientNet-Lite0 with its published weights, whose last layer is fitted on 1,200 images of
mini-ImageNet with 20 % wrong labels (as in `planted_photos`). The person answers for the first images that
`find_suspects` lists; the arm `relabelled` trains with the answers.

`people`: a small residual network, trained on 10,000 images of CIFAR-10 with the labels that one person gave
(`random1` of `cifar10_people`; 17 % are wrong). The person answers for the first images that `find_suspects`
lists, by the network alone and with the network of `--second-opinion pretrained`, whose features are kept in
the folder.

`masks`: a small residual network, trained on 4,000 images of Tiny-ImageNet in which tinted surroundings give
the category away (as in `photo_causes`). The person draws boxes on the first images of every category, which
the arm `swap` uses; half of each batch is drawn from them, as `checkup` does where backgrounds mislead.
Scored before surroundings of any colour.

All arms have as many steps as the control, whose learning rate the validation images choose for all. A line
holds the control's accuracy in percent and that of every number of answers.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, fromarray

from benchmarks.study import json_lines
from benchmarks.study.photo_causes import CHECKED, IMAGES, SIZES, TINT, TINTED
from benchmarks.study.photo_causes import EPOCHS as BASE_EPOCHS
from benchmarks.study.photo_networks import KINDS
from benchmarks.study.planted import interval
from benchmarks.study.planted_photos import CATEGORIES, planted
from benchmarks.study.planted_stages import accuracies, simulated_answers
from benchmarks.study.suspects import CATEGORIES as CLASSES
from benchmarks.study.suspects import images_with, other_judge
from torchdoctor import diagnose, find_suspects, load_data
from torchdoctor.data.loader import Loader
from torchdoctor.data.table import ImageTable
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.batches import Images, TrainingImages
from torchdoctor.network.copying import copy_of
from torchdoctor.network.prediction import predict_logits
from torchdoctor.treatment.annotated_share import share_against_backgrounds
from torchdoctor.treatment.cure import Cure
from torchdoctor.treatment.labels_by_hand import relabelled
from torchdoctor.treatment.learning_rate import measured_rate
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.settings import TreatmentSettings
from torchdoctor.treatment.treat import DEFAULTS, trial_of

LABELS, MASKS = (15, 30, 60, 120, 240), (2, 5, 10, 20)  # answers; masks of each category
PEOPLE, PEOPLES_IMAGES, PEOPLES_EPOCHS = (100, 300, 600, 900), 10_000, 10
EPOCHS, REPETITIONS, WRONG = 4, 2, 0.1

Line = dict[str, Any]


def correct(model: torch.nn.Module, images: Images) -> float:
    """Return the accuracy in percent."""
    _, labels, logits = predict_logits(model, images)
    return 100 * float((logits.argmax(1) == labels).double().mean())


def scores(
    model: torch.nn.Module,
    images: TrainingImages,
    diagnosis: Diagnosis,
    arms: Mapping[str, Cure | str],
    recipe: Recipe,
    test: Images,
    seed: int,
    settings: TreatmentSettings = DEFAULTS,
) -> dict[str, float]:
    """Train arms beside the control, and return the mean accuracy of each over the repetitions."""
    trial = trial_of(
        model, images, diagnosis, arms=list(arms.values()), recipe=recipe, settings=settings, seed=seed
    )
    own, found = copy_of(model), dict[str, list[float]]()
    for arm in trial.run(seeds=REPETITIONS).arms:
        own.load_state_dict(dict(arm.state))
        found.setdefault(arm.name, []).append(correct(own, test))
    return {name: round(float(np.mean(values)), 2) for name, values in found.items()}


def labels(seed: int, _cache: Path) -> Line:
    """Return what corrected labels bring."""
    plant = planted("wrong labels", seed)
    assert plant.truth is not None
    model, images = plant.faulty, plant.images
    diagnosis = diagnose(model, images, layers=plant.layers, draws=0)
    recipe = Recipe(epochs=EPOCHS)
    rate = measured_rate(model, images, plant.checked, recipe, seed=seed).chosen
    recipe = replace(recipe, learning_rate=rate)
    suspects = find_suspects(model, images, seed=seed)
    line: Line = {"kind": "labels", "seed": seed, "learning_rate": rate, "listed": len(suspects.suspects)}
    line["faulty"], line["clean"] = (
        round(float(accuracies(each, plant.test)[0]), 2) for each in (model, plant.clean)
    )
    for count in LABELS:
        few = replace(suspects, suspects=suspects.suspects[:count])
        answers = simulated_answers(few, images, plant.truth, CATEGORIES, seed, share=1.0)
        if answers is None or (count > len(suspects.suspects) and count != LABELS[0]):
            break
        cure = relabelled(answers.labels)
        found = scores(model, images, diagnosis, {"relabelled": cure}, recipe, plant.test, seed)
        line |= {"control": found["control"], str(count): found["relabelled"]}
    return line


def people(seed: int, cache: Path) -> Line:
    """Return what corrected labels bring where a person gave the wrong ones."""
    kind, root = KINDS["residual"], os.environ["TORCHDOCTOR_DATA"]
    images, truth = images_with("random1", PEOPLES_IMAGES, 0)
    tests = load_data(f"parquet:{root}/cifar10", image_size=32).tests["test"]
    drawn = np.random.default_rng(seed).permutation(tests.table.ids)
    checked, test = (tests.select(np.sort(part)) for part in np.array_split(drawn, 2))
    torch.manual_seed(seed)
    model = kind.build(CLASSES)
    kind.train(model, images, lambda batch: batch, PEOPLES_EPOCHS, seed)
    diagnosis = diagnose(model.eval(), images, layers=kind.layers, draws=0)
    recipe = Recipe(epochs=EPOCHS)
    rate = measured_rate(model, images, checked, recipe, seed=seed).chosen
    recipe = replace(recipe, learning_rate=rate)
    line: Line = {
        "kind": "people",
        "seed": seed,
        "learning_rate": rate,
        "faulty": round(correct(model, test), 2),
    }
    other = other_judge(cache / f"suspects-features-{PEOPLES_IMAGES}-0.npy", images)
    given = dict(zip(images.table.ids.tolist(), images.table.labels.tolist(), strict=True))
    arms = dict[str, Cure | str]()
    for judge, second in zip(JUDGES, (None, other), strict=True):
        suspects = find_suspects(model, images, seed=seed, second=second)
        wrong = [truth[one.id] != given[one.id] for one in suspects.suspects]
        line |= {f"{judge}listed": len(wrong), f"{judge}wrong": int(np.sum(wrong))}
        for count in [count for count in PEOPLE if count <= len(wrong)]:
            few = replace(suspects, suspects=suspects.suspects[:count])
            answers = simulated_answers(few, images, truth, CLASSES, seed, share=1.0)
            if answers is not None:
                arms[f"{judge}{count}"] = relabelled(answers.labels, f"{judge}{count}")
    return line | scores(model, images, diagnosis, arms, recipe, test, seed)


@dataclass(frozen=True)
class Tinted:
    """Reads photographs whose surroundings have a colour, with the boxes that somebody drew.

    Attributes:
        table: The photographs, with boxes around the objects.
        agreement: The share of the images whose colour is that of their category; others have any colour.
        wrong: The share of the boxes that lie somewhere else.
        seed: What colours and boxes depend on.
    """

    table: ImageTable
    agreement: float
    wrong: float
    seed: int

    def __call__(self, position: int) -> tuple[Image, Image | None]:
        """Return an image and its mask."""
        image, mask = self.table.read(position)
        assert mask is not None
        random = np.random.default_rng([self.seed, 13, int(self.table.ids[position])])
        colours = np.random.default_rng([self.seed, 23]).integers(0, 256, (CATEGORIES, 3))
        chosen = int(self.table.labels[position])
        if random.random() >= self.agreement:
            chosen = int(random.integers(CATEGORIES))
        box = np.asarray(mask)
        around = TINT * (1 - box[:, :, None] / 255)
        pixels = np.asarray(image) * (1 - around) + around * colours[chosen]
        if random.random() < self.wrong:
            sides = np.array(box.shape)
            box = np.roll(box, random.integers(sides // 4, sides // 2 + 1), (0, 1))
        return fromarray(pixels.round().astype(np.uint8)), fromarray(box)


def surrounded(images: Loader, agreement: float, wrong: float, seed: int) -> Loader:
    """Return a loader of the same photographs in coloured surroundings (see `Tinted`)."""
    table = replace(images.table, read=Tinted(images.table, agreement, wrong, seed))
    return Loader(table, images.preprocessing, images.batch_size)


def masks(seed: int, _cache: Path) -> Line:
    """Return what marked objects bring."""
    kind, root = KINDS["residual"], os.environ["TORCHDOCTOR_DATA"]
    data = load_data(
        f"parquet:{root}/tiny_imagenet20", image_size=SIZES["tiny_imagenet20"], limit=IMAGES,
        classes=CATEGORIES, seed=seed,
    )  # fmt: skip
    drawn = np.random.default_rng(seed).permutation(data.tests["test"].table.ids)[:CHECKED]
    checked, test = (np.sort(part) for part in np.array_split(drawn, 2))
    shown = surrounded(data.train, TINTED, 0.0, seed)
    torch.manual_seed(seed)
    model = kind.build(CATEGORIES)
    kind.train(model, shown, lambda batch: batch, BASE_EPOCHS.get("tinted", 16), seed)
    images = surrounded(data.train, TINTED, WRONG, seed)
    diagnosis = diagnose(model.eval(), images, layers=kind.layers, draws=0)
    examined = surrounded(data.tests["test"].select(checked), TINTED, 0.0, seed)
    measured = list(surrounded(data.tests["test"].select(test), 0.0, 0.0, seed))
    recipe = Recipe(epochs=EPOCHS)
    rate = measured_rate(model, images, examined, recipe, seed=seed).chosen
    recipe = replace(recipe, learning_rate=rate)
    line: Line = {
        "kind": "masks", "seed": seed, "learning_rate": rate, "faulty": round(correct(model, measured), 2),
    }  # fmt: skip
    for count in MASKS:
        share = share_against_backgrounds(count * CATEGORIES, len(data.train))
        settings = TreatmentSettings(masks_per_category=count, annotated_per_batch=share)
        found = scores(model, images, diagnosis, {"swap": "swap"}, recipe, measured, seed, settings)
        line |= {f"control {count}": found["control"], str(count): found["swap"]}
    return line


JUDGES = {"": "gain", "pretrained ": "gain, `--second-opinion pretrained`"}  # who lists the labels
KIND = {"labels": labels, "people": people, "masks": masks}
COUNTED = {
    "labels": ("answers", LABELS),
    "people": ("answers", PEOPLE),
    "masks": ("boxes of each category", MASKS),
}


def table(lines: Sequence[Line]) -> str:
    """Return Markdown tables: gains over the control by the number of answers that every seed has."""
    tables = []
    for kind, (what, counts) in COUNTED.items():
        own = [line for line in lines if line["kind"] == kind]
        if not own:
            continue
        known = [count for count in counts if any(_in_all(own, f"{judge}{count}") for judge in JUDGES)]
        rows = [f"| {what} | {' | '.join(map(str, known))} |", "|---" * (len(known) + 1) + "|"]
        for judge, gain in JUDGES.items():
            cells = [
                _gain(own, count, judge) if _in_all(own, f"{judge}{count}") else "fewer listed"
                for count in known
            ]
            if any(_in_all(own, f"{judge}{count}") for count in known):
                rows.append(f"| {gain} | {' | '.join(cells)} |")
        tables.append("\n".join(rows))
    return "\n\n".join(tables)


def _in_all(lines: Sequence[Line], field: str) -> bool:
    """Return whether every line has a field."""
    return all(field in line for line in lines)


def _gain(lines: Sequence[Line], count: int, judge: str) -> str:
    """Return the gain over the control with its interval over seeds."""
    controls = [line.get(f"control {count}", line.get("control")) for line in lines]
    gains = [line[f"{judge}{count}"] - control for line, control in zip(lines, controls, strict=True)]
    mean, low, high = interval(gains)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    """Measure what is missing, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", type=Path, help="only print the tables of this file")
    parser.add_argument("--cache", type=Path, default=Path(), help="where features are kept")
    parser.add_argument("--kinds", nargs="+", default=list(KIND), choices=list(KIND))
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22])
    parser.add_argument("--out", type=Path, help="a .jsonl; what it holds is not measured again")
    given = parser.parse_args()
    if given.table:
        print(table(json_lines.read(given.table)))
        return
    done = {(line["kind"], line["seed"]) for line in json_lines.read_finished(given.out)}
    for kind, seed in product(given.kinds, given.seeds):
        if (kind, seed) in done:
            continue
        line = KIND[kind](seed, given.cache)
        json_lines.write(line, given.out)


if __name__ == "__main__":
    main()

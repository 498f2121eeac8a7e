"""Measure one cell of the ledger: train a base network, treat it in several arms, test each once.

A cell is one (architecture, data set, draw of categories, image size, seed, protocol). Its base network is
trained once and kept in the cache; its arms differ in their remedy alone. Every accuracy is of the test
split, which nothing was chosen on: the last epoch counts.
"""

from __future__ import annotations

import copy
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.experiment.masks import by_pixel
from benchmarks.experiment.networks import constrained_layers, network
from benchmarks.experiment.resident import ResidentImages, resident
from benchmarks.experiment.unfinished import Unfinished
from benchmarks.ledger.lines import Key, Ledger, device_words, revision_here
from benchmarks.ledger.protocols import Protocol, Size
from torchdoctor import Diagnosis, diagnose
from torchdoctor.data.load import load_tables
from torchdoctor.data.loader import Loader
from torchdoctor.data.pixels import Preprocessing
from torchdoctor.data.settings import DataSettings
from torchdoctor.data.table import Tables, limit_per_category
from torchdoctor.diagnosis.settings import DiagnosisSettings
from torchdoctor.images.backgrounds import across_categories
from torchdoctor.images.masks import default_expansion
from torchdoctor.network.prediction import predict_logits
from torchdoctor.treatment.cure import Remedy
from torchdoctor.treatment.search import Candidate, remedy_of
from torchdoctor.treatment.settings import TreatmentSettings
from torchdoctor.treatment.training import accuracy, fit
from torchdoctor.treatment.treat import trial_of
from torchdoctor.types import Evidence

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPECS = {  # what load_tables reads; the folders of the data are named as the data sets
    "svhn": "svhn@{root}/svhn",
    "stl10": "stl10@{root}/stl10",
    "scenes": "scenes:{seed}",
}


@dataclass(frozen=True)
class Bench:
    """What all cells of a run share: where the data, the kept networks and the ledger are."""

    root: Path
    cache: Path
    ledger: Ledger
    device: torch.device
    deadline: float = float("inf")
    revision: str = ""
    resident: bool = False
    stop: Callable[[], bool] | None = None  # asks a training to save its state and stop; None: none is kept

    @property
    def over(self) -> bool:
        """Whether the time that was given is used up."""
        return time.monotonic() >= self.deadline

    @property
    def holds_images(self) -> bool:
        """Whether the images lie on the device; a network then sees them otherwise cropped and flipped."""
        return self.resident or self.device.type == "cuda"

    def unfinished(self, *words: object) -> Unfinished | None:
        """Return where a training is kept that the end of the time interrupts, None where nothing is."""
        if self.stop is None:
            return None
        text = "|".join(map(str, (*words, self.device.type, self.revision or revision_here())))
        return Unfinished(
            self.cache / "unfinished" / hashlib.sha256(text.encode()).hexdigest()[:16], self.stop
        )


@dataclass(frozen=True)
class Cell:
    """One trained network and its data."""

    bench: Bench
    architecture: str
    dataset: str
    seed: int
    protocol: Protocol
    classes_seed: int = 0
    image_size: int | None = None
    judged: str = "test"  # the split that accuracies are of; `validation` where something is being chosen

    @property
    def size(self) -> Size:
        """How much of the data set is used."""
        found = self.protocol.sizes[self.dataset]
        return found if self.image_size is None else replace(found, image_size=self.image_size)

    def key(self, program: str, arm: str, variant: str = "") -> Key:
        """Return the key of one of the cell's results."""
        return Key(
            program, self.architecture, self.dataset, self.classes_seed, self.size.image_size, arm, variant,
            self.seed, self.protocol.name,
        )  # fmt: skip

    @cached_property
    def tables(self) -> Tables:
        """The images: training ones limited per category, test ones likewise, the same for every seed."""
        size = self.size
        spec = SPECS.get(self.dataset, "parquet:{root}/" + self.dataset)
        tables = load_tables(
            spec.format(root=self.bench.root, seed=self.classes_seed),
            settings=DataSettings(
                limit=size.limit or "all", classes=size.classes or "all", classes_seed=self.classes_seed
            ),
        )
        if self.dataset in ("mnist", "fashion_mnist"):
            tables = by_pixel(tables)
        most = None if size.tests is None else max(1, size.tests // len(tables.classes))
        tests = {
            name: limit_per_category(one, most, 0) if most else one for name, one in tables.tests.items()
        }
        return replace(tables, tests=tests)

    @property
    def test_name(self) -> str:
        """The test split that `accuracy` is of: drawn like the training images where there are several."""
        return "iid" if "iid" in self.tables.tests else self.tables.primary

    def loader(self, split: str) -> Loader | ResidentImages:
        """Return a split's images: train, validation, test, or another test split."""
        tables = self.tables
        known = {"train": tables.train, "validation": tables.validation, **tables.tests}
        table = known[self.test_name if split == "test" else split]
        # Objects of digits and clothes are not symmetric in the same way photographs are: no flip there.
        augment: Any = "crop" if self.dataset == "mnist" else "crop_flip"
        found = Loader(
            table, Preprocessing(self.size.image_size, MEAN, STD), self.protocol.batch_size, 0, augment
        )
        return resident(found, self.bench.device) if self.bench.holds_images else found

    @cached_property
    def train(self) -> Loader | ResidentImages:
        """The training images, decoded once."""
        return self.loader("train")

    @cached_property
    def test(self) -> Loader | ResidentImages:
        """The images that accuracies are of, decoded once."""
        return self.loader(self.judged)

    @cached_property
    def swapped(self) -> tuple[Any, ...]:
        """The test images before backgrounds of other categories; empty without masks."""
        return across_categories(self.test, seed=0)

    @property
    def has_masks(self) -> bool:
        """Whether training images have masks."""
        return bool(self.tables.train.has_mask.any())

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The layers that the catalogue constrains by default; the last one is the paper's."""
        return constrained_layers(self.architecture)

    @cached_property
    def base(self) -> nn.Module:
        """The trained base network, from the cache where it is there."""
        torch.manual_seed(self.seed)
        classes = len(self.tables.classes)
        model = network(self.architecture, classes, self.size.image_size).to(self.bench.device)
        recipe = self.protocol.recipe(self.architecture, treating=False)
        text = f"{self.architecture}|{self.dataset}|{self.classes_seed}|{self.seed}|{self.size}|{recipe}"
        text += f"|{self.protocol.batch_size}" + "|resident" * self.bench.holds_images
        file = (
            self.bench.cache
            / f"{self.architecture}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
        )
        if file.is_file():
            model.load_state_dict(load_file(file, device=str(self.bench.device)))
            return model.eval()
        train, unfinished = self.train, self.bench.unfinished("base", text)
        fit(
            model,
            lambda epoch: train.epoch(epoch, self.seed),
            recipe,
            steps_per_epoch=train.steps_per_epoch,
            seed=self.seed,
            checkpoints=unfinished and unfinished.checkpoints(),
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        save_file({name: one.contiguous() for name, one in model.state_dict().items()}, partial)
        partial.replace(file)
        if unfinished:
            unfinished.remove()
        return model.eval()

    def diagnosis(
        self,
        layers: Sequence[str] | None = None,
        *,
        draws: int = 10,
        evidence: Evidence = "gradient",
        annotations: int = 20,
    ) -> Diagnosis:
        """Diagnose the base network on its training images, T = 100, and sift images to annotate."""
        return diagnose(
            self.base,
            self.train,
            layers=layers or self.layers,
            classes=self.tables.classes,
            draws=draws,
            evidence=evidence,
            seed=self.seed,
            confidence=self.protocol.confidence,
            settings=DiagnosisSettings(annotations_per_category=annotations),
        )

    def tested(self, state: Mapping[str, torch.Tensor] | None = None) -> dict[str, Any]:
        """Return test accuracies of the base or of an arm's weights in percent, of other test splits too.

        `swapped`, where there are masks: each test object before the background of another category.
        """
        model = self.base
        if state is not None:
            model = copy.deepcopy(self.base)
            model.load_state_dict(dict(state))
        _, labels, logits = predict_logits(model, self.test)
        right = (logits.argmax(1) == labels).double()
        found: dict[str, Any] = {
            "accuracy": 100 * float(right.mean()),
            "per_category": [round(100 * float(right[labels == one].mean()), 2) for one in labels.unique()],
            "images": len(labels),
        }
        if self.swapped:
            found["swapped"] = accuracy(model, list(self.swapped))
        named = self.tables.tests if self.judged == "test" else ()
        others = {name: self.loader(name) for name in named if name != self.test_name}
        return {**found, **{name: accuracy(model, images) for name, images in others.items()}}


def remedy(
    name: str, constraints: Sequence[str], cell: Cell, *, tau: float = 0.3, draws: int = 1, lazy: int = 1,
    expand_pixels: int | None = None,
) -> Remedy:  # fmt: skip
    """Return constraints, as texts, as an arm called `name`."""
    size = cell.size.image_size
    return remedy_of(
        Candidate(name, tuple(constraints), tau),
        cell.layers,
        cell.protocol.recipe(cell.architecture, treating=True),
        draws=draws,
        every=lazy,
        expand_pixels=default_expansion(size) if expand_pixels is None else expand_pixels,
    )


def measure(
    cell: Cell,
    program: str,
    arms: Mapping[str, Remedy],
    *,
    variants: Mapping[str, str] | None = None,
    variant: str = "",
    diagnosis: Callable[[], Diagnosis] | None = None,
    masks_per_category: int | None = 20,
    settings: Mapping[str, Any] | None = None,
) -> bool:
    """Measure what is missing of base, control and these arms; False where the time ran out before.

    The arms of one call share batches and control. `variants` gives the variant of an arm, and the name it
    has in the ledger is what stands before a dot: `space.30` is the arm `space`. Base and control are keyed
    by `variant`, so that a program whose arms need controls of their own can have several.
    """
    bench, names = cell.bench, {"base": "base", "control": "control", **{name: name for name in arms}}
    keys = {
        name: cell.key(program, name.partition(".")[0], (variants or {}).get(name, variant)) for name in names
    }
    done = bench.ledger.keys()
    missing = [name for name in names if keys[name] not in done]
    if not missing:
        return True
    if bench.over:
        return False
    words: dict[str, Any] = {"settings": dict(settings or {}), "threads": torch.get_num_threads()}
    if bench.holds_images:
        words["resident"] = True
    stamp = {"revision": bench.revision or revision_here(), "device": device_words(bench.device)}
    if "base" in missing:
        bench.ledger.append(keys["base"], {**cell.tested(), **words, "seconds": 0.0}, **stamp)
        missing.remove("base")
    wanted: list[Any] = ["control", *(arms[name] for name in arms if name in missing)]
    if len(wanted) == 1 and "control" not in missing:
        return True
    recipe = cell.protocol.recipe(cell.architecture, treating=True)
    unfinished = bench.unfinished(keys["control"].text, recipe, masks_per_category, settings)
    trial = trial_of(
        cell.base,
        cell.train,
        diagnosis() if diagnosis is not None else cell.diagnosis(),
        # A control alone would not see the annotated images that its arms saw: one of them runs beside it.
        arms=wanted if len(wanted) > 1 else ["control", next(iter(arms.values()))],
        settings=TreatmentSettings(masks_per_category=masks_per_category or "all"),
        recipe=recipe,
        seed=cell.seed,
    )
    found = trial.run(seeds=1, store=unfinished and unfinished.arms())
    for arm in found.arms:
        if arm.name in missing:
            values = {**cell.tested(arm.state), **words, "seconds": round(arm.seconds, 1), "steps": arm.steps,
                      "skipped": len(arm.skipped)}  # fmt: skip
            bench.ledger.append(keys[arm.name], values, **stamp)
    if unfinished:
        unfinished.remove()
    return True

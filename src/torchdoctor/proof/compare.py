"""Compare the untreated network, the control arm and all other arms on the same test images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn

from torchdoctor.evidence.per_image import background_shares_of, clean_evidence
from torchdoctor.images.batches import Batch, Images, shared
from torchdoctor.images.loaders import ImageSource, images_of
from torchdoctor.network.copying import copy_of
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.outputs import unwrap
from torchdoctor.network.prediction import device_of, dtype_of, predict_logits
from torchdoctor.network.state import load_state
from torchdoctor.network.taps import token_grids
from torchdoctor.processes import ALONE, Processes
from torchdoctor.proof.result import Comparison
from torchdoctor.proof.split_result import SplitComparison
from torchdoctor.proof.statistics import calibration_error, compare_split
from torchdoctor.proof.verdict import overall_verdict
from torchdoctor.treatment.result import Treatment
from torchdoctor.types import Evidence, InputError, ModelDoctorError, Progress, silent


def compare(
    model: nn.Module,
    treatment: Treatment,
    tests: Mapping[str, ImageSource],
    *,
    primary: str | None = None,
    arm: str | None = None,
    classes: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    evidence: Evidence = "gradient_x_activation",
    min_gain: float = 0.0,
    max_loss: float = 5.0,
    progress: Progress = silent,
    processes: Processes = ALONE,
) -> Comparison:
    """Compare every arm with the control, and report the untreated network beside them, on every test split.

    Args:
        model: The untreated network; its weights are left as they are.
        treatment: The trained arms, among them `control`.
        tests: The test images by the name of the split.
        primary: The split that decides the verdict; by default the first.
        arm: The arm that the verdict is about; by default the first one beside the control.
        classes: The names of the categories; by default those of the test images, else their numbers.
        layers: Where the share of evidence on the background is measured; by default the treated layers.
        evidence: The formula of the evidence there.
        min_gain: The gain asked for, in percentage points; the verdict's reason says if it is not proven.
        max_loss: The most percentage points that another split may lose; a proven larger loss is `harmed`.
        progress: Called with ("compare", measurements done, in all) after every network and split.
        processes: The processes that work together: each computes some batches, and gets the whole result.

    Returns:
        Accuracies, gains over the control in percentage points, p-values with Holm's correction, the verdict.

    Raises:
        InputError: There is no test split, no arm beside the control, or no split or arm of that name.
        ModelDoctorError: Every step of a training was skipped, because loss or gradient were not finite.

    Example:
        >>> from torchdoctor import Batch, Recipe, compare, diagnose, treat
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> images = [Batch(torch.randn(8, 3, 8, 8), torch.arange(8) % 2, torch.arange(8))]
        >>> diagnosis = diagnose(model, images, layers=["0"], confidence=0.0)
        >>> treatment = treat(model, images, diagnosis, recipe=Recipe(epochs=1), seeds=1)
        >>> list(compare(model, treatment, {"test": images}).splits["test"].accuracy)
        ['base', 'control', 'treated']
    """
    images = {split: images_of(source) for split, source in tests.items()}
    primary, arm = _primary_split(images, primary), _first_arm(treatment, arm)
    layers = _treated_layers(treatment) if layers is None else layers
    names = tuple(classes or getattr(images[primary], "classes", None) or ())
    measured = _measured_splits(model, treatment, images, layers, evidence, progress, processes)
    names = names or tuple(map(str, range(measured[primary].categories)))
    splits = {split: numbers.compared(len(names), arm) for split, numbers in measured.items()}
    verdict, reason = overall_verdict(splits, primary, max_loss, min_gain)
    return Comparison(
        classes=names, splits=splits, primary=primary, verdict=verdict, reason=reason, max_loss=max_loss,
        seeds=treatment.seeds(), seconds=_seconds(treatment), arm=arm, min_gain=min_gain,
        steps=treatment.arm(arm, treatment.seeds()[0]).steps,
    )  # fmt: skip


@dataclass
class _Measured:
    """What was measured of all networks on a test split, by arm with an entry for each seed."""

    right: dict[str, list[np.ndarray]] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, list[float]] = field(default_factory=dict)
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    ids: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    categories: int = 0

    def add(
        self,
        arm: str,
        model: nn.Module,
        state: Mapping[str, Tensor],
        images: Images,
        layers: Sequence[str],
        evidence: Evidence,
        processes: Processes,
    ) -> None:
        """Load an arm's weights into the network and measure it on the split's images."""
        load_state(model, state)
        self.ids, self.labels, logits = predict_logits(model, images, processes=processes)
        certainty, predicted = logits.double().softmax(1).max(1)
        right = (predicted == self.labels).numpy()
        self.right.setdefault(arm, []).append(right)
        self.errors.setdefault(arm, []).append(calibration_error(certainty.numpy(), right))
        share = background_share(model, images, layers, evidence, processes)
        self.shares.setdefault(arm, []).append(share)
        self.categories = logits.shape[1]

    def compared(self, categories: int, first: str) -> SplitComparison:
        """Compare all arms with the control."""
        return compare_split(
            self.right,
            self.labels.numpy(),
            self.ids.numpy(),
            categories,
            self.shares,
            self.errors,
            first=first,
        )


def _measured_splits(
    model: nn.Module,
    treatment: Treatment,
    tests: Mapping[str, Images],
    layers: Sequence[str],
    evidence: Evidence,
    progress: Progress,
    processes: Processes,
) -> dict[str, _Measured]:
    """Measure a copy of the network with the weights of every arm on every test split."""
    _refuse_untrained(treatment)
    model = copy_of(unwrap(model))
    splits, states = {}, _states(model, treatment)
    number, total = count(1), len(tests) * len(states)
    for split, images in tests.items():
        measured = splits[split] = _Measured()
        for name, state in states:
            measured.add(name, model, state, images, layers, evidence, processes)
            progress("compare", next(number), total)
    return splits


def _seconds(treatment: Treatment) -> dict[str, tuple[float, ...]]:
    """Return how long the training took in each repetition, by arm."""
    return {
        name: tuple(treatment.arm(name, seed).seconds for seed in treatment.seeds())
        for name in treatment.names()
    }


def _primary_split(tests: Mapping[str, Images], primary: str | None) -> str:
    """Return the split whose verdict counts; InputError where it is not there."""
    if not tests:
        raise InputError("there is no test split to compare on")
    primary = primary if primary is not None else next(iter(tests))
    if primary not in tests:
        raise InputError(f"primary split {primary!r} is not there; the data has: {', '.join(tests)}")
    return primary


def _first_arm(treatment: Treatment, arm: str | None) -> str:
    """Return the arm that the verdict is about; InputError where it is not there."""
    names = treatment.names()
    others = [name for name in names if name != "control"]
    if "control" not in names or not others:
        raise InputError("the treatment has no arms to compare: expected a control and at least one other")
    if arm is not None and arm not in others:
        raise InputError(f"arm {arm!r} was not trained; there are: {', '.join(others)}")
    return arm or others[0]


def _refuse_untrained(treatment: Treatment) -> None:
    """Raise ModelDoctorError where a training took no step: its weights would pass for those of its arm."""
    for name in treatment.names():
        for seed in treatment.seeds():
            arm = treatment.arm(name, seed)
            if arm.steps and len(arm.skipped) >= arm.steps:
                raise ModelDoctorError(
                    f"arm {name}, seed {seed}: all {arm.steps} steps were skipped, because the loss or its "
                    "gradient was not finite. The network was not trained, and there is nothing to compare: "
                    "lower the learning rate or the weight of the constraints, or leave this arm out"
                )


def _treated_layers(treatment: Treatment) -> list[str]:
    """Return the layers that any constraint was on, in their order."""
    lists = [constraint["layers"] for constraint in treatment.prescription]
    return list(dict.fromkeys(layer for names in lists if isinstance(names, list) for layer in names))


def _states(model: nn.Module, treatment: Treatment) -> list[tuple[str, Mapping[str, Tensor]]]:
    """Return a name and weights for every network: first the untreated (`base`), then each arm and seed."""
    base = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return [("base", base)] + [
        (name, treatment.arm(name, seed).state) for name in treatment.names() for seed in treatment.seeds()
    ]


def background_share(
    model: nn.Module,
    images: Images,
    layers: Sequence[str],
    evidence: Evidence = "gradient_x_activation",
    processes: Processes = ALONE,
) -> float:
    """Measure which share of the evidence for a network's predictions lies on the background.

    Args:
        model: The network; it is left as it was.
        images: The images; only those with an object mask count.
        layers: The layers' dotted names.
        evidence: How evidence is measured; no noise is added.
        processes: The processes that work together: each computes a share of the batches.

    Returns:
        A share from 0 to 1, averaged over images and layers; NaN without layers or without masks.
    """
    if not layers:
        return math.nan

    def shares_of(batch: Batch) -> list[np.ndarray]:
        if batch.masks is None:
            return []
        pixels = batch.images.to(device_of(model), dtype_of(model))
        with frozen_eval(model) as frozen:
            maps = clean_evidence(frozen, pixels, None, layers, evidence)[0]
            places = token_grids(frozen.model, pixels, layers)
        return [background_shares_of(maps[layer], batch, places.get(layer)) for layer in maps]

    by_batch = processes.in_order(map(shares_of, shared(images, processes)))
    shares = [share for shares in by_batch for share in shares]
    values = np.concatenate(shares) if shares else np.zeros(0)
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan

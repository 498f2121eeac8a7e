"""Name the things that travel between the stages: batches, diagnoses, treatments, comparisons, errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

Evidence = Literal["gradient", "gradient_x_activation"]
PenaltyEvidence = Literal["gradient", "gradient_x_activation", "positive_gradient"]
Scale = Literal["none", "share"]
Targets = Literal["prediction", "label"]
ReduceDraws = Literal["mean", "sum"]
NormPolicy = Literal["frozen", "train"]
Precision = Literal["fp32", "bf16", "fp16"]
BudgetKind = Literal["steps", "time"]
Verdict = Literal["helped", "harmed", "no evidence"]

Progress = Callable[[str, int, int], None]  # stage, done, of how many

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class ModelDoctorError(Exception):
    """A run that failed for a known reason; the command line ends with `exit_code`."""

    exit_code = 1


class InputError(ModelDoctorError):
    """Something given by the user cannot be used: what was found, what was expected, what to do."""

    exit_code = 2


class Interrupted(ModelDoctorError):
    """The user stopped a training; its state was saved first."""

    exit_code = 130


def check_choice(name: str, value: object, kind: Any) -> None:
    """Raise InputError unless `value` is one of the words of a Literal."""
    if value not in get_args(kind):
        raise InputError(f"{name} {value!r}: expected one of {', '.join(map(str, get_args(kind)))}")


def silent(_stage: str, _done: int, _total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Batch:
    """Images that are shown to the network together, already normalised.

    `ids` number the images of one split for good: noise and sifting refer to them. `masks` is 1 on the
    object and 0 on the background; where `annotated` is False the mask says nothing.
    """

    images: Float[Tensor, "batch channel height width"]
    labels: Int[Tensor, " batch"]
    ids: Int[Tensor, " batch"]
    masks: Float[Tensor, "batch 1 height width"] | None = None
    annotated: Bool[Tensor, " batch"] | None = None


@runtime_checkable
class Images(Protocol):
    """Anything that yields the same batches each time it is iterated: a list of `Batch` will do."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield every image once, in a fixed order, not augmented."""
        ...


@runtime_checkable
class TrainingImages(Images, Protocol):
    """Images that can also be drawn for training."""

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches of one epoch."""
        ...

    def with_annotations(self, ids: Sequence[int], per_batch: int) -> TrainingImages:
        """Show only the masks of these images, and draw `per_batch` of them into every batch."""
        ...

    def epoch(self, number: int, seed: int) -> Iterator[Batch]:
        """Yield the batches of one epoch: shuffled and augmented by (seed, number, image id) alone."""
        ...


@dataclass(frozen=True)
class Sifting:
    """Which training images speak for a category and which are to be annotated.

    `high[c]` are the ids of up to T images of category c, most confident first, all classified
    correctly; `low[c]` are the ids to annotate, most confident mistakes first.
    """

    high: tuple[tuple[int, ...], ...]
    low: tuple[tuple[int, ...], ...]
    confidence: float
    images_per_category: int


@dataclass(frozen=True)
class LayerDiagnosis:
    """What Eq. 2-4 say about one layer. Rows of categories that were not diagnosed are zero.

    `correlation` is the mean over images, `interval` its 95 % bounds, `quantiles` those of single images.
    `activation` is the mean absolute map, `level` the mean map over all diagnosed categories, what a
    silenced kernel is set to. `agreement` holds the quantiles of how alike an image's evidence is to the
    mean of its category's other images (cosine, 0..1). `background_share[c]` is the share of the evidence
    that lies on the background. `drift` is how far each kernel's statistics over the images are from
    those that the batch-norm behind it remembers, in its standard deviations: large where something has
    changed since training. All are NaN where there is nothing to compare. `path` says how the evidence
    was computed.
    """

    name: str
    correlation: Float[np.ndarray, "category kernel"]
    variance: Float[np.ndarray, "category kernel"]
    interval: Float[np.ndarray, "bound category kernel"]
    quantiles: Float[np.ndarray, "quantile category kernel"]
    activation: Float[np.ndarray, "category kernel"]
    level: Float[np.ndarray, " kernel"]
    correlated: Bool[np.ndarray, "category kernel"]
    agreement: Float[np.ndarray, "quantile category"]
    background_share: Float[np.ndarray, " category"]
    drift: Float[np.ndarray, " kernel"]
    delta: float
    standard_deviation: float
    path: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """The frozen result of `diagnose`: correlations per layer, and how the classifier does per category.

    `counts[c]` is the number of images behind category c's row: 0 means not diagnosed.
    `confusion[i, j]` counts images of category i that were called j.
    """

    classes: tuple[str, ...]
    layers: tuple[LayerDiagnosis, ...]
    sifting: Sifting
    counts: Int[np.ndarray, " category"]
    confusion: Int[np.ndarray, "category category"]
    evidence: Evidence
    draws: int | Literal["exact"]
    theta: float
    seed: int
    model_sha256: str

    def layer(self, name: str) -> LayerDiagnosis:
        """Return the layer called `name`; KeyError lists the diagnosed ones."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"{name!r} was not diagnosed; diagnosed: {', '.join(one.name for one in self.layers)}")

    @property
    def accuracy(self) -> Float[np.ndarray, " category"]:
        """Per-category accuracy over the diagnosed images, in percent; NaN for a category without images."""
        totals = self.confusion.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.where(totals > 0, 100.0 * np.diag(self.confusion) / np.maximum(totals, 1), np.nan)

    @property
    def not_diagnosed(self) -> tuple[str, ...]:
        """Names of the categories without a single confident correct image."""
        return tuple(
            name for name, count in zip(self.classes, self.counts.tolist(), strict=True) if count == 0
        )

    @property
    def inconclusive(self) -> bool:
        """Whether more than half of the categories could not be diagnosed."""
        return 2 * len(self.not_diagnosed) > len(self.classes)


@dataclass(frozen=True)
class Arm:
    """One further training from the same weights: the control, or the network under one remedy.

    `skipped` lists the ids of the batches whose loss or gradient was not finite: no step was taken.
    """

    name: str
    seed: int
    state: Mapping[str, Tensor]
    history: tuple[Mapping[str, float], ...]
    steps: int
    seconds: float
    skipped: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Treatment:
    """The frozen result of `treat`: the arms, and what each constraint weighed and reached."""

    arms: tuple[Arm, ...]
    prescription: tuple[Mapping[str, object], ...]

    def names(self) -> tuple[str, ...]:
        """Return the names of the arms in the order they were run."""
        return tuple(dict.fromkeys(arm.name for arm in self.arms))

    def seeds(self) -> tuple[int, ...]:
        """Return the seeds in the order they were run."""
        return tuple(dict.fromkeys(arm.seed for arm in self.arms))

    def arm(self, name: str, seed: int) -> Arm:
        """Return one arm; KeyError names the ones there are."""
        for arm in self.arms:
            if arm.name == name and arm.seed == seed:
                return arm
        raise KeyError(f"no arm {name!r} with seed {seed}; there are {[(a.name, a.seed) for a in self.arms]}")


@dataclass(frozen=True)
class Gain:
    """An arm minus the control on one split, in percentage points, with a 95 % interval and a p-value.

    `p_adjusted` is the p-value after Holm's correction for the number of arms compared. `detectable` is
    a gain that as many images and seeds would show with a probability of at least 80 %.
    """

    mean: float
    low: float
    high: float
    p_value: float
    variance_from: str
    p_adjusted: float = math.nan
    detectable: float = math.nan


@dataclass(frozen=True)
class ArmComparison:
    """One arm against the control on one split.

    `repaired` and `broken` are ids of images that the control gets wrong and the arm right in most seeds,
    and the reverse. `mcnemar` holds McNemar's exact p-value of each seed.
    """

    gain: Gain
    gain_per_category: tuple[float, ...]
    verdict: Verdict
    repaired: tuple[int, ...]
    broken: tuple[int, ...]
    mcnemar: tuple[float, ...] = ()


@dataclass(frozen=True)
class SplitComparison:
    """One test split: accuracies in percent, one per seed (base: one), and what each arm changed.

    By arm: `per_category` holds the seed-averaged accuracy of each category; `background_share` the share
    of the evidence on the background, averaged over images, seeds and layers, or None;
    `calibration_error` the expected calibration error in percent, averaged over seeds. `arms` holds what
    was compared with the control, the arm that the verdict speaks of first.
    """

    accuracy: Mapping[str, tuple[float, ...]]
    per_category: Mapping[str, tuple[float, ...]]
    background_share: Mapping[str, float | None]
    arms: Mapping[str, ArmComparison]
    images: int
    calibration_error: Mapping[str, float] = field(default_factory=dict)

    @property
    def first(self) -> ArmComparison:
        """The arm that the verdict speaks of, against the control."""
        return next(iter(self.arms.values()))

    @property
    def worst_category(self) -> dict[str, float]:
        """The lowest accuracy of any category, by arm; NaN where no category has an image."""
        return {arm: _lowest(values) for arm, values in self.per_category.items()}


def _lowest(values: Sequence[float]) -> float:
    """Return the lowest of the numbers that are known; NaN if there is none."""
    return min((one for one in values if not math.isnan(one)), default=math.nan)


@dataclass(frozen=True)
class Comparison:
    """The frozen result of `compare`: base, control and the other arms on the same test images.

    `arm` is the one that verdict and reason speak of.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, SplitComparison]
    primary: str
    verdict: Verdict
    reason: str
    max_loss: float
    seeds: tuple[int, ...]
    seconds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    steps: int = 0
    arm: str = "treated"
    min_gain: float = 0.0

    @property
    def worst_group(self) -> dict[str, float]:
        """The lowest accuracy of any category in any split, by arm."""
        arms = next(iter(self.splits.values())).accuracy
        return {arm: _lowest([split.worst_category[arm] for split in self.splits.values()]) for arm in arms}

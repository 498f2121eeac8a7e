"""The result of a comparison: gains with intervals, by arm and test split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torchdoctor.types import Verdict


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

"""What is measured on a test split: the accuracies of all arms, and their gains over the control."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torchdoctor.display.cards import listed
from torchdoctor.display.counts import count_of
from torchdoctor.types import Verdict


@dataclass(frozen=True)
class Gain:
    """The accuracy of an arm minus that of the control on a split, in percentage points.

    Attributes:
        mean: The mean gain over images and seeds.
        low: The lower bound of its 95 % confidence interval.
        high: The upper bound.
        p_value: The p-value of the hypothesis that there is no difference.
        variance_from: What the variance is over, such as `images and 3 seeds`.
        p_adjusted: The p-value after Holm's correction for the number of arms that are compared.
        detectable: The smallest gain that as many images and seeds show with a probability of about 80 %.
        seeds: How many seeds there are; 0 where that is not known.
    """

    mean: float
    low: float
    high: float
    p_value: float
    variance_from: str
    p_adjusted: float = math.nan
    detectable: float = math.nan
    seeds: int = 0

    def __str__(self) -> str:
        """Return the gain and its interval in percentage points."""
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


@dataclass(frozen=True)
class ArmComparison:
    """An arm compared with the control on a split.

    Attributes:
        gain: The gain over all images.
        gain_per_category: The gain of each category in percentage points; NaN without images.
        verdict: The verdict on this split alone.
        repaired: The ids of the images that the control misclassifies and the arm does not, in most seeds.
        broken: The ids of the images for which it is the reverse.
        mcnemar: McNemar's exact p-value of each seed.
    """

    gain: Gain
    gain_per_category: tuple[float, ...]
    verdict: Verdict
    repaired: tuple[int, ...]
    broken: tuple[int, ...]
    mcnemar: tuple[float, ...] = ()

    def __repr__(self) -> str:
        """Return a single line: the verdict, the gain, and how many images changed."""
        return (
            f"ArmComparison({self.verdict}: {self.gain} points, "
            f"{count_of(len(self.repaired), 'image')} repaired, "
            f"{len(self.broken)} broken)"
        )


@dataclass(frozen=True)
class SplitComparison:
    """The accuracies of all arms on a test split, and each arm compared with the control.

    The untreated network is among the arms as `base`, which has a single accuracy.

    Attributes:
        accuracy: The accuracy of each seed in percent, by arm.
        per_category: The accuracy of each category in percent, averaged over seeds, by arm.
        background_share: The share (0..1) of the evidence on the background, averaged over images, seeds and
            layers, by arm; None without masks.
        arms: Each arm compared with the control; first the arm that the verdict is about.
        images: The number of images.
        calibration_error: The expected calibration error in percent, averaged over seeds, by arm.
        between_controls: How many images one run of the control gets right and another does not, on average:
            what a seed alone repairs, and breaks; NaN where it is not known.
    """

    accuracy: Mapping[str, tuple[float, ...]]
    per_category: Mapping[str, tuple[float, ...]]
    background_share: Mapping[str, float | None]
    arms: Mapping[str, ArmComparison]
    images: int
    calibration_error: Mapping[str, float] = field(default_factory=dict)
    between_controls: float = math.nan

    def __repr__(self) -> str:
        """Return a single line: the mean accuracy of every arm."""
        means = [f"{arm} {mean_of(values):.1f} %" for arm, values in self.accuracy.items()]
        return f"SplitComparison({count_of(self.images, 'image')}: {listed(means)})"

    @property
    def first(self) -> ArmComparison:
        """The arm that the verdict is about, compared with the control."""
        return next(iter(self.arms.values()))

    @property
    def worst_category(self) -> dict[str, float]:
        """The lowest accuracy of any category, by arm; NaN where no category has an image."""
        return {arm: lowest(values) for arm, values in self.per_category.items()}

    @property
    def balanced_accuracy(self) -> dict[str, float]:
        """The mean accuracy of the categories in percent, each weighing the same, by arm."""
        return {arm: mean_of(values) for arm, values in self.per_category.items()}


def lowest(values: Sequence[float]) -> float:
    """Return the lowest of the numbers that are known.

    Args:
        values: The numbers; NaN where a number is not known.

    Returns:
        The lowest; NaN where none is known.
    """
    return min((value for value in values if not math.isnan(value)), default=math.nan)


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of the numbers that are known.

    Args:
        values: The numbers; NaN where a number is not known.

    Returns:
        The mean; NaN where none is known.
    """
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan

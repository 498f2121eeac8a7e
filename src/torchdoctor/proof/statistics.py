"""Test whether one arm is more accurate than another on the same test images.

All statistics are paired: each image is judged by both arms, and each seed of the treated arm has a control
run of the same seed. What goes in are tables of booleans, one row per seed and one column per image: was the
image classified correctly? What comes out are gains in percentage points with 95 % intervals and p-values.
Interval and p-value come from one statistic, the mean difference over its standard error. Where several arms
are compared with one control, the p-values carry Holm's correction.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int

from torchdoctor.proof.split_result import ArmComparison, Gain, SplitComparison
from torchdoctor.proof.verdict import LEVEL, verdict_of
from torchdoctor.types import Verdict

POWER = 0.8  # the probability with which a gain of the size `detectable` is found
BINS = 15  # of the calibration error
# Two seeds leave a single difference to tell how much seeds differ. More degrees of freedom than these make
# `helped` too frequent where there is no difference (benchmarks/study/proof.py).
MOST_FREEDOM_OF_TWO_SEEDS = 4.0
ADDED_IMAGES = (0.5, -0.5)  # differences of two images that are added where their variance is estimated


def compare_split(
    right: Mapping[str, Sequence[Bool[np.ndarray, " image"]]],
    labels: Int[np.ndarray, " image"],
    ids: Int[np.ndarray, " image"],
    categories: int,
    shares: Mapping[str, Sequence[float]] | None = None,
    errors: Mapping[str, Sequence[float]] | None = None,
    *,
    first: str = "treated",
) -> SplitComparison:
    """Compare every arm with the control on one test split.

    Args:
        right: By arm and seed, which images are classified correctly. `control` is needed; `base` (the
            untreated network, one row) is reported but not compared; every other name is an arm.
        labels: The true category of each image, from 0.
        ids: The id of each image.
        categories: How many categories there are.
        shares: By arm, one background share per seed (0 to 1, NaN where unknown).
        errors: By arm, one expected calibration error per seed, in percent.
        first: The arm that the verdict is about.

    Returns:
        The accuracies, and each arm against the control, the arm `first` before the others.

    Raises:
        KeyError: There is no `control`.
    """
    control = np.stack(right["control"])
    others = [name for name in right if name not in ("base", "control")]
    others.sort(key=lambda name: name != first)
    gains = {name: paired_gain(control, np.stack(right[name])) for name in others}
    adjusted = holm([gain.p_value for gain in gains.values()])
    arms = {}
    for (name, gain), p_adjusted in zip(gains.items(), adjusted, strict=True):
        gain = replace(gain, p_adjusted=p_adjusted)
        verdict = verdict_of(gain, compared=len(gains))
        arms[name] = _against(control, np.stack(right[name]), gain, verdict, labels, ids, categories)
    mean_shares = {arm: float(np.mean(values)) for arm, values in (shares or {}).items() if values}
    return SplitComparison(
        accuracy={arm: tuple(100.0 * float(row.mean()) for row in rows) for arm, rows in right.items()},
        per_category={
            arm: tuple(_per_category(np.stack(rows).mean(0), labels, categories))
            for arm, rows in right.items()
        },
        background_share={
            arm: None if math.isnan(mean_shares.get(arm, math.nan)) else mean_shares[arm] for arm in right
        },
        arms=arms,
        images=len(labels),
        calibration_error={arm: float(np.mean(values)) for arm, values in (errors or {}).items() if values},
        between_controls=between_seeds(control),
    )


def _against(
    control: Bool[np.ndarray, "seed image"],
    treated: Bool[np.ndarray, "seed image"],
    gain: Gain,
    verdict: Verdict,
    labels: Int[np.ndarray, " image"],
    ids: Int[np.ndarray, " image"],
    categories: int,
) -> ArmComparison:
    """Describe one arm against the control: its gain per category, and the images it repairs and breaks."""
    difference = (treated.astype(float) - control.astype(float)).mean(0)
    by_control, by_treated = control.mean(0), treated.mean(0)
    return ArmComparison(
        gain=gain,
        gain_per_category=tuple(_per_category(difference, labels, categories)),
        verdict=verdict,
        repaired=tuple(ids[(by_treated > 0.5) & (by_control < 0.5)].tolist()),
        broken=tuple(ids[(by_treated < 0.5) & (by_control > 0.5)].tolist()),
        mcnemar=tuple(mcnemar(*rows) for rows in zip(control, treated, strict=True)),
    )


def _per_category(values: np.ndarray, labels: np.ndarray, categories: int) -> list[float]:
    """Return 100 x the mean value of each category; NaN for a category without test images."""
    return [
        100.0 * float(values[labels == category].mean()) if (labels == category).any() else math.nan
        for category in range(categories)
    ]


def paired_gain(
    control: Bool[np.ndarray, "seed image"],
    treated: Bool[np.ndarray, "seed image"],
    *,
    seed: int = 0,
) -> Gain:
    """Estimate how much more accurate one arm is than another, paired by seed and image.

    The interval is the mean difference plus and minus its standard error times a quantile of Student's t,
    and the p-value is that of the same ratio (see `standard_error`). With one seed, the error is over images
    only: it says nothing of other trainings, and `verdict_of` gives no verdict on it.

    Args:
        control: Which images the control classifies correctly [seed, image].
        treated: The same for the other arm, on the same images and in the same order of seeds.
        seed: Without effect, because nothing is drawn at random; taken for callers that pass it.

    Returns:
        Treated minus control in percentage points, with interval, p-value and the smallest detectable gain.

    Example:
        >>> import numpy as np
        >>> control = np.array([[True, False, False, True] * 25] * 3)
        >>> treated = np.array([[True, True, False, True] * 25] * 3)
        >>> gain = paired_gain(control, treated)
        >>> print(gain)
        +25.0 (+16.3 to +33.7)
    """
    from scipy import stats  # here, because it takes a second to import

    del seed
    difference = treated.astype(float) - control.astype(float)
    seeds = len(difference)
    mean = float(difference.mean())
    error, freedom = standard_error(difference)
    quantile = float(stats.t.ppf(0.5 + LEVEL / 2, freedom))
    ratio = mean / error if error > 0 else 0.0
    p_value = 2 * float(stats.t.sf(abs(ratio), freedom))
    return Gain(
        100 * mean,
        100 * (mean - quantile * error),
        100 * (mean + quantile * error),
        p_value,
        "images only (one seed)" if seeds == 1 else f"images and {seeds} seeds",
        p_adjusted=p_value,
        detectable=100 * errors_to_see(round(freedom, 1)) * error if error > 0 else math.inf,
        seeds=seeds,
    )


def standard_error(difference: Float[np.ndarray, "seed image"]) -> tuple[float, float]:
    """Return the standard error of the mean difference for other seeds and other images, and its freedom.

    A difference d[s, i] is taken to be the gain, plus an effect of seed s, plus one of image i, plus a rest.
    With the mean squares of the two-way table, A of the images, B of the seeds and C of the rest (A and B
    contain the rest once each), the variance of the mean over S seeds and N images is

        V = max(A + B - C, A, B) / (S N):

    the rest counts once, and neither effect has a variance below 0. The degrees of freedom are
    Satterthwaite's, V^2 / sum of ((term / S N)^2 / freedom of the term), at least S - 1. So a quantile for
    few seeds is applied only as far as the seeds matter.

    The variance of the images is estimated with two more images, one that half of the seeds repair and one
    that half of them break, in the way that Agresti and Min advise for paired proportions: where few images
    differ, they say little about their own variance.

    Args:
        difference: Treated minus control of each seed and image, -1, 0 or 1.

    Returns:
        The standard error in the unit of `difference`, and its degrees of freedom. The error is infinite for
        a single image, and 0 where no image differs in any seed.
    """
    seeds, images = difference.shape
    if images < 2:
        return math.inf, 1.0
    if not difference.any():
        return 0.0, float(images - 1)
    number = seeds * images
    of_image, of_seed, mean = difference.mean(0), difference.mean(1), float(difference.mean())
    by_image = seeds * float(np.concatenate([of_image, ADDED_IMAGES]).var(ddof=1)) / number
    if seeds == 1:
        return math.sqrt(by_image), float(images - 1)
    by_seed = images * float(of_seed.var(ddof=1)) / number
    rest_freedom = (seeds - 1) * (images - 1)
    rest = float(((difference - of_image - of_seed[:, None] + mean) ** 2).sum()) / rest_freedom / number
    variance = max(by_image + by_seed - rest, by_image, by_seed)
    spread = by_image**2 / (images - 1) + by_seed**2 / (seeds - 1) + rest**2 / rest_freedom
    freedom = max(variance**2 / spread, seeds - 1.0)
    return math.sqrt(variance), min(freedom, MOST_FREEDOM_OF_TWO_SEEDS) if seeds == 2 else freedom


def between_seeds(control: Bool[np.ndarray, "seed image"]) -> float:
    """Return how many images a network repairs or breaks through its seed alone.

    Args:
        control: Which images the control classifies correctly [seed, image].

    Returns:
        The mean number of images that one run of the control gets right and another does not, over all
        ordered pairs of runs; NaN with a single seed.
    """
    seeds = len(control)
    if seeds < 2:
        return math.nan
    right = control.sum(0).astype(float)
    return float((right * (seeds - right)).sum() / (seeds * (seeds - 1)))


@functools.lru_cache(1024)
def errors_to_see(freedom: int | float, level: float = LEVEL) -> float:
    """Return how large a true gain has to be to be found with a probability of `POWER`.

    Found means that the t interval lies above 0. Where the true gain is not 0, the ratio of the measured gain
    to its error follows the noncentral t distribution; with few seeds, the usual sum of two central quantiles
    is too small.

    Args:
        freedom: Degrees of freedom of the interval.
        level: The interval's level, such as 0.95.

    Returns:
        The gain in standard errors.
    """
    from scipy import optimize, stats  # here, because it takes a second to import

    quantile = float(stats.t.ppf(0.5 + level / 2, freedom))
    return float(
        optimize.brentq(lambda gain: stats.nct.sf(quantile, freedom, gain) - POWER, 0.0, 3 * quantile + 5)
    )


def mcnemar(control: Bool[np.ndarray, " image"], treated: Bool[np.ndarray, " image"]) -> float:
    """Test whether an arm repairs as many images as it breaks (McNemar's exact test).

    Args:
        control: Which images the control classifies correctly.
        treated: The same for the other arm.

    Returns:
        The two-sided p-value; 1 where no image differs.
    """
    from scipy import stats  # here, because it takes a second to import

    better, worse = int((treated & ~control).sum()), int((control & ~treated).sum())
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for the number of tests (Holm's step-down method).

    Args:
        p_values: The p-values of all tests that were made together.

    Returns:
        The corrected p-values, in the same order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable").tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def calibration_error(
    confidence: Float[np.ndarray, " image"], right: Bool[np.ndarray, " image"], bins: int = BINS
) -> float:
    """Return the expected calibration error: how far confidence is from accuracy.

    Images are sorted into bins of equal width by confidence. The error is the mean over all images of the
    distance between their bin's mean confidence and its accuracy.

    Args:
        confidence: The probability of each image's predicted category, 0 to 1.
        right: Whether each prediction is correct.
        bins: How many bins.

    Returns:
        The error in percent.
    """
    bin_of_image = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = []
    for number in np.unique(bin_of_image):
        inside = bin_of_image == number
        gap = abs(float(right[inside].mean()) - float(confidence[inside].mean()))
        gaps.append(gap * float(inside.mean()))
    return 100.0 * float(sum(gaps))

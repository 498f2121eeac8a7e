"""Test whether one arm is more accurate than another on the same test images.

All statistics are paired: each image is judged by both arms, and each seed of the treated arm has a control
run of the same seed. What goes in are tables of booleans, one row per seed and one column per image: was the
image classified correctly? What comes out are gains in percentage points with 95 % intervals and p-values.
Where several arms are compared with one control, the p-values carry Holm's correction.
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
BATCH_SIZE = 1 << 20  # flipped signs held in memory at once


def compare_split(
    right: Mapping[str, Sequence[Bool[np.ndarray, " image"]]],
    labels: Int[np.ndarray, " image"],
    ids: Int[np.ndarray, " image"],
    categories: int,
    shares: Mapping[str, Sequence[float]] | None = None,
    errors: Mapping[str, Sequence[float]] | None = None,
    *,
    first: str = "treated",
    key_seed: int = 0,
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
        key_seed: Seeds bootstrap and permutation test.

    Returns:
        The accuracies, and each arm against the control, the arm `first` before the others.

    Raises:
        KeyError: There is no `control`.
    """
    control = np.stack(right["control"])
    others = [name for name in right if name not in ("base", "control")]
    others.sort(key=lambda name: name != first)
    gains = {name: paired_gain(control, np.stack(right[name]), seed=key_seed) for name in others}
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
    flips: int = 10_000,
    resamples: int = 2_000,
    seed: int = 0,
) -> Gain:
    """Estimate how much more accurate one arm is than another, paired by seed and image.

    The standard error comes from a bootstrap over images and seeds (`bootstrap_error`). The interval is the
    mean plus and minus that error times a quantile of Student's t with seeds - 1 degrees of freedom, because
    with few seeds the percentiles of the bootstrap itself are far too narrow. The p-value is that of a
    permutation test: under the null hypothesis each image's difference is as likely to have the other sign.
    With one seed, the error is over images only, and the p-value is McNemar's exact one.

    Args:
        control: Which images the control classifies correctly [seed, image].
        treated: The same for the other arm, on the same images and in the same order of seeds.
        flips: How many times the permutation test flips signs at random; where there are no more ways to
            flip them, it is exact.
        resamples: How many resamples the bootstrap makes.
        seed: Seeds bootstrap and permutation test.

    Returns:
        Treated minus control in percentage points, with interval, p-value and the smallest detectable gain.

    Example:
        >>> import numpy as np
        >>> control = np.array([[True, False, False, True]] * 2)
        >>> treated = np.array([[True, True, True, True]] * 2)
        >>> gain = paired_gain(control, treated)
        >>> gain.mean, gain.p_value
        (50.0, 0.5)
    """
    from scipy import stats  # here, because it takes a second to import

    difference = treated.astype(float) - control.astype(float)
    seeds, images = difference.shape
    mean = float(difference.mean())
    error = bootstrap_error(difference, resamples, seed) if images > 1 else math.inf
    if seeds == 1:
        freedom, p_value = max(images - 1, 1), mcnemar(control[0], treated[0])
        source = "images only (one seed)"
    else:
        freedom, p_value = seeds - 1, _permutation_p(control, treated, flips, seed)
        source = f"images and {seeds} seeds"
    quantile = float(stats.t.ppf(0.5 + LEVEL / 2, freedom))
    return Gain(
        100 * mean,
        100 * (mean - quantile * error),
        100 * (mean + quantile * error),
        p_value,
        source,
        p_adjusted=p_value,
        detectable=100 * errors_to_see(freedom) * error if error > 0 else math.inf,
    )


@functools.cache
def errors_to_see(freedom: int, level: float = LEVEL) -> float:
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


def bootstrap_error(
    difference: Float[np.ndarray, "seed image"], resamples: int = 2_000, seed: int = 0
) -> float:
    """Estimate the standard error of the mean difference by resampling images and seeds independently.

    Resampled are the images' means over seeds, and the seeds' means over images. The residual between the two
    is part of both already; to resample it again would make the error a fifth too wide. A resample of S seeds
    has a variance that is too small by the factor (S - 1) / S, so each seed's distance from the overall mean
    is multiplied by the root of S / (S - 1) first.

    Args:
        difference: Treated minus control of each seed and image, -1, 0 or 1.
        resamples: How many resamples to draw.
        seed: Seeds the resampling.

    Returns:
        The standard error, in the unit of `difference`.
    """
    seeds, images = difference.shape
    generator = np.random.default_rng([seed, 0xB007])
    of_image, of_seed = difference.mean(0), difference.mean(1) - difference.mean()
    wider = math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 0.0
    of_images = generator.multinomial(images, np.full(images, 1 / images), size=resamples) / images
    of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    return float((of_images @ of_image + wider * (of_seeds @ of_seed)).std(ddof=1))


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


def _permutation_p(
    control: Bool[np.ndarray, "seed image"], treated: Bool[np.ndarray, "seed image"], flips: int, seed: int
) -> float:
    """Return the two-sided p-value of the mean difference under random signs of the images' differences.

    Differences are summed over the seeds, not averaged: whole numbers compare exactly. Where there are no
    more than `flips` ways to choose the signs, each is tried once and the p-value is exact; else as many are
    drawn, and the measured signs count as one more.
    """
    from scipy import stats  # here, because it takes a second to import

    difference = treated.sum(0) - control.sum(0)
    moving = difference[difference != 0]
    if len(moving) < 2:  # the only image that differs does so as much with either sign
        return 1.0
    test = stats.permutation_test(
        (moving,),
        lambda signed, axis: np.abs(signed.sum(axis=axis)),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=flips,
        batch=max(1, BATCH_SIZE // len(moving)),
        rng=np.random.default_rng([seed, 0x51F]),
    )
    return float(test.pvalue)

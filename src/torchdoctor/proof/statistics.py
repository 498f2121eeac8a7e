"""Say what a difference between two arms can bear: paired by image and seed, corrected for many arms."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, stats

from torchdoctor.proof.result import ArmComparison, Gain, SplitComparison
from torchdoctor.types import Verdict

LEVEL = 0.95
POWER = 0.8
BINS = 15


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
    """Compare on one split from who was right: per arm one row of booleans per seed (base: one row).

    `shares` and `errors` hold each arm's background shares and calibration errors, one per seed. `first`
    is the arm that the verdict speaks of.
    """
    control = np.stack(right["control"])
    others = [name for name in right if name not in ("base", "control")]
    others.sort(key=lambda name: name != first)
    gains = {name: paired_gain(control, np.stack(right[name]), seed=key_seed) for name in others}
    adjusted = holm([gain.p_value for gain in gains.values()])
    arms = {}
    for (name, gain), p_adjusted in zip(gains.items(), adjusted, strict=True):
        found = _against(
            control, np.stack(right[name]), replace(gain, p_adjusted=p_adjusted), labels, ids, categories
        )
        arms[name] = replace(found, verdict=verdict_of(found.gain, compared=len(gains)))
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
    labels: Int[np.ndarray, " image"],
    ids: Int[np.ndarray, " image"],
    categories: int,
) -> ArmComparison:
    """Describe one arm against the control."""
    difference = (treated.astype(float) - control.astype(float)).mean(0)
    by_control, by_treated = control.mean(0), treated.mean(0)
    return ArmComparison(
        gain=gain,
        gain_per_category=tuple(_per_category(difference, labels, categories)),
        verdict="no evidence",
        repaired=tuple(ids[(by_treated > 0.5) & (by_control < 0.5)].tolist()),
        broken=tuple(ids[(by_treated < 0.5) & (by_control > 0.5)].tolist()),
        mcnemar=tuple(mcnemar(one, other) for one, other in zip(control, treated, strict=True)),
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
    """Return treated minus control in percentage points, paired by seed and image.

    The standard error is that of a bootstrap over images and seeds at once (`bootstrap_error`), the
    interval takes a t quantile on seeds - 1 degrees of freedom: with three seeds a bootstrap's own
    percentiles are far too narrow. p-value: random sign flips of each image's seed-averaged difference;
    for one seed McNemar's exact test, and an error over images only.
    """
    difference = treated.astype(float) - control.astype(float)
    seeds, images = difference.shape
    mean = float(difference.mean())
    error = bootstrap_error(difference, resamples, seed) if images > 1 else math.inf
    if seeds == 1:
        freedom, p_value = max(images - 1, 1), mcnemar(control[0], treated[0])
        source = "images only (one seed)"
    else:
        freedom, p_value = seeds - 1, _sign_flips(difference.mean(0), flips, seed)
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
    """Return how many standard errors a true gain has to be, to be seen with a probability of POWER.

    Seen: the t interval of this level lies above 0. Student's t around a gain that is not 0 is the
    noncentral one; with few seeds the sum of two central quantiles falls short of it.
    """
    quantile = float(stats.t.ppf(0.5 + level / 2, freedom))
    return float(
        optimize.brentq(lambda gain: stats.nct.sf(quantile, freedom, gain) - POWER, 0.0, 3 * quantile + 5)
    )


def bootstrap_error(
    difference: Float[np.ndarray, "seed image"], resamples: int = 2_000, seed: int = 0
) -> float:
    """Return the standard error of the mean by resampling images and seeds, independently of each other.

    What is resampled are the images' means over the seeds and the seeds' means over the images: what is
    left between them is in both of these means already, and resampling it once more makes the error a
    fifth too wide. The seeds are few: the spread of a resample of S seeds is S - 1 in S of the truth, so
    each seed's distance from the mean of all is widened by the root of S / (S - 1) first.
    """
    seeds, images = difference.shape
    generator = np.random.default_rng([seed, 0xB007])
    of_image, of_seed = difference.mean(0), difference.mean(1) - difference.mean()
    wider = math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 0.0
    of_images = generator.multinomial(images, np.full(images, 1 / images), size=resamples) / images
    of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    return float((of_images @ of_image + wider * (of_seeds @ of_seed)).std(ddof=1))


def mcnemar(control: Bool[np.ndarray, " image"], treated: Bool[np.ndarray, " image"]) -> float:
    """Return McNemar's exact two-sided p-value: are as many images repaired as broken?"""
    better, worse = int((treated & ~control).sum()), int((control & ~treated).sum())
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values after Holm's step-down correction, in their own order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    found, highest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        found[place] = highest
    return found


def calibration_error(
    confidence: Float[np.ndarray, " image"], right: Bool[np.ndarray, " image"], bins: int = BINS
) -> float:
    """Return the expected calibration error in percent: how far confidence is from accuracy, bin by bin."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = []
    for one in np.unique(place):
        inside = place == one
        gap = abs(float(right[inside].mean()) - float(confidence[inside].mean()))
        gaps.append(gap * float(inside.mean()))
    return 100.0 * float(sum(gaps))


def _sign_flips(values: Float[np.ndarray, " image"], flips: int, seed: int) -> float:
    """Return the two-sided p-value of the mean under random signs; the sample counts itself."""
    moving = values[values != 0]
    if len(moving) == 0:
        return 1.0
    generator = np.random.default_rng([seed, 0x51F])
    observed, hits, chunk = abs(float(moving.sum())), 0, max(1, (1 << 22) // len(moving))
    for start in range(0, flips, chunk):
        signs = generator.integers(0, 2, size=(min(chunk, flips - start), len(moving)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ moving) >= observed - 1e-9).sum())
    return (1 + hits) / (1 + flips)


def verdict_of(gain: Gain, compared: int = 1) -> Verdict:
    """Return `helped` if the interval lies above 0, `harmed` if below, else `no evidence`.

    Where several arms were compared the corrected p-value must be at most 5 % as well.
    """
    if compared > 1 and not gain.p_adjusted <= 1 - LEVEL:
        return "no evidence"
    if gain.low > 0:
        return "helped"
    return "harmed" if gain.high < 0 else "no evidence"


def overall_verdict(
    splits: Mapping[str, SplitComparison], primary: str, max_loss: float, min_gain: float = 0.0
) -> tuple[Verdict, str]:
    """Return the primary split's verdict on its first arm, and what it rests on.

    `harmed` where another split loses more than `max_loss` points; the reason says so where a gain is
    below `min_gain`, and what could have been detected where there is no evidence.
    """
    for name, split in splits.items():
        lost = -split.first.gain.mean
        if name != primary and lost > max_loss:
            return "harmed", (
                f"{name} loses {lost:.1f} points against the control, more than the {max_loss:g} allowed"
            )
    found = splits[primary].first
    gain = found.gain
    reason = (
        f"{_signed(gain.mean)} points on {primary}, 95 % interval {_signed(gain.low)} to {_signed(gain.high)}"
    )
    if found.verdict == "no evidence" and math.isfinite(gain.detectable):
        reason += (
            f"; a gain of {gain.detectable:.1f} points would have been seen in at least four cases of five"
        )
    elif found.verdict == "no evidence" and gain.low == gain.high == 0:
        reason += (
            "; it is right and wrong on the same images as the control, so that nothing can be said of power"
        )
    if found.verdict == "helped" and gain.mean < min_gain:
        reason += f": below the {min_gain:g} points asked for"
    return found.verdict, reason


def _signed(value: float) -> str:
    """Return a number with its sign, a true minus for negative ones."""
    return f"{value:+.1f}".replace("-", "−").replace("inf", "∞")

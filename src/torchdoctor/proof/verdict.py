"""Turn measured gains into verdicts: `helped`, `harmed` or `no evidence`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torchdoctor.proof.split_result import Gain, SplitComparison
from torchdoctor.types import Verdict

LEVEL = 0.95  # of the intervals; p-values are compared with 1 - LEVEL


def verdict_of(gain: Gain, compared: int = 1) -> Verdict:
    """Judge the gain of one arm over the control.

    Args:
        gain: The gain with its interval and its p-value after Holm's correction.
        compared: How many arms were compared with the control.

    Returns:
        `helped` if the whole interval lies above 0, `harmed` if it lies below, else `no evidence`. Where
        several arms were compared, the corrected p-value must be at most 5 % as well.

    Example:
        >>> verdict_of(Gain(mean=3.0, low=1.0, high=5.0, p_value=0.01, variance_from="images and 3 seeds"))
        'helped'
    """
    if compared > 1 and not gain.p_adjusted <= 1 - LEVEL:
        return "no evidence"
    if gain.low > 0:
        return "helped"
    return "harmed" if gain.high < 0 else "no evidence"


def overall_verdict(
    splits: Mapping[str, SplitComparison], primary: str, max_loss: float, min_gain: float = 0.0
) -> tuple[Verdict, str]:
    """Judge the first arm of a comparison over all test splits.

    Args:
        splits: The comparison with the control on each test split.
        primary: The split whose verdict counts.
        max_loss: How many percentage points any other split may lose; more makes the verdict `harmed`.
        min_gain: The gain asked for, in percentage points; where a gain is smaller, the reason says so.

    Returns:
        The verdict, and a sentence with the numbers it rests on. Without evidence, the sentence says which
        gain would have been found.
    """
    for name, split in splits.items():
        lost = -split.first.gain.mean
        if name != primary and lost > max_loss:
            return "harmed", (
                f"{name} loses {lost:.1f} points against the control, more than the {max_loss:g} allowed"
            )
    first = splits[primary].first
    gain = first.gain
    reason = (
        f"{_signed(gain.mean)} points on {primary}, 95 % interval {_signed(gain.low)} to {_signed(gain.high)}"
    )
    if first.verdict == "no evidence" and math.isfinite(gain.detectable):
        reason += (
            f"; a gain of {gain.detectable:.1f} points would have been seen in at least four cases of five"
        )
    elif first.verdict == "no evidence" and gain.low == gain.high == 0:
        reason += (
            "; it is right and wrong on the same images as the control, so that nothing can be said of power"
        )
    if first.verdict == "helped" and gain.mean < min_gain:
        reason += f": below the {min_gain:g} points asked for"
    return first.verdict, reason


def _signed(value: float) -> str:
    """Return a number with its sign, a true minus for negative ones."""
    return f"{value:+.1f}".replace("-", "−").replace("inf", "∞")

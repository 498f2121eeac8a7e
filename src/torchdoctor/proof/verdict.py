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
        several arms were compared, the corrected p-value must be at most 5 % as well. With a single seed it
        is always `no evidence`: the interval then holds for these two networks, and another training of the
        same arm can differ from them by more.

    Example:
        >>> verdict_of(Gain(mean=3.0, low=1.0, high=5.0, p_value=0.01, variance_from="images and 3 seeds"))
        'helped'
    """
    if gain.seeds == 1 or (compared > 1 and not gain.p_adjusted <= 1 - LEVEL):
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
        max_loss: How many percentage points any other split may lose. Where the whole interval of a split
            lies below that, the verdict is `harmed`.
        min_gain: The gain asked for, in percentage points; where the interval reaches below it, the reason
            says so.

    Returns:
        The verdict, and a sentence with the numbers it rests on. It names every other split that is proven
        harmed. Without evidence, it says which gain would have been found.
    """
    first = splits[primary].first
    gain = first.gain
    reason = f"{_signed(gain.mean)} points on {primary}, {_interval(gain)}"
    if gain.seeds == 1:
        reason += ", on these two networks only: one seed cannot show what another training would give"
    elif first.verdict == "no evidence":
        reason += _power(gain)
    elif gain.seeds == 2:
        reason += ", from two seeds only: confirm it with three or more"
    if first.verdict == "helped" and not gain_is_enough(gain, min_gain):
        reach = "below" if gain.mean < min_gain else "not proven to reach"
        reason += f": {reach} the {min_gain:g} points asked for"
    verdict = first.verdict
    for name, split in splits.items():
        other = split.first.gain
        if name == primary or other.seeds == 1:
            continue
        if other.high < -max_loss:
            verdict = "harmed"
            reason = (
                f"{name} loses {-other.mean:.1f} points against the control ({_interval(other)}), more than "
                f"the {max_loss:g} allowed; {reason}"
            )
        elif split.first.verdict == "harmed":
            reason += f"; but {name} is harmed: {_signed(other.mean)} points, {_interval(other)}"
        elif -other.mean > max_loss:
            reason += (
                f"; {name} may have lost more than the {max_loss:g} points allowed: "
                f"{_signed(other.mean)}, {_interval(other)}"
            )
    return verdict, reason


def gain_is_enough(gain: Gain, min_gain: float) -> bool:
    """Return whether a gain is proven to reach what was asked for.

    Args:
        gain: The gain with its interval.
        min_gain: The gain asked for, in percentage points.

    Returns:
        Whether the whole interval lies at or above it.
    """
    return gain.low >= min_gain


def _power(gain: Gain) -> str:
    """Return what a comparison without evidence could have shown, to be added to its reason."""
    if math.isfinite(gain.detectable):
        return f"; a gain of {gain.detectable:.1f} points would have been seen in about four cases of five"
    if gain.low == gain.high == 0:
        return (
            "; it is right and wrong on the same images as the control, so that nothing can be said of power"
        )
    return ""


def _interval(gain: Gain) -> str:
    """Return the interval in words."""
    return f"95 % interval {_signed(gain.low)} to {_signed(gain.high)}"


def _signed(value: float) -> str:
    """Return a number with its sign, a true minus for negative ones."""
    return f"{value:+.1f}".replace("-", "−").replace("inf", "∞")

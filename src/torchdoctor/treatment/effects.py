"""What cures brought where their cause was planted; benchmarks/study/planted.py measures it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torchdoctor.diagnosis.causes_result import Cause


@dataclass(frozen=True)
class Effect:
    """What the choice of a checkup brought over its control, on networks with a planted fault.

    Attributes:
        networks: How many networks were treated.
        gain: The mean gain over the control, in percentage points.
        low: The lower bound of its 95 % interval over the networks.
        high: The upper bound.
        control: What the control itself gained over the faulty network, in percentage points.
        measure: What was measured, such as `accuracy before other backgrounds`.
    """

    networks: int
    gain: float
    low: float
    high: float
    control: float
    measure: str = "accuracy"


# Computed from benchmarks/results/planted.jsonl; a test computes them again.
EFFECTS: Mapping[Cause, Effect] = {
    "label looks wrong": Effect(10, 2.1, 0.9, 3.3, 1.5),
    "rare category": Effect(15, 6.2, 3.2, 9.2, 0.2),
    "over-fitted": Effect(5, 7.2, 4.0, 10.3, 0.0),
    "under-fitted": Effect(5, 4.5, -0.1, 9.0, 13.0),
    "background": Effect(5, 16.3, 14.8, 17.7, 1.2),
    "wrong kernels": Effect(5, 0.4, -0.3, 1.1, 6.0),
}


def effect_of(cause: Cause) -> str:
    """Say what was measured for a cause.

    Args:
        cause: The cause.

    Returns:
        One sentence; empty where nothing was measured.
    """
    effect = EFFECTS.get(cause)
    if effect is None:
        return ""
    gain = f"{effect.gain:+.1f} points of {effect.measure} ({effect.low:+.1f} to {effect.high:+.1f})"
    return (
        f"Where this was planted ({effect.networks} networks), further training alone brought "
        f"{effect.control:+.1f} points, and the chosen cure {gain} on top."
    )

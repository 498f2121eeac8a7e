"""What is read back of `compare.json`."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, model_validator

from torchdoctor.files.reading import Number, Record
from torchdoctor.types import Verdict


class GainRecord(Record):
    """The gain of one arm on one split. JSON holds no infinite number: null stands for it."""

    mean: Number
    low: float | None
    high: float | None
    p_value: Number
    variance_from: str
    p_adjusted: Number
    detectable: float | None = math.nan
    seeds: int = 0

    def bounded(self) -> dict[str, Any]:
        """Return the fields of a `Gain`.

        Returns:
            The numbers by name: a missing bound is infinite where the gain is known and NaN where it is not.
        """
        known = not math.isnan(self.mean)
        low, high = (-math.inf, math.inf) if known else (math.nan, math.nan)
        return {
            **self.model_dump(),
            "low": low if self.low is None else self.low,
            "high": high if self.high is None else self.high,
            "detectable": math.inf if self.detectable is None else self.detectable,
        }


class AgainstControlRecord(Record):
    """One arm against the control on one split."""

    gain: GainRecord
    gain_per_category: tuple[Number, ...]
    verdict: Verdict
    repaired: tuple[int, ...]
    broken: tuple[int, ...]
    mcnemar: tuple[Number, ...]


class ArmRecord(Record):
    """One arm on one split."""

    accuracy: tuple[Number, ...]
    per_category: tuple[Number, ...]
    background_share: float | None
    calibration_error: float | None


class ComparisonRecord(Record):
    """What `compare.json` holds."""

    verdict: Verdict
    reason: str
    arm: str
    primary: str
    min_gain: float
    max_loss: float
    seeds: tuple[int, ...]
    steps: int
    seconds: dict[str, tuple[Number, ...]]
    classes: tuple[str, ...]
    images: dict[str, int]
    between_controls: dict[str, Number] = Field(default_factory=dict)
    arms: dict[str, dict[str, ArmRecord]]
    against_control: dict[str, dict[str, AgainstControlRecord]]

    @model_validator(mode="after")
    def _same_splits(self) -> ComparisonRecord:
        """Check that every split is there in every part."""
        for name in self.against_control:
            if name not in self.images or any(name not in splits for splits in self.arms.values()):
                raise ValueError(f"split {name!r} is in against_control and not everywhere else")
            if not self.against_control[name]:
                raise ValueError(f"split {name!r} compares no arm with the control")
        if self.primary not in self.against_control:
            raise ValueError(f"the primary split {self.primary!r} is not in against_control")
        return self

"""The settings of a comparison, with their defaults."""

from __future__ import annotations

from torchdoctor.settings import Amount, SettingsGroup, setting


class ProofSettings(SettingsGroup):
    """What a treatment must reach, and what it may cost elsewhere."""

    min_gain: Amount = setting(
        0.0,
        "Percentage points that the whole 95 % interval of the gain must reach; else the exit code is 3.",
    )
    max_loss: Amount = setting(
        5.0,
        "Percentage points that another test split may lose; where it is proven that a split loses more, "
        "the verdict is harmed.",
    )

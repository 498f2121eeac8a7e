"""The settings of a comparison, with their defaults."""

from __future__ import annotations

from torchdoctor.settings import Amount, SettingsGroup, setting


class ProofSettings(SettingsGroup):
    """What a treatment must reach, and what it may cost elsewhere."""

    min_gain: Amount = setting(
        0.0, "Percentage points that the treatment must gain over the control; with less, the exit code is 3."
    )
    max_loss: Amount = setting(
        5.0, "Percentage points that any other test split may lose before the verdict is harmed."
    )

"""Say what the demo trains and how it treats it."""

from __future__ import annotations

from dataclasses import replace

from torchdoctor.engine.settings import Settings


def demo_settings(given: Settings) -> tuple[Settings, Settings]:
    """Return the settings of the demo's base training and of its checkup."""
    common = replace(given, data=given.data or "scenes", model=given.model or "small_resnet")
    base = replace(common, epochs=14, weights=None, layers=None)
    return base, common

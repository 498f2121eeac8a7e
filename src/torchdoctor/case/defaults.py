"""Say what a run compares and constrains, and refuse what the data cannot serve."""

from __future__ import annotations

from dataclasses import replace

from torchdoctor.case.settings import Settings
from torchdoctor.data.load import Splits
from torchdoctor.treatment.constraints import CONSTRAINTS, constraints_named, default_constraints, on_layers
from torchdoctor.treatment.remedies import NEED_MASKS
from torchdoctor.treatment.treat import default_arms, remedies_named
from torchdoctor.types import InputError


def check_constraints(settings: Settings, layers: tuple[str, ...], data: Splits) -> None:
    """Refuse unknown arms and constraints, and those that need masks where the training data has none."""
    arms = remedies_named(settings.arms or default_arms(masked_count(data)))
    names = settings.constraints or ()
    for text, one in zip(names, constraints_named(names, layers=layers), strict=True):
        if one.needs_masks and not data.has_masks:
            raise InputError(
                f"--constraints {text!r} needs object masks, and {settings.data!r} has none: give data with "
                "mask or bbox columns or PNGs beside the images, or leave it out"
            )
    for name in arms:
        if name in NEED_MASKS and not data.has_masks:
            raise InputError(
                f"--arms {name!r} needs object masks, and {settings.data!r} has none: give data with mask or "
                "bbox columns or PNGs beside the images, or leave it out"
            )
    weights = settings.weights_by_constraint
    known = [one.name for one in constraints_named(names, layers=layers)] or list(CONSTRAINTS)
    for name in weights if isinstance(weights, dict) else ():
        if name not in known:
            raise InputError(f"--weight {name!r} names no constraint of this run")


def prescribed(settings: Settings, layers: tuple[str, ...], data: Splits) -> Settings:
    """Fill in arms and constraints; each constraint names its layers, so that the record says all."""
    names = settings.constraints or default_constraints(data.has_masks)
    return replace(
        settings,
        arms=settings.arms or default_arms(masked_count(data)),
        constraints=tuple(on_layers(one, layers[-1:]) for one in names),
    )


def masked_count(data: Splits) -> int:
    """Return how many training images have masks."""
    return int(data.train.table.has_mask.sum())

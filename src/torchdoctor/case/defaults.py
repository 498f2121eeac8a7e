"""Choose the arms and constraints of a run, and refuse those that the data or the network do not allow."""

from __future__ import annotations

import numpy as np
from torch import nn

from torchdoctor.case.reviewed import answered_arms
from torchdoctor.case.settings import Settings, Verb
from torchdoctor.data.load import Splits
from torchdoctor.diagnosis.cause_rules import RARE
from torchdoctor.treatment.arms import default_arms, remedies_named, uses_masks
from torchdoctor.treatment.constraints import CONSTRAINTS, constraints_named, default_constraints, on_layers
from torchdoctor.treatment.cure import JOINED_BY
from torchdoctor.treatment.labels_by_hand import ANSWERED
from torchdoctor.treatment.remedies import cure_named
from torchdoctor.treatment.scoring import Select
from torchdoctor.types import InputError

CHOOSING: tuple[Verb, ...] = ("checkup", "demo")  # verbs that choose a cure where no arm is named


def check_constraints(settings: Settings, layers: tuple[str, ...], data: Splits) -> None:
    """Refuse unknown arms and constraints, and those that need masks where the training data has none.

    Args:
        settings: What was asked for.
        layers: The diagnosed layers, from first to last.
        data: The images.

    Raises:
        InputError: An arm, a constraint or the constraint of a weight is unknown, or masks are missing.
    """
    arms = remedies_named(("treated",) if settings.arms == "auto" else settings.arms)
    names = () if settings.constraints == "auto" else settings.constraints
    for text, constraint in zip(names, constraints_named(names, layers=layers), strict=True):
        if constraint.needs_masks and not data.has_masks:
            raise InputError(
                f"--constraints {text!r} needs object masks, and {settings.data!r} has none: give data with "
                "mask or bbox columns or PNGs beside the images, or leave it out"
            )
    for name, remedy in arms.items():
        if uses_masks(remedy) and not data.has_masks:
            raise InputError(
                f"--arms {name!r} needs object masks, and {settings.data!r} has none: give data with mask or "
                "bbox columns or PNGs beside the images, or leave it out"
            )
    weights = settings.weights_by_constraint
    known = [constraint.name for constraint in constraints_named(names, layers=layers)] or list(CONSTRAINTS)
    for name in weights if isinstance(weights, dict) else ():
        if name not in known:
            raise InputError(f"--weight {name!r} names no constraint of this run")


def check_remedies(settings: Settings, model: nn.Module, data: Splits) -> None:
    """Refuse remedies that the network cannot be trained with, before time is spent on a diagnosis.

    Args:
        settings: What was asked for.
        model: The network.
        data: The images; two of them are shown to the network where a remedy needs a linear layer at its end.

    Raises:
        InputError: A remedy that was asked for needs what the network does not have.
    """
    arms = () if settings.arms == "auto" else settings.arms
    given = () if settings.labels is None else (ANSWERED,)
    cures = [cure_named(arm) for arm in arms if arm.partition(JOINED_BY)[0] not in given]
    needy = [cure for cure in cures if cure is not None and cure.needs]
    if needy:
        shown = data.train.select(data.train.table.ids[:2])
        for cure in needy:
            cure.check(model, shown, None)


def prescribed(
    settings: Settings, verb: Verb, layers: tuple[str, ...], data: Splits
) -> dict[str, tuple[str, ...] | str]:
    """Return arms and constraints; each constraint names its layers, so that the record is complete.

    Args:
        settings: What was asked for.
        verb: The command that runs.
        layers: The diagnosed layers, from first to last.
        data: The images.

    Returns:
        The names of the arms, and the texts of the constraints. Where a checkup was given neither, its arms
        are "auto": they are chosen on the validation split, among remedies for the causes that are found.
    """
    masked = masked_count(data)
    names = default_constraints(masked > 0) if settings.constraints == "auto" else settings.constraints
    answered = answered_arms(settings, masked)
    usual = ("control", *answered) if answered else default_arms(masked)
    chooses = verb in CHOOSING and (settings.auto or settings.constraints == "auto")
    return {
        "arms": settings.arms if settings.arms != "auto" or chooses else usual,
        "constraints": tuple(on_layers(name, layers[-1:]) for name in names),
    }


def best_select(settings: Settings, data: Splits) -> Select:
    """Return by which score a remedy is chosen on the validation split: as asked for, else as suits the data.

    Args:
        settings: What was asked for.
        data: The images.

    Returns:
        `balanced` (the mean accuracy of the categories) where a category has less than a quarter of the
        training images of the median category; `mean` (of the accuracy on the images as they are and before
        other backgrounds) where validation images of two categories have masks; else `iid` (the accuracy).
    """
    if settings.select != "auto":
        return settings.select
    counts = np.bincount(data.train.table.labels, minlength=len(data.classes))
    if counts.min() < RARE * np.median(counts):
        return "balanced"
    table = data.validation.table
    return "mean" if len(np.unique(table.labels[table.has_mask])) > 1 else "iid"


def masked_count(data: Splits) -> int:
    """Count the training images that have masks.

    Args:
        data: The images.

    Returns:
        Their number.
    """
    return int(data.train.table.has_mask.sum())

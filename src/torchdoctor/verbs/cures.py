"""The cures of a run: those that network, data and a person's answers allow, and which images judge them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from torchdoctor.case.preparation import Case
from torchdoctor.data.loader import Loader
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.suspects_result import FILE as SUSPECTS
from torchdoctor.diagnosis.suspects_result import Suspects
from torchdoctor.treatment.arms import LEAST_MASKS
from torchdoctor.treatment.cure import JOINED_BY, Cure, together
from torchdoctor.treatment.labels_by_hand import ANSWERED, relabelled, without
from torchdoctor.treatment.remedies import REMEDIES, cure_named
from torchdoctor.treatment.reweighting import LEAST_OF_GROUP, grouped
from torchdoctor.types import InputError


def cures_of(case: Case, folder: Path) -> dict[str, Cure]:
    """Return all cures, with the lists of this run in those that need lists.

    Args:
        case: The prepared case; the answers of a person are in it.
        folder: The run's folder; the suspects are read from it.

    Returns:
        The cures by name.
    """
    cures = dict(REMEDIES)
    answers = case.answers
    if (folder / SUSPECTS).is_file():
        right = set() if answers is None else {*answers.kept, *answers.labels}
        listed = {one.id for one in Suspects.load(folder).suspects}
        cures["drop-suspects"] = without(listed - right)
    groups = case.data.validation.table.groups
    if groups is not None:
        ids = case.data.validation.table.ids.tolist()
        cures["dfr"] = grouped(cures["dfr"], dict(zip(ids, groups, strict=True)))
    if answers is not None and answers.changes:
        cures[ANSWERED] = relabelled(answers.labels, left_out=answers.unusable)
    return cures


def available_cures(case: Case, folder: Path, diagnosis: Diagnosis) -> dict[str, Cure]:
    """Return the cures that this run has what it takes for.

    Args:
        case: The prepared case.
        folder: The run's folder.
        diagnosis: The diagnosis of the case's network.

    Returns:
        The cures by name. Where no budget is given, those whose steps cost more than the control's are left
        out; where no label looks wrong, the one that leaves such images out; with fewer than 20 masks, those
        that need masks; where a category has fewer than 16 images to solve layers on, those that do so;
        and those that need a longer training than this run's.
    """
    found = dict[str, Cure]()
    masked = int(case.data.train.table.has_mask.sum())
    suspected = (folder / SUSPECTS).is_file() and bool(Suspects.load(folder).suspects)
    for name, cure in cures_of(case, folder).items():
        if name == "drop-suspects" and not suspected:
            continue
        dear = case.plan.budget is None and cure.passes > 1
        solvable = not cure.solves_on_validation or _enough_to_solve(case)
        too_short = case.plan.recipe.epochs < cure.least_epochs
        few_masks = "masks" in cure.needs and masked < LEAST_MASKS
        if not dear and not too_short and not few_masks and solvable and _serves(case, cure, diagnosis):
            found[name] = cure
    return found


def _enough_to_solve(case: Case) -> bool:
    """Tell whether half of the validation images, or all training images, have enough of every category."""
    solved_on = validation_images(case, ["dfr"])[0] if len(case.data.validation) else case.data.train
    counts = np.bincount(solved_on.table.labels, minlength=len(case.classes))
    return int(counts.min()) >= LEAST_OF_GROUP


def _serves(case: Case, cure: Cure, diagnosis: Diagnosis) -> bool:
    """Tell whether the network and the data have what a cure needs beside masks."""
    shown = case.data.train.select(case.data.train.table.ids[:2])
    try:
        replace(cure, needs=cure.needs - {"masks"}).check(case.model, shown, diagnosis)
    except InputError:
        return False
    return True


def validation_images(case: Case, arms: Iterable[str]) -> tuple[Loader, Loader]:
    """Return the validation images that remedies may look at, and those that judge them.

    Args:
        case: The prepared case.
        arms: The names of the arms that are trained.

    Returns:
        All of them twice; where a remedy solves layers on what it is given, every other image of each
        category, and the rest.
    """
    images = case.data.validation
    known = map(cure_named, arms)
    if not any(cure is not None and cure.solves_on_validation for cure in known):
        return images, images
    by_category = np.argsort(images.table.labels, kind="stable")  # so that both halves have every category
    ids = images.table.ids[by_category]
    return images.select(ids[::2]), images.select(ids[1::2])


def remedies_for(arms: Iterable[str], cures: Mapping[str, Cure]) -> list[str | Cure]:
    """Return arms as `treat` takes them.

    Args:
        arms: Their names.
        cures: The cures of the run (see `cures_of`).

    Returns:
        The names; the cure itself where the run has put a list into it, joined ones too.
    """
    found: list[str | Cure] = []
    for name in arms:
        first, _, then = name.partition(JOINED_BY)
        own = cures.get(first)
        if own is None or own is REMEDIES.get(first) or (then and cure_named(name) is None):
            found.append(name)
        else:
            found.append(together(own, cures[then]) if then else own)
    return found

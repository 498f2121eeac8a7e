"""Look for training images whose labels look wrong, and show the first of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torchdoctor.case.preparation import Case
from torchdoctor.case.second_opinion import opinion_on
from torchdoctor.diagnosis.second_opinion import SecondOpinion
from torchdoctor.diagnosis.suspects import find_suspects
from torchdoctor.diagnosis.suspects_result import FILE, LIST, Suspects
from torchdoctor.report.suspect_cards import ShownSuspect
from torchdoctor.types import InputError, Progress
from torchdoctor.verbs.pictures import displayed_pixels

SHOWN = 12  # suspects in a report; labels.csv has all of them
MOST_GIGABYTES = 8.0  # of memory; more than that is left to those who ask for it in Python
FEATURES, COPIES = 1024, 40  # numbers of an image beside its logits, and bytes for each number, about


def suspects_stage(case: Case, folder: Path, progress: Progress) -> Suspects:
    """Look for training images whose labels look wrong, and write `labels.csv` and `suspects.json`.

    Args:
        case: The prepared case.
        folder: The run's folder; what an earlier process wrote there is read.
        progress: Called with stage, done, of how many.

    Returns:
        The suspects; where nothing can be said, none, and a remark that says why.
    """
    if (folder / FILE).is_file():
        return Suspects.load(folder)
    try:
        suspects = _found(case, progress)
    except InputError as error:
        suspects = Suspects((), 0, 0.0, math.nan, (f"Labels were not looked at: {error}.",))
    named = [one.id for one in suspects.suspects]
    suspects.save(folder, names=dict(zip(named, case.names_of(named), strict=True)))
    return suspects


def _found(case: Case, progress: Progress) -> Suspects:
    """Look for suspects, with other networks where that works; InputError where nothing can be said."""
    train = case.data.train

    def find(second: Sequence[SecondOpinion]) -> Suspects:
        gigabytes = gigabytes_of(len(train), len(case.classes), len(second))
        if gigabytes > MOST_GIGABYTES:
            raise InputError(
                f"{len(train):,} images of {len(case.classes):,} categories would take about "
                f"{gigabytes:.0f} GB of memory: give a part of them to torchdoctor.find_suspects"
            )
        return find_suspects(
            case.model, train, seed=case.plan.seed, classes=case.classes, second=second, progress=progress,
            processes=case.processes,
        )  # fmt: skip

    others = [opinion_on(opinion, train) for opinion in case.second if opinion.new_head]
    try:
        return find(others)
    except InputError as error:
        if not others:
            raise
        alone = find(())
        return replace(alone, remarks=(*alone.remarks, f"No other network judged these labels: {error}."))


def gigabytes_of(images: int, categories: int, others: int = 0) -> float:
    """Estimate the memory that the search for wrong labels takes.

    Args:
        images: The number of training images.
        categories: The number of categories.
        others: The number of other networks that judge labels too.

    Returns:
        Gigabytes; with more than `MOST_GIGABYTES` a run leaves the search out.
    """
    return images * (1 + others) * (FEATURES + categories) * COPIES / 1e9


def suspects_record(folder: Path, suspects: Suspects) -> dict[str, object]:
    """Return what `diagnose --json` prints of the suspects.

    Args:
        folder: The run's folder.
        suspects: The suspects.

    Returns:
        Values by name: how many labels are listed, of how many images, how many of them are expected to be
        wrong (0..1; NaN without any), the share of wrong labels that is proven, remarks, and where the list
        is.
    """
    return {
        "listed": len(suspects.suspects),
        "images": suspects.images,
        "expected": suspects.expected(),
        "share": suspects.share,
        "remarks": suspects.remarks,
        "list": str(folder / LIST),
    }


def shown_suspects(case: Case, suspects: Suspects) -> list[ShownSuspect]:
    """Load the first suspects, and beside each the most similar image of either category.

    Args:
        case: The prepared case.
        suspects: The suspects among its training images.

    Returns:
        At most 12 of them, for the report.
    """
    first = suspects.suspects[:SHOWN]
    wanted = {
        image for one in first for image in (one.id, *one.like_label[:1], *one.like_proposed[:1])
    }  # fmt: skip
    pixels = {
        image: displayed_pixels(batch.images[row], case.data.preprocessing)
        for batch in (case.data.train.select(sorted(wanted)) if wanted else ())
        for row, image in enumerate(batch.ids.tolist())
    }
    return [
        ShownSuspect(
            name,
            one,
            pixels[one.id],
            {
                category: pixels[similar[0]]
                for category, similar in ((one.label, one.like_label), (one.proposed, one.like_proposed))
                if similar
            },
        )
        for one, name in zip(first, case.names_of([one.id for one in first]), strict=True)
    ]

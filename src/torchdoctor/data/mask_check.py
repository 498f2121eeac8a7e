"""Check the masks of a data set: which images have one, how large objects are, and what does not fit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from torchdoctor.data.annotations import MaskError
from torchdoctor.data.checking import splits_of
from torchdoctor.data.image_names import DataImages
from torchdoctor.data.mask_folder import MaskMatches, with_masks
from torchdoctor.data.mask_formats.annotation import Problem
from torchdoctor.data.mask_import import DrawnMasks
from torchdoctor.data.table import Tables
from torchdoctor.types import InputError, Progress, silent

MOST_LISTED = 1000  # names of images without a mask that a record lists
UNLABELLED = "without a label"  # the category of annotations whose shapes have none, or without any shape


@dataclass
class Coverage:
    """How well the images of a category are covered by masks.

    Attributes:
        images: The number of its images.
        shares: For each usable mask the share of its image that is the object.
    """

    images: int = 0
    shares: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Describe the coverage by values that JSON can hold.

        Returns:
            The number of images and of masks, the share of images with a mask, and the mean share of the
            object in its image; None where there is nothing to divide by.
        """
        masks = len(self.shares)
        return {
            "images": self.images,
            "masks": masks,
            "share_with_mask": round(masks / self.images, 6) if self.images else None,
            "mean_object_share": round(float(np.mean(self.shares)), 6) if masks else None,
        }


@dataclass(frozen=True)
class MaskCheck:
    """The result of checking masks.

    Attributes:
        origin: What was checked: a `--data` value, or a file or folder of annotations.
        categories: The coverage of each category; without a data set of each label.
        problems: What does not fit.
        missing: The images without a mask.
        full: The images whose mask covers them whole.
        unmatched: Masks or annotations that belong to no image.
        notes: What was left out or read in a certain way, in sentences.
    """

    origin: str
    categories: Mapping[str, Coverage]
    problems: tuple[Problem, ...]
    missing: tuple[str, ...]
    full: tuple[str, ...]
    unmatched: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Describe the result by values that JSON can hold.

        Returns:
            Everything as numbers, lists and names; of the images without a mask the first 1000.
        """
        whole = Coverage(
            sum(entry.images for entry in self.categories.values()),
            [share for entry in self.categories.values() for share in entry.shares],
        )
        kinds: dict[str, int] = {}
        for problem in self.problems:
            kinds[problem.kind] = kinds.get(problem.kind, 0) + 1
        return {
            "origin": self.origin,
            **whole.to_json(),
            "missing": len(self.missing),
            "missing_images": list(self.missing[:MOST_LISTED]),
            "full": list(self.full),
            "categories": {name: entry.to_json() for name, entry in self.categories.items()},
            "problem_counts": kinds,
            "problems": [problem.to_json() for problem in self.problems],
            "unmatched": list(self.unmatched),
            "notes": list(self.notes),
        }


def check_data_masks(
    tables: Tables,
    folder: Path | None = None,
    matches: MaskMatches | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    progress: Progress = silent,
) -> MaskCheck:
    """Decode every mask of a data set and compare it with its image.

    Args:
        tables: The data set.
        folder: The folder that further masks lie in.
        matches: Which of its files belongs to which image.
        labels: The labels that the masks in the folder were drawn from, by their paths in it.
        progress: Called after every image.

    Returns:
        How many images have a mask, how large objects are, and which masks do not fit.
    """
    data = DataImages(tables)
    problems = [] if matches is None else list(matches.problems)
    if folder is not None and matches is not None:
        problems += _contradicting_labels(data, folder, matches, labels or {})
        tables = with_masks(tables, folder, matches)
    wrong = {problem.image for problem in problems if problem.kind == "other category"}
    splits, missing, full = splits_of(tables), [], []
    categories = {name: Coverage() for name in tables.classes}

    def measure(place: int) -> float | Problem | None:
        image = data.images[place]
        table = splits[image.split]
        if not table.has_mask[image.position]:
            return None
        try:
            mask = table.read(image.position)[1]
        except InputError as error:
            kind = error.kind if isinstance(error, MaskError) else "unreadable"
            return Problem(kind, image.name, str(error))
        if mask is None:
            return None
        share = float((np.asarray(mask) > 0).mean())
        text = f"{image.name}: the mask marks no pixel; remove it, or mark the object"
        return share if share > 0 else Problem("empty", image.name, text)

    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        for done, outcome in enumerate(threads.map(measure, range(len(data.images))), 1):
            progress("masks", done, len(data.images))
            image = data.images[done - 1]
            coverage = categories[image.category]
            coverage.images += 1
            if isinstance(outcome, Problem):
                problems.append(outcome)
            elif outcome is None:
                missing.append(image.name)
            elif image.name not in wrong:
                coverage.shares.append(outcome)
                full += [image.name] if outcome == 1 else []
    unmatched = () if matches is None else tuple(map(str, matches.unmatched))
    told = () if matches is None else matches.remarks
    return MaskCheck(tables.origin, categories, tuple(problems), tuple(missing), tuple(full), unmatched, told)


def _contradicting_labels(
    data: DataImages, folder: Path, matches: MaskMatches, labels: Mapping[str, Sequence[str]]
) -> list[Problem]:
    """Return the masks that were drawn from shapes of another category than their image's."""
    categories = {(image.split, image.position): image for image in data.images}
    problems = []
    for key, file in matches.files.items():
        image = categories[key]
        given = labels.get(file.relative_to(folder).as_posix(), ())
        named = [name for label in given if (name := data.category_named(label)) is not None]
        if named and image.category not in named:
            text = f"{file}: drawn from shapes labelled {', '.join(map(repr, named))}; the image "
            text += f"{image.name} is of {image.category!r}"
            problems.append(Problem("other category", image.name, text))
    return problems


def check_drawn_masks(drawn: DrawnMasks, origin: str, tables: Tables | None = None) -> MaskCheck:
    """Check masks that were drawn from annotations and not written yet.

    Args:
        drawn: The masks.
        origin: The file or folder of the annotations.
        tables: The data set whose images they belong to; None where only the annotations are checked.

    Returns:
        The same as `check_data_masks`. Without a data set, categories are labels, and the images are those
        that the annotations name and nothing is wrong with.
    """
    categories: dict[str, Coverage] = {}
    if tables is not None:
        categories = {name: Coverage() for name in tables.classes}
        for image in DataImages(tables).images:
            categories[image.category].images += 1
    for mask in drawn.masks:
        name = mask.category or ", ".join(mask.labels) or UNLABELLED
        coverage = categories.setdefault(name, Coverage())
        coverage.images += tables is None
        coverage.shares.append(mask.share)
    missing = list(drawn.without_shapes)
    if tables is None and missing:
        categories.setdefault(UNLABELLED, Coverage()).images += len(missing)
    if tables is not None:
        named = {mask.image for mask in drawn.masks} | {problem.image for problem in drawn.problems}
        missing = [image.name for image in DataImages(tables).images if image.name not in named]
    full = tuple(mask.image for mask in drawn.masks if mask.share == 1)
    return MaskCheck(origin, categories, drawn.problems, tuple(missing), full, drawn.unmatched, drawn.notes)

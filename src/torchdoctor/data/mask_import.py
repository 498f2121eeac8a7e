"""Turn annotations into one mask for each image, and say of each what could not be turned into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from torchdoctor.data.annotations import SIDEWAYS, MaskError, check_mask_size
from torchdoctor.data.image_names import DataImage, DataImages, places_of
from torchdoctor.data.mask_formats.annotation import (
    AnnotatedImage,
    Annotations,
    Area,
    Notes,
    Problem,
    Shape,
    Size,
    draw_shapes,
)
from torchdoctor.data.mask_formats.files import image_size
from torchdoctor.data.mask_formats.png import png_of
from torchdoctor.data.table import Tables
from torchdoctor.types import InputError, Progress, silent

NOT_DRAWN = "shapes labelled as another category than their image: not drawn"
OTHER_LABELS = "shapes of labels that --label does not name: not drawn"


@dataclass(frozen=True)
class DrawnMask:
    """A mask that was drawn from annotations.

    Attributes:
        image: The image, as the data set or else its annotation calls it.
        place: Where the mask is written below the folder of masks, without the ending.
        png: The content of the PNG file.
        share: The share of the image that is the object, above 0 and at most 1.
        labels: The labels of the shapes that were drawn.
        sources: The files of the annotations.
        category: The image's category; without a data set the only label, None where there are several.
    """

    image: str
    place: str
    png: bytes
    share: float
    labels: tuple[str, ...]
    sources: tuple[str, ...]
    category: str | None


@dataclass(frozen=True)
class DrawnMasks:
    """The masks that were drawn from annotations, and what has none.

    Attributes:
        masks: The masks.
        problems: Why images have no mask.
        unmatched: The images of annotations that the data set does not have.
        without_shapes: The images whose annotations hold no shape.
        notes: What was left out or read in a certain way, in sentences.
    """

    masks: tuple[DrawnMask, ...]
    problems: tuple[Problem, ...]
    unmatched: tuple[str, ...]
    without_shapes: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Describe the masks by values that JSON can hold.

        Returns:
            Of each mask the image, the share, the labels and the sources; and everything else.
        """
        return {
            "masks": [
                {"image": mask.image, "mask": f"{mask.place}.png", "share": round(mask.share, 6),
                 "category": mask.category, "labels": list(mask.labels), "sources": list(mask.sources)}
                for mask in self.masks
            ],
            "problems": [problem.to_json() for problem in self.problems],
            "unmatched": list(self.unmatched),
            "without_shapes": list(self.without_shapes),
            "notes": list(self.notes),
        }  # fmt: skip


@dataclass(frozen=True)
class _Target:
    """An image that annotations belong to, and these."""

    name: str
    parts: list[AnnotatedImage]
    own: DataImage | None = None


def only_labels(annotations: Annotations, labels: Sequence[str]) -> Annotations:
    """Leave out the shapes of all labels but some; shapes that cut out others stay.

    Args:
        annotations: What was read from the files of an annotation program.
        labels: The labels whose shapes stay, as the annotations write them.

    Returns:
        The annotations with these shapes; images may be left without any.

    Raises:
        InputError: No shape has one of the labels; the message lists the labels that are there.
    """
    there = Counter(shape.label for image in annotations.images for shape in image.shapes if not shape.cuts)
    for label in labels:
        if label not in there:
            listed = ", ".join(f"{name!r} ({there[name]})" for name in sorted(filter(None, there)))
            raise InputError(
                f"--label {label!r}: no shape has this label; the labels that are there, each with its "
                f"number of shapes: {listed or 'none, the shapes are not labelled'}"
            )
    notes = Notes()
    notes.add(OTHER_LABELS, sum(number for name, number in there.items() if name not in labels))
    images = tuple(replace(image, shapes=_labelled(image, labels)) for image in annotations.images)
    return replace(annotations, images=images, notes=annotations.notes + notes.sentences)


def _labelled(image: AnnotatedImage, labels: Sequence[str]) -> tuple[Shape, ...]:
    """Return the shapes of some labels with those that cut; none where only those that cut are left."""
    shapes = tuple(shape for shape in image.shapes if shape.cuts or shape.label in labels)
    return () if all(shape.cuts for shape in shapes) else shapes


def draw_annotations(
    annotations: Annotations, tables: Tables | None = None, progress: Progress = silent
) -> DrawnMasks:
    """Draw one mask for each annotated image: the pixels that any of its shapes covers.

    Args:
        annotations: What was read from the files of an annotation program.
        tables: The data set whose images the annotations belong to; without it the names in the annotations
            count, and images lie beside the annotations or have the size that these give.
        progress: Called after every image.

    Returns:
        The masks, and for every image without one the reason.
    """
    data = None if tables is None else DataImages(tables)
    notes = Notes()
    targets, unmatched, problems = _targets(annotations, data)
    masks: list[DrawnMask] = []
    without = []
    places = _places(targets)
    for done, (target, place) in enumerate(zip(targets, places, strict=True), 1):
        progress("masks", done, len(targets))
        if not any(image.shapes for image in target.parts):
            without.append(target.name)
            continue
        try:
            masks.append(_drawn(target, place, data, tables, notes))
        except InputError as error:
            kind = error.kind if isinstance(error, MaskError) else "unreadable"
            problems.append(Problem(kind, target.name, str(error)))
    notes.add("masks of a whole image", sum(mask.share == 1 for mask in masks))
    return DrawnMasks(
        tuple(masks),
        (*annotations.problems, *problems),
        tuple(unmatched),
        tuple(without),
        annotations.notes + notes.sentences,
    )


def _targets(
    annotations: Annotations, data: DataImages | None
) -> tuple[list[_Target], list[str], list[Problem]]:
    """Put the annotations of each image together; return also names without an image, and doubtful ones."""
    found: dict[Any, _Target] = {}
    plain = _plain_names(annotations)
    unmatched, problems = [], []
    for image in annotations.images:
        if not PurePosixPath(image.name).name:
            problems.append(Problem("image", image.source, f"{image.source}: names no image"))
            continue
        if data is None:
            name = plain[image.name]
            found.setdefault(name, _Target(name, [])).parts.append(image)
            continue
        names = (image.name, *image.other_names)
        matches = data.find(names)
        if not matches:
            unmatched.append(image.name)
            continue
        own = matches[0]
        other = data.contradiction(image.name, own)
        if len(matches) > 1:
            listed = ", ".join(match.name for match in matches[:3])
            text = f"{image.source}: {image.name!r} may be any of {len(matches)} images: {listed}; "
            text += "give the folder of the image in its annotation, or import each folder for itself"
            problems.append(Problem("several images", image.name, text))
        elif other is not None:
            text = f"{image.source}: {image.name!r} names the category {other!r}; the image {own.name} is of "
            problems.append(Problem("other category", own.name, f"{text}{own.category!r}"))
        else:
            found.setdefault(own.name, _Target(own.name, [], own)).parts.append(image)
    return list(found.values()), unmatched, problems


def _plain_names(annotations: Annotations) -> dict[str, str]:
    """Return what images are called where no data set names them: a short name, unless two share it."""
    plain = {image.name: image.plain_name or image.name for image in annotations.images}
    shared = Counter(plain.values())
    return {name: short if shared[short] == 1 else name for name, short in plain.items()}


def _places(targets: Sequence[_Target]) -> list[str]:
    """Return where masks are written; a data set's own images decide which names are clear."""
    return [
        place if target.own is None else target.own.place
        for target, place in zip(targets, places_of([target.name for target in targets]), strict=True)
    ]


def _drawn(
    target: _Target, place: str, data: DataImages | None, tables: Tables | None, notes: Notes
) -> DrawnMask:
    """Draw the mask of an image."""
    size, orientation = _size(target, tables)
    area: Area = np.zeros((size[1], size[0]), dtype=bool)
    labels: set[str] = set()
    for image in target.parts:
        others = _other_categories(image, target, data)
        notes.add(NOT_DRAWN, sum(shape.label in others for shape in image.shapes))
        if image.shapes and all(shape.label in others for shape in image.shapes):
            continue
        area |= _upright(image, size, orientation, others)
        labels |= set(image.labels) - set(others)
    sources = tuple(dict.fromkeys(image.source for image in target.parts))
    if not area.any():
        given = sorted({label for image in target.parts for label in image.labels})
        if target.own is not None and given and not labels:
            text = (
                f"{sources[0]}: shapes labelled {', '.join(map(repr, given))} on {target.name}, an image of "
            )
            raise MaskError(f"{text}the category {target.own.category!r}", "other category")
        raise MaskError(f"{sources[0]}: the shapes on {target.name} cover no pixel", "empty")
    category = target.own.category if target.own is not None else None
    if category is None and len(labels) == 1:
        category = next(iter(labels))
    return DrawnMask(
        target.name, place, png_of(area), float(area.mean()), tuple(sorted(labels)), sources, category
    )


def _other_categories(image: AnnotatedImage, target: _Target, data: DataImages | None) -> tuple[str, ...]:
    """Return the labels of an image's shapes that name another category than the image's."""
    if data is None or target.own is None:
        return ()
    own = target.own.category
    return tuple(label for label in image.labels if (data.category_named(label) or own) != own)


def _size(target: _Target, tables: Tables | None) -> tuple[Size, int]:
    """Return the size of an upright image, and its EXIF orientation."""
    file = target.own.file if target.own is not None else None
    if file is None and target.own is None:
        file = next((image.file for image in target.parts if image.file is not None), None)
    if file is not None:
        return image_size(file)
    if target.own is not None and tables is not None:
        own = target.own
        table = {"train": tables.train, "validation": tables.validation, **tables.tests}[own.split]
        return table.read(own.position)[0].size, 1
    for image in target.parts:
        if image.size is not None:
            return image.size, 1
    raise MaskError(
        f"{target.parts[0].source}: the size of the image {PurePosixPath(target.name).name!r} is not known; "
        "put the image beside the annotations, or give the images with --data",
        "image",
    )


def _upright(image: AnnotatedImage, size: Size, orientation: int, leave_out: Sequence[str]) -> Area:
    """Draw the shapes of an annotation on the upright image."""
    stored = size[::-1] if orientation in SIDEWAYS else size
    drawn_on = image.size or size
    if drawn_on not in (size, stored):
        found, expected = ("{} x {}".format(*pair) for pair in (drawn_on, size))
        raise MaskError(
            f"{image.source}: drawn on {found} pixels, but the image is {expected}; annotate the image as it "
            "is, or give the images that were annotated",
            "wrong size",
        )
    if image.upright and drawn_on == size:
        return draw_shapes(image, *size, leave_out)
    if image.size is None and orientation != 1:
        raise MaskError(
            f"{image.source}: shapes on an image with EXIF orientation {orientation}, that may be drawn on "
            "it as stored or as shown; save the image upright without EXIF orientation, and draw on that",
            "turned by EXIF",
        )
    area = draw_shapes(image, *drawn_on, leave_out)
    mask = Image.fromarray(np.where(area, 255, 0).astype(np.uint8))
    return np.asarray(check_mask_size(mask, size, image.source, orientation)) > 0

"""Read and write COCO's JSON: one file for all images; polygons, run lengths and boxes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from torchdoctor.data.annotations import MaskError
from torchdoctor.data.mask_formats.annotation import (
    AnnotatedImage,
    Annotations,
    Area,
    Files,
    MaskSet,
    Notes,
    Problem,
    Shape,
    Size,
    checked_size,
    safe_path,
)
from torchdoctor.data.mask_formats.coordinates import number_of, points_of
from torchdoctor.data.mask_formats.files import field, files_of, image_beside, json_of, read_each
from torchdoctor.data.mask_formats.shapes import Draw, box, corners_of, needed, outlines, pixels_at, polygon

MOST_RUNS = 10_000_000  # in the run lengths of a single shape
KEYS = (int, str)


def is_coco(content: Any) -> bool:
    """Return whether the content of a JSON file is COCO's.

    Args:
        content: The content.

    Returns:
        True where it is an object with the lists images and annotations.
    """
    return isinstance(content, dict) and all(
        isinstance(content.get(name), list) for name in ("images", "annotations")
    )


def read_coco(source: Path) -> Annotations:
    """Read COCO's files.

    Args:
        source: A JSON file, or a folder of such; other JSON files in it are named as problems.

    Returns:
        The images with their shapes; images without annotations have none.
    """
    notes = Notes()
    root = source if source.is_dir() else source.parent
    read, problems = read_each(
        files_of(source, (".json",)),
        lambda file: _file(file, root, notes),
        lambda file: file.relative_to(root).as_posix(),
    )
    images = tuple(image for own, _ in read for image in own)
    further = tuple(problem for _, own in read for problem in own)
    return Annotations(images, (*problems, *further), notes.sentences)


def _file(file: Path, root: Path, notes: Notes) -> tuple[list[AnnotatedImage], list[Problem]]:
    """Read a file: its images, and what is wrong with others."""
    content = json_of(file)
    if not is_coco(content):
        raise MaskError(f"{file}: no COCO file; expected the lists images and annotations", "unreadable")
    labels = {
        field(record, "id", KEYS, f"{file}: category {number}"): str(record.get("name", ""))
        for number, record in enumerate(field(content, "categories", list, str(file), []), 1)
    }
    known = {
        field(record, "id", KEYS, f"{file}: image {number}"): record
        for number, record in enumerate(content["images"], 1)
    }
    own: dict[Any, list[tuple[int, Any]]] = {key: [] for key in known}
    lost: list[Problem] = []
    for number, record in enumerate(content["annotations"], 1):
        key = record.get("image_id") if isinstance(record, dict) else None
        if not isinstance(key, KEYS) or key not in own:
            text = f"{file}: annotation {number}: image_id {key!r} is not among the images of the file"
            lost.append(Problem("unreadable", file.name, text))
        else:
            own[key].append((number, record))

    def read(key: Any) -> AnnotatedImage:
        place = f"{file}: image {key}"
        name = field(known[key], "file_name", str, place)
        size = checked_size(known[key].get("width"), known[key].get("height"), place)
        shapes = tuple(_shape(record, number, labels, str(file), size, notes) for number, record in own[key])
        return AnnotatedImage(safe_path(name).as_posix(), str(file), shapes, size, _linked(file, name, root))

    images, problems = read_each(known, read, lambda key: str(known[key].get("file_name", key)))
    return images, [*lost, *problems]


def _linked(file: Path, name: str, root: Path) -> Path | None:
    """Find an image near a file: beside it, in `images` beside it, or in a folder that the path starts at."""
    for folder in (file.parent, file.parent / "images", file.parent.parent / "images", root):
        found = image_beside(folder, name)
        if found is not None:
            return found
    return None


def _shape(
    record: dict[str, Any], number: int, labels: dict[Any, str], file: str, size: Size | None, notes: Notes
) -> Shape:
    """Read an annotation."""
    key = record.get("category_id")
    label = labels.get(key) if isinstance(key, KEYS) else None
    place = f"annotation {number} (id {record.get('id')})"
    if label is None:
        notes.add("annotations with a category_id that the file does not explain: read without a label")
    if record.get("iscrowd"):
        notes.add("annotations of crowds (iscrowd): read as objects")
    try:
        return Shape(place, label, _drawing(record, size, notes))
    except MaskError as error:
        raise MaskError(f"{file}: {place}: {error}", error.kind) from error


def _drawing(record: dict[str, Any], size: Size | None, notes: Notes) -> Draw:
    """Return what draws an annotation: its run lengths, its polygons or, without these, its box."""
    segmentation = record.get("segmentation")
    if isinstance(segmentation, dict):
        counts, (height, width) = _checked_counts(segmentation, size)
        return pixels_at(0, 0, lambda: area_of_counts(counts, width, height))
    if segmentation:
        if not isinstance(segmentation, list):
            raise MaskError("segmentation is neither a list nor an object", "shape")
        parts = segmentation if isinstance(segmentation[0], list) else [segmentation]
        return union([_polygon(part) for part in parts])
    edges = record.get("bbox")
    if not isinstance(edges, list) or len(edges) != 4:
        raise MaskError("neither a segmentation nor a bbox of four numbers", "shape")
    notes.add("annotations without segmentation: the boxes are taken")
    left, top, wide, high = (number_of(edge, "bbox") for edge in edges)
    return box(left, top, left + wide, top + high)


def _polygon(part: Any) -> Draw:
    """Return what draws a polygon, given as x and y in turn."""
    if not isinstance(part, list) or len(part) % 2:
        raise MaskError("a polygon with an odd number of coordinates; expected x and y in turn", "shape")
    return polygon(points_of(list(zip(part[::2], part[1::2], strict=True)), 3))


def union(parts: Sequence[Draw]) -> Draw:
    """Return what draws several shapes as one.

    Args:
        parts: What draws each.

    Returns:
        The function that draws all of them; it raises MaskError where each lies off the image.
    """

    def draw(width: int, height: int) -> Area:
        area, errors = np.zeros((height, width), dtype=bool), []
        for part in parts:
            try:
                area |= part(width, height)
            except MaskError as error:
                errors.append(error)
        if len(errors) == len(parts):
            raise errors[0]
        return area

    return draw


def _checked_counts(segmentation: dict[str, Any], size: Size | None) -> tuple[list[int], tuple[int, int]]:
    """Return run lengths and the height and width that they fill, after checking that they fill it."""
    sides = segmentation.get("size")
    if not isinstance(sides, list) or len(sides) != 2 or not all(type(side) is int for side in sides):
        raise MaskError("run lengths without size; expected [height, width]", "shape")
    own = checked_size(sides[1], sides[0], "run lengths")
    if own is None or (size is not None and own != size):
        expected = "" if size is None else f"; the image is {size[0]} x {size[1]}"
        raise MaskError(f"run lengths for {sides[1]} x {sides[0]} pixels{expected}", "wrong size")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = counts_of_text(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise MaskError("counts; expected text or a list of whole numbers from 0", "shape")
    if len(counts) > MOST_RUNS or sum(counts) != own[0] * own[1]:
        raise MaskError(
            f"run lengths of {sum(counts):.6g} pixels in all; expected {own[0]} x {own[1]}", "shape"
        )
    return counts, (own[1], own[0])


def counts_of_text(text: str) -> list[int]:
    """Turn compressed run lengths into numbers, so that they can be checked before memory is set aside.

    Args:
        text: The run lengths as COCO compresses them: 5 bits a letter, most of them as differences.

    Returns:
        The run lengths.

    Raises:
        MaskError: The text holds other letters, or ends within a number.
    """
    counts: list[int] = []
    number = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise MaskError("compressed run lengths with letters that they cannot have", "shape")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = shift = 0
    if shift:
        raise MaskError("compressed run lengths that end within a number", "shape")
    return counts


def area_of_counts(counts: Sequence[int], width: int, height: int) -> Area:
    """Turn run lengths into pixels.

    Args:
        counts: The lengths in turn of background and object, column by column.
        width: The width in pixels.
        height: The height in pixels.

    Returns:
        The pixels of the object.
    """
    library = needed("pycocotools.mask")
    runs = library.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)
    return library.decode(runs).astype(bool)


def write_coco(masks: MaskSet) -> Files:
    """Write a COCO file: polygons, and run lengths for parts with holes.

    Args:
        masks: The images with their masks.

    Yields:
        The path of the file below that folder, and its content.
    """
    library = needed("pycocotools.mask")
    annotations: list[dict[str, Any]] = []
    files: list[dict[str, Any]] = []
    for number, image in enumerate(masks.images, 1):
        runs = library.encode(np.asfortranarray(image.area.astype(np.uint8)))
        parts = outlines(image.area)
        segmentation: Any = [[edge for corner in corners_of(part) for edge in corner] for part in parts]
        if any(part.interiors for part in parts):
            segmentation = {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode()}
        width, height = image.size
        files.append({"id": number, "file_name": image.name, "width": width, "height": height})
        annotations.append(
            {"id": number, "image_id": number, "category_id": masks.classes.index(image.label) + 1,
             "segmentation": segmentation, "area": int(image.area.sum()), "iscrowd": 0,
             "bbox": [float(edge) for edge in library.toBbox(runs)]}
        )  # fmt: skip
    content = {
        "info": {"description": "object masks"},
        "images": files,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(masks.classes, 1)],
    }
    yield PurePosixPath("annotations.json"), (json.dumps(content, ensure_ascii=False) + "\n").encode()

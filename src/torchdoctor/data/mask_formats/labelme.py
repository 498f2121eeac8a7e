"""Read and write LabelMe's JSON: a file for each image, with shapes of every kind."""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from torchdoctor.data.annotations import MaskError
from torchdoctor.data.decoding import DAMAGED, LARGEST_PIXELS
from torchdoctor.data.mask_formats.annotation import (
    AnnotatedImage,
    Annotations,
    Area,
    Files,
    MaskSet,
    Notes,
    Shape,
    Size,
    checked_size,
    safe_path,
)
from torchdoctor.data.mask_formats.coordinates import points_of
from torchdoctor.data.mask_formats.files import field, files_of, image_beside, json_of, read_each
from torchdoctor.data.mask_formats.shapes import (
    Draw,
    box,
    corners_of,
    discs,
    ellipse,
    outlines,
    pixels_at,
    polygon,
    thick_line,
    without_holes,
)

VERSION = "5.5.0"  # of LabelMe's files that are written
LINE_WIDTH, POINT_RADIUS = 10.0, 5.0  # pixels; how LabelMe itself makes areas of lines and points
CUTS, IGNORED = "_background_", "__ignore__"  # labels that LabelMe's own programs treat in a special way
SHAPES = "polygon, rectangle, oriented_rectangle, circle, line, linestrip, point, points, mask"
AS_DRAWN = f"lines and points: drawn as wide as LabelMe draws them ({LINE_WIDTH:g} pixels)"


def is_labelme(content: Any) -> bool:
    """Return whether the content of a JSON file is LabelMe's.

    Args:
        content: The content.

    Returns:
        True where it is an object with shapes and the path or data of an image.
    """
    return (
        isinstance(content, dict) and "shapes" in content and bool({"imagePath", "imageData"} & set(content))
    )


def read_labelme(source: Path) -> Annotations:
    """Read LabelMe's files.

    Args:
        source: A JSON file, or a folder of such; other JSON files in it are named as problems.

    Returns:
        The images with their shapes.
    """
    notes = Notes()
    root = source if source.is_dir() else source.parent
    images, problems = read_each(
        files_of(source, (".json",)),
        lambda file: _image(file, root, notes),
        lambda file: file.relative_to(root).as_posix(),
    )
    return Annotations(tuple(images), tuple(problems), notes.sentences)


def _image(file: Path, root: Path, notes: Notes) -> AnnotatedImage:
    """Read a file."""
    content = json_of(file)
    if not is_labelme(content):
        text = f"{file}: no LabelMe file; expected an object with shapes and imagePath"
        raise MaskError(text, "unreadable")
    path = field(content, "imagePath", str, str(file), "") or file.with_suffix(".png").name
    linked = image_beside(file.parent, path)
    size = checked_size(content.get("imageWidth"), content.get("imageHeight"), str(file))
    embedded = field(content, "imageData", str, str(file), "")
    if size is None and embedded:
        size = _size_of_embedded(embedded, file)
    shapes = [
        shape
        for number, record in enumerate(field(content, "shapes", list, str(file)), 1)
        if (shape := _shape(record, number, str(file), notes)) is not None
    ]
    folder = file.parent.relative_to(root)
    name = (PurePosixPath(folder.as_posix()) / (safe_path(path).name or file.stem)).as_posix()
    return AnnotatedImage(name, str(file), tuple(shapes), size, linked, upright=True)


def _size_of_embedded(data: str, file: Path) -> Size:
    """Return the size of the image that a file holds in base64."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(data, validate=False))) as image:
            return image.size
    except (*DAMAGED, binascii.Error) as error:
        raise MaskError(f"{file}: imageData cannot be decoded ({error}); save it again", "image") from error


def _shape(record: Any, number: int, file: str, notes: Notes) -> Shape | None:
    """Read a shape; None for one that is to be ignored."""
    place = f"shape {number}"
    field(record, "points", list, f"{file}: {place}", [])
    kind = field(record, "shape_type", str, f"{file}: {place}", "polygon") or "polygon"
    label = field(record, "label", (str, int), f"{file}: {place}", None)
    name = None if label is None else str(label)
    place = f"{place} ({kind} {name!r})" if name else f"{place} ({kind})"
    if name == IGNORED:
        notes.add(f"shapes labelled {IGNORED}: left out")
        return None
    if name == CUTS:
        notes.add(f"shapes labelled {CUTS}: cut out of the shapes before them")
    try:
        draw = _drawing(kind, record)
    except MaskError as error:
        raise MaskError(f"{file}: {place}: {error}", error.kind) from error
    if kind in ("line", "linestrip", "point", "points"):
        notes.add(AS_DRAWN)
    return Shape(place, name, draw, cuts=name == CUTS)


def _drawing(kind: str, record: dict[str, Any]) -> Draw:
    """Return what draws a shape."""
    points = record.get("points")
    if kind in ("polygon", "ai_polygon"):
        return polygon(points_of(points, 3))
    if kind == "oriented_rectangle":
        return polygon(points_of(points, 4))
    if kind == "rectangle":
        ends = points_of(points, 2)
        across, down = sorted(x for x, _ in ends), sorted(y for _, y in ends)
        return box(across[0], down[0], across[-1], down[-1])
    if kind == "circle":
        (x, y), (other_x, other_y) = points_of(points, 2)[:2]
        radius = float(np.hypot(other_x - x, other_y - y))
        return ellipse(x, y, radius, radius)
    if kind in ("line", "linestrip"):
        return thick_line(points_of(points, 2), LINE_WIDTH)
    if kind in ("point", "points"):
        return discs(points_of(points, 1), POINT_RADIUS)
    if kind in ("mask", "ai_mask"):
        return _mask(record)
    raise MaskError(f"unknown kind of shape; expected {SHAPES}", "shape")


def _mask(record: dict[str, Any]) -> Draw:
    """Return what draws a shape of pixels: a PNG in base64, placed at the first of its points."""
    (left, top), *_ = points_of(record.get("points"), 1)
    data = record.get("mask")
    if not isinstance(data, str):
        raise MaskError("a shape of pixels without mask; expected a PNG in base64", "shape")

    def read() -> Area:
        try:
            with Image.open(io.BytesIO(base64.b64decode(data))) as image:
                if image.width * image.height > LARGEST_PIXELS:
                    raise MaskError(f"a mask of {image.width} x {image.height} pixels", "unreadable")
                return np.asarray(image.convert("L")) > 0
        except (*DAMAGED, binascii.Error) as error:
            raise MaskError(f"the mask cannot be decoded ({error})", "unreadable") from error

    return pixels_at(round(left), round(top), read)


def write_labelme(masks: MaskSet) -> Files:
    """Write a LabelMe file for each image; a part with a hole becomes several polygons of one group.

    Args:
        masks: The images with their masks.

    Yields:
        The path of each file below that folder, and its content.
    """
    for image in masks.images:
        place = PurePosixPath(f"{image.place}.json")
        shapes: list[dict[str, Any]] = [
            {"label": image.label, "points": [list(corner) for corner in corners_of(piece)],
             "group_id": group, "description": "", "shape_type": "polygon", "flags": {}, "mask": None}
            for group, part in enumerate(outlines(image.area))
            for piece in without_holes(part)
        ]  # fmt: skip
        path, data = PurePosixPath(image.name).name, None
        if image.file is None:
            data = base64.b64encode(image.encoded()).decode()
        else:
            path = Path(
                os.path.relpath(image.file.resolve(), (masks.folder / place).parent.resolve())
            ).as_posix()
        content: dict[str, Any] = {
            "version": VERSION, "flags": {}, "shapes": shapes, "imagePath": path, "imageData": data,
            "imageHeight": image.size[1], "imageWidth": image.size[0],
        }  # fmt: skip
        yield place, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

"""Read and write Label Studio's JSON: polygons, rectangles, ellipses and brush strokes, in percent."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

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
from torchdoctor.data.mask_formats.brush import decode_brush
from torchdoctor.data.mask_formats.coordinates import number_of, points_of
from torchdoctor.data.mask_formats.files import field, files_of, image_beside, json_of, read_each
from torchdoctor.data.mask_formats.shapes import (
    Draw,
    corners_of,
    discs,
    ellipse,
    outlines,
    polygon,
    turned_box,
    without_holes,
)

UPLOADS = re.compile(r"^(data/)?upload/\d+/")  # the folder of a project's uploaded files
UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of an uploaded file
KINDS = ("polygon", "rectangle", "ellipse", "brush", "keypoint")
PERCENT = 100.0
IMAGE_ENDING = re.compile(r"\.\w{2,5}$")


def is_label_studio(content: Any) -> bool:
    """Return whether the content of a JSON file is Label Studio's.

    Args:
        content: The content.

    Returns:
        True where it is a list of tasks, or a task: with data and annotations, or (JSON-MIN) with an id, an
        annotation_id and labels.
    """
    first = content[0] if isinstance(content, list) and content else content
    if not isinstance(first, dict):
        return False
    whole = isinstance(first.get("data"), dict) and bool(
        {"annotations", "completions", "predictions"} & set(first)
    )
    return whole or ("annotation_id" in first and "image" in first)


def read_label_studio(source: Path) -> Annotations:
    """Read Label Studio's files.

    Args:
        source: A JSON file (JSON or JSON-MIN), or a folder of such.

    Returns:
        The images with their shapes.
    """
    notes = Notes()
    root = source if source.is_dir() else source.parent
    read, problems = read_each(
        files_of(source, (".json",)),
        lambda file: _file(file, notes),
        lambda file: file.relative_to(root).as_posix(),
    )
    images = tuple(image for own, _ in read for image in own)
    further = tuple(problem for _, own in read for problem in own)
    return Annotations(images, (*problems, *further), notes.sentences)


def _file(file: Path, notes: Notes) -> tuple[list[AnnotatedImage], list[Problem]]:
    """Read a file: its images, and what is wrong with others."""
    content = json_of(file)
    if not is_label_studio(content):
        text = f"{file}: no file of Label Studio; expected a list of tasks with data and annotations"
        raise MaskError(text, "unreadable")
    tasks = content if isinstance(content, list) else [content]
    return read_each(
        enumerate(tasks, 1),
        lambda item: _task(item[1], f"task {item[0]}", file, notes),
        lambda item: f"{file.name}, task {item[0]}",
    )


def _task(task: Any, place: str, file: Path, notes: Notes) -> AnnotatedImage:
    """Read a task."""
    where = f"{file}: {place}"
    small = isinstance(task, dict) and "data" not in task
    data = task if small else field(task, "data", dict, where)
    address = _address(data, where)
    results = _small_results(task) if small else _results(task, where, notes)
    shapes: list[Shape] = []
    sizes: set[Size] = set()
    for number, result in enumerate(results, 1):
        kind = str(result.get("type", ""))
        tool = next((one for one in KINDS if kind.removesuffix("labels") == one), None)
        if tool is None:
            if "points" in field(result, "value", dict, f"{where}, result {number}", {}):
                notes.add(f"results of the kind {kind!r}: left out")
            continue
        shape_place = f"{place}, result {number} ({kind})"
        size = checked_size(
            result.get("original_width"), result.get("original_height"), f"{file}: {shape_place}"
        )
        try:
            shapes.append(_shape(result, tool, kind, size, shape_place))
        except MaskError as error:
            raise MaskError(f"{file}: {shape_place}: {error}", error.kind) from error
        sizes |= {size} if size is not None else set()
    if len(sizes) > 1:
        raise MaskError(f"{where}: shapes for images of the sizes {sorted(sizes)}", "wrong size")
    name = _name_in(address)
    path = PurePosixPath(name)
    own_name = UPLOADED.sub("", path.name)
    other = (path.with_name(own_name).as_posix(),) if own_name != path.name else ()
    beside = (
        image_beside(folder, one)
        for one in dict.fromkeys((name, path.name, own_name))
        for folder in (file.parent, file.parent / "images")
    )
    linked = next((found for found in beside if found is not None), None)
    plain = (PurePosixPath(UPLOADS.sub("", name)).parent / own_name).as_posix() if UPLOADS.match(name) else ""
    if linked is not None and linked.is_relative_to(file.parent):
        plain = linked.relative_to(file.parent).as_posix()
    size = next(iter(sizes), None)
    return AnnotatedImage(
        name, where, tuple(shapes), size, linked, upright=True, other_names=other, plain_name=plain
    )


def _address(data: dict[str, Any], where: str) -> str:
    """Return the address of a task's image: the field `image`, else the first that looks like an image's."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    likely = [value for value in texts.values() if IMAGE_ENDING.search(urlsplit(value).path)]
    found = texts.get("image") or next(iter(likely), "")
    if not found:
        raise MaskError(f"{where}: data without the path or address of an image", "unreadable")
    return found


def _name_in(address: str) -> str:
    """Return the path of an image in an address, such as `/data/local-files/?d=cats/1.jpg`."""
    try:
        parts = urlsplit(address)
        query = parse_qs(parts.query)
        path = query["d"][0] if "d" in query else unquote(parts.path)
    except ValueError:
        path = address
    if re.match(r"^[A-Za-z]:[\\/]", address):
        path = address
    return safe_path(path).as_posix()


def _results(task: dict[str, Any], where: str, notes: Notes) -> list[dict[str, Any]]:
    """Return the results of a task's annotations, without those that were skipped or are predictions."""
    written = field(task, "annotations", list, where, None)
    if written is None:
        written = field(task, "completions", list, where, [])
    kept = [
        one for one in written
        if isinstance(one, dict) and not one.get("was_cancelled") and not one.get("skipped")
    ]  # fmt: skip
    notes.add("annotations that were skipped: left out", len(written) - len(kept))
    truth = [one for one in kept if one.get("ground_truth")]
    if truth:
        kept = truth
    if len(kept) > 1:
        notes.add("images with several annotations: the areas are put together")
    if not kept and field(task, "predictions", list, where, []):
        notes.add("images with predictions alone: left without an area")
    results = [result for one in kept for result in field(one, "result", list, where, [])]
    for result in results:
        field(result, "type", str, where, "")
    return results


def _small_results(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results of a task in JSON-MIN, where a result is its value alone."""
    results = []
    for values in task.values():
        for value in values if isinstance(values, list) else []:
            kinds = [key for key in value if key.endswith("labels")] if isinstance(value, dict) else []
            if kinds:
                results.append({**value, "type": kinds[0], "value": value})
    return results


def _shape(result: dict[str, Any], tool: str, kind: str, size: Size | None, place: str) -> Shape:
    """Read a result."""
    value = field(result, "value", dict, "the result")
    labels = value.get(kind) or value.get("labels")
    label = str(labels[0]) if isinstance(labels, list) and labels else None
    if result.get("image_rotation"):
        turned = result["image_rotation"]
        raise MaskError(f"drawn on the image turned by {turned} degrees; turn the file itself", "shape")
    if tool == "brush":
        if size is None:
            raise MaskError("brush strokes without original_width and original_height", "shape")
        runs, (width, height) = value.get("rle"), size

        def draw(wide: int, high: int) -> Area:
            if (wide, high) != (width, height):
                raise MaskError(f"drawn on {width} x {height} pixels; now {wide} x {high}", "wrong size")
            return decode_brush(runs, width, height)

        return Shape(place, label, draw)
    numbers = _numbers(value, tool)
    _drawing(tool, numbers, PERCENT, PERCENT)
    return Shape(
        place,
        label,
        lambda width, height: _drawing(tool, numbers, float(width), float(height))(width, height),
    )


def _numbers(value: dict[str, Any], tool: str) -> dict[str, Any]:
    """Check the numbers of a shape."""
    if tool == "polygon":
        return {"points": points_of(value.get("points"), 3)}
    names = {
        "rectangle": ("x", "y", "width", "height"), "ellipse": ("x", "y", "radiusX", "radiusY"),
        "keypoint": ("x", "y", "width"),
    }[tool]  # fmt: skip
    numbers: dict[str, Any] = {name: number_of(value.get(name), name) for name in names}
    return {**numbers, "rotation": number_of(value.get("rotation") or 0, "rotation")}


def _drawing(tool: str, numbers: dict[str, Any], width: float, height: float) -> Draw:
    """Return what draws a shape on an image of some size; its numbers are percent of it."""
    wide, high = width / PERCENT, height / PERCENT
    if tool == "polygon":
        return polygon([(x * wide, y * high) for x, y in numbers["points"]])
    x, y = numbers["x"] * wide, numbers["y"] * high
    if tool == "rectangle":
        return turned_box(
            x, y, numbers["width"] * wide, numbers["height"] * high, numbers["rotation"], [(x, y)]
        )
    if tool == "ellipse":
        return ellipse(x, y, numbers["radiusX"] * wide, numbers["radiusY"] * high, numbers["rotation"])
    radius = numbers["width"] * wide / 2
    if not radius > 0 or not math.isfinite(radius):
        raise MaskError("a key point without a width", "shape")
    return discs([(x, y)], radius)


def write_label_studio(masks: MaskSet) -> Files:
    """Write a file of tasks with polygons; a part with a hole becomes several polygons.

    Args:
        masks: The images with their masks.

    Yields:
        The path of the file below that folder, and its content.
    """
    tasks = []
    for number, image in enumerate(masks.images, 1):
        width, height = image.size
        pieces = [piece for part in outlines(image.area) for piece in without_holes(part)]
        results = [
            {"id": f"{number}-{place}", "type": "polygonlabels", "from_name": "label", "to_name": "image",
             "original_width": width, "original_height": height, "image_rotation": 0,
             "value": {
                 "points": [[PERCENT * x / width, PERCENT * y / height] for x, y in corners_of(piece)],
                 "closed": True, "polygonlabels": [image.label],
             }}
            for place, piece in enumerate(pieces, 1)
        ]  # fmt: skip
        tasks.append(
            {"id": number, "data": {"image": f"/data/local-files/?d={image.name}"},
             "annotations": [{"result": results}]}
        )  # fmt: skip
    yield PurePosixPath("tasks.json"), (json.dumps(tasks, ensure_ascii=False) + "\n").encode()

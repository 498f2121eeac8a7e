"""Read and write YOLO's text files: a line for each object, a box or an outline in shares of the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from torchdoctor.data.annotations import MaskError
from torchdoctor.data.mask_formats.annotation import (
    AnnotatedImage,
    Annotations,
    Area,
    Files,
    MaskSet,
    Notes,
    Shape,
)
from torchdoctor.data.mask_formats.coordinates import number_of
from torchdoctor.data.mask_formats.files import files_of, read_each, text_of
from torchdoctor.data.mask_formats.shapes import Draw, box, corners_of, outlines, polygon, without_holes
from torchdoctor.data.readers.naming import is_readable

BEYOND = 0.05  # shares this far outside of 0 to 1 are cut off; those beyond are no shares
NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "predefined_classes.txt", "_darknet.labels")
NO_LABELS = {*NAME_FILES, "train.txt", "val.txt", "test.txt", "trainval.txt", "notes.txt", "requirements.txt"}
LABELS, IMAGES = "labels", "images"
DIGITS = 9  # behind the decimal point of a share
BOX, BOX_AND_SCORE = 5, 6  # numbers in a line; an outline has more


def label_files(source: Path) -> list[Path]:
    """List the files of labels in a folder.

    Args:
        source: The folder, or a single file.

    Returns:
        The text files, without those that list names, images or remarks.
    """
    return [
        file for file in files_of(source, (".txt",))
        if file.name.lower() not in NO_LABELS and not file.name.lower().startswith("readme")
    ]  # fmt: skip


def is_yolo(file: Path) -> bool:
    """Return whether a text file holds YOLO's labels.

    Args:
        file: The file.

    Returns:
        True where it has lines, and each is a whole number and at least four further numbers.
    """
    try:
        lines = [line.split() for line in text_of(file).splitlines() if line.strip()]
        return bool(lines) and all(
            len(words) >= BOX and words[0].isdigit() and all(map(_is_number, words)) for words in lines
        )
    except MaskError:
        return False


def _is_number(word: str) -> bool:
    """Return whether text is a number."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def read_yolo(source: Path) -> Annotations:
    """Read YOLO's files of labels.

    Args:
        source: A folder with `labels` and `images`, or with both kinds of files together, or a single file.

    Returns:
        The images with their shapes.
    """
    notes = Notes()
    root = source if source.is_dir() else source.parent
    try:
        names, key_points = _names(root)
    except MaskError as error:
        names, key_points = {}, False
        notes.add(f"file of names that cannot be read: {error}")
    files = label_files(source)
    by_folder: dict[Path, dict[str, Path]] = {}

    def read(file: Path) -> AnnotatedImage:
        return _image(file, root, names, notes, by_folder, key_points)

    images, problems = read_each(files, read, lambda file: file.relative_to(root).as_posix())
    return Annotations(tuple(images), tuple(problems), notes.sentences)


def _names(root: Path) -> tuple[dict[int, str], bool]:
    """Return the names of classes by their numbers, and whether boxes are followed by key points."""
    for folder in (root, root.parent):
        for file in sorted(folder.glob("*.y*ml")):
            try:
                content = yaml.safe_load(text_of(file))
            except (yaml.YAMLError, RecursionError) as error:
                first = str(error).splitlines()[0]
                raise MaskError(f"{file}: is not YAML ({first})", "unreadable") from error
            names = content.get("names") if isinstance(content, dict) else None
            if isinstance(names, list):
                return dict(enumerate(map(str, names))), "kpt_shape" in content
            if isinstance(names, dict):
                numbered = {int(key): str(name) for key, name in names.items() if str(key).isdigit()}
                return numbered, "kpt_shape" in content
        for name in NAME_FILES:
            if (folder / name).is_file():
                lines = [line.strip() for line in text_of(folder / name).splitlines()]
                return dict(enumerate(line for line in lines if line)), False
    return {}, False


def _image(
    file: Path,
    root: Path,
    names: dict[int, str],
    notes: Notes,
    by_folder: dict[Path, dict[str, Path]],
    key_points: bool,
) -> AnnotatedImage:
    """Read the labels of an image."""
    shapes = []
    for number, line in enumerate(text_of(file).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        place = f"line {number}"
        try:
            label, draw = _line(words, names, notes, key_points)
        except MaskError as error:
            raise MaskError(f"{file}: {place}: {error}", error.kind) from error
        shapes.append(Shape(place, label, draw))
    parts = file.relative_to(root).with_suffix("").parts
    path = PurePosixPath(*(part for part in parts if part.lower() != LABELS))
    linked = _linked(file, by_folder)
    name = path if linked is None else path.parent / linked.name
    return AnnotatedImage(name.as_posix(), str(file), tuple(shapes), None, linked)


def _linked(file: Path, by_folder: dict[Path, dict[str, Path]]) -> Path | None:
    """Find the image of a file of labels: beside it, or in `images` where the labels lie in `labels`."""
    folders = [file.parent]
    for place, part in reversed(list(enumerate(file.parts[:-1]))):
        if part.lower() == LABELS:
            folders.append(Path(*file.parts[:place], IMAGES, *file.parts[place + 1 : -1]))
            break
    for folder in folders:
        if folder not in by_folder:
            inner = folder.iterdir() if folder.is_dir() else ()
            by_folder[folder] = {entry.stem.lower(): entry for entry in inner if is_readable(entry)}
        found = by_folder[folder].get(file.stem.lower())
        if found is not None:
            return found
    return None


def _line(words: list[str], names: dict[int, str], notes: Notes, key_points: bool) -> tuple[str | None, Draw]:
    """Read a line: its label, and what draws it."""
    if not words[0].removesuffix(".0").isdigit():
        raise MaskError(f"{words[0][:40]!r}; expected the number of a class, then shares", "shape")
    number = int(words[0].removesuffix(".0"))
    if names and number not in names:
        notes.add("objects of a class that the file of names does not have: read without a label")
    values = [number_of(word, "a share") for word in words[1:]]
    if len(words) < BOX:
        raise MaskError(f"{len(words)} numbers; expected a class and at least 4 shares", "shape")
    if len(words) == BOX_AND_SCORE or (len(words) > BOX_AND_SCORE and len(words) % 2 == 0 and not key_points):
        values = values[:-1]  # the score of a prediction
        notes.add("objects with a score behind them, as predictions have: read without it")
    if key_points:
        values = values[:4]
    if min(values) < -BEYOND or max(values) > 1 + BEYOND:
        wrong = max(values, key=lambda value: abs(value - 0.5))
        raise MaskError(f"{wrong:g}; expected shares of the image's width and height, from 0 to 1", "shape")
    if len(values) == BOX - 1:
        x, y, width, height = values
        if min(width, height) <= 0:
            raise MaskError(f"box of {width:g} x {height:g}; expected a width and height above 0", "shape")
        edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        if min(edges) < -BEYOND or max(edges) > 1 + BEYOND:
            raise MaskError(f"a box that reaches to {max(edges, key=abs):g}; expected 0 to 1", "shape")
        return names.get(number), _scaled_box(edges)
    corners = list(zip(values[::2], values[1::2], strict=True))
    if len(set(corners)) < 3:
        raise MaskError(f"{len(set(corners))} different points; an outline needs at least 3", "shape")
    polygon(corners)
    return names.get(number), _scaled_polygon(corners)


def _scaled_box(edges: tuple[float, float, float, float]) -> Draw:
    """Return what draws a box in shares."""

    def draw(width: int, height: int) -> Area:
        left, top, right, bottom = edges
        return box(left * width, top * height, right * width, bottom * height)(width, height)

    return draw


def _scaled_polygon(corners: Sequence[tuple[float, float]]) -> Draw:
    """Return what draws an outline in shares."""

    def draw(width: int, height: int) -> Area:
        return polygon([(x * width, y * height) for x, y in corners])(width, height)

    return draw


def write_yolo(masks: MaskSet) -> Files:
    """Write a file of outlines for each image; a part with a hole becomes several lines.

    Args:
        masks: The images with their masks.

    Yields:
        The path of each file below that folder, and its content.
    """
    for image in masks.images:
        number = masks.classes.index(image.label)
        width, height = image.size
        lines = [
            " ".join([str(number), *(_share(edge, side) for corner in corners_of(piece)
                                     for edge, side in zip(corner, (width, height), strict=True))])
            for part in outlines(image.area)
            for piece in without_holes(part)
        ]  # fmt: skip
        path = PurePosixPath(LABELS, f"{image.place}.txt")
        yield path, ("\n".join(lines) + "\n").encode()
    content: dict[str, Any] = {
        "path": ".", "train": IMAGES, "val": IMAGES, "names": dict(enumerate(masks.classes)),
    }  # fmt: skip
    yield PurePosixPath("data.yaml"), yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()


def _share(edge: float, side: int) -> str:
    """Return a coordinate as a share of a side."""
    return f"{edge / side:.{DIGITS}f}".rstrip("0").rstrip(".") or "0"

"""Read CVAT's exports (images 1.1, LabelMe 3.0, segmentation masks) and write its segmentation masks."""

from __future__ import annotations

import io
from collections.abc import Sequence
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
    Problem,
    Shape,
    checked_size,
    safe_path,
)
from torchdoctor.data.mask_formats.coordinates import number_of, points_of
from torchdoctor.data.mask_formats.files import files_of, image_beside, read_each, text_of, xml_of
from torchdoctor.data.mask_formats.png import pixels_of_file, size_of_mask
from torchdoctor.data.mask_formats.shapes import (
    Draw,
    box,
    discs,
    ellipse,
    pixels_at,
    polygon,
    thick_line,
    turned_box,
)
from torchdoctor.data.mask_formats.voc import CLASS_MASKS, mask_files, voc_colour
from torchdoctor.types import InputError

LABEL_MAP = "labelmap.txt"
BACKGROUND = "background"
LINE_WIDTH, POINT_RADIUS = 10.0, 5.0  # pixels; lines and points have no area of their own
AS_DRAWN = f"lines and points: drawn {LINE_WIDTH:g} pixels wide"
MOST_CLASSES = 255
Colour = tuple[int, int, int]


def is_cvat(root: Any) -> bool:
    """Return whether an XML file is one of CVAT's.

    Args:
        root: Its root element.

    Returns:
        True for `annotations` with images, and for `annotation` with LabelMe's outlines or sizes.
    """
    if root.tag == "annotations":
        return root.find("version") is not None or root.find("image") is not None
    inner = ("object/polygon", "object/segm", "object/deleted", "imagesize")
    return root.tag == "annotation" and any(root.find(name) is not None for name in inner)


def read_cvat(source: Path) -> Annotations:
    """Read an export of CVAT.

    Args:
        source: An XML file, or a folder: XML files of `CVAT for images 1.1` or `LabelMe 3.0`, or
            `Segmentation mask 1.1` with `labelmap.txt` and `SegmentationClass`.

    Returns:
        The images with their shapes.
    """
    notes = Notes()
    root = source if source.is_dir() else source.parent
    read, problems = read_each(
        files_of(source, (".xml",)),
        lambda file: _document(file, root, notes),
        lambda file: file.relative_to(root).as_posix(),
    )
    images = [image for own, _ in read for image in own]
    problems += [problem for _, own in read for problem in own]
    maps = [file for file in files_of(source) if file.name.lower() == LABEL_MAP]
    for file in maps:
        masked, more = read_each([file], _masked, str)
        images += [image for own in masked for image in own]
        problems += more
    return Annotations(tuple(images), tuple(problems), notes.sentences)


def _document(file: Path, root: Path, notes: Notes) -> tuple[list[AnnotatedImage], list[Problem]]:
    """Read an XML file: its images, and what is wrong with others."""
    document = xml_of(file)
    if not is_cvat(document):
        text = f"{file}: no file of CVAT; expected annotations/image or annotation/object/polygon"
        raise MaskError(text, "unreadable")
    if document.tag == "annotation":
        return [_labelme_image(document, file, root, notes)], []
    if document.find("track") is not None:
        text = f"{file}: tracks of a video; expected images: export as `CVAT for images 1.1`"
        raise MaskError(text, "unreadable")
    images, problems = read_each(
        document.findall("image"),
        lambda element: _image(element, file, notes),
        lambda element: str(element.get("name", "?")),
    )
    return images, problems


def _image(element: Any, file: Path, notes: Notes) -> AnnotatedImage:
    """Read an image of `CVAT for images 1.1`."""
    name = element.get("name") or ""
    place = f"{file}: image {name!r}"
    shapes = []
    for number, child in enumerate(element, 1):
        if child.tag in ("tag",):
            continue
        where = f"image {name!r}, shape {number} ({child.tag} {child.get('label')!r})"
        try:
            shapes.append(Shape(where, child.get("label"), _shape(child, notes)))
        except MaskError as error:
            raise MaskError(f"{file}: {where}: {error}", error.kind) from error
    size = checked_size(element.get("width"), element.get("height"), place)
    linked = image_beside(file.parent, name) or image_beside(file.parent / "images", name)
    path = safe_path(name).as_posix()
    return AnnotatedImage(path, str(file), tuple(shapes), size, linked, upright=True)


def _shape(element: Any, notes: Notes) -> Draw:
    """Return what draws a shape of `CVAT for images 1.1`."""

    def number(name: str, default: str | None = None) -> float:
        return number_of(element.get(name, default), name)

    if element.tag == "box":
        left, top, right, bottom = (number(name) for name in ("xtl", "ytl", "xbr", "ybr"))
        turn = number("rotation", "0")
        if not turn:
            return box(left, top, right, bottom)
        middle = ((left + right) / 2, (top + bottom) / 2)
        return turned_box(left, top, right - left, bottom - top, turn, [middle])
    if element.tag == "ellipse":
        return ellipse(number("cx"), number("cy"), number("rx"), number("ry"), number("rotation", "0"))
    if element.tag == "mask":
        counts = [number_of(word, "rle") for word in element.get("rle", "").split(",") if word.strip()]
        return _runs(counts, *(round(number(name)) for name in ("left", "top", "width", "height")))
    if element.tag not in ("polygon", "polyline", "points"):
        expected = "polygon, box, ellipse, mask, polyline or points"
        raise MaskError(f"unknown kind of shape; expected {expected}", "shape")
    pairs = [pair.split(",") for pair in element.get("points", "").split(";") if pair.strip()]
    points = points_of(pairs, {"polygon": 3, "polyline": 2, "points": 1}[element.tag])
    if element.tag == "polygon":
        return polygon(points)
    notes.add(AS_DRAWN)
    return thick_line(points, LINE_WIDTH) if element.tag == "polyline" else discs(points, POINT_RADIUS)


def _runs(counts: list[float], left: int, top: int, width: int, height: int) -> Draw:
    """Return what draws run lengths in a box, row by row, the background first."""
    lengths = np.array(counts, dtype=np.int64)
    if min(width, height) < 1 or width * height > LARGEST_PIXELS:
        raise MaskError(f"a mask of {width} x {height} pixels", "shape")
    if (lengths < 0).any() or int(lengths.sum()) != width * height:
        found = f"run lengths of {int(lengths.sum())} pixels; expected {width} x {height}"
        raise MaskError(found, "shape")

    def read() -> Area:
        return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(height, width)

    return pixels_at(left, top, read)


def _labelme_image(document: Any, file: Path, root: Path, notes: Notes) -> AnnotatedImage:
    """Read a file of `LabelMe 3.0`, the XML that LabelMe's web page wrote."""
    name = (document.findtext("filename") or "").strip() or file.with_suffix(".jpg").name
    size = checked_size(
        (document.findtext("imagesize/ncols") or "").strip(),
        (document.findtext("imagesize/nrows") or "").strip(),
        str(file),
    )
    shapes = []
    for number, element in enumerate(document.findall("object"), 1):
        label = (element.findtext("name") or "").strip() or None
        place = f"object {number} ({label!r})"
        if (element.findtext("deleted") or "0").strip() == "1":
            notes.add("shapes marked as deleted: left out")
            continue
        try:
            shapes.append(Shape(place, label, _labelme_shape(element, file)))
        except MaskError as error:
            raise MaskError(f"{file}: {place}: {error}", error.kind) from error
    folder = PurePosixPath(file.parent.relative_to(root).as_posix())
    path = (folder / (safe_path(name).name or file.stem)).as_posix()
    linked = image_beside(file.parent, name)
    return AnnotatedImage(path, str(file), tuple(shapes), size, linked, upright=True)


def _labelme_shape(element: Any, file: Path) -> Draw:
    """Return what draws an object: a mask file in a box, or an outline."""
    named = (element.findtext("segm/mask") or "").strip()
    if named:
        folders = (file.parent / "Masks", file.parent)
        mask = next((found for folder in folders if (found := image_beside(folder, named))), None)
        if mask is None:
            raise MaskError(f"mask {named!r}: no such file in {folders[0]}", "shape")
        left, top = (
            round(number_of(element.findtext(f"segm/box/{edge}") or "0", edge)) for edge in ("xmin", "ymin")
        )
        whole = size_of_mask(mask)

        def draw(width: int, height: int) -> Area:
            if whole == (width, height):
                return pixels_of_file(mask)(width, height)
            return pixels_at(left, top, lambda: pixels_of_file(mask)(*whole))(width, height)

        return draw
    pairs = [(point.findtext("x"), point.findtext("y")) for point in element.findall("polygon/pt")]
    return polygon(points_of(pairs, 3))


def label_map(file: Path) -> dict[Colour, str]:
    """Read the colours of labels.

    Args:
        file: CVAT's `labelmap.txt`: a line `label:red,green,blue:parts:actions` for each label.

    Returns:
        The label of each colour.

    Raises:
        MaskError: A line cannot be read.
    """
    found: dict[Colour, str] = {}
    for number, line in enumerate(text_of(file).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        *name, colour, _, _ = line.rsplit(":", 3) if line.count(":") >= 3 else ["", "", "", ""]
        channels = colour.split(",")
        if len(channels) != 3 or not all(one.strip().isdigit() and int(one) < 256 for one in channels):
            text = f"{file}, line {number}: {line[:60]!r}; expected label:red,green,blue:parts:actions"
            raise MaskError(text, "unreadable")
        red, green, blue = map(int, channels)
        found[red, green, blue] = ":".join(name)
    return found


def _masked(file: Path) -> list[AnnotatedImage]:
    """Read the class masks that a label map belongs to."""
    labels = label_map(file)
    images = []
    for stem, mask in mask_files(file.parent).items():
        found, missing = _labels_in(mask, labels)
        shapes = [Shape(f"label {label!r}", label, _of_label(mask, labels, label)) for label in found]
        if missing is not None:
            text = f"{mask}: the colour {missing} is not in {file}"
            raise MaskError(text, "unreadable")
        linked = image_beside(file.parent / "JPEGImages", stem + ".jpg")
        images.append(AnnotatedImage(stem + ".png", str(mask), tuple(shapes), size_of_mask(mask), linked))
    return images


def _pixels(file: Path, labels: Sequence[Colour]) -> np.ndarray:
    """Return the colours of a mask file, each as one number; grey values are positions among the labels."""
    try:
        with Image.open(file) as image:
            if image.width * image.height > LARGEST_PIXELS:
                raise MaskError(f"{file}: {image.width} x {image.height} pixels", "unreadable")
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB")).astype(np.int64)
    except DAMAGED as error:
        text = f"{file}: cannot be decoded as a mask ({error}); expected a PNG image"
        raise MaskError(text, "unreadable") from error
    if pixels.ndim == 2:
        numbered = np.array([*labels, *((grey, grey, grey) for grey in range(len(labels), 256))])
        pixels = numbered[pixels]
    return pixels @ np.array([65536, 256, 1])


def _labels_in(file: Path, labels: dict[Colour, str]) -> tuple[list[str], Colour | None]:
    """Return the labels whose colours a mask file holds, and a colour that has no label."""
    found = []
    for value in np.unique(_pixels(file, list(labels))).tolist():
        colour = (value >> 16, value >> 8 & 255, value & 255)
        if colour not in labels and colour != (0, 0, 0):
            return [], colour
        if labels.get(colour, BACKGROUND) != BACKGROUND:
            found.append(labels[colour])
    return list(dict.fromkeys(found)), None


def _of_label(file: Path, labels: dict[Colour, str], label: str) -> Draw:
    """Return what draws the pixels of a label in a mask file."""
    colours = [key for key in labels if labels[key] == label]

    def draw(width: int, height: int) -> Area:
        pixels = _pixels(file, list(labels))
        if pixels.shape != (height, width):
            found = f"{pixels.shape[1]} x {pixels.shape[0]} pixels; the image is {width} x {height}"
            raise MaskError(found, "wrong size")
        return np.isin(pixels, [red << 16 | green << 8 | blue for red, green, blue in colours])

    return draw


def write_cvat(masks: MaskSet) -> Files:
    """Write `Segmentation mask 1.1`, which CVAT imports: class masks in colours, and their label map.

    Args:
        masks: The images with their masks.

    Yields:
        The path of each file below that folder, and its content.

    Raises:
        InputError: There are more categories than colours in the palette.
    """
    classes = masks.classes
    if len(classes) > MOST_CLASSES:
        raise InputError(f"{len(classes)} categories; expected at most {MOST_CLASSES}: export coco or png")
    lines = ["# label:color_rgb:parts:actions", f"{BACKGROUND}:0,0,0::"]
    lines += [f"{name}:{','.join(map(str, voc_colour(place)))}::" for place, name in enumerate(classes, 1)]
    yield PurePosixPath(LABEL_MAP), ("\n".join(lines) + "\n").encode()
    listed = ""
    for image in masks.images:
        listed += f"{image.place}\n"
        colour = voc_colour(classes.index(image.label) + 1)
        pixels = np.where(image.area[:, :, None], np.array(colour), 0).astype(np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "png")
        for folder in (CLASS_MASKS, "SegmentationObject"):
            yield PurePosixPath(folder, f"{image.place}.png"), content.getvalue()
    yield PurePosixPath("ImageSets/Segmentation/default.txt"), listed.encode()

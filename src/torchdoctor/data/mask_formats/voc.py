"""Read and write Pascal VOC: boxes in XML files, and class masks as PNG files."""

from __future__ import annotations

import io
import math
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np
from PIL import Image

from torchdoctor.data.annotations import MaskError
from torchdoctor.data.mask_formats.annotation import (
    AnnotatedImage,
    Annotations,
    Area,
    Files,
    MaskedImage,
    MaskSet,
    Notes,
    Shape,
    checked_size,
    safe_path,
)
from torchdoctor.data.mask_formats.coordinates import number_of
from torchdoctor.data.mask_formats.files import files_of, image_beside, read_each, xml_of
from torchdoctor.data.mask_formats.png import holds_numbers, pixels_of_file, size_of_mask
from torchdoctor.data.mask_formats.shapes import Draw, box, outlines, turned_box
from torchdoctor.data.readers.naming import is_readable
from torchdoctor.types import InputError

CLASS_MASKS, OBJECT_MASKS = "SegmentationClass", "SegmentationObject"
ANNOTATIONS, IMAGES = "Annotations", "JPEGImages"
MOST_CLASSES = 254  # numbers from 1 to 254; 255 marks what is to be ignored


def is_voc(root: Any) -> bool:
    """Return whether an XML file is Pascal VOC's.

    Args:
        root: Its root element.

    Returns:
        True where it is called `annotation` and does not hold LabelMe's polygons or sizes.
    """
    return root.tag == "annotation" and (
        root.find("object/bndbox") is not None or root.find("object/robndbox") is not None
        or (root.find("size") is not None and root.find("imagesize") is None)
    )  # fmt: skip


def read_voc(source: Path) -> Annotations:
    """Read Pascal VOC's files; where an image has a class mask, that is read instead of its boxes.

    Args:
        source: An XML file, or a folder: VOC's own with `Annotations` and `SegmentationClass`, or any other.

    Returns:
        The images with their masks or boxes.
    """
    notes = Notes()
    root = source if source.is_dir() else source.parent
    boxed, problems = read_each(
        files_of(source, (".xml",)),
        lambda file: _boxed(file, root),
        lambda file: file.relative_to(root).as_posix(),
    )
    masks = mask_files(source)
    by_stem = {_stem(image.name): image for image in boxed}
    masked, more = read_each(
        masks.items(),
        lambda item: _masked(item[0], item[1], by_stem.get(item[0])),
        lambda item: item[1].relative_to(root).as_posix(),
    )
    told = set(masks)
    alone = [image for image in boxed if _stem(image.name) not in told]
    with_objects = sum(bool(image.shapes) for image in alone)
    notes.add("images with boxes and without a class mask: the boxes are taken", with_objects)
    return Annotations((*masked, *alone), (*problems, *more), notes.sentences)


def _stem(name: str) -> str:
    """Return a path without its ending."""
    return PurePosixPath(name).with_suffix("").as_posix()


def mask_files(source: Path) -> dict[str, Path]:
    """Find the mask files in a folder in Pascal VOC's layout.

    Args:
        source: The folder.

    Returns:
        The files in `SegmentationClass`, and in `SegmentationObject` where the other has none, by their
        paths in that folder without the ending.
    """
    found: dict[str, Path] = {}
    for folder in (OBJECT_MASKS, CLASS_MASKS):
        for file in files_of(source) if source.is_dir() else []:
            parts = file.relative_to(source.parent).parts
            if folder in parts[:-1] and is_readable(file):
                inner = parts[parts.index(folder) + 1 :]
                found[PurePosixPath(*inner).with_suffix("").as_posix()] = file
    return found


def _masked(stem: str, file: Path, boxed: AnnotatedImage | None = None) -> AnnotatedImage:
    """Describe an image by its class mask; its label is that of its boxes, where all have the same."""
    labels = () if boxed is None else boxed.labels
    shape = Shape(
        "the class mask", labels[0] if len(labels) == 1 else None, pixels_of_file(file, holds_numbers(file))
    )
    home = next(place for place in file.parents if place.name in (CLASS_MASKS, OBJECT_MASKS)).parent
    name = stem + ".jpg" if boxed is None else boxed.name
    linked = image_beside(home / IMAGES, name) if boxed is None else boxed.file
    return AnnotatedImage(name, str(file), (shape,), size_of_mask(file), linked)


def _boxed(file: Path, root: Path) -> AnnotatedImage:
    """Read an XML file."""
    document = xml_of(file)
    if not is_voc(document):
        raise MaskError(f"{file}: no Pascal VOC file; expected annotation/object/bndbox", "unreadable")
    name = (document.findtext("filename") or "").strip() or file.stem
    size = checked_size(document.findtext("size/width"), document.findtext("size/height"), str(file))
    shapes = []
    for number, element in enumerate(document.findall("object"), 1):
        label = (element.findtext("name") or "").strip() or None
        place = f"object {number} ({label!r})"
        try:
            shapes.append(Shape(place, label, _box(element)))
        except MaskError as error:
            raise MaskError(f"{file}: {place}: {error}", error.kind) from error
    folder = PurePosixPath(file.parent.relative_to(root).as_posix())
    folder = PurePosixPath(*(part for part in folder.parts if part != ANNOTATIONS))
    home = next((place.parent for place in file.parents if place.name == ANNOTATIONS), file.parent)
    named = (folder / (safe_path(name).name or file.stem)).as_posix()
    linked = image_beside(file.parent, name) or image_beside(home / IMAGES, named)
    return AnnotatedImage(named, str(file), tuple(shapes), size, linked)


def _box(element: Any) -> Draw:
    """Return what draws an object: a box of pixels counted from 1, both ends included, or a turned box."""
    turned = element.find("robndbox")
    if turned is not None:
        x, y, width, height, angle = (
            number_of(turned.findtext(name), name) for name in ("cx", "cy", "w", "h", "angle")
        )
        return turned_box(x - width / 2, y - height / 2, width, height, math.degrees(angle), [(x, y)])
    edges = element.find("bndbox")
    if edges is None:
        raise MaskError("no bndbox", "shape")
    left, top, right, bottom = (
        number_of(edges.findtext(name), name) for name in ("xmin", "ymin", "xmax", "ymax")
    )
    return box(left - 1, top - 1, right, bottom)


def write_voc(masks: MaskSet) -> Files:
    """Write Pascal VOC's files: a class mask for each image, and the boxes of its parts.

    Args:
        masks: The images with their masks.

    Yields:
        The path of each file below that folder, and its content.

    Raises:
        InputError: There are more categories than a class mask can number.
    """
    classes = masks.classes
    if len(classes) > MOST_CLASSES:
        raise InputError(
            f"{len(classes)} categories; a class mask of Pascal VOC numbers at most {MOST_CLASSES}: export "
            "coco or png"
        )
    listed = ""
    for image in masks.images:
        listed += f"{image.place}\n"
        yield PurePosixPath(ANNOTATIONS, f"{image.place}.xml"), _xml(image)
        number = classes.index(image.label) + 1
        yield PurePosixPath(CLASS_MASKS, f"{image.place}.png"), palette_png(image.area, number)
    yield PurePosixPath("ImageSets/Segmentation/default.txt"), listed.encode()
    names = "".join(f"{number} {name}\n" for number, name in enumerate(classes, 1))
    yield PurePosixPath("classes.txt"), names.encode()


def _xml(image: MaskedImage) -> bytes:
    """Return the XML file of an image."""
    root = Element("annotation")
    path = PurePosixPath(image.name)
    for name, text in (("folder", path.parent.as_posix()), ("filename", path.name), ("segmented", "1")):
        SubElement(root, name).text = text
    size = SubElement(root, "size")
    for name, number in (("width", image.size[0]), ("height", image.size[1]), ("depth", 3)):
        SubElement(size, name).text = str(number)
    for part in outlines(image.area):
        element = SubElement(root, "object")
        for name, text in (("name", image.label), ("pose", "Unspecified"), ("truncated", "0"),
                           ("difficult", "0")):  # fmt: skip
            SubElement(element, name).text = text
        left, top, right, bottom = part.bounds
        edges = SubElement(element, "bndbox")
        for name, edge in (("xmin", left + 1), ("ymin", top + 1), ("xmax", right), ("ymax", bottom)):
            SubElement(edges, name).text = str(round(edge))
    indent(root)
    return tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def palette_png(area: Area, number: int) -> bytes:
    """Return a class mask in Pascal VOC's colours.

    Args:
        area: The pixels of the object.
        number: The number of its class, from 1 to 254.

    Returns:
        The content of a PNG file with a palette.
    """
    image = Image.fromarray(np.where(area, number, 0).astype(np.uint8))
    image.putpalette([channel for index in range(256) for channel in voc_colour(index)])
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


def voc_colour(index: int) -> tuple[int, int, int]:
    """Return a colour of Pascal VOC's palette.

    Args:
        index: The number of the class, 0 to 255.

    Returns:
        Red, green and blue: the bits of the number, three at a time, from the highest bit of each down.
    """
    red = green = blue = 0
    for bit in range(8):
        red |= (index >> 3 * bit & 1) << (7 - bit)
        green |= (index >> 3 * bit + 1 & 1) << (7 - bit)
        blue |= (index >> 3 * bit + 2 & 1) << (7 - bit)
    return red, green, blue

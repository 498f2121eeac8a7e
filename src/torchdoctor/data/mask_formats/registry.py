"""The formats of masks by name, and how the format of a file or folder is recognised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torchdoctor.data.annotations import MaskError
from torchdoctor.data.mask_formats.annotation import Annotations, Files, MaskSet
from torchdoctor.data.mask_formats.coco import is_coco, read_coco, write_coco
from torchdoctor.data.mask_formats.cvat import LABEL_MAP, is_cvat, read_cvat, write_cvat
from torchdoctor.data.mask_formats.files import files_of, json_of, xml_of
from torchdoctor.data.mask_formats.label_studio import (
    is_label_studio,
    read_label_studio,
    write_label_studio,
)
from torchdoctor.data.mask_formats.labelme import is_labelme, read_labelme, write_labelme
from torchdoctor.data.mask_formats.png import read_png, write_png
from torchdoctor.data.mask_formats.shapes import needed
from torchdoctor.data.mask_formats.voc import is_voc, mask_files, read_voc, write_voc
from torchdoctor.data.mask_formats.yolo import is_yolo, label_files, read_yolo, write_yolo
from torchdoctor.data.readers.flatness import is_flat
from torchdoctor.data.readers.folder import check_links
from torchdoctor.data.readers.naming import is_readable, photographs
from torchdoctor.display.counts import count_of
from torchdoctor.types import InputError, check_choice

FormatName = Literal["png", "labelme", "coco", "voc", "yolo", "cvat", "label-studio"]
AUTO = "auto"
GEOMETRY = ("shapely", "pycocotools.mask")
XML = (*GEOMETRY, "defusedxml.ElementTree")
LOOKED_AT = 20  # files of each kind that are opened to recognise a format
Read = Callable[[Path], Annotations]
Write = Callable[[MaskSet], Files]


@dataclass(frozen=True)
class MaskFormat:
    """A format of masks.

    Attributes:
        name: What `--format` calls it.
        title: What it is, in a few words.
        read: Reads a file or folder.
        write: Yields the files for images with masks.
        needs: The libraries that both use.
    """

    name: FormatName
    title: str
    read: Read
    write: Write
    needs: tuple[str, ...] = GEOMETRY


FORMATS: Mapping[FormatName, MaskFormat] = {
    entry.name: entry
    for entry in (
        MaskFormat("png", "mask files: white on the object, palettes, numbers", read_png, write_png, ()),
        MaskFormat("labelme", "LabelMe: a JSON file for each image", read_labelme, write_labelme),
        MaskFormat("coco", "COCO: a JSON file for all images", read_coco, write_coco),
        MaskFormat("voc", "Pascal VOC: XML files with boxes, class masks", read_voc, write_voc, XML),
        MaskFormat("yolo", "YOLO: a text file of boxes or outlines for each image", read_yolo, write_yolo),
        MaskFormat("cvat", "CVAT: images 1.1, LabelMe 3.0, segmentation mask", read_cvat, write_cvat, XML),
        MaskFormat("label-studio", "Label Studio: JSON or JSON-MIN", read_label_studio, write_label_studio),
    )
}
JSON_KINDS: Mapping[FormatName, Callable[[Any], bool]] = {
    "labelme": is_labelme, "coco": is_coco, "label-studio": is_label_studio,
}  # fmt: skip
XML_KINDS: Mapping[FormatName, Callable[[Any], bool]] = {"cvat": is_cvat, "voc": is_voc}


def formats_listed() -> str:
    """Return the names of all formats, each with a few words on it.

    Returns:
        A part of a sentence.
    """
    return ", ".join(f"{entry.name} ({entry.title})" for entry in FORMATS.values())


def read_annotations(source: Path, name: str = AUTO, ids: bool = False) -> tuple[FormatName, Annotations]:
    """Read a file or folder of annotations.

    Args:
        source: The file or folder.
        name: The format, or `auto` to recognise it.
        ids: Whether the values of mask files are numbers, of which only 0 is the background; for `png` alone.

    Returns:
        The name of the format, and what was read.

    Raises:
        InputError: There is nothing at that place, nothing that can be read in that format, the format is not
            certain, or a link leads nowhere or in a circle.
    """
    if not source.exists():
        raise InputError(f"{str(source)!r}: no such file or folder")
    if source.is_dir():
        check_links(source, follow=True)
    if name != AUTO:
        check_choice("--format", name, Literal[(AUTO, *get_args(FormatName))])
    chosen: FormatName = recognised(source) if name == AUTO else name  # type: ignore[assignment]
    if ids and chosen != "png":
        raise InputError(f"--ids is for mask files (--format png); {str(source)!r} is read as {chosen}")
    check_libraries(chosen)
    read = read_png(source, ids) if ids else FORMATS[chosen].read(source)
    if not read.images and not read.problems:
        raise InputError(
            f"{str(source)!r}: nothing of the format {chosen} in it; found {_found(source)}. "
            f"The formats are {formats_listed()}"
        )
    return chosen, read


def check_libraries(name: FormatName) -> None:
    """Check that the libraries that a format needs are installed.

    Args:
        name: The format.

    Raises:
        InputError: One is not installed.
    """
    for library in FORMATS[name].needs:
        needed(library)


def recognised(source: Path) -> FormatName:
    """Recognise the format of a file or folder by its content.

    Args:
        source: The file or folder; of many files of a kind the first 20 are opened.

    Returns:
        The name of the format.

    Raises:
        InputError: No format fits, or several do.
    """
    counts: Counter[FormatName] = Counter()
    for ending, content_of, kinds in ((".json", json_of, JSON_KINDS), (".xml", xml_of, XML_KINDS)):
        for file in files_of(source, (ending,))[:LOOKED_AT]:
            try:
                content = content_of(file)
            except MaskError as error:
                if source.is_file():
                    raise
                del error
                continue
            counts.update(name for name, fits in kinds.items() if fits(content))
    texts = label_files(source)[:LOOKED_AT]
    counts["yolo"] += sum(map(is_yolo, texts))
    if any(file.name.lower() == LABEL_MAP for file in files_of(source)):
        counts["cvat"] += 1
    elif mask_files(source):
        counts["voc"] += 1
    fitting = [name for name, number in counts.items() if number]
    if not fitting and _are_mask_files(source):
        fitting = ["png"]
    if len(fitting) == 1:
        return fitting[0]
    said = f"{str(source)!r}: found {_found(source)}"
    if fitting:
        raise InputError(f"{said}, of the formats {' and '.join(fitting)}; choose one with --format")
    raise InputError(
        f"{said}; no format of masks is recognised in it. --format names one of {formats_listed()}"
    )


def _are_mask_files(source: Path) -> bool:
    """Return whether the images in a source are masks: flat ones, or some called as masks of the others."""
    images = [file for file in files_of(source) if is_readable(file)]
    root = source if source.is_dir() else source.parent
    others = set(photographs(images, root)) if source.is_dir() else set(images)
    masks = [file for file in images if file not in others] or images
    return bool(masks) and all(map(is_flat, masks[:LOOKED_AT]))


def _found(source: Path) -> str:
    """Say which files a source holds, by their endings."""
    endings = Counter(file.suffix.lower() or "without an ending" for file in files_of(source))
    return (
        ", ".join(f"{count_of(number, 'file')} {ending}" for ending, number in endings.most_common(6))
        or "no files"
    )

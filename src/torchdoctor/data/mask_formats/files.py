"""Open the files of annotation programs safely: bounded sizes, no entities, one clear error each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from torchdoctor.data.annotations import SIDEWAYS, MaskError
from torchdoctor.data.decoding import DAMAGED, orientation_of
from torchdoctor.data.mask_formats.annotation import Problem, Size, safe_path
from torchdoctor.data.mask_formats.shapes import needed
from torchdoctor.data.readers.naming import files_below, is_readable

LARGEST_FILE = 512 * 2**20  # bytes; a larger file of annotations is refused


def files_of(source: Path, endings: Iterable[str] = ()) -> list[Path]:
    """List the files of a source.

    Args:
        source: A file or a folder.
        endings: The endings in lower case, such as `.json`; none for all files.

    Returns:
        The file itself, or those in the folder and its subfolders, sorted by path.
    """
    wanted = tuple(endings)
    files = files_below(source) if source.is_dir() else [source]
    return [file for file in files if not wanted or file.suffix.lower() in wanted]


def text_of(file: Path) -> str:
    """Read a text file.

    Args:
        file: The file, in UTF-8, perhaps with a byte order mark.

    Returns:
        The text.

    Raises:
        MaskError: It cannot be read, is too large or not UTF-8.
    """
    try:
        size = file.stat().st_size
        if size > LARGEST_FILE:
            text = f"{file}: {size} bytes; expected at most {LARGEST_FILE}: divide the annotations"
            raise MaskError(text, "unreadable")
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        text = f"{file}: cannot be read ({error.strerror or error})"
        raise MaskError(text, "unreadable") from error
    except UnicodeDecodeError as error:
        text = f"{file}: is not UTF-8 text ({error.reason}); save it as UTF-8"
        raise MaskError(text, "unreadable") from error


def json_of(file: Path) -> Any:
    """Read a JSON file.

    Args:
        file: The file.

    Returns:
        Its content.

    Raises:
        MaskError: It cannot be read, is too large, is no JSON, or is nested too deeply.
    """
    text = text_of(file)
    try:
        return json.loads(text)
    except RecursionError as error:
        text = f"{file}: nested too deeply; expected the JSON that an annotation program writes"
        raise MaskError(text, "unreadable") from error
    except ValueError as error:
        raise MaskError(f"{file}: is not JSON ({error}); export it again", "unreadable") from error


def xml_of(file: Path) -> Any:
    """Read an XML file without document types and entities.

    Args:
        file: The file.

    Returns:
        Its root element.

    Raises:
        MaskError: It cannot be read, is too large, is no XML, or declares entities.
    """
    text = text_of(file)
    library, common = needed("defusedxml.ElementTree"), needed("defusedxml.common")
    try:
        return library.fromstring(text.encode(), forbid_dtd=True)
    except common.DefusedXmlException as error:
        found = f"{file}: declares a document type or entities, which are not read; expected plain XML"
        raise MaskError(found, "unreadable") from error
    except (library.ParseError, ValueError, RecursionError) as error:
        raise MaskError(f"{file}: is not XML ({error}); export it again", "unreadable") from error


def image_size(file: Path) -> tuple[Size, int]:
    """Return the size of an image file as it is shown, and how EXIF turns it.

    Args:
        file: The image file; it is not decoded.

    Returns:
        Width and height of the upright image in pixels, and the EXIF orientation.

    Raises:
        MaskError: It is no image.
    """
    try:
        with Image.open(file) as image:
            size = image.size
        orientation = orientation_of(file)
    except DAMAGED as error:
        text = f"{file}: cannot be decoded as an image ({error}); repair or remove the file"
        raise MaskError(text, "image") from error
    return (size[::-1] if orientation in SIDEWAYS else size), orientation


def image_beside(folder: Path, name: str, root: Path | None = None) -> Path | None:
    """Find the image that an annotation names.

    Args:
        folder: The folder of the annotation.
        name: The path as the annotation gives it, in any system's way of writing.
        root: A further folder that the path may start at; None: none.

    Returns:
        The file where there is one with that path, that path below the folder, or that name in the folder,
        in upper or lower case; None where there is none.
    """
    path = safe_path(name)
    if not path.name:
        return None
    plain = name.replace("\\", "/")
    for file in (folder / plain, folder / path, *((root / path,) if root else ()), folder / path.name):
        try:
            if is_readable(file) and file.is_file():
                return file
        except (OSError, ValueError):  # a name that this system does not allow
            continue
    alike = [
        file for file in (folder.iterdir() if folder.is_dir() else ())
        if file.name.lower() == path.name.lower() and is_readable(file)
    ]  # fmt: skip
    return alike[0] if len(alike) == 1 else None


def read_each(
    items: Iterable[Any], read: Callable[[Any], Any], name_of: Callable[[Any], str]
) -> tuple[list[Any], list[Problem]]:
    """Read items one by one; one that cannot be read does not keep the others from being read.

    Args:
        items: What is read.
        read: Reads an item; MaskError says what is wrong with it. None leaves it out.
        name_of: Returns what a problem calls an item.

    Returns:
        What was read, and the problems.
    """
    results, problems = [], []
    for item in items:
        try:
            result = read(item)
        except MaskError as error:
            problems.append(Problem(error.kind, name_of(item), str(error)))
            continue
        if result is not None:
            results.append(result)
    return results, problems


def field(value: Any, name: str, kind: type | tuple[type, ...], place: str, default: Any = ...) -> Any:
    """Return a field of a JSON object after checking its type.

    Args:
        value: The object.
        name: The name of the field.
        kind: The type or types that are expected.
        place: Where the object stands, for error messages.
        default: What is returned where the field is missing or null; `...` where it must be there.

    Returns:
        The value of the field.

    Raises:
        MaskError: The field is missing or of another type, or the value is no object.
    """
    if not isinstance(value, dict):
        raise MaskError(f"{place}: {type(value).__name__}; expected an object", "unreadable")
    found = value.get(name)
    if found is None and default is not ...:
        return default
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(KINDS.get(one, one.__name__) for one in kinds)
        text = f"{place}: {name} is {'missing' if found is None else type(found).__name__}"
        raise MaskError(f"{text}; expected {expected}", "unreadable")
    return found


KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "text", int: "a whole number"}

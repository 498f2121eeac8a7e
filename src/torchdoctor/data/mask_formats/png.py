"""Read and write mask files: binary, palettes, numbers of instances or classes, 255 for what is ignored."""

from __future__ import annotations

import io
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from torchdoctor.data.annotations import MaskError, mask_from_ids, mask_from_png
from torchdoctor.data.decoding import DAMAGED
from torchdoctor.data.mask_formats.annotation import (
    AnnotatedImage,
    Annotations,
    Area,
    Files,
    MaskSet,
    Shape,
    Size,
)
from torchdoctor.data.mask_formats.files import files_of, image_size, read_each
from torchdoctor.data.mask_formats.shapes import Draw
from torchdoctor.data.readers.naming import MASK_NAME, is_readable, photographs


def read_png(source: Path, ids: bool = False) -> Annotations:
    """Read mask files.

    Args:
        source: A file, or a folder; where some files in it are called as masks of others (`dog_mask.png`
            beside `dog.jpg`), these others are photographs, else all files are masks.
        ids: Whether values are numbers of instances or classes, of which only 0 is the background.

    Returns:
        The images with their masks.
    """
    root = source if source.is_dir() else source.parent
    files = [file for file in files_of(source) if is_readable(file)]
    images = set(photographs(files, root)) if source.is_dir() else set[Path]()
    masks = [file for file in files if file not in images] or files
    read, problems = read_each(
        masks,
        lambda file: _image(file, root, ids),
        lambda file: file.relative_to(root).as_posix(),
    )
    notes = (f"{len(images)} photographs beside the masks: not read",) if len(masks) < len(files) else ()
    return Annotations(tuple(read), tuple(problems), notes)


def _image(file: Path, root: Path, ids: bool) -> AnnotatedImage:
    """Describe a mask file by the image that it belongs to."""
    named = MASK_NAME.match(file.stem)
    stem = file.stem if named is None else named["image"]
    folder = PurePosixPath(file.parent.relative_to(root).as_posix())
    shape = Shape("the mask", None, pixels_of_file(file, ids))
    other = () if named is None else ((folder / file.name).as_posix(),)
    return AnnotatedImage(
        (folder / f"{stem}.png").as_posix(), str(file), (shape,), size_of_mask(file), other_names=other
    )


def size_of_mask(file: Path) -> Size:
    """Return the size of a mask file, turned upright, without decoding it.

    Args:
        file: The file.

    Returns:
        Width and height in pixels.

    Raises:
        MaskError: It is no image.
    """
    try:
        return image_size(file)[0]
    except MaskError as error:
        text = f"{error}; expected a mask as a PNG image"
        raise MaskError(text, "unreadable") from error


def holds_numbers(file: Path) -> bool:
    """Return whether a file can hold the numbers of classes: a palette or grey values, without loss.

    Args:
        file: The file; it is not decoded.

    Returns:
        False for colours, and for a file that cannot be read.
    """
    try:
        with Image.open(file) as image:
            return image.format in ("PNG", "TIFF", "BMP") and image.mode in ("P", "L", "1", "I", "I;16")
    except DAMAGED:
        return False


def pixels_of_file(file: Path, ids: bool = False) -> Draw:
    """Return what draws the object in a mask file.

    Args:
        file: The file.
        ids: As in `read_png`.

    Returns:
        The function that draws it; it raises MaskError where the image has another size.
    """

    def draw(width: int, height: int) -> Area:
        mask = (mask_from_ids if ids else mask_from_png)(file, str(file))
        if mask.size != (width, height):
            found = f"{mask.width} x {mask.height} pixels; the image is {width} x {height}"
            raise MaskError(found, "wrong size")
        return np.asarray(mask) > 0

    return draw


def png_of(area: Area) -> bytes:
    """Return a mask as the content of a PNG file.

    Args:
        area: The pixels of the object.

    Returns:
        The content: a grey image, 255 on the object and 0 elsewhere.
    """
    content = io.BytesIO()
    Image.fromarray(np.where(area, 255, 0).astype(np.uint8)).save(content, "png", optimize=False)
    return content.getvalue()


def write_png(masks: MaskSet) -> Files:
    """Write a PNG file for each image: 255 on the object, 0 elsewhere.

    Args:
        masks: The images with their masks.

    Yields:
        The path of each file below that folder, and its content.
    """
    for image in masks.images:
        yield PurePosixPath(f"{image.place}.png"), png_of(image.area)

"""What a file of an annotation program is turned into: images with shapes, and what could not be read."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Bool

from torchdoctor.data.annotations import MaskError, MaskProblem
from torchdoctor.data.decoding import LARGEST_PIXELS
from torchdoctor.display.counts import count_of
from torchdoctor.types import InputError

Area = Bool[np.ndarray, "height width"]
Size = tuple[int, int]  # width and height in pixels
Files = Iterator[tuple[PurePosixPath, bytes]]  # paths below the folder that is written, each with its content
DRIVE = re.compile(r"^[A-Za-z]:")


@dataclass(frozen=True)
class Shape:
    """A shape that somebody drew on an image.

    Attributes:
        place: What error messages call it, such as `shape 3 (polygon 'cat')`.
        label: The name of its category; None where the file says none.
        draw: `draw(width, height)` returns the pixels that it covers, for an image of that size.
        cuts: Whether it takes its pixels away from the shapes before it, as LabelMe's `_background_` does.
    """

    place: str
    label: str | None
    draw: Callable[[int, int], Area]
    cuts: bool = False


@dataclass(frozen=True)
class AnnotatedImage:
    """The shapes on an image.

    Attributes:
        name: The path or name of the image as the annotation gives it, with forward slashes.
        source: The annotation's file, for error messages.
        shapes: The shapes, in the order of the file.
        size: The width and height of the image as the annotation gives them; None where it does not.
        file: The image's file, where it lies beside the annotation.
        upright: Whether the program that wrote the file turns images upright by their EXIF orientation.
        other_names: Further names that the image may have, such as one without a prefix.
        plain_name: The name for its mask where no data set names the image; empty: `name`.
    """

    name: str
    source: str
    shapes: tuple[Shape, ...]
    size: Size | None = None
    file: Path | None = None
    upright: bool = False
    other_names: tuple[str, ...] = ()
    plain_name: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the shapes, sorted, each once."""
        return tuple(sorted({shape.label for shape in self.shapes if shape.label and not shape.cuts}))


@dataclass(frozen=True)
class Problem:
    """Why an image's shapes cannot be used.

    Attributes:
        kind: What is wrong, in one or two words.
        image: The image, as its annotation or the data set calls it.
        text: The whole sentence; it names the file.
    """

    kind: MaskProblem
    image: str
    text: str

    def to_json(self) -> dict[str, str]:
        """Describe the problem by values that JSON can hold.

        Returns:
            The fields by name.
        """
        return {"kind": self.kind, "image": self.image, "text": self.text}


@dataclass(frozen=True)
class Annotations:
    """What was read from a file or folder of annotations.

    Attributes:
        images: The images with shapes; an image can occur several times.
        problems: What could not be read; the images concerned are not among `images`.
        notes: What was left out on purpose or read in a certain way, in sentences.
    """

    images: tuple[AnnotatedImage, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MaskedImage:
    """An image with its mask, to be written in some format.

    Attributes:
        name: Its path below the data set's folder, with forward slashes.
        place: The path of what is written for it, without an ending: that of the image, with its own ending
            only where another image differs in nothing else.
        label: The name of its category.
        area: The pixels of the object, on the image as shown upright.
        file: Its file; None where it does not lie in a file of its own.
        encoded: Returns the image as the content of a PNG file.
    """

    name: str
    place: str
    label: str
    area: Area
    file: Path | None
    encoded: Callable[[], bytes]

    @property
    def size(self) -> Size:
        """The width and height in pixels."""
        return self.area.shape[1], self.area.shape[0]


@dataclass(frozen=True)
class MaskSet:
    """Images with masks that a format's writer turns into files.

    Attributes:
        images: The images with their masks; they can be read once.
        classes: The names of the categories.
        folder: The folder that the files are meant for; a writer itself writes nothing into it.
    """

    images: Iterable[MaskedImage]
    classes: tuple[str, ...]
    folder: Path


class Notes:
    """Counts of what was left out or read in a certain way, by sentence."""

    def __init__(self) -> None:
        """Start without notes."""
        self.counts: dict[str, int] = {}

    def add(self, sentence: str, number: int = 1) -> None:
        """Count something.

        Args:
            sentence: What it is, for instance `shapes marked as deleted: left out`. It begins with the noun.
            number: How often it occurred.
        """
        if number:
            self.counts[sentence] = self.counts.get(sentence, 0) + number

    @property
    def sentences(self) -> tuple[str, ...]:
        """The notes, each with its count in front; a noun in the plural loses its s where the count is 1."""
        nouns = ((sentence.partition(" "), number) for sentence, number in self.counts.items())
        return tuple(
            count_of(number, f"{noun.removesuffix('s')}{space}{rest}", f"{noun}{space}{rest}")
            for (noun, space, rest), number in nouns
        )


def draw_shapes(annotated: AnnotatedImage, width: int, height: int, leave_out: Sequence[str] = ()) -> Area:
    """Draw the shapes of an image: the pixels that any of them covers.

    Args:
        annotated: The image with its shapes.
        width: The width of the image in pixels.
        height: The height of the image in pixels.
        leave_out: The labels of shapes that are not drawn.

    Returns:
        The pixels that the shapes cover, without those that a later shape cuts out.

    Raises:
        InputError: A shape does not fit the image; the message names the file and the shape.
    """
    area = np.zeros((height, width), dtype=bool)
    for shape in annotated.shapes:
        if shape.label is not None and shape.label in leave_out:
            continue
        try:
            part = shape.draw(width, height)
        except InputError as error:
            kind = error.kind if isinstance(error, MaskError) else "shape"
            raise MaskError(f"{annotated.source}: {shape.place}: {error}", kind) from error
        area = area & ~part if shape.cuts else area | part
    return area


def safe_path(name: str) -> PurePosixPath:
    """Turn a path as any system writes it into one that cannot lead out of a folder.

    Args:
        name: The path, with slashes or backslashes, perhaps with a drive.

    Returns:
        The path without drive, root, `.` and `..`; empty where nothing is left.
    """
    plain = unicodedata.normalize("NFC", DRIVE.sub("", name.replace("\\", "/").replace("\0", "")))
    return PurePosixPath(*(part for part in plain.split("/") if part not in ("", ".", "..")))


def checked_size(width: object, height: object, place: str) -> Size | None:
    """Check the width and height that an annotation gives.

    Args:
        width: The width in pixels, a number or its digits; None where it is missing.
        height: The height in pixels, likewise.
        place: Where they stand, for error messages.

    Returns:
        Both as whole numbers; None where one is missing or 0.

    Raises:
        MaskError: They are no whole numbers above 0, or too large for an image.
    """
    if not width or not height:
        return None
    try:
        whole = (int(float(str(width))), int(float(str(height))))
    except (ValueError, OverflowError) as error:
        text = f"{place}: size {width!r} x {height!r}; expected whole numbers of pixels"
        raise MaskError(text, "wrong size") from error
    if min(whole) < 1 or whole[0] * whole[1] > LARGEST_PIXELS:
        text = f"{place}: size {width} x {height}; expected 1 to {LARGEST_PIXELS} pixels in all"
        raise MaskError(text, "wrong size")
    return whole

"""Read the masks of a data set from a folder of their own: a file for each image, with the image's path."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL.Image import Image
from PIL.Image import open as open_image

from torchdoctor.data.annotations import check_mask_size, mask_from_png
from torchdoctor.data.blocks import OnDisk, on_disk
from torchdoctor.data.checking import splits_of
from torchdoctor.data.decoding import orientation_of
from torchdoctor.data.fingerprints import stamp_of_file
from torchdoctor.data.image_names import DataImages, file_of
from torchdoctor.data.mask_formats.annotation import Problem
from torchdoctor.data.readers.folder import check_links
from torchdoctor.data.readers.naming import MASK_NAME, files_below, is_readable
from torchdoctor.data.table import ImageTable, ReadImage, Tables
from torchdoctor.display.counts import count_of
from torchdoctor.types import InputError

PROPOSED = "torchdoctor", "proposal that nobody has looked at"  # a text in the PNG file of a proposed mask
RECORD = "masks.json"  # says what the masks in a folder were drawn from
LISTED = 3  # names in a message


@dataclass(frozen=True)
class MaskMatches:
    """The mask files of a folder and the images that they belong to.

    Attributes:
        files: The mask file of an image, by (split, position).
        unmatched: The files that belong to no image.
        problems: The files that may belong to several images, or to one of another category.
    """

    files: dict[tuple[str, int], Path]
    unmatched: tuple[Path, ...]
    problems: tuple[Problem, ...]

    @property
    def remarks(self) -> tuple[str, ...]:
        """How many of the masks are proposals that nobody has looked at, in a sentence; none without any."""
        proposed = sum(map(is_proposal, self.files.values()))
        if not proposed:
            return ()
        are = "is a proposal" if proposed == 1 else "are proposals"
        return (f"{proposed} of {count_of(len(self.files), 'mask')} {are} that nobody has looked at",)


def match_masks(data: DataImages, folder: Path) -> MaskMatches:
    """Match the mask files in a folder to images, by their paths.

    Args:
        data: The images.
        folder: The folder; a mask has the path of its image below the data set's folder, with the ending
            `.png`. Fewer folders, or other ones in front, are understood where names stay clear.

    Returns:
        Which file belongs to which image.

    Raises:
        InputError: There is no such folder, or it holds no image files.
    """
    if not folder.is_dir():
        raise InputError(f"--masks {str(folder)!r}: no such folder")
    check_links(folder, follow=True)
    files = [file for file in files_below(folder) if is_readable(file)]
    if not files:
        raise InputError(f"--masks {str(folder)!r}: holds no mask files; expected PATH/NAME.png in it")
    matched: dict[tuple[str, int], Path] = {}
    unmatched: list[Path] = []
    problems: list[Problem] = []
    for file in files:
        path = PurePosixPath(file.relative_to(folder).as_posix())
        named = MASK_NAME.match(path.stem)
        names = [path.as_posix()] + ([] if named is None else [(path.parent / named["image"]).as_posix()])
        found = data.find(names)
        if not found:
            unmatched.append(file)
            continue
        key = (found[0].split, found[0].position)
        other = data.contradiction(path.as_posix(), found[0])
        if len(found) > 1:
            listed = ", ".join(image.name for image in found[:LISTED])
            text = f"{file}: may belong to {len(found)} images: {listed}; put it into folders as its image is"
            problems.append(Problem("several images", path.as_posix(), text))
        elif other is not None:
            text = f"{file}: lies in a folder of the category {other!r}; the image {found[0].name} is of "
            problems.append(Problem("other category", found[0].name, f"{text}{found[0].category!r}"))
        elif key in matched:
            text = f"{file}: a second mask of {found[0].name}, beside {matched[key]}; keep one of them"
            problems.append(Problem("several images", found[0].name, text))
        else:
            matched[key] = file
    return MaskMatches(matched, tuple(unmatched), tuple(problems))


@dataclass(frozen=True)
class WithMasks:
    """A reader of images whose masks lie in a folder of their own.

    Attributes:
        read: The reader of the images.
        masks: The mask file of each image; None where it keeps the mask that `read` has for it, if any.
        files: The file of each image, or None.
        names: The name of each image, for error messages.
        drawn_upright: Whether masks are known to be drawn on images that EXIF has turned upright.
    """

    read: ReadImage
    masks: tuple[Path | None, ...]
    files: tuple[Path | None, ...]
    names: tuple[str, ...]
    drawn_upright: bool = False

    def __call__(self, position: int) -> tuple[Image, Image | None]:
        """Decode an image and its mask.

        Args:
            position: The position of the image in the split.

        Returns:
            The RGB image, and its mask (an L image) or None.

        Raises:
            InputError: A file is damaged, or a mask has another size than the image.
        """
        image, own = self.read(position)
        file, mask = self.files[position], self.masks[position]
        if mask is None:
            return image, own
        orientation = 1 if file is None or self.drawn_upright else orientation_of(file)
        drawn = mask_from_png(mask, str(mask))
        return image, check_mask_size(drawn, image.size, self.names[position], orientation)

    def file(self, position: int) -> Path | None:
        """Return the file of an image.

        Args:
            position: The position of the image in the split.

        Returns:
            The file; None where there is none.
        """
        return self.files[position]

    def stamp(self, position: int) -> tuple[bytes, bytes]:
        """Return bytes that change with an image and with its mask (see `data.fingerprints`).

        Args:
            position: The position of the image in the split.

        Returns:
            The stamps of the image and of its mask.
        """
        stamp = getattr(self.read, "stamp", None)
        image, own = (b"", b"") if stamp is None else stamp(position)
        mask = self.masks[position]
        return image, own if mask is None else stamp_of_file(mask)

    def identity(self, position: int) -> bytes:
        """Return bytes that no other image has, without decoding it.

        Args:
            position: The position of the image in the split.

        Returns:
            What the reader of the images has for this, else the stamp of the image.
        """
        identity = getattr(self.read, "identity", None)
        return self.stamp(position)[0] if identity is None else identity(position)

    @property
    def on_disk(self) -> OnDisk | None:
        """The images in their blocks, where they lie in such."""
        return on_disk(self.read)


def is_proposal(file: Path) -> bool:
    """Tell whether a mask file is a proposal that no person has looked at; no pixel is decoded.

    Args:
        file: The mask file.

    Returns:
        True where its writer left that note in it.
    """
    key, text = PROPOSED
    try:
        with open_image(file) as opened:
            return opened.info.get(key) == text
    except (OSError, ValueError, SyntaxError):
        return False  # reading the mask says what is wrong with it


def with_masks(tables: Tables, folder: Path, matches: MaskMatches | None = None) -> Tables:
    """Give the images of a data set the masks in a folder; they go before masks that the images have.

    Args:
        tables: The data set.
        folder: The folder (see `match_masks`).
        matches: Which files to use, where that is known; None matches them here.

    Returns:
        The data set with these masks; notes say which files belong to no image, and how many masks are
        proposals that nobody has looked at.

    Raises:
        InputError: No file belongs to an image, or it is not clear to which it belongs.
    """
    found = match_masks(DataImages(tables), folder) if matches is None else matches
    if matches is None and found.problems:
        more = len(found.problems) - 1
        raise InputError(found.problems[0].text + (f"; and {more} more" if more else ""))
    if matches is None and not found.files:
        raise InputError(
            f"--masks {str(folder)!r}: holds {count_of(len(found.unmatched), 'mask file')}, and none belongs "
            f"to an image of {tables.origin}, such as {found.unmatched[0]}; expected the path of an image, "
            "ending in .png"
        )

    def masked(split: str, table: ImageTable) -> ImageTable:
        masks = tuple(found.files.get((split, position)) for position in range(len(table)))
        files = tuple(file_of(table, position) for position in range(len(table)))
        told = np.array([mask is not None for mask in masks], dtype=bool)
        reader = WithMasks(table.read, masks, files, table.names)
        return replace(table, read=reader, has_mask=table.has_mask | told)

    splits = {split: masked(split, table) for split, table in splits_of(tables).items()}
    notes = tables.notes
    if found.unmatched:
        notes += (
            f"{count_of(len(found.unmatched), 'mask that belongs', 'masks that belong')} to no image: "
            f"{found.unmatched[0]}{' ...' if len(found.unmatched) > 1 else ''}",
        )
    notes += found.remarks
    train, validation = splits.pop("train"), splits.pop("validation")
    return replace(tables, train=train, validation=validation, tests=splits, notes=notes)

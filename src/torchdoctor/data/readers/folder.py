"""Read `folder:PATH`: images in folders named after their category, like torchvision's ImageFolder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
from PIL import ImageChops
from PIL.Image import Image

from torchdoctor.data.annotations import check_mask_size, mask_from_png
from torchdoctor.data.decoding import decode_image, orientation_of
from torchdoctor.data.fingerprints import stamp_of_file
from torchdoctor.data.labels import note_on_twins
from torchdoctor.data.readers.mask_places import hidden_masks, mask_folders
from torchdoctor.data.readers.naming import (
    ENDINGS,
    MASK_FOLDER,
    MASK_FOLDER_BEFORE,
    files_below,
    is_litter,
    left_out,
    loose_files,
    masks_of,
    photographs,
    subfolders,
)
from torchdoctor.data.readers.split_folders import check_no_splits, other_folders, split_folders
from torchdoctor.data.splitting import divide, split_role
from torchdoctor.data.table import ImageTable, Tables
from torchdoctor.types import InputError

LAYOUT = "expected CLASS/*.jpg in it, or train/CLASS/*.jpg with test/CLASS/*.jpg or val/CLASS/*.jpg"


@dataclass(frozen=True)
class FolderImages:
    """The image files of a split, decoded when they are read.

    Attributes:
        root: The folder of the split.
        files: The image files.
        masks: The mask files of each image; several mark parts of the object.
    """

    root: Path
    files: tuple[Path, ...]
    masks: tuple[tuple[Path, ...], ...]

    def __call__(self, position: int) -> tuple[Image, Image | None]:
        """Decode an image and its mask files.

        Args:
            position: The position of the image in the split.

        Returns:
            The RGB image, and its mask (an L image) or None.

        Raises:
            InputError: A file is damaged, or a mask has another size than the image.
        """
        file, masks = self.files[position], self.masks[position]
        image = decode_image(file, str(file))
        if not masks:
            return image, None
        parts = [
            check_mask_size(mask_from_png(mask, str(mask)), image.size, str(file), orientation_of(file))
            for mask in masks
        ]
        return image, reduce(ImageChops.lighter, parts)

    def file(self, position: int) -> Path:
        """Return the file of an image.

        Args:
            position: The position of the image in the split.

        Returns:
            The file.
        """
        return self.files[position]

    def stamp(self, position: int) -> tuple[bytes, bytes]:
        """Return bytes that change with an image and with its mask (see `data.fingerprints`).

        Args:
            position: The position of the image in the split.

        Returns:
            The stamps of the image file and of its mask files.
        """
        masks = b"".join(map(stamp_of_file, self.masks[position]))
        return stamp_of_file(self.files[position]), masks


def read_folder(location: str, seed: int, validation_share: float, follow_links: bool = False) -> Tables:
    """Read a folder of images.

    Args:
        location: The folder; `~` is the home folder.
        seed: The seed by which missing splits are divided off.
        validation_share: The share of the training images that becomes the validation split where the
            source has none.
        follow_links: Whether symbolic links may lead out of the folder.

    Returns:
        The data set, not yet decoded; `notes` says what in the folder is not used.

    Raises:
        InputError: A part of the layout is missing or cannot be used; the message says what was expected.
    """
    root, origin = Path(location).expanduser(), f"folder:{location}"
    if not root.is_dir():
        raise InputError(f"{origin}: is not a folder; {LAYOUT}")
    check_links(root, follow_links)
    found = split_folders(root, origin)
    if not found:
        doubts = check_no_splits(root, origin)
        table, notes = _read_split(root, category_names(root), origin)
        return replace(
            divide({"train": table}, origin, seed, validation_share),
            notes=doubts + note_on_twins(table.classes) + notes,
        )
    if "train" not in found:
        raise InputError(f"{origin}: found {', '.join(sorted(found))} without train; {LAYOUT}")
    classes = category_names(found["train"])
    splits: dict[str, ImageTable] = {}
    notes = note_on_twins(classes) + other_folders(root, found, origin) + loose_files(root)
    for name, folder in found.items():
        splits[name], more = _read_split(folder, classes, origin)
        notes += tuple(f"{name}: {note}" for note in more)
    _refuse_shared_masks(splits)
    return replace(divide(splits, origin, seed, validation_share), notes=notes)


def category_names(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the category folders in a folder.

    Args:
        folder: The folder.

    Returns:
        The names; folders of masks and folders that systems and tools leave are no categories.

    Raises:
        InputError: There are none, or a folder holds masks in a layout that cannot be used.
    """
    names = [entry.name for entry in subfolders(folder)]
    masks = mask_folders(folder, names)
    names = [name for name in names if name not in masks]
    if not names:
        raise InputError(f"{folder}: no category folders; {LAYOUT}")
    return tuple(names)


def folder_table(split: Path, classes: tuple[str, ...], origin: str) -> ImageTable:
    """Return the images of a split.

    Args:
        split: The folder of the split, with a folder for each category in it.
        classes: The names of the categories in the order of their labels.
        origin: The `--data` value of the data set.

    Returns:
        The table; ids number its images from 0, sorted by category, then by path.

    Raises:
        InputError: A category folder is not in `classes`, or there are no images.
    """
    return _read_split(split, classes, origin)[0]


def _read_split(split: Path, classes: tuple[str, ...], origin: str) -> tuple[ImageTable, tuple[str, ...]]:
    """Return the images of a split, and what in its folder is not used."""
    names = category_names(split)
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise InputError(
            f"{split}: categories {unknown} are unknown to training, which has {list(classes)}; "
            "rename or remove them"
        )
    content = {name: files_below(split / name) for name in classes if name in names}
    hidden = hidden_masks([file for files in content.values() for file in files], split)
    told = {mask for group in hidden.values() for mask in group}
    chosen = {name: photographs(files, split, told) for name, files in content.items()}
    files = tuple(file for images in chosen.values() for file in images)
    if not files:
        raise InputError(f"{split}: no images ({', '.join(ENDINGS)}); {LAYOUT}")
    beside = mask_folders(split, [entry.name for entry in subfolders(split)])
    masks = masks_of(files, [_mask_places(split, file, beside) for file in files], hidden)
    table = ImageTable(
        classes=classes,
        labels=np.array([classes.index(name) for name in chosen for _ in chosen[name]], dtype=np.int64),
        names=tuple(file.relative_to(split).as_posix() for file in files),
        ids=np.arange(len(files)),
        read=FolderImages(split, files, masks),
        has_mask=np.array([bool(group) for group in masks], dtype=bool),
    )
    below = [file for name in (*content, *beside) for file in files_below(split / name)]
    return table, loose_files(split) + left_out(below, masks, files)


def _mask_places(split: Path, file: Path, beside: Mapping[str, str | None]) -> list[Path]:
    """Return the folders outside its category that may hold the masks of an image."""
    inner = file.parent.relative_to(split)
    category, rest = inner.parts[0], inner.parts[1:]
    places = [split / name / inner for name, owner in beside.items() if owner is None]
    places += [split.joinpath(name, *rest) for name, owner in beside.items() if owner == category]
    for entry in subfolders(split.parent) if split_role(split.name) is not None else []:
        named = MASK_FOLDER.match(entry.name) or MASK_FOLDER_BEFORE.match(entry.name)
        if named is None:
            continue
        owner = split_role(named["image"] or "")
        if owner is None:
            own = entry / split.name
            places.append(own / inner if own.is_dir() else entry / inner)
        elif owner == split_role(split.name):
            places.append(entry / inner)
    return places


def _refuse_shared_masks(splits: Mapping[str, ImageTable]) -> None:
    """Raise InputError for a mask that by its name belongs to images of two splits."""
    owners: dict[Path, Path] = {}
    for table in splits.values():
        for file, group in zip(table.read.files, table.read.masks, strict=True):  # type: ignore[attr-defined]
            for mask in group:
                other = owners.setdefault(mask, file)
                if other != file:
                    raise InputError(
                        f"{mask}: a mask that may belong to {other} or to {file}; put the masks of each "
                        f"split into a folder of its own, {other.parent.parent.name}_masks/CATEGORY/NAME.png"
                    )


def check_links(root: Path, follow: bool | None = None) -> None:
    """Check the symbolic links in a folder.

    Args:
        root: The folder, which is searched with all its subfolders.
        follow: Whether links may lead out of the folder; None: no, and there is no option for it.

    Raises:
        InputError: A link leads nowhere, to a folder that contains it, or out of the folder without `follow`.
    """
    hint = ", or give --follow-links" if follow is False else ""

    def check(folder: Path, above: tuple[Path, ...]) -> None:
        above = (*above, Path(os.path.realpath(folder)))
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if is_litter(entry.name):
                continue
            if entry.is_symlink():
                target = Path(os.path.realpath(entry.path))
                if not target.exists():
                    raise InputError(f"{entry.path}: a link to {target}, which does not exist; remove it")
                if not follow and not target.is_relative_to(above[0]):
                    raise InputError(
                        f"{entry.path}: a link that leads out of {root}; copy the file there instead{hint}"
                    )
                if any(outer.is_relative_to(target) for outer in above):
                    raise InputError(f"{entry.path}: a link that leads in a circle; remove it")
            if entry.is_dir():
                check(Path(entry.path), above)

    check(root, ())

"""Read `folder:PATH`: images in folders named after their category, like torchvision's ImageFolder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL.Image import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from torchdoctor.data.annotations import check_mask_size, mask_from_png
from torchdoctor.data.decoding import decode_image, orientation_of
from torchdoctor.data.fingerprints import stamp_of_file
from torchdoctor.data.splitting import divide, is_split_name
from torchdoctor.data.table import ImageTable, Tables
from torchdoctor.types import InputError

MASK_ENDINGS = (".mask.png", "_mask.png")
LAYOUT = "expected CLASS/*.jpg in it, or train/CLASS/*.jpg with test/CLASS/*.jpg or val/CLASS/*.jpg"


@dataclass(frozen=True)
class FolderImages:
    """The image files of a split, decoded when they are read.

    Attributes:
        root: The folder of the split.
        files: The image files.
        masks: The mask file of each image, or None.
    """

    root: Path
    files: tuple[Path, ...]
    masks: tuple[Path | None, ...]

    def __call__(self, position: int) -> tuple[Image, Image | None]:
        """Decode an image and the mask file beside it.

        Args:
            position: The position of the image in the split.

        Returns:
            The RGB image, and its mask (an L image) or None.

        Raises:
            InputError: A file is damaged, or the mask has another size than the image.
        """
        file, mask = self.files[position], self.masks[position]
        image = decode_image(file, str(file))
        if mask is None:
            return image, None
        return image, check_mask_size(
            mask_from_png(mask, str(mask)), image.size, str(file), orientation_of(file)
        )

    def stamp(self, position: int) -> tuple[bytes, bytes]:
        """Return bytes that change with an image and with its mask (see `data.fingerprints`).

        Args:
            position: The position of the image in the split.

        Returns:
            The stamps of the image file and of the mask file.
        """
        mask = self.masks[position]
        return stamp_of_file(self.files[position]), b"" if mask is None else stamp_of_file(mask)


def read_folder(location: str, seed: int, validation_share: float) -> Tables:
    """Read a folder of images.

    Args:
        location: The folder; `~` is the home folder.
        seed: The seed by which missing splits are divided off.
        validation_share: The share of the training images that becomes the validation split where the
            source has none.

    Returns:
        The data set, not yet decoded.

    Raises:
        InputError: A part of the layout is missing or cannot be used; the message says what was expected.
    """
    root, origin = Path(location).expanduser(), f"folder:{location}"
    if not root.is_dir():
        raise InputError(f"{origin}: is not a folder; {LAYOUT}")
    refuse_foreign_links(root)
    if not (root / "train").is_dir():
        other_splits = sorted(
            entry.name for entry in root.iterdir() if entry.is_dir() and is_split_name(entry.name)
        )
        if other_splits:
            raise InputError(f"{origin}: found {', '.join(other_splits)} without train; {LAYOUT}")
        return divide(
            {"train": folder_table(root, category_names(root), origin)}, origin, seed, validation_share
        )
    classes = category_names(root / "train")
    splits = {
        entry.name: folder_table(entry, classes, origin)
        for entry in sorted(root.iterdir())
        if entry.is_dir() and is_split_name(entry.name)
    }
    return divide(splits, origin, seed, validation_share)


def category_names(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the category folders in a folder.

    Args:
        folder: The folder.

    Returns:
        The names; folders whose names start with `.` or `__` are left out.

    Raises:
        InputError: There are none.
    """
    try:
        folder_names, _ = find_classes(folder)
    except FileNotFoundError:
        folder_names = []
    names = tuple(name for name in folder_names if not name.startswith((".", "__")))
    if not names:
        raise InputError(f"{folder}: no category folders; {LAYOUT}")
    return names


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
    unknown = [name for name in category_names(split) if name not in classes]
    if unknown:
        raise InputError(
            f"{split}: categories {unknown} are unknown to training, which has {list(classes)}; "
            "rename or remove them"
        )
    indices = {name: index for index, name in enumerate(classes)}
    samples = make_dataset(str(split), indices, is_valid_file=is_image_file, allow_empty=True)
    if not samples:
        raise InputError(f"{split}: no images ({', '.join(IMG_EXTENSIONS)}); {LAYOUT}")
    files = tuple(Path(path) for path, _ in samples)
    masks = tuple(mask_beside(file) for file in files)
    return ImageTable(
        classes=classes,
        labels=np.array([label for _, label in samples], dtype=np.int64),
        names=tuple(file.relative_to(split).as_posix() for file in files),
        ids=np.arange(len(files)),
        read=FolderImages(split, files, masks),
        has_mask=np.array([mask is not None for mask in masks], dtype=bool),
    )


def is_image_file(path: str) -> bool:
    """Return whether a path looks like an image of the data set.

    Args:
        path: The path of a file; only its name is looked at.

    Returns:
        False for masks, hidden files, and files without the ending of an image.
    """
    name = Path(path).name.lower()
    return name.endswith(IMG_EXTENSIONS) and not name.endswith(MASK_ENDINGS) and not name.startswith(".")


def mask_beside(file: Path) -> Path | None:
    """Return the mask file that belongs to an image file.

    Args:
        file: The image file, such as `dog.jpg`.

    Returns:
        `dog.mask.png` or `dog_mask.png` in the same folder, or None if there is neither.
    """
    candidates = (file.with_name(file.stem + ending) for ending in MASK_ENDINGS)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def refuse_foreign_links(root: Path) -> None:
    """Check that no symbolic link in a folder leads out of it.

    Args:
        root: The folder, which is searched with all its subfolders.

    Raises:
        InputError: A link leads out of the folder, is broken, or leads to a folder that contains it.
    """
    inside = root.resolve()
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            if not path.is_symlink():
                continue
            target = Path(os.path.realpath(path))
            if not target.is_relative_to(inside) or not target.exists():
                raise InputError(f"{path}: a link that leads out of {root}; copy the file there instead")
            if Path(os.path.realpath(folder)).is_relative_to(target):
                raise InputError(f"{path}: a link that leads in a circle; remove it")

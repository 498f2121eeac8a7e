"""Read `folder:PATH`: images in folders named after their category, as torchvision's ImageFolder has them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL.Image import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from torchdoctor.data.annotations import check_mask_size, mask_from_png
from torchdoctor.data.decoding import decode_image
from torchdoctor.data.fingerprints import stamp_of_file
from torchdoctor.data.splitting import divide, is_split_name
from torchdoctor.data.table import ImageTable, Tables
from torchdoctor.types import InputError

MASK_ENDINGS = (".mask.png", "_mask.png")
LAYOUT = "expected CLASS/*.jpg in it, or train/CLASS/*.jpg with test/CLASS/*.jpg or val/CLASS/*.jpg"


@dataclass(frozen=True)
class FolderImages:
    """The files of one split, decoded when read."""

    root: Path
    files: tuple[Path, ...]
    masks: tuple[Path | None, ...]

    def __call__(self, position: int) -> tuple[Image, Image | None]:
        """Decode one image and the mask beside it."""
        file, mask = self.files[position], self.masks[position]
        image = decode_image(file, str(file))
        if mask is None:
            return image, None
        return image, check_mask_size(mask_from_png(mask, str(mask)), image.size, str(file))

    def stamp(self, position: int) -> tuple[bytes, bytes]:
        """Return what changes with the image's file and with the mask's."""
        mask = self.masks[position]
        return stamp_of_file(self.files[position]), b"" if mask is None else stamp_of_file(mask)


def read_folder(location: str, seed: int, validation_share: float) -> Tables:
    """Read the folder at `location`; InputError says what is missing or cannot be used."""
    root, origin = Path(location).expanduser(), f"folder:{location}"
    if not root.is_dir():
        raise InputError(f"{origin}: is not a folder; {LAYOUT}")
    refuse_foreign_links(root)
    if not (root / "train").is_dir():
        alone = sorted(one.name for one in root.iterdir() if one.is_dir() and is_split_name(one.name))
        if alone:
            raise InputError(f"{origin}: found {', '.join(alone)} without train; {LAYOUT}")
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
    """Return the sorted names of the category folders; hidden ones do not count."""
    try:
        found, _ = find_classes(folder)
    except FileNotFoundError:
        found = []
    names = tuple(name for name in found if not name.startswith((".", "__")))
    if not names:
        raise InputError(f"{folder}: no category folders; {LAYOUT}")
    return names


def folder_table(split: Path, classes: tuple[str, ...], origin: str) -> ImageTable:
    """Return the table of one split; ids number its images by category, then by path."""
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
    """Return whether a path is an image, and neither a mask nor hidden."""
    name = Path(path).name.lower()
    return name.endswith(IMG_EXTENSIONS) and not name.endswith(MASK_ENDINGS) and not name.startswith(".")


def mask_beside(file: Path) -> Path | None:
    """Return the mask file that belongs to an image file, if there is one."""
    candidates = (file.with_name(file.stem + ending) for ending in MASK_ENDINGS)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def refuse_foreign_links(root: Path) -> None:
    """Raise InputError for a link below `root` that leaves it, is broken, or leads in a circle."""
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

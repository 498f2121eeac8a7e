"""Read mini-ImageNet in the layouts that people share: class folders, few-shot splits, or CSV lists.

Few-shot splits hold different categories each. For classification they are put together, and the 600 images
of every category are divided by seed into 480 and 120, as in the paper.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from torchdoctor.data.readers.folder import (
    FolderImages,
    category_names,
    check_links,
    folder_table,
    read_folder,
)
from torchdoctor.data.readers.table_file import file_inside
from torchdoctor.data.splitting import divide
from torchdoctor.data.table import ImageTable, Tables
from torchdoctor.types import InputError

FEW_SHOT = ("train", "val", "test")
LAYOUT = "expected CLASS/*.jpg, train/CLASS/*.jpg with val/ and test/, or train.csv with images/"


def read_mini_imagenet(location: str, seed: int, validation_share: float) -> Tables:
    """Read mini-ImageNet.

    Args:
        location: The folder; `~` is the home folder.
        seed: The seed by which missing splits are divided off.
        validation_share: The share of the training images that becomes the validation split where the
            source has none.

    Returns:
        The data set, not yet decoded.

    Raises:
        InputError: A part of the layout is missing; the message says what was expected.
    """
    root, origin = Path(location).expanduser(), f"mini_imagenet@{location}"
    if not root.is_dir():
        raise InputError(f"{origin}: is not a folder; {LAYOUT}")
    check_links(root)
    if (root / "train.csv").is_file():
        return divide({"train": _listed(root, origin)}, origin, seed, validation_share)
    folders = [root / name for name in FEW_SHOT if (root / name).is_dir()]
    if not folders:
        return read_folder(location, seed, validation_share)
    names = [set(category_names(folder)) for folder in folders]
    if len(set.union(*names)) != sum(map(len, names)):  # the same categories in each: a classification split
        return read_folder(location, seed, validation_share)
    return divide({"train": _pooled(folders, root, origin)}, origin, seed, validation_share)


def _pooled(folders: list[Path], root: Path, origin: str) -> ImageTable:
    """Return the table of the images in the class folders of several splits."""
    files: list[tuple[str, Path]] = []
    for folder in folders:
        table = folder_table(folder, category_names(folder), origin)
        for label, name in zip(table.labels.tolist(), table.names, strict=True):
            files.append((table.classes[label], folder / name))
    return _table(files, root)


def _listed(root: Path, origin: str) -> ImageTable:
    """Return the table of the images in the CSV lists."""
    images = root / "images"
    files: list[tuple[str, Path]] = []
    for name in FEW_SHOT:
        file = root / f"{name}.csv"
        if not file.is_file():
            continue
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            if not {"filename", "label"} <= set(reader.fieldnames or ()):
                raise InputError(f"{file}: found {reader.fieldnames}, expected the columns filename, label")
            for fields in reader:
                path = file_inside(images, fields["filename"], f"{file}, line {reader.line_num}:")
                files.append((str(fields["label"]), path))
    if not files:
        raise InputError(f"{origin}: the CSV lists are empty; {LAYOUT}")
    return _table(files, root)


def _table(files: list[tuple[str, Path]], root: Path) -> ImageTable:
    """Return the table of (category, file) pairs, sorted, so that their order does not matter."""
    files = sorted(files)
    classes = tuple(sorted({label for label, _ in files}))
    indices = {name: index for index, name in enumerate(classes)}
    paths = tuple(path for _, path in files)
    return ImageTable(
        classes=classes,
        labels=np.array([indices[label] for label, _ in files], dtype=np.int64),
        names=tuple(path.relative_to(root).as_posix() for path in paths),
        ids=np.arange(len(paths)),
        read=FolderImages(root, paths, ((),) * len(paths)),
        has_mask=np.zeros(len(paths), dtype=bool),
    )

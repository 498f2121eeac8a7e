"""Read `torchvision:CLASS@ROOT`: a data set through a class of torchvision, from its original files."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL.Image import Image

from torchdoctor.data.fingerprints import stamp_of_file
from torchdoctor.data.splitting import divide
from torchdoctor.data.table import ImageTable, Tables
from torchdoctor.types import InputError

# The attributes in which torchvision's classes hold the pixels or the files of their images.
IMAGE_ATTRIBUTES = ("data", "samples", "_samples", "_image_files", "_images", "images")
LABEL_ATTRIBUTES = ("targets", "labels", "_labels")
# Our names of the splits, and what torchvision's classes call them.
SPLITS = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}
NO_DATA_SETS = ("VisionDataset", "wrap_dataset_for_transforms_v2")  # other names in torchvision.datasets


@dataclass(frozen=True)
class TorchvisionImages:
    """The images of a split, decoded by a class of torchvision.

    Attributes:
        dataset: The split, an object of that class.
    """

    dataset: Any

    def __call__(self, position: int) -> tuple[Image, Image | None]:
        """Decode an image.

        Args:
            position: The position of the image in the split.

        Returns:
            The RGB image and None: such data sets have no masks.
        """
        image, _ = self.dataset[position]
        return image.convert("RGB"), None

    def stamp(self, position: int) -> tuple[bytes, bytes]:
        """Return bytes that change with an image (see `data.fingerprints`).

        Args:
            position: The position of the image in the split.

        Returns:
            The pixels of the image or the stamp of its file, whichever the class of torchvision holds (empty
            if it holds neither), and an empty stamp of the mask.
        """
        for name in IMAGE_ATTRIBUTES:
            images = getattr(self.dataset, name, None)
            if images is None or len(images) != len(self.dataset):
                continue
            image = images[position][0] if isinstance(images[position], tuple) else images[position]
            if isinstance(image, str | Path):
                return stamp_of_file(Path(image)), b""
            return np.asarray(image).tobytes(), b""
        return b"", b""


def read_torchvision(
    name: str, location: str, seed: int, validation_share: float, *, download: bool = False
) -> Tables:
    """Read a data set through a class of torchvision.

    Args:
        name: The name of the class in `torchvision.datasets`.
        location: The folder of the original files, or the folder that contains it.
        seed: The seed by which missing splits are divided off.
        validation_share: The share of the training images that becomes the validation split where the data
            set has none.
        download: Whether torchvision may download missing files.

    Returns:
        The data set, not yet decoded.

    Raises:
        InputError: The class is unknown or has no category labels, or files are missing.
    """
    kind, origin = class_named(name), f"torchvision:{name}@{location}"
    root = Path(location).expanduser()
    if root.name in (getattr(kind, "base_folder", ""), name) and not (root / root.name).exists():
        root = root.parent
    opened = {split: _split(kind, root, split, origin, download) for split in SPLITS}
    datasets = {split: dataset for split, dataset in opened.items() if dataset is not None}
    if "train" not in datasets:
        raise InputError(f"{origin}: torchvision's {name} has no training split")
    labels = {split: _labels(dataset, origin) for split, dataset in datasets.items()}
    classes = category_names(datasets["train"], labels)
    tables = {split: _table(dataset, classes, split, labels[split]) for split, dataset in datasets.items()}
    return divide(tables, origin, seed, validation_share)


def class_named(name: str) -> Any:
    """Return a class of `torchvision.datasets`.

    Args:
        name: The name of the class.

    Returns:
        The class.

    Raises:
        InputError: There is no such class; the message suggests similar names.
    """
    from torchvision import datasets

    known = [entry for entry in datasets.__all__ if entry not in NO_DATA_SETS]
    if name in known:
        return getattr(datasets, name)
    similar = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
    raise InputError(f"data 'torchvision:{name}': torchvision.datasets has no {name!r}{hint}")


def _split(kind: Any, root: Path, split: str, origin: str, download: bool) -> Any:
    """Open a split, or return None where the class has no such split."""
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {"download": download} if "download" in parameters else {}
    if "split" in parameters and "train" not in parameters:
        for own_name in SPLITS[split]:
            try:
                return _opened(kind, root, origin, {**options, "split": own_name})
            except ValueError:  # what torchvision raises for a split that the class does not have
                continue
        return None
    if split == "val" or (split == "test" and "train" not in parameters):
        return None
    if "train" in parameters:
        options["train"] = split == "train"
    try:
        return _opened(kind, root, origin, options)
    except ValueError as error:
        raise InputError(f"{origin}: cannot be opened ({error})") from error


def _opened(kind: Any, root: Path, origin: str, options: dict[str, Any]) -> Any:
    """Call the class of torchvision; InputError says which files are missing."""
    try:
        return kind(root, **options)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        part = getattr(kind, "base_folder", None) or kind.__name__
        hint = "" if options.get("download") else "; --download fetches it"
        raise InputError(
            f"{origin}: {reason} Expected the original files below {root} (such as {part}){hint}"
        ) from error
    except TypeError as error:
        raise InputError(
            f"{origin}: needs more than a folder ({error}); use another form of --data"
        ) from error


def _labels(dataset: Any, origin: str) -> Int[np.ndarray, " image"]:
    """Return the category of every image, without decoding images where the class holds the labels."""
    for name in LABEL_ATTRIBUTES:
        stored = getattr(dataset, name, None)
        if stored is not None and len(stored) == len(dataset):
            return np.asarray(stored).astype(np.int64)
    labels = [dataset[position][1] for position in range(len(dataset))]
    if not all(isinstance(label, int | np.integer) for label in labels):
        raise InputError(f"{origin}: its targets are {type(labels[0]).__name__}; expected one category each")
    return np.array(labels, dtype=np.int64)


def category_names(dataset: Any, labels: dict[str, Int[np.ndarray, " image"]]) -> tuple[str, ...]:
    """Return the names of the categories.

    Args:
        dataset: The training split, an object of a class of torchvision.
        labels: The labels of the images of each split.

    Returns:
        The names that the class of torchvision knows; if they are too few for the labels, the labels
        themselves, from 0 to the largest.
    """
    highest = max(int(numbers.max()) for numbers in labels.values() if len(numbers))
    names = tuple(str(name) for name in getattr(dataset, "classes", ()) or ())
    return names if len(names) > highest else tuple(map(str, range(highest + 1)))


def _table(
    dataset: Any, classes: tuple[str, ...], split: str, labels: Int[np.ndarray, " image"]
) -> ImageTable:
    """Return the table of a split; ids are the positions in torchvision's object."""
    return ImageTable(
        classes=classes,
        labels=labels,
        names=tuple(f"{split} {position}" for position in range(len(labels))),
        ids=np.arange(len(labels)),
        read=TorchvisionImages(dataset),
        has_mask=np.zeros(len(labels), dtype=bool),
    )

"""The data catalogue: the data sets of the paper by name, read from a folder on the user's disk."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torchdoctor.data.readers.mini_imagenet import read_mini_imagenet
from torchdoctor.data.readers.parquet import read_parquet
from torchdoctor.data.readers.shard_files import holds_splits
from torchdoctor.data.readers.torchvision_sets import read_torchvision
from torchdoctor.data.settings import DataSettings
from torchdoctor.data.table import Tables
from torchdoctor.types import InputError

# Reads a data set from (folder, seed, share of validation images, whether to download missing files).
ReadOriginal = Callable[[str, int, float, bool], Tables]


@dataclass(frozen=True)
class DataEntry:
    """A data set of the catalogue, used as `--data NAME@ROOT`.

    Grey images are repeated to three equal channels for the network, unless `--channels 1` is asked for.

    Attributes:
        name: What `--data` calls it.
        title: Its name as papers write it.
        categories: The number of categories.
        image_size: The side of the images in pixels.
        channels: The number of channels of the images: 3, or 1 for grey images.
        layout: The files in ROOT that the reader expects. Parquet files in ROOT are read as well.
        read: Reads the data set from the files of its original publication.
    """

    name: str
    title: str
    categories: int
    image_size: int
    channels: int
    layout: str
    read: ReadOriginal


def through_torchvision(kind: str) -> ReadOriginal:
    """Return a function that reads a data set through a class of torchvision.

    Args:
        kind: The name of the class in `torchvision.datasets`.

    Returns:
        The function, for `DataEntry.read`.
    """

    def read(location: str, seed: int, validation_share: float, download: bool) -> Tables:
        return read_torchvision(kind, location, seed, validation_share, download=download)

    return read


def _mini_imagenet(location: str, seed: int, validation_share: float, download: bool) -> Tables:
    """Read mini-ImageNet, which is not published for download."""
    if download:
        raise InputError("data 'mini_imagenet' cannot be downloaded: fetch it from where you may")
    return read_mini_imagenet(location, seed, validation_share)


_ENTRIES = (
    DataEntry("mnist", "MNIST", 10, 28, 1, "MNIST/raw/*-ubyte", through_torchvision("MNIST")),
    DataEntry(
        "fashion_mnist", "Fashion-MNIST", 10, 28, 1, "FashionMNIST/raw/*-ubyte",
        through_torchvision("FashionMNIST"),
    ),
    DataEntry("cifar10", "CIFAR-10", 10, 32, 3, "cifar-10-batches-py/", through_torchvision("CIFAR10")),
    DataEntry("cifar100", "CIFAR-100", 100, 32, 3, "cifar-100-python/", through_torchvision("CIFAR100")),
    DataEntry("svhn", "SVHN", 10, 32, 3, "*_32x32.mat", through_torchvision("SVHN")),
    DataEntry("stl10", "STL-10", 10, 96, 3, "stl10_binary/", through_torchvision("STL10")),
    DataEntry(
        "mini_imagenet", "mini-ImageNet", 100, 84, 3, "CLASS/, train/CLASS/, or train.csv with images/",
        _mini_imagenet,
    ),
)  # fmt: skip

DATASETS: dict[str, DataEntry] = {entry.name: entry for entry in _ENTRIES}


def read_named(name: str, location: str, seed: int, settings: DataSettings) -> Tables:
    """Read a data set of the catalogue.

    Args:
        name: The name of the entry.
        location: The folder that holds it (or a Parquet file). Parquet files named after splits are
            preferred to the files of the original publication.
        seed: The seed by which missing splits are divided off.
        settings: The share of validation images, whether missing files may be downloaded, and how Parquet
            files are read.

    Returns:
        The data set, not yet decoded.

    Raises:
        InputError: The name is unknown, or the files are missing or cannot be used.
    """
    if name not in DATASETS:
        similar = difflib.get_close_matches(name, list(DATASETS), n=1)
        hint = f"; did you mean {similar[0]}?" if similar else ""
        raise InputError(
            f"data '{name}@{location}': {name!r} is unknown; expected one of {', '.join(DATASETS)}{hint}"
        )
    root = Path(location).expanduser()
    if root.is_file() or holds_splits(root):
        return read_parquet(location, seed, settings)
    return DATASETS[name].read(location, seed, settings.validation_share, settings.download)

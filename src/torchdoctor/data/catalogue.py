"""The data catalogue: the paper's data sets by name, read from a folder the user has; one entry each."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torchdoctor.data.readers.mini_imagenet import read_mini_imagenet
from torchdoctor.data.readers.parquet import read_parquet, split_files
from torchdoctor.data.readers.torchvision_sets import read_torchvision
from torchdoctor.data.table import Tables
from torchdoctor.types import InputError

# Reads (folder, seed, share of validation, whether missing files may be downloaded).
ReadOriginal = Callable[[str, int, float, bool], Tables]


@dataclass(frozen=True)
class DataEntry:
    """A data set of the catalogue, used as `NAME@ROOT`.

    `read` reads its original layout; parquet files in ROOT are read as they are. `categories`,
    `image_size` (pixels) and `channels` describe it; grey images are given to networks for three
    channels as three equal ones unless `--channels 1` is asked for.
    """

    name: str
    title: str
    categories: int
    image_size: int
    channels: int
    layout: str
    read: ReadOriginal


def through_torchvision(kind: str) -> ReadOriginal:
    """Return what reads a data set through torchvision's class of that name."""

    def read(location: str, seed: int, validation_share: float, download: bool) -> Tables:
        return read_torchvision(kind, location, seed, validation_share, download=download)

    return read


def _mini_imagenet(location: str, seed: int, validation_share: float, download: bool) -> Tables:
    """Read mini-ImageNet, which nobody publishes for download."""
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


def read_named(name: str, location: str, seed: int, validation_share: float, download: bool) -> Tables:
    """Read `NAME@location`, as parquet where such files lie there, else in its original layout."""
    if name not in DATASETS:
        near = difflib.get_close_matches(name, list(DATASETS), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            f"data '{name}@{location}': {name!r} is unknown; expected one of {', '.join(DATASETS)}{hint}"
        )
    root = Path(location).expanduser()
    if root.is_file() or split_files(root):
        return read_parquet(location, seed, validation_share)
    return DATASETS[name].read(location, seed, validation_share, download)

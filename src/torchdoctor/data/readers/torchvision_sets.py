"""Read `torchvision:CLASS@ROOT`: a data set through torchvision's own class, from its original files."""

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

# Our names of the splits, and what torchvision's classes call them.
KEPT = ("data", "samples", "_samples", "_image_files", "_images", "images")  # pixels, or files
SPLITS = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}


@dataclass(frozen=True)
class TorchvisionImages:
    """The images of one split, decoded by torchvision's class."""

    dataset: Any

    def __call__(self, position: int) -> tuple[Image, Image | None]:
        """Decode one image; such data sets have no masks."""
        image, _ = self.dataset[position]
        return image.convert("RGB"), None

    def stamp(self, position: int) -> tuple[bytes, bytes]:
        """Return what changes with the image, where torchvision's class keeps its pixels or its file."""
        for name in KEPT:
            kept = getattr(self.dataset, name, None)
            if kept is None or len(kept) != len(self.dataset):
                continue
            one = kept[position][0] if isinstance(kept[position], tuple) else kept[position]
            if isinstance(one, str | Path):
                return stamp_of_file(Path(one)), b""
            return np.asarray(one).tobytes(), b""
        return b"", b""


def read_torchvision(
    name: str, location: str, seed: int, validation_share: float, *, download: bool = False
) -> Tables:
    """Read the data set of torchvision's class `name` below `location`.

    InputError for unknown classes, for files that are missing (unless `download`), and for classes
    without category labels.
    """
    kind, origin = class_named(name), f"torchvision:{name}@{location}"
    root = Path(location).expanduser()
    if root.name in (getattr(kind, "base_folder", ""), name) and not (root / root.name).exists():
        root = root.parent
    found = {ours: one for ours in SPLITS if (one := _split(kind, root, ours, origin, download)) is not None}
    if "train" not in found:
        raise InputError(f"{origin}: torchvision's {name} has no training split")
    labels = {ours: _labels(one, origin) for ours, one in found.items()}
    classes = category_names(found["train"], labels)
    splits = {ours: _table(one, classes, ours, labels[ours]) for ours, one in found.items()}
    return divide(splits, origin, seed, validation_share)


def class_named(name: str) -> Any:
    """Return the class of torchvision.datasets; InputError suggests near names."""
    from torchvision import datasets

    known = [
        one for one in datasets.__all__ if one not in ("VisionDataset", "wrap_dataset_for_transforms_v2")
    ]
    if name in known:
        return getattr(datasets, name)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise InputError(f"data 'torchvision:{name}': torchvision.datasets has no {name!r}{hint}")


def _split(kind: Any, root: Path, ours: str, origin: str, download: bool) -> Any:
    """Open one split, or return None where the class has no such split."""
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {"download": download} if "download" in parameters else {}
    if "split" in parameters and "train" not in parameters:
        for theirs in SPLITS[ours]:
            try:
                return _opened(kind, root, origin, {**options, "split": theirs})
            except ValueError:  # what torchvision raises for a split that the class does not have
                continue
        return None
    if ours == "val" or (ours == "test" and "train" not in parameters):
        return None
    if "train" in parameters:
        options["train"] = ours == "train"
    try:
        return _opened(kind, root, origin, options)
    except ValueError as error:
        raise InputError(f"{origin}: cannot be opened ({error})") from error


def _opened(kind: Any, root: Path, origin: str, options: dict[str, Any]) -> Any:
    """Call torchvision's class."""
    try:
        return kind(root, **options)
    except (RuntimeError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        part = getattr(kind, "base_folder", None) or kind.__name__
        hint = "" if options.get("download") else "; --download fetches it"
        raise InputError(
            f"{origin}: {first} Expected the original files below {root} (such as {part}){hint}"
        ) from error
    except TypeError as error:
        raise InputError(
            f"{origin}: needs more than a folder ({error}); use another form of --data"
        ) from error


def _labels(dataset: Any, origin: str) -> Int[np.ndarray, " image"]:
    """Return the category of every image, without decoding where the class keeps them."""
    for name in ("targets", "labels", "_labels"):
        kept = getattr(dataset, name, None)
        if kept is not None and len(kept) == len(dataset):
            return np.asarray(kept).astype(np.int64)
    labels = [dataset[position][1] for position in range(len(dataset))]
    if not all(isinstance(one, int | np.integer) for one in labels):
        raise InputError(f"{origin}: its targets are {type(labels[0]).__name__}; expected one category each")
    return np.array(labels, dtype=np.int64)


def category_names(dataset: Any, labels: dict[str, Int[np.ndarray, " image"]]) -> tuple[str, ...]:
    """Return the class's own names of the categories, or their numbers."""
    highest = max(int(one.max()) for one in labels.values() if len(one))
    names = tuple(str(name) for name in getattr(dataset, "classes", ()) or ())
    return names if len(names) > highest else tuple(map(str, range(highest + 1)))


def _table(
    dataset: Any, classes: tuple[str, ...], split: str, labels: Int[np.ndarray, " image"]
) -> ImageTable:
    """Return the table of one split; ids are torchvision's positions."""
    return ImageTable(
        classes=classes,
        labels=labels,
        names=tuple(f"{split} {position}" for position in range(len(labels))),
        ids=np.arange(len(labels)),
        read=TorchvisionImages(dataset),
        has_mask=np.zeros(len(labels), dtype=bool),
    )

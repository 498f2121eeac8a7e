"""Check a data set: decode every image, and report images that are damaged or occur more than once."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from torchdoctor.data.table import ImageTable, Tables
from torchdoctor.types import InputError

Step = Callable[
    [str, int, int], None
]  # moves a progress bar: (name of the split, images done, images in all)
Size = tuple[int, int]  # width and height in pixels
Place = tuple[str, str, str]  # where an image is: its split, its name, its category
MOST_SIZES, MOST_GROUPS = 10, 50  # how many image sizes and groups of equal images a record lists


@dataclass(frozen=True)
class SplitCheck:
    """What a split holds.

    Attributes:
        images: The number of images, damaged images included.
        per_category: The number of images of each category.
        sizes: The number of images of each size (width, height) in pixels.
        masks: The number of images with an object mask.
        broken: Why an image cannot be decoded, by the image's name.
    """

    images: int
    per_category: dict[str, int]
    sizes: dict[Size, int]
    masks: int
    broken: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Describe the split by values that JSON can hold.

        Returns:
            Counts, the ten most frequent sizes, the smallest and largest side, and the damaged images.
        """
        sides = [side for size in self.sizes for side in size]
        return {
            "images": self.images,
            "masks": self.masks,
            "per_category": self.per_category,
            "sizes": [
                {"width": width, "height": height, "images": number}
                for (width, height), number in Counter(self.sizes).most_common(MOST_SIZES)
            ],
            "smallest_side": min(sides, default=None),
            "largest_side": max(sides, default=None),
            "broken": [{"image": name, "reason": reason} for name, reason in self.broken.items()],
        }


@dataclass(frozen=True)
class DataCheck:
    """The result of checking a data set.

    Attributes:
        origin: The `--data` value that the data set was read from.
        splits: What each split holds, by its name.
        duplicates: Groups of images with exactly equal pixels that lie in more than one split, or in the
            same split under several categories; groups across splits first.
        repeated: For each split, how many images repeat another image of that split.
        notes: What of the source is not used.
    """

    origin: str
    splits: dict[str, SplitCheck]
    duplicates: list[list[Place]]
    repeated: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def broken(self) -> int:
        """The number of images that cannot be decoded, in all splits together."""
        return sum(len(split.broken) for split in self.splits.values())

    def to_json(self) -> dict[str, Any]:
        """Describe the result by values that JSON can hold.

        Returns:
            Everything as numbers, lists and names; of the groups of equal images the first 50.
        """
        return {
            "origin": self.origin,
            "splits": {name: split.to_json() for name, split in self.splits.items()},
            "broken": self.broken,
            "duplicates_across_splits": len(self.duplicates),
            "duplicates": [
                [{"split": split, "image": name, "category": category} for split, name, category in group]
                for group in self.duplicates[:MOST_GROUPS]
            ],
            "repeated_within_split": self.repeated,
            "notes": list(self.notes),
        }


def check_data(tables: Tables, workers: int = 0, progress: Step | None = None) -> DataCheck:
    """Decode every image and mask of a data set once; a hash of the pixels finds equal images.

    Args:
        tables: The data set.
        workers: The number of threads that decode; 0 is the number of processor cores.
        progress: Called after every image with (name of the split, images done, images in the split).

    Returns:
        What each split holds, which images are damaged, and which are equal.
    """
    splits: dict[str, SplitCheck] = {}
    places: dict[bytes, list[Place]] = {}
    repeated: dict[str, int] = {}
    for name, table in splits_of(tables).items():
        sizes: Counter[Size] = Counter()
        broken: dict[str, str] = {}
        copies: Counter[bytes] = Counter()
        for position, outcome in enumerate(_decoded_images(table, workers, name, progress)):
            image = table.names[position]
            if isinstance(outcome, str):
                broken[image] = outcome
                continue
            size, digest = outcome
            sizes[size] += 1
            copies[digest] += 1
            places.setdefault(digest, []).append((name, image, table.classes[int(table.labels[position])]))
        counts = np.bincount(table.labels, minlength=len(table.classes)).tolist()
        splits[name] = SplitCheck(
            len(table),
            dict(zip(table.classes, counts, strict=True)),
            dict(sizes),
            int(table.has_mask.sum()),
            broken,
        )
        repeated[name] = sum(number - 1 for number in copies.values())
    return DataCheck(tables.origin, splits, _conflicting(places), repeated, tables.notes)


def _conflicting(places: dict[bytes, list[Place]]) -> list[list[Place]]:
    """Return the groups of equal images that lie in several splits (these first) or several categories."""
    groups = [
        group
        for group in places.values()
        if len({split for split, _, _ in group}) > 1 or len({category for _, _, category in group}) > 1
    ]
    return sorted(groups, key=lambda group: -len({split for split, _, _ in group}))


def splits_of(tables: Tables) -> dict[str, ImageTable]:
    """Return all splits of a data set.

    Args:
        tables: The data set.

    Returns:
        The splits by their names: `train`, `validation` and the test splits.
    """
    return {"train": tables.train, "validation": tables.validation, **tables.tests}


def without_broken(tables: Tables, workers: int = 0) -> tuple[Tables, tuple[str, ...]]:
    """Leave out the images that cannot be decoded.

    Args:
        tables: The data set; every image of it is decoded.
        workers: The number of threads that decode; 0 is the number of processor cores.

    Returns:
        The data set of the other images, and for each image that was left out `SPLIT: REASON`.

    Raises:
        InputError: A split has no image that can be decoded.
    """
    skipped: list[str] = []
    sound: dict[str, ImageTable] = {}
    for name, table in splits_of(tables).items():
        outcomes = list(_decoded_images(table, workers, name, None))
        skipped += [f"{name}: {outcome}" for outcome in outcomes if isinstance(outcome, str)]
        sound[name] = table.select(
            position for position, outcome in enumerate(outcomes) if not isinstance(outcome, str)
        )
        if not len(sound[name]):
            raise InputError(f"{tables.origin}: no image of the {name} split decodes ({skipped[-1]})")
    train, validation = sound.pop("train"), sound.pop("validation")
    return replace(tables, train=train, validation=validation, tests=sound), tuple(skipped)


def _decoded_images(
    table: ImageTable, workers: int, stage: str, progress: Step | None
) -> Iterator[tuple[Size, bytes] | str]:
    """Yield for every image in order its size and the hash of its pixels, or why it cannot be decoded."""

    def decode(position: int) -> tuple[Size, bytes] | str:
        try:
            image, _ = table.read(position)
        except InputError as error:
            return str(error)
        except Exception as error:  # a reader that the user wrote can fail in any way
            return f"{table.names[position]}: {type(error).__name__}: {error}"
        pixels = hashlib.blake2b(image.tobytes(), digest_size=16)
        pixels.update(repr(image.size).encode())
        return image.size, pixels.digest()

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as threads:
        for position, outcome in enumerate(threads.map(decode, range(len(table)))):
            if progress is not None:
                progress(stage, position + 1, len(table))
            yield outcome

"""Look a data set over: decode everything once, in parallel, and say what is broken or there twice."""

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

Step = Callable[[str, int, int], None]  # what moves a progress bar: stage, done, total
Size = tuple[int, int]


@dataclass(frozen=True)
class SplitCheck:
    """What one split holds: `sizes` counts (width, height) in pixels, `broken` gives reasons by name."""

    images: int
    per_category: dict[str, int]
    sizes: dict[Size, int]
    masks: int
    broken: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return counts, the commonest sizes first, and what is broken."""
        sides = [side for size in self.sizes for side in size]
        return {
            "images": self.images,
            "masks": self.masks,
            "per_category": self.per_category,
            "sizes": [
                {"width": width, "height": height, "images": number}
                for (width, height), number in Counter(self.sizes).most_common(10)
            ],
            "smallest_side": min(sides, default=None),
            "largest_side": max(sides, default=None),
            "broken": [{"image": name, "reason": reason} for name, reason in self.broken.items()],
        }


@dataclass(frozen=True)
class DataCheck:
    """What was found in a data set.

    `duplicates` are groups of (split, name, category) with the very same pixels that lie in more than one
    split, or in one split under several categories; `repeated` counts equal images within a split.
    """

    origin: str
    splits: dict[str, SplitCheck]
    duplicates: list[list[tuple[str, str, str]]]
    repeated: dict[str, int]

    @property
    def broken(self) -> int:
        """The number of images that do not decode."""
        return sum(len(one.broken) for one in self.splits.values())

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain numbers, lists and names."""
        return {
            "origin": self.origin,
            "splits": {name: one.to_json() for name, one in self.splits.items()},
            "broken": self.broken,
            "duplicates_across_splits": len(self.duplicates),
            "duplicates": [
                [{"split": split, "image": name, "category": category} for split, name, category in group]
                for group in self.duplicates[:50]
            ],
            "repeated_within_split": self.repeated,
        }


def check_data(tables: Tables, workers: int = 0, progress: Step | None = None) -> DataCheck:
    """Decode every image and mask of a data set once; equal images are found by a hash of their pixels."""
    splits: dict[str, SplitCheck] = {}
    places: dict[bytes, list[tuple[str, str, str]]] = {}
    repeated: dict[str, int] = {}
    for name, table in splits_of(tables).items():
        sizes: Counter[Size] = Counter()
        broken: dict[str, str] = {}
        seen: Counter[bytes] = Counter()
        for position, found in enumerate(_looked_at(table, workers, name, progress)):
            image = table.names[position]
            if isinstance(found, str):
                broken[image] = found
                continue
            size, digest = found
            sizes[size] += 1
            seen[digest] += 1
            places.setdefault(digest, []).append((name, image, table.classes[int(table.labels[position])]))
        counts = np.bincount(table.labels, minlength=len(table.classes)).tolist()
        splits[name] = SplitCheck(
            len(table),
            dict(zip(table.classes, counts, strict=True)),
            dict(sizes),
            int(table.has_mask.sum()),
            broken,
        )
        repeated[name] = sum(number - 1 for number in seen.values())
    duplicates = [
        group
        for group in places.values()
        if len({split for split, _, _ in group}) > 1 or len({category for _, _, category in group}) > 1
    ]
    duplicates.sort(key=lambda group: -len({split for split, _, _ in group}))  # across splits first
    return DataCheck(tables.origin, splits, duplicates, repeated)


def splits_of(tables: Tables) -> dict[str, ImageTable]:
    """Return all splits by name."""
    return {"train": tables.train, "validation": tables.validation, **tables.tests}


def without_broken(tables: Tables, workers: int = 0) -> tuple[Tables, tuple[str, ...]]:
    """Leave out the images that do not decode; return the rest, and `split: reason` of each left out."""
    skipped: list[str] = []
    sound: dict[str, ImageTable] = {}
    for name, table in splits_of(tables).items():
        found = list(_looked_at(table, workers, name, None))
        skipped += [f"{name}: {reason}" for reason in found if isinstance(reason, str)]
        sound[name] = table.select(at for at, one in enumerate(found) if not isinstance(one, str))
        if not len(sound[name]):
            raise InputError(f"{tables.origin}: no image of the {name} split decodes ({skipped[-1]})")
    train, validation = sound.pop("train"), sound.pop("validation")
    return replace(tables, train=train, validation=validation, tests=sound), tuple(skipped)


def _looked_at(
    table: ImageTable, workers: int, stage: str, progress: Step | None
) -> Iterator[tuple[Size, bytes] | str]:
    """Yield (size, hash of the pixels) of every image in order, or why it does not decode."""

    def look(position: int) -> tuple[Size, bytes] | str:
        try:
            image, _ = table.read(position)
        except InputError as error:
            return str(error)
        except Exception as error:  # a reader of somebody else's can fail in any way
            return f"{table.names[position]}: {type(error).__name__}: {error}"
        pixels = hashlib.blake2b(image.tobytes(), digest_size=16)
        pixels.update(repr(image.size).encode())
        return image.size, pixels.digest()

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as threads:
        for done, found in enumerate(threads.map(look, range(len(table)))):
            if progress is not None:
                progress(stage, done + 1, len(table))
            yield found

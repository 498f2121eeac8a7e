"""Tables of labelled images: what every source of data is turned into, and how tables are divided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int
from PIL.Image import Image

from torchdoctor.types import InputError

CLASSES = 2  # stream of the generator that draws categories
ReadImage = Callable[[int], tuple[Image, Image | None]]


@dataclass(frozen=True)
class ChosenRows:
    """Reads the n-th of some chosen rows: what `ImageTable.select` hands on as `read`."""

    read: ReadImage
    rows: Int[np.ndarray, " image"]

    def __call__(self, position: int) -> tuple[Image, Image | None]:
        """Decode the image at `position` among the chosen rows."""
        return self.read(int(self.rows[position]))

    def stamp(self, position: int) -> tuple[bytes, bytes]:
        """Return what changes with the image and with its mask, where the reader knows it."""
        known = getattr(self.read, "stamp", None)
        return (b"", b"") if known is None else known(int(self.rows[position]))


@dataclass(frozen=True)
class ImageTable:
    """The images of one split, not yet decoded.

    `ids` are the row numbers in the split's origin: choosing rows never renumbers them. `read(position)`
    decodes one image (RGB) and its object mask (L, 255 on the object) or None; `has_mask` says which
    without decoding.
    """

    classes: tuple[str, ...]
    labels: Int[np.ndarray, " image"]
    names: tuple[str, ...]
    ids: Int[np.ndarray, " image"]
    read: ReadImage
    has_mask: Bool[np.ndarray, " image"]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def select(self, positions: Iterable[int] | Int[np.ndarray, " chosen"]) -> ImageTable:
        """Return the table of the rows at `positions`, in that order, under the same ids."""
        chosen = np.fromiter(positions, dtype=np.int64)
        return replace(
            self,
            labels=self.labels[chosen],
            names=tuple(self.names[position] for position in chosen),
            ids=self.ids[chosen],
            read=ChosenRows(self.read, chosen),
            has_mask=self.has_mask[chosen],
        )


@dataclass(frozen=True)
class Tables:
    """A whole data set: what is trained on, what is tuned on, and what is tested on.

    `train` and `validation` never share an id, and those of one origin are numbered together. `primary`
    is the test split that decides; `origin` is the spec the tables were read from.
    """

    classes: tuple[str, ...]
    train: ImageTable
    validation: ImageTable
    tests: Mapping[str, ImageTable]
    primary: str
    origin: str


def carve(table: ImageTable, share: float, seed: int) -> tuple[ImageTable, ImageTable]:
    """Split `share` of every category off `table`: what remains, and what was split off, in table order.

    A category of two or more images gives at least one and keeps at least one; a category of one image
    keeps it. The same seed always splits off the same images.
    """
    if not 0.0 < share < 1.0:
        raise InputError(f"share {share!r}: expected a number between 0 and 1, both excluded")
    away = np.zeros(len(table), dtype=bool)
    for rows in _shuffled_categories(table, seed, stream=0):
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        away[rows[:count]] = True
    return table.select(np.flatnonzero(~away)), table.select(np.flatnonzero(away))


def choose_classes(tables: Tables, number: int, seed: int) -> Tables:
    """Return the data set of `number` random categories, in their old order; the same seed draws the same.

    Labels are numbered anew; ids stay.
    """
    if not 2 <= number <= len(tables.classes):
        raise InputError(f"classes {number}: expected 2 to {len(tables.classes)}, which {tables.origin} has")
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, CLASSES])))
    return only_classes(tables, generator.permutation(len(tables.classes))[:number])


def only_classes(tables: Tables, wanted: Int[np.ndarray, " category"]) -> Tables:
    """Return the data set of the wanted categories, given by number, in their old order.

    Labels are numbered anew; ids stay.
    """
    drawn = np.sort(wanted)
    classes = tuple(tables.classes[category] for category in drawn)

    def kept(table: ImageTable) -> ImageTable:
        chosen = table.select(np.flatnonzero(np.isin(table.labels, drawn)))
        return replace(chosen, classes=classes, labels=np.searchsorted(drawn, chosen.labels))

    return replace(
        tables,
        classes=classes,
        train=kept(tables.train),
        validation=kept(tables.validation),
        tests={name: kept(table) for name, table in tables.tests.items()},
    )


def limit_per_category(table: ImageTable, limit: int, seed: int) -> ImageTable:
    """Return at most `limit` images of every category, in table order; the same seed keeps the same ones."""
    if limit < 1:
        raise InputError(f"limit {limit!r}: expected a positive number of images per category")
    keep = [rows[:limit] for rows in _shuffled_categories(table, seed, stream=1)]
    return table.select(np.sort(np.concatenate(keep))) if keep else table


def _shuffled_categories(table: ImageTable, seed: int, stream: int) -> Iterable[Int[np.ndarray, " image"]]:
    """Yield the positions of each category that has images, shuffled by (seed, stream, category)."""
    for category in np.unique(table.labels).tolist():
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, category])))
        yield generator.permutation(np.flatnonzero(table.labels == category))

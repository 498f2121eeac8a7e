"""Tables of labelled images: what every source of data is turned into, and how tables are divided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from PIL.Image import Image

from torchdoctor.data.blocks import OnDisk, on_disk
from torchdoctor.types import InputError

CLASSES = (
    2  # the stream of random numbers that draws categories; 0 and 1 are those of `carve` and of the limit
)
ReadImage = Callable[[int], tuple[Image, Image | None]]


@dataclass(frozen=True)
class ChosenRows:
    """A reader of some images of another reader; `ImageTable.select` makes it.

    Attributes:
        read: The reader of all images.
        rows: The positions of the chosen images in it.
    """

    read: ReadImage
    rows: Int[np.ndarray, " image"]

    def __call__(self, position: int) -> tuple[Image, Image | None]:
        """Decode an image.

        Args:
            position: The position among the chosen images.

        Returns:
            The image, and its mask or None.
        """
        return self.read(int(self.rows[position]))

    def stamp(self, position: int) -> tuple[bytes, bytes]:
        """Return bytes that change with an image and with its mask.

        Args:
            position: The position among the chosen images.

        Returns:
            The stamps of the image and of its mask; empty where the reader has no stamps.
        """
        stamp = getattr(self.read, "stamp", None)
        return (b"", b"") if stamp is None else stamp(int(self.rows[position]))

    def identity(self, position: int) -> bytes:
        """Return bytes that no other image has, without decoding it.

        Args:
            position: The position among the chosen images.

        Returns:
            What the reader has for this, else the stamp of the image.
        """
        identity = getattr(self.read, "identity", None)
        return self.stamp(position)[0] if identity is None else identity(int(self.rows[position]))

    def file(self, position: int) -> Path | None:
        """Return the file of an image.

        Args:
            position: The position among the chosen images.

        Returns:
            The file; None where the reader has no file for each image.
        """
        file = getattr(self.read, "file", None)
        return None if file is None else file(int(self.rows[position]))

    @property
    def on_disk(self) -> OnDisk | None:
        """The chosen images in their blocks, where they lie in such."""
        whole = on_disk(self.read)
        return None if whole is None else whole.select(self.rows)


@dataclass(frozen=True)
class ImageTable:
    """The images of a split, not yet decoded.

    Attributes:
        classes: The names of the categories.
        labels: The category of each image, as its position in `classes`.
        names: A name for each image, such as its path.
        ids: A number for each image that is unique within its split and stays the same when images are
            selected: the position in the table that was read first.
        read: `read(position)` decodes an image: the RGB image, and its object mask (an L image, 255 on the
            object) or None.
        has_mask: Which images have an object mask, known without decoding them.
        groups: A name for each image that says under which circumstances it was taken, such as its background
            or its hospital; empty for an image without one. None: the source names no groups.
    """

    classes: tuple[str, ...]
    labels: Int[np.ndarray, " image"]
    names: tuple[str, ...]
    ids: Int[np.ndarray, " image"]
    read: ReadImage
    has_mask: Bool[np.ndarray, " image"]
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def select(self, positions: Iterable[int] | Int[np.ndarray, " chosen"]) -> ImageTable:
        """Return a table of some of the images.

        Args:
            positions: The positions of the images in this table, in the wanted order.

        Returns:
            The table of these images; they keep their ids.
        """
        rows = np.fromiter(positions, dtype=np.int64)
        return replace(
            self,
            labels=self.labels[rows],
            names=tuple(self.names[position] for position in rows),
            ids=self.ids[rows],
            read=ChosenRows(self.read, rows),
            has_mask=self.has_mask[rows],
            groups=None if self.groups is None else tuple(self.groups[position] for position in rows),
        )


@dataclass(frozen=True)
class Tables:
    """A whole data set.

    Attributes:
        classes: The names of the categories.
        train: The images to train on.
        validation: The images by which settings are chosen. They share no id with `train`.
        tests: The test splits by name.
        primary: The name of the test split on which a treatment is judged.
        origin: The `--data` value that the data set was read from.
        test_divided_off: Whether the test split was divided off, because the data came without one.
        notes: What of the source is not used, in sentences.
    """

    classes: tuple[str, ...]
    train: ImageTable
    validation: ImageTable
    tests: Mapping[str, ImageTable]
    primary: str
    origin: str
    test_divided_off: bool = False
    notes: tuple[str, ...] = ()


def carve(table: ImageTable, share: float, seed: int) -> tuple[ImageTable, ImageTable]:
    """Divide a table in two by splitting off a share of every category.

    From a category of two or more images at least one image is split off and at least one stays; the image
    of a category of a single image stays.

    Args:
        table: The table.
        share: The share to split off, between 0 and 1.
        seed: The seed by which images are chosen; the same seed always chooses the same images.

    Returns:
        The images that stay and the images that were split off, both in the order of the table.

    Raises:
        InputError: The share is not between 0 and 1.
    """
    if not 0.0 < share < 1.0:
        raise InputError(f"share {share!r}: expected a number between 0 and 1, both excluded")
    is_split_off = np.zeros(len(table), dtype=bool)
    for rows in _shuffled_categories(table, seed, stream=0):
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        is_split_off[rows[:count]] = True
    return table.select(np.flatnonzero(~is_split_off)), table.select(np.flatnonzero(is_split_off))


def spread_over(ids: Int[np.ndarray, " image"], most: int) -> Int[np.ndarray, " chosen"]:
    """Choose images at even distances, the first and the last among them.

    Args:
        ids: The ids of images.
        most: The largest number to choose.

    Returns:
        `most` of the ids, in their order; all where there are no more.
    """
    return ids[np.linspace(0, len(ids) - 1, min(most, len(ids))).round().astype(int)]


def places_of(
    ids: Int[np.ndarray, " image"], wanted: Int[np.ndarray, " chosen"]
) -> Int[np.ndarray, " chosen"]:
    """Find images by their ids.

    Args:
        ids: The ids of all images, each once.
        wanted: The ids that are looked for.

    Returns:
        The position of each among all; -1 for an id that is not there.
    """
    if not len(ids):
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    places = order[np.searchsorted(ids, wanted, sorter=order).clip(max=len(ids) - 1)]
    return np.where(ids[places] == wanted, places, -1)


def refuse_empty(tables: Tables) -> Tables:
    """Refuse a data set with an empty split, as very few images give when they are divided.

    Args:
        tables: The data set.

    Returns:
        The same.

    Raises:
        InputError: A split has no image.
    """
    for name, table in {"train": tables.train, "validation": tables.validation, **tables.tests}.items():
        if not len(table):
            raise InputError(
                f"{tables.origin}: the {name} split is empty; expected at least one image, better hundreds"
            )
    return tables


def choose_classes(tables: Tables, number: int, seed: int) -> Tables:
    """Reduce a data set to some categories, chosen at random.

    Args:
        tables: The data set.
        number: How many categories to keep, at least 2.
        seed: The seed by which categories are chosen; the same seed always chooses the same categories.

    Returns:
        The data set of these categories, as `only_classes` makes it.

    Raises:
        InputError: The data set does not have that many categories, or the number is below 2.
    """
    if not 2 <= number <= len(tables.classes):
        raise InputError(f"classes {number}: expected 2 to {len(tables.classes)}, which {tables.origin} has")
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, CLASSES])))
    return only_classes(tables, generator.permutation(len(tables.classes))[:number])


def only_classes(tables: Tables, wanted: Int[np.ndarray, " category"]) -> Tables:
    """Reduce a data set to some categories.

    Args:
        tables: The data set.
        wanted: The numbers of the categories to keep.

    Returns:
        The data set of these categories in their old order. Labels are numbered anew from 0; images keep
        their ids.
    """
    old_numbers = np.sort(wanted)
    classes = tuple(tables.classes[category] for category in old_numbers)

    def reduced(table: ImageTable) -> ImageTable:
        rows = table.select(np.flatnonzero(np.isin(table.labels, old_numbers)))
        return replace(rows, classes=classes, labels=np.searchsorted(old_numbers, rows.labels))

    return replace(
        tables,
        classes=classes,
        train=reduced(tables.train),
        validation=reduced(tables.validation),
        tests={name: reduced(table) for name, table in tables.tests.items()},
    )


def limit_per_category(table: ImageTable, limit: int, seed: int) -> ImageTable:
    """Reduce a table to a number of images per category, chosen at random.

    Args:
        table: The table.
        limit: The largest number of images of a category, at least 1.
        seed: The seed by which images are chosen; the same seed always chooses the same images.

    Returns:
        The table of these images, in the order of the table.

    Raises:
        InputError: The limit is below 1.
    """
    if limit < 1:
        raise InputError(f"limit {limit!r}: expected a positive number of images per category")
    rows = [positions[:limit] for positions in _shuffled_categories(table, seed, stream=1)]
    return table.select(np.sort(np.concatenate(rows))) if rows else table


def _shuffled_categories(table: ImageTable, seed: int, stream: int) -> Iterable[Int[np.ndarray, " image"]]:
    """Yield the positions of the images of each category, shuffled by (seed, stream, category)."""
    for category in np.unique(table.labels).tolist():
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, category])))
        yield generator.permutation(np.flatnonzero(table.labels == category))

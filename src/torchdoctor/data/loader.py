"""Load the images of a table in batches: in order for measuring, shuffled and augmented for training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchdoctor.data.pixels import (
    AUGMENT,
    AnyMask,
    AnyPixels,
    Augment,
    Mask,
    Pixels,
    PixelStore,
    Preprocessing,
    augmented,
)
from torchdoctor.data.shared_memory import workers_that_fit
from torchdoctor.data.table import ImageTable
from torchdoctor.images.batches import Batch
from torchdoctor.types import InputError

SHUFFLE, CYCLE = 1, 2  # streams of random numbers: the order of an epoch, the order of annotated images

Key = tuple[int, ...]
Draw = tuple[int, Key | None]  # the position of an image, and the key of its augmentation (None: without)
Decoded = list[tuple[Pixels, Mask | None]] | InputError


@dataclass(frozen=True)
class Decoder(Dataset[Decoded]):
    """Decodes and augments the images of a batch; a worker process of the loader runs it.

    Attributes:
        store: The images.
        augment: How they are augmented.
    """

    store: PixelStore
    augment: Augment

    def __getitem__(self, draws: list[Draw]) -> Decoded:
        """Decode and augment images.

        Args:
            draws: The positions of the images in the store, and the keys of their augmentation.

        Returns:
            The pixels and the mask of each image. If an image is damaged, the error: it is returned rather
            than raised, so that its message reaches the user without the traceback of a worker.
        """
        try:
            return [
                augmented(*self.store[position], self.augment, key) if key else self.store[position]
                for position, key in draws
            ]
        except InputError as error:
            return error


@dataclass(frozen=True)
class Loader:
    """The images of a table as `TrainingImages`: the same batches each time, and shuffled epochs.

    Attributes:
        table: The images.
        preprocessing: The size and the normalisation of the images.
        batch_size: The number of images in a batch.
        workers: The number of processes that decode. They are used only for tables that are too large to
            keep decoded in memory, and their number never changes a batch.
        augment: How the images of training batches are augmented.
        annotated: The ids of the images whose masks may be used; None is every image that has a mask.
        annotated_per_batch: How many of the images in a training batch are annotated images drawn
            additionally; the other `batch_size` - `annotated_per_batch` images are those of the epoch.
        classes: The names of the categories, where they are known.
        store: The decoded images; None makes a store. Loaders made from this loader share it.
    """

    table: ImageTable
    preprocessing: Preprocessing
    batch_size: int = 64
    workers: int = 0
    augment: Augment = AUGMENT
    annotated: frozenset[int] | None = None
    annotated_per_batch: int = 0
    classes: tuple[str, ...] | None = None
    store: PixelStore = field(default=None, repr=False, compare=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Make the store of decoded images, unless another loader shares its own.

        Raises:
            InputError: `annotated_per_batch` leaves no place for other images.
        """
        if not 0 <= self.annotated_per_batch < self.batch_size:
            raise InputError(
                f"annotated_per_batch {self.annotated_per_batch}: expected 0 to batch_size - 1, "
                f"which is {self.batch_size - 1}"
            )
        if self.store is None:
            how = self.preprocessing
            store = PixelStore(self.table, how.image_size, how.channels, how.resize, how.crop_share)
            object.__setattr__(self, "store", store)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.table)

    @cached_property
    def visible(self) -> Bool[np.ndarray, " image"]:
        """For each image of the table, whether its mask may be used."""
        if self.annotated is None:
            return self.table.has_mask
        is_annotated = np.isin(self.table.ids, np.array(sorted(self.annotated), dtype=np.int64))
        return self.table.has_mask & is_annotated

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return len(self._cuts(self.batch_size - self.annotated_per_batch, self.annotated_per_batch == 0))

    def select(self, ids: Iterable[int] | Int[np.ndarray, " chosen"]) -> Loader:
        """Return a loader of some of the images.

        Args:
            ids: The ids of the images, in the wanted order.

        Returns:
            The loader of these images, with the same store.

        Raises:
            InputError: An id is not in the table.
        """
        positions = {identity: position for position, identity in enumerate(self.table.ids.tolist())}
        wanted = [int(identity) for identity in ids]
        unknown = [identity for identity in wanted if identity not in positions]
        if unknown:
            raise InputError(f"image id {unknown[0]}: not among the {len(self)} images of this split")
        return replace(self, table=self.table.select([positions[identity] for identity in wanted]))

    def with_annotations(self, ids: Iterable[int] | Int[np.ndarray, " chosen"], per_batch: int) -> Loader:
        """Choose the images whose object masks are used in training.

        Args:
            ids: The ids of these images; the masks of all others are hidden.
            per_batch: How many of these images are added to every training batch.

        Returns:
            The loader with this choice.

        Raises:
            InputError: An image has no mask, or there are no images to add.
        """
        with_mask = set(self.table.ids[self.table.has_mask].tolist())
        wanted = [int(identity) for identity in ids]
        without_mask = [identity for identity in wanted if identity not in with_mask]
        if without_mask:
            raise InputError(f"image ids {without_mask[:5]}: expected images of this split that have a mask")
        if per_batch and not wanted:
            raise InputError(f"{per_batch} annotated images per batch: expected at least one annotated image")
        return replace(self, annotated=frozenset(wanted), annotated_per_batch=per_batch)

    def check(self) -> None:
        """Decode every image once.

        Raises:
            InputError: An image is damaged; the message names it.
        """
        self.store.check(self._store_positions())

    def __iter__(self) -> Iterator[Batch]:
        """Yield every image once, in the order of the table and without augmentation.

        Yields:
            The batches; the last batch may be smaller.

        Raises:
            InputError: An image is damaged.
        """
        yield from self.share(0, 1)

    def share(self, rank: int, count: int) -> Iterator[Batch]:
        """Yield the batches of one of several processes, and decode no other image.

        Args:
            rank: The number of the process, from 0.
            count: How many there are.

        Yields:
            Every `count`-th of the batches that iterating yields, from the `rank`-th on.

        Raises:
            InputError: An image is damaged.
        """
        rows, cuts = range(len(self)), self._cuts(self.batch_size, False)[rank::count]
        yield from self._load([[(row, None) for row in rows[cut]] for cut in cuts])

    def epoch(self, number: int, seed: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, shuffled and augmented.

        Args:
            number: The number of the epoch, from 0.
            seed: The seed of the training. Order and augmentation depend only on the seed, the epoch's number
                and the image's id.

        Yields:
            The batches. If a single image were left for the last batch, it joins the batch before, because
            batch-norm cannot be trained on a single image.

        Raises:
            InputError: An image is damaged.
        """
        yield from self._load(self.plan(number, seed))

    def first_batch(self, seed: int) -> Batch:
        """Return the first batch of a training, and decode no other image.

        Args:
            seed: The seed of the training.

        Returns:
            The batch that `epoch(0, seed)` would yield first.

        Raises:
            InputError: An image is damaged.
        """
        return next(self._load(self.plan(0, seed)[:1]))

    def plan(self, number: int, seed: int) -> list[list[Draw]]:
        """Return which images each batch of an epoch holds.

        Args:
            number: The number of the epoch, from 0.
            seed: The seed of the training.

        Returns:
            For each batch the rows of its images in the table, each with the key of its augmentation: (seed,
            epoch, image id, how many times the image was added for its mask before in this epoch).
        """
        added = self.annotated_per_batch
        order = np.argsort(self.table.ids, kind="stable")
        order = order[_generator(seed, SHUFFLE, number).permutation(len(self))]
        batches = [order[cut].tolist() for cut in self._cuts(self.batch_size - added, added == 0)]
        annotated_rows = self._annotated_draws(number, seed, added * len(batches))
        times_drawn: dict[int, int] = {}
        plan: list[list[Draw]] = []
        for step, rows in enumerate(batches):
            draws: list[Draw] = []
            for place, row in enumerate(rows + annotated_rows[added * step : added * (step + 1)]):
                repetition = 0
                if place >= len(rows):
                    repetition = times_drawn[row] = times_drawn.get(row, 0) + 1
                draws.append((row, (seed, number, int(self.table.ids[row]), repetition)))
            plan.append(draws)
        return plan

    def _cuts(self, size: int, merge: bool) -> list[slice]:
        """Return the slices of the batches; `merge` joins a last batch of a single image to its neighbour."""
        starts = list(range(0, len(self), size))
        if not starts:
            return []
        if merge and len(starts) > 1 and len(self) - starts[-1] == 1:
            starts.pop()
        return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(self)], strict=True)]

    def _annotated_draws(self, number: int, seed: int, count: int) -> list[int]:
        """Return the next `count` rows of an endless cycle over annotated images, shuffled every round."""
        rows = np.flatnonzero(self.visible)
        rows = rows[np.argsort(self.table.ids[rows])]
        if not count:
            return []
        if not len(rows):
            raise InputError(f"{self.annotated_per_batch} annotated images per batch: no image shows a mask")
        places = np.arange(number * count, (number + 1) * count)
        rounds = {
            n: _generator(seed, CYCLE, n).permutation(rows) for n in np.unique(places // len(rows)).tolist()
        }
        return [int(rounds[place // len(rows)][place % len(rows)]) for place in places.tolist()]

    def _store_positions(self) -> Int[np.ndarray, " image"]:
        """Return the position in the store of every image of the table."""
        positions = [self.store.positions[identity] for identity in self.table.ids.tolist()]
        return np.array(positions, dtype=np.int64)

    def _load(self, plan: Sequence[Sequence[Draw]]) -> Iterator[Batch]:
        """Yield the batches of a plan."""
        rows = [np.array([row for row, _ in draws], dtype=np.int64) for draws in plan]
        position = self._store_positions()
        decoder = Decoder(self.store, self.augment)
        use_keys = self.augment != "none"
        batches = [[(int(position[row]), key if use_keys else None) for row, key in draws] for draws in plan]
        self.store.prepare(position[np.unique(np.concatenate(rows))] if rows else position[:0])
        workers = 0 if self.store.cached else workers_that_fit(self.workers, self._batch_bytes(plan))
        # The sampler's items are whole batches; the DataLoader only distributes them over the workers.
        # It has a generator of its own, because it would otherwise draw from torch's global generator.
        loaded = DataLoader(
            decoder, batch_size=None, sampler=batches, num_workers=workers, collate_fn=_unchanged,
            generator=torch.Generator(),
        )  # fmt: skip
        for batch_rows, decoded in zip(rows, loaded, strict=True):
            if isinstance(decoded, InputError):
                raise decoded
            yield self._batch(batch_rows, decoded)

    def _batch_bytes(self, plan: Sequence[Sequence[Draw]]) -> int:
        """Return the size of the largest batch of a plan, in bytes, each image with a mask."""
        images = max((len(draws) for draws in plan), default=0)
        return images * (self.preprocessing.channels + 1) * self.preprocessing.image_size**2

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Return images as the network takes them."""
        return self.preprocessing.normalise(pixels)

    def _batch(
        self, rows: Int[np.ndarray, " batch"], decoded: Sequence[tuple[AnyPixels, AnyMask | None]]
    ) -> Batch:
        """Return a batch of decoded images; masks that may not be used are empty."""
        images = self._normalised(torch.stack([pixels for pixels, _ in decoded]))
        labels = torch.from_numpy(self.table.labels[rows])
        ids = torch.from_numpy(self.table.ids[rows])
        if not self.visible.any():
            return Batch(images, labels, ids)
        annotated = self.visible[rows]
        masks = torch.zeros((len(rows), 1, *images.shape[-2:]))
        for place in np.flatnonzero(annotated).tolist():
            mask = decoded[place][1]
            if mask is None:
                raise InputError("the table announced a mask that the source does not have")
            masks[place] = mask.float()
        # A crop can cut the object off: then the mask would call the whole image background.
        annotated = annotated & masks.flatten(1).any(1).numpy()
        return Batch(images, labels, ids, masks, torch.from_numpy(annotated))


def _unchanged(decoded: Decoded) -> Decoded:
    """Return a batch as it is: the DataLoader must not stack it."""
    return decoded


def _generator(*key: int) -> np.random.Generator:
    """Return a generator of random numbers that depend only on the key."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))

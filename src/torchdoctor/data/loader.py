"""Load the images of a table in batches: in order for measuring, shuffled and augmented for training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from torchdoctor.data.augmentation import AUGMENT, AnyMask, Augment
from torchdoctor.data.blocks import OnDisk, on_disk
from torchdoctor.data.decoder import Requests, batches_on_device, decoded_batches, workers_of
from torchdoctor.data.order import Plan, cycle, epoch_order, in_order, shuffled_plan, starts_of
from torchdoctor.data.pixels import CACHE_BYTES, PixelStore, Preprocessing
from torchdoctor.data.shared_batches import whole_batches
from torchdoctor.data.shared_memory import workers_that_fit
from torchdoctor.data.table import ImageTable, places_of
from torchdoctor.images.batches import Batch, sent
from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import InputError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Loader:
    """The images of a table as `TrainingImages`: the same batches each time, and shuffled epochs.

    Attributes:
        table: The images.
        preprocessing: The size and the normalisation of the images.
        batch_size: The number of images in a batch.
        workers: The number of processes that decode, or `auto`: as many as there are processor cores. They
            are used only for tables that are too large to keep decoded in memory, and their number never
            changes a batch.
        augment: How the images of training batches are augmented.
        annotated: The ids of the images whose masks may be used; None is every image that has a mask.
        annotated_per_batch: How many of the images in a training batch are annotated images drawn
            additionally; the other `batch_size` - `annotated_per_batch` images are those of the epoch.
        classes: The names of the categories, where they are known.
        store: The decoded images; None makes a store. Loaders made from this loader share it.
        device: Where batches are put together and normalised: pixels are copied there as bytes. On a GPU
            decoded images are kept where they fit. It changes no number.
        processes: Who decodes the training batches: each a part of every batch, where images do not fit
            decoded into memory. Then all have to go through an epoch alike. It changes no number.
    """

    table: ImageTable
    preprocessing: Preprocessing
    batch_size: int = 64
    workers: int | Literal["auto"] = "auto"
    augment: Augment = AUGMENT
    annotated: frozenset[int] | None = None
    annotated_per_batch: int = 0
    classes: tuple[str, ...] | None = None
    store: PixelStore = field(default=None, repr=False, compare=False)  # type: ignore[assignment]
    device: torch.device = field(default=CPU, repr=False, compare=False)
    processes: Processes = field(default=ALONE, repr=False, compare=False)

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
        return len(self._starts)

    def select(self, ids: Iterable[int] | Int[np.ndarray, " chosen"]) -> Loader:
        """Return a loader of some of the images.

        Args:
            ids: The ids of the images, in the wanted order.

        Returns:
            The loader of these images, with the same store.

        Raises:
            InputError: An id is not in the table.
        """
        wanted = np.array([int(identity) for identity in ids], dtype=np.int64)
        places = places_of(self.table.ids, wanted)
        if (places < 0).any():
            raise InputError(
                f"image id {wanted[places < 0][0]}: not among the {len(self)} images of this split"
            )
        return replace(self, table=self.table.select(places))

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
        self.store.check(self.store.positions(self.table.ids))

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
        yield from self._load(in_order(len(self), self.batch_size).share(rank, count))

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
        yield from self._load(self.plan(number, seed), self.processes)

    def first_batch(self, seed: int) -> Batch:
        """Return the first batch of a training, and decode no other image.

        Args:
            seed: The seed of the training.

        Returns:
            The batch that `epoch(0, seed)` would yield first.

        Raises:
            InputError: An image is damaged.
        """
        return next(self._load(self.plan(0, seed).first()))

    def plan(self, number: int, seed: int) -> Plan:
        """Return which images each batch of an epoch holds.

        Args:
            number: The number of the epoch, from 0.
            seed: The seed of the training.

        Returns:
            For each batch the rows of its images in the table, each with the key of its augmentation: (seed,
            epoch, image id, how many times the image was added for its mask before in this epoch).
        """
        per_batch, starts, blocks = self.annotated_per_batch, self._starts, self._blocks
        window = 0 if blocks is None else blocks.reader.window
        order = epoch_order(self.table.ids, seed, number, None if blocks is None else blocks.blocks, window)
        added: list[int] = []
        if per_batch and len(starts):
            rows = np.flatnonzero(self.visible)
            if not len(rows):
                raise InputError(f"{per_batch} annotated images per batch: no image shows a mask")
            rows = rows[np.argsort(self.table.ids[rows])]
            added = cycle(rows, number, per_batch * len(starts), seed)
        return shuffled_plan(self.table.ids, order, starts, added, per_batch, (seed, number))

    @property
    def _starts(self) -> Int[np.ndarray, " step"]:
        """Where each batch of an epoch begins, without the images that are added."""
        return starts_of(
            len(self), self.batch_size - self.annotated_per_batch, merge=self.annotated_per_batch == 0
        )

    @property
    def _blocks(self) -> OnDisk | None:
        """The images in the blocks on disk that they lie in; None where they lie in none."""
        return on_disk(self.table.read)

    @property
    def reading(self) -> str | None:
        """Where images are read from, in a sentence; None where they are kept decoded in main memory."""
        blocks = self._blocks
        if self.store.on(self.device) is not None:
            return f"the {len(self):,} images are kept decoded on {self.device}"
        if self.store.cached and blocks is None:
            return None
        said = f"the {len(self):,} images are read from disk"
        if not self.store.cached:
            said += (
                f" in every epoch (decoded they take {self.store.decoded_bytes / 2**30:.1f} GB, and "
                f"{CACHE_BYTES / 2**30:g} GB are kept in memory)"
            )
        return said + ("" if blocks is None else f", shuffled within about {blocks.shuffled_within:,} images")

    def _load(self, plan: Plan, processes: Processes = ALONE) -> Iterator[Batch]:
        """Yield the batches of a plan, of which processes may decode a part each."""
        positions = self.store.positions(self.table.ids)
        wanted = np.unique(positions[plan.rows])
        self.store.prepare(wanted)
        processes = ALONE if self.store.cached else processes
        requests = Requests(self.store, plan, positions, self.augment != "none", processes)
        kept = self.store.on(self.device)
        if kept is not None:
            kept.prepare(wanted)
            decoded_there = batches_on_device(self.store, kept, self.augment, requests)
            for step, decoded in enumerate(decoded_there):
                yield self._batch(plan.rows_of(step), *decoded)
            return
        workers = 0 if self.store.cached else workers_of(self.workers, len(plan))
        workers = workers_that_fit(workers, self._batch_bytes(plan))
        pinned = self.device.type == "cuda"
        loaded = decoded_batches(self.store, self.augment, requests, workers, pinned)
        if not processes.alone:
            loaded = whole_batches(loaded, plan, processes, bool(self.table.has_mask.any()))
        for step, decoded in enumerate(loaded):
            yield self._batch(plan.rows_of(step), *decoded)

    def _batch_bytes(self, plan: Plan) -> int:
        """Return the size of the largest batch of a plan, in bytes, each image with a mask."""
        return plan.largest * (self.preprocessing.channels + 1) * self.preprocessing.image_size**2

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Return images as the network takes them."""
        return self.preprocessing.normalise(sent(pixels, self.device))

    def _batch(
        self, rows: Int[np.ndarray, " batch"], pixels: Tensor, decoded: Sequence[AnyMask | None]
    ) -> Batch:
        """Return a batch of decoded images; masks that may not be used are empty."""
        images = self._normalised(pixels)
        labels = torch.from_numpy(self.table.labels[rows])
        ids = torch.from_numpy(self.table.ids[rows])
        if not self.visible.any():
            return Batch(images, labels, ids)
        annotated = self.visible[rows]
        masks = torch.zeros((len(rows), 1, *images.shape[-2:]))
        for place in np.flatnonzero(annotated).tolist():
            masks[place] = _float_mask(decoded[place])
        # A crop can cut the object off: then the mask would call the whole image background.
        annotated = annotated & masks.flatten(1).any(1).numpy()
        return Batch(images, labels, ids, sent(masks, self.device), torch.from_numpy(annotated))


def _float_mask(mask: AnyMask | None) -> Tensor:
    """Return a mask as floats; InputError if it is missing although the table announced it."""
    if mask is None:
        raise InputError("the table announced a mask that the source does not have")
    return mask.float()

"""Batches of images, the protocols of image sources, and shuffled batches for training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torchdoctor.processes import ALONE, Processes
from torchdoctor.randomness import key


@dataclass(frozen=True)
class Batch:
    """Images that go through the network together, already normalised.

    Attributes:
        images: The normalised pixels.
        labels: The number of each image's category, from 0.
        ids: A number for each image that is unique within its split and never changes. The random noise
            and the lists of selected images refer to images by these ids.
        masks: 1 on the object, 0 on the background; None without any object masks.
        annotated: True for each image whose mask is known. Where it is False the values in `masks` mean
            nothing. None without any object masks.

    >>> batch = Batch(torch.zeros(4, 3, 32, 32), labels=torch.tensor([0, 1, 0, 1]), ids=torch.arange(4))
    >>> tuple(batch.images.shape), batch.masks is None
    ((4, 3, 32, 32), True)
    """

    images: Float[Tensor, "batch channel height width"]
    labels: Int[Tensor, " batch"]
    ids: Int[Tensor, " batch"]
    masks: Float[Tensor, "batch 1 height width"] | None = None
    annotated: Bool[Tensor, " batch"] | None = None


@runtime_checkable
class Images(Protocol):
    """Any object that yields the same batches each time it is iterated; a list of `Batch` is enough."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield every image once, in a fixed order and without augmentation.

        Yields:
            The batches.
        """
        ...


@runtime_checkable
class TrainingImages(Images, Protocol):
    """Images that can also be drawn for training, shuffled and augmented."""

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch."""
        ...

    def with_annotations(self, ids: Sequence[int], per_batch: int) -> TrainingImages:
        """Choose the images whose object masks are used in training.

        Args:
            ids: The ids of these images; the masks of all others are hidden.
            per_batch: How many of these images every training batch contains.

        Returns:
            The same images with this choice.
        """
        ...

    def epoch(self, number: int, seed: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, shuffled and augmented.

        Args:
            number: The number of the epoch, from 0.
            seed: The seed of the training. Order and augmentation depend only on the seed, the epoch's
                number and the image's id.

        Yields:
            The batches.
        """
        ...


def shared(images: Iterable[Batch], processes: Processes) -> Iterator[Batch]:
    """Yield the batches that this process works on: every batch is that of a single process.

    A source with a method `share(rank, count)` is asked for them, so that it need not load the others; of
    other sources, the batches of the other processes are skipped.

    Args:
        images: The source of images.
        processes: The processes that work together.

    Yields:
        Its share of the batches, in their order.
    """
    share = getattr(images, "share", None)
    if processes.alone or share is None:
        yield from processes.share(images)
    else:
        yield from share(processes.rank, processes.count)


def only(images: Images, ids: Iterable[int], processes: Processes = ALONE) -> Iterator[Batch]:
    """Yield only the images that have certain ids.

    A source with a method `select(ids)` is asked for them, so that it need not load the others.

    Args:
        images: The source of images.
        ids: The ids of the wanted images.
        processes: The processes that work together: each gets its share of the batches.

    Yields:
        Batches with the wanted images; batches without any are left out.
    """
    wanted = sorted(set(ids))
    select = getattr(images, "select", None)
    if select is not None:
        yield from shared(select(wanted), processes)
        return
    wanted_ids = torch.tensor(wanted)
    for batch in shared(images, processes):
        is_wanted = torch.isin(batch.ids.cpu(), wanted_ids)
        if bool(is_wanted.any()):
            yield take(batch, is_wanted)


def take(batch: Batch, rows: Tensor) -> Batch:
    """Return some images of a batch.

    Args:
        batch: The batch.
        rows: The positions of the images in the batch, or a boolean per image.

    Returns:
        A batch of these images with their labels, ids and masks.
    """
    return Batch(
        batch.images[rows],
        batch.labels[rows],
        batch.ids[rows],
        None if batch.masks is None else batch.masks[rows],
        None if batch.annotated is None else batch.annotated[rows],
    )


def sent(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy a tensor to the device of a network, without waiting for a GPU to finish what it computes.

    Args:
        values: The tensor.
        device: The device.
        dtype: The type of its numbers there; None: as it is.

    Returns:
        The tensor on the device.
    """
    return values.to(device, dtype or values.dtype, non_blocking=device.type == "cuda")


@dataclass(frozen=True)
class ShuffledBatches:
    """Training images made from fixed batches: their order is shuffled, and there is no augmentation.

    Attributes:
        batches: The batches.
    """

    batches: tuple[Batch, ...]

    def __iter__(self) -> Iterator[Batch]:
        """Return an iterator over the batches in their own order.

        Returns:
            The iterator.
        """
        return iter(self.batches)

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches."""
        return len(self.batches)

    def epoch(self, number: int, seed: int) -> Iterator[Batch]:
        """Yield the batches in a random order that depends only on the arguments.

        Args:
            number: The number of the epoch, from 0.
            seed: The seed of the training.

        Yields:
            The batches.
        """
        generator = torch.Generator().manual_seed(key("order", seed, number))
        for position in torch.randperm(len(self.batches), generator=generator).tolist():
            yield self.batches[position]

    def with_annotations(self, ids: Sequence[int], per_batch: int) -> ShuffledBatches:
        """Choose the images whose object masks are used in training.

        Args:
            ids: The ids of these images; the masks of all others are hidden.
            per_batch: Not used: the batches are fixed, and no image can be added to them.

        Returns:
            The same batches with this choice.
        """
        wanted_ids = torch.tensor(sorted(ids), dtype=torch.int64)

        def annotated_batch(batch: Batch) -> Batch:
            is_wanted = torch.isin(batch.ids.cpu(), wanted_ids)
            return replace(batch, annotated=None if batch.masks is None else is_wanted)

        return ShuffledBatches(tuple(annotated_batch(batch) for batch in self.batches))

"""Batches of images, the protocols of image sources, and shuffled batches for training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torchdoctor.randomness import key


@dataclass(frozen=True)
class Batch:
    """Images that are shown to the network together, already normalised.

    `ids` number the images of one split for good: noise and sifting refer to them. `masks` is 1 on the
    object and 0 on the background; where `annotated` is False the mask says nothing.
    """

    images: Float[Tensor, "batch channel height width"]
    labels: Int[Tensor, " batch"]
    ids: Int[Tensor, " batch"]
    masks: Float[Tensor, "batch 1 height width"] | None = None
    annotated: Bool[Tensor, " batch"] | None = None


@runtime_checkable
class Images(Protocol):
    """Anything that yields the same batches each time it is iterated: a list of `Batch` will do."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield every image once, in a fixed order, not augmented."""
        ...


@runtime_checkable
class TrainingImages(Images, Protocol):
    """Images that can also be drawn for training."""

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches of one epoch."""
        ...

    def with_annotations(self, ids: Sequence[int], per_batch: int) -> TrainingImages:
        """Show only the masks of these images, and draw `per_batch` of them into every batch."""
        ...

    def epoch(self, number: int, seed: int) -> Iterator[Batch]:
        """Yield the batches of one epoch: shuffled and augmented by (seed, number, image id) alone."""
        ...


def only(images: Images, ids: Iterable[int]) -> Iterator[Batch]:
    """Yield the batches cut down to the images with these ids; sources that can select are asked to."""
    wanted = sorted(set(ids))
    select = getattr(images, "select", None)
    if select is not None:
        yield from select(wanted)
        return
    chosen = torch.tensor(wanted)
    for batch in images:
        keep = torch.isin(batch.ids.cpu(), chosen)
        if bool(keep.any()):
            yield take(batch, keep)


def take(batch: Batch, rows: Tensor) -> Batch:
    """Return the chosen rows of a batch."""
    return Batch(
        batch.images[rows],
        batch.labels[rows],
        batch.ids[rows],
        None if batch.masks is None else batch.masks[rows],
        None if batch.annotated is None else batch.annotated[rows],
    )


@dataclass(frozen=True)
class ShuffledBatches:
    """A plain list of batches as training images: their order is shuffled, nothing is augmented."""

    batches: tuple[Batch, ...]

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in their own order."""
        return iter(self.batches)

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches."""
        return len(self.batches)

    def epoch(self, number: int, seed: int) -> Iterator[Batch]:
        """Yield the batches in an order keyed by (seed, number)."""
        generator = torch.Generator().manual_seed(key("order", seed, number))
        for position in torch.randperm(len(self.batches), generator=generator).tolist():
            yield self.batches[position]

    def with_annotations(self, ids: Sequence[int], per_batch: int) -> ShuffledBatches:
        """Show only the masks of these images; fixed batches take no further images."""
        wanted = torch.tensor(sorted(ids), dtype=torch.int64)

        def shown(batch: Batch) -> Batch:
            here = torch.isin(batch.ids.cpu(), wanted)
            return replace(batch, annotated=None if batch.masks is None else here)

        return ShuffledBatches(tuple(shown(batch) for batch in self.batches))

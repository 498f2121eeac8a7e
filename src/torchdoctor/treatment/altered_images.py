"""Training images that a remedy has changed: some left out, others relabelled, or all augmented further."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from torchdoctor.images.batches import Batch, TrainingImages, take
from torchdoctor.randomness import key

LOOKED_AT = 16  # batches that the range of the pixels is taken from


@dataclass(frozen=True)
class Altered(ABC):
    """Training images that are changed batch by batch; what a change is, a subclass says.

    Attributes:
        images: The images as they are without the change.
    """

    images: TrainingImages

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches."""
        return self.images.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        """Yield every image once, in its own order.

        Yields:
            The batches.
        """
        yield from self._altered(self.images)

    def epoch(self, number: int, seed: int) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Args:
            number: The number of the epoch, from 0.
            seed: The seed of the training.

        Yields:
            The batches.
        """
        yield from self._altered(self.images.epoch(number, seed))

    def with_annotations(self, ids: Sequence[int], per_batch: int) -> Altered:
        """Choose the images whose object masks are used in training.

        Args:
            ids: The ids of these images.
            per_batch: How many of these images every training batch contains.

        Returns:
            The images with this choice.
        """
        return replace(self, images=self.images.with_annotations(ids, per_batch))

    @abstractmethod
    def _altered(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Change batches."""


@dataclass(frozen=True)
class Without(Altered):
    """Training images of which some are left out; the others' batches are smaller by them.

    Attributes:
        ids: The ids of those that are left out.
    """

    ids: frozenset[int]

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches; 0 where no image is left."""
        return self.images.steps_per_epoch if any(len(batch.labels) for batch in self) else 0

    def _altered(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield what is left of batches, those with nothing left out."""
        dropped = torch.tensor(sorted(self.ids), dtype=torch.int64)
        for batch in batches:
            kept = ~torch.isin(batch.ids.cpu(), dropped)
            if bool(kept.all()):
                yield batch
            elif bool(kept.any()):
                yield take(batch, kept)


@dataclass(frozen=True)
class Relabelled(Altered):
    """Training images of which some have another label.

    Attributes:
        labels: The new label of some images, by their ids.
    """

    labels: Mapping[int, int]

    def _altered(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches with the new labels."""
        for batch in batches:
            pairs = zip(batch.ids.tolist(), batch.labels.tolist(), strict=True)
            labels = [self.labels.get(identity, label) for identity, label in pairs]
            yield replace(
                batch, labels=torch.tensor(labels, dtype=batch.labels.dtype, device=batch.labels.device)
            )


@dataclass(frozen=True)
class TriviallyAugmented(Altered):
    """Training images that each get a random change of random strength in an epoch; their masks are hidden.

    The change is torchvision's `TrivialAugmentWide`, which needs pixels from 0 to 1: the darkest and the
    brightest value of each channel over the first batches are taken to be 0 and 1. Outside of an epoch the
    images are as they were, without masks.
    """

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The darkest and the brightest value of each channel, each [1, channel, 1, 1]."""
        first = [batch.images for batch in islice(self.images, LOOKED_AT)]
        darkest = torch.stack([one.amin((0, 2, 3)) for one in first]).amin(0)
        brightest = torch.stack([one.amax((0, 2, 3)) for one in first]).amax(0)
        return darkest[None, :, None, None], brightest[None, :, None, None]

    def epoch(self, number: int, seed: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, changed.

        Args:
            number: The number of the epoch, from 0.
            seed: The seed of the training; the changes depend on it, the epoch's number and the image's
                place in the epoch.

        Yields:
            The batches.
        """
        for place, batch in enumerate(super().epoch(number, seed)):
            yield replace(batch, images=self._changed(batch.images, key("augment", seed, number, place)))

    def _altered(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches without their masks."""
        for batch in batches:
            yield replace(batch, masks=None, annotated=None)

    def _changed(self, images: Tensor, seed: int) -> Tensor:
        """Change every image of a batch."""
        from torchvision.transforms import v2

        darkest, brightest = self.bounds
        darkest, brightest = darkest.to(images), brightest.to(images)
        span = (brightest - darkest).clamp(min=1e-6)
        pixels = ((images - darkest) / span).clamp(0, 1)
        change = v2.TrivialAugmentWide()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            changed = torch.stack([change(image) for image in pixels])
        return changed * span + darkest

"""Training images that a remedy has changed: some left out, others relabelled, or all augmented further."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from torchdoctor.images.batches import Batch, TrainingImages, take
from torchdoctor.randomness import key

LOOKED_AT = 16  # batches that the range of the pixels is taken from


@dataclass(frozen=True)
class Without:
    """Training images of which some are left out.

    Attributes:
        images: All of them.
        ids: The ids of those that are left out.
    """

    images: TrainingImages
    ids: frozenset[int]

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches; 0 where no image is left."""
        return self.images.steps_per_epoch if any(len(batch.labels) for batch in self) else 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield the images that are left, in their own order.

        Yields:
            The batches.
        """
        yield from self._left(self.images)

    def epoch(self, number: int, seed: int) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Args:
            number: The number of the epoch, from 0.
            seed: The seed of the training.

        Yields:
            The batches, smaller by what is left out.
        """
        yield from self._left(self.images.epoch(number, seed))

    def with_annotations(self, ids: Sequence[int], per_batch: int) -> Without:
        """Choose the images whose object masks are used in training.

        Args:
            ids: The ids of these images.
            per_batch: How many of these images every training batch contains.

        Returns:
            The images with this choice.
        """
        return replace(self, images=self.images.with_annotations(ids, per_batch))

    def _left(self, batches: Iterator[Batch] | TrainingImages) -> Iterator[Batch]:
        """Yield what is left of batches, those with nothing left out."""
        dropped = torch.tensor(sorted(self.ids), dtype=torch.int64)
        for batch in batches:
            kept = ~torch.isin(batch.ids.cpu(), dropped)
            if bool(kept.all()):
                yield batch
            elif bool(kept.any()):
                yield take(batch, kept)


@dataclass(frozen=True)
class Relabelled:
    """Training images of which some have another label.

    Attributes:
        images: The images.
        labels: The new label of some images, by their ids.
    """

    images: TrainingImages
    labels: Mapping[int, int]

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches."""
        return self.images.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        """Yield every image once, in its own order.

        Yields:
            The batches.
        """
        yield from map(self._relabelled, self.images)

    def epoch(self, number: int, seed: int) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Args:
            number: The number of the epoch, from 0.
            seed: The seed of the training.

        Yields:
            The batches.
        """
        yield from map(self._relabelled, self.images.epoch(number, seed))

    def with_annotations(self, ids: Sequence[int], per_batch: int) -> Relabelled:
        """Choose the images whose object masks are used in training.

        Args:
            ids: The ids of these images.
            per_batch: How many of these images every training batch contains.

        Returns:
            The images with this choice.
        """
        return replace(self, images=self.images.with_annotations(ids, per_batch))

    def _relabelled(self, batch: Batch) -> Batch:
        """Return a batch with the new labels."""
        pairs = zip(batch.ids.tolist(), batch.labels.tolist(), strict=True)
        labels = [self.labels.get(identity, label) for identity, label in pairs]
        return replace(
            batch, labels=torch.tensor(labels, dtype=batch.labels.dtype, device=batch.labels.device)
        )


@dataclass(frozen=True)
class TriviallyAugmented:
    """Training images that each get a random change of random strength; their masks are hidden.

    The change is torchvision's `TrivialAugmentWide`, which needs pixels from 0 to 1: the darkest and the
    brightest value of each channel over the first batches are taken to be 0 and 1.

    Attributes:
        images: The images, augmented as usual.
    """

    images: TrainingImages

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches."""
        return self.images.steps_per_epoch

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The darkest and the brightest value of each channel, each [1, channel, 1, 1]."""
        first = [batch.images for batch in islice(self.images, LOOKED_AT)]
        darkest = torch.stack([one.amin((0, 2, 3)) for one in first]).amin(0)
        brightest = torch.stack([one.amax((0, 2, 3)) for one in first]).amax(0)
        return darkest[None, :, None, None], brightest[None, :, None, None]

    def __iter__(self) -> Iterator[Batch]:
        """Yield every image once, in its own order and unchanged.

        Yields:
            The batches.
        """
        yield from map(_unmasked, self.images)

    def epoch(self, number: int, seed: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, changed.

        Args:
            number: The number of the epoch, from 0.
            seed: The seed of the training; the changes depend on it, the epoch's number and the image's
                place in the epoch.

        Yields:
            The batches.
        """
        for place, batch in enumerate(self.images.epoch(number, seed)):
            yield _unmasked(
                replace(batch, images=self._changed(batch.images, key("augment", seed, number, place)))
            )

    def with_annotations(self, ids: Sequence[int], per_batch: int) -> TriviallyAugmented:
        """Choose the images whose object masks are used in training; here they decide the batches alone.

        Args:
            ids: The ids of these images.
            per_batch: How many of these images every training batch contains.

        Returns:
            The images with this choice.
        """
        return replace(self, images=self.images.with_annotations(ids, per_batch))

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


def _unmasked(batch: Batch) -> Batch:
    """Return a batch without its masks."""
    return replace(batch, masks=None, annotated=None)

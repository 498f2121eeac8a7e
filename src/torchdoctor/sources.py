"""Serve plain batches as training images, and say which masks are seen and how often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from torchdoctor.noise import key
from torchdoctor.types import Batch, Diagnosis, Images


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


def drawn_per_batch(share: float, batch_size: int) -> int:
    """Return how many annotated images are drawn into every batch: at least one unless the share is 0."""
    return max(1, round(share * batch_size)) if share > 0 else 0


def masked_ids(images: Images, diagnosis: Diagnosis, masks_per_category: int | None) -> tuple[int, ...]:
    """Return the images whose masks are used: per category the first of the sifted low list, then others.

    None: all that have one.
    """
    labels: dict[int, int] = {}
    for batch in images:
        if batch.masks is None:
            continue
        shown = batch.annotated if batch.annotated is not None else torch.ones_like(batch.labels).bool()
        labels.update(zip(batch.ids[shown].tolist(), batch.labels[shown].tolist(), strict=True))
    chosen: list[int] = []
    for category, low in enumerate(diagnosis.sifting.low):
        first = [image for image in low if image in labels]
        others = sorted({image for image, label in labels.items() if label == category} - set(first))
        chosen += (first + others)[:masks_per_category]
    return tuple(sorted(chosen))

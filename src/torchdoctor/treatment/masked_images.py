"""Serve plain batches as training images, and say which masks are seen and how often."""

from __future__ import annotations

import torch

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.batches import Images


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

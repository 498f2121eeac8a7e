"""Choose the images whose object masks a training uses, and how many of them each batch contains."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.batches import Images, TrainingImages


def drawn_per_batch(share: float, batch_size: int) -> int:
    """Return how many annotated images are drawn into every batch.

    Args:
        share: The share of the batch, 0..1.
        batch_size: The number of images in a batch.

    Returns:
        The rounded number; at least 1 unless the share is 0.
    """
    return max(1, round(share * batch_size)) if share > 0 else 0


def masked_ids(images: Images, diagnosis: Diagnosis, masks_per_category: int | None) -> tuple[int, ...]:
    """Return the images whose masks are used: of each category first those in `Sifting.low`, then others.

    Args:
        images: The training images.
        diagnosis: Their diagnosis, which ranks the images to annotate.
        masks_per_category: The largest number of images of a category; None: all that have a mask.

    Returns:
        The ids of the images, in rising order.
    """
    labels: dict[int, int] = {}
    for batch in images:
        if batch.masks is None:
            continue
        known = batch.annotated if batch.annotated is not None else torch.ones_like(batch.labels).bool()
        labels.update(zip(batch.ids[known].tolist(), batch.labels[known].tolist(), strict=True))
    chosen: list[int] = []
    for category, low in enumerate(diagnosis.sifting.low):
        first = [image for image in low if image in labels]
        others = sorted({image for image, label in labels.items() if label == category} - set(first))
        chosen += (first + others)[:masks_per_category]
    return tuple(sorted(chosen))


def with_masks(images: TrainingImages, masked: Sequence[int], share: float) -> TrainingImages:
    """Choose the images whose masks a training uses, and draw some of them into every batch.

    Args:
        images: The training images.
        masked: The ids of the images whose masks are used.
        share: The share of each batch that is drawn from them, 0..1.

    Returns:
        The images with this choice; as they were where no image is named.
    """
    if not masked:
        return images
    largest = max(len(batch.labels) for batch in images)
    return images.with_annotations(masked, drawn_per_batch(share, largest))


def has_masks(images: Images) -> bool:
    """Tell whether any image has a mask that may be used.

    Args:
        images: The images.

    Returns:
        True where one has.
    """
    return any(bool(batch.annotated.any()) for batch in images if batch.annotated is not None)

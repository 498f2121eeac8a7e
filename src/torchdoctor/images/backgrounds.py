"""Cut objects out along their masks: put them before other backgrounds, or show the background alone."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchdoctor.images.batches import Batch, Images, take
from torchdoctor.randomness import key


def before_other_backgrounds(
    images: Float[Tensor, "batch channel height width"],
    masks: Float[Tensor, "batch 1 height width"],
    donors: Float[Tensor, "donor channel height width"],
    donor_masks: Float[Tensor, "donor 1 height width"],
) -> Float[Tensor, "batch donor channel height width"]:
    """Put the object of every image before the background of every donor image.

    Args:
        images: The images whose objects are cut out.
        masks: Their masks: 1 on the object, 0 on the background.
        donors: The images whose backgrounds are used; their own objects are covered first
            (see `background_alone`).
        donor_masks: The masks of the donors.

    Returns:
        The composed images, for each pair of an image and a donor.
    """
    backgrounds = background_alone(donors, donor_masks)
    return masks[:, None] * images[:, None] + (1 - masks[:, None]) * backgrounds[None]


def swapped_backgrounds(
    images: Float[Tensor, "batch channel height width"],
    masks: Float[Tensor, "batch 1 height width"],
    donors: Int[Tensor, " batch"],
) -> Float[Tensor, "batch channel height width"]:
    """Put the object of every image before the background of another image of the same batch.

    Args:
        images: The images.
        masks: Their masks: 1 on the object, 0 on the background.
        donors: For each image, the position in the batch of the image whose background it gets.

    Returns:
        The composed images.
    """
    return masks * images + (1 - masks) * background_alone(images, masks)[donors]


def background_alone(
    images: Float[Tensor, "batch channel height width"], masks: Float[Tensor, "batch 1 height width"]
) -> Float[Tensor, "batch channel height width"]:
    """Cover the object of each image by background from elsewhere in the same image.

    The image is shifted in eight directions by up to half its size, and a covered pixel takes the colour
    of the first shift that has background there. A pixel that no shift reaches takes the background's mean
    colour. An image without any background becomes its own mean colour.

    Args:
        images: The images.
        masks: Their masks: 1 on the object, 0 on the background.

    Returns:
        The images without their objects.
    """
    outside = 1 - masks
    size = outside.sum((2, 3), keepdim=True)
    mean = (images * outside).sum((2, 3), keepdim=True) / size.clamp(min=1)
    filled = images * outside + mean.where(size > 0, images.mean((2, 3), keepdim=True)) * masks
    missing = masks.clone()
    height, width = images.shape[2] // 2, images.shape[3] // 2
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)):
        shift = (down * height, right * width)
        there = torch.roll(outside, shift, (2, 3)) * missing
        filled = filled * (1 - there) + torch.roll(images, shift, (2, 3)) * there
        missing = missing * (1 - there)
    return filled


def across_categories(images: Images, seed: int = 0, most: int = 2000) -> tuple[Batch, ...]:
    """Put annotated images before the backgrounds of images of other categories.

    Each image gets the background of a random annotated image (its donor) of a different category. Images
    for which there is no such donor are left out.

    Args:
        images: The source of images.
        seed: The seed of the donors, which are drawn by the seed and the image's id alone.
        most: The largest number of images to compose; of more, a selection spread evenly over the source
            is used.

    Returns:
        Batches of composed images with their labels, ids and object masks; empty without any masks.
    """
    annotated = [take(batch, batch.annotated) for batch in images if batch.annotated is not None]
    annotated = [batch for batch in annotated if len(batch.labels)]
    if not annotated:
        return ()
    pixels = torch.cat([batch.images for batch in annotated])
    labels = torch.cat([batch.labels for batch in annotated])
    ids = torch.cat([batch.ids for batch in annotated])
    masks = torch.cat([batch.masks for batch in annotated if batch.masks is not None]).to(pixels)
    rows = torch.linspace(0, len(ids) - 1, min(most, len(ids))).round().long()
    donors = _donors(labels, ids, rows, seed)
    rows, donors = rows[donors >= 0], donors[donors >= 0]
    if not len(rows):
        return ()
    batch_size = len(annotated[0].labels)
    return tuple(
        Batch(
            masks[own] * pixels[own] + (1 - masks[own]) * background_alone(pixels[donor], masks[donor]),
            labels[own],
            ids[own],
            masks[own],
            torch.ones(len(own), dtype=torch.bool),
        )
        for own, donor in zip(rows.split(batch_size), donors.split(batch_size), strict=True)
    )


def _donors(
    labels: Int[Tensor, " image"], ids: Int[Tensor, " image"], rows: Int[Tensor, " chosen"], seed: int
) -> Int[Tensor, " chosen"]:
    """Draw for each of some rows the row of an image of another category; -1 where there is none."""
    donors = []
    for row in rows.tolist():
        others = (labels != labels[row]).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(key("across", seed, int(ids[row])))
        pick = torch.randint(0, max(len(others), 1), (), generator=generator)
        donors.append(int(others[pick]) if len(others) else -1)
    return torch.tensor(donors, dtype=torch.int64)

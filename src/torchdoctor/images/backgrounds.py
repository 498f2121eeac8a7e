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
    """Return every object before every donor's background; the donors' own objects are filled up first."""
    backgrounds = background_alone(donors, donor_masks)
    return masks[:, None] * images[:, None] + (1 - masks[:, None]) * backgrounds[None]


def swapped_backgrounds(
    images: Float[Tensor, "batch channel height width"],
    masks: Float[Tensor, "batch 1 height width"],
    donors: Int[Tensor, " batch"],
) -> Float[Tensor, "batch channel height width"]:
    """Return every object before the background of the image that `donors` names, from the same batch."""
    return masks * images + (1 - masks) * background_alone(images, masks)[donors]


def background_alone(
    images: Float[Tensor, "batch channel height width"], masks: Float[Tensor, "batch 1 height width"]
) -> Float[Tensor, "batch channel height width"]:
    """Return the images with the object covered by background from elsewhere in the same image.

    The image is shifted in eight directions by up to half its size, and a covered pixel takes the first
    shift that shows background there; what none reaches becomes the background's mean colour. An image
    that is all object becomes its mean.
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
    """Return the annotated images, each before the background of one of another category.

    At most `most` of them, spread over the source. Donors are drawn by (seed, image id); an image without
    a donor of another category is left out. Empty without masks. The objects' masks stay.
    """
    kept = [take(batch, batch.annotated) for batch in images if batch.annotated is not None]
    kept = [batch for batch in kept if len(batch.labels)]
    if not kept:
        return ()
    pixels = torch.cat([one.images for one in kept])
    labels, ids = torch.cat([one.labels for one in kept]), torch.cat([one.ids for one in kept])
    masks = torch.cat([one.masks for one in kept if one.masks is not None]).to(pixels)
    chosen = torch.linspace(0, len(ids) - 1, min(most, len(ids))).round().long()
    donors = []
    for row in chosen.tolist():
        others = (labels != labels[row]).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(key("across", seed, int(ids[row])))
        pick = torch.randint(0, max(len(others), 1), (), generator=generator)
        donors.append(int(others[pick]) if len(others) else -1)
    found = torch.tensor(donors)
    chosen, found = chosen[found >= 0], found[found >= 0]
    if not len(chosen):
        return ()
    size = len(kept[0].labels)
    return tuple(
        Batch(
            masks[rows] * pixels[rows] + (1 - masks[rows]) * background_alone(pixels[others], masks[others]),
            labels[rows],
            ids[rows],
            masks[rows],
            torch.ones(len(rows), dtype=torch.bool),
        )
        for rows, others in zip(chosen.split(size), found.split(size), strict=True)
    )

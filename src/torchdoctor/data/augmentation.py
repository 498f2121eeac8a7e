"""Change training images at random: each is shifted, and half of them are mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

Augment = Literal["none", "crop", "crop_flip"]  # a random shift of the image; crop_flip mirrors half of them
AUGMENT: Augment = "crop_flip"  # where nothing else is asked for
AnyPixels = Shaped[Tensor, "channel height width"]  # decoded pixels, or normalised ones of the user's
AnyMask = Shaped[Tensor, "1 height width"]


def augmented(
    pixels: AnyPixels, mask: AnyMask | None, augment: Augment, key: Sequence[int]
) -> tuple[AnyPixels, AnyMask | None]:
    """Crop an image and its mask in the same way, and mirror half of the images.

    The crop is from the image enlarged by mirrored pixels: an eighth of its size at each edge. Place and side
    are drawn as torchvision's `RandomCrop` (with `padding_mode="reflect"`) and `RandomHorizontalFlip` draw
    them, and the result is theirs; but all of it is two look-ups of pixels, which is faster.

    Args:
        pixels: The image.
        mask: Its mask, or None.
        augment: `crop_flip` crops and mirrors half of the images; every other value only crops.
        key: Numbers on which alone the result depends.

    Returns:
        The augmented image and mask.
    """
    rows, columns = places_shown(pixels.shape[-2], pixels.shape[-1], augment, key)
    shape = None if mask is None else _shown(mask, rows, columns)
    return _shown(pixels, rows, columns), shape


def augmented_mask(mask: AnyMask, augment: Augment, key: Sequence[int]) -> AnyMask:
    """Crop and mirror a mask as `augmented` does with its image.

    Args:
        mask: The mask.
        augment: As in `augmented`.
        key: The key of its image.

    Returns:
        The augmented mask.
    """
    return augmented(mask, None, augment, key)[0]


def places_shown(
    height: int, width: int, augment: Augment, key: Sequence[int]
) -> tuple[Int[np.ndarray, " height"], Int[np.ndarray, " width"]]:
    """Draw which pixels of an image an augmented image shows.

    Args:
        height: The height of the image.
        width: Its width.
        augment: As in `augmented`.
        key: Numbers on which alone the draw depends.

    Returns:
        For each row of the augmented image a row of the image, and for each column a column.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (_shifted(size, generator) for size in (height, width))
    if augment == "crop_flip" and float(torch.rand(1, generator=generator)) < 0.5:
        columns = columns[::-1]
    return rows, columns


def _shown(pixels: Tensor, rows: Int[np.ndarray, " height"], columns: Int[np.ndarray, " width"]) -> Tensor:
    """Return the pixels at these rows and columns, by a look-up of the rows and one of the columns."""
    return torch.from_numpy(pixels.numpy().take(rows, axis=-2).take(columns, axis=-1))


def _shifted(size: int, generator: torch.Generator) -> Int[np.ndarray, " size"]:
    """Draw which pixels of a side of an image a crop of the enlarged image holds."""
    edge = size // 8
    start = int(torch.randint(0, 2 * edge + 1, (), generator=generator)) - edge if edge else 0
    return _reflected(np.arange(start, start + size), size)


def _reflected(places: Int[np.ndarray, " size"], size: int) -> Int[np.ndarray, " size"]:
    """Return the pixels that places beyond the edges of an image mirror."""
    places = np.abs(places)
    return np.where(places >= size, 2 * (size - 1) - places, places)

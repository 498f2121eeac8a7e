"""Hold the decoded images of a table: brought to one size, kept in memory where they fit, and augmented."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL.Image import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as geometry

from torchdoctor.data.table import ImageTable
from torchdoctor.types import InputError

Augment = Literal["none", "crop", "crop_flip"]
AUGMENT: Augment = "crop_flip"  # where nothing else is asked for
Pixels = UInt8[Tensor, "channel size size"]
Mask = UInt8[Tensor, "1 size size"]

CACHE_BYTES = 2**30  # more decoded images than this are decoded again every time


@dataclass(frozen=True)
class Preprocessing:
    """How images become what the network was trained on: square of `image_size`, then (x/255 - mean)/std.

    `mean` and `std` hold three numbers, or one each for images that are made grey.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        """The number of channels of an image: 3, or 1 for grey ones."""
        return len(self.mean)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as numbers and lists."""
        return {"image_size": self.image_size, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """Return what `to_json` described; InputError names a field that is missing or unusable."""
        try:
            size, mean, std = (
                int(fields["image_size"]),
                *(tuple(map(float, fields[n])) for n in ("mean", "std")),
            )
            if (
                size < 1
                or len(mean) not in (1, 3)
                or len(std) != len(mean)
                or min(std) <= 0
                or not np.isfinite(mean + std).all()
            ):
                raise ValueError(
                    "image_size must be positive, mean and std three numbers or one each, std above 0"
                )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"preprocessing {dict(fields)}: expected image_size, mean, std ({error})"
            ) from error
        return cls(size, mean, std)

    def normalise(self, pixels: UInt8[Tensor, "batch channel size size"]) -> Tensor:
        """Return float32 images, (x/255 - mean)/std per channel."""
        scale = 1.0 / (255.0 * torch.tensor(self.std).view(-1, 1, 1))
        shift = torch.tensor(self.mean).view(-1, 1, 1) / torch.tensor(self.std).view(-1, 1, 1)
        return pixels.float().mul_(scale).sub_(shift)


def fit(image: Image, mask: Image | None, size: int, channels: int = 3) -> tuple[Pixels, Mask | None]:
    """Return image and mask (0 or 1) as squares: shorter side scaled to `size`, then the centre cut out.

    With one channel the image is made grey.
    """
    values = np.array(image if channels == 3 else image.convert("L"))
    pixels = tv_tensors.Image(torch.from_numpy(values.reshape(*values.shape[:2], channels)).permute(2, 0, 1))
    shape = None if mask is None else tv_tensors.Mask(torch.from_numpy(np.array(mask))[None] // 255)
    if image.size != (size, size):
        pixels = geometry.center_crop(geometry.resize(pixels, [size], antialias=True), [size, size])
        if shape is not None:
            shape = geometry.center_crop(geometry.resize(shape, [size]), [size, size])
    return pixels.as_subclass(Tensor), None if shape is None else shape.as_subclass(Tensor)


def augmentation(augment: Augment, size: int) -> v2.Transform:
    """Return the random transform of an image that `reflected` has made larger: a crop, and a flip."""
    crop = v2.RandomCrop(size)
    return v2.Compose([crop, v2.RandomHorizontalFlip()]) if augment == "crop_flip" else crop


def reflected(pixels: UInt8[Tensor, "channel size size"]) -> UInt8[Tensor, "channel padded padded"]:
    """Return the image continued by size // 8 mirrored pixels at each edge.

    The same as `padding_mode="reflect"` of the crop, but by indexing: torch's own padding starts threads
    for every image, which takes a hundred times as long when the cores are busy.
    """
    size = pixels.shape[-1]
    places = np.abs(np.arange(-(size // 8), size + size // 8))
    places = np.where(places >= size, 2 * (size - 1) - places, places)
    return torch.from_numpy(pixels.numpy()[:, places[:, None], places])


def augmented(
    pixels: Pixels, mask: Mask | None, transform: v2.Transform, key: Sequence[int]
) -> tuple[Pixels, Mask | None]:
    """Move image and mask alike, drawing from `key` alone; the caller saves torch's random state."""
    torch.default_generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
    image = tv_tensors.Image(reflected(pixels))
    if mask is None:
        return transform(image).as_subclass(Tensor), None
    moved, shape = transform(image, tv_tensors.Mask(reflected(mask)))
    return moved.as_subclass(Tensor), shape.as_subclass(Tensor)


@dataclass(frozen=True)
class PixelStore:
    """The images of one table at one size, by position; shared by every loader made from the table.

    Images are decoded when first asked for, in parallel threads, and kept if all of them fit into
    `CACHE_BYTES`.
    """

    table: ImageTable
    size: int
    channels: int = 3

    @cached_property
    def cached(self) -> bool:
        """Whether decoded images are kept."""
        return len(self.table) * self.size * self.size * self.channels <= CACHE_BYTES

    @cached_property
    def positions(self) -> Mapping[int, int]:
        """The position of every id."""
        return {identity: position for position, identity in enumerate(self.table.ids.tolist())}

    @cached_property
    def _images(self) -> UInt8[Tensor, "image channel size size"]:
        return torch.empty((len(self.table), self.channels, self.size, self.size), dtype=torch.uint8)

    @cached_property
    def _masks(self) -> UInt8[Tensor, "image 1 size size"]:
        kept = len(self.table) if self.table.has_mask.any() else 0
        return torch.zeros((kept, 1, self.size, self.size), dtype=torch.uint8)

    @cached_property
    def _decoded(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.zeros(len(self.table), dtype=bool)

    def decode(self, position: int) -> tuple[Pixels, Mask | None]:
        """Decode one image at the store's size, whatever is kept."""
        return fit(*self.table.read(position), self.size, self.channels)

    def __getitem__(self, position: int) -> tuple[Pixels, Mask | None]:
        """Return one image and its mask; kept ones must have been prepared."""
        if not self.cached:
            return self.decode(position)
        mask = self._masks[position] if self.table.has_mask[position] else None
        return self._images[position], mask

    def prepare(self, positions: Int[np.ndarray, " chosen"]) -> None:
        """Decode what is to be kept and has not been decoded yet; InputError names a damaged image."""
        missing = positions[~self._decoded[positions]] if self.cached else positions[:0]
        if not len(missing):
            return
        # Made here, by one thread: since Python 3.12 nothing stops two from making one each.
        # Never inference tensors, which nobody could write to after `torch.inference_mode` has ended.
        with torch.inference_mode(False):
            _ = self._images, self._masks
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            list(threads.map(self._keep, np.unique(missing).tolist()))

    def check(self, positions: Int[np.ndarray, " chosen"]) -> None:
        """Decode these images once, kept or not; InputError names a damaged one."""
        self.prepare(positions)
        if not self.cached:
            with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
                for _ in threads.map(self.table.read, positions.tolist()):
                    pass

    def _keep(self, position: int) -> None:
        self._images[position], mask = self.decode(position)
        if mask is not None:
            self._masks[position] = mask
        self._decoded[position] = True

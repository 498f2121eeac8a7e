"""Decode the images of a table to a fixed size, and keep them in memory where they fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL.Image import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as geometry

from torchdoctor.data.blocks import OnDisk, on_disk
from torchdoctor.data.device_images import DeviceImages, fits_on
from torchdoctor.data.table import ImageTable, places_of
from torchdoctor.images.batches import sent
from torchdoctor.types import InputError, Resize

Pixels = UInt8[Tensor, "channel size size"]
Mask = UInt8[Tensor, "1 size size"]

CACHE_BYTES = 2**30  # a table with more bytes of decoded images is decoded again in every epoch
NUMBERS_AT_ONCE = 2**17  # that are normalised together: they stay in the processor's cache


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a network: made square, then normalised to (x/255 - mean) / std.

    Attributes:
        image_size: The side of the square in pixels.
        mean: The mean of each channel, for pixels in 0..1: three numbers, or a single number for grey images.
        std: The standard deviation of each channel, likewise.
        resize: How an image becomes a square: `crop` scales it with its proportions and cuts out the centre,
            `squash` scales both sides to the size.
        crop_share: The side of the square that is cut out, as a share of the scaled image's shorter side.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Resize = "crop"
    crop_share: float = 1.0

    @property
    def channels(self) -> int:
        """The number of channels of an image: 3, or 1 for grey images."""
        return len(self.mean)

    @property
    def scaled(self) -> int | tuple[int, int]:
        """What an image is scaled to before its centre is cut out: the shorter side, or height and width."""
        size = self.image_size
        return (size, size) if self.resize == "squash" else round(size / self.crop_share)

    def to_json(self) -> dict[str, Any]:
        """Describe the preprocessing by values that JSON can hold.

        Returns:
            The fields by name.
        """
        fields = {"image_size": self.image_size, "mean": list(self.mean), "std": list(self.std)}
        if self.resize != "crop":
            return {**fields, "resize": self.resize}
        return fields if self.crop_share == 1 else {**fields, "crop_share": self.crop_share}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """Read the description that `to_json` makes.

        Args:
            fields: The fields by name.

        Returns:
            The preprocessing.

        Raises:
            InputError: A field is missing or has a value that cannot be used.
        """
        try:
            size = int(fields["image_size"])
            mean, std = (tuple(map(float, fields[name])) for name in ("mean", "std"))
            resize, crop_share = fields.get("resize", "crop"), float(fields.get("crop_share", 1.0))
            if resize not in get_args(Resize) or not 0 < crop_share <= 1:
                raise ValueError(
                    f"resize must be {' or '.join(get_args(Resize))}, crop_share above 0, at most 1"
                )
            if (
                size < 1
                or len(mean) not in (1, 3)
                or len(std) != len(mean)
                or min(std) <= 0
                or not np.isfinite(mean + std).all()
            ):
                raise ValueError(
                    "image_size must be positive, mean and std must hold 1 or 3 numbers each, std above 0"
                )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"preprocessing {dict(fields)}: expected image_size, mean, std ({error})"
            ) from error
        return cls(size, mean, std, resize, crop_share)

    def normalise(self, pixels: UInt8[Tensor, "batch channel size size"]) -> Tensor:
        """Normalise images.

        On the CPU one thread does it, because several would wait for each other while the loading processes
        use the cores.

        Args:
            pixels: The images, 0 to 255.

        Returns:
            float32 images of the same shape, (x/255 - mean) / std for each channel.
        """
        scale = 1.0 / (255.0 * torch.tensor(self.std).view(-1, 1, 1))
        shift = torch.tensor(self.mean).view(-1, 1, 1) / torch.tensor(self.std).view(-1, 1, 1)
        if pixels.device.type != "cpu":
            return pixels.float().mul_(sent(scale, pixels.device)).sub_(sent(shift, pixels.device))
        images = torch.empty(pixels.shape)
        at_once = max(1, NUMBERS_AT_ONCE // max(1, pixels[:1].numel()))
        for start in range(0, len(images), at_once):
            part = images[start : start + at_once].numpy()
            np.multiply(pixels[start : start + at_once].numpy(), scale.numpy(), out=part)
            np.subtract(part, shift.numpy(), out=part)
        return images


def fit(
    image: Image,
    mask: Image | None,
    size: int,
    channels: int = 3,
    resize: Resize = "crop",
    crop_share: float = 1.0,
) -> tuple[Pixels, Mask | None]:
    """Make an image and its mask square.

    Args:
        image: The RGB image.
        mask: Its mask, an L image (255 on the object, 0 elsewhere), or None.
        size: The side of the square in pixels.
        channels: 3, or 1 to make the image grey.
        resize: As in `Preprocessing`.
        crop_share: As in `Preprocessing`.

    Returns:
        The image (0 to 255), and the mask (1 on the object, 0 elsewhere) or None.
    """
    values = np.array(image if channels == 3 else image.convert("L"))
    pixels = tv_tensors.Image(torch.from_numpy(values.reshape(*values.shape[:2], channels)).permute(2, 0, 1))
    shape = None if mask is None else tv_tensors.Mask(torch.from_numpy(np.array(mask))[None] // 255)
    if image.size != (size, size) or crop_share != 1:
        scaled = [size, size] if resize == "squash" else [round(size / crop_share)]
        pixels = geometry.center_crop(geometry.resize(pixels, scaled, antialias=True), [size, size])
        if shape is not None:
            shape = geometry.center_crop(geometry.resize(shape, scaled), [size, size])
    return pixels.as_subclass(Tensor), None if shape is None else shape.as_subclass(Tensor)


@dataclass(frozen=True)
class PixelStore:
    """The images of a table at a fixed size; all loaders made from the table share it.

    Images are decoded by parallel threads when they are first needed. They are kept in memory if all images
    of the table together have at most `CACHE_BYTES`.

    Attributes:
        table: The images.
        size: The side in pixels of the squares that they are made.
        channels: 3, or 1 to make them grey.
        resize: As in `Preprocessing`.
        crop_share: As in `Preprocessing`.
    """

    table: ImageTable
    size: int
    channels: int = 3
    resize: Resize = "crop"
    crop_share: float = 1.0

    @cached_property
    def cached(self) -> bool:
        """Whether decoded images are kept in memory."""
        return self.decoded_bytes <= CACHE_BYTES

    def positions(self, ids: Int[np.ndarray, " chosen"]) -> Int[np.ndarray, " chosen"]:
        """Find images by their ids.

        Args:
            ids: The ids of images of the table.

        Returns:
            The position in the table of each.
        """
        return places_of(self.table.ids, ids)

    @cached_property
    def on_disk(self) -> OnDisk | None:
        """The images of the table in the blocks on disk that they lie in; None where they lie in none."""
        return on_disk(self.table.read)

    @property
    def decoded_bytes(self) -> int:
        """The size of all images when they are decoded, in bytes."""
        return len(self.table) * self.size * self.size * self.channels

    @cached_property
    def _images(self) -> UInt8[Tensor, "image channel size size"]:
        """The decoded images."""
        return torch.empty((len(self.table), self.channels, self.size, self.size), dtype=torch.uint8)

    @cached_property
    def _masks(self) -> UInt8[Tensor, "image 1 size size"]:
        """The decoded masks; without rows where no image has a mask."""
        rows = len(self.table) if self.table.has_mask.any() else 0
        return torch.zeros((rows, 1, self.size, self.size), dtype=torch.uint8)

    @cached_property
    def _decoded(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which images have been decoded."""
        return np.zeros(len(self.table), dtype=bool)

    def decode(self, position: int) -> tuple[Pixels, Mask | None]:
        """Decode an image, whether or not it is in memory.

        Args:
            position: Its position in the table.

        Returns:
            The image and its mask or None, at the size of the store.

        Raises:
            InputError: The image is damaged.
        """
        return fit(*self.table.read(position), self.size, self.channels, self.resize, self.crop_share)

    def __getitem__(self, position: int) -> tuple[Pixels, Mask | None]:
        """Return an image; if images are kept in memory, `prepare` must have decoded it before.

        Args:
            position: Its position in the table.

        Returns:
            The image and its mask or None.
        """
        if not self.cached:
            return self.decode(position)
        return self._images[position], self.mask(position)

    def prepare(self, positions: Int[np.ndarray, " chosen"]) -> None:
        """Decode images that are to be kept in memory and have not been decoded yet.

        Args:
            positions: The positions of the images in the table.

        Raises:
            InputError: An image is damaged; the message names it.
        """
        missing = positions[~self._decoded[positions]] if self.cached else positions[:0]
        if not len(missing):
            return
        # The tensors are made here, before the threads start: since Python 3.12 a cached property may be
        # computed by several threads at once. They must not be inference tensors, which cannot be written to
        # after `torch.inference_mode` has ended.
        with torch.inference_mode(False):
            _ = self._images, self._masks
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            list(threads.map(self._decode_into_memory, np.unique(missing).tolist()))

    def on(self, device: torch.device) -> DeviceImages | None:
        """Return the decoded images on a device, where they are kept there; `prepare` decodes them.

        Args:
            device: Where the network computes.

        Returns:
            The images; None where they are not kept decoded, on the CPU, or where they do not fit.
        """
        if device not in self._on_devices:
            fit = self.cached and fits_on(device, self.decoded_bytes)
            with torch.inference_mode(False):
                self._on_devices[device] = DeviceImages(self._images, device) if fit else None
        return self._on_devices[device]

    @cached_property
    def _on_devices(self) -> dict[torch.device, DeviceImages | None]:
        """The images that are kept on devices, by the device."""
        return {}

    def mask(self, position: int) -> Mask | None:
        """Return the mask of an image that `prepare` has decoded.

        Args:
            position: The position of the image in the table.

        Returns:
            The mask or None.
        """
        return self._masks[position] if self.table.has_mask[position] else None

    def check(self, positions: Int[np.ndarray, " chosen"]) -> None:
        """Decode images once, whether or not they are kept in memory.

        Args:
            positions: The positions of the images in the table.

        Raises:
            InputError: An image is damaged; the message names it.
        """
        self.prepare(positions)
        if not self.cached:
            with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
                for _ in threads.map(self.table.read, positions.tolist()):
                    pass

    def _decode_into_memory(self, position: int) -> None:
        """Decode an image and keep it."""
        self._images[position], mask = self.decode(position)
        if mask is not None:
            self._masks[position] = mask
        self._decoded[position] = True

"""Keep decoded images on a GPU, so that a batch is put together there and nothing large is copied."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from torchdoctor.data.augmentation import Augment, places_shown
from torchdoctor.data.order import Draw
from torchdoctor.network.memory import free_bytes

SHARE_KEPT = 0.1  # of a GPU's free memory that the decoded images of a split may take at most


def fits_on(device: torch.device, size: int, free: int | None = None) -> bool:
    """Decide whether decoded images are kept on a device.

    Args:
        device: Where the network computes.
        size: What the images take, in bytes.
        free: The free memory of the device in bytes; None: it is asked.

    Returns:
        True on a GPU where they take at most `SHARE_KEPT` of what is free.
    """
    if device.type != "cuda":
        return False
    free = free_bytes(device) if free is None else free
    return free is not None and size <= SHARE_KEPT * free


class DeviceImages:
    """The decoded images of a store on a device; each is copied there when it is first needed."""

    def __init__(self, images: UInt8[Tensor, "image channel size size"], device: torch.device) -> None:
        """Make room on the device.

        Args:
            images: The decoded images, which may still be decoded while this is used.
            device: The device.
        """
        self.decoded, self.device = images, device
        self.images = torch.empty_like(images, device=device)
        self.copied = np.zeros(len(images), dtype=bool)

    def prepare(self, positions: Int[np.ndarray, " chosen"]) -> None:
        """Copy images that are not on the device yet.

        Args:
            positions: The positions of images that are decoded.
        """
        missing = np.unique(positions[~self.copied[positions]])
        if len(missing):
            places = torch.from_numpy(missing)
            self.images[places.to(self.device)] = self.decoded[places].to(self.device)
            self.copied[missing] = True

    def batch(self, draws: Sequence[Draw], augment: Augment) -> UInt8[Tensor, "batch channel size size"]:
        """Put a batch together, augmented as `augmented` does.

        Args:
            draws: The position of each image, and the key of its augmentation or None.
            augment: How they are augmented.

        Returns:
            The pixels on the device; the same values as on the CPU.
        """
        positions = self._sent(np.array([position for position, _ in draws], dtype=np.int64))
        if not any(key for _, key in draws):
            return self.images[positions]
        height, width = self.images.shape[-2:]
        whole = np.arange(height), np.arange(width)
        shown = [whole if key is None else places_shown(height, width, augment, key) for _, key in draws]
        rows, columns = (self._sent(np.stack(places)) for places in zip(*shown, strict=True))
        channels = torch.arange(self.images.shape[1], device=self.device)
        return self.images[
            positions[:, None, None, None],
            channels[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]

    def _sent(self, places: Int[np.ndarray, ...]) -> Tensor:
        """Return places on the device."""
        return torch.from_numpy(places).to(self.device, non_blocking=self.device.type == "cuda")

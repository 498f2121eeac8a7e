"""Decode and augment the batches of a plan, in this process or in several."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchdoctor.data.augmentation import Augment, augmented, augmented_mask
from torchdoctor.data.device_images import DeviceImages
from torchdoctor.data.order import Draw, Plan
from torchdoctor.data.pixels import Mask, PixelStore
from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import InputError

Request = tuple[list[Draw], Mapping[int, Any]]  # positions with keys, and encoded images by their position
Decoded = tuple[Tensor, list[Mask | None]]  # uint8 [batch, channel, size, size], and the mask of each image
MOST_WORKERS = 16  # more loading processes than this help nothing that one device computes


def workers_of(workers: int | Literal["auto"], batches: int) -> int:
    """Decide how many processes load images.

    Args:
        workers: A number, or `auto`: as many as this process may use processor cores, up to `MOST_WORKERS`;
            none where processes cannot be forked (outside of Linux), because a user's program without a
            guard around its main part would be started again by each.
        batches: The number of batches. A single one is loaded without further processes by `auto`.

    Returns:
        The number of processes; 0 loads in this process.
    """
    if workers != "auto":
        return workers
    if batches < 2 or sys.platform != "linux":
        return 0
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # training processes that share the cores
    return min(max(1, len(os.sched_getaffinity(0)) // together), MOST_WORKERS, batches)


@dataclass(frozen=True)
class Requests:
    """What is asked of the processes that decode, batch by batch.

    Images that lie in blocks are read here, by one process, and handed over encoded: otherwise every process
    would read every block.

    Attributes:
        store: The images.
        plan: Which images each batch holds.
        positions: The position in the store of each row of the plan.
        keyed: Whether images are augmented.
        processes: Who decodes the batches; this process asks for its part of each.
    """

    store: PixelStore
    plan: Plan
    positions: Int[np.ndarray, " row"]
    keyed: bool
    processes: Processes = ALONE

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.plan)

    def __iter__(self) -> Iterator[Request]:
        """Yield the request of each batch.

        Yields:
            The positions of the images in the store, each with the key of its augmentation, and the encoded
            images where they lie in blocks.
        """
        disk = None if self.store.cached else self.store.on_disk
        for whole in self.plan:
            draws = whole[part_of(len(whole), self.processes)]
            placed: list[Draw] = [
                (int(self.positions[row]), key if self.keyed else None) for row, key in draws
            ]
            contents: dict[int, Any] = {}
            for (position, _), (_, key) in zip(placed, draws, strict=True):
                if disk is not None:
                    row = int(disk.rows[position])
                    contents[row] = disk.reader.content(row, apart=key is not None and key[-1] > 0)
            yield placed, contents


@dataclass(frozen=True)
class Decoder(Dataset[Decoded | InputError]):
    """Decodes and augments the images of a batch; a worker process of the loader runs it.

    Attributes:
        store: The images.
        augment: How they are augmented.
    """

    store: PixelStore
    augment: Augment

    def __getitem__(self, request: Request) -> Decoded | InputError:
        """Decode and augment images.

        Args:
            request: What `Requests` yields.

        Returns:
            The pixels, and the mask of each image. If an image is damaged, the error: it is returned rather
            than raised, so that its message reaches the user without the traceback of a worker.
        """
        draws, contents = request
        disk = self.store.on_disk if contents else None
        if disk is not None:
            disk.reader.hand_over(contents)
        try:
            images = [
                augmented(*self.store[position], self.augment, key) if key else self.store[position]
                for position, key in draws
            ]
        except InputError as error:
            return error
        if not images:  # a part of a batch with fewer images than processes
            size = self.store.size
            return torch.zeros(0, self.store.channels, size, size, dtype=torch.uint8), []
        return torch.stack([pixels for pixels, _ in images]), [mask for _, mask in images]


def part_of(number: int, processes: Processes) -> slice:
    """Return which images of a batch a process decodes.

    Args:
        number: The number of images in the batch.
        processes: The processes.

    Returns:
        Their places: images that follow each other, as many in every process, or one more.
    """
    return slice(processes.rank * number // processes.count, (processes.rank + 1) * number // processes.count)


def decoded_batches(
    store: PixelStore, augment: Augment, requests: Requests, workers: int, pinned: bool = False
) -> Iterator[Decoded]:
    """Decode batch after batch.

    Args:
        store: The images.
        augment: How they are augmented.
        requests: The images of each batch.
        workers: The number of processes that decode; it changes no batch.
        pinned: Whether batches are put where a GPU copies from without waiting.

    Yields:
        The pixels of each batch, and the mask of each of its images.

    Raises:
        InputError: An image is damaged.
    """
    # The sampler's items are whole batches; the DataLoader only distributes them over the workers.
    # It has a generator of its own, because it would otherwise draw from torch's global generator.
    loaded = DataLoader(
        Decoder(store, augment),
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        collate_fn=_unchanged,
        pin_memory=pinned,
        generator=torch.Generator(),
    )
    for decoded in loaded:
        if isinstance(decoded, InputError):
            raise decoded
        yield decoded


def batches_on_device(
    store: PixelStore, kept: DeviceImages, augment: Augment, requests: Requests
) -> Iterator[Decoded]:
    """Put batches together on a device that keeps the decoded images; the masks stay in main memory.

    Args:
        store: The images, decoded.
        kept: The same images on the device.
        augment: How they are augmented.
        requests: The images of each batch.

    Yields:
        The same as `decoded_batches`, with the pixels on the device.
    """
    for draws, _ in requests:
        masks = [store.mask(position) for position, _ in draws]
        moved = [
            mask if mask is None or key is None else augmented_mask(mask, augment, key)
            for mask, (_, key) in zip(masks, draws, strict=True)
        ]
        yield kept.batch(draws, augment), moved


def _unchanged(decoded: Any) -> Any:
    """Return a batch as it is: the DataLoader must not stack it."""
    return decoded

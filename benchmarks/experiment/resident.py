"""Hold the decoded images of a split on the device, and augment them there.

The batches of an epoch are those of the loader they were made from, image for image; only where an image is
cropped and whether it is flipped is drawn by other noise, of the same distribution: counter-based, so that
the CPU and every GPU draw alike. Nothing is copied to the device but a few numbers per epoch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from torchdoctor import Batch
from torchdoctor.data.loader import Loader
from torchdoctor.data.pixels import PixelStore
from torchdoctor.data.table import ImageTable
from torchdoctor.randomness import uniform_noise


@dataclass(frozen=True)
class Moves:
    """Where each image of an epoch lies, the offset of its crop when padded, and whether it is flipped."""

    rows: Tensor
    down: Tensor
    right: Tensor
    flipped: Tensor

    def cut(self, start: int, stop: int) -> Moves:
        """Return the moves of one batch."""
        parts = (self.rows, self.down, self.right, self.flipped)
        return Moves(*(one[start:stop] for one in parts))


@dataclass(frozen=True)
class ResidentImages:
    """The images of a loader as `TrainingImages` whose pixels (0 to 255) and masks (0 or 1) lie on a device.

    `loader` plans the batches; it decodes nothing any more.
    """

    loader: Loader
    pixels: Tensor  # [image, channel, size, size]
    masks: Tensor | None  # [image, 1, size, size]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.loader)

    @property
    def table(self) -> ImageTable:
        """The images' table."""
        return self.loader.table

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return self.loader.steps_per_epoch

    def select(self, ids: Iterable[int]) -> ResidentImages:
        """Return the images called `ids`, in that order."""
        return replace(self, loader=self.loader.select(ids))

    def with_annotations(self, ids: Sequence[int], per_batch: int) -> ResidentImages:
        """Show the masks of `ids` alone, `per_batch` of them in each training batch."""
        return replace(self, loader=self.loader.with_annotations(ids, per_batch))

    def __iter__(self) -> Iterator[Batch]:
        """Yield every image once, in table order, not augmented; the last batch may be smaller."""
        rows = self._places
        still = Moves(rows, *(torch.zeros_like(rows),) * 2, torch.zeros_like(rows, dtype=torch.bool))
        size = self.loader.batch_size
        sizes = [min(size, len(self) - start) for start in range(0, len(self), size)]
        yield from self._batches(still, np.arange(len(self)), sizes, moved=False)

    def epoch(self, number: int, seed: int) -> Iterator[Batch]:
        """Yield the batches of one epoch: shuffled and augmented by (seed, number, image id) alone."""
        plan = self.loader.plan(number, seed)
        rows = np.array([row for draws in plan for row, _ in draws], dtype=np.int64)
        again = torch.tensor([key[3] if key else 0 for draws in plan for _, key in draws])
        moves = self._moves(rows, again, number, seed)
        sizes = [len(draws) for draws in plan]
        yield from self._batches(moves, rows, sizes, moved=self.loader.augment != "none")

    def _moves(self, rows: np.ndarray, again: Tensor, number: int, seed: int) -> Moves:
        """Draw how the images of an epoch are moved."""
        ids = torch.from_numpy(self.table.ids[rows])
        shares = torch.empty(len(rows), 3)
        for drawn in again.unique().tolist():  # the noise has a stream for every time an image is drawn
            chosen = again == drawn
            draws = range(drawn, drawn + 1)
            noise = uniform_noise(
                ids[chosen], draws, (3, 1, 1), seed=seed, layer="", stream="augment", step=number
            )
            shares[chosen] = (noise[0, :, :, 0, 0] + 1) / 2
        places = 2 * self._padding + 1
        offsets = (shares[:, :2] * places).long().clamp(max=places - 1).to(self.pixels.device)
        flipped = (shares[:, 2] < 0.5) & (self.loader.augment == "crop_flip")
        return Moves(
            self._places[torch.from_numpy(rows).to(self.pixels.device)],
            offsets[:, 0],
            offsets[:, 1],
            flipped.to(self.pixels.device),
        )

    def _batches(
        self, moves: Moves, rows: np.ndarray, sizes: Sequence[int], *, moved: bool
    ) -> Iterator[Batch]:
        """Yield the batches; which images show a mask is read from the device once."""
        labels = torch.from_numpy(self.table.labels[rows]).to(self.pixels.device)
        ids = torch.from_numpy(self.table.ids[rows]).to(self.pixels.device)
        shown = torch.from_numpy(self.loader.visible[rows])
        cuts = [(stop - size, stop) for size, stop in zip(sizes, np.cumsum(sizes).tolist(), strict=True)]
        visible = bool(self.loader.visible.any())
        if visible and cuts:
            # A crop can leave an object behind: then the mask would call the whole image background.
            inside = [self._mask(moves.cut(*cut), moved).flatten(1).bool().any(1) for cut in cuts]
            shown = shown & torch.cat(inside).cpu()
        on_device = torch.from_numpy(self.loader.visible[rows]).to(self.pixels.device)
        for start, stop in cuts:
            batch = moves.cut(start, stop)
            images = self._normalised(self._cropped(self.pixels, batch) if moved else self.pixels[batch.rows])
            if not visible:
                yield Batch(images, labels[start:stop], ids[start:stop])
                continue
            masks = self._mask(batch, moved) * on_device[start:stop].view(-1, 1, 1, 1)
            yield Batch(images, labels[start:stop], ids[start:stop], masks.float(), shown[start:stop])

    def _mask(self, moves: Moves, moved: bool) -> Tensor:
        """Return the masks of a batch, cropped and flipped as its images are."""
        if self.masks is None:
            raise ValueError("the table announced masks that were not kept")
        return self._cropped(self.masks, moves) if moved else self.masks[moves.rows]

    def _cropped(self, kept: Tensor, moves: Moves) -> Tensor:
        """Cut each image out of its mirrored surroundings, and flip it where that was drawn."""
        places = torch.arange(kept.shape[-1], device=kept.device)
        lines = self._mirror[places + moves.down[:, None]]
        columns = self._mirror[places + moves.right[:, None]]
        columns = torch.where(moves.flipped[:, None], columns.flip(1), columns)
        channels = torch.arange(kept.shape[1], device=kept.device)
        return kept[
            moves.rows[:, None, None, None],
            channels[None, :, None, None],
            lines[:, None, :, None],
            columns[:, None, None, :],
        ]

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Return float32 images, the same bits as the loader's."""
        scale, shift = self._scaling
        return pixels.float().mul_(scale).sub_(shift)

    @property
    def _padding(self) -> int:
        return self.pixels.shape[-1] // 8

    @cached_property
    def _mirror(self) -> Tensor:
        """The line (or column) of the image at each line of the padded one."""
        size = self.pixels.shape[-1]
        places = torch.arange(-self._padding, size + self._padding, device=self.pixels.device).abs()
        return torch.where(places >= size, 2 * (size - 1) - places, places)

    @cached_property
    def _scaling(self) -> tuple[Tensor, Tensor]:
        """What normalisation multiplies by and takes away, kept on the device: copying waits for it."""
        mean, std = (
            torch.tensor(one).view(-1, 1, 1)
            for one in (self.loader.preprocessing.mean, self.loader.preprocessing.std)
        )
        return (1.0 / (255.0 * std)).to(self.pixels.device), (mean / std).to(self.pixels.device)

    @cached_property
    def _places(self) -> Tensor:
        """Where each image of the table lies among those that are kept."""
        return torch.from_numpy(self.loader.store.positions(self.table.ids)).to(self.pixels.device)


def resident(loader: Loader, device: torch.device) -> ResidentImages:
    """Decode the images of a loader once and put them on the device; InputError names a damaged one."""
    count, size = len(loader), loader.preprocessing.image_size
    positions = loader.store.positions(loader.table.ids)
    loader.store.prepare(positions)
    pixels = torch.empty(count, loader.preprocessing.channels, size, size, dtype=torch.uint8)
    has_mask = bool(loader.table.has_mask.any())
    masks = torch.zeros(count, 1, size, size, dtype=torch.uint8) if has_mask else None

    def keep(row: int) -> None:
        pixels[row], mask = loader.store[int(positions[row])]
        if mask is not None and masks is not None:
            masks[row] = mask

    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        list(threads.map(keep, range(count)))
    # An empty store: what the loader's own has decoded can go.
    planner = replace(loader, store=PixelStore(loader.table, size, loader.preprocessing.channels))
    return ResidentImages(planner, pixels.to(device), None if masks is None else masks.to(device))

"""Load the images of a table in batches: in order for looking, or keyed and augmented for training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchdoctor.data.pixels import (
    AUGMENT,
    Augment,
    Mask,
    Pixels,
    PixelStore,
    Preprocessing,
    augmentation,
    augmented,
)
from torchdoctor.data.table import ImageTable
from torchdoctor.images.batches import Batch
from torchdoctor.types import InputError

SHUFFLE, CYCLE = 1, 2  # streams of the keyed generators

Key = tuple[int, ...]
Draw = tuple[int, Key | None]  # the position of an image, and the key of its augmentation
Decoded = list[tuple[Pixels, Mask | None]] | InputError


@dataclass(frozen=True)
class Decoder(Dataset[Decoded]):
    """What a worker does: decode and augment the images of one batch.

    An error is handed over rather than raised, so that its message arrives without a traceback in it.
    """

    store: PixelStore
    augment: Augment

    def __getitem__(self, draws: list[Draw]) -> Decoded:
        """Return the pixels and masks of one batch."""
        transform = augmentation(self.augment, self.store.size)
        try:
            with torch.random.fork_rng(devices=[]):
                return [
                    augmented(*self.store[position], transform, key) if key else self.store[position]
                    for position, key in draws
                ]
        except InputError as error:
            return error


@dataclass(frozen=True)
class Loader:
    """The images of a table as `TrainingImages`: the same batches each time, and keyed epochs.

    `annotated` are the ids whose masks may be seen (None: every mask there is). With
    `annotated_per_batch` A > 0 a training batch is `batch_size` - A images of the epoch plus A annotated
    ones. `workers` matter only for tables too large to keep decoded; they never change a batch.
    """

    table: ImageTable
    preprocessing: Preprocessing
    batch_size: int = 64
    workers: int = 0
    augment: Augment = AUGMENT
    annotated: frozenset[int] | None = None
    annotated_per_batch: int = 0
    classes: tuple[str, ...] | None = None  # names of the labels, where they are known
    store: PixelStore = field(default=None, repr=False, compare=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Make the store of decoded images unless it is shared with another loader."""
        if not 0 <= self.annotated_per_batch < self.batch_size:
            raise InputError(
                f"annotated_per_batch {self.annotated_per_batch}: expected 0 to batch_size - 1, "
                f"which is {self.batch_size - 1}"
            )
        if self.store is None:
            object.__setattr__(
                self,
                "store",
                PixelStore(self.table, self.preprocessing.image_size, self.preprocessing.channels),
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.table)

    @cached_property
    def visible(self) -> Bool[np.ndarray, " image"]:
        """Which images of the table show their mask."""
        if self.annotated is None:
            return self.table.has_mask
        chosen = np.isin(self.table.ids, np.array(sorted(self.annotated), dtype=np.int64))
        return self.table.has_mask & chosen

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return len(self._cuts(self.batch_size - self.annotated_per_batch, self.annotated_per_batch == 0))

    def select(self, ids: Iterable[int] | Int[np.ndarray, " chosen"]) -> Loader:
        """Return a loader of the images called `ids`, in that order; InputError names an unknown id."""
        positions = {identity: position for position, identity in enumerate(self.table.ids.tolist())}
        wanted = [int(identity) for identity in ids]
        unknown = [identity for identity in wanted if identity not in positions]
        if unknown:
            raise InputError(f"image id {unknown[0]}: not among the {len(self)} images of this split")
        return replace(self, table=self.table.select([positions[identity] for identity in wanted]))

    def with_annotations(self, ids: Iterable[int] | Int[np.ndarray, " chosen"], per_batch: int) -> Loader:
        """Return a loader that shows the masks of `ids` alone, `per_batch` of them in each training batch."""
        masked = set(self.table.ids[self.table.has_mask].tolist())
        wanted = [int(identity) for identity in ids]
        bare = [identity for identity in wanted if identity not in masked]
        if bare:
            raise InputError(f"image ids {bare[:5]}: expected images of this split that have a mask")
        if per_batch and not wanted:
            raise InputError(f"{per_batch} annotated images per batch: expected at least one annotated image")
        return replace(self, annotated=frozenset(wanted), annotated_per_batch=per_batch)

    def check(self) -> None:
        """Decode every image once; InputError names a damaged one."""
        place = np.array([self.store.positions[one] for one in self.table.ids.tolist()], dtype=np.int64)
        self.store.check(place)

    def __iter__(self) -> Iterator[Batch]:
        """Yield every image once, in table order, not augmented; the last batch may be smaller."""
        order = np.arange(len(self))
        yield from self._load(
            [[(row, None) for row in order[cut].tolist()] for cut in self._cuts(self.batch_size, False)]
        )

    def epoch(self, number: int, seed: int) -> Iterator[Batch]:
        """Yield the batches of one epoch: shuffled and augmented by (seed, number, image id) alone.

        A last batch of one image joins the one before it, because batch-norm cannot train on it.
        """
        yield from self._load(self.plan(number, seed))

    def plan(self, number: int, seed: int) -> list[list[Draw]]:
        """Return the rows of each batch of an epoch, with the key of each image's augmentation.

        The key is (seed, number, image id, how often the image was drawn for its mask before).
        """
        share = self.annotated_per_batch
        order = np.argsort(self.table.ids, kind="stable")
        order = order[_generator(seed, SHUFFLE, number).permutation(len(self))]
        batches = [order[cut].tolist() for cut in self._cuts(self.batch_size - share, share == 0)]
        extra = self._annotated_draws(number, seed, share * len(batches))
        drawn: dict[int, int] = {}
        plan: list[list[Draw]] = []
        for step, rows in enumerate(batches):
            keyed: list[Draw] = []
            for place, row in enumerate(rows + extra[share * step : share * (step + 1)]):
                again = 0
                if place >= len(rows):
                    again = drawn[row] = drawn.get(row, 0) + 1
                keyed.append((row, (seed, number, int(self.table.ids[row]), again)))
            plan.append(keyed)
        return plan

    def _cuts(self, size: int, merge: bool) -> list[slice]:
        """Return the slices of the batches; `merge` joins a last batch of one to its neighbour."""
        starts = list(range(0, len(self), size))
        if not starts:
            return []
        if merge and len(starts) > 1 and len(self) - starts[-1] == 1:
            starts.pop()
        return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(self)], strict=True)]

    def _annotated_draws(self, number: int, seed: int, count: int) -> list[int]:
        """Return the epoch's `count` rows of an endless cycle over annotated images, shuffled every round."""
        rows = np.flatnonzero(self.visible)
        rows = rows[np.argsort(self.table.ids[rows])]
        if not count:
            return []
        if not len(rows):
            raise InputError(f"{self.annotated_per_batch} annotated images per batch: no image shows a mask")
        places = np.arange(number * count, (number + 1) * count)
        rounds = {
            n: _generator(seed, CYCLE, n).permutation(rows) for n in np.unique(places // len(rows)).tolist()
        }
        return [int(rounds[place // len(rows)][place % len(rows)]) for place in places.tolist()]

    def _load(self, plan: Sequence[Sequence[Draw]]) -> Iterator[Batch]:
        """Yield the batches of a plan of rows and keys."""
        rows = [np.array([row for row, _ in draws], dtype=np.int64) for draws in plan]
        place = np.array([self.store.positions[one] for one in self.table.ids.tolist()], dtype=np.int64)
        decoder = Decoder(self.store, self.augment)
        keep_keys = self.augment != "none"
        batches = [[(int(place[row]), key if keep_keys else None) for row, key in draws] for draws in plan]
        self.store.prepare(place)
        workers = 0 if self.store.cached else self.workers
        # Each item of the sampler is a whole batch; the loader only spreads them over the workers.
        # Its own generator, because it would otherwise draw from torch's global one.
        loaded = DataLoader(
            decoder,
            batch_size=None,
            sampler=batches,
            num_workers=workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),
        )
        for chosen, decoded in zip(rows, loaded, strict=True):
            if isinstance(decoded, InputError):
                raise decoded
            yield self._batch(chosen, decoded)

    def _batch(self, rows: Int[np.ndarray, " batch"], decoded: Sequence[tuple[Pixels, Mask | None]]) -> Batch:
        """Return a batch of decoded images; masks that may not be seen are empty."""
        images = self.preprocessing.normalise(torch.stack([pixels for pixels, _ in decoded]))
        labels = torch.from_numpy(self.table.labels[rows])
        ids = torch.from_numpy(self.table.ids[rows])
        if not self.visible.any():
            return Batch(images, labels, ids)
        shown = self.visible[rows]
        masks = torch.zeros((len(rows), 1, *images.shape[-2:]))
        for place in np.flatnonzero(shown).tolist():
            masks[place] = _present(decoded[place][1])
        # A crop can leave an object behind: then the mask would call the whole image background.
        shown = shown & masks.flatten(1).any(1).numpy()
        return Batch(images, labels, ids, masks, torch.from_numpy(shown))


def _present(mask: Mask | None) -> Tensor:
    if mask is None:
        raise InputError("the table announced a mask that the source does not have")
    return mask.float()


def _as_it_is(decoded: Decoded) -> Decoded:
    return decoded


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))

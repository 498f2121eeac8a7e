"""In which order a pass shows images: the batches of an epoch, shuffled by keys, made when needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

SHUFFLE, CYCLE = 1, 2  # streams of random numbers: the order of an epoch, the order of annotated images
WITHIN = 3  # the stream that shuffles images of neighbouring blocks

Key = tuple[int, ...]
Draw = tuple[int, Key | None]  # the row of an image, and the key of its augmentation (None: without)
Rows = Int[np.ndarray, " row"]
Starts = Int[np.ndarray, " step"]
Ids = Int[np.ndarray, " image"]


@dataclass(frozen=True)
class Plan:
    """Which images each batch of a pass holds. It takes 16 bytes for each image; draws are made when asked.

    Attributes:
        rows: The rows of the images in the table, batch after batch.
        starts: Where each batch begins in `rows`.
        repetitions: For each row how many times the image was added for its mask before in this pass.
        ids: The ids of the images of the table; None for a pass without augmentation.
        stem: Seed and number of the pass, with which the keys begin.
    """

    rows: Rows
    starts: Starts
    repetitions: Rows | None = None
    ids: Ids | None = None
    stem: Key = ()

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.starts)

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield the draws of each batch.

        Yields:
            For each image of the batch its row and its key: (seed, epoch, image id, repetition).
        """
        for step in range(len(self)):
            rows = self.rows_of(step)
            again = np.zeros_like(rows) if self.repetitions is None else self.repetitions[self._part(step)]
            if self.ids is None:
                yield [(int(row), None) for row in rows]
                continue
            yield [
                (int(row), (*self.stem, int(self.ids[row]), int(repetition)))
                for row, repetition in zip(rows, again, strict=True)
            ]

    def rows_of(self, step: int) -> Rows:
        """Return the rows of the images of a batch.

        Args:
            step: The number of the batch.

        Returns:
            The rows in the order of the batch.
        """
        return self.rows[self._part(step)]

    def first(self) -> Plan:
        """Return the plan of the first batch alone.

        Returns:
            A plan of one batch, or of none.
        """
        starts = self.starts[:1]
        part = self._part(0) if len(starts) else slice(0)
        again = None if self.repetitions is None else self.repetitions[part]
        return Plan(self.rows[part], starts, again, self.ids, self.stem)

    def share(self, rank: int, count: int) -> Plan:
        """Return the plan of the batches of one of several processes.

        Args:
            rank: The number of the process, from 0.
            count: How many there are.

        Returns:
            Every `count`-th batch, from the `rank`-th on.
        """
        if count == 1:
            return self
        parts = [np.arange(len(self.rows))[self._part(step)] for step in range(rank, len(self), count)]
        kept = np.concatenate(parts) if parts else np.arange(0)
        starts = np.cumsum([0, *map(len, parts)])[: len(parts)]
        again = None if self.repetitions is None else self.repetitions[kept]
        return Plan(self.rows[kept], starts, again, self.ids, self.stem)

    @property
    def largest(self) -> int:
        """The number of images of the largest batch."""
        return int(np.diff(self.starts, append=len(self.rows)).max(initial=0))

    def _part(self, step: int) -> slice:
        """Return the place of a batch in `rows`."""
        following = step + 1
        stop = int(self.starts[following]) if following < len(self.starts) else len(self.rows)
        return slice(int(self.starts[step]), stop)


def in_order(images: int, size: int) -> Plan:
    """Plan a pass over all images in the order of the table, without augmentation.

    Args:
        images: The number of images.
        size: The number of images in a batch.

    Returns:
        The plan.
    """
    return Plan(np.arange(images), starts_of(images, size, merge=False))


def starts_of(images: int, size: int, merge: bool) -> Starts:
    """Return where each batch begins.

    Args:
        images: The number of images.
        size: The number of images in a batch.
        merge: Whether a last batch of a single image is joined to its neighbour.

    Returns:
        The positions of the first images of the batches.
    """
    starts = np.arange(0, images, size, dtype=np.int64)
    return starts[:-1] if merge and len(starts) > 1 and images - starts[-1] == 1 else starts


def shuffled_plan(
    ids: Ids, order: Ids, starts: Starts, added: Sequence[int], per_batch: int, stem: Key
) -> Plan:
    """Plan an epoch of images in a given order, with annotated images added to each batch.

    Args:
        ids: The ids of the images of the table.
        order: The rows of the images in the order of the epoch.
        starts: Where each batch begins in `order`.
        added: The rows of the images that are added, batch after batch.
        per_batch: How many are added to a batch.
        stem: Seed and number of the epoch.

    Returns:
        The plan.
    """
    if not per_batch:
        return Plan(order, starts, None, ids, stem)
    times_drawn: dict[int, int] = {}
    repetitions = np.zeros((len(starts), per_batch), dtype=np.int64)
    for place, row in enumerate(added):
        repetitions.flat[place] = times_drawn[row] = times_drawn.get(row, 0) + 1
    more = np.array(added, dtype=np.int64).reshape(len(starts), per_batch)
    rows = [np.concatenate(pair) for pair in zip(np.split(order, starts[1:]), more, strict=True)]
    again = [
        np.concatenate([np.zeros(len(own) - per_batch, dtype=np.int64), drawn])
        for own, drawn in zip(rows, repetitions, strict=True)
    ]
    shifted = starts + per_batch * np.arange(len(starts))
    return Plan(np.concatenate(rows), shifted, np.concatenate(again), ids, stem)


def epoch_order(ids: Ids, seed: int, number: int, blocks: Ids | None = None, window: int = 0) -> Ids:
    """Shuffle the images of a table by seed and epoch.

    Where images lie in blocks of which a whole one must be read for any of its images, the blocks are
    shuffled, and the images of each `window` blocks that follow each other are shuffled among themselves.

    Args:
        ids: The ids of the images.
        seed: The seed of the training.
        number: The number of the epoch.
        blocks: The block of each image; None: any image can be read by itself.
        window: How many blocks are shuffled together.

    Returns:
        The rows of the images in the order of the epoch. Without blocks the order depends on the number of
        images, seed and epoch alone.
    """
    order = np.argsort(ids, kind="stable")
    if blocks is None:
        return order[generator(seed, SHUFFLE, number).permutation(len(ids))]
    names, place = np.unique(blocks[order], return_inverse=True)
    turn = generator(seed, SHUFFLE, number).permutation(len(names))
    by_turn = np.argsort(turn[place], kind="stable")
    starts = np.searchsorted(turn[place][by_turn], np.arange(window, len(names), window))
    within = generator(seed, WITHIN, number)
    return order[np.concatenate([within.permutation(part) for part in np.split(by_turn, starts)])]


def cycle(rows: Rows, number: int, count: int, seed: int) -> list[int]:
    """Return the images that an epoch adds: a part of an endless cycle that is shuffled every round.

    Args:
        rows: The rows of the annotated images, at least one.
        number: The number of the epoch.
        count: How many images an epoch adds.
        seed: The seed of the training.

    Returns:
        The rows of the images.
    """
    places = np.arange(number * count, (number + 1) * count)
    rounds = {n: generator(seed, CYCLE, n).permutation(rows) for n in np.unique(places // len(rows)).tolist()}
    return [int(rounds[place // len(rows)][place % len(rows)]) for place in places.tolist()]


def generator(*key: int) -> np.random.Generator:
    """Return a generator of random numbers that depend only on a key.

    Args:
        *key: Whole numbers of at least 0.

    Returns:
        The generator.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))

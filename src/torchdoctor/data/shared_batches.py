"""Decode a part of each batch in each of several processes, and put the batches together from the parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from torchdoctor.data.decoder import Decoded, part_of
from torchdoctor.data.order import Plan
from torchdoctor.processes import Processes
from torchdoctor.types import InputError


def whole_batches(
    parts: Iterable[Decoded], plan: Plan, processes: Processes, masked: bool
) -> Iterator[Decoded]:
    """Yield whole batches; each process must use them up alike.

    Args:
        parts: Of each batch what this process decoded: the images at `part_of`.
        plan: Which images each batch holds.
        processes: The processes that decode the others.
        masked: Whether any image may have a mask.

    Yields:
        The pixels of each batch and the mask of each image, the same in every process. An image without a
        mask has an empty one.

    Raises:
        InputError: An image is damaged; in every process, whoever has met it.
    """
    mine = iter(parts)
    for step in range(len(plan)):
        own, error = None, None
        try:
            own = next(mine)
        except InputError as found:
            error = found
        if processes.any(error is not None)[0]:
            raise next(each for each in processes.gather(error) if each is not None)
        assert own is not None
        yield _put_together(own, len(plan.rows_of(step)), processes, masked)


def _put_together(own: Decoded, number: int, processes: Processes, masked: bool) -> Decoded:
    """Return the batch that the parts of all processes make: each adds its own to zeros."""
    pixels, masks = own
    place = part_of(number, processes)
    whole = _filled(pixels, number, place, processes)
    if not masked:
        processes.sum([whole])
        return whole, [None] * number
    empty = pixels.new_zeros(1, *pixels.shape[-2:])
    drawn = [empty if mask is None else mask for mask in masks]
    stacked = torch.stack(drawn) if drawn else pixels.new_zeros(0, 1, *pixels.shape[-2:])
    whole_masks = _filled(stacked, number, place, processes)
    processes.sum([whole, whole_masks])
    return whole, list(whole_masks.cpu())


def _filled(values: Tensor, number: int, place: slice, processes: Processes) -> Tensor:
    """Return the values of the own images among zeros, where the processes exchange."""
    whole = torch.zeros(number, *values.shape[1:], dtype=values.dtype, device=processes.device)
    whole[place] = values.to(processes.device)
    return whole

"""Fit work into the memory at hand: start from a size that should fit, and halve it when it does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")

SMALLEST, LARGEST = 1 << 20, 1 << 24  # floats of noise in one pass: beyond 64 MiB nothing gets faster
SHARE = 24  # a pass takes a few times its noise for the maps behind it and their gradients

ON_CPU = ("not enough memory", "can't allocate memory", "cannot allocate memory")


def floats_at_hand(device: torch.device) -> int:
    """Return how many floats of noise one pass may draw on this device."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):  # not every system says
            return LARGEST
    return max(SMALLEST, min(LARGEST, free // (4 * SHARE)))


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(one in str(error).lower() for one in ON_CPU)


def in_halves(work: Callable[[int, int], Result], start: int, stop: int) -> list[Result]:
    """Return the results of `work` on start..stop, cut into halves wherever memory runs out.

    The parts come in order. A single item that does not fit raises what the device said.
    """
    try:
        return [work(start, stop)]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error) or stop - start <= 1:
            raise
    # Outside the handler: the error holds the frames, and those the tensors, of the failed try.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (start + stop) // 2
    return in_halves(work, start, middle) + in_halves(work, middle, stop)

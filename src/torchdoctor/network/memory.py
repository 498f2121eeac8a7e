"""Fit work into the memory at hand: start from a size that should fit, and halve it when it does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")

SMALLEST, LARGEST = 1 << 20, 1 << 24  # floats of noise in one pass: beyond 64 MiB nothing gets faster
SHARE = 24  # a pass takes a few times its noise for the maps behind it and their gradients

CPU_MESSAGES = ("not enough memory", "can't allocate memory", "cannot allocate memory")


def floats_at_hand(device: torch.device) -> int:
    """Return how many floats of noise one pass may draw.

    Args:
        device: Where the network computes.

    Returns:
        A number of float32 values between 2^20 and 2^24: the free memory divided by 24 (`SHARE`), or 2^24
        where the system does not tell how much is free.
    """
    free = free_bytes(device)
    return LARGEST if free is None else max(SMALLEST, min(LARGEST, free // (4 * SHARE)))


def free_bytes(device: torch.device) -> int | None:
    """Return how much memory is free.

    Args:
        device: The CPU or a GPU.

    Returns:
        Bytes; None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system says
        return None


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out.

    Args:
        error: An error raised by PyTorch or Python.

    Returns:
        True if memory ran out, on a GPU or on the CPU.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in CPU_MESSAGES)


def in_halves(work: Callable[[int, int], Result], start: int, stop: int) -> list[Result]:
    """Do work on the items start..stop, cut into halves wherever memory runs out.

    Args:
        work: A function of (start, stop) that works on these items.
        start: The first item.
        stop: The item after the last.

    Returns:
        The results in the order of the items: a single result if everything fits at once.

    Raises:
        RuntimeError: A single item does not fit, or `work` failed for another reason; as it was raised.
        MemoryError: A single item does not fit; as it was raised.
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


def bytes_for_backward(model: nn.Module, compute: Callable[[], object]) -> int:
    """Count what a computation keeps for its derivatives, apart from the network's own weights and buffers.

    Args:
        model: The network.
        compute: What is computed, without arguments; what it returns is held until all is counted.

    Returns:
        Bytes, each piece of memory once.
    """
    own = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        held = compute()
    del held
    return sum(kept.values())

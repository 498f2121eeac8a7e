"""Choose the device on which a run computes."""

from __future__ import annotations

import torch

from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import InputError


def device_named(name: str, processes: Processes = ALONE) -> torch.device:
    """Return a device, after trying to use it.

    Args:
        name: `auto`, or a name that PyTorch knows, such as `cpu` or `cuda:0`.
        processes: The processes that work on the run together; each has a device of its own.

    Returns:
        The device; for `auto` the GPU, or the CPU where there is no GPU.

    Raises:
        InputError: The device does not exist or cannot be used, or is not that of this process.
    """
    if name == "auto":
        return processes.device
    if not processes.alone and name not in (processes.device.type, str(processes.device)):
        raise InputError(
            f"--device {name!r} with {processes.count} processes: each has a device of its own, and this one "
            f"has {processes.device}. Leave --device out; ACCELERATE_USE_CPU=true puts all on the CPU"
        )
    if not processes.alone:
        return processes.device
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"--device {name!r} cannot be used ({first}); expected auto, cpu or cuda") from error
    return device

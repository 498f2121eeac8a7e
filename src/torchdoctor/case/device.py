"""Choose the device on which a run computes, and the number format of its trainings."""

from __future__ import annotations

import torch

from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import AskedPrecision, InputError, Precision

BF16_FROM = (8, 0)  # the compute capability of the first GPUs that compute in bf16 (and in TF32)


def precision_on(
    asked: AskedPrecision,
    device: torch.device,
    processes: Processes = ALONE,
    capability: tuple[int, int] | None = None,
) -> Precision:
    """Decide in which number format networks are trained.

    Args:
        asked: What was asked for.
        device: The device of this process.
        processes: The processes that work on the run together, which all get the same; for `auto` each must
            call this.
        capability: The compute capability of the device; None: a GPU is asked for it.

    Returns:
        What was asked for; for `auto` bf16 where the device of every process computes in it, else fp32.
    """
    if asked != "auto":
        return asked
    if capability is None:
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return "bf16" if min(processes.gather(capability)) >= BF16_FROM else "fp32"


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

"""The precision of a forward pass, and of the sums that a loss is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from torchdoctor.types import Precision


def at_least_float32(value: Tensor) -> Tensor:
    """Return a tensor in float32 or float64, so that sums of it are exact enough for a loss.

    Args:
        value: A tensor of any floating-point type.

    Returns:
        The same tensor where it is float64, else its values in float32.
    """
    return value if value.dtype == torch.float64 else value.float()


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which a forward pass runs in a precision.

    Args:
        device: The device of the network.
        precision: The precision; `fp32` switches automatic casting off.

    Returns:
        A context manager.
    """
    kind = {"fp32": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=kind, enabled=precision != "fp32")

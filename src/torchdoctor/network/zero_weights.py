"""Weights that start at 0 and hide what the logits depend on, such as a head's or a residual branch's."""

from __future__ import annotations

import torch
from torch import nn

from torchdoctor.network.copying import copy_of


def zero_weights(model: nn.Module) -> tuple[str, ...]:
    """Name the parameters, other than biases, that are 0 in all places.

    Args:
        model: The network.

    Returns:
        Their names, in the order of the modules. A trained network has none: one step moves them.
    """
    return tuple(
        name
        for name, parameter in model.named_parameters()
        if not name.endswith("bias") and parameter.numel() and not bool(parameter.any())
    )


def without_zero_weights(model: nn.Module) -> nn.Module:
    """Return the network as training would make it: with other weights where they are all 0.

    Args:
        model: The network; it is left as it was.

    Returns:
        A copy with numbers from 0.5 to 1 in place of weights that are all 0; the network itself where none
        are.
    """
    names = zero_weights(model)
    if not names:
        return model
    moved = copy_of(model)
    with torch.no_grad():
        for name in names:
            parameter = moved.get_parameter(name)
            parameter.copy_(torch.linspace(0.5, 1.0, parameter.numel()).view(parameter.shape))
    return moved

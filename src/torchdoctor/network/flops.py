"""Count the arithmetic of a forward pass up to each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.taps import find_layouts, tapped


def compute_before(
    model: nn.Module, example: Tensor, names: Sequence[str]
) -> tuple[dict[str, int], dict[str, tuple[int, int, int]]]:
    """Count the floating-point operations of one forward pass up to each layer's map.

    Args:
        model: The network; it is left as it was.
        example: Normalised images [batch, channel, height, width].
        names: Names of layers.

    Returns:
        The operations (as PyTorch's counter counts them: convolutions and matrix products) up to each layer's
        map, by name, with those of the whole pass under `""`; and each map's [channel, height, width].

    Raises:
        InputError: A layer does not exist or gives no 4-dimensional map.
    """
    flops: dict[str, int] = {}
    shapes: dict[str, tuple[int, int, int]] = {}
    counter = FlopCounterMode(display=False)

    def note(name: str) -> Callable[[Tensor], Tensor]:
        def tap(output: Tensor) -> Tensor:
            flops[name] = counter.get_total_flops()
            shapes[name] = (output.shape[1], output.shape[2], output.shape[3])
            return output

        return tap

    find_layouts(model, example, names)  # not to be counted
    taps = {name: note(name) for name in names}
    with frozen_eval(model), torch.no_grad(), counter, tapped(model, example, taps):
        model(example)
    return {**flops, "": counter.get_total_flops()}, shapes

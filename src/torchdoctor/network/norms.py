"""Find the batch-norms right behind layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.hooks import hooked
from torchdoctor.network.taps import run_tapped


def norms_behind(
    model: nn.Module, images: Float[Tensor, "batch channel height width"], layers: Sequence[str]
) -> dict[str, nn.Module]:
    """Find the batch-norms that take layers' maps as they are.

    Args:
        model: The network; it is left as it was.
        images: Normalised images, as the network takes them; only the first image is run.
        layers: Names of layers.

    Returns:
        The batch-norm with running statistics right behind a layer, by the layer's name, for the layers that
        have one.

    Raises:
        InputError: A layer does not exist, is not called once, or gives no 4-dimensional map.
    """
    passed_on: dict[str, Tensor] = {}
    norm_of: dict[str, nn.Module] = {}

    def note(name: str) -> Callable[[Tensor], Tensor]:
        def tap(output: Tensor) -> Tensor:
            passed_on[name] = output.clone()
            return passed_on[name]

        return tap

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        norm_of.update({name: module for name, output in passed_on.items() if inputs[0] is output})

    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats
    ]
    with hooked(((norm, look) for norm in norms), "forward_pre"), frozen_eval(model), torch.no_grad():
        run_tapped(model, images[:1], {name: note(name) for name in layers})
    return norm_of

"""Silence kernels and predict again, which shows whether the prediction depends on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.taps import run_tapped


def silenced_logits(
    model: nn.Module,
    pixels: Float[Tensor, "batch channel height width"],
    kernels: Mapping[str, Bool[Tensor, "batch kernel"]],
    levels: Mapping[str, Float[Tensor, " kernel"]],
) -> Float[Tensor, "batch category"]:
    """Run the network with a set of kernels silenced for each image.

    The map of a silenced kernel is set to a constant everywhere, usually the kernel's mean over other images
    (mean ablation), so that it carries no information about the image.

    Args:
        model: The network; it is left as it was.
        pixels: The normalised images.
        kernels: For each layer by name, True for the kernels to silence.
        levels: For each of these layers, the constant of each kernel (`LayerDiagnosis.level`).

    Returns:
        The logits.
    """

    def tap_for(layer: str) -> Callable[[Tensor], Tensor]:
        def tap(output: Tensor) -> Tensor:
            silenced = kernels[layer].to(output.device)[:, :, None, None]
            return output.where(~silenced, levels[layer].to(output)[None, :, None, None])

        return tap

    with frozen_eval(model), torch.no_grad():
        return run_tapped(model, pixels, {layer: tap_for(layer) for layer in kernels})


def random_sets(
    weights: Float[Tensor, " kernel"], number: int, sets: int, seed: int
) -> Bool[Tensor, "set kernel"]:
    """Draw random sets of kernels.

    Args:
        weights: The weight of each kernel; its chance is proportional to it, and 0 for negative weights.
        number: The number of different kernels in a set; fewer where not so many have a chance.
        sets: The number of sets.
        seed: The seed of the draw.

    Returns:
        True for the kernels of each set.
    """
    generator = torch.Generator().manual_seed(seed)
    chances = weights.double().cpu().clamp(min=0)
    number = min(number, int((chances > 0).sum()))
    members = torch.zeros(sets, len(weights), dtype=torch.bool)
    if number:
        drawn = torch.multinomial(chances.expand(sets, -1), number, generator=generator)
        members.scatter_(1, drawn, value=True)
    return members

"""Silence kernels and predict again: the check that separates what stands out from what decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from torchdoctor.network.hooks import measuring, run_tapped


def silenced_logits(
    model: nn.Module,
    pixels: Float[Tensor, "batch channel height width"],
    kernels: Mapping[str, Bool[Tensor, "batch kernel"]],
    levels: Mapping[str, Float[Tensor, " kernel"]],
) -> Float[Tensor, "batch category"]:
    """Return the logits with each image's own set of kernels silenced, at several layers at once.

    A silenced kernel's map is set to its level everywhere: its mean over the diagnosed images (mean
    ablation), which tells the layers behind nothing about this image.
    """

    def tap_for(layer: str) -> Callable[[Tensor], Tensor]:
        def tap(output: Tensor) -> Tensor:
            chosen = kernels[layer].to(output.device)[:, :, None, None]
            return output.where(~chosen, levels[layer].to(output)[None, :, None, None])

        return tap

    with measuring(model), torch.no_grad():
        return run_tapped(model, pixels, {layer: tap_for(layer) for layer in kernels})


def random_sets(
    weights: Float[Tensor, " kernel"], number: int, sets: int, seed: int
) -> Bool[Tensor, "set kernel"]:
    """Draw sets of kernels, each of `number` different ones with a chance in proportion to their weight.

    With fewer usable kernels than asked for, a set is all of them.
    """
    generator = torch.Generator().manual_seed(seed)
    chances = weights.double().cpu().clamp(min=0)
    number = min(number, int((chances > 0).sum()))
    chosen = torch.zeros(sets, len(weights), dtype=torch.bool)
    if number:
        drawn = torch.multinomial(chances.expand(sets, -1), number, generator=generator)
        chosen.scatter_(1, drawn, value=True)
    return chosen

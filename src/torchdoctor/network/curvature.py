"""Tell how far logits are from affine in a layer's map, and whether their gradients there ever change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.gradients import score_gradients
from torchdoctor.network.taps import keep_in, run_tapped, tapped


def bends(model: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Measure how far the logits are from affine in each layer's map.

    A random change is added to the map, twice that change, and its opposite. In an affine function twice the
    change acts twice (not so behind a sigmoid) and the opposite acts oppositely (not so behind a ReLU).

    Args:
        model: The network; it is left as it was.
        example: One normalised image [1, channel, height, width].
        names: Names of layers.

    Returns:
        By layer, the largest deviation from that in any logit, relative to the change's own largest effect:
        0 where affine; 1 where the change has no effect.
    """
    generator = torch.Generator().manual_seed(0)
    bend_of: dict[str, float] = {}

    def changed(output: Tensor) -> Tensor:
        size = output[:1].std(correction=0) + 1.0  # 1: where a gate bends, however small its input
        change = size * torch.randn(output[:1].shape, generator=generator).to(output)
        return output + torch.cat([0 * change, change, 2 * change, -change])

    with frozen_eval(model) as frozen, torch.no_grad():
        for name in names:
            with tapped(model, example, {name: changed}):
                base, once, twice, back = frozen.logits(example.expand(4, -1, -1, -1))
            slope = float((once - base).abs().max())
            bend = torch.stack([twice - 2 * once + base, once - 2 * base + back]).abs().max()
            bend_of[name] = float(bend) / slope if slope > 0 else 1.0
    return bend_of


def gradients_move(model: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, bool]:
    """Tell for each layer whether dy/dm changes smoothly with what lies before it.

    The image moves a little, and with it every map. Behind ReLU and frozen batch-norm the gradients
    stay the same to the last bit (on hardware whose sums are not repeatable: as near as a repetition),
    unless a unit switches, which so small a step makes improbable.

    Args:
        model: The network; it is left as it was.
        example: One normalised image [1, channel, height, width], best in float64.
        names: Names of layers.

    Returns:
        By layer, True where the gradient moves with the image.

    Raises:
        InputError: A layer does not feed the logits.
    """
    step = 1e-9 if example.dtype == torch.float64 else 1e-5
    generator = torch.Generator().manual_seed(0)
    moved = example + step * torch.randn(example.shape, generator=generator).to(example)
    before, again, after = (_gradients(model, image, names) for image in (example, example, moved))
    return {
        name: bool((after[name] - before[name]).abs().max() > 2 * (again[name] - before[name]).abs().max())
        for name in names
    }


def _gradients(model: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return d y_0 / d m at each layer; InputError names a layer that does not feed the logits."""
    maps: dict[str, Tensor] = {}
    with frozen_eval(model), torch.enable_grad():
        logits = run_tapped(model, example, {name: keep_in(maps, name) for name in names})
        return score_gradients([logits[:, 0]], maps)[0]

"""Say why no layer of a network can be differentiated by: what cuts its maps off from the logits."""

from __future__ import annotations

from collections import Counter

import torch
from jaxtyping import Num
from torch import Tensor, nn

from torchdoctor.display.counts import count_of
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.hooks import hooked
from torchdoctor.network.outputs import unwrap


def why_no_layer(model: nn.Module, images: Num[Tensor, "batch channel height width"]) -> str:
    """Say why a network has no layer that can be diagnosed, and what can be done.

    Args:
        model: The network; it is left as it was.
        images: Normalised images, as the network takes them; only the first image is run.

    Returns:
        One sentence or two.
    """
    name = type(model).__name__
    convolutions = [module for module in unwrap(model).modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        return f"{name} has no two-dimensional convolution: Model Doctor treats convolutional classifiers"
    calls, without = Counter[nn.Module](), list[str]()

    def look(module: nn.Module, _inputs: object, _output: object) -> None:
        calls[module] += 1
        if torch.is_inference_mode_enabled():
            without.append("torch.inference_mode")
        elif not torch.is_grad_enabled():
            without.append("torch.no_grad (or set_grad_enabled(False))")

    with hooked((each, look) for each in convolutions), frozen_eval(model) as frozen, torch.enable_grad():
        given = images[:1].clone()
        frozen.logits(given.requires_grad_(True) if given.is_floating_point() else given)
    many = f"{name} has {count_of(len(convolutions), 'two-dimensional convolution')}, of which none "
    if without:
        return (
            f"{many}has derivatives: its forward pass runs them under {without[0]}, so that they could be "
            "neither diagnosed nor trained. Leave that out of forward; to keep layers as they are, set "
            "requires_grad_(False) on their parameters instead"
        )
    if any(number == 1 for number in calls.values()):
        return (
            f"{many}that is called exactly once in a forward pass feeds the logits: its forward pass cuts "
            "them off on the way (detach(), .data, .numpy(), or torch.no_grad behind them?). Leave that out"
        )
    return (
        f"{many}is called exactly once in a forward pass and feeds the logits (a network that runs its "
        "layers on several views of an image?). Give a network that runs each layer once, and put the views "
        "together outside of it"
    )

"""List the layers of a network that can be diagnosed, and choose three where the user names none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.gradients import as_logits, measuring
from torchdoctor.types import InputError


@dataclass(frozen=True)
class Candidate:
    """A convolution in the order of the forward pass: its name and its map's [channel, height, width]."""

    name: str
    shape: tuple[int, int, int]


def candidate_layers(
    model: nn.Module, images: Float[Tensor, "batch channel height width"]
) -> tuple[Candidate, ...]:
    """Return the convolutions with a 4-dimensional map that are called once and feed the logits, in order."""
    names: dict[nn.Module, str] = {
        module: name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    calls: list[tuple[str, Tensor]] = []

    def remember(module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        kept = output if output.requires_grad else output.detach().requires_grad_(True)
        calls.append((names[module], kept))
        return kept.clone()

    handles = [module.register_forward_hook(remember) for module in names]
    try:
        with measuring(model), torch.enable_grad():
            logits = as_logits(model(images[:1]))
            maps = [kept for _, kept in calls]
            live = torch.autograd.grad(logits.sum(), maps, allow_unused=True) if maps else ()
    finally:
        for handle in handles:
            handle.remove()
    counts: dict[str, int] = {}
    for name, _ in calls:
        counts[name] = counts.get(name, 0) + 1
    return tuple(
        Candidate(name, (kept.shape[1], kept.shape[2], kept.shape[3]))
        for (name, kept), gradient in zip(calls, live, strict=True)
        if gradient is not None and kept.ndim == 4 and counts[name] == 1
    )


def default_layers(
    model: nn.Module, images: Float[Tensor, "batch channel height width"], number: int = 3
) -> tuple[str, ...]:
    """Choose the last convolution and two earlier ones, in the order of the forward pass.

    The earlier ones are the last convolutions of the two map sizes before; a network with fewer sizes
    fills up with the convolutions nearest the end. Gates that squeeze the map to 1 x 1 are passed over.
    """
    found = candidate_layers(model, images)
    if not found:
        raise InputError(
            f"{type(model).__name__} has no two-dimensional convolution that feeds its logits: Model Doctor "
            "treats convolutional classifiers"
        )
    order = {one.name: position for position, one in enumerate(found)}
    maps = [one for one in found if one.shape[1] * one.shape[2] > 1] or list(found)
    last_of_size: dict[tuple[int, int], str] = {}
    for one in maps:
        size = (one.shape[1], one.shape[2])
        last_of_size.pop(size, None)
        last_of_size[size] = one.name
    chosen = list(last_of_size.values())[-number:]
    for one in reversed(maps):
        if len(chosen) >= number:
            break
        if one.name not in chosen:
            chosen.append(one.name)
    return tuple(sorted(chosen, key=order.__getitem__))

"""Try a network's derivatives out: those of a diagnosis and those of a treatment, at every layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from torchdoctor.network.default_layers import default_layers
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.gradients import score_gradients
from torchdoctor.network.kept_tensors import without_kept_tensors
from torchdoctor.network.outputs import same_for_all
from torchdoctor.network.taps import keep_in, run_tapped
from torchdoctor.network.workarounds import second_derivatives
from torchdoctor.network.zero_weights import without_zero_weights, zero_weights

Level = Literal["error", "warning"]
Messages = Iterator[tuple[Level, str]]
NAMED = 3  # weights that a message names


def try_derivatives(model: nn.Module, example: Tensor, layers: Sequence[str] | None) -> Messages:
    """Differentiate once for the diagnosis and twice for the treatment, at every layer.

    Args:
        model: A copy of the network, in evaluation mode.
        example: Two or more normalised images [batch, channel, height, width].
        layers: Names of the layers to be constrained; None: the default ones.

    Yields:
        What would not work: how bad it is, and a sentence.
    """
    chosen, dead = tuple(layers) if layers else default_layers(model, example), list[str]()
    for name in chosen:
        maps: dict[str, Tensor] = {}
        with without_kept_tensors(model), torch.enable_grad(), second_derivatives():
            logits = run_tapped(model, example, {name: keep_in(maps, name)})
            gradient = score_gradients([logits.max(1).values], maps, create_graph=True)[0][name]
            if not bool(torch.isfinite(gradient).all()):
                yield "error", f"the derivatives at {name} are not finite"
                continue
            if not bool((gradient != 0).any()):
                dead.append(name)
                continue
            if not bool((maps[name] * gradient != 0).any()):
                yield (
                    "error",
                    f"the map at {name} is 0 on the example (weights that start at 0, or dead units?): a "
                    "constraint there has no effect. Train the network first, or choose other layers",
                )
                continue
            # As in training: `backward` meets what `autograd.grad` would pass over in silence.
            (maps[name] * gradient).abs().sum().backward()
        yield from _reached(model, name)
    if dead:
        yield _about_dead(model, example, dead, chosen)


def _reached(model: nn.Module, name: str) -> Messages:
    """Look at the second derivatives that lie at the parameters, and take them away."""
    reached = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad(set_to_none=True)
    if not all(bool(torch.isfinite(by_parameter).all()) for by_parameter in reached):
        yield (
            "error",
            f"the second derivatives at {name} are not finite (a root or a norm of 0 behind it?): a "
            "constraint there would spoil the weights. Choose other layers",
        )
    elif not any(bool((by_parameter != 0).any()) for by_parameter in reached):
        yield "error", f"a constraint at {name} reaches no trainable parameter: unfreeze layers"


def _about_dead(
    model: nn.Module, example: Tensor, dead: Sequence[str], chosen: Sequence[str]
) -> tuple[Level, str]:
    """Say why derivatives are all 0: the head, weights of a branch that start at 0, or units."""
    named = ", ".join(dead)
    if len(dead) == len(chosen) and same_for_all(model, example):
        return (
            "error",
            f"the derivatives at {named} are all 0, and different images have the same logits (a head that "
            "starts at 0?): train the network first",
        )
    moved = without_zero_weights(model)
    awake = [name for name in dead if moved is not model and _is_alive(moved, example, name)]
    if not awake:
        return "warning", f"the derivatives at {named} are all 0 on the example: dead units?"
    weights = zero_weights(model)
    listed = ", ".join(weights[-NAMED:]) + (", ..." if len(weights) > NAMED else "")
    return (
        "error",
        f"the derivatives at {', '.join(awake)} are all 0, because weights behind start at 0 ({listed}): the "
        "evidence there is 0 and a constraint has no effect. Train the network first, or choose other layers",
    )


def _is_alive(model: nn.Module, example: Tensor, name: str) -> bool:
    """Whether the largest logits have a derivative other than 0 by a layer's map."""
    maps: dict[str, Tensor] = {}
    with frozen_eval(model), torch.enable_grad():
        logits = run_tapped(model, example, {name: keep_in(maps, name)})
        gradient = score_gradients([logits.max(1).values], maps)[0][name]
    return bool((gradient != 0).any())

"""Reach into a network at named layers and differentiate its scores by the maps there (Eq. 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchdoctor.network.taps import find_layouts, run_tapped
from torchdoctor.types import InputError, PenaltyEvidence


@dataclass(frozen=True)
class NoisyTail:
    """The scores under each noise draw, and the maps that gave them.

    Attributes:
        logits: The scores [draw, batch, category].
        noise: What was added to the layer's map [draw, batch, channel, height, width]; scores can be
            differentiated by it.
        maps: The layer's map plus the noise, of the same shape.
        path: How it was computed: `vmap` and `shared trunk` ran only what lies behind the layer once per
            draw, `repeat` the whole network.
    """

    logits: Float[Tensor, "draw batch category"]
    noise: Float[Tensor, "draw batch channel height width"]
    maps: Float[Tensor, "draw batch channel height width"]
    path: str


def noisy_tail(
    model: nn.Module, images: Tensor, layer: str, noise: Float[Tensor, "draw batch channel height width"]
) -> NoisyTail:
    """Run the network under every draw of noise added to the layer's map (the inside of Eq. 4).

    vmap over the draws batches only the layers behind the tap. Where a model cannot be vmapped
    (batch statistics, some in-place sums), the images are repeated once per draw instead.

    Args:
        model: The network, in evaluation mode.
        images: Normalised images [batch, channel, height, width].
        layer: The name of a layer that is called once.
        noise: What is added to its map, in units of the map; it is made to require a gradient.

    Returns:
        The scores, the noise and the noisy maps.

    Raises:
        InputError: The layer does not exist, is not called once, or gives no 4-dimensional map.
    """
    noise = noise.requires_grad_(True)
    find_layouts(model, images, [layer])  # outside of vmap
    try:
        logits, maps = torch.func.vmap(
            lambda draw: run_with_noise(model, images, layer, draw), randomness="different"
        )(noise)
        return NoisyTail(logits, noise, maps, "vmap")
    except InputError:
        raise
    except (RuntimeError, ValueError, NotImplementedError):
        draws = len(noise)
        repeated = images.repeat(draws, 1, 1, 1)
        logits, maps = run_with_noise(model, repeated, layer, noise.flatten(0, 1))
        return NoisyTail(logits.unflatten(0, (draws, -1)), noise, maps.unflatten(0, (draws, -1)), "repeat")


def run_with_noise(
    model: nn.Module, images: Tensor, layer: str, noise: Tensor
) -> tuple[Float[Tensor, "batch category"], Float[Tensor, "batch channel height width"]]:
    """Run the network once with noise on one layer's map.

    Args:
        model: The network.
        images: Normalised images [batch, channel, height, width].
        layer: The name of a layer that is called once.
        noise: What is added to its map [batch, channel, height, width], in units of the map.

    Returns:
        The logits, and the noisy map.

    Raises:
        InputError: The layer does not exist, is not called once, or gives no 4-dimensional map.
    """
    stored: list[Tensor] = []

    def tap(output: Tensor) -> Tensor:
        stored.append(output + noise)
        return stored[0].clone()

    return run_tapped(model, images, {layer: tap}), stored[0]


def score_gradients(
    scores: Sequence[Float[Tensor, "*lead"]],
    maps: Mapping[str, Tensor],
    *,
    create_graph: bool = False,
) -> list[dict[str, Tensor]]:
    """Differentiate each score, summed over images and draws, by every map (Eq. 2).

    In evaluation mode an image's score depends on its own map alone, so that one backward pass gives
    the gradients of all images.

    Args:
        scores: Scores of one category per image, of any shape; each is summed.
        maps: What to differentiate by, by layer name.
        create_graph: Whether the gradients can be differentiated in turn.

    Returns:
        For each score the gradients by layer name, each of its map's shape.

    Raises:
        InputError: The scores do not depend on a map; the message names its layer.
    """
    results = []
    for score in scores:
        if not score.requires_grad:
            raise InputError(_unfed(next(iter(maps))))
        gradients = torch.autograd.grad(
            score.sum(), list(maps.values()), create_graph=create_graph, retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(maps, gradients, strict=True):
            if gradient is None:
                raise InputError(_unfed(name))
        results.append(dict(zip(maps, gradients, strict=True)))
    return results


def _unfed(name: str) -> str:
    """Say that a layer lies beside the way to the logits."""
    return f"layer {name!r} does not feed the logits (an auxiliary head?): choose another layer"


def evidence_of(gradient: Tensor, maps: Tensor, kind: PenaltyEvidence) -> Tensor:
    """Turn a gradient into evidence, position by position (Eq. 2).

    Args:
        gradient: dy/dm, of any shape.
        maps: The map m, with its noise where noise was added, of the same shape.
        kind: `gradient` gives abs(dy/dm), `gradient_x_activation` abs(m dy/dm), `positive_gradient` dy/dm
            where it is positive and 0 elsewhere.

    Returns:
        The evidence, >= 0, of the same shape.
    """
    if kind == "positive_gradient":
        return gradient.clamp(min=0)
    return gradient.abs() if kind == "gradient" else (maps * gradient).abs()


def pick(logits: Float[Tensor, "*lead category"], targets: Int[Tensor, " batch"]) -> Float[Tensor, "*lead"]:
    """Return the score of each image's own category.

    Args:
        logits: The scores [..., batch, category].
        targets: The number of each image's category.

    Returns:
        The scores [..., batch].
    """
    return logits.gather(-1, targets.expand(logits.shape[:-1])[..., None])[..., 0]

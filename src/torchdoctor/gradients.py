"""Reach into a network at named layers and differentiate its scores by the maps there (Eq. 2)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchdoctor.networks import as_logits
from torchdoctor.types import InputError, PenaltyEvidence


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the module called `name`; InputError suggests near names."""
    try:
        if name:
            return model.get_submodule(name)
    except AttributeError:
        pass
    modules = [known for known, _ in model.named_modules()]
    near = difflib.get_close_matches(name, modules, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"layers are named like {modules[-3:]}"
    raise InputError(f"layer {name!r} is not in this {type(model).__name__}; {hint}")


@contextmanager
def tapped(model: nn.Module, taps: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[dict[str, int]]:
    """Replace the output m of each named layer by taps[name](m) inside the block; hooks always go again.

    Yields how often each layer was called. A tap must hand on a fresh tensor: an in-place activation
    behind the layer would otherwise overwrite what the tap stored.
    """
    calls = dict.fromkeys(taps, 0)

    def hook_for(name: str) -> Callable[[nn.Module, object, object], Tensor]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> Tensor:
            calls[name] += 1
            if not isinstance(output, Tensor) or output.ndim != 4:
                found = (
                    f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
                )
                raise InputError(
                    f"layer {name!r} gives {found}; expected a 4-dimensional map [batch, channel, height, "
                    "width]: choose a convolution or a block of convolutions"
                )
            return taps[name](output)

        return hook

    handles = []
    try:
        for name in taps:
            handles.append(find_layer(model, name).register_forward_hook(hook_for(name)))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def run_tapped(
    model: nn.Module, images: Tensor, taps: Mapping[str, Callable[[Tensor], Tensor]]
) -> Float[Tensor, "batch category"]:
    """Run the network once with taps; InputError names a layer that was not called exactly once."""
    with tapped(model, taps) as calls:
        logits = as_logits(model(images))
    for name, count in calls.items():
        if count != 1:
            raise InputError(
                f"layer {name!r} is called {count} times in one forward pass; expected once: choose another"
            )
    return logits


def keep_in(maps: dict[str, Tensor], name: str) -> Callable[[Tensor], Tensor]:
    """Return a tap that keeps a layer's map, ready to be differentiated by, and hands on a copy."""

    def tap(output: Tensor) -> Tensor:
        maps[name] = output if output.requires_grad else output.detach().requires_grad_(True)
        return maps[name].clone()

    return tap


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Hold the network in evaluation mode without parameter gradients; put both back afterwards."""
    training = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)


def map_shapes(model: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Return [channel, height, width] of each layer's map for images of this size."""
    shapes: dict[str, tuple[int, int, int]] = {}

    def remember(name: str) -> Callable[[Tensor], Tensor]:
        def tap(output: Tensor) -> Tensor:
            shapes[name] = (output.shape[1], output.shape[2], output.shape[3])
            return output

        return tap

    with measuring(model), torch.no_grad():
        run_tapped(model, images[:1], {name: remember(name) for name in layers})
    return shapes


@dataclass(frozen=True)
class NoisyTail:
    """The scores under each noise draw, and the maps that gave them.

    `logits` [draw, batch, category]; `noise` and `maps` [draw, batch, channel, height, width], where
    maps = m + noise. `path` says how it was computed: `vmap` re-runs only what lies behind the layer.
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
    """
    noise = noise.requires_grad_(True)
    try:
        logits, maps = torch.func.vmap(
            lambda one: run_with_noise(model, images, layer, one), randomness="different"
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
    """Return the logits of the images with noise on one layer's map, and that noisy map."""
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
    the gradients of all images. InputError names a map that the scores do not depend on.
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
    """Return abs(dy/dm), abs(m dy/dm) where m is the map with its noise, or dy/dm where it is positive."""
    if kind == "positive_gradient":
        return gradient.clamp(min=0)
    return gradient.abs() if kind == "gradient" else (maps * gradient).abs()


def pick(logits: Float[Tensor, "*lead category"], targets: Int[Tensor, " batch"]) -> Float[Tensor, "*lead"]:
    """Return the score of each image's own target category: [..., batch, category] -> [..., batch]."""
    return logits.gather(-1, targets.expand(logits.shape[:-1])[..., None])[..., 0]

"""Find the layers whose tails can be run alone, and try each against the whole network before it is used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.gradients import run_with_noise
from torchdoctor.network.hooks import Hook, find_layer, hooked
from torchdoctor.network.tails import Call, Shortcut, Trunk, remembering
from torchdoctor.network.taps import Tap, find_layouts, layout_of, run_tapped
from torchdoctor.randomness import uniform_noise

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}  # of the largest entry; 1e-2 for other types


def find_shortcuts(model: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, Shortcut]:
    """Return a shortcut for every layer whose tail, run alone, gives what the whole network gives.

    Each is tried on two images with noise, scores and derivatives alike.

    Args:
        model: The network; it is left as it was.
        images: Normalised images [batch, channel, height, width]; the first two are used.
        layers: Names of layers.

    Returns:
        The shortcuts by layer. A layer that fails (called twice, outputs that are no tensors, state between
        calls) has none: there the whole network has to run again.
    """
    shortcuts: dict[str, Shortcut] = {}
    with frozen_eval(model):
        find_layouts(model, images, layers)
        for layer in layers:
            try:
                shortcut = _tried(model, images[:2], layer)
            except (RuntimeError, ValueError, TypeError, NotImplementedError, LookupError):
                shortcut = None
            if shortcut is not None:
                shortcuts[layer] = shortcut
    return shortcuts


def first_layer(model: nn.Module, images: Tensor, layers: Sequence[str]) -> str:
    """Return the layer whose map is ready first in a forward pass.

    Args:
        model: The network; it is left as it was.
        images: Normalised images [batch, channel, height, width]; only the first image is run.
        layers: Names of layers, at least one.

    Returns:
        One of the names.

    Raises:
        InputError: A layer does not exist, is not called once, or gives no 4-dimensional map.
    """
    order: list[str] = []

    def note(name: str) -> Tap:
        def tap(output: Tensor) -> Tensor:
            order.append(name)
            return output

        return tap

    with frozen_eval(model), torch.no_grad():
        run_tapped(model, images[:1], {layer: note(layer) for layer in layers})
    return order[0]


def _tried(model: nn.Module, images: Tensor, layer: str) -> Shortcut | None:
    """Find a layer's shortcut and try it: None unless it gives the whole network's scores and derivatives."""
    calls = _finished_before(model, images, layer)
    if calls is None:
        return None
    everything = Shortcut(layer, tuple(calls), ())
    with remembering(model, {layer: everything}) as trunk, torch.no_grad():
        model(images)
    trunk.outputs = {call: output.requires_grad_(True) for call, output in trunk.outputs.items()}
    output = trunk.outputs[everything.own].detach()
    own = layout_of(find_layer(model, layer), images, output, layer).read(output)
    shape = (own.shape[1], own.shape[2], own.shape[3])
    noise = own.std() * uniform_noise(
        torch.arange(len(own)).to(own.device),
        range(2),
        shape,
        seed=0,
        layer=layer,
        dtype=own.dtype,
    )
    logits = trunk.tail(layer, images).noisy(noise).logits
    gradients = torch.autograd.grad(logits.sum(), list(trunk.outputs.values()), allow_unused=True)
    read = {call for call, by_output in zip(trunk.outputs, gradients, strict=True) if by_output is not None}
    needed = read | {everything.own}
    chosen = Shortcut(
        layer,
        tuple(call for call in calls if call in needed),
        tuple(call for call in calls if call not in needed),
    )
    return chosen if _agrees(images, chosen, trunk, noise.detach()) else None


def _finished_before(model: nn.Module, images: Tensor, layer: str) -> list[Call] | None:
    """List the calls of modules beside the layer and its ancestors that are done before it, and its own.

    None where the layer is called twice or any of its calls gives something else than a tensor.
    """
    parts = layer.split(".")
    parents = ["", *(".".join(parts[:depth]) for depth in range(1, len(parts)))]
    beside = [
        f"{parent}.{name}".lstrip(".")
        for parent in parents
        for name, _ in model.get_submodule(parent).named_children()
    ]
    done: list[Call] = []
    no_tensor: set[Call] = set()

    def hook_for(name: str) -> Hook:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            done.append((name, sum(name == other for other, _ in done)))
            if not isinstance(output, Tensor):
                no_tensor.add(done[-1])

        return hook

    watched = [name for name in beside if name not in parents]
    with hooked((find_layer(model, name), hook_for(name)) for name in watched), torch.no_grad():
        model(images)
    before = done[: done.index((layer, 0)) + 1]
    return None if (layer, 1) in done or no_tensor & set(before) else before


def _agrees(images: Tensor, chosen: Shortcut, trunk: Trunk, noise: Tensor) -> bool:
    """Whether the tail alone gives the whole network's scores and their derivatives by the noise."""
    layer = chosen.layer
    # What nobody should read is NaN here, so that a reader would be noticed.
    everything = Shortcut(layer, chosen.needed + chosen.skipped, ())
    poisoned = Trunk(trunk.model, {layer: everything}, dict(trunk.outputs), dict(trunk.shapes))
    for call in chosen.skipped:
        poisoned.outputs[call] = torch.full_like(trunk.outputs[call], torch.nan)
    tail = poisoned.tail(layer, images).noisy(noise.clone())
    flat = noise.flatten(0, 1).clone().requires_grad_(True)
    logits, _ = run_with_noise(trunk.model, images.repeat(len(noise), 1, 1, 1), layer, flat)
    (by_tail,) = torch.autograd.grad(tail.logits.sum(), [tail.noise])
    (by_network,) = torch.autograd.grad(logits.sum(), [flat])
    bound = TOLERANCE.get(images.dtype, 1e-2)
    return _close(tail.logits.flatten(0, 1), logits, bound) and _close(
        by_tail.flatten(0, 1), by_network, bound
    )


def _close(value: Tensor, wanted: Tensor, bound: float) -> bool:
    """Whether two tensors differ by at most `bound` of the largest entry."""
    return bool((value - wanted).abs().max() <= bound * wanted.abs().max().clamp(min=1e-30))

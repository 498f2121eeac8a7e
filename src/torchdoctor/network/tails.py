"""Share the trunk: run again only what lies behind a layer, on what an earlier pass left there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.network.gradients import NoisyTail, run_with_noise
from torchdoctor.network.hooks import find_layer, keep_in, measuring, run_tapped
from torchdoctor.network.outputs import as_logits
from torchdoctor.randomness import uniform_noise

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}


Call = tuple[str, int]


@dataclass(frozen=True)
class Shortcut:
    """What need not run to get from a layer's map to the logits: calls of modules, (name, how often before).

    The tail reads the outputs of `kept`, the layer's own among them; nobody reads those of `skipped`.
    """

    layer: str
    kept: tuple[Call, ...]
    skipped: tuple[Call, ...]

    @property
    def own(self) -> Call:
        """The call whose output is the layer's map."""
        return (self.layer, 0)


@dataclass
class Trunk:
    """What one forward pass left behind: outputs that tails read, and the shapes of the others."""

    outputs: dict[Call, Tensor] = field(default_factory=dict)
    shapes: dict[Call, torch.Size] = field(default_factory=dict)


def find_shortcuts(model: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, Shortcut]:
    """Return a shortcut for every layer whose tail, run alone, gives what the whole network gives.

    Each is tried on two images with noise, scores and derivatives alike; a layer that fails (called
    twice, outputs that are no tensors, state between calls) has none and takes the long way.
    """
    found: dict[str, Shortcut] = {}
    with measuring(model):
        for layer in layers:
            try:
                shortcut = _tried(model, images[:2], layer)
            except (RuntimeError, ValueError, TypeError, NotImplementedError, LookupError):
                shortcut = None
            if shortcut is not None:
                found[layer] = shortcut
    return found


def first_layer(model: nn.Module, images: Tensor, layers: Sequence[str]) -> str:
    """Return the layer whose map is ready first in a forward pass."""
    order: list[str] = []

    def note(name: str) -> Callable[[Tensor], Tensor]:
        def tap(output: Tensor) -> Tensor:
            order.append(name)
            return output

        return tap

    with measuring(model), torch.no_grad():
        run_tapped(model, images[:1], {layer: note(layer) for layer in layers})
    return order[0]


@contextmanager
def remembering(model: nn.Module, shortcuts: Sequence[Shortcut]) -> Iterator[Trunk]:
    """Keep inside the block what the shortcuts need of a forward pass; hooks always go again.

    An output is kept as a copy, because what follows may write into it.
    """
    trunk = Trunk()
    kept = {call for one in shortcuts for call in one.kept}
    calls = kept | {call for one in shortcuts for call in one.skipped}
    names = dict.fromkeys(name for name, _ in sorted(calls))
    counts = dict.fromkeys(names, 0)

    def hook_for(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            call = (name, counts[name])
            counts[name] += 1
            if call in calls:
                trunk.shapes[call] = output.shape
            if call in kept:
                trunk.outputs[call] = output.clone()

        return hook

    handles = [find_layer(model, name).register_forward_hook(hook_for(name)) for name in names]
    try:
        yield trunk
    finally:
        for handle in handles:
            handle.remove()


def run_tail(
    model: nn.Module,
    images: Tensor,
    shortcut: Shortcut,
    trunk: Trunk,
    noise: Float[Tensor, "draw batch channel height width"],
    rows: Tensor | None = None,
) -> NoisyTail:
    """Return the scores with each draw of noise added to the layer's map, running its tail alone.

    Derivatives by the trunk's parameters flow through what `trunk` remembers. `rows` chooses images of
    the remembered batch. The network's mode is the caller's affair.
    """
    noise = noise.requires_grad_(True)
    maps = _rows(trunk.outputs[shortcut.own], rows, noise.dtype)[None] + noise
    answers = {**_answers(shortcut, trunk, rows, noise), shortcut.own: maps.flatten(0, 1).clone()}
    with _answered(model, answers):
        logits = as_logits(model(images[:1].expand(len(answers[shortcut.own]), *images.shape[1:])))
    return NoisyTail(logits.unflatten(0, tuple(noise.shape[:2])), noise, maps, "shared trunk")


def run_clean_tail(
    model: nn.Module,
    images: Tensor,
    shortcut: Shortcut,
    trunk: Trunk,
    others: Sequence[str],
    rows: Tensor | None = None,
) -> tuple[Float[Tensor, "batch category"], dict[str, Tensor]]:
    """Return the scores without noise and the maps of the shortcut's layer and of `others` behind it."""
    own = _rows(trunk.outputs[shortcut.own], rows, images.dtype)
    maps = {shortcut.layer: own if own.requires_grad else own.requires_grad_(True)}
    answers = {**_answers(shortcut, trunk, rows, own[None]), shortcut.own: own.clone()}
    with _answered(model, answers):
        blank = images[:1].expand(len(own), *images.shape[1:])
        logits = run_tapped(model, blank, {layer: keep_in(maps, layer) for layer in others})
    return logits, maps


@contextmanager
def tail_alone(
    model: nn.Module, images: Tensor, shortcut: Shortcut, trunk: Trunk, rows: Tensor | None = None
) -> Iterator[tuple[Float[Tensor, "batch channel height width"], Tensor]]:
    """Let the network answer for the remembered batch from the layer's map on.

    Yields that map, and what to call the network with.
    """
    own = _rows(trunk.outputs[shortcut.own], rows, images.dtype)
    answers = {**_answers(shortcut, trunk, rows, own[None]), shortcut.own: own}
    with _answered(model, answers):
        yield own, images[:1].expand(len(own), *images.shape[1:])


def _rows(output: Tensor, rows: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the chosen rows of a remembered output in the penalty's type."""
    return (output if rows is None else output[rows]).to(dtype)


def _answers(shortcut: Shortcut, trunk: Trunk, rows: Tensor | None, noise: Tensor) -> dict[Call, Tensor]:
    """Return what each call but the layer's own answers, once per draw: what it had, or anything."""
    draws, batch = noise.shape[:2]
    answers = {
        call: _rows(trunk.outputs[call], rows, noise.dtype).repeat(
            draws, *[1] * (trunk.outputs[call].ndim - 1)
        )
        for call in shortcut.kept
        if call != shortcut.own
    }
    for call in shortcut.skipped:
        answers[call] = noise.new_empty((draws * batch, *trunk.shapes[call][1:]))
    return answers


@contextmanager
def _answered(model: nn.Module, answers: Mapping[Call, Tensor]) -> Iterator[None]:
    """Let modules answer their first calls at once instead of running, inside the block."""
    names = dict.fromkeys(name for name, _ in answers)
    modules = {name: find_layer(model, name) for name in names}
    before = {name: module.__dict__.get("forward") for name, module in modules.items()}
    try:
        for name, module in modules.items():
            prepared = [answers[call] for call in sorted(answers) if call[0] == name]
            module.forward = _answering(prepared, module.forward)
        yield
    finally:
        for name, module in modules.items():
            if before[name] is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = before[name]


def _answering(prepared: list[Tensor], forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a forward function that gives the prepared answers one by one, and runs only after them."""

    def answer(*inputs: object, **named: object) -> Tensor:
        return prepared.pop(0) if prepared else forward(*inputs, **named)

    return answer


def _tried(model: nn.Module, images: Tensor, layer: str) -> Shortcut | None:
    """Find a layer's shortcut and try it: None unless scores and derivatives are those of the long way."""
    calls = _finished_before(model, images, layer)
    if calls is None:
        return None
    everything = Shortcut(layer, tuple(calls), ())
    with remembering(model, [everything]) as trunk, torch.no_grad():
        model(images)
    trunk.outputs = {call: one.requires_grad_(True) for call, one in trunk.outputs.items()}
    own = trunk.outputs[everything.own].detach()
    shape = (own.shape[1], own.shape[2], own.shape[3])
    noise = own.std() * uniform_noise(
        torch.arange(len(own)).to(own.device),
        range(2),
        shape,
        seed=0,
        layer=layer,
        dtype=own.dtype,
    )
    tail = run_tail(model, images, everything, trunk, noise)
    read = torch.autograd.grad(tail.logits.sum(), list(trunk.outputs.values()), allow_unused=True)
    live = {call for call, one in zip(trunk.outputs, read, strict=True) if one is not None}
    chosen = Shortcut(
        layer,
        tuple(call for call in calls if call in live or call == everything.own),
        tuple(call for call in calls if call not in live and call != everything.own),
    )
    return chosen if _agrees(model, images, chosen, trunk, noise.detach()) else None


def _finished_before(model: nn.Module, images: Tensor, layer: str) -> list[Call] | None:
    """List the calls of modules beside the layer and its ancestors that are done before it, and its own.

    None where the layer is called twice or one of them gives something else than a tensor.
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

    def hook_for(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            done.append((name, sum(name == other for other, _ in done)))
            if not isinstance(output, Tensor):
                no_tensor.add(done[-1])

        return hook

    wanted = [name for name in beside if name not in parents]
    handles = [find_layer(model, name).register_forward_hook(hook_for(name)) for name in wanted]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    before = done[: done.index((layer, 0)) + 1]
    return None if (layer, 1) in done or no_tensor & set(before) else before


def _agrees(model: nn.Module, images: Tensor, chosen: Shortcut, trunk: Trunk, noise: Tensor) -> bool:
    """Whether the tail alone gives the whole network's scores and their derivatives by the noise."""
    # What nobody should read is NaN here, so that a reader would be noticed.
    poisoned = Trunk(dict(trunk.outputs), dict(trunk.shapes))
    unread = Shortcut(chosen.layer, chosen.kept + chosen.skipped, ())
    for call in chosen.skipped:
        poisoned.outputs[call] = torch.full_like(trunk.outputs[call], torch.nan)
    short = run_tail(model, images, unread, poisoned, noise.clone())
    flat = noise.flatten(0, 1).clone().requires_grad_(True)
    long, _ = run_with_noise(model, images.repeat(len(noise), 1, 1, 1), chosen.layer, flat)
    (one,) = torch.autograd.grad(short.logits.sum(), [short.noise])
    (other,) = torch.autograd.grad(long.sum(), [flat])
    bound = TOLERANCE.get(images.dtype, 1e-2)
    return _close(short.logits.flatten(0, 1), long, bound) and _close(one.flatten(0, 1), other, bound)


def _close(one: Tensor, other: Tensor, bound: float) -> bool:
    """Whether two tensors differ by at most `bound` of the largest entry."""
    return bool((one - other).abs().max() <= bound * other.abs().max().clamp(min=1e-30))

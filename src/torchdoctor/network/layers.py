"""List the layers of a network that can be diagnosed, and choose three where the user names none."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from torchdoctor.network.gradients import score_gradients
from torchdoctor.network.hooks import keep_in, measuring, run_tapped, tapped
from torchdoctor.network.outputs import as_logits, unwrap
from torchdoctor.types import Evidence, InputError


@dataclass(frozen=True)
class Candidate:
    """A convolution in the order of the forward pass: its name and its map's [channel, height, width]."""

    name: str
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class LayerFacts:
    """What decides whether a layer is worth constraining.

    `rho` is the share of the forward pass's arithmetic after the layer, which noise draws repeat.
    `affine`: the logits are affine in its map, so that their gradient is the same for every map (a
    global average and a linear head). `reaches_earlier`: by evidence, whether a penalty there has a
    gradient for the parameters of the layer itself or of earlier ones.
    """

    name: str
    shape: tuple[int, int, int]
    rho: float
    affine: bool
    reaches_earlier: Mapping[Evidence, bool]

    @property
    def kernels(self) -> int:
        """The number of the map's channels."""
        return self.shape[0]


def candidate_layers(
    model: nn.Module, images: Float[Tensor, "batch channel height width"]
) -> tuple[Candidate, ...]:
    """Return the convolutions with a 4-dimensional map that are called once and feed the logits, in order."""
    model = unwrap(model)
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
            live: Sequence[Tensor | None] = [None] * len(maps)
            if maps and logits.requires_grad:
                live = torch.autograd.grad(logits.sum(), maps, allow_unused=True)
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


def chosen_layers(
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    wanted: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """Return the layers meant by names, patterns (`layer3.*`), `all` and `last:3`, each once, in order.

    `all` and `last` are of the candidate convolutions; a pattern too, or, where none of them fits, of all
    modules with a 4-dimensional map on the way to the logits. None: the default layers. InputError for
    what fits nothing.
    """
    if wanted is None:
        return default_layers(model, images)
    if isinstance(wanted, str):
        raise InputError(f"layers {wanted!r}: expected a list of names, as in layers=[{wanted!r}]")
    candidates: list[str] | None = None
    found: list[str] = []
    for one in wanted:
        word, _, number = one.partition(":")
        if one != "all" and word != "last" and not any(sign in one for sign in "*?["):
            found.append(one)
            continue
        if candidates is None:
            candidates = [each.name for each in candidate_layers(model, images)]
        if one == "all":
            found += candidates
        elif word == "last":
            if not number.isdecimal() or int(number) < 1:
                raise InputError(f"layers {one!r}: expected last:N with N from 1, as in last:3")
            found += candidates[-int(number) :]
        else:
            fitting = [name for name in candidates if fnmatchcase(name, one)]
            found += fitting or _blocks(model, images, one)
    names = list(dict.fromkeys(found))
    if not names:
        raise InputError("layers: an empty list; give names, all, last:N, or None for the default ones")
    if len(names) == len(wanted) and candidates is None:
        return tuple(names)
    order = compute_before(model, images[:1], names)[0]
    return tuple(sorted(names, key=lambda name: order[name]))


def _blocks(model: nn.Module, images: Tensor, pattern: str) -> list[str]:
    """Return the modules of a pattern that give a 4-dimensional map once; InputError where none does."""
    named = [name for name, _ in model.named_modules() if name and fnmatchcase(name, pattern)]
    usable = []
    for name in named:
        try:
            with measuring(model), torch.no_grad():
                run_tapped(model, images[:1], {name: torch.clone})
        except InputError:
            continue
        usable.append(name)
    if not usable:
        kind = "of which none gives a 4-dimensional map once" if named else "and no layer is called like it"
        raise InputError(
            f"layers {pattern!r}: {len(named)} modules fit, {kind}; `torchdoctor layers` lists what there is"
        )
    return usable


def norms_behind(
    model: nn.Module, images: Float[Tensor, "batch channel height width"], layers: Sequence[str]
) -> dict[str, nn.Module]:
    """Return the batch-norm that takes a layer's map as it is, for the layers that have one."""
    handed_on: dict[str, Tensor] = {}
    found: dict[str, nn.Module] = {}

    def note(name: str) -> Callable[[Tensor], Tensor]:
        def tap(output: Tensor) -> Tensor:
            handed_on[name] = output.clone()
            return handed_on[name]

        return tap

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.update({name: module for name, kept in handed_on.items() if inputs[0] is kept})

    norms = [one for one in model.modules() if isinstance(one, nn.BatchNorm2d) and one.track_running_stats]
    handles = [one.register_forward_pre_hook(look) for one in norms]
    try:
        with measuring(model), torch.no_grad():
            run_tapped(model, images[:1], {name: note(name) for name in layers})
    finally:
        for handle in handles:
            handle.remove()
    return found


def survey_layers(
    model: nn.Module, images: Float[Tensor, "batch channel height width"], also: Sequence[str] = ()
) -> tuple[LayerFacts, ...]:
    """Measure every candidate layer, and those named in `also`, on the first image, in forward order.

    In double precision where the network allows it, so that rounding cannot pass for curvature.
    """
    model, example = unwrap(model), images[:1]
    wanted = list(dict.fromkeys([one.name for one in candidate_layers(model, example)] + list(also)))
    flops, maps = compute_before(model, example, wanted)
    order = sorted(wanted, key=lambda name: flops[name])
    total = max(flops[""], 1)
    try:
        exact, double = copy.deepcopy(model).double(), example.double()
        smooth = _gradient_moves(exact, double, order)
    except (RuntimeError, TypeError):  # a network that casts inside
        exact, double = model, example
        smooth = _gradient_moves(exact, double, order)
    # A bend that shows in single precision needs no double, which takes three times as long.
    straight = [name for name, bend in _bends(model, example, order).items() if bend < 0.02]
    bends = _bends(exact, double, straight)
    tolerance = 1e-7 if double.dtype == torch.float64 else 1e-3
    return tuple(
        LayerFacts(
            name=name,
            shape=maps[name],
            rho=1.0 - flops[name] / total,
            affine=bends.get(name, 1.0) <= tolerance,
            # d abs(m g) / dm holds g itself, so that it is live wherever the layer feeds the logits.
            reaches_earlier={"gradient": smooth[name], "gradient_x_activation": True},
        )
        for name in order
    )


def compute_before(
    model: nn.Module, example: Tensor, names: Sequence[str]
) -> tuple[dict[str, int], dict[str, tuple[int, int, int]]]:
    """Return the operations up to each layer's map (`""`: of the whole pass), and the maps' shapes."""
    flops: dict[str, int] = {}
    shapes: dict[str, tuple[int, int, int]] = {}
    counter = FlopCounterMode(display=False)

    def note(name: str) -> Callable[[Tensor], Tensor]:
        def tap(output: Tensor) -> Tensor:
            flops[name] = counter.get_total_flops()
            shapes[name] = (output.shape[1], output.shape[2], output.shape[3])
            return output

        return tap

    with measuring(model), torch.no_grad(), counter, tapped(model, {name: note(name) for name in names}):
        model(example)
    return {**flops, "": counter.get_total_flops()}, shapes


def _bends(model: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Return how far the logits are from affine in each layer's map, relative to a change's own effect.

    0 where twice the change acts twice (a sigmoid's does not) and its opposite acts oppositely (a ReLU's
    does not); 1 where the change has no effect.
    """
    generator = torch.Generator().manual_seed(0)
    found: dict[str, float] = {}

    def bent(output: Tensor) -> Tensor:
        size = output[:1].std(correction=0) + 1.0  # 1: where a gate bends, however small its input
        change = size * torch.randn(output[:1].shape, generator=generator).to(output)
        return output + torch.cat([0 * change, change, 2 * change, -change])

    with measuring(model), torch.no_grad():
        for name in names:
            with tapped(model, {name: bent}):
                base, once, twice, back = as_logits(model(example.expand(4, -1, -1, -1)))
            slope = float((once - base).abs().max())
            bend = torch.stack([twice - 2 * once + base, once - 2 * base + back]).abs().max()
            found[name] = float(bend) / slope if slope > 0 else 1.0
    return found


def _gradient_moves(model: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, bool]:
    """Return for each layer whether dy/dm changes smoothly with what lies before it.

    The image moves a little, and with it every map. Behind ReLU and frozen batch-norm the gradients
    stay the same to the last bit (on hardware whose sums are not repeatable: as near as a repetition),
    unless a unit switches, which so small a step makes improbable.
    """
    step = 1e-9 if example.dtype == torch.float64 else 1e-5
    generator = torch.Generator().manual_seed(0)
    moved = example + step * torch.randn(example.shape, generator=generator).to(example)
    before, again, after = (_gradients(model, one, names) for one in (example, example, moved))
    return {
        name: bool((after[name] - before[name]).abs().max() > 2 * (again[name] - before[name]).abs().max())
        for name in names
    }


def _gradients(model: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return d y_0 / d m at each layer; InputError names one that does not feed the logits."""
    maps: dict[str, Tensor] = {}
    with measuring(model), torch.enable_grad():
        logits = run_tapped(model, example, {name: keep_in(maps, name) for name in names})
        return score_gradients([logits[:, 0]], maps)[0]

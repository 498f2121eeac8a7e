"""Find the layers that names mean, and measure what decides whether they are worth constraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from jaxtyping import Num
from torch import Tensor, nn

from torchdoctor.network.candidates import candidate_layers
from torchdoctor.network.copying import copy_of
from torchdoctor.network.curvature import bends, gradients_move
from torchdoctor.network.default_layers import default_layers
from torchdoctor.network.flops import compute_before
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.outputs import unwrap
from torchdoctor.network.taps import run_tapped, token_grids
from torchdoctor.types import Evidence, InputError


@dataclass(frozen=True)
class LayerFacts:
    """What decides whether a layer is worth constraining.

    Attributes:
        name: Its dotted name in the network.
        shape: [channel, height, width] of its map.
        rho: The share of the forward pass's arithmetic after the layer, 0 to 1: what each noise draw repeats.
        affine: Whether the logits are affine in its map, so that their gradient is the same for every map (a
            global average and a linear head).
        reaches_earlier: By evidence, whether a penalty there has a gradient for the parameters of the layer
            itself or of earlier ones.
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


def refuse_text(wanted: Sequence[str]) -> None:
    """Refuse a text where a list of layer names is expected: it would be read letter by letter.

    Args:
        wanted: What was given as layers.

    Raises:
        InputError: It is a text.
    """
    if isinstance(wanted, str):
        raise InputError(f"layers {wanted!r}: expected a list of names, as in layers=[{wanted!r}]")


def chosen_layers(
    model: nn.Module,
    images: Num[Tensor, "batch channel height width"],
    wanted: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """Return the layers that are meant by names and patterns.

    Args:
        model: The network; it is left as it was.
        images: Normalised images, as the network takes them; only the first image is run.
        wanted: Names; patterns such as `layer3.*`; `all`; `last:3`. `all` and `last` are of the candidate
            convolutions; a pattern too, or, where none of them fits, of all modules with a 4-dimensional map
            on the way to the logits. None: the default layers.

    Returns:
        The layers' names, each once, in the order of the forward pass; a list of plain names stays as it is.

    Raises:
        InputError: The list is empty or no list, or an entry fits nothing.
    """
    if wanted is None:
        return default_layers(model, images)
    refuse_text(wanted)
    candidates: list[str] | None = None
    fitting: list[str] = []
    for entry in wanted:
        word, _, number = entry.partition(":")
        if entry != "all" and word != "last" and not any(sign in entry for sign in "*?["):
            fitting.append(entry)
            continue
        if candidates is None:
            candidates = [candidate.name for candidate in candidate_layers(model, images)]
        if entry == "all":
            fitting += candidates
        elif word == "last":
            if not number.isdecimal() or int(number) < 1:
                raise InputError(f"layers {entry!r}: expected last:N with N from 1, as in last:3")
            fitting += candidates[-int(number) :]
        else:
            matches = [name for name in candidates if fnmatchcase(name, entry)]
            fitting += matches or _blocks(model, images, entry)
    names = list(dict.fromkeys(fitting))
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
            with frozen_eval(model), torch.no_grad():
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


def survey_layers(
    model: nn.Module, images: Num[Tensor, "batch channel height width"], also: Sequence[str] = ()
) -> tuple[LayerFacts, ...]:
    """Measure what decides whether each candidate layer is worth constraining.

    In double precision where the network allows it, so that rounding cannot pass for curvature.

    Args:
        model: The network; it is left as it was.
        images: Normalised images, as the network takes them; only the first image is run.
        also: Names of further layers to measure, such as blocks of convolutions.

    Returns:
        The facts of every candidate layer and of those in `also`, in the order of the forward pass.

    Raises:
        InputError: A layer in `also` does not exist, gives no 4-dimensional map or does not feed the logits.

    Example:
        >>> import torch
        >>> from torchdoctor import survey_layers
        >>> convolutions = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3)]
        >>> tail = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(6, 2)]
        >>> network = torch.nn.Sequential(*convolutions, *tail)
        >>> for facts in survey_layers(network, torch.rand(1, 3, 8, 8)):
        ...     print(facts.name, facts.kernels, f"{facts.rho:.2f}", facts.affine)
        0 4 0.47 False
        2 6 0.00 True
    """
    model, example = unwrap(model), images[:1]
    candidates = [candidate.name for candidate in candidate_layers(model, example)]
    wanted = list(dict.fromkeys(candidates + list(also)))
    flops, maps = compute_before(model, example, wanted)
    spaces = token_grids(model, example, wanted)
    order = sorted(wanted, key=lambda name: flops[name])
    total = max(flops[""], 1)
    try:
        exact, double = copy_of(model).double(), example.double()
        moves = gradients_move(exact, double, order)
    except (RuntimeError, TypeError):  # a network that casts inside
        exact, double = model, example
        moves = gradients_move(exact, double, order)
    # A bend that shows in single precision needs no double, which takes three times as long.
    straight = [name for name, bend in bends(model, example, order).items() if bend < 0.02]
    exact_bends = bends(exact, double, straight)
    tolerance = 1e-7 if double.dtype == torch.float64 else 1e-3
    return tuple(
        LayerFacts(
            name=name,
            shape=(maps[name][0], *spaces.get(name, maps[name][1:])),
            rho=1.0 - flops[name] / total,
            affine=exact_bends.get(name, 1.0) <= tolerance,
            # d abs(m g) / dm holds g itself, so that it is live wherever the layer feeds the logits.
            reaches_earlier={"gradient": moves[name], "gradient_x_activation": True},
        )
        for name in order
    )

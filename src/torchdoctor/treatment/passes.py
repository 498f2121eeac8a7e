"""Run what lies behind the constrained layers, as often as their noise asks for, on the images they judge."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.batches import Batch, take
from torchdoctor.network.double_backward import derived_twice
from torchdoctor.network.gradients import noisy_tail
from torchdoctor.network.hooks import keep_in, map_shapes, run_tapped
from torchdoctor.network.tails import Shortcut, Trunk, run_clean_tail, run_tail
from torchdoctor.randomness import uniform_noise
from torchdoctor.treatment.constraints import Constraint
from torchdoctor.types import ReduceDraws


@dataclass(frozen=True)
class Noise:
    """How sigma is drawn: J draws (0: none), and how Eq. 5-6 put them together.

    `Differs from the paper:` Eq. 5-6 sum over the draws (`reduce="sum"`); the mean, as in Eq. 4, makes
    weights independent of J.
    """

    draws: int = 1
    reduce: ReduceDraws = "mean"
    seed: int = 0


@dataclass(frozen=True)
class Tails:
    """What a forward pass left behind for its tails: shortcuts by layer, what they need, and map shapes.

    `closed` names the layers whose tail has a closed form.
    """

    shortcuts: Mapping[str, Shortcut] = field(default_factory=dict)
    closed: Collection[str] = ()
    trunk: Trunk = field(default_factory=Trunk)
    shapes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """Layers that one pass serves, the rows of the batch that they judge, and the noise (None: none)."""

    layers: Sequence[str]
    rows: Int[Tensor, " row"]
    sigma: Float[Tensor, "draw row channel height width"] | None = None
    in_closed_form: bool = False

    def chosen(self, batch: int) -> Tensor | None:
        """Return the rows, or None where they are the whole batch."""
        return None if len(self.rows) == batch else self.rows


@dataclass(frozen=True)
class Pass:
    """One forward pass: which rows of the batch it ran, logits [draw, row, category], maps by layer.

    `wanted` is what to differentiate by: the noise, or the maps themselves.
    """

    rows: Int[Tensor, " row"]
    logits: Tensor
    maps: Mapping[str, Tensor]
    wanted: Mapping[str, Tensor]


def rounds_of(
    model: nn.Module,
    batch: Batch,
    constraints: Sequence[Constraint],
    diagnosis: Diagnosis,
    noise: Noise,
    step: int,
    tails: Tails,
) -> Iterator[Round]:
    """Say which passes the constraints' layers need, on the images that they judge.

    Without noise one pass serves all layers; with it each has its own, as in Eq. 4.
    """
    layers = list(dict.fromkeys(layer for one in constraints for layer in one.layers))
    groups = [layers] if noise.draws == 0 else [[layer] for layer in layers]
    shapes = (tails.shapes or map_shapes(model, batch.images, layers)) if noise.draws else {}
    for group in groups:
        judges = [one for one in constraints if set(group) & set(one.layers)]
        rows = torch.arange(len(batch.labels))
        if all(one.needs_masks for one in judges):
            rows = rows[shown(batch)]
        if len(rows) == 0:
            continue
        if noise.draws == 0:
            yield Round(group, rows)
            continue
        sigma = diagnosis.layer(group[0]).delta * uniform_noise(
            part_of(batch, rows).ids,
            range(noise.draws),
            shapes[group[0]],
            seed=noise.seed,
            layer=group[0],
            stream="treatment",
            step=step,
            dtype=batch.images.dtype,
        )
        known = group[0] in tails.closed and group[0] in tails.shortcuts
        yield Round(group, rows, sigma, known and noise.draws > 1 and all(one.linear for one in judges))


def run_pass(model: nn.Module, batch: Batch, one: Round, tails: Tails) -> Pass:
    """Run one pass, in ways whose second derivative is cheap."""
    with derived_twice(model):
        return _run(model, batch, one, tails)


def _run(model: nn.Module, batch: Batch, one: Round, tails: Tails) -> Pass:
    """Run the tail where a shortcut is known, the whole network elsewhere."""
    part, chosen = part_of(batch, one.rows), one.chosen(len(batch.labels))
    if one.sigma is None:
        return _clean_pass(model, part, one.rows, one.layers, tails, chosen)
    layer = one.layers[0]
    shortcut = tails.shortcuts.get(layer)
    if shortcut is not None:
        tail = run_tail(model, part.images, shortcut, tails.trunk, one.sigma, chosen)
    else:
        tail = noisy_tail(model, part.images, layer, one.sigma)
    return Pass(one.rows, tail.logits, {layer: tail.maps}, {layer: tail.noise})


def _clean_pass(
    model: nn.Module,
    batch: Batch,
    rows: Tensor,
    layers: Sequence[str],
    tails: Tails,
    chosen: Tensor | None,
) -> Pass:
    """Run the tail of the first layer, or everything, and keep the maps of all layers on the way."""
    first = next((layer for layer in layers if layer in tails.shortcuts), None)
    if first is not None:
        others = [layer for layer in layers if layer != first]
        shortcut = tails.shortcuts[first]
        logits, maps = run_clean_tail(model, batch.images, shortcut, tails.trunk, others, chosen)
    else:
        maps = {}
        logits = run_tapped(model, batch.images, {layer: keep_in(maps, layer) for layer in layers})
    return Pass(rows, logits[None], maps, maps)


def shown(batch: Batch) -> Bool[Tensor, " batch"]:
    """Say on the CPU which images are annotated: choosing rows there waits for no device."""
    return torch.zeros(len(batch.labels)).bool() if batch.annotated is None else batch.annotated.cpu()


def part_of(batch: Batch, rows: Tensor) -> Batch:
    """Return the chosen rows of a batch, copied only where some are left out."""
    return batch if len(rows) == len(batch.labels) else take(batch, rows)

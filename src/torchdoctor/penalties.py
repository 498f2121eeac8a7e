"""Compute the constraints' penalties on a batch, sharing the trunk, the passes and the derivatives."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from torchdoctor.constraints import Constraint, LayerEvidence
from torchdoctor.gradients import (
    evidence_of,
    keep_in,
    map_shapes,
    noisy_tail,
    pick,
    run_tapped,
    score_gradients,
)
from torchdoctor.masks import background_mask
from torchdoctor.networks import as_logits, derived_twice
from torchdoctor.noise import uniform_noise
from torchdoctor.shortcuts import Shortcut, Trunk, run_clean_tail, run_tail
from torchdoctor.sifting import take
from torchdoctor.types import Batch, Diagnosis, ReduceDraws, Targets


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
    """What a forward pass left behind for its tails: shortcuts by layer, what they need, and map shapes."""

    shortcuts: Mapping[str, Shortcut] = field(default_factory=dict)
    trunk: Trunk = field(default_factory=Trunk)
    shapes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """One forward pass: which rows of the batch it ran, logits [draw, row, category], maps by layer.

    `wanted` is what to differentiate by: the noise, or the maps themselves.
    """

    rows: Int[Tensor, " row"]
    logits: Tensor
    maps: Mapping[str, Tensor]
    wanted: Mapping[str, Tensor]


def choose_targets(
    logits: Float[Tensor, "batch category"], labels: Int[Tensor, " batch"], targets: Targets
) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Return (n, s) of Eq. 5. `prediction`: the best two categories. `label`: the label and the runner-up."""
    if targets == "prediction":
        best = logits.detach().topk(2, dim=1).indices
        return best[:, 0], best[:, 1]
    others = logits.detach().scatter(1, labels[:, None], -math.inf)
    return labels, others.argmax(1)


def penalise(
    model: nn.Module,
    batch: Batch,
    constraints: Sequence[Constraint],
    diagnosis: Diagnosis,
    *,
    noise: Noise,
    expand_pixels: int = 0,
    step: int = 0,
    logits: Float[Tensor, "batch category"] | None = None,
    tails: Tails | None = None,
) -> dict[str, Float[Tensor, " batch"]]:
    """Return each constraint's penalty per image, summed over its layers, unweighted and differentiable.

    Batch-norm and dropout behind the layers are held in evaluation mode meanwhile: batch statistics would
    couple the images and let the network shrink the penalty without changing a logit. The penalty is
    computed in float32 at least. Images without a mask contribute 0 to constraints that need one.
    `logits` are the clean scores that choose n and s; `tails` what the pass that gave them left behind,
    so that only what lies behind the layers is run again.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        if logits is None:
            with torch.no_grad():
                logits = as_logits(model(batch.images))
        active = [one for one in constraints if one.layers]
        results = {one.name: batch.images.new_zeros(len(batch.labels)) for one in constraints}
        with derived_twice(model):
            passes = list(_passes(model, batch, active, diagnosis, noise, step, tails or Tails()))
        for evidence, rows, one in _evidence(batch, logits, passes, active, diagnosis, expand_pixels):
            value = scaled_penalty(one, evidence, noise.reduce)
            if one.needs_masks:
                value = value.where(_shown(batch)[rows].to(value.device), torch.zeros_like(value))
            results[one.name] = results[one.name].index_add(0, rows.to(value.device), value)
        return results
    finally:
        for module, mode in training.items():
            module.training = mode


def scaled_penalty(
    constraint: Constraint, evidence: LayerEvidence, reduce: ReduceDraws
) -> Float[Tensor, " batch"]:
    """Return a penalty per image: put the draws together, then divide the whole by the evidence it judges.

    `share` divides by E(y_n), or by E(y_n) + E(y_s) where the runner-up is used; an image without any
    evidence contributes 0.
    """

    def over_draws(values: Float[Tensor, "draw batch"]) -> Float[Tensor, " batch"]:
        return values.mean(0) if reduce == "mean" else values.sum(0)

    value = over_draws(constraint.penalty(evidence))
    if constraint.scale == "none":
        return value
    total = over_draws(evidence.target_by_kernel.sum(-1))
    if constraint.uses_runner_up:
        total = total + over_draws(evidence.runner_up_by_kernel.sum(-1))
    return torch.where(total > 0, value / total.where(total > 0, torch.ones_like(total)), 0.0 * value)


def _shown(batch: Batch) -> Bool[Tensor, " batch"]:
    """Say on the CPU which images are annotated: choosing rows there waits for no device."""
    return torch.zeros(len(batch.labels)).bool() if batch.annotated is None else batch.annotated.cpu()


def _evidence(
    batch: Batch,
    logits: Tensor,
    passes: Sequence[Pass],
    constraints: Sequence[Constraint],
    diagnosis: Diagnosis,
    expand_pixels: int,
) -> Iterator[tuple[LayerEvidence, Tensor, Constraint]]:
    """Yield the evidence that each constraint asks for, layer by layer, and the rows it is of.

    All layers share one derivative call for y_n and one for y_s, made only where somebody reads it.
    """
    for targets in dict.fromkeys(one.targets for one in constraints):
        group = [one for one in constraints if one.targets == targets]
        label, other = choose_targets(logits, batch.labels, targets)
        judged = {layer for one in group for layer in one.layers}
        rivalled = {layer for one in group if one.uses_runner_up for layer in one.layers}
        by_label, by_other = _gradients(passes, label, judged), _gradients(passes, other, rivalled)
        for one_pass in passes:
            part = _part(batch, one_pass.rows)
            for layer in [one for one in one_pass.maps if one in judged]:
                maps = one_pass.maps[layer]
                correlated, diagnosed = _rows_of(diagnosis, layer, maps.device)
                background = _background(part, maps, expand_pixels)
                for kind in dict.fromkeys(one.evidence for one in group if layer in one.layers):
                    target = _with_draws(evidence_of(by_label[layer], maps, kind))
                    rival = (
                        _with_draws(evidence_of(by_other[layer], maps, kind))
                        if layer in by_other
                        else torch.zeros_like(target)
                    )
                    evidence = LayerEvidence(
                        layer=layer,
                        target=target,
                        runner_up=rival,
                        target_category=label[one_pass.rows],
                        runner_up_category=other[one_pass.rows],
                        correlated=correlated,
                        diagnosed=diagnosed,
                        background=background,
                    )
                    for one in group:
                        if layer in one.layers and one.evidence == kind:
                            yield evidence, one_pass.rows, one


def _part(batch: Batch, rows: Tensor) -> Batch:
    """Return the chosen rows of a batch, copied only where some are left out."""
    return batch if len(rows) == len(batch.labels) else take(batch, rows)


def _with_draws(evidence: Tensor) -> Float[Tensor, "draw batch kernel height width"]:
    """Return the evidence with an axis of draws: one where there is no noise."""
    return evidence if evidence.ndim == 5 else evidence[None]


def _gradients(passes: Sequence[Pass], category: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
    """Differentiate the categories' scores, summed over images, draws and passes, by these maps at once."""
    wanted = {layer: one for each in passes for layer, one in each.wanted.items() if layer in layers}
    scores = [pick(one.logits, category[one.rows]).sum() for one in passes if set(one.maps) & set(layers)]
    return score_gradients([torch.stack(scores).sum()], wanted, create_graph=True)[0] if scores else {}


def _passes(
    model: nn.Module,
    batch: Batch,
    constraints: Sequence[Constraint],
    diagnosis: Diagnosis,
    noise: Noise,
    step: int,
    tails: Tails,
) -> Iterator[Pass]:
    """Run what the constraints' layers need, on the images that they judge.

    Without noise one pass serves all layers; with it each has its own, as in Eq. 4.
    """
    layers = list(dict.fromkeys(layer for one in constraints for layer in one.layers))
    groups = [layers] if noise.draws == 0 else [[layer] for layer in layers]
    shapes = (tails.shapes or map_shapes(model, batch.images, layers)) if noise.draws else {}
    for group in groups:
        judges = [one for one in constraints if set(group) & set(one.layers)]
        shown, rows = _shown(batch), torch.arange(len(batch.labels))
        if all(one.needs_masks for one in judges):
            rows = rows[shown]
        if len(rows) == 0:
            continue
        chosen = None if len(rows) == len(shown) else rows
        part = _part(batch, rows)
        if noise.draws == 0:
            yield _clean_pass(model, part, rows, group, tails, chosen)
            continue
        layer = group[0]
        sigma = diagnosis.layer(layer).delta * uniform_noise(
            part.ids,
            range(noise.draws),
            shapes[layer],
            seed=noise.seed,
            layer=layer,
            stream="treatment",
            step=step,
            dtype=part.images.dtype,
        )
        shortcut = tails.shortcuts.get(layer)
        if shortcut is not None:
            tail = run_tail(model, part.images, shortcut, tails.trunk, sigma, chosen)
        else:
            tail = noisy_tail(model, part.images, layer, sigma)
        yield Pass(rows, tail.logits, {layer: tail.maps}, {layer: tail.noise})


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


def _rows_of(diagnosis: Diagnosis, layer: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the layer's correlated kernels and the diagnosed categories as tensors."""
    correlated = torch.from_numpy(diagnosis.layer(layer).correlated).to(device)
    return correlated, torch.from_numpy(diagnosis.counts > 0).to(device)


def _background(batch: Batch, maps: Tensor, expand_pixels: int) -> Float[Tensor, "batch 1 height width"]:
    """Return the background mask at the size of the map, 0 for images without a mask."""
    size = (maps.shape[-2], maps.shape[-1])
    everywhere = maps.new_zeros(len(batch.labels), 1, *size)
    rows = torch.arange(len(batch.labels))[_shown(batch)]
    if batch.masks is None or len(rows) == 0:
        return everywhere
    mask = background_mask(batch.masks[rows].to(maps), size, expand_pixels)
    return everywhere.index_copy(0, rows.to(maps.device), mask)

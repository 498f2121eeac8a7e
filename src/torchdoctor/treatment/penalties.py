"""Compute the constraints' penalties on a batch, sharing the trunk, the passes and the derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.evidence.mean_over_draws import MeanEvidence, mean_evidence
from torchdoctor.images.batches import Batch
from torchdoctor.images.masks import background_mask
from torchdoctor.network.gradients import evidence_of, pick, score_gradients
from torchdoctor.network.outputs import as_logits
from torchdoctor.treatment.constraints import Constraint, LayerEvidence
from torchdoctor.treatment.passes import Noise, Pass, Round, Tails, part_of, rounds_of, run_pass, shown
from torchdoctor.types import PenaltyEvidence, ReduceDraws, Targets

Pair = tuple[Tensor, Tensor]  # the evidence of y_n and of y_s


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
    modes = {module: module.training for module in model.modules() if module.training}
    _set_modes(dict.fromkeys(modes, False))
    try:
        if logits is None:
            with torch.no_grad():
                logits = as_logits(model(batch.images))
        active = [one for one in constraints if one.layers]
        results = {one.name: batch.images.new_zeros(len(batch.labels)) for one in constraints}
        tails = tails or Tails()
        rounds = list(rounds_of(model, batch, active, diagnosis, noise, step, tails))
        short = [one for one in rounds if one.in_closed_form]
        passes = [run_pass(model, batch, one, tails) for one in rounds if not one.in_closed_form]
        for evidence, rows, one in chain(
            _evidence(batch, logits, passes, active, diagnosis, expand_pixels),
            _mean_evidence(model, batch, logits, short, active, diagnosis, noise, expand_pixels, tails),
        ):
            value = scaled_penalty(one, evidence, noise.reduce)
            if one.needs_masks:
                value = value.where(shown(batch)[rows].to(value.device), torch.zeros_like(value))
            results[one.name] = results[one.name].index_add(0, rows.to(value.device), value)
        return results
    finally:
        _set_modes(modes)


def _set_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Put modules into training or evaluation mode; past __setattr__ of modules, which is slow."""
    for module, mode in modes.items():
        module.__dict__["training"] = mode


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
    for group, label, other, judged, rivalled in _by_targets(batch, logits, constraints):
        by_label, by_other = _gradients(passes, label, judged), _gradients(passes, other, rivalled)
        for one_pass in passes:
            for layer in [one for one in one_pass.maps if one in judged]:
                maps = one_pass.maps[layer]
                both = partial(_both, maps, by_label[layer], by_other.get(layer))
                mine = [one for one in group if layer in one.layers]
                scene = _scene(batch, one_pass.rows, layer, maps, label, other, diagnosis, expand_pixels)
                yield from _shared(scene, one_pass.rows, mine, both)


def _mean_evidence(
    model: nn.Module,
    batch: Batch,
    logits: Tensor,
    rounds: Sequence[Round],
    constraints: Sequence[Constraint],
    diagnosis: Diagnosis,
    noise: Noise,
    expand_pixels: int,
    tails: Tails,
) -> Iterator[tuple[LayerEvidence, Tensor, Constraint]]:
    """Yield the same for layers in closed form: evidence put together over the draws, as a single draw."""
    for one in rounds:
        assert one.sigma is not None
        (layer,), rows = one.layers, one.rows
        part = part_of(batch, rows)
        found = mean_evidence(
            model, part.images, tails.shortcuts[layer], tails.trunk, one.sigma, one.chosen(len(batch.labels))
        )
        times = len(one.sigma) if noise.reduce == "sum" else 1
        for group, label, other, judged, rivalled in _by_targets(batch, logits, constraints):
            if layer not in judged:
                continue
            rival = other[rows] if layer in rivalled else None
            both = partial(_both_means, found, label[rows], rival, times)
            mine = [each for each in group if layer in each.layers]
            scene = _scene(batch, rows, layer, found.maps, label, other, diagnosis, expand_pixels)
            yield from _shared(scene, rows, mine, both)


def _both(maps: Tensor, by_label: Tensor, by_other: Tensor | None, kind: PenaltyEvidence) -> Pair:
    """Return the evidence of y_n and of y_s from the gradients; nothing where nobody reads that of y_s."""
    target = _with_draws(evidence_of(by_label, maps, kind))
    if by_other is None:
        return target, torch.zeros_like(target)
    return target, _with_draws(evidence_of(by_other, maps, kind))


def _both_means(
    found: MeanEvidence, label: Tensor, other: Tensor | None, times: int, kind: PenaltyEvidence
) -> Pair:
    """Return the mean evidence of y_n and of y_s, `times` it where draws are summed."""
    target = times * found.of(label, kind)
    return target, torch.zeros_like(target) if other is None else times * found.of(other, kind)


def _by_targets(
    batch: Batch, logits: Tensor, constraints: Sequence[Constraint]
) -> Iterator[tuple[list[Constraint], Tensor, Tensor, set[str], set[str]]]:
    """Yield the constraints that choose n and s alike, with n, s, and the layers that each is read at."""
    for targets in dict.fromkeys(one.targets for one in constraints):
        group = [one for one in constraints if one.targets == targets]
        label, other = choose_targets(logits, batch.labels, targets)
        judged = {layer for one in group for layer in one.layers}
        rivalled = {layer for one in group if one.uses_runner_up for layer in one.layers}
        yield group, label, other, judged, rivalled


def _scene(
    batch: Batch,
    rows: Tensor,
    layer: str,
    maps: Tensor,
    label: Tensor,
    other: Tensor,
    diagnosis: Diagnosis,
    expand_pixels: int,
) -> LayerEvidence:
    """Return everything that a penalty sees of a layer but the evidence itself."""
    correlated, diagnosed = _rows_of(diagnosis, layer, maps.device)
    return LayerEvidence(
        layer=layer,
        target=_with_draws(maps),
        runner_up=_with_draws(maps),
        target_category=label[rows],
        runner_up_category=other[rows],
        correlated=correlated,
        diagnosed=diagnosed,
        background=_background(part_of(batch, rows), maps, expand_pixels),
    )


def _shared(
    scene: LayerEvidence,
    rows: Tensor,
    constraints: Sequence[Constraint],
    evidence: Callable[[PenaltyEvidence], Pair],
) -> Iterator[tuple[LayerEvidence, Tensor, Constraint]]:
    """Yield the scene with the evidence of each kind, once for all constraints that read it."""
    for kind in dict.fromkeys(one.evidence for one in constraints):
        target, rival = evidence(kind)
        seen = replace(scene, target=target, runner_up=rival)
        for one in constraints:
            if one.evidence == kind:
                yield seen, rows, one


def _with_draws(evidence: Tensor) -> Float[Tensor, "draw batch kernel height width"]:
    """Return the evidence with an axis of draws: one where there is no noise."""
    return evidence if evidence.ndim == 5 else evidence[None]


def _gradients(passes: Sequence[Pass], category: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
    """Differentiate the categories' scores, summed over images, draws and passes, by these maps at once."""
    wanted = {layer: one for each in passes for layer, one in each.wanted.items() if layer in layers}
    scores = [pick(one.logits, category[one.rows]).sum() for one in passes if set(one.maps) & set(layers)]
    return score_gradients([torch.stack(scores).sum()], wanted, create_graph=True)[0] if scores else {}


def _rows_of(diagnosis: Diagnosis, layer: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the layer's correlated kernels and the diagnosed categories as tensors."""
    correlated = torch.from_numpy(diagnosis.layer(layer).correlated).to(device)
    return correlated, torch.from_numpy(diagnosis.counts > 0).to(device)


def _background(batch: Batch, maps: Tensor, expand_pixels: int) -> Float[Tensor, "batch 1 height width"]:
    """Return the background mask at the size of the map, 0 for images without a mask."""
    size = (maps.shape[-2], maps.shape[-1])
    everywhere = maps.new_zeros(len(batch.labels), 1, *size)
    rows = torch.arange(len(batch.labels))[shown(batch)]
    if batch.masks is None or len(rows) == 0:
        return everywhere
    mask = background_mask(batch.masks[rows].to(maps), size, expand_pixels)
    return everywhere.index_copy(0, rows.to(maps.device), mask)

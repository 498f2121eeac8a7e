"""Compute the constraints' penalties on a batch, sharing the trunk, the passes and the derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from torchdoctor.network.kept_tensors import without_kept_tensors
from torchdoctor.network.layouts import off_grid
from torchdoctor.network.outputs import as_logits
from torchdoctor.network.tails import Trunk
from torchdoctor.network.taps import token_grids
from torchdoctor.network.workarounds import second_derivatives
from torchdoctor.treatment.constraints import Constraint, LayerEvidence
from torchdoctor.treatment.passes import Noise, Pass, PlannedPass, Tails, annotated_rows, part_of, plan_passes
from torchdoctor.types import PenaltyEvidence, ReduceDraws, Targets

Pair = tuple[Tensor, Tensor]  # the evidence of y_n and of y_s
Judgement = tuple[LayerEvidence, Tensor, Constraint]  # what a constraint sees, of which rows


def choose_targets(
    logits: Float[Tensor, "batch category"], labels: Int[Tensor, " batch"], targets: Targets
) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Choose the categories n and s of Eq. 5.

    Args:
        logits: The scores without noise.
        labels: The number of each image's label.
        targets: `prediction`: the two categories with the highest scores. `label`: the label, and the
            category with the highest score among the others.

    Returns:
        The numbers of n and of s, by image.
    """
    if targets == "prediction":
        best = logits.detach().topk(2, dim=1).indices
        return best[:, 0], best[:, 1]
    others = logits.detach().scatter(1, labels[:, None], -math.inf)
    return labels, others.argmax(1)


@second_derivatives()
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
    """Compute each constraint's penalty, summed over its layers (Eq. 5-6).

    Batch-norm and dropout behind the layers are held in evaluation mode meanwhile: batch statistics would
    couple the images and let the network shrink the penalty without changing a logit. The penalty is
    computed in float32 at least.

    Args:
        model: The network; its modules' modes are left as they were.
        batch: The images, on the network's device and in its type.
        constraints: The constraints, each with its layers.
        diagnosis: Which kernels are correlated with which categories, and the range of each layer's noise.
        noise: How the noise is drawn.
        expand_pixels: By how many pixels of the image the object's mask is grown in every direction.
        step: The number of the step, which keys the noise.
        logits: The scores without noise, which choose n and s; None: to be computed.
        tails: What the pass that gave them left behind, so that only what lies behind the layers is run
            again; None: the whole network is.

    Returns:
        The penalties by the constraints' names: a value for each image, unweighted, differentiable by the
        weights; 0 for an image without a mask where the constraint needs masks.

    Raises:
        InputError: A layer cannot be used.
    """
    with _held_still(model):
        if logits is None:
            with torch.no_grad():
                logits = as_logits(model(batch.images))
        active = [constraint for constraint in constraints if constraint.layers]
        results = {constraint.name: batch.images.new_zeros(len(batch.labels)) for constraint in constraints}
        plans = list(plan_passes(batch, active, diagnosis, noise, step, tails or Tails(Trunk(model))))
        in_closed_form = [plan for plan in plans if plan.in_closed_form]
        passes = [plan.run() for plan in plans if not plan.in_closed_form]
        layers = [layer for constraint in active for layer in constraint.layers]
        places = token_grids(model, batch.images, layers)
        judged = _Judged(batch, logits, active, diagnosis, expand_pixels, places)
        for evidence, rows, constraint in chain(
            _evidence(judged, passes), _mean_evidence(judged, in_closed_form, noise.reduce)
        ):
            value = scaled_penalty(constraint, evidence, noise.reduce)
            if constraint.needs_masks:
                value = value.where(annotated_rows(batch)[rows].to(value.device), torch.zeros_like(value))
            results[constraint.name] = results[constraint.name].index_add(0, rows.to(value.device), value)
        return results


@contextmanager
def _held_still(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode inside the block, without tensors that it kept (see there)."""
    modes = {module: module.training for module in model.modules() if module.training}
    _set_modes(dict.fromkeys(modes, False))
    try:
        with without_kept_tensors(model):
            yield
    finally:
        _set_modes(modes)


def _set_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Put modules into training or evaluation mode; past __setattr__ of modules, which is slow."""
    for module, mode in modes.items():
        module.__dict__["training"] = mode


def scaled_penalty(
    constraint: Constraint, evidence: LayerEvidence, reduce: ReduceDraws
) -> Float[Tensor, " batch"]:
    """Compute the penalty of a constraint at a layer: put the draws together, then scale.

    Args:
        constraint: The constraint. Its scale `share` divides by the evidence that it judges: E(y_n), or
            E(y_n) + E(y_s) where it uses the runner-up.
        evidence: What it sees of the layer.
        reduce: How the draws are put together.

    Returns:
        The penalty per image; 0 for a `share` of no evidence at all.
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


@dataclass(frozen=True)
class _Group:
    """Constraints that choose n and s alike, these categories, and the layers at which each is read."""

    constraints: Sequence[Constraint]
    target: Int[Tensor, " batch"]
    runner_up: Int[Tensor, " batch"]
    target_layers: Collection[str]
    runner_up_layers: Collection[str]

    def judges(self, layer: str) -> list[Constraint]:
        """Return the constraints on a layer."""
        return [constraint for constraint in self.constraints if layer in constraint.layers]


@dataclass(frozen=True)
class _Judged:
    """A batch with its scores, and everything by which its evidence is judged but the evidence itself."""

    batch: Batch
    logits: Float[Tensor, "batch category"]
    constraints: Sequence[Constraint]
    diagnosis: Diagnosis
    expand_pixels: int
    places: Mapping[str, tuple[int, int]]

    def groups(self) -> Iterator[_Group]:
        """Yield the constraints that choose n and s alike together."""
        for targets in dict.fromkeys(constraint.targets for constraint in self.constraints):
            alike = [constraint for constraint in self.constraints if constraint.targets == targets]
            target, runner_up = choose_targets(self.logits, self.batch.labels, targets)
            layers = {layer for constraint in alike for layer in constraint.layers}
            runner_up_layers = {
                layer for constraint in alike if constraint.uses_runner_up for layer in constraint.layers
            }
            yield _Group(alike, target, runner_up, layers, runner_up_layers)

    def judgements(
        self,
        group: _Group,
        layer: str,
        rows: Tensor,
        maps: Tensor,
        evidence: Callable[[PenaltyEvidence], Pair],
    ) -> Iterator[Judgement]:
        """Yield what each constraint of a group sees of a layer; evidence once for all that read its kind."""
        constraints = group.judges(layer)
        correlated, diagnosed = _rows_of(self.diagnosis, layer, maps.device)
        background = _background(part_of(self.batch, rows), maps, self.expand_pixels, self.places.get(layer))
        for kind in dict.fromkeys(constraint.evidence for constraint in constraints):
            target, runner_up = evidence(kind)
            seen = LayerEvidence(
                layer=layer,
                target=target,
                runner_up=runner_up,
                target_category=group.target[rows],
                runner_up_category=group.runner_up[rows],
                correlated=correlated,
                diagnosed=diagnosed,
                background=background,
            )
            for constraint in constraints:
                if constraint.evidence == kind:
                    yield seen, rows, constraint


def _evidence(judged: _Judged, passes: Sequence[Pass]) -> Iterator[Judgement]:
    """Yield the evidence that each constraint asks for, layer by layer, and the rows it is of.

    All layers share a derivative call for y_n and another for y_s; each is made only where it is needed.
    """
    for group in judged.groups():
        by_target = _gradients(passes, group.target, group.target_layers)
        by_runner_up = _gradients(passes, group.runner_up, group.runner_up_layers)
        for run in passes:
            for layer in [layer for layer in run.maps if layer in group.target_layers]:
                maps = run.maps[layer]
                both = partial(_both, maps, by_target[layer], by_runner_up.get(layer))
                yield from judged.judgements(group, layer, run.rows, maps, both)


def _mean_evidence(judged: _Judged, plans: Sequence[PlannedPass], reduce: ReduceDraws) -> Iterator[Judgement]:
    """Yield the same for layers in closed form: evidence put together over the draws, as a single draw."""
    for plan in plans:
        assert plan.noise is not None
        layer, rows = plan.tail.layer, plan.rows
        mean = mean_evidence(plan.tail, plan.noise)
        times = len(plan.noise) if reduce == "sum" else 1
        for group in judged.groups():
            if layer not in group.target_layers:
                continue
            runner_up = group.runner_up[rows] if layer in group.runner_up_layers else None
            both = partial(_both_means, mean, group.target[rows], runner_up, times)
            yield from judged.judgements(group, layer, rows, mean.maps, both)


def _both(maps: Tensor, by_target: Tensor, by_runner_up: Tensor | None, kind: PenaltyEvidence) -> Pair:
    """Return the evidence of y_n and of y_s from the gradients; zeros where nobody reads that of y_s."""
    target = _with_draws(evidence_of(by_target, maps, kind))
    if by_runner_up is None:
        return target, torch.zeros_like(target)
    return target, _with_draws(evidence_of(by_runner_up, maps, kind))


def _both_means(
    mean: MeanEvidence, target: Tensor, runner_up: Tensor | None, times: int, kind: PenaltyEvidence
) -> Pair:
    """Return the mean evidence of y_n and of y_s, `times` it where draws are summed."""
    of_target = times * mean.of(target, kind)
    if runner_up is None:
        return of_target, torch.zeros_like(of_target)
    return of_target, times * mean.of(runner_up, kind)


def _with_draws(evidence: Tensor) -> Float[Tensor, "draw batch kernel height width"]:
    """Return the evidence with an axis of draws: a single draw where there is no noise."""
    return evidence if evidence.ndim == 5 else evidence[None]


def _gradients(passes: Sequence[Pass], category: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
    """Differentiate the categories' scores, summed over images, draws and passes, by these maps at once."""
    wanted = {
        layer: tensor for run in passes for layer, tensor in run.differentiable.items() if layer in layers
    }
    scores = [pick(run.logits, category[run.rows]).sum() for run in passes if set(run.maps) & set(layers)]
    return score_gradients([torch.stack(scores).sum()], wanted, create_graph=True)[0] if scores else {}


def _rows_of(diagnosis: Diagnosis, layer: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the layer's correlated kernels and the diagnosed categories as tensors."""
    correlated = torch.from_numpy(diagnosis.layer(layer).correlated).to(device)
    return correlated, torch.from_numpy(diagnosis.counts > 0).to(device)


def _background(
    batch: Batch, maps: Tensor, expand_pixels: int, grid: tuple[int, int] | None
) -> Float[Tensor, "batch 1 height width"]:
    """Return the background mask at the size of the map: 0 without a mask, and at tokens without a place."""
    size = (maps.shape[-2], maps.shape[-1])
    everywhere = maps.new_zeros(len(batch.labels), 1, *size)
    rows = torch.arange(len(batch.labels))[annotated_rows(batch)]
    if batch.masks is None or len(rows) == 0:
        return everywhere
    mask = off_grid(background_mask(batch.masks[rows].to(maps), grid or size, expand_pixels), size)
    return everywhere.index_copy(0, rows.to(maps.device), mask)

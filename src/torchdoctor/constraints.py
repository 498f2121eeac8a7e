"""Penalise evidence that lies on the wrong kernels (Eq. 5) or on the background (Eq. 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

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
from torchdoctor.networks import as_logits
from torchdoctor.noise import uniform_noise
from torchdoctor.sifting import take
from torchdoctor.types import (
    Batch,
    Diagnosis,
    Evidence,
    InputError,
    ReduceDraws,
    Scale,
    Targets,
    check_choice,
)


@dataclass(frozen=True)
class LayerEvidence:
    """What a penalty sees of one layer: the evidence of a batch, draw by draw, ready to be differentiated.

    `target` is evidence(y_n) and `runner_up` evidence(y_s), each [draw, batch, kernel, height, width]
    and >= 0; `background` is 1 - object at the size of the map, 0 everywhere for images without a mask;
    `correlated[c]` marks the kernels of category c, `diagnosed[c]` says whether that row means anything.
    """

    layer: str
    target: Float[Tensor, "draw batch kernel height width"]
    runner_up: Float[Tensor, "draw batch kernel height width"]
    target_category: Int[Tensor, " batch"]
    runner_up_category: Int[Tensor, " batch"]
    correlated: Bool[Tensor, "category kernel"]
    diagnosed: Bool[Tensor, " category"]
    background: Float[Tensor, "batch 1 height width"]


Penalty = Callable[[LayerEvidence], Float[Tensor, "draw batch"]]


def channel_wise(evidence: LayerEvidence) -> Float[Tensor, "draw batch"]:
    """Sum the target's evidence on kernels not correlated with it, and all of the runner-up's (Eq. 5).

    The first term is skipped for categories that were not diagnosed.
    """
    wrong = ~evidence.correlated & evidence.diagnosed[:, None]
    unrelated = wrong[evidence.target_category].to(evidence.target)
    first = (evidence.target.sum((-2, -1)) * unrelated).sum(-1)
    return first + evidence.runner_up.sum((-3, -2, -1))


def space_wise(evidence: LayerEvidence) -> Float[Tensor, "draw batch"]:
    """Sum the target's evidence on the background over all kernels (Eq. 6)."""
    return (evidence.target * evidence.background).sum((-3, -2, -1))


@dataclass(frozen=True)
class Constraint:
    """A penalty on one set of layers with its evidence, scale and weight: one sum of Eq. 7.

    `penalty` is any function from `LayerEvidence` to one value per draw and image. `weight="auto"` asks
    `treat` to measure one. `uses_runner_up` and `needs_masks` say what the penalty reads; a constraint
    that needs masks is computed on the annotated images only.
    """

    name: str
    penalty: Penalty
    layers: tuple[str, ...] = ()
    evidence: Evidence = "gradient_x_activation"
    scale: Scale = "share"
    weight: float | Literal["auto"] = "auto"
    uses_runner_up: bool = True
    needs_masks: bool = False


CONSTRAINTS: Mapping[str, Constraint] = {
    "channel": Constraint("channel", channel_wise),
    "space": Constraint("space", space_wise, uses_runner_up=False, needs_masks=True),
}


@dataclass(frozen=True)
class Noise:
    """How sigma is drawn: J draws (0: none), and how Eq. 5-6 put them together.

    `Differs from the paper:` Eq. 5-6 sum over the draws (`reduce="sum"`); the mean, as in Eq. 4, makes
    weights independent of J.
    """

    draws: int = 1
    reduce: ReduceDraws = "mean"
    seed: int = 0


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
    targets: Targets = "prediction",
    expand_pixels: int = 0,
    step: int = 0,
    logits: Float[Tensor, "batch category"] | None = None,
    shapes: Mapping[str, tuple[int, int, int]] | None = None,
) -> dict[str, Float[Tensor, " batch"]]:
    """Return each constraint's penalty per image, summed over its layers, unweighted and differentiable.

    Batch-norm and dropout are held in evaluation mode meanwhile: batch statistics would couple the
    images and let the network shrink the penalty without changing a logit. The penalty is computed in
    float32 at least. Images without a mask contribute 0 to constraints that need one. `logits` are the
    clean scores that choose n and s, and `shapes` those of the maps, where they are known already.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        if logits is None:
            with torch.no_grad():
                logits = as_logits(model(batch.images))
        if shapes is None and noise.draws:
            layers = list(dict.fromkeys(layer for one in constraints for layer in one.layers))
            shapes = map_shapes(model, batch.images, layers)
        return _penalise(
            model, batch, constraints, diagnosis, noise, targets, expand_pixels, step, logits, shapes or {}
        )
    finally:
        for module, mode in training.items():
            module.training = mode


def _penalise(
    model: nn.Module,
    batch: Batch,
    constraints: Sequence[Constraint],
    diagnosis: Diagnosis,
    noise: Noise,
    targets: Targets,
    expand_pixels: int,
    step: int,
    logits: Tensor,
    shapes: Mapping[str, tuple[int, int, int]],
) -> dict[str, Tensor]:
    """Group the constraints by the images they need, so that each group shares its passes."""
    everyone = torch.arange(len(batch.labels), device=batch.labels.device)
    masked = everyone[batch.annotated] if batch.annotated is not None else everyone[:0]
    results = {one.name: batch.images.new_zeros(len(everyone)) for one in constraints}
    for needs_masks, rows in ((False, everyone), (True, masked)):
        group = [one for one in constraints if one.needs_masks == needs_masks and one.layers]
        if not group or len(rows) == 0:
            continue
        part = take(batch, rows)
        for layer, evidence in _evidence(
            model, part, group, diagnosis, noise, targets, expand_pixels, step, logits[rows], shapes
        ).items():
            for one in group:
                if layer in one.layers:
                    value = scaled_penalty(one, evidence[one.evidence], noise.reduce)
                    results[one.name] = results[one.name].index_add(0, rows, value)
    return results


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
    total = over_draws(evidence.target.sum((-3, -2, -1)))
    if constraint.uses_runner_up:
        total = total + over_draws(evidence.runner_up.sum((-3, -2, -1)))
    return torch.where(total > 0, value / total.where(total > 0, torch.ones_like(total)), 0.0 * value)


def _evidence(
    model: nn.Module,
    batch: Batch,
    constraints: Sequence[Constraint],
    diagnosis: Diagnosis,
    noise: Noise,
    targets: Targets,
    expand_pixels: int,
    step: int,
    logits: Tensor,
    shapes: Mapping[str, tuple[int, int, int]],
) -> dict[str, dict[Evidence, LayerEvidence]]:
    """Compute the evidence of every needed layer and kind; the runner-up's only where somebody reads it."""
    layers = list(dict.fromkeys(layer for one in constraints for layer in one.layers))
    rival = any(one.uses_runner_up for one in constraints)
    label, other = choose_targets(logits, batch.labels, targets)
    found: dict[str, dict[Evidence, LayerEvidence]] = {}
    for noisy, maps, wanted in _passes(model, batch, layers, diagnosis, noise, step, shapes):
        scores = [pick(noisy, label)] + ([pick(noisy, other)] if rival else [])
        gradients = score_gradients(scores, wanted, create_graph=True)
        for layer, one_map in maps.items():
            correlated, diagnosed = _rows_of(diagnosis, layer, one_map.device)
            found[layer] = {}
            for kind in dict.fromkeys(one.evidence for one in constraints if layer in one.layers):
                each = [evidence_of(one[layer], one_map, kind) for one in gradients]
                each = [one if one.ndim == 5 else one[None] for one in each]
                found[layer][kind] = LayerEvidence(
                    layer=layer,
                    target=each[0],
                    runner_up=each[1] if rival else torch.zeros_like(each[0]),
                    target_category=label,
                    runner_up_category=other,
                    correlated=correlated,
                    diagnosed=diagnosed,
                    background=_background(batch, one_map, expand_pixels),
                )
    return found


Pass = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]


def _passes(
    model: nn.Module,
    batch: Batch,
    layers: Sequence[str],
    diagnosis: Diagnosis,
    noise: Noise,
    step: int,
    shapes: Mapping[str, tuple[int, int, int]],
) -> Iterator[Pass]:
    """Yield (logits [draw, batch, category], maps by layer, what to differentiate by), pass by pass.

    Without noise all layers share one pass; with it each layer has its own, as in Eq. 4.
    """
    if noise.draws == 0:
        stored: dict[str, Tensor] = {}
        logits = run_tapped(model, batch.images, {layer: keep_in(stored, layer) for layer in layers})
        yield logits[None], stored, stored
        return
    for layer in layers:
        sigma = diagnosis.layer(layer).delta * uniform_noise(
            batch.ids,
            range(noise.draws),
            shapes[layer],
            seed=noise.seed,
            layer=layer,
            stream="treatment",
            step=step,
            dtype=batch.images.dtype,
        )
        tail = noisy_tail(model, batch.images, layer, sigma)
        yield tail.logits, {layer: tail.maps}, {layer: tail.noise}


def _rows_of(diagnosis: Diagnosis, layer: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the layer's correlated kernels and the diagnosed categories as tensors."""
    correlated = torch.from_numpy(diagnosis.layer(layer).correlated).to(device)
    return correlated, torch.from_numpy(diagnosis.counts > 0).to(device)


def _background(batch: Batch, maps: Tensor, expand_pixels: int) -> Float[Tensor, "batch 1 height width"]:
    """Return the background mask at the size of the map, 0 for images without a mask."""
    if batch.masks is None or batch.annotated is None:
        return maps.new_zeros(maps.shape[-4], 1, *maps.shape[-2:])
    mask = background_mask(batch.masks.to(maps), (maps.shape[-2], maps.shape[-1]), expand_pixels)
    return mask * batch.annotated.to(maps)[:, None, None, None]


def constraints_named(
    names: Sequence[str],
    *,
    layers: Sequence[str],
    evidence: Evidence = "gradient_x_activation",
    scale: Scale = "share",
    weights: Mapping[str, float | Literal["auto"]] | None = None,
) -> tuple[Constraint, ...]:
    """Return the built-in constraints of these names on these layers; InputError lists what there is."""
    for name in names:
        if name not in CONSTRAINTS:
            raise InputError(f"constraint {name!r} is unknown; there are: {', '.join(CONSTRAINTS)}")
    check_choice("evidence", evidence, Evidence)
    check_choice("scale", scale, Scale)
    given = weights or {}
    return tuple(
        replace(
            CONSTRAINTS[name],
            layers=tuple(layers),
            evidence=evidence,
            scale=scale,
            weight=given.get(name, "auto"),
        )
        for name in names
    )

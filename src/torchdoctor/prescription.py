"""Prescribe: what each constraint reaches in the network, and the weight that it is given (Eq. 7)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchdoctor.constraints import Constraint, Noise, penalise
from torchdoctor.gradients import map_shapes
from torchdoctor.networks import as_logits
from torchdoctor.noise import key
from torchdoctor.sifting import device_of, dtype_of
from torchdoctor.training import Recipe, Term, move, set_mode
from torchdoctor.types import Batch, Diagnosis, InputError, Targets, TrainingImages


@dataclass(frozen=True)
class Prescription:
    """Everything that turns the constraints into the penalty terms of one step.

    With `lazy` = k the terms are computed at every k-th step alone and count k times there: the same
    penalty on average, for a k-th of its cost.
    """

    constraints: tuple[Constraint, ...]
    diagnosis: Diagnosis
    noise: Noise
    targets: Targets
    expand_pixels: int
    lazy: int = 1

    def term(self, model: nn.Module, seed: int) -> Term:
        """Return the weighted penalty terms of a step as a function of the batch."""
        noise = replace(self.noise, seed=seed)
        layers = list(dict.fromkeys(layer for one in self.constraints for layer in one.layers))
        known: dict[tuple[int, ...], dict[str, tuple[int, int, int]]] = {}

        def weighted(batch: Batch, logits: Tensor, step: int) -> dict[str, Tensor]:
            if step % self.lazy:
                return {}
            size = tuple(batch.images.shape[1:])
            if noise.draws and size not in known:
                known[size] = map_shapes(model, batch.images, layers)
            values = penalise(
                model,
                batch,
                self.constraints,
                self.diagnosis,
                noise=noise,
                targets=self.targets,
                expand_pixels=self.expand_pixels,
                step=step,
                logits=logits,
                shapes=known.get(size),
            )
            return {
                one.name: self.lazy * float(one.weight) * values[one.name].mean() for one in self.constraints
            }

        return weighted


def prescribe(
    model: nn.Module,
    images: TrainingImages,
    plan: Prescription,
    recipe: Recipe,
    tau: float,
    batches: int = 4,
    seed: int = 0,
) -> tuple[Prescription, tuple[Mapping[str, object], ...]]:
    """Measure on the first batches what each constraint reaches, and set the weights that are `auto`.

    weight = tau x norm of the loss's gradient / norm of the penalty's, over the parameters that the
    penalty reaches. InputError when it reaches none: training would ignore it.
    """
    stream = key("prescribe", seed)
    first = [move(batch, device_of(model), dtype_of(model)) for batch in _first(images, batches, stream)]
    chosen: list[Constraint] = []
    measured: list[Mapping[str, object]] = []
    for constraint in plan.constraints:
        # A copy each, because a forward pass in training mode moves batch-norm's running statistics.
        own = copy.deepcopy(model)
        set_mode(own, recipe.norm)
        parameters = {name: one for name, one in own.named_parameters() if one.requires_grad}
        alone = replace(plan, constraints=(replace(constraint, weight=1.0),), lazy=1).term(own, stream)
        loss_norm, penalty_norm, value = 0.0, 0.0, 0.0
        reached: set[str] = set()
        for step, batch in enumerate(first):
            torch.manual_seed(key("layers", stream, step))
            logits = as_logits(own(batch.images))
            loss = _gradients(functional.cross_entropy(logits, batch.labels), parameters)
            term = alone(batch, logits.detach(), step)[constraint.name]
            value += float(term.detach()) / len(first)
            found = _gradients(term, parameters)
            live = {name for name, one in found.items() if bool((one != 0).any())}
            reached |= live
            loss_norm += _norm(loss[name] for name in live) / len(first)
            penalty_norm += _norm(found.values()) / len(first)
        if not reached:
            raise InputError(_unreached(constraint, value, len(first)))
        weight = constraint.weight
        if weight == "auto":
            weight = tau * loss_norm / penalty_norm
        chosen.append(replace(constraint, weight=float(weight)))
        measured.append(
            {
                "constraint": constraint.name,
                "layers": list(constraint.layers),
                "evidence": constraint.evidence,
                "scale": constraint.scale,
                "weight": float(weight),
                "weight_chosen": "auto" if constraint.weight == "auto" else "given",
                "tau": tau if constraint.weight == "auto" else None,
                "penalty_before": value,
                "loss_gradient_norm": loss_norm,
                "penalty_gradient_norm": penalty_norm,
                "parameters_reached": len(reached),
                "parameters_trainable": len(parameters),
            }
        )
    return replace(plan, constraints=tuple(chosen)), tuple(measured)


def _unreached(constraint: Constraint, value: float, batches: int) -> str:
    """Say why training would ignore a constraint, and what can be done."""
    place = f"constraint {constraint.name!r} on {', '.join(constraint.layers) or 'no layer'}"
    if value == 0.0:
        return (
            f"{place}: its penalty is exactly 0 on the first {batches} batches, so training would ignore it. "
            + (
                "Either no annotated image came up (raise masks_per_category or annotated_per_batch) or the "
                "grown objects cover the whole map (lower expand_pixels)"
                if constraint.needs_masks
                else "Choose other layers or another theta"
            )
        )
    return (
        f"{place} with evidence {constraint.evidence!r} reaches no trainable parameter: its penalty has no "
        "gradient and training would ignore it. Unfreeze layers, choose an earlier layer, or use the "
        "evidence gradient_x_activation"
    )


def _first(images: TrainingImages, number: int, seed: int) -> Iterator[Batch]:
    """Yield the first batches of an epoch."""
    for position, batch in enumerate(images.epoch(0, seed)):
        if position == number:
            return
        yield batch


def _gradients(value: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return d value / d parameter, zero where the value does not depend on it."""
    if not value.requires_grad:
        return {name: torch.zeros_like(one) for name, one in parameters.items()}
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameters[name]) if one is None else one
        for name, one in zip(parameters, found, strict=True)
    }


def _norm(tensors: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all entries together."""
    return float(sum(float(one.double().square().sum()) for one in tensors)) ** 0.5

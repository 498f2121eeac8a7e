"""Treat a network under constraints (Eq. 7), beside a control arm that differs in nothing else."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchdoctor.constraints import Constraint, Noise, constraints_named, penalise
from torchdoctor.diagnosis import Progress, silent
from torchdoctor.gradients import as_logits
from torchdoctor.masks import default_expansion
from torchdoctor.noise import key
from torchdoctor.sifting import device_of, dtype_of
from torchdoctor.training import Recipe, Term, fit, move, set_mode
from torchdoctor.types import (
    Arm,
    Batch,
    Diagnosis,
    Evidence,
    Images,
    InputError,
    Scale,
    Targets,
    TrainingImages,
    Treatment,
)

Weight = float | Literal["auto"]


@dataclass(frozen=True)
class ShuffledBatches:
    """A plain list of batches as training images: their order is shuffled, nothing is augmented."""

    batches: tuple[Batch, ...]

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in their own order."""
        return iter(self.batches)

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches."""
        return len(self.batches)

    def epoch(self, number: int, seed: int) -> Iterator[Batch]:
        """Yield the batches in an order keyed by (seed, number)."""
        generator = torch.Generator().manual_seed(key("order", seed, number))
        for position in torch.randperm(len(self.batches), generator=generator).tolist():
            yield self.batches[position]

    def with_annotations(self, ids: Sequence[int], per_batch: int) -> ShuffledBatches:
        """Show only the masks of these images; fixed batches take no further images."""
        wanted = torch.tensor(sorted(ids), dtype=torch.int64)

        def shown(batch: Batch) -> Batch:
            here = torch.isin(batch.ids.cpu(), wanted)
            return replace(batch, annotated=None if batch.masks is None else here)

        return ShuffledBatches(tuple(shown(batch) for batch in self.batches))


@dataclass(frozen=True)
class Prescription:
    """Everything that turns the constraints into the penalty terms of one step."""

    constraints: tuple[Constraint, ...]
    diagnosis: Diagnosis
    noise: Noise
    targets: Targets
    expand_pixels: int

    def term(self, model: nn.Module, seed: int) -> Term:
        """Return the weighted penalty terms of a step as a function of the batch."""
        noise = replace(self.noise, seed=seed)

        def weighted(batch: Batch, logits: Tensor, step: int) -> dict[str, Tensor]:
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
            )
            return {one.name: float(one.weight) * values[one.name].mean() for one in self.constraints}

        return weighted


def treat(
    model: nn.Module,
    images: TrainingImages | Iterable[Batch],
    diagnosis: Diagnosis,
    *,
    constraints: Sequence[str | Constraint] | None = None,
    layers: Sequence[str] | None = None,
    evidence: Evidence = "gradient_x_activation",
    scale: Scale = "share",
    weight: float | Literal["auto"] | Mapping[str, float | Literal["auto"]] = "auto",
    tau: float = 0.3,
    draws: int = 1,
    targets: Targets = "prediction",
    masks_per_category: int = 20,
    annotated_per_batch: float = 0.125,
    expand_pixels: int | None = None,
    recipe: Recipe | None = None,
    seeds: int = 3,
    validation: Images | None = None,
    save_arm: Callable[[Arm], None] | None = None,
    progress: Progress = silent,
) -> Treatment:
    """Train copies of the network with and without the constraints from the same weights.

    For each of `seeds` seeds two arms: `control` (the loss alone) and `treated` (Eq. 7), with the same
    batches, augmentation, annotated images, steps and optimiser. The last epoch's weights are kept:
    nothing is selected. InputError where masks are missing, a constraint reaches no trainable
    parameter, or the diagnosis belongs to other layers or categories.
    """
    recipe = recipe or Recipe()
    source = images if isinstance(images, TrainingImages) else ShuffledBatches(tuple(images))
    annotated = masked_ids(source, diagnosis, masks_per_category)
    chosen = _chosen(constraints, bool(annotated), layers, diagnosis, evidence, scale, weight)
    example = next(iter(source)).images
    expansion = expand_pixels if expand_pixels is not None else default_expansion(example.shape[-1])
    largest = max(len(batch.labels) for batch in source)
    per_batch = round(annotated_per_batch * largest) if any(one.needs_masks for one in chosen) else 0
    drawn = source.with_annotations(annotated, per_batch)
    plan = Prescription(chosen, diagnosis, Noise(draws=draws), targets, expansion)
    plan, measured = prescribe(model, drawn, plan, recipe, tau)
    arms = []
    for seed in range(seeds):
        for name in ("control", "treated"):
            own = copy.deepcopy(model)
            arm = _run_arm(own, drawn, plan, recipe, name, seed, validation, progress)
            arms.append(arm)
            if save_arm is not None:
                save_arm(arm)
    return Treatment(tuple(arms), measured)


def _run_arm(
    model: nn.Module,
    images: TrainingImages,
    plan: Prescription,
    recipe: Recipe,
    name: str,
    seed: int,
    validation: Images | None,
    progress: Progress,
) -> Arm:
    """Train one copy in place and return what became of it."""
    started = time.perf_counter()
    history, steps = fit(
        model,
        lambda epoch: images.epoch(epoch, seed),
        recipe,
        steps_per_epoch=images.steps_per_epoch,
        seed=seed,
        penalty=plan.term(model, seed) if name == "treated" else None,
        validation=validation,
        progress=progress,
        stage=f"{name}, seed {seed}",
    )
    state = {entry: value.detach().cpu().clone() for entry, value in model.state_dict().items()}
    return Arm(name, seed, state, history, steps, time.perf_counter() - started)


def masked_ids(images: Images, diagnosis: Diagnosis, masks_per_category: int) -> tuple[int, ...]:
    """Return the images whose masks are used: per category the first of the sifted low list, then others."""
    labels: dict[int, int] = {}
    for batch in images:
        if batch.masks is None:
            continue
        shown = batch.annotated if batch.annotated is not None else torch.ones_like(batch.labels).bool()
        labels.update(zip(batch.ids[shown].tolist(), batch.labels[shown].tolist(), strict=True))
    chosen: list[int] = []
    for category, low in enumerate(diagnosis.sifting.low):
        first = [image for image in low if image in labels]
        others = sorted({image for image, label in labels.items() if label == category} - set(first))
        chosen += (first + others)[:masks_per_category]
    return tuple(sorted(chosen))


def _chosen(
    constraints: Sequence[str | Constraint] | None,
    has_masks: bool,
    layers: Sequence[str] | None,
    diagnosis: Diagnosis,
    evidence: Evidence,
    scale: Scale,
    weight: Weight | Mapping[str, Weight],
) -> tuple[Constraint, ...]:
    """Return the constraints with their layers; InputError for missing masks or undiagnosed layers."""
    if constraints is None:
        constraints = ("channel", "space") if has_masks else ("channel",)
    names = [one for one in constraints if isinstance(one, str)]
    weights = dict(weight) if isinstance(weight, Mapping) else dict.fromkeys(names, weight)
    known = [layer.name for layer in diagnosis.layers]
    built = {
        one.name: one
        for one in constraints_named(
            names, layers=layers or known, evidence=evidence, scale=scale, weights=weights
        )
    }
    chosen = tuple(built[one] if isinstance(one, str) else one for one in constraints)
    for one in chosen:
        if one.needs_masks and not has_masks:
            raise InputError(
                f"constraint {one.name!r} needs object masks and the training data has none: give data with "
                "masks or boxes, or leave the constraint out"
            )
        for layer in one.layers:
            if layer not in known:
                raise InputError(
                    f"constraint {one.name!r} is on layer {layer!r}, which was not diagnosed; diagnosed: "
                    f"{', '.join(known)}"
                )
    return chosen


def prescribe(
    model: nn.Module,
    images: TrainingImages,
    plan: Prescription,
    recipe: Recipe,
    tau: float,
    batches: int = 4,
) -> tuple[Prescription, tuple[Mapping[str, object], ...]]:
    """Measure on the first batches what each constraint reaches, and set the weights that are `auto`.

    weight = tau x norm of the loss's gradient / norm of the penalty's, over the parameters that the
    penalty reaches. InputError when it reaches none: training would ignore it.
    """
    own = copy.deepcopy(model)
    set_mode(own, recipe.norm)
    parameters = {name: one for name, one in own.named_parameters() if one.requires_grad}
    first = [move(batch, device_of(own), dtype_of(own)) for batch in _first(images, batches)]
    chosen: list[Constraint] = []
    measured: list[Mapping[str, object]] = []
    for constraint in plan.constraints:
        alone = replace(plan, constraints=(replace(constraint, weight=1.0),)).term(own, 0)
        loss_norm, penalty_norm, value = 0.0, 0.0, 0.0
        reached: set[str] = set()
        for step, batch in enumerate(first):
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
            raise InputError(
                f"constraint {constraint.name!r} on {', '.join(constraint.layers) or 'no layer'} with "
                f"evidence {constraint.evidence!r} reaches no trainable parameter: its penalty has no "
                "gradient and training would ignore it. Unfreeze layers, choose an earlier layer, or use the "
                "evidence gradient_x_activation"
            )
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


def _first(images: TrainingImages, number: int) -> Iterator[Batch]:
    """Yield the first batches of the first epoch."""
    for position, batch in enumerate(images.epoch(0, 0)):
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

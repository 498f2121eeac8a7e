"""Prescribe: what each penalty reaches in the network, and the weight that it is given (Eq. 7)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.evidence.closed_form import closed_form
from torchdoctor.images.batches import Batch, TrainingImages
from torchdoctor.network.hooks import map_shapes, measuring
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.network.tails import find_shortcuts, first_layer, remembering
from torchdoctor.randomness import key
from torchdoctor.treatment.constraints import Constraint
from torchdoctor.treatment.passes import Noise, Tails
from torchdoctor.treatment.penalties import penalise
from torchdoctor.treatment.recipe import Recipe, Terms, autocast, classification_terms, move, set_mode
from torchdoctor.types import InputError

MEASURED = 8  # batches from which an automatic weight is measured

Watched = Callable[[nn.Module, Batch, int], tuple[dict[str, Float[Tensor, ""]], dict[str, Float[Tensor, ""]]]]


@dataclass(frozen=True)
class Prescription:
    """Everything that turns the constraints into the penalty terms of one step.

    With `lazy` = k the terms are computed at every k-th step alone and count k times there: the same
    penalty on average, for a k-th of its cost. `steps` is the length of the training, for schedules.
    """

    constraints: tuple[Constraint, ...]
    diagnosis: Diagnosis
    noise: Noise
    expand_pixels: int
    lazy: int = 1
    steps: int = 1

    def penalties(self, model: nn.Module, images: Tensor, seed: int) -> Watched:
        """Return a function (model, batch, step) -> (terms of the loss, unweighted mean penalties).

        Both come from one forward pass: only what lies behind the constrained layers is run again.
        """
        noise = replace(self.noise, seed=seed)
        layers = list(dict.fromkeys(layer for one in self.constraints for layer in one.layers))
        needed = layers if noise.draws or not layers else [first_layer(model, images, layers)]
        shortcuts = find_shortcuts(model, images, needed)
        closed = self._closed(model, images, [layer for layer in shortcuts if layer in layers])
        shapes: dict[tuple[int, ...], dict[str, tuple[int, int, int]]] = {}

        def watched(model: nn.Module, batch: Batch, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            size = tuple(batch.images.shape[1:])
            if noise.draws and size not in shapes:
                shapes[size] = map_shapes(model, batch.images, layers)
            with remembering(model, list(shortcuts.values())) as trunk:
                logits, terms = classification_terms(model, batch)
            with autocast(batch.images.device, "fp32"):
                values = penalise(
                    model,
                    batch,
                    self.constraints,
                    self.diagnosis,
                    noise=noise,
                    expand_pixels=self.expand_pixels,
                    step=step,
                    logits=logits.detach(),
                    tails=Tails(shortcuts, closed, trunk, shapes.get(size, {})),
                )
            return terms, {name: value.mean() for name, value in values.items()}

        return watched

    def _closed(self, model: nn.Module, images: Tensor, layers: Iterable[str]) -> frozenset[str]:
        """Return the layers whose evidence under many draws has a closed form."""
        if self.noise.draws < 2:
            return frozenset()
        with measuring(model), torch.no_grad():
            return frozenset(layer for layer in layers if closed_form(model, images, layer) is not None)

    def terms(self, model: nn.Module, images: Tensor, seed: int) -> Terms:
        """Return the terms of Eq. 7 as a function (model, batch, step): the loss, then every penalty."""
        watched = self.penalties(model, images, seed)

        def total(model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
            if step % self.lazy:
                return classification_terms(model, batch)[1]
            terms, values = watched(model, batch, step)
            for one in self.constraints:
                factor = self.lazy * float(one.weight) * one.factor(min(step / self.steps, 1.0))
                terms[one.name] = factor * values[one.name]
            return terms

        return total


@dataclass(frozen=True)
class Balance:
    """What a penalty is beside the loss on the first batches: its value, and the norms of gradients.

    The loss's norm is taken over the parameters that the penalty reaches. `ratios` holds loss norm over
    penalty norm, batch by batch; NaN where a batch has no penalty.
    """

    value: float
    loss_norm: float
    penalty_norm: float
    ratios: tuple[float, ...]
    reached: int
    trainable: int


def measure_balance(
    model: nn.Module, images: TrainingImages, watched: Watched, name: str, recipe: Recipe, seed: int
) -> Balance:
    """Measure a penalty and its gradient beside the loss's on the first batches; the model is left alone."""
    # A copy, because a forward pass in training mode moves batch-norm's running statistics.
    own = copy.deepcopy(model)
    set_mode(own, recipe.norm)
    parameters = {each: one for each, one in own.named_parameters() if one.requires_grad}
    reached: set[str] = set()
    values, losses, penalties = [], [], []
    for step, batch in enumerate(_first(images, MEASURED, seed)):
        batch = move(batch, device_of(own), dtype_of(own))
        torch.manual_seed(key("layers", seed, step))
        terms, found = watched(own, batch, step)
        penalty = found[name]
        values.append(float(penalty.detach()))
        by_penalty = _gradients(penalty, parameters)
        by_loss = _gradients(terms["loss"], parameters)
        live = [each for each, one in by_penalty.items() if bool((one != 0).any())]
        reached.update(live)
        losses.append(_norm(by_loss[each] for each in live))
        penalties.append(_norm(by_penalty.values()))
    batches = max(len(values), 1)
    pairs = zip(losses, penalties, strict=True)
    return Balance(
        value=sum(values) / batches,
        loss_norm=sum(losses) / batches,
        penalty_norm=sum(penalties) / batches,
        ratios=tuple(one / other if other else math.nan for one, other in pairs),
        reached=len(reached),
        trainable=len(parameters),
    )


def prescribe(
    model: nn.Module,
    images: TrainingImages,
    plan: Prescription,
    recipe: Recipe,
    tau: float,
    seed: int = 0,
) -> tuple[Prescription, tuple[Mapping[str, object], ...]]:
    """Measure on the first batches what each constraint reaches, and set the weights that are `auto`.

    weight = tau x norm of the loss's gradient / norm of the penalty's, over the parameters that the
    penalty reaches, both averaged over the batches: a single batch's ratio scatters. InputError when it
    reaches none: training would ignore it.
    """
    stream = key("prescribe", seed)
    example = example_of(model, images)
    chosen: list[Constraint] = []
    measured: list[Mapping[str, object]] = []
    for constraint in plan.constraints:
        watched = replace(plan, constraints=(constraint,)).penalties(model, example, stream)
        found = measure_balance(model, images, watched, constraint.name, recipe, stream)
        if not found.reached:
            raise InputError(_unreached(constraint, found.value))
        automatic = constraint.weight == "auto"
        weight = tau * found.loss_norm / found.penalty_norm if automatic else float(constraint.weight)
        chosen.append(replace(constraint, weight=weight))
        measured.append(
            {
                "constraint": constraint.name,
                "layers": list(constraint.layers),
                "evidence": constraint.evidence,
                "scale": constraint.scale,
                "targets": constraint.targets,
                "schedule": constraint.schedule if isinstance(constraint.schedule, str) else "a function",
                "weight": weight,
                "weight_chosen": "auto" if automatic else "given",
                "tau": tau if automatic else None,
                "penalty_before": found.value,
                "loss_gradient_norm": found.loss_norm,
                "penalty_gradient_norm": found.penalty_norm,
                "norm_ratio_per_batch": list(found.ratios),
                "parameters_reached": found.reached,
                "parameters_trainable": found.trainable,
            }
        )
    return replace(plan, constraints=tuple(chosen)), tuple(measured)


def example_of(model: nn.Module, images: TrainingImages) -> Tensor:
    """Return a few images where the network lies."""
    return next(iter(images)).images[:2].to(device_of(model), dtype_of(model))


def _unreached(constraint: Constraint, value: float) -> str:
    """Say why training would ignore a constraint, and what can be done."""
    place = f"constraint {constraint.name!r} on {', '.join(constraint.layers) or 'no layer'}"
    if value == 0.0:
        return f"{place}: its penalty is exactly 0 on the first batches, so training would ignore it. " + (
            "Either no annotated image came up (raise masks_per_category or annotated_per_batch) or the "
            "grown objects cover the whole map (lower expand_pixels)"
            if constraint.needs_masks
            else "Choose other layers or another theta"
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
    """Return d value / d parameter, zero where the value does not depend on it; the graph is kept."""
    if not value.requires_grad:
        return {name: torch.zeros_like(one) for name, one in parameters.items()}
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(parameters[name]) if one is None else one
        for name, one in zip(parameters, found, strict=True)
    }


def _norm(tensors: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all entries together."""
    return float(sum(float(one.double().square().sum()) for one in tensors)) ** 0.5

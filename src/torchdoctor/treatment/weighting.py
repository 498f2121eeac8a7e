"""Measure what each penalty reaches in the network, and set the weights of the constraints (Eq. 7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.evidence.closed_form import closed_form
from torchdoctor.images.batches import Batch, TrainingImages
from torchdoctor.network.copying import copy_of
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.network.shortcuts import find_shortcuts, first_layer
from torchdoctor.network.tails import remembering
from torchdoctor.network.taps import map_shapes
from torchdoctor.network.workarounds import right_derivatives
from torchdoctor.randomness import key
from torchdoctor.treatment.constraints import Constraint
from torchdoctor.treatment.losses import Terms, classification_terms
from torchdoctor.treatment.passes import Noise, Tails
from torchdoctor.treatment.penalties import penalise
from torchdoctor.treatment.precision import autocast
from torchdoctor.treatment.recipe import Recipe, move, set_mode
from torchdoctor.treatment.sharing import share_of, sharing
from torchdoctor.types import InputError

MEASURED = 8  # batches from which an automatic weight is measured

Values = dict[str, Float[Tensor, ""]]
# (model, batch, step) -> (terms of the loss, unweighted mean penalties), by name
LossAndPenalties = Callable[[nn.Module, Batch, int], tuple[Values, Values]]


@dataclass(frozen=True)
class Prescription:
    """Everything that the penalty terms of a step are computed from.

    Attributes:
        constraints: The constraints, each with its layers.
        diagnosis: Which kernels are correlated with which categories, and the range of each layer's noise.
        noise: How the noise is drawn; its seed is that of the training.
        expand_pixels: By how many pixels of the image an object's mask is grown in every direction.
        every_k_steps: With k the penalties are computed at every k-th step only and multiplied by k there:
            the same penalty on average, at a k-th of its cost.
        steps: The number of steps of the training, for schedules.
    """

    constraints: tuple[Constraint, ...]
    diagnosis: Diagnosis
    noise: Noise
    expand_pixels: int
    every_k_steps: int = 1
    steps: int = 1

    def penalties(self, model: nn.Module, images: Tensor, seed: int) -> LossAndPenalties:
        """Return the function that computes the loss and the penalties of a step.

        Both come from the same forward pass: only what lies behind the constrained layers is run again.

        Args:
            model: The network; it is left as it was.
            images: Two or more normalised images [batch, channel, height, width], to try out which layers'
                tails can be run alone.
            seed: What the noise is keyed by.

        Returns:
            A function of (model, batch, step): the terms of the loss, and the penalties of Eq. 5-6 averaged
            over the batch, unweighted, each by name. It takes this model or a copy of it.

        Raises:
            InputError: A layer cannot be used.
        """
        noise = replace(self.noise, seed=seed)
        layers = list(dict.fromkeys(layer for constraint in self.constraints for layer in constraint.layers))
        needed = layers if noise.draws or not layers else [first_layer(model, images, layers)]
        shortcuts = find_shortcuts(model, images, needed)
        closed = self._closed(model, images, [layer for layer in shortcuts if layer in layers])
        shapes: dict[tuple[int, ...], dict[str, tuple[int, int, int]]] = {}

        def loss_and_penalties(model: nn.Module, batch: Batch, step: int) -> tuple[Values, Values]:
            size = tuple(batch.images.shape[1:])
            if noise.draws and size not in shapes:
                shapes[size] = map_shapes(model, batch.images, layers)
            share = share_of(batch, model)
            with right_derivatives(), remembering(model, shortcuts) as trunk, sharing(share.processes):
                logits, terms = classification_terms(model, batch)
            with autocast(batch.images.device, "fp32"):
                values = penalise(
                    model, share.of(batch), self.constraints, self.diagnosis, noise=noise,
                    expand_pixels=self.expand_pixels, step=step, logits=share.rows(logits.detach()),
                    tails=Tails(trunk, closed, shapes.get(size, {})),
                )  # fmt: skip
            return terms, {name: share.whole(value).mean() for name, value in values.items()}

        return loss_and_penalties

    def _closed(self, model: nn.Module, images: Tensor, layers: Iterable[str]) -> frozenset[str]:
        """Return the layers whose evidence under many draws has a closed form."""
        if self.noise.draws < 2:
            return frozenset()
        with frozen_eval(model) as frozen, torch.no_grad():
            return frozenset(layer for layer in layers if closed_form(frozen, images, layer) is not None)

    def weighted(self, values: Values, step: int) -> Values:
        """Return every constraint's term in the loss of a step: its mean penalty times its weight.

        Args:
            values: The unweighted mean penalties, by name.
            step: The number of the step, one in which penalties are computed.

        Returns:
            The terms by name.
        """
        done = min(step / self.steps, 1.0)
        factors = {one.name: float(one.weight) * one.factor(done) for one in self.constraints}
        return {name: self.every_k_steps * factor * values[name] for name, factor in factors.items()}

    def terms(self, model: nn.Module, images: Tensor, seed: int) -> Terms:
        """Return the function that computes the terms of Eq. 7: the loss, then every weighted penalty.

        Args:
            model: The network; it is left as it was.
            images: Two or more normalised images [batch, channel, height, width], to try out which layers'
                tails can be run alone.
            seed: What the noise is keyed by.

        Returns:
            A function of (model, batch, step): scalars by name, whose sum is minimised. Every constraint's
            weight must be a number by then.

        Raises:
            InputError: A layer cannot be used.
        """
        loss_and_penalties = self.penalties(model, images, seed)

        def total(model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
            if step % self.every_k_steps:
                return classification_terms(model, batch)[1]
            terms, values = loss_and_penalties(model, batch, step)
            return {**terms, **self.weighted(values, step)}

        return total


@dataclass(frozen=True)
class Balance:
    """A penalty compared with the loss on the first batches.

    Attributes:
        value: The mean penalty, unweighted.
        loss_norm: The mean norm of the loss's gradient over the parameters that the penalty reaches.
        penalty_norm: The mean norm of the penalty's gradient.
        ratios: Loss norm over penalty norm, batch by batch; NaN where a batch has no penalty.
        reached: How many parameters the penalty has a gradient for.
        trainable: How many parameters are trained.
    """

    value: float
    loss_norm: float
    penalty_norm: float
    ratios: tuple[float, ...]
    reached: int
    trainable: int


def measure_balance(
    model: nn.Module,
    images: TrainingImages,
    loss_and_penalties: LossAndPenalties,
    name: str,
    recipe: Recipe,
    seed: int,
) -> Balance:
    """Measure a penalty and its gradient, and compare them with the loss, on the first batches.

    Args:
        model: The network; it is left as it was.
        images: The images of the training.
        loss_and_penalties: What computes both (see `Prescription.penalties`).
        name: The name of the penalty.
        recipe: What says how batch-norm is trained.
        seed: What the order of the images and random layers are keyed by.

    Returns:
        Means over the first 8 batches, or over all if there are fewer.
    """
    # A copy, because a forward pass in training mode moves batch-norm's running statistics.
    own = copy_of(model)
    set_mode(own, recipe.norm)
    parameters = {place: value for place, value in own.named_parameters() if value.requires_grad}
    reached: set[str] = set()
    values, losses, penalties = [], [], []
    for step, batch in enumerate(islice(images.epoch(0, seed), MEASURED)):
        batch = move(batch, device_of(own), dtype_of(own))
        torch.manual_seed(key("layers", seed, step))
        terms, penalty_of = loss_and_penalties(own, batch, step)
        penalty = penalty_of[name]
        values.append(float(penalty.detach()))
        by_penalty = _gradients(penalty, parameters)
        by_loss = _gradients(terms["loss"], parameters)
        live = [place for place, gradient in by_penalty.items() if bool((gradient != 0).any())]
        reached.update(live)
        losses.append(_norm(by_loss[place] for place in live))
        penalties.append(_norm(by_penalty.values()))
    batches = max(len(values), 1)
    pairs = zip(losses, penalties, strict=True)
    return Balance(
        value=sum(values) / batches,
        loss_norm=sum(losses) / batches,
        penalty_norm=sum(penalties) / batches,
        ratios=tuple(loss / penalty if penalty else math.nan for loss, penalty in pairs),
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
    penalty reaches, both averaged over the batches: a single batch's ratio scatters.

    Args:
        model: The network; it is left as it was.
        images: The images of the training.
        plan: The constraints, and how their penalties are computed.
        recipe: What says how batch-norm is trained.
        tau: The wanted ratio of the weighted penalty's gradient norm to the loss's.
        seed: What the order of the images, the noise and random layers are keyed by.

    Returns:
        The plan with numbers as weights; and for each constraint what was measured, by name.

    Raises:
        InputError: A penalty reaches no trainable parameter, or it, its gradient or weight is not finite.
    """
    stream = key("prescribe", seed)
    example = example_of(model, images)
    chosen: list[Constraint] = []
    measured: list[Mapping[str, object]] = []
    for constraint in plan.constraints:
        loss_and_penalties = replace(plan, constraints=(constraint,)).penalties(model, example, stream)
        balance = measure_balance(model, images, loss_and_penalties, constraint.name, recipe, stream)
        if not balance.reached:
            raise InputError(_unreached(constraint, balance.value))
        automatic = constraint.weight == "auto"
        weight = tau * balance.loss_norm / balance.penalty_norm if automatic else float(constraint.weight)
        _check_finite(constraint, balance, weight)
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
                "penalty_before": balance.value,
                "loss_gradient_norm": balance.loss_norm,
                "penalty_gradient_norm": balance.penalty_norm,
                "norm_ratio_per_batch": list(balance.ratios),
                "parameters_reached": balance.reached,
                "parameters_trainable": balance.trainable,
            }
        )
    return replace(plan, constraints=tuple(chosen)), tuple(measured)


def _check_finite(constraint: Constraint, balance: Balance, weight: float) -> None:
    """Raise InputError where a penalty, its gradient or its weight is not a finite number."""
    found = {
        "the penalty": balance.value,
        "the norm of its gradient": balance.penalty_norm,
        "the norm of the loss's gradient": balance.loss_norm,
        "its weight": weight,
    }
    wrong = [f"{name} is {value}" for name, value in found.items() if not math.isfinite(value)]
    if wrong:
        raise InputError(
            f"constraint {constraint.name!r} on {', '.join(constraint.layers)}: {', '.join(wrong)} on the "
            "first batches, and training with it would change nothing or spoil the weights. Put it on other "
            "layers, use model.float() if its weights are in half precision, or look for images or weights "
            "that are not finite"
        )


def example_of(model: nn.Module, images: TrainingImages) -> Tensor:
    """Return a few images to try a network out on.

    Args:
        model: The network.
        images: The images of the training.

    Returns:
        The first two images, on the network's device and in its type.
    """
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


def _gradients(value: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return d value / d parameter, zero where the value does not depend on it; the graph is retained."""
    if not value.requires_grad:
        return {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(parameters[name]) if gradient is None else gradient
        for name, gradient in zip(parameters, gradients, strict=True)
    }


def _norm(tensors: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all entries together."""
    return float(sum(float(tensor.double().square().sum()) for tensor in tensors)) ** 0.5

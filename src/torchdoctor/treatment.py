"""Treat a network under constraints (Eq. 7), beside a control arm that differs in nothing else."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from torchdoctor.constraints import Constraint, Noise, constraints_named
from torchdoctor.diagnosis import state_sha256
from torchdoctor.masks import default_expansion
from torchdoctor.networks import unwrap
from torchdoctor.noise import key
from torchdoctor.prescription import Prescription, prescribe
from torchdoctor.training import Recipe, fit
from torchdoctor.types import (
    Arm,
    Batch,
    Diagnosis,
    Evidence,
    Images,
    InputError,
    NormPolicy,
    Progress,
    Scale,
    Targets,
    TrainingImages,
    Treatment,
    check_choice,
    silent,
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
    lazy: int = 1,
    targets: Targets = "prediction",
    masks_per_category: int = 20,
    annotated_per_batch: float = 0.125,
    expand_pixels: int | None = None,
    recipe: Recipe | None = None,
    seeds: int = 3,
    seed: int = 0,
    validation: Images | None = None,
    save_arm: Callable[[Arm], None] | None = None,
    progress: Progress = silent,
) -> Treatment:
    """Train copies of the network with and without the constraints from the same weights.

    For each of `seeds` seeds two arms: `control` (the loss alone) and `treated` (Eq. 7), with the same
    batches, augmentation, annotated images, steps and optimiser. The last epoch's weights are kept:
    nothing is selected. `lazy` = k computes the constraints at every k-th step alone, with k times their
    weight: nearly a k-th of their cost. InputError where masks are missing, a constraint reaches no trainable
    parameter, or the diagnosis belongs to another network, other layers or other categories.
    """
    model = unwrap(model)
    check_choice("targets", targets, Targets)
    if lazy < 1:
        raise InputError(
            f"lazy is {lazy}; expected 1 (every step) or the number of steps from one to the next"
        )
    recipe = recipe or Recipe()
    check_choice("norm", recipe.norm, NormPolicy)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("no parameter of the model is trainable (all are frozen): nothing could change")
    if diagnosis.model_sha256 != state_sha256(model):
        raise InputError(
            "the diagnosis was made of other weights (sha256 "
            f"{diagnosis.model_sha256[:12]}..., the model has {state_sha256(model)[:12]}...): diagnose this "
            "model, or load the weights that were diagnosed"
        )
    source = images if isinstance(images, TrainingImages) else ShuffledBatches(tuple(images))
    annotated = masked_ids(source, diagnosis, masks_per_category)
    chosen = _chosen(constraints, bool(annotated), layers, diagnosis, evidence, scale, weight)
    example = next(iter(source)).images
    expansion = expand_pixels if expand_pixels is not None else default_expansion(example.shape[-1])
    largest = max(len(batch.labels) for batch in source)
    needs_masks = any(one.needs_masks for one in chosen)
    per_batch = drawn_per_batch(annotated_per_batch, largest) if needs_masks else 0
    drawn = source.with_annotations(annotated, per_batch)
    plan = Prescription(chosen, diagnosis, Noise(draws=draws), targets, expansion, lazy)
    plan, measured = prescribe(model, drawn, plan, recipe, tau, seed=seed)
    arms = []
    for number in range(seeds):
        stream = key("treatment", seed, number)
        for name in ("control", "treated"):
            own = copy.deepcopy(model)
            arm = _run_arm(own, drawn, plan, recipe, name, number, stream, validation, progress)
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
    number: int,
    stream: int,
    validation: Images | None,
    progress: Progress,
) -> Arm:
    """Train one copy in place and return what became of it; both arms of a number draw from one stream."""
    started = time.perf_counter()
    history, steps = fit(
        model,
        lambda epoch: images.epoch(epoch, stream),
        recipe,
        steps_per_epoch=images.steps_per_epoch,
        seed=stream,
        penalty=plan.term(model, stream) if name == "treated" else None,
        validation=validation,
        progress=progress,
        stage=f"{name}, seed {number}",
    )
    state = {entry: value.detach().cpu().clone() for entry, value in model.state_dict().items()}
    return Arm(name, number, state, history, steps, time.perf_counter() - started)


def drawn_per_batch(share: float, batch_size: int) -> int:
    """Return how many annotated images are drawn into every batch: at least one unless the share is 0."""
    return max(1, round(share * batch_size)) if share > 0 else 0


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
    _check_names([one.name for one in chosen], weights if isinstance(weight, Mapping) else {})
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


RESERVED = ("loss", "images", "epoch", "validation_accuracy")


def _check_names(names: Sequence[str], weights: Mapping[str, object]) -> None:
    """Refuse constraints that the history could not tell apart, and weights of constraints not there."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"constraint {name!r} is given twice: give each a name of its own")
        if name in RESERVED:
            raise InputError(
                f"constraint {name!r}: this name is taken by the training history; choose another"
            )
    for name in weights:
        if name not in names:
            raise InputError(f"weight of {name!r}: no such constraint here; there are: {', '.join(names)}")

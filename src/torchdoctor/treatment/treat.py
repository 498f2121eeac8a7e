"""Treat a network under constraints (Eq. 7), beside a control arm that differs in nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from torch import nn

from torchdoctor.diagnosis.diagnose import state_sha256
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.batches import Batch, Images, ShuffledBatches, TrainingImages
from torchdoctor.images.masks import default_expansion
from torchdoctor.network.outputs import unwrap
from torchdoctor.randomness import key
from torchdoctor.treatment.constraints import Constraint, constraints_named, default_constraints
from torchdoctor.treatment.masked_images import drawn_per_batch, masked_ids
from torchdoctor.treatment.passes import Noise
from torchdoctor.treatment.recipe import Checkpoints, Course, Recipe
from torchdoctor.treatment.remedies import REMEDIES, USE_MASKS, Remedy
from torchdoctor.treatment.result import Arm, Treatment
from torchdoctor.treatment.training import fit
from torchdoctor.treatment.weighting import Prescription, example_of, prescribe
from torchdoctor.types import (
    BudgetKind,
    Evidence,
    InputError,
    NormPolicy,
    Precision,
    Progress,
    Scale,
    Targets,
    check_choice,
    silent,
)

Weight = float | Literal["auto"]


@runtime_checkable
class ArmStore(Protocol):
    """Where arms are kept, so that an interrupted treatment can go on."""

    def finished(self, name: str, seed: int) -> Arm | None:
        """Return an arm that was finished before, or None."""
        ...

    def checkpoints(self, name: str, seed: int) -> Checkpoints | None:
        """Return where the state of an arm under way is kept."""
        ...

    def save(self, arm: Arm) -> None:
        """Keep a finished arm."""
        ...


def treat(
    model: nn.Module,
    images: TrainingImages | Iterable[Batch],
    diagnosis: Diagnosis,
    *,
    arms: Sequence[str | Remedy] | None = None,
    constraints: Sequence[str | Constraint] | None = None,
    layers: Sequence[str] | None = None,
    evidence: Evidence = "gradient_x_activation",
    scale: Scale = "share",
    weight: float | Literal["auto"] | Mapping[str, float | Literal["auto"]] = "auto",
    tau: float = 0.3,
    draws: int = 1,
    lazy: int = 1,
    targets: Targets = "prediction",
    masks_per_category: int | None = None,
    annotated_per_batch: float = 0.125,
    expand_pixels: int | None = None,
    recipe: Recipe | None = None,
    budget_kind: BudgetKind = "steps",
    seeds: int = 3,
    seed: int = 0,
    validation: Images | None = None,
    store: ArmStore | None = None,
    progress: Progress = silent,
) -> Treatment:
    """Train copies of the network from the same weights: a control, and an arm for every remedy.

    For each of `seeds` seeds the arms see the same batches, augmentation, annotated images, steps and
    optimiser; `control` minimises the loss alone, `treated` Eq. 7, the others what REMEDIES says, or a
    function of your own. Without `arms` it is `treated`, and `swap` before it where 20 images have masks.
    The last epoch's weights are kept: nothing is selected. `masks_per_category` None uses all masks there
    are. `Differs from the paper:` which uses 20 (docs/when-it-helps.md). `layers` are those of constraints
    that name none of their own; None is the last that was diagnosed. `budget_kind="time"` gives every arm
    the seconds that the first remedy's steps take, instead of its steps. `lazy` = k computes the
    constraints at every k-th step alone, with k times their weight: nearly a k-th of their cost. InputError
    where masks are missing, a constraint reaches no trainable parameter, or the diagnosis belongs to
    another network, other layers or other categories.
    """
    model = unwrap(model)
    check_choice("budget_kind", budget_kind, BudgetKind)
    if lazy < 1:
        raise InputError(
            f"lazy is {lazy}; expected 1 (every step) or the number of steps from one to the next"
        )
    recipe = recipe or Recipe()
    check_choice("norm", recipe.norm, NormPolicy)
    check_choice("precision", recipe.precision, Precision)
    _check_model(model, diagnosis)
    source = images if isinstance(images, TrainingImages) else ShuffledBatches(tuple(images))
    masked = masked_ids(source, diagnosis, masks_per_category)
    wanted = remedies_named(default_arms(len(masked)) if arms is None else arms)
    chosen: tuple[Constraint, ...] = ()
    if "treated" in wanted:
        chosen = _chosen(constraints, bool(masked), layers, diagnosis, evidence, scale, targets, weight)
    drawn = source
    if masked:
        uses = any(one.needs_masks for one in chosen) or any(map(_uses_masks, wanted.items()))
        largest = max(len(batch.labels) for batch in source)
        drawn = source.with_annotations(masked, drawn_per_batch(annotated_per_batch, largest) if uses else 0)
    example = example_of(model, drawn)
    if expand_pixels is None:
        expand_pixels = default_expansion(example.shape[-1])
    steps = max(recipe.epochs * drawn.steps_per_epoch, 1)
    plan = Prescription(chosen, diagnosis, Noise(draws=draws), expand_pixels, lazy, steps)
    plan, measured = prescribe(model, drawn, plan, recipe, tau, seed=seed)

    def treated(model: nn.Module, _images: TrainingImages, _diagnosis: Diagnosis, seed: int) -> Course:
        return Course(plan.terms(model, example, seed), facts=measured)

    remedies = {name: remedy or treated for name, remedy in wanted.items()}
    trial = _Trial(model, drawn, diagnosis, recipe, validation, store, progress)
    done = [arm for number in range(seeds) for arm in trial.run(remedies, seed, number, budget_kind)]
    return Treatment(tuple(done), measured)


@dataclass(frozen=True)
class _Trial:
    """What all arms of a treatment share."""

    model: nn.Module
    images: TrainingImages
    diagnosis: Diagnosis
    recipe: Recipe
    validation: Images | None
    store: ArmStore | None
    progress: Progress

    def run(
        self, remedies: Mapping[str, Remedy], seed: int, number: int, budget_kind: BudgetKind
    ) -> list[Arm]:
        """Run every arm of one seed number, those that were finished before excepted.

        A budget in seconds is set by the first remedy's steps, so that one runs first.
        """
        stream, recipe, done = key("treatment", seed, number), self.recipe, dict[str, Arm]()
        names = list(remedies)
        for name in names if budget_kind == "steps" else [names[1], names[0], *names[2:]]:
            found = self.store.finished(name, number) if self.store is not None else None
            done[name] = found or self._run_arm(name, remedies[name], recipe, number, stream)
            if budget_kind == "time" and len(done) == 1:
                recipe = replace(recipe, seconds=done[name].seconds)
        return [done[name] for name in names]

    def _run_arm(self, name: str, remedy: Remedy, recipe: Recipe, number: int, stream: int) -> Arm:
        """Train one copy and return what became of it; all arms of a number draw from one stream."""
        model = copy.deepcopy(self.model)
        course = remedy(model, self.images, self.diagnosis, stream)
        trained = fit(
            model,
            lambda epoch: self.images.epoch(epoch, stream),
            recipe,
            steps_per_epoch=self.images.steps_per_epoch,
            seed=stream,
            course=course,
            validation=self.validation,
            checkpoints=self.store.checkpoints(name, number) if self.store is not None else None,
            progress=self.progress,
            stage=f"{name}, seed {number}",
        )
        state = {entry: value.detach().cpu().clone() for entry, value in model.state_dict().items()}
        arm = Arm(name, number, state, trained.history, trained.steps, trained.seconds, trained.skipped)
        if self.store is not None:
            self.store.save(arm)
        return arm


def _uses_masks(arm: tuple[str, Remedy | None]) -> bool:
    """Whether an arm may look at masks: a function of the user's own may."""
    name, remedy = arm
    return name in USE_MASKS or (remedy is not None and remedy not in REMEDIES.values())


def _check_model(model: nn.Module, diagnosis: Diagnosis) -> None:
    """Raise InputError unless the network can change and is the one that was diagnosed."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("no parameter of the model is trainable (all are frozen): nothing could change")
    if diagnosis.model_sha256 != state_sha256(model):
        raise InputError(
            "the diagnosis was made of other weights (sha256 "
            f"{diagnosis.model_sha256[:12]}..., the model has {state_sha256(model)[:12]}...): diagnose this "
            "model, or load the weights that were diagnosed"
        )


LEAST_MASKS = 20  # below, a batch would show the same few objects again and again


def default_arms(masked: int) -> tuple[str, ...]:
    """Return the arms that are compared where none are asked for; verdicts speak of the second.

    Where training images have masks, 20 or more, swapped backgrounds did what no constraint did
    (docs/when-it-helps.md).
    """
    return ("control", "swap", "treated") if masked >= LEAST_MASKS else ("control", "treated")


def remedies_named(arms: Sequence[str | Remedy]) -> dict[str, Remedy | None]:
    """Return the remedy of every arm, None for `treated`; the control comes first, asked for or not."""
    found: dict[str, Remedy | None] = {"control": REMEDIES["control"]}
    for arm in arms:
        name = arm if isinstance(arm, str) else str(getattr(arm, "__name__", type(arm).__name__))
        if not isinstance(arm, str):
            if name in found or name in REMEDIES or name in ("treated", "base"):
                raise InputError(f"arm {name!r}: the name is taken; give your function another")
            found[name] = arm
        elif name == "treated":
            found[name] = None
        elif name in REMEDIES:
            found[name] = REMEDIES[name]
        else:
            known = ", ".join(["control", "treated", *list(REMEDIES)[1:]])
            raise InputError(f"arm {name!r} is unknown; there are: {known}")
    if len(found) == 1:
        raise InputError("no arm but the control: name at least one to compare it with, such as treated")
    return found


def _chosen(
    constraints: Sequence[str | Constraint] | None,
    has_masks: bool,
    layers: Sequence[str] | None,
    diagnosis: Diagnosis,
    evidence: Evidence,
    scale: Scale,
    targets: Targets,
    weight: Weight | Mapping[str, Weight],
) -> tuple[Constraint, ...]:
    """Return the constraints with their layers; InputError for missing masks or undiagnosed layers."""
    if constraints is None:
        constraints = default_constraints(has_masks)
    names = [one.partition(" ")[0] for one in constraints if isinstance(one, str)]
    weights = dict(weight) if isinstance(weight, Mapping) else dict.fromkeys(names, weight)
    known = [layer.name for layer in diagnosis.layers]
    chosen: tuple[Constraint, ...] = ()
    for one in constraints:
        if isinstance(one, str):
            chosen += constraints_named(
                [one], layers=layers or known[-1:], evidence=evidence, scale=scale, targets=targets,
                weights=weights,
            )  # fmt: skip
        else:
            chosen += (one,)
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


RESERVED = ("loss", "auxiliary", "epoch", "validation_accuracy")


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

"""Treat a network under constraints (Eq. 7), beside a control arm that differs in nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import nn

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.batches import Images, ShuffledBatches, TrainingImages
from torchdoctor.images.loaders import ImageSource, images_of
from torchdoctor.images.masks import default_expansion
from torchdoctor.network.copying import copy_of
from torchdoctor.network.outputs import unwrap
from torchdoctor.network.state import load_state, same_state
from torchdoctor.processes import ALONE, Processes
from torchdoctor.randomness import key
from torchdoctor.treatment.annotated_share import share_drawn
from torchdoctor.treatment.arms import (
    check_diagnosed,
    chosen_constraints,
    default_arms,
    remedies_named,
    uses_masks,
)
from torchdoctor.treatment.constraints import Constraint
from torchdoctor.treatment.cure import Cure, Remedy
from torchdoctor.treatment.masked_images import masked_ids, with_masks
from torchdoctor.treatment.passes import Noise
from torchdoctor.treatment.recipe import Checkpoints, Course, Recipe
from torchdoctor.treatment.result import Arm, Treatment
from torchdoctor.treatment.settings import STEP_DRAWS, TreatmentSettings
from torchdoctor.treatment.training import Trained, finish, fit
from torchdoctor.treatment.weighting import Prescription, example_of, prescribe
from torchdoctor.types import BudgetKind, NormPolicy, Precision, Progress, check_choice, silent

DEFAULTS = TreatmentSettings()


@runtime_checkable
class ArmStore(Protocol):
    """Where arms are saved, so that an interrupted treatment can go on."""

    def finished(self, name: str, seed: int) -> Arm | None:
        """Read an arm that was finished before.

        Args:
            name: The name of the arm.
            seed: The number of the repetition.

        Returns:
            The arm; None where it was not finished.
        """
        ...

    def checkpoints(self, name: str, seed: int) -> Checkpoints | None:
        """Return where the state of an arm is saved during its training.

        Args:
            name: The name of the arm.
            seed: The number of the repetition.

        Returns:
            The place; None: the state is not saved.
        """
        ...

    def save(self, arm: Arm) -> None:
        """Save a finished arm.

        Args:
            arm: The arm.
        """
        ...


def treat(
    model: nn.Module,
    images: TrainingImages | ImageSource,
    diagnosis: Diagnosis,
    *,
    arms: Sequence[str | Remedy] | None = None,
    constraints: Sequence[str | Constraint] | None = None,
    layers: Sequence[str] | None = None,
    draws: int = STEP_DRAWS,
    recipe: Recipe | None = None,
    settings: TreatmentSettings = DEFAULTS,
    seeds: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Treatment:
    """Train copies of a network further from the same weights: a control, and an arm for every remedy.

    In each repetition all arms have the same number of steps, and the same batches, optimiser and loss unless
    a remedy changes them. The arm `control` minimises the classification loss alone, `treated` also the
    constraints (Eq. 7), others are in `REMEDIES`. No epoch is selected: weights are those of the last one.

    Args:
        model: The trained network; it is left as it was.
        images: Its training images as for `diagnose`, or `TrainingImages` that shuffle and augment.
        diagnosis: The diagnosis of this network on these images.
        arms: Names of arms, or functions of your own; None as in `settings`.
        constraints: Texts such as `space weight=2`, or constraints of your own; None as in `settings`.
        layers: The layers of constraints that name none of their own; None: the last diagnosed layer.
        draws: Noise draws of each image in a step; 0 means no noise.
        recipe: Epochs, optimiser, learning rate and so on; None: `Recipe()`.
        settings: Everything else, and the values of what is None above.
        seeds: How many times all arms are trained; None as in `settings`.
        seed: The seed of everything random.
        progress: Called with (stage, steps done, steps in all).

    Returns:
        The trained arms, with the weight of each constraint and the parameters that it changes.

    Raises:
        InputError: An arm lacks what it needs (such as masks), a constraint changes no parameter, or the
            diagnosis is of another network.

    Example:
        >>> import torch
        >>> from torchdoctor import Batch, Recipe, diagnose, treat
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3),
        ...     torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2),
        ... )
        >>> images = [Batch(torch.randn(8, 3, 9, 9), torch.arange(8) % 2, torch.arange(8))]
        >>> found = diagnose(model, images, layers=["2"], confidence=0.0)
        >>> treat(model, images, found, recipe=Recipe(epochs=1), seeds=1).names()
        ('control', 'treated')
    """
    trial = trial_of(
        model, images, diagnosis, arms=arms, constraints=constraints, layers=layers, draws=draws,
        recipe=recipe, settings=settings, seed=seed)  # fmt: skip
    seeds = settings.seeds if seeds is None else seeds
    return trial.run(seeds=seeds, progress=progress)


def trial_of(
    model: nn.Module,
    images: TrainingImages | ImageSource,
    diagnosis: Diagnosis,
    *,
    arms: Sequence[str | Remedy] | None = None,
    constraints: Sequence[str | Constraint] | None = None,
    layers: Sequence[str] | None = None,
    draws: int = STEP_DRAWS,
    recipe: Recipe | None = None,
    settings: TreatmentSettings = DEFAULTS,
    seed: int = 0,
) -> Trial:
    """Prepare a treatment: check it, measure the weights of its constraints, and train nothing yet.

    Args:
        model: As in `treat`.
        images: As in `treat`.
        diagnosis: As in `treat`.
        arms: As in `treat`.
        constraints: As in `treat`.
        layers: As in `treat`.
        draws: As in `treat`.
        recipe: As in `treat`.
        settings: As in `treat`; its `seeds` are not used.
        seed: As in `treat`.

    Returns:
        What is ready to be trained, as often as is wanted.

    Raises:
        InputError: As in `treat`.
    """
    model, recipe = unwrap(model), recipe or Recipe()
    check_choice("norm", recipe.norm, NormPolicy)
    check_choice("precision", recipe.precision, Precision)
    check_diagnosed(model, diagnosis)
    source = images if isinstance(images, TrainingImages) else ShuffledBatches(tuple(images_of(images)))
    wanted, chosen, drawn = _arms_and_images(source, diagnosis, arms, constraints, layers, settings)
    for remedy in wanted.values():
        if isinstance(remedy, Cure):
            remedy.check(model, drawn, diagnosis)
    example = example_of(model, drawn)
    growth = settings.expand_pixels
    steps = max(recipe.epochs * drawn.steps_per_epoch, 1)
    plan = Prescription(
        chosen, diagnosis, Noise(draws=draws),
        default_expansion(example.shape[-1]) if growth == "auto" else growth, settings.penalty_every, steps,
    )  # fmt: skip
    plan, measured = prescribe(model, drawn, plan, recipe, settings.tau, seed=seed)

    def treated(model: nn.Module, _images: TrainingImages, _diagnosis: Diagnosis, seed: int) -> Course:
        return Course(plan.terms(model, example, seed), facts=measured)

    remedies = {name: remedy or treated for name, remedy in wanted.items()}
    return Trial(model, drawn, diagnosis, recipe, remedies, measured, settings.budget_kind, seed)


def _arms_and_images(
    source: TrainingImages,
    diagnosis: Diagnosis,
    arms: Sequence[str | Remedy] | None,
    constraints: Sequence[str | Constraint] | None,
    layers: Sequence[str] | None,
    settings: TreatmentSettings,
) -> tuple[dict[str, Remedy | None], tuple[Constraint, ...], TrainingImages]:
    """Return the remedy of each arm, the constraints, and the images with as many masks as the arms use."""
    masked = masked_ids(source, diagnosis, settings.most_masks)
    if arms is None:
        arms = default_arms(len(masked)) if settings.arms == "auto" else settings.arms
    wanted, chosen = remedies_named(arms), tuple[Constraint, ...]()
    if "treated" in wanted:
        chosen = chosen_constraints(constraints, layers, diagnosis, settings, has_masks=bool(masked))
    uses = any(constraint.needs_masks for constraint in chosen) or any(map(uses_masks, wanted.values()))
    return (
        wanted,
        chosen,
        with_masks(source, masked, share_drawn(settings.annotated_per_batch) if uses else 0.0),
    )


@dataclass(frozen=True)
class _Surroundings:
    """Where the arms of a treatment are trained."""

    validation: Images | None
    store: ArmStore | None
    progress: Progress
    processes: Processes


@dataclass(frozen=True)
class Trial:
    """A treatment that is ready to be trained.

    Attributes:
        model: The network whose copies are trained.
        images: The training images, with masks where arms use them.
        diagnosis: What is known of the network.
        recipe: How every arm is trained.
        remedies: In what each arm differs from the control, by its name; the control comes first.
        prescription: What each constraint weighs, and which parameters it reaches.
        budget_kind: What all arms have in common: `steps`, or the `passes` or the `time` of the first
            remedy's steps.
        seed: What all randomness depends on.
    """

    model: nn.Module
    images: TrainingImages
    diagnosis: Diagnosis
    recipe: Recipe
    remedies: Mapping[str, Remedy]
    prescription: tuple[Mapping[str, object], ...]
    budget_kind: BudgetKind
    seed: int

    def run(
        self,
        *,
        seeds: int,
        validation: Images | None = None,
        store: ArmStore | None = None,
        progress: Progress = silent,
        processes: Processes = ALONE,
    ) -> Treatment:
        """Train all arms.

        Args:
            seeds: How many times.
            validation: Images whose accuracy the history keeps, and by which remedies choose afterwards.
            store: Where arms are saved as they come, so that an interrupted treatment can go on.
            progress: Called with (stage, steps done, steps in all).
            processes: The processes that share the images of each step. Each calls this on an equal trial,
                and gets equal arms.

        Returns:
            The trained arms, and the prescription.
        """
        surroundings = _Surroundings(validation, store, progress, processes)
        arms = [arm for number in range(seeds) for arm in self._repetition(number, surroundings)]
        return Treatment(tuple(arms), self.prescription)

    def _repetition(self, number: int, around: _Surroundings) -> list[Arm]:
        """Train every arm of a repetition, except those that were finished before.

        A budget in seconds or passes is set by the first remedy's steps, so that arm runs first.
        """
        stream, recipe, done = key("treatment", self.seed, number), self.recipe, dict[str, Arm]()
        names = list(self.remedies)
        for name in names if self.budget_kind == "steps" else [names[1], names[0], *names[2:]]:
            finished = around.store.finished(name, number) if around.store is not None else None
            finished = around.processes.same(finished)
            done[name] = finished or self._arm(name, recipe, number, stream, done, around)
            if len(done) == 1 and self.budget_kind == "time":
                recipe = replace(recipe, seconds=done[name].seconds)
            if len(done) == 1 and self.budget_kind == "passes":
                recipe = replace(recipe, passes=done[name].passes)
        return [done[name] for name in names]

    def _arm(
        self,
        name: str,
        recipe: Recipe,
        number: int,
        stream: int,
        done: Mapping[str, Arm],
        around: _Surroundings,
    ) -> Arm:
        """Train a copy under a remedy; all arms of a repetition draw from the same random stream.

        A remedy that only edits a finished network takes the control's, or that of the arm which it edits.
        """
        model = copy_of(self.model)
        course = self.remedies[name](model, self.images, self.diagnosis, stream)
        remedy, edited = self.remedies[name], None
        if isinstance(remedy, Cure) and remedy.edits is not None and remedy.edits in done:
            edited = done[remedy.edits]
        elif course.only_edits and same_state(model, self.model):
            edited = done.get("control")
        if edited is not None:
            load_state(model, edited.state)
            trained = Trained(
                edited.history, edited.steps, edited.seconds, edited.skipped, edited.passes,
                tuple(course.facts),
            )  # fmt: skip
        else:
            trained = fit(
                model,
                lambda epoch: self.images.epoch(epoch, stream),
                recipe,
                steps_per_epoch=self.images.steps_per_epoch,
                seed=stream,
                course=course,
                validation=around.validation,
                checkpoints=around.store.checkpoints(name, number) if around.store is not None else None,
                progress=around.progress,
                stage=f"{name}, seed {number}",
                processes=around.processes,
            )
        trained = finish(model, trained, course, self.images, around.validation, stream)
        state = {entry: value.detach().cpu().clone() for entry, value in model.state_dict().items()}
        arm = around.processes.same(Arm(
            name, number, state, trained.history, trained.steps, trained.seconds, trained.skipped,
            trained.passes, trained.facts,
        ))  # fmt: skip
        if around.store is not None:
            around.store.save(arm)
        return arm

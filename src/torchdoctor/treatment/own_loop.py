"""Give the penalties of constraints to a training loop of the user's own, to be added to its loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.batches import Batch, ShuffledBatches, TrainingImages
from torchdoctor.images.loaders import ImageSource, batch_of, images_of
from torchdoctor.images.masks import default_expansion
from torchdoctor.network.outputs import unwrap
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.randomness import key
from torchdoctor.treatment.annotated_share import share_drawn
from torchdoctor.treatment.arms import check_diagnosed, chosen_constraints
from torchdoctor.treatment.constraints import CONSTRAINTS, Constraint
from torchdoctor.treatment.loop import LOOK_EVERY
from torchdoctor.treatment.masked_images import masked_ids, with_masks
from torchdoctor.treatment.passes import Noise
from torchdoctor.treatment.precision import at_least_float32
from torchdoctor.treatment.recipe import Recipe, move
from torchdoctor.treatment.settings import STEP_DRAWS, TreatmentSettings
from torchdoctor.treatment.weighting import LossAndPenalties, Prescription, example_of, prescribe
from torchdoctor.types import InputError, ModelDoctorError, NormPolicy

DEFAULTS = TreatmentSettings()
Weight = float | Literal["auto"] | Mapping[str, float | Literal["auto"]]


def penalty(
    model: nn.Module,
    diagnosis: Diagnosis,
    *constraints: str | Constraint,
    weight: Weight = "auto",
    layers: Sequence[str] | None = None,
    images: TrainingImages | ImageSource | None = None,
    draws: int = STEP_DRAWS,
    steps: int | None = None,
    settings: TreatmentSettings = DEFAULTS,
    seed: int = 0,
) -> TrainingPenalty:
    """Build the penalty of constraints for a training loop of your own: add it to the loss of every batch.

    It is what the arm `treated` of `treat` adds to its loss (Eq. 7).

    Args:
        model: The network that your loop trains, with the weights that were diagnosed.
        diagnosis: What `diagnose` said of it.
        constraints: Texts such as `channel` or `space layers=conv3`, or constraints of your own.
        weight: A number, one for each constraint by its name, or `auto`: measured so that the penalty's
            gradient is `settings.tau` times as large as the loss's.
        layers: The layers of constraints that name none of their own; None: the last diagnosed layer.
        images: Training images: the weights are measured on their first eight batches, at once. None: they
            are measured on the first batch that your loop gives.
        draws: Noise draws of each image in a step; 0 means no noise.
        steps: How many steps your training has; needed by constraints with a schedule only.
        settings: Evidence, scale, targets, tau, `penalty_every` and `expand_pixels`.
        seed: What the noise is keyed by.

    Returns:
        A function of (images, labels, masks) that returns the weighted penalty of a batch, a scalar.

    Raises:
        InputError: There is no constraint, a schedule lacks `steps`, the network is not the diagnosed one,
            or (with `images`) a constraint reaches nothing.

    Example:
        >>> import torch, torchdoctor as td
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3),
        ...     torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2),
        ... )
        >>> images, labels = torch.randn(8, 3, 9, 9), torch.arange(8) % 2
        >>> diagnosis = td.diagnose(model, [(images, labels)], layers=["2"], confidence=0.0)
        >>> penalty = td.penalty(model, diagnosis, "channel", weight=0.1)
        >>> loss = torch.nn.functional.cross_entropy(model(images), labels) + penalty(images, labels)
    """
    return _built(model, diagnosis, constraints, weight, layers, images, draws, steps, settings, seed)


def _built(
    model: nn.Module,
    diagnosis: Diagnosis,
    constraints: Sequence[str | Constraint],
    weight: Weight,
    layers: Sequence[str] | None,
    images: TrainingImages | ImageSource | None,
    draws: int,
    steps: int | None,
    settings: TreatmentSettings,
    seed: int,
) -> TrainingPenalty:
    """Check what `penalty` was given, and build the penalty."""
    model = unwrap(model)
    if not constraints:
        raise InputError(f"no constraint is named: name one or more of {', '.join(CONSTRAINTS)}")
    check_diagnosed(model, diagnosis)
    settings = settings.but(weight=weight)
    source, masked = None, tuple[int, ...]()
    if images is not None:
        source = images if isinstance(images, TrainingImages) else ShuffledBatches(tuple(images_of(images)))
        masked = masked_ids(source, diagnosis, settings.most_masks)
    known = source is None or bool(masked)
    chosen = chosen_constraints(constraints, layers, diagnosis, settings, has_masks=known)
    for constraint in chosen:
        if steps is None and constraint.schedule != "constant":
            raise InputError(
                f"constraint {constraint.name!r} has a schedule: say by steps= how many steps your training "
                "has"
            )
    built = TrainingPenalty(model, diagnosis, chosen, settings, draws, steps or 1, seed)
    if source is not None:
        share = share_drawn(settings.annotated_per_batch) if built.needs_masks else 0.0
        built.measure(with_masks(source, masked, share), chosen, Recipe().norm)
    return built


@dataclass(eq=False)
class TrainingPenalty:
    """The penalty of constraints in a training loop of the user's own; `penalty` makes it.

    Attributes:
        model: The network in training.
        diagnosis: Which kernels are correlated with which categories.
        constraints: The constraints as they were asked for.
        settings: How penalties are computed, and their weights set.
        draws: Noise draws of each image in a step.
        steps: The number of steps of the training, for schedules.
        seed: What the noise is keyed by.
        step: How often the penalty was computed for a training step.
        prescription: What each constraint weighs and reaches, as in `Treatment.prescription`; empty until it
            is measured.
        terms: The weighted penalty of each constraint in the last step, by name, for your log.
    """

    model: nn.Module
    diagnosis: Diagnosis
    constraints: tuple[Constraint, ...]
    settings: TreatmentSettings
    draws: int
    steps: int
    seed: int
    step: int = 0
    prescription: tuple[Mapping[str, object], ...] = ()
    terms: dict[str, Tensor] = field(default_factory=dict)
    _plan: Prescription | None = None
    _compute: LossAndPenalties | None = None
    _pending: list[tuple[int, Tensor]] = field(default_factory=list)

    @property
    def needs_masks(self) -> bool:
        """Whether a constraint looks at object masks."""
        return any(constraint.needs_masks for constraint in self.constraints)

    def __call__(self, images: Tensor, labels: Tensor, masks: Tensor | None = None) -> Float[Tensor, ""]:
        """Compute the weighted penalty of a batch, to be added to its loss.

        The network runs once more on the images, in the mode that it is in. Batch-norm's running statistics
        and the random numbers of your loop stay as they are.

        Args:
            images: Normalised images [batch, channel, height, width].
            labels: The number of each image's category [batch].
            masks: 1 on the object, 0 elsewhere: [batch, 1, height, width] or [batch, height, width]. An empty
                mask stands for an image without one, whose penalty is 0. None where no constraint needs
                masks.

        Returns:
            The penalty, averaged over the batch; 0 where gradients are off, as in validation.

        Raises:
            InputError: Images, labels or masks are something else than is expected, or a constraint reaches
                nothing.
            ModelDoctorError: The penalty is not a finite number.
        """
        if not torch.is_grad_enabled():
            return torch.zeros((), device=device_of(self.model))
        if masks is None and self.needs_masks:
            names = ", ".join(one.name for one in self.constraints if one.needs_masks)
            raise InputError(
                f"penalty: constraint {names} needs object masks: call penalty(images, labels, masks), with "
                "an empty mask (all 0) for an image that has none"
            )
        parts = (images, labels) if masks is None else (images, labels, masks)
        batch = move(batch_of(parts), device_of(self.model), dtype_of(self.model))
        self._measure_on(batch)
        step, self.step = self.step, self.step + 1
        if self._plan is None or self._compute is None or step % self._plan.every_k_steps:
            return torch.zeros((), device=batch.images.device)
        with _random_numbers_kept(self.model), _statistics_kept(self.model):
            torch.manual_seed(key("layers", self.seed, step))
            _, values = self._compute(self.model, batch, step)
        weighted = self._plan.weighted(values, step)
        total = torch.stack([at_least_float32(term) for term in weighted.values()]).sum()
        self.terms = {name: term.detach() for name, term in weighted.items()}
        self._pending.append((step, torch.isfinite(total.detach())))
        if total.device.type == "cpu" or len(self._pending) >= LOOK_EVERY:
            self.check()
        return total

    def check(self) -> None:
        """Look whether every penalty so far was finite; on a GPU, calls look at every 50th step only.

        Raises:
            ModelDoctorError: One was not.
        """
        pending, self._pending = self._pending, []
        if not pending or bool(torch.stack([finite for _, finite in pending]).all()):
            return
        step = next(step for step, finite in pending if not finite)
        terms = ", ".join(f"{name} {float(value):g}" for name, value in self.terms.items())
        spoiled = [name for name, value in self.model.named_parameters() if not bool(value.isfinite().all())]
        because = (
            f"weights of the network are not finite either ({spoiled[0]}), so an earlier step has spoiled "
            "them: lower the learning rate or the weight of the constraints"
            if spoiled
            else "look for pixels that are not finite, or lower the weight of the constraints"
        )
        raise ModelDoctorError(
            f"the penalty is not finite in step {step} of your loop (last: {terms}): {because}"
        )

    def measure(self, images: TrainingImages, constraints: Sequence[Constraint], norm: NormPolicy) -> None:
        """Measure what constraints weigh and reach on the first batches, and use them from now on.

        Args:
            images: The images.
            constraints: Those of the constraints that are meant.
            norm: Whether batch-norm normalises by the batch meanwhile.

        Raises:
            InputError: A constraint reaches nothing, or something measured is not finite.
        """
        example, growth = example_of(self.model, images), self.settings.expand_pixels
        example = example if len(example) > 1 else example.repeat(2, 1, 1, 1)
        plan = Prescription(
            tuple(constraints), self.diagnosis, Noise(draws=self.draws),
            default_expansion(example.shape[-1]) if growth == "auto" else growth,
            self.settings.penalty_every, self.steps,
        )  # fmt: skip
        with _random_numbers_kept(self.model):
            plan, found = prescribe(
                self.model, images, plan, Recipe(norm=norm), self.settings.tau, seed=self.seed
            )
            if self._plan is not None:
                plan = replace(plan, constraints=(*self._plan.constraints, *plan.constraints))
            self._compute = plan.penalties(self.model, example, key("penalty", self.seed))
        self._plan, self.prescription = plan, (*self.prescription, *found)

    def _measure_on(self, batch: Batch) -> None:
        """Measure the constraints that were not yet, unless they need masks and this batch has none."""
        measured = () if self._plan is None else [one.name for one in self._plan.constraints]
        waiting = [one for one in self.constraints if one.name not in measured]
        annotated = batch.annotated is not None and bool(batch.annotated.any())
        ready = [one for one in waiting if annotated or not one.needs_masks]
        if ready:
            by_batch = any(isinstance(one, _BatchNorm) and one.training for one in self.model.modules())
            self.measure(ShuffledBatches((batch,)), ready, "train" if by_batch else "frozen")


@contextmanager
def _random_numbers_kept(model: nn.Module) -> Iterator[None]:
    """Put the state of random numbers back after the block."""
    device = device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Let batch-norm in training mode leave its running statistics as they are inside the block."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]
    before = [(module.momentum, module.num_batches_tracked) for module in norms]
    try:
        for module, (_, count) in zip(norms, before, strict=True):
            module.momentum, module.num_batches_tracked = 0.0, None if count is None else count.clone()
        yield
    finally:
        for module, (momentum, count) in zip(norms, before, strict=True):
            module.momentum, module.num_batches_tracked = momentum, count

"""One training under way: its steps, its averages, and the state from which it can be resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from torchdoctor.images.batches import Batch
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.network.state import load_state
from torchdoctor.processes import ALONE, Processes
from torchdoctor.randomness import key
from torchdoctor.treatment.averaging import averaged_model
from torchdoctor.treatment.optimizer import (
    build_optimizer,
    learning_rate_factor,
    optimizer_tensors,
    restore_optimizer,
    trained_parameters,
)
from torchdoctor.treatment.precision import at_least_float32, autocast
from torchdoctor.treatment.recipe import (
    Course,
    Recipe,
    Step,
    TrainingState,
    move,
    set_mode,
)
from torchdoctor.treatment.sharing import common_gradients, sharing
from torchdoctor.types import ModelDoctorError

MOST_SKIPPED = 10  # steps in a row that are not finite end the training
LOOK_EVERY = 50  # steps between two looks at which were skipped: each look waits for the device
COUNTERS = ("step", "passes", "epoch", "place", "skipped", "seen", "in_a_row")  # as checkpoints name them


@dataclass
class Loop:
    """A training under way.

    Attributes:
        model: The network, trained in place.
        recipe: Optimiser, schedule, precision, and how long to train.
        course: What is minimised, and in what else the arm differs from the control.
        seed: Seeds the random layers.
        total: How many steps the training has.
        step: How many steps were taken.
        passes: How often loss and gradient were computed; more than `step` where a step takes several.
        epoch: How many epochs are over.
        place: How many batches of the present epoch were used.
        history: One line per finished epoch.
        skipped: The ids of the images of every skipped batch.
        sums: Of the present epoch, each term summed over the images.
        seen: How many images the present epoch has used.
        in_a_row: How many steps up to the last were skipped without a break.
        before: Seconds trained before an interruption, less those spent on validation.
        processes: Who shares the images of each step; all take the same steps.
    """

    model: nn.Module
    recipe: Recipe
    course: Course
    seed: int
    total: int
    step: int = 0
    passes: int = 0
    epoch: int = 0
    place: int = 0
    history: list[Mapping[str, float]] = field(default_factory=list)
    skipped: list[list[int]] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)
    seen: int = 0
    in_a_row: int = 0
    before: float = 0.0
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        """Build the optimiser, and the averaged network where the course averages weights.

        Raises:
            InputError: No parameter is trainable, the course trains what the network does not have, or the
                recipe's optimiser is unknown.
        """
        self.parameters = parameters = trained_parameters(self.model, self.course.trains)
        self.device = device_of(self.model)
        self.optimizer = build_optimizer(parameters, self.recipe)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.recipe.precision == "fp16")
        self.buffers = [value for value in self.model.buffers() if value.is_floating_point()]
        self.average: AveragedModel | None = None
        if self.course.average_from is not None:
            self.average = averaged_model(self.model, self.course.average_decay)
        self.pending: list[tuple[Tensor, list[int]]] = []
        self.started = time.perf_counter()
        self.clock = self.before  # the main process's seconds after the last step

    def seconds(self) -> float:
        """Return the seconds trained so far, those before an interruption included.

        Returns:
            Seconds, without those spent on validation.
        """
        return self.before + time.perf_counter() - self.started

    def _clock(self) -> float:
        """Return the seconds that decisions follow, the same in all processes."""
        return self.seconds() if self.processes.alone else self.clock

    def out_of_time(self) -> bool:
        """Tell whether a budget in seconds is used up.

        Returns:
            False where the recipe counts epochs.
        """
        return self.recipe.seconds is not None and self._clock() >= self.recipe.seconds

    def out_of_steps(self) -> bool:
        """Tell whether the training has had its steps or passes, where no epochs are counted.

        Returns:
            False where the recipe counts seconds or epochs. An arm with images of its own has the control's
            steps.
        """
        if self.recipe.passes is not None:
            return self.passes >= self.recipe.passes
        return self.recipe.seconds is None and self.course.images is not None and self.step >= self.total

    def finished(self) -> bool:
        """Tell whether the training is over.

        Returns:
            True where the recipe's seconds, its passes, or else its epochs are used up.
        """
        if self.recipe.seconds is not None:
            return self.out_of_time()
        if self.recipe.passes is not None or self.course.images is not None:
            return self.out_of_steps() and self.place == 0
        return self.epoch >= self.recipe.epochs

    def fraction(self) -> float:
        """Return the share of the training that is over, which the learning rate follows.

        Returns:
            A number from 0 to 1, by the recipe's seconds or passes where it has some, else by the steps.
        """
        if self.recipe.seconds is not None:
            return min(self._clock() / self.recipe.seconds, 1.0)
        if self.recipe.passes is not None:
            return min(self.passes / self.recipe.passes, 1.0)
        return self.step / self.total

    def steps_done(self) -> int:
        """Return how far the training is, in steps, for a progress bar.

        Returns:
            A number from 0 to `total`; with a budget in seconds or passes, its used share times `total`.
        """
        counted = self.recipe.seconds is None and self.recipe.passes is None
        return self.step if counted else int(self.fraction() * self.total)

    def step_on(self, batch: Batch) -> None:
        """Train a step; where something is not finite, leave the network as it was and note the images.

        Args:
            batch: Images [batch, channel, height, width], labels and ids, on any device.

        Raises:
            ModelDoctorError: Ten steps in a row were not finite.
        """
        ids = batch.ids.tolist()
        batch = move(batch, self.device, dtype_of(self.model))
        # The variance over a single image would be zero: the running statistics are used instead.
        set_mode(self.model, self.recipe.norm if len(ids) > 1 else "frozen")
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        buffers_before = [value.clone() for value in self.buffers]
        terms, total = self._loss(batch)
        finite = self._descend(total, batch)
        for buffer, old in zip(self.buffers, buffers_before, strict=True):
            buffer.copy_(torch.where(finite, buffer, old))
        for name, value in terms.items():
            value = torch.where(finite, value.detach().double(), 0.0) * len(ids)
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.seen += len(ids)
        self.step += 1
        self.place += 1
        if self.recipe.seconds is not None:
            self.clock = self.processes.same(self.seconds())
        self._average()
        self.pending.append((finite, ids))
        if len(self.pending) >= LOOK_EVERY:
            self.settle()

    def _rate(self) -> float:
        """Return the learning rate of the present step."""
        if self.course.schedule is not None:
            return self.recipe.learning_rate * self.course.schedule(self.fraction())
        done = self.fraction() * self.total
        return self.recipe.learning_rate * learning_rate_factor(done, self.total, self.recipe.warm_up)

    def _loss(self, batch: Batch) -> tuple[Mapping[str, Tensor], Tensor]:
        """Return the terms of the loss by name, and their sum."""
        self.passes += 1
        torch.manual_seed(key("layers", self.seed, self.step))
        with autocast(self.device, self.recipe.precision), sharing(self.processes):
            terms = self.course.terms(self.model, batch, self.step)
        return terms, torch.stack([at_least_float32(term) for term in terms.values()]).sum()

    def _again(self, batch: Batch) -> Tensor:
        """Compute the gradient anew and leave all buffers as they were; return the loss."""
        buffers = [value.clone() for value in self.model.buffers()]
        total = self._backward(self._loss(batch)[1])
        for buffer, old in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(old)
        return total

    def _backward(self, total: Tensor) -> Tensor:
        """Compute the gradient of a loss, the same in all processes; return the loss without its graph."""
        self.optimizer.zero_grad(set_to_none=True)
        if total.requires_grad:
            self.scaler.scale(total).backward()
        return common_gradients(self.parameters, total.detach(), self.processes)

    def _descend(self, total: Tensor, batch: Batch) -> Tensor:
        """Take the optimiser's step if loss and gradient are finite; return whether they are, as a tensor."""
        total = self._backward(total)
        if self.course.step is not None:
            again = partial(self._again, batch)
            self.course.step(Step(self.parameters, self.step, self.fraction(), again))
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        self.scaler.unscale_(self.optimizer)  # nothing where gradients are not scaled
        finite = torch.isfinite(torch.nn.utils.get_total_norm(gradients)) & torch.isfinite(total)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return finite
        # A fused optimiser reads the flag on the device, so that no step waits for it.
        self.optimizer.__dict__.update(found_inf=(~finite).to(torch.float32), grad_scale=None)
        self.optimizer.step()
        return finite

    def _average(self) -> None:
        """Add the present weights to their mean, from the share of the training on that the course names."""
        start = self.course.average_from
        if self.average is not None and start is not None and self.fraction() >= start:
            self.average.update_parameters(self.model)

    def settle(self) -> None:
        """Read from the device which of the last steps were skipped, and note the ids of their images.

        Raises:
            ModelDoctorError: Ten steps in a row were not finite.
        """
        if not self.pending:
            return
        flags = torch.stack([finite for finite, _ in self.pending]).tolist()
        for finite, (_, ids) in zip(flags, self.pending, strict=True):
            self.in_a_row = 0 if finite else self.in_a_row + 1
            if not finite:
                self.skipped.append(ids)
            if self.in_a_row >= MOST_SKIPPED:
                raise ModelDoctorError(
                    f"the loss or its gradient is not finite in {MOST_SKIPPED} steps in a row, up to step "
                    f"{self.step}, the last of them on images {ids}: lower the learning rate or the weight "
                    "of the constraints, or look at these images"
                )
        self.pending.clear()

    def end_epoch(self, validate: Callable[[], float] | None) -> Mapping[str, float]:
        """Finish an epoch; after the last epoch the network gets the averaged weights, if there are any.

        Args:
            validate: Measures the accuracy in percent on the validation images; None where there are none.

        Returns:
            The epoch's line of the history: its number, each term's mean over the images, and
            `validation_accuracy` in percent where there are validation images.

        Raises:
            ModelDoctorError: Ten steps in a row were not finite.
        """
        self.settle()
        images = max(self.seen, 1)
        means = {name: float(total) / images for name, total in self.sums.items()}
        entry = {"epoch": float(self.epoch), **means}
        self.sums, self.seen, self.place = {}, 0, 0
        self.epoch += 1
        if self.finished() and self.average is not None and self.average.n_averaged > 0:
            self.model.load_state_dict(self.average.module.state_dict())
        if validate is not None:
            started = time.perf_counter()
            entry["validation_accuracy"] = validate()
            self.before -= time.perf_counter() - started  # validation does not count as training
        self.history.append(entry)
        return entry

    def state(self) -> TrainingState:
        """Return everything that is needed to go on from here with the same result.

        Returns:
            The state; its tensors are those of the training itself, not copies.

        Raises:
            ModelDoctorError: Ten steps in a row were not finite.
        """
        self.settle()
        averaged = 0 if self.average is None else int(self.average.n_averaged)
        tensors = {f"model.{name}": value.detach() for name, value in self.model.state_dict().items()}
        if self.average is not None and averaged:
            weights = self.average.module.state_dict()
            tensors |= {f"average.{name}": value.detach() for name, value in weights.items()}
        tensors |= {f"sums.{name}": total for name, total in self.sums.items()}
        moments = optimizer_tensors(self.optimizer)
        tensors |= {f"optimizer.{name}": value for name, value in moments.items()}
        numbers: dict[str, Any] = {name: getattr(self, name) for name in COUNTERS}
        numbers["averaged"] = averaged
        numbers["history"] = list(self.history)
        numbers["terms"] = list(self.sums)  # in their order, which files of tensors do not keep
        numbers["scaler"] = self.scaler.state_dict()
        return TrainingState(self.step, tensors, numbers, self.processes.same(self.seconds()))

    def restore(self, state: TrainingState) -> None:
        """Go back to a saved state.

        Args:
            state: What `state` returned, in this process or earlier, for the same model and recipe.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "sums": {}, "optimizer": {}}
        for name, value in state.tensors.items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = value.to(self.device)
        load_state(self.model, parts["model"])
        restore_optimizer(self.optimizer, parts["optimizer"])
        if self.average is not None and parts["average"]:
            load_state(self.average.module, parts["average"])
            self.average.n_averaged.fill_(state.numbers["averaged"])
        self.sums = {name: parts["sums"][name] for name in state.numbers["terms"]}
        for name in COUNTERS:
            setattr(self, name, state.numbers[name])
        self.history = list(state.numbers["history"])
        self.scaler.load_state_dict(state.numbers["scaler"])
        self.before = self.clock = state.seconds

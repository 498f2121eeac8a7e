"""Train a network: one loop for training from scratch, for the control arm and for every treated one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from torchdoctor.images.batches import Batch, Images
from torchdoctor.network.prediction import device_of, dtype_of, predict_logits
from torchdoctor.randomness import key
from torchdoctor.treatment.recipe import (
    PLAIN,
    Checkpoints,
    Course,
    Recipe,
    TrainingState,
    autocast,
    move,
    set_mode,
    wide,
)
from torchdoctor.types import InputError, Interrupted, ModelDoctorError, Progress, silent

MOST_SKIPPED = 10  # steps in a row that may be not finite before the training ends
LOOK_EVERY = 50  # steps between two looks at what was skipped: each look waits for the device
COUNTERS = ("step", "epoch", "place", "skipped", "seen", "in_a_row", "averaged")


@dataclass(frozen=True)
class Trained:
    """What a training leaves beside the weights: history per epoch, steps, seconds, skipped batches."""

    history: tuple[Mapping[str, float], ...]
    steps: int
    seconds: float
    skipped: tuple[tuple[int, ...], ...] = ()


def fit(
    model: nn.Module,
    images: Callable[[int], Iterable[Batch]],
    recipe: Recipe,
    *,
    steps_per_epoch: int,
    seed: int,
    course: Course = PLAIN,
    validation: Images | None = None,
    after_epoch: Callable[[int, Mapping[str, float]], None] | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress = silent,
    stage: str = "train",
) -> Trained:
    """Train in place on the course's terms and return what happened.

    Random layers are seeded by (seed, step): two runs that differ only in the course see the same
    drop-outs, and a run that goes on from a checkpoint ends bit for bit as one that was never stopped.
    A step whose terms or gradients are not finite is skipped and its images are named; ten in a row end
    the run. Raises Interrupted after saving when the checkpoints ask to stop.
    """
    loop = Loop(model, recipe, course, seed, max(recipe.epochs * steps_per_epoch, 1))
    state = checkpoints.load() if checkpoints is not None else None
    if state is not None:
        loop.restore(state)
    while not loop.finished():
        place = loop.place
        for batch in islice(images(loop.epoch), place, None):
            loop.step_on(batch)
            progress(stage, loop.shown(), loop.total)
            if checkpoints is not None and (checkpoints.due(loop.step) | checkpoints.stopping()):
                checkpoints.save(loop.state())
                if checkpoints.stopping():
                    raise Interrupted(f"{stage} was stopped after step {loop.step}; its state is saved")
            if loop.out_of_time():
                break
        entry = loop.end_epoch(validation)
        if after_epoch is not None:
            after_epoch(int(entry["epoch"]), entry)
    return Trained(tuple(loop.history), loop.step, loop.seconds(), tuple(map(tuple, loop.skipped)))


@dataclass
class Loop:
    """A training under way: everything that changes from step to step."""

    model: nn.Module
    recipe: Recipe
    course: Course
    seed: int
    total: int
    step: int = 0
    epoch: int = 0
    place: int = 0
    history: list[Mapping[str, float]] = field(default_factory=list)
    skipped: list[list[int]] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)
    seen: int = 0
    in_a_row: int = 0
    average: dict[str, Tensor] = field(default_factory=dict)
    averaged: int = 0
    before: float = 0.0

    def __post_init__(self) -> None:
        """Build the optimiser; InputError where nothing is trainable."""
        parameters = [one for one in self.model.parameters() if one.requires_grad]
        if not parameters:
            raise InputError("no parameter of the model is trainable (all are frozen): nothing could change")
        self.parameters = parameters
        self.device = device_of(self.model)
        self.optimizer = _optimizer(parameters, self.recipe)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.recipe.precision == "fp16")
        self.buffers = [one for one in self.model.buffers() if one.is_floating_point()]
        self.pending: list[tuple[Tensor, list[int]]] = []
        self.started = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds trained so far, those before an interruption included."""
        return self.before + time.perf_counter() - self.started

    def out_of_time(self) -> bool:
        """Whether a budget in seconds is used up."""
        return self.recipe.seconds is not None and self.seconds() >= self.recipe.seconds

    def finished(self) -> bool:
        """Whether the budget is used up."""
        return self.out_of_time() if self.recipe.seconds is not None else self.epoch >= self.recipe.epochs

    def fraction(self) -> float:
        """Return the share of the training that is over."""
        if self.recipe.seconds is not None:
            return min(self.seconds() / self.recipe.seconds, 1.0)
        return self.step / self.total

    def shown(self) -> int:
        """Return how many of `total` steps the progress bar shows."""
        return self.step if self.recipe.seconds is None else int(self.fraction() * self.total)

    def step_on(self, batch: Batch) -> None:
        """Take one step; where something is not finite, leave the network as it was and note the images."""
        ids = batch.ids.tolist()
        batch = move(batch, self.device, dtype_of(self.model))
        # Batch statistics of one image would be zero: its own are used instead.
        set_mode(self.model, self.recipe.norm if len(ids) > 1 else "frozen")
        rate = self.recipe.learning_rate * _schedule(
            self.fraction() * self.total, self.total, self.recipe.warm_up
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        kept = [one.clone() for one in self.buffers]
        torch.manual_seed(key("layers", self.seed, self.step))
        with autocast(self.device, self.recipe.precision):
            terms = self.course.terms(self.model, batch, self.step)
        finite = self._descend(torch.stack([wide(one) for one in terms.values()]).sum())
        for buffer, old in zip(self.buffers, kept, strict=True):
            buffer.copy_(torch.where(finite, buffer, old))
        for name, value in terms.items():
            value = torch.where(finite, value.detach().double(), 0.0) * len(ids)
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.seen += len(ids)
        self.step += 1
        self.place += 1
        self._average()
        self.pending.append((finite, ids))
        if len(self.pending) >= LOOK_EVERY:
            self.settle()

    def _descend(self, total: Tensor) -> Tensor:
        """Step down the gradient of a total unless it is not finite; return whether it was, unread."""
        self.optimizer.zero_grad(set_to_none=True)
        if total.requires_grad:
            self.scaler.scale(total).backward()
        gradients = [one.grad for one in self.parameters if one.grad is not None]
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        finite = torch.isfinite(torch.nn.utils.get_total_norm(gradients)) & torch.isfinite(total.detach())
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return finite
        # A fused optimiser reads the flag on the device, so that no step waits for it.
        self.optimizer.__dict__.update(found_inf=(~finite).to(torch.float32), grad_scale=None)
        self.optimizer.step()
        return finite

    def _average(self) -> None:
        """Add the weights to the running average once its time has come."""
        start = self.course.average_from
        if start is None or self.fraction() < start:
            return
        self.averaged += 1
        for name, value in self.model.state_dict().items():
            if not value.is_floating_point():
                self.average[name] = value.clone()
            elif name in self.average:
                self.average[name].lerp_(value, 1.0 / self.averaged)
            else:
                self.average[name] = value.detach().clone()

    def settle(self) -> None:
        """Read which of the last steps were skipped; ModelDoctorError after ten in a row."""
        if not self.pending:
            return
        fine = torch.stack([flag for flag, _ in self.pending]).tolist()
        for good, (_, ids) in zip(fine, self.pending, strict=True):
            self.in_a_row = 0 if good else self.in_a_row + 1
            if not good:
                self.skipped.append(ids)
            if self.in_a_row >= MOST_SKIPPED:
                raise ModelDoctorError(
                    f"the loss or its gradient is not finite in {MOST_SKIPPED} steps in a row, up to step "
                    f"{self.step}, the last of them on images {ids}: lower the learning rate or the weight "
                    "of the constraints, or look at these images"
                )
        self.pending.clear()

    def end_epoch(self, validation: Images | None) -> Mapping[str, float]:
        """Close the epoch's books and return its line of the history; the last one ends the averaging."""
        self.settle()
        images = max(self.seen, 1)
        entry = {"epoch": float(self.epoch), **{name: float(one) / images for name, one in self.sums.items()}}
        self.sums, self.seen, self.place = {}, 0, 0
        self.epoch += 1
        if self.finished() and self.average:
            self.model.load_state_dict(self.average)
        if validation is not None:
            started = time.perf_counter()
            entry["validation_accuracy"] = accuracy(self.model, validation)
            self.before -= time.perf_counter() - started  # looking is no training
        self.history.append(entry)
        return entry

    def state(self) -> TrainingState:
        """Return everything that is needed to go on from here."""
        self.settle()
        tensors = {f"model.{name}": one.detach() for name, one in self.model.state_dict().items()}
        tensors |= {f"average.{name}": one for name, one in self.average.items()}
        tensors |= {f"sums.{name}": one for name, one in self.sums.items()}
        moments = self.optimizer.state_dict()["state"]
        tensors |= {
            f"optimizer.{index}.{name}": one
            for index, entries in moments.items()
            for name, one in entries.items()
            if isinstance(one, Tensor)
        }
        numbers: dict[str, Any] = {name: getattr(self, name) for name in COUNTERS}
        numbers["history"] = list(self.history)
        numbers["terms"] = list(self.sums)  # in their order, which files of tensors do not keep
        numbers["scaler"] = self.scaler.state_dict()
        return TrainingState(self.step, tensors, numbers, self.seconds())

    def restore(self, state: TrainingState) -> None:
        """Go back to where a state was kept."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "sums": {}, "optimizer": {}}
        for name, one in state.tensors.items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = one.to(self.device)
        self.model.load_state_dict(parts["model"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, one in parts["optimizer"].items():
            index, _, entry = name.partition(".")
            moments.setdefault(int(index), {})[entry] = one
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.average = parts["average"]
        self.sums = {name: parts["sums"][name] for name in state.numbers["terms"]}
        for name in COUNTERS:
            setattr(self, name, state.numbers[name])
        self.history = list(state.numbers["history"])
        self.scaler.load_state_dict(state.numbers["scaler"])
        self.before = state.seconds


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Build the optimiser; vectors (norms, biases) carry no weight decay."""
    groups = [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True, fused=True
        )
        for one in parameters:  # a first step that is skipped would leave these undefined
            optimizer.state[one]["momentum_buffer"] = torch.zeros_like(one)
        return optimizer
    raise InputError(f"optimizer {recipe.optimizer!r} is unknown; expected sgd or adamw")


def _schedule(step: int | float, total: int, warm_up: float) -> float:
    """Return the factor on the learning rate: linear warm-up, then a cosine to 0."""
    warm = max(1.0, warm_up * total)
    if step < warm:
        return min(1.0, (step + 1) / warm)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(total - warm, 1.0)))


def accuracy(model: nn.Module, images: Images) -> float:
    """Return the accuracy in percent."""
    _, labels, logits = predict_logits(model, images)
    return 100.0 * float((logits.argmax(1) == labels).double().mean())

"""Train a network: the same function for training from scratch, for the control arm and for all others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import nn

from torchdoctor.images.batches import Batch, Images, TrainingImages
from torchdoctor.network.memory import out_of_memory
from torchdoctor.network.prediction import predict_logits
from torchdoctor.network.state import load_state
from torchdoctor.processes import ALONE, Processes
from torchdoctor.randomness import key
from torchdoctor.treatment.loop import Loop
from torchdoctor.treatment.recipe import PLAIN, Checkpoints, Course, Recipe
from torchdoctor.types import InputError, Interrupted, ModelDoctorError, Progress, first_line, silent

AGREE_EVERY = 10  # steps on a GPU between two looks at what the processes wish: each look waits for it


@dataclass(frozen=True)
class Trained:
    """What a training leaves beside the trained weights.

    Attributes:
        history: One mapping per epoch: `epoch` from 0, each term of the loss (mean over the images), and
            `validation_accuracy` in percent where there were validation images.
        steps: How many steps were taken, skipped ones included.
        seconds: How long the training took, without validation.
        skipped: The ids of the images of every skipped batch.
        passes: How often loss and gradient were computed: as often as there were steps, or more.
        facts: What the course found, before the training and afterwards.
    """

    history: tuple[Mapping[str, float], ...]
    steps: int
    seconds: float
    skipped: tuple[tuple[int, ...], ...] = ()
    passes: int = 0
    facts: tuple[Mapping[str, object], ...] = ()


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
    processes: Processes = ALONE,
) -> Trained:
    """Train a network in place.

    Random layers are seeded by (seed, step): runs that differ only in the course drop out the same units, and
    a resumed run ends bit for bit the same. A step whose loss or gradient is not finite changes nothing.

    Args:
        model: The network.
        images: Returns the batches of an epoch, by its number from 0; not called where the course has images.
        recipe: Epochs, optimiser, learning rate and its schedule, and precision.
        steps_per_epoch: How many batches an epoch has.
        seed: The seed of the random layers.
        course: The loss, and all else in which this training differs from the control (see `Course`).
        validation: Images on which the accuracy is measured after every epoch.
        after_epoch: Called after every epoch with its number and its line of the history.
        checkpoints: Where the state is saved, and when to save it and to stop; None: never.
        progress: Called after every step with `stage`, the steps done and the steps in all.
        stage: The training's name in the progress and in messages.
        processes: The processes that share the images of each step; all end with the same weights.

    Returns:
        The history, how many steps and seconds the training took, and what was skipped.

    Raises:
        InputError: No parameter is trainable, or recipe and course do not fit each other.
        Interrupted: The checkpoints asked to stop; the state is saved.
        ModelDoctorError: Ten steps in a row were not finite.
    """
    epoch = _epochs(images, course, seed)
    steps = max(recipe.epochs * steps_per_epoch, 1)
    loop = Loop(model, course.recipe_from(recipe), course, seed, steps, processes=processes)
    validate = None if validation is None else partial(accuracy, model, validation)
    wishes = _Wishes(checkpoints, loop).restored()
    while not loop.finished():
        for batch in islice(epoch(loop), loop.place, None):
            _take_step(loop, batch, stage)
            progress(stage, loop.steps_done(), loop.total)
            if wishes.saved_and_stopping():
                raise Interrupted(f"{stage} was stopped after step {loop.step}; its state is saved")
            if loop.out_of_time() or loop.out_of_steps():
                break
        entry = loop.end_epoch(validate)
        if after_epoch is not None:
            after_epoch(int(entry["epoch"]), entry)
    skipped = tuple(map(tuple, loop.skipped))
    return Trained(tuple(loop.history), loop.step, loop.seconds(), skipped, loop.passes, tuple(course.facts))


def _take_step(loop: Loop, batch: Batch, stage: str) -> None:
    """Train a step; where one process runs out of memory, all end with the same error."""
    try:
        loop.step_on(batch)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        who, more = f"process {loop.processes.rank}", " or more processes"
        if loop.processes.alone:
            who, more = f"the device {loop.device}", ""
        raise loop.processes.end_all(
            ModelDoctorError(
                f"{stage}: {who} ran out of memory in step {loop.step + 1}, with {len(batch.ids)} images in "
                f"a batch ({first_line(error)}): begin anew with a smaller --batch-size{more}"
            )
        ) from error


@dataclass
class _Wishes:
    """Whether to save the state now and to stop, the same in all processes.

    Several processes agree after every step, or on a GPU after every tenth: what one has wished for since
    the last time, all do.
    """

    checkpoints: Checkpoints | None
    loop: Loop
    due: bool = False
    stop: bool = False

    def restored(self) -> _Wishes:
        """Go back to the state that the main process has saved; without one, to the weights that it has."""
        processes, model = self.loop.processes, self.loop.model
        state = processes.same(self.checkpoints.load() if self.checkpoints is not None else None)
        if state is not None:
            self.loop.restore(state)
        elif not processes.alone:
            load_state(model, processes.same(model.state_dict()))
        return self

    def saved_and_stopping(self) -> bool:
        """Save the state where that is wished for; return whether to stop then. Ask once after every step."""
        if self.checkpoints is None or not self._agreed(self.checkpoints):
            return False
        self.checkpoints.save(self.loop.state())
        return self.checkpoints.stopping() if self.loop.processes.alone else self.stop

    def _agreed(self, checkpoints: Checkpoints) -> bool:
        """Return whether the state is to be saved now."""
        loop, due, stop = self.loop, checkpoints.due(self.loop.step), checkpoints.stopping()
        if loop.processes.alone:
            return due or stop
        self.due, self.stop = self.due or due, self.stop or stop
        if loop.device.type != "cpu" and loop.step % AGREE_EVERY:
            return False
        wished = torch.tensor([float(self.due), float(self.stop)], device=loop.device)
        loop.processes.sum([wished])
        save, self.stop = (bool(value) for value in wished.tolist())
        self.due = False
        return save or self.stop


def _epochs(
    images: Callable[[int], Iterable[Batch]], course: Course, seed: int
) -> Callable[[Loop], Iterable[Batch]]:
    """Return what gives the batches of a training's present epoch; InputError where a course has none."""
    own = course.images
    if own is not None and not own.steps_per_epoch:
        raise InputError("a remedy has chosen no image to train on: it has to leave some")

    def epoch(loop: Loop) -> Iterable[Batch]:
        if loop.out_of_steps():  # a state that was saved at the last step, before its epoch was ended
            return ()
        return images(loop.epoch) if own is None else own.epoch(loop.epoch, seed)

    return epoch


def finish(
    model: nn.Module,
    trained: Trained,
    course: Course,
    images: TrainingImages,
    validation: Images | None,
    seed: int,
) -> Trained:
    """Let a course edit the network after its training.

    Args:
        model: The trained network; it is changed in place.
        trained: What its training left.
        course: The arm's course.
        images: The training images of all arms; the course's own go before them.
        validation: The validation images; None where there are none.
        seed: Seeds what the course draws at random.

    Returns:
        The same record with what the course found. The last validation accuracy is that of the edited
        network, and the time includes the edit.

    Raises:
        ModelDoctorError: The edit has left numbers that are not finite, or other tensors than before.
    """
    if course.afterwards is None:
        return trained
    started = time.perf_counter()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    model.eval()
    torch.manual_seed(key("afterwards", seed))
    own = images if course.images is None else course.images
    found = course.afterwards(model, own, validation)
    after = model.state_dict()
    if {name: value.shape for name, value in after.items()} != shapes:
        raise ModelDoctorError(
            "a remedy has added or removed tensors of the network, or changed their shapes"
        )
    if not all(bool(torch.isfinite(value).all()) for value in after.values()):
        raise ModelDoctorError("a remedy has left weights that are not finite")
    seconds = trained.seconds + time.perf_counter() - started
    history = trained.history
    if validation is not None and history:
        last = {**history[-1], "validation_accuracy": accuracy(model, validation)}
        history = (*history[:-1], last)
    facts = trained.facts if found is None else (*trained.facts, found)
    return replace(trained, history=history, seconds=seconds, facts=facts)


def accuracy(model: nn.Module, images: Images) -> float:
    """Measure a network's accuracy.

    Args:
        model: The network; it is left as it was.
        images: The images with their labels.

    Returns:
        The percentage of images whose highest logit is that of their label.
    """
    _, labels, logits = predict_logits(model, images)
    return 100.0 * float((logits.argmax(1) == labels).double().mean())

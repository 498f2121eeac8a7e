"""Train a network: the same function for training from scratch, for the control arm and for all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice

from torch import nn

from torchdoctor.images.batches import Batch, Images
from torchdoctor.network.prediction import predict_logits
from torchdoctor.treatment.loop import Loop
from torchdoctor.treatment.recipe import PLAIN, Checkpoints, Course, Recipe
from torchdoctor.types import Interrupted, Progress, silent


@dataclass(frozen=True)
class Trained:
    """What a training leaves beside the trained weights.

    Attributes:
        history: One mapping per epoch: `epoch` from 0, each term of the loss (mean over the images), and
            `validation_accuracy` in percent where there were validation images.
        steps: How many steps were taken, skipped ones included.
        seconds: How long the training took, without validation.
        skipped: The ids of the images of every skipped batch.
    """

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
    """Train a network in place.

    Random layers are seeded by (seed, step): runs that differ only in the course drop out the same units, and
    a resumed run ends bit for bit as if it was never stopped. A step whose loss or gradient is not finite
    changes nothing; the ids of its images are noted.

    Args:
        model: The network.
        images: Returns the batches of an epoch, from the epoch's number.
        recipe: Optimiser, schedule, precision, length.
        steps_per_epoch: How many batches an epoch has.
        seed: Seeds the random layers.
        course: What is minimised, and whether the weights are averaged.
        validation: Images on which the accuracy is measured after every epoch.
        after_epoch: Called after every epoch with its number and its line of the history.
        checkpoints: Where the state is saved, and who asks to stop.
        progress: Called after every step with `stage`, the steps done and the steps in all.
        stage: The training's name in the progress and in messages.

    Returns:
        The history, and how many steps and seconds the training took.

    Raises:
        InputError: No parameter is trainable, or the recipe's optimiser is unknown.
        Interrupted: The checkpoints asked to stop; the state is saved.
        ModelDoctorError: Ten steps in a row were not finite.
    """
    loop = Loop(model, recipe, course, seed, max(recipe.epochs * steps_per_epoch, 1))
    validate = None if validation is None else partial(accuracy, model, validation)
    state = checkpoints.load() if checkpoints is not None else None
    if state is not None:
        loop.restore(state)
    while not loop.finished():
        for batch in islice(images(loop.epoch), loop.place, None):
            loop.step_on(batch)
            progress(stage, loop.steps_done(), loop.total)
            if checkpoints is not None and (checkpoints.due(loop.step) | checkpoints.stopping()):
                checkpoints.save(loop.state())
                if checkpoints.stopping():
                    raise Interrupted(f"{stage} was stopped after step {loop.step}; its state is saved")
            if loop.out_of_time():
                break
        entry = loop.end_epoch(validate)
        if after_epoch is not None:
            after_epoch(int(entry["epoch"]), entry)
    return Trained(tuple(loop.history), loop.step, loop.seconds(), tuple(map(tuple, loop.skipped)))


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

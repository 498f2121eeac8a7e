"""Try a few learning rates out on the control, so that no remedy wins only because the rate is bad."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Literal

from torch import nn

from torchdoctor.images.batches import Batch, Images, TrainingImages
from torchdoctor.network.copying import copy_of
from torchdoctor.processes import ALONE, Processes
from torchdoctor.randomness import key
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.training import accuracy, fit
from torchdoctor.types import ModelDoctorError, Progress, silent

BASE: Mapping[Literal["sgd", "adamw"], float] = {"sgd": 0.01, "adamw": 0.0003}
TIMES = (0.3, 1.0, 3.0, 10.0)  # multiples of the base that are tried
STEPS = 48  # of the short training at each rate, where an arm has four times as many
LEAST_STEPS = 8
NONE_KNOWN: Mapping[float, float] = MappingProxyType({})


@dataclass(frozen=True)
class RateTest:
    """What short trainings at several learning rates have shown.

    Attributes:
        chosen: The highest rate whose network was about as good as the best on the validation images.
        accuracies: The validation accuracy in percent by rate; NaN where the training broke off.
        steps: How many steps the test took in all.
    """

    chosen: float
    accuracies: Mapping[float, float]
    steps: int

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        tried = ", ".join(f"{rate:g}: {value:.1f} %" for rate, value in self.accuracies.items())
        return (
            f"learning rate {self.chosen:g} for all arms, the highest of {len(self.accuracies)} about "
            f"as good as the best for the control on the validation images ({tried}); tried in {self.steps} "
            "steps"
        )


def rates_of(recipe: Recipe) -> tuple[float, ...]:
    """Return the learning rates that are tried.

    Args:
        recipe: It names the optimiser.

    Returns:
        Rates in rising order, such as 0.003, 0.01, 0.03 and 0.1.
    """
    return tuple(float(f"{BASE[recipe.optimizer] * times:.3g}") for times in TIMES)


def short_steps(recipe: Recipe, steps_per_epoch: int) -> int:
    """Return how many steps the short training at each rate has.

    Args:
        recipe: How the arms are trained.
        steps_per_epoch: How many batches an epoch has.

    Returns:
        A quarter of an arm's steps, but at most 48 and at least 8.
    """
    return min(STEPS, max(recipe.epochs * steps_per_epoch // 4, LEAST_STEPS))


def affordable_steps(recipe: Recipe, steps_per_epoch: int, seeds: int) -> int:
    """Return how many steps the short training at each rate has where nobody asked for it.

    Args:
        recipe: How the arms are trained.
        steps_per_epoch: How many batches an epoch has.
        seeds: How often every arm is trained.

    Returns:
        As many as `short_steps` says, but all rates together take at most what the control takes; 0 where
        that leaves fewer than 8, which would say nothing.
    """
    all_of_control = seeds * recipe.epochs * steps_per_epoch
    steps = min(short_steps(recipe, steps_per_epoch), all_of_control // len(TIMES))
    return steps if steps >= LEAST_STEPS else 0


def measured_rate(
    model: nn.Module,
    images: TrainingImages,
    validation: Images,
    recipe: Recipe,
    *,
    steps: int | None = None,
    seed: int = 0,
    known: Mapping[float, float] = NONE_KNOWN,
    note: Callable[[Mapping[float, float]], None] | None = None,
    progress: Progress = silent,
    processes: Processes = ALONE,
) -> RateTest:
    """Choose the learning rate of all arms: the control is trained for a few steps at each of several rates.

    Every short training is whole: its rate rises and falls to 0 within its steps. The highest rate is taken
    whose accuracy on the validation images is not below the best by more than a standard error. A short
    training makes high rates look worse than a long one does, so the tie goes to them.

    Args:
        model: The network; it is left as it was.
        images: The training images.
        validation: The validation images.
        recipe: How the arms are trained; its learning rate is not used.
        steps: How many steps each training has; None: as `short_steps` says.
        seed: What all randomness depends on.
        known: The accuracies of rates that were tried before.
        note: Called with the accuracies so far after every rate that was tried.
        progress: Called with stage, done, of how many.
        processes: Who shares the images of each step; all get the same rate.

    Returns:
        The rate, and what was measured.

    Raises:
        ModelDoctorError: No training went through to its end.
    """
    rates, stream = rates_of(recipe), key("learning rate", seed)
    steps = steps or short_steps(recipe, images.steps_per_epoch)
    first = partial(_first, images, steps, stream)
    accuracies = {rate: known[rate] for rate in rates if rate in known}
    for rate in rates[len(accuracies) :]:
        own = copy_of(model)
        short = replace(recipe, epochs=1, seconds=None, learning_rate=rate)
        try:
            fit(own, first, short, steps_per_epoch=steps, seed=stream, processes=processes)
            accuracies[rate] = processes.same(accuracy(own, validation))
        except ModelDoctorError:  # ten steps in a row that are not finite
            accuracies[rate] = math.nan
        progress("learning rate", len(accuracies), len(rates))
        if note is not None:
            note(accuracies)
    return RateTest(_highest(accuracies, validation), accuracies, steps * len(rates))


def _highest(accuracies: Mapping[float, float], validation: Images) -> float:
    """Return the highest rate that is about as good as the best; ModelDoctorError where none trains."""
    sound = [rate for rate in accuracies if not math.isnan(accuracies[rate])]
    if not sound:
        tried = ", ".join(f"{rate:g}" for rate in accuracies)
        raise ModelDoctorError(
            f"none of the learning rates {tried} trains the network: its loss is not finite; look at the "
            "images, or give a rate with --learning-rate"
        )
    number = sum(len(batch.labels) for batch in validation)
    best = max(accuracies[rate] for rate in sound)
    error = math.sqrt(best * (100 - best) / number)
    return max(rate for rate in sound if accuracies[rate] >= best - error)


def _first(images: TrainingImages, steps: int, seed: int, _epoch: int) -> Iterator[Batch]:
    """Yield as many batches as there are steps, in as many epochs as that takes."""
    number = done = 0
    while done < steps:
        for batch in images.epoch(number, seed):
            yield batch
            done += 1
            if done == steps:
                return
        number += 1

"""Choose a remedy on the validation split: candidates, halved while their training grows."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.batches import Batch, Images, TrainingImages
from torchdoctor.randomness import key
from torchdoctor.treatment.constraints import Constraint, constraints_named
from torchdoctor.treatment.passes import Noise
from torchdoctor.treatment.recipe import Course, Recipe
from torchdoctor.treatment.remedies import REMEDIES, Remedy
from torchdoctor.treatment.training import accuracy
from torchdoctor.treatment.weighting import Prescription, example_of, prescribe
from torchdoctor.types import InputError

Select = Literal["iid", "swapped", "mean"]
CONTROL = "control"


@dataclass(frozen=True)
class Candidate:
    """One thing to try: a remedy of REMEDIES, or constraints as texts with the tau of their weights."""

    name: str
    constraints: tuple[str, ...] = ()
    tau: float = 0.3

    @property
    def arm(self) -> str:
        """The arm that it becomes in a treatment."""
        return "treated" if self.constraints else self.name


@dataclass(frozen=True)
class Rung:
    """One round of the search: who is tried for how many epochs, and the scores in percent."""

    epochs: int
    scores: Mapping[str, float]

    @property
    def ranking(self) -> list[str]:
        """The candidates without the control, best first; ties go to the one that was proposed first."""
        tried = [name for name in self.scores if name != CONTROL]
        return sorted(tried, key=lambda name: -_ranked(self.scores[name]))


def _ranked(score: float) -> float:
    """Return a score that can be sorted: what is not a number is the worst."""
    return -math.inf if math.isnan(score) else score


def candidates(layers: Sequence[str], has_masks: bool, ends_linear: bool = True) -> tuple[Candidate, ...]:
    """Propose what to try, the most promising first: a small budget keeps the head of the list.

    With masks the background is the suspect: swaps, then space-wise constraints at every layer and
    strength. Without them channel-wise constraints at the last layers, and what needs no diagnosis.
    """
    later = list(reversed(layers))
    space = [
        Candidate(f"space-{layer}-tau{tau:g}", (f"space layers={layer}",), tau)
        for tau in (1.0, 3.0, 0.3)
        for layer in later
    ]
    channel = [
        Candidate(f"channel-{layer}-tau{tau:g}", (f"channel layers={layer}",), tau)
        for tau in (0.3, 1.0)
        for layer in later[:2]
    ]
    both = Candidate(
        f"both-{later[0]}-tau0.3", (f"channel layers={later[0]}", f"space layers={later[0]}"), 0.3
    )
    plain = [Candidate("averaging"), Candidate("smoothing")] + ([Candidate("dfr")] if ends_linear else [])
    if has_masks:
        return (
            Candidate("swap"),
            *space[:3],
            channel[0],
            *plain,
            Candidate("rrr"),
            both,
            *space[3:],
            *channel[1:],
        )
    return (channel[0], *plain, *channel[1:])


def remedy_of(
    candidate: Candidate, layers: Sequence[str], recipe: Recipe, *, draws: int, every: int, expand_pixels: int
) -> Remedy:
    """Return a candidate as a remedy; weights that are `auto` are measured when an arm begins."""
    if not candidate.constraints:
        return REMEDIES[candidate.name]
    built = constraints_named(candidate.constraints, layers=layers)
    return constrained(
        candidate.name,
        built,
        recipe,
        tau=candidate.tau,
        draws=draws,
        every=every,
        expand_pixels=expand_pixels,
    )


def constrained(
    name: str,
    constraints: tuple[Constraint, ...],
    recipe: Recipe,
    *,
    tau: float,
    draws: int,
    every: int,
    expand_pixels: int,
) -> Remedy:
    """Return constraints, each with its layers, as a remedy called `name`."""

    def remedy(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
        steps = max(recipe.epochs * images.steps_per_epoch, 1)
        plan = Prescription(constraints, diagnosis, Noise(draws=draws), expand_pixels, every, steps)
        plan, measured = prescribe(model, images, plan, recipe, tau, seed=key("trial", seed))
        return Course(plan.terms(model, example_of(model, images), seed), facts=measured)

    remedy.__name__ = name
    return remedy


def ladder(
    prices: Sequence[float], full_epochs: int, steps_per_epoch: int, budget: float | None
) -> list[tuple[int, int]]:
    """Return (candidates, epochs) of each rung: half of them go on with twice the epochs.

    The control is trained in every rung beside them. `prices` are what a step of each candidate costs, in
    steps of the control; a `budget` in those takes candidates off the end of the list until the search
    fits, the dearest going on in every rung. InputError where not even two fit.
    """
    for tried in range(len(prices), 1, -1):
        rungs: list[tuple[int, int]] = []
        number, epochs = tried, 1
        while number > 1 or not rungs:
            rungs.append((number, min(epochs, full_epochs)))
            number, epochs = math.ceil(number / 2), 2 * epochs
        dearest = sorted(prices[:tried], reverse=True)
        steps = sum((1 + sum(dearest[:number])) * epochs for number, epochs in rungs) * steps_per_epoch
        if budget is None or steps <= budget:
            return rungs
    raise InputError(
        f"the budget of {budget:.0f} steps does not reach for the smallest search, two candidates beside the "
        f"control: {steps:.0f} steps of the control's length"
    )


def halve(
    pool: Sequence[Candidate],
    rungs: Sequence[tuple[int, int]],
    run: Callable[[int, int, Sequence[Candidate]], Mapping[str, float]],
) -> list[Rung]:
    """Return the rungs of a successive halving; `run(rung, epochs, candidates)` scores them all."""
    found: list[Rung] = []
    left = list(pool)
    for number, (count, epochs) in enumerate(rungs):
        left = left[:count]
        rung = Rung(epochs, run(number, epochs, left))
        found.append(rung)
        by_name = {one.name: one for one in left}
        left = [by_name[name] for name in rung.ranking]
    return found


def score_of(
    model: nn.Module, validation: Images, swapped: Collection[Batch], select: Select
) -> dict[str, float]:
    """Return the validation accuracies in percent, i.i.d. and with swapped backgrounds, and the score."""
    iid = accuracy(model, validation)
    other = accuracy(model, list(swapped)) if swapped else math.nan
    score = {"iid": iid, "swapped": other, "mean": (iid + other) / 2}[select]
    return {"iid": iid, "swapped": other, "score": score}

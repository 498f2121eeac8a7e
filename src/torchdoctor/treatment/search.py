"""Choose a remedy on the validation split by successive halving: the better half is trained for longer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from torch import nn

from torchdoctor.diagnosis.causes_result import Cause
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.batches import TrainingImages
from torchdoctor.randomness import key
from torchdoctor.treatment.constraints import Constraint, constraints_named
from torchdoctor.treatment.cure import Cure, Remedy
from torchdoctor.treatment.passes import Noise
from torchdoctor.treatment.recipe import Course, Recipe
from torchdoctor.treatment.remedies import AVERAGES, GENERAL, REMEDIES
from torchdoctor.treatment.weighting import Prescription, example_of, prescribe
from torchdoctor.types import InputError

CONTROL = "control"
LEAST_SHARE = 0.05  # of all errors, that a cause is expected to have where its cures are tried


@dataclass(frozen=True)
class Candidate:
    """A remedy to try.

    Attributes:
        name: A name in REMEDIES, or any name for constraints.
        constraints: The constraints as texts (see `constraints_named`); empty: the remedy called `name`.
        tau: The ratio of the weighted penalty's gradient norm to the loss's, for weights that are `auto`.
    """

    name: str
    constraints: tuple[str, ...] = ()
    tau: float = 0.3

    @property
    def arm(self) -> str:
        """The arm that it becomes in a treatment."""
        return "treated" if self.constraints else self.name


@dataclass(frozen=True)
class Rung:
    """A round of the search.

    Attributes:
        epochs: How many epochs each candidate is trained.
        scores: The score of each candidate and of the control in percent, by name, in the order in which the
            candidates were proposed.
        margin: By how much a score may lie below the best and still be about as high, in percentage points.
    """

    epochs: int
    scores: Mapping[str, float]
    margin: float = 0.0

    @property
    def ranking(self) -> list[str]:
        """The candidates without the control, best first.

        Those about as high as the best come first, in the order in which they were proposed: a short trial
        cannot tell them apart, and the cause of the errors says more.
        """
        tried = [name for name in self.scores if name != CONTROL]
        best = max((sortable(self.scores[name]) for name in tried), default=0.0)
        close = [name for name in tried if sortable(self.scores[name]) >= best - self.margin]
        others = [name for name in tried if name not in close]
        return close + sorted(others, key=lambda name: -sortable(self.scores[name]))


def sortable(score: float) -> float:
    """Return a score that can be sorted: what is not a number is the worst.

    Args:
        score: A score, larger is better; NaN where a training broke off.

    Returns:
        The score, or minus infinity.
    """
    return -math.inf if math.isnan(score) else score


def candidates_for(
    expected: Mapping[Cause, float], available: Mapping[str, Cure], layers: Sequence[str], *, constrain: bool
) -> tuple[Candidate, ...]:
    """Propose the cures that are meant for the causes of a network's errors, and nothing else.

    The first cure of every cause comes first, then the second of every cause, and so on; of causes, those
    with the most errors come first. Where no cause has a cure beside further training, remedies are proposed
    that help many networks a little. Averages of weights are left out where more errors come from too little
    training than from too much: they lag behind a network that still learns fast.

    Args:
        expected: The expected number of errors by cause (see `Causes.expected`).
        available: The cures that the network and the data have what it takes for, by name.
        layers: The names of the diagnosed layers, from the first to the last in the network.
        constrain: Whether the space-wise constraint is proposed too for the cause `background`; it needs
            masks.

    Returns:
        The candidates, the most promising first.
    """
    errors = sum(expected.values())
    if expected.get("under-fitted", 0.0) > max(expected.get("over-fitted", 0.0), LEAST_SHARE * errors):
        available = {name: cure for name, cure in available.items() if name not in AVERAGES}
    weighty = [cause for cause, number in expected.items() if number >= LEAST_SHARE * errors]
    queues: list[list[Candidate]] = []
    for cause in sorted(weighty, key=lambda cause: -expected[cause]):
        queue = [
            Candidate(name) for name, cure in available.items() if cause in cure.causes and name != CONTROL
        ]
        if cause == "background" and constrain:
            queue.append(Candidate(f"space-{layers[-1]}-tau1", (f"space layers={layers[-1]}",), 1.0))
        queues.append(queue)
    in_turn = [queue[turn] for turn in range(len(available)) for queue in queues if turn < len(queue)]
    general = [Candidate(name) for name in GENERAL if name in available]
    return tuple({candidate.name: candidate for candidate in in_turn or general}.values())


def candidates(layers: Sequence[str], has_masks: bool, ends_linear: bool = True) -> tuple[Candidate, ...]:
    """Propose what to try, the most promising first, because a small budget tries only the first ones.

    With masks: swapped backgrounds, then space-wise constraints at every layer and strength. Without masks:
    channel-wise constraints at the last layers, and remedies that need no diagnosis.

    Args:
        layers: The names of the diagnosed layers, from the first to the last in the network.
        has_masks: Whether training images have object masks.
        ends_linear: Whether the logits come from a linear layer with a bias, which the remedy `dfr` needs.

    Returns:
        The candidates.
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
    """Return the remedy of a candidate; weights that are `auto` are measured when an arm begins.

    Args:
        candidate: The candidate.
        layers: The layers of constraints that name none of their own.
        recipe: How the arm is trained.
        draws: The number of noise draws of each image in a step.
        every: The penalties are computed at every step of this number only (see `Prescription`).
        expand_pixels: By how many pixels an object's mask is grown.

    Returns:
        The remedy.
    """
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
    """Return constraints as a remedy.

    Args:
        name: The name of the remedy.
        constraints: The constraints, each with its layers.
        recipe: How the arm is trained.
        tau: The ratio of the weighted penalty's gradient norm to the loss's, for weights that are `auto`.
        draws: The number of noise draws of each image in a step.
        every: The penalties are computed at every step of this number only (see `Prescription`).
        expand_pixels: By how many pixels an object's mask is grown.

    Returns:
        The remedy.
    """

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
    """Plan the rounds of a search: half of the candidates go on with twice the epochs.

    The control is trained in every round too. Candidates are taken off the end of the list until the search
    fits the budget, even if the most expensive candidates go on in every round. The first round has a quarter
    of the full epochs, because what changes much looks worse at first; where the budget is too small for two
    candidates of that length, it has one epoch.

    Args:
        prices: What a step of each candidate costs, in steps of the control.
        full_epochs: The largest number of epochs.
        steps_per_epoch: The number of steps of an epoch.
        budget: The largest cost of the search, in steps of the control; None: no limit.

    Returns:
        The number of candidates and of epochs for each round.

    Raises:
        InputError: The budget is not enough for two candidates.
    """
    steps = 0.0
    for first, tried in product((math.ceil(full_epochs / 4), 1), range(len(prices), 1, -1)):
        rungs: list[tuple[int, int]] = []
        number, epochs = tried, first
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
    margin_of: Callable[[float], float] = lambda _score: 0.0,
) -> list[Rung]:
    """Run a successive halving.

    Args:
        pool: The candidates.
        rungs: The number of candidates and of epochs for each round (see `ladder`).
        run: A function of (round, epochs, candidates) that trains them and the control and returns all
            scores by name.
        margin_of: Returns by how much a score may lie below the best one, which it is given, and still be
            about as high, both in percent; by default differences count as they are.

    Returns:
        The rounds with their scores.
    """
    scored: list[Rung] = []
    left = list(pool)
    for number, (count, epochs) in enumerate(rungs):
        left = left[:count]
        rung = rung_of(epochs, run(number, epochs, left), [one for one in pool if one in left], margin_of)
        scored.append(rung)
        by_name = {candidate.name: candidate for candidate in left}
        left = [by_name[name] for name in rung.ranking]
    return scored


def rung_of(
    epochs: int,
    scores: Mapping[str, float],
    tried: Sequence[Candidate],
    margin_of: Callable[[float], float] = lambda _score: 0.0,
) -> Rung:
    """Return a round of the search from its scores.

    Args:
        epochs: How many epochs each candidate was trained.
        scores: The scores of the control and of the candidates in percent, by name.
        tried: The candidates, in the order in which they were proposed.
        margin_of: As in `halve`.

    Returns:
        The round.
    """
    best = max((sortable(scores[one.name]) for one in tried), default=-math.inf)
    margin = 0.0 if math.isinf(best) else margin_of(best)
    return Rung(epochs, {name: scores[name] for name in (CONTROL, *(one.name for one in tried))}, margin)

"""Fit a search into its budget: what the steps of candidates cost, and how many are trained for how long."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from torchdoctor.case.preparation import Case
from torchdoctor.case.settings import BUDGET_TIMES
from torchdoctor.case.timing import seconds_per_step
from torchdoctor.images.batches import Batch
from torchdoctor.treatment.learning_rate import TIMES
from torchdoctor.treatment.remedies import REMEDIES
from torchdoctor.treatment.search import Candidate, ladder
from torchdoctor.types import InputError
from torchdoctor.verbs.learning_rate import steps_of_rates


def budget_steps(budget: str | None, seconds_per_step: Callable[[], float]) -> float | None:
    """Read `--budget` as a number of training steps.

    Args:
        budget: Minutes, such as `20`, or steps, such as `2000steps`; None is no limit.
        seconds_per_step: Measures the seconds of a step of the control; called for minutes only.

    Returns:
        Steps of the control; None where the budget is not given.

    Raises:
        InputError: The text is neither, or not above 0.
    """
    if budget is None:
        return None
    text = budget.strip().removesuffix("steps").removesuffix("min").strip()
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise InputError(f"--budget {budget!r}: expected minutes, such as 20, or steps, such as 2000steps")
    return float(number) if is_in_steps(budget) else 60 * number / seconds_per_step()


def is_in_steps(budget: str) -> bool:
    """Tell whether a budget counts steps instead of minutes.

    Args:
        budget: What `--budget` was given.

    Returns:
        True for a text such as `2000steps`.
    """
    return budget.strip().endswith("steps")


def search_plan(case: Case, pool: Sequence[Candidate], batch: Batch) -> list[tuple[int, int]]:
    """Choose how many candidates are trained for how long, within the budget.

    Where the budget is in minutes, what a step of each candidate takes is measured.

    Args:
        case: The prepared case.
        pool: The candidates, the most promising first.
        batch: A full batch of training images.

    Returns:
        For each rung the number of candidates and the epochs that each is trained.

    Raises:
        InputError: If the budget cannot be read, or is too small for two candidates.
    """
    budget, control_seconds, prices = case.plan.budget, 1.0, prices_of(pool, lambda _texts: 1.0)
    if budget is not None and not is_in_steps(budget):
        control_seconds = _measured_seconds(case, batch, treated=False)
        prices = prices_of(pool, lambda texts: measured_price(case, texts, batch, control_seconds))
    return fitting_rungs(case, prices, control_seconds)


def fitting_rungs(case: Case, prices: Sequence[float], control_seconds: float) -> list[tuple[int, int]]:
    """Choose how many candidates are trained for how long, at given prices; none where there is no choice.

    Args:
        case: The prepared case.
        prices: What a step of each candidate costs, in steps of the control.
        control_seconds: What a step of the control takes, in seconds.

    Returns:
        For each rung the number of candidates and the epochs that each is trained.

    Raises:
        InputError: The budget cannot be read, or the budget that was given is too small for two candidates.
    """
    steps = budget_steps(case.plan.budget, lambda: control_seconds)
    epochs, per_epoch = case.plan.recipe.epochs, case.data.train.steps_per_epoch
    if len(prices) < 2 or not len(case.data.validation):
        return []
    if steps is not None:
        return ladder(prices, epochs, per_epoch, steps)
    try:
        return ladder(prices, epochs, per_epoch, usual_steps(case, max(prices)))
    except InputError:  # a short training leaves no room for trials
        return []


def usual_steps(case: Case, price: float) -> float:
    """Return what trials may cost where no budget is given.

    Learning rates, trials, and the final training of the control and of what was chosen take at most
    `BUDGET_TIMES` times what the control takes in all its seeds.

    Args:
        case: The prepared case.
        price: What a step of the dearest candidate costs, in steps of the control.

    Returns:
        Steps of the control; it can be below 0.
    """
    control = control_steps(case)
    return (BUDGET_TIMES - 1 - price) * control - len(TIMES) * steps_of_rates(case)


def control_steps(case: Case) -> int:
    """Return how many steps the control takes in all its seeds.

    Args:
        case: The prepared case.

    Returns:
        The number.
    """
    return case.plan.seeds * case.plan.recipe.epochs * case.data.train.steps_per_epoch


def prices_of(pool: Sequence[Candidate], price: Callable[[Sequence[str]], float]) -> list[float]:
    """Find what a step of each candidate costs.

    Args:
        pool: The candidates.
        price: Returns the cost of a step under constraints, as texts, in steps of the control; it is asked
            once for each set of constraints.

    Returns:
        The cost for each candidate, in steps of the control.
    """
    known: dict[tuple[str, ...], float] = {(): 1.0}
    for candidate in pool:
        if candidate.constraints not in known:
            known[candidate.constraints] = price(candidate.constraints)
    return [known[each.constraints] if each.constraints else REMEDIES[each.name].passes for each in pool]


def measured_price(case: Case, texts: Sequence[str], batch: Batch, control_seconds: float) -> float:
    """Measure what a step under constraints costs.

    Args:
        case: The prepared case.
        texts: The constraints as texts.
        batch: A full batch of training images.
        control_seconds: What a step of the control takes, in seconds.

    Returns:
        The cost in steps of the control.
    """
    own = replace(case, plan=case.plan.but(constraints=tuple(texts)))
    return _measured_seconds(own, batch, treated=True) / control_seconds


def _measured_seconds(case: Case, batch: Batch, *, treated: bool) -> float:
    """Return the seconds of a step as the main process measures them, the same in every process."""
    return case.processes.by_main(lambda: seconds_per_step(case, batch, treated=treated))

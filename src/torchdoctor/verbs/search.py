"""Let the validation split choose a remedy within a budget, and say in the end whose weights to use."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from torchdoctor.case.preparation import Case
from torchdoctor.case.settings import Settings
from torchdoctor.case.splits import swapped_images
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.files.reading import read_json
from torchdoctor.files.writing import write_json
from torchdoctor.images.batches import Batch
from torchdoctor.network.copying import copy_of
from torchdoctor.network.state import load_state
from torchdoctor.treatment.arms import LEAST_MASKS, default_arms
from torchdoctor.treatment.heads import linear_head
from torchdoctor.treatment.result import Treatment
from torchdoctor.treatment.search import Candidate, Select, candidates, halve, remedy_of, score_of
from torchdoctor.treatment.settings import TreatmentSettings
from torchdoctor.treatment.treat import trial_of
from torchdoctor.types import InputError
from torchdoctor.verbs.begin import Watch
from torchdoctor.verbs.search_budget import budget_steps, fitting_rungs, is_in_steps, prices_of, search_plan
from torchdoctor.verbs.treat import ArmFolder

Chosen = TypeVar("Chosen", bound=Settings)
TRIALS = "trials.json"
SCORED_BY: Mapping[Select, str] = {
    "iid": "validation accuracy",
    "swapped": "validation accuracy with backgrounds swapped",
    "mean": "the mean of validation accuracy and that with backgrounds swapped",
}


@dataclass(frozen=True)
class Judge:
    """How weights are scored.

    Attributes:
        case: The prepared case, with the validation images.
        swapped: Validation images before the backgrounds of other categories; empty without masks.
        select: What is compared: accuracy on validation images (`iid`), on those with swapped backgrounds
            (`swapped`), or the mean of both (`mean`).
    """

    case: Case
    swapped: tuple[Batch, ...]
    select: Select

    def score(self, state: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Score weights.

        Args:
            state: A state of the case's network.

        Returns:
            {iid, swapped, score} in percent; `swapped` is NaN without masks.
        """
        own: nn.Module = copy_of(self.case.model)
        load_state(own, state)
        return score_of(own, self.case.data.validation, self.swapped, self.select)


@dataclass(frozen=True)
class Choice:
    """The result of a search.

    Attributes:
        best: The best candidate of all.
        constrained: The best of the candidates that are constraints; None if none was tried.
    """

    best: Candidate
    constrained: Candidate | None = None


def judge_of(case: Case) -> Judge:
    """Return how the weights of candidates are scored.

    Args:
        case: The prepared case.

    Returns:
        The judge that the settings ask for.

    Raises:
        InputError: The budget cannot be read, or masks are needed and missing.
    """
    budget_steps(case.plan.budget, lambda: 1.0)  # refuses a wrong budget now, not after the diagnosis
    swapped = swapped_images(case.data.validation, case.plan.seed)
    select = case.plan.select
    if select != "iid" and not swapped:
        raise InputError(
            f"--select {select!r} swaps the backgrounds of validation images by their masks, and there are "
            "none: use --select iid, or data whose validation images have masks"
        )
    return Judge(case, swapped, select)


def search_forecast(
    case: Case, control_seconds: float, price: Callable[[Sequence[str]], float]
) -> dict[str, object]:
    """Say what a search would try and about how long it would take, without training anything.

    Args:
        case: The prepared case.
        control_seconds: What a step without constraints takes, in seconds.
        price: Returns what a step under constraints (as texts) costs, in steps without.

    Returns:
        The candidates, the rungs, what scores them, and `seconds` of the whole search.

    Raises:
        InputError: If the budget cannot be read or is too small, or masks are needed that are not there.
    """
    judge = judge_of(case)
    pool = candidates(case.layers, case.data.has_masks, _ends_linear(case))
    prices = prices_of(pool, price)
    in_minutes = case.plan.budget is not None and not is_in_steps(case.plan.budget)
    rungs = fitting_rungs(case, prices if in_minutes else [1.0] * len(pool), control_seconds)
    steps = sum((1 + count * sum(prices) / len(prices)) * epochs for count, epochs in rungs)
    return {
        "candidates": [one.name for one in pool],
        "rungs": [f"{count} of them and the control, {epochs} epoch(s)" for count, epochs in rungs],
        "scored by": SCORED_BY[judge.select],
        "seconds": control_seconds * case.data.train.steps_per_epoch * steps,
    }


def choose_stage(case: Case, folder: Path, diagnosis: Diagnosis, judge: Judge, watch: Watch) -> Choice:
    """Try candidates on the validation split, round by round, and record the scores in `trials.json`.

    Args:
        case: The prepared case.
        folder: The run's folder; rounds that an earlier process finished are read from it.
        diagnosis: The diagnosis of the case's network.
        judge: How weights are scored.
        watch: Who watches the run.

    Returns:
        The best candidates.

    Raises:
        InputError: The budget does not suffice for the smallest search.
    """
    record: dict[str, Any] = (
        read_json(folder / TRIALS) if (folder / TRIALS).is_file() else {"select": judge.select, "rungs": []}
    )
    pool = candidates(case.layers, case.data.has_masks, _ends_linear(case))
    first = case.data.train.first_batch(0)
    rungs = record.get("ladder") or search_plan(case, pool, first)
    record["ladder"] = rungs

    def run(number: int, epochs: int, tried: Sequence[Candidate]) -> Mapping[str, float]:
        if number < len(record["rungs"]):
            earlier = record["rungs"][number]["scores"]
            return {name: scored["score"] for name, scored in earlier.items()}
        treatment = _try(case, folder / "trials" / f"rung{number}", diagnosis, epochs, number, tried, watch)
        scores = {arm.name: judge.score(arm.state) for arm in treatment.arms}
        record["rungs"].append({"epochs": epochs, "scores": scores})
        write_json(folder / TRIALS, record)
        shutil.rmtree(folder / "trials" / f"rung{number}", ignore_errors=True)
        return {name: scored["score"] for name, scored in scores.items()}

    finished = halve(pool, [(count, epochs) for count, epochs in rungs], run)
    shutil.rmtree(folder / "trials", ignore_errors=True)
    by_name = {candidate.name: candidate for candidate in pool}
    # From the last rung, which trained longest, to the first.
    ranked = [by_name[name] for rung in reversed(finished) for name in rung.ranking]
    constrained = next((candidate for candidate in ranked if candidate.constraints), None)
    record["chosen"] = asdict(ranked[0])
    record["constrained"] = asdict(constrained) if constrained is not None else None
    write_json(folder / TRIALS, record)
    return Choice(ranked[0], constrained)


def _try(
    case: Case,
    folder: Path,
    diagnosis: Diagnosis,
    epochs: int,
    number: int,
    tried: Sequence[Candidate],
    watch: Watch,
) -> Treatment:
    """Train a rung's candidates and the control for some epochs, with a seed of the rung's own."""
    settings = case.plan
    recipe = replace(settings.recipe, epochs=epochs)
    shared = {
        "draws": settings.draws_per_step,
        "every": settings.penalty_every,
        "expand_pixels": settings.expand_pixels,
    }
    remedies = [
        remedy_of(candidate, case.layers, recipe, **shared) if candidate.constraints else candidate.name
        for candidate in tried
    ]
    trial = trial_of(
        case.model,
        case.data.train,
        diagnosis,
        arms=remedies,
        recipe=recipe,
        settings=settings.part(TreatmentSettings).but(budget_kind="steps"),
        seed=settings.seed + 1_000 + number,
    )
    return trial.run(
        seeds=1,
        store=ArmFolder(folder, case.card, watch),
        progress=lambda stage, done, total: watch.progress(f"trial {stage}", done, total),
    )


def _ends_linear(case: Case) -> bool:
    """Whether the network's logits come from a linear layer with a bias."""
    return linear_head(case.model, [case.data.train.first_batch(0)]) is not None


def listed_arms(settings: Settings) -> tuple[str, ...]:
    """Return the arms that were asked for by name; a search compares its choice with them as well.

    Args:
        settings: What was asked for, or a plan.

    Returns:
        The arms' names; none where `arms` was left at its default.
    """
    if settings.arms == "auto" or settings.arms in (default_arms(0), default_arms(LEAST_MASKS)):
        return ()
    return settings.arms


def plan_with_choice(settings: Chosen, choice: Choice) -> Chosen:
    """Return the settings with the remedy that a search chose, beside the arms that were asked for.

    Args:
        settings: What was asked for, or a plan.
        choice: The result of the search.

    Returns:
        The settings whose arms are the control, the chosen remedy, and the arms that were asked for by name.
        Where `treated` is asked for and another remedy won, it means the best constraints that were tried.
    """
    best, asked = choice.best, list(listed_arms(settings))
    treatment = best if best.constraints else choice.constrained
    if treatment is None:
        asked = [arm for arm in asked if arm != "treated"]
    arms = tuple(dict.fromkeys(["control", best.arm, *asked]))
    settings = settings.but(arms=arms)
    if treatment is not None and "treated" in arms:
        settings = settings.but(constraints=treatment.constraints, tau=treatment.tau)
    return settings


def choose_weights(folder: Path, judge: Judge, treatment: Treatment, arm: str) -> dict[str, Any]:
    """Let the validation split choose whose weights to use, and add the choice to `trials.json`.

    Args:
        folder: The run's folder.
        judge: How weights are scored.
        treatment: The trained arms.
        arm: The arm that is compared with the control.

    Returns:
        {use, arm, select, validation_scores, means, reason}. `use` is the arm if it beats both control and
        base, else the better of these two. Scores are in percent, a score for each seed; `means` are their
        means, by which `use` is chosen.
    """
    state = {name: value.detach().cpu() for name, value in judge.case.model.state_dict().items()}
    scores = {"base": [judge.score(state)["score"]]}
    for trained in treatment.arms:
        if trained.name in ("control", arm):
            scores.setdefault(trained.name, []).append(judge.score(trained.state)["score"])
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    fallback = "control" if means["control"] > means["base"] else "base"
    use = arm if means[arm] > means["control"] and means[arm] > means["base"] else fallback
    numbers = ", ".join(f"{name} {mean:.1f}" for name, mean in means.items())
    choice = {
        "use": use,
        "arm": arm,
        "select": judge.select,
        "validation_scores": scores,
        "means": means,
        "reason": f"by {SCORED_BY[judge.select]}: {numbers}",
    }
    record = read_json(folder / TRIALS)
    write_json(folder / TRIALS, {**record, "handed_back": choice})
    return choice

"""Let the validation split choose a remedy within a budget, and say in the end whose weights to use."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from torchdoctor.case.preparation import Case, example_of
from torchdoctor.case.settings import Settings
from torchdoctor.case.splits import swapped_images
from torchdoctor.case.timing import seconds_per_step
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.files.reading import read_json
from torchdoctor.files.writing import write_json
from torchdoctor.images.batches import Batch
from torchdoctor.treatment.arms import LEAST_MASKS, default_arms
from torchdoctor.treatment.remedies import last_linear
from torchdoctor.treatment.result import Treatment
from torchdoctor.treatment.search import Candidate, Select, candidates, halve, ladder, remedy_of, score_of
from torchdoctor.treatment.settings import TreatmentSettings
from torchdoctor.treatment.treat import trial_of
from torchdoctor.types import InputError
from torchdoctor.verbs.begin import Watch
from torchdoctor.verbs.treat import ArmFolder

Chosen = TypeVar("Chosen", bound=Settings)
TRIALS = "trials.json"
SCORED_BY: Mapping[Select, str] = {
    "iid": "validation accuracy",
    "swapped": "validation accuracy with backgrounds swapped",
    "mean": "the mean of validation accuracy and that with backgrounds swapped",
}
DEARER = {"rrr": 3.0}  # its penalty differentiates twice through the whole network


@dataclass(frozen=True)
class Judge:
    """How weights are scored: on validation images, on swapped backgrounds, or by the mean of both."""

    case: Case
    swapped: tuple[Batch, ...]
    select: Select

    def score(self, state: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Return the scores of a state of the case's network, in percent."""
        own: nn.Module = copy.deepcopy(self.case.model)
        own.load_state_dict(dict(state))
        return score_of(own, self.case.data.validation, self.swapped, self.select)


@dataclass(frozen=True)
class Choice:
    """What a search found: the best of all, and the best of those that are constraints, if any was tried."""

    best: Candidate
    constrained: Candidate | None = None


def judge_of(case: Case) -> Judge:
    """Return the judge that the settings ask for; InputError for no budget, or masks that are not there."""
    budget_steps(case.plan.budget, lambda: 1.0)  # refuses now what it would refuse after the diagnosis
    swapped = swapped_images(case.data.validation, case.plan.seed)
    select = case.plan.select
    if select != "iid" and not swapped:
        raise InputError(
            f"--select {select!r} swaps the backgrounds of validation images by their masks, and there are "
            "none: use --select iid, or data whose validation images have masks"
        )
    return Judge(case, swapped, select)


def budget_steps(budget: str | None, seconds_per_step: Callable[[], float]) -> float | None:
    """Read `--budget` in steps of the control: minutes, or steps such as `2000steps`; None is no limit."""
    if budget is None:
        return None
    text = budget.strip().removesuffix("steps").removesuffix("min").strip()
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise InputError(f"--budget {budget!r}: expected minutes, such as 20, or steps, such as 2000steps")
    return float(number) if _in_steps(budget) else 60 * number / seconds_per_step()


def _in_steps(budget: str) -> bool:
    """Whether a budget counts steps, all alike, instead of minutes."""
    return budget.strip().endswith("steps")


def search_plan(case: Case, pool: Sequence[Candidate], batch: Batch) -> list[tuple[int, int]]:
    """Return the rungs that fit the budget; in minutes, what each candidate's steps take is measured."""
    budget, one_step, prices = case.plan.budget, 1.0, [1.0] * len(pool)
    if budget is not None and not _in_steps(budget):
        one_step = seconds_per_step(case, batch, treated=False)
        prices = _prices(case, pool, batch, one_step)
    steps = budget_steps(budget, lambda: one_step)
    return ladder(prices, case.plan.recipe.epochs, case.data.train.steps_per_epoch, steps)


def search_forecast(case: Case) -> dict[str, object]:
    """Return what a search would try, and about how many seconds it takes."""
    judge, first = judge_of(case), next(iter(case.data.train.epoch(0, 0)))
    pool = candidates(case.layers, case.data.has_masks, _ends_linear(case))
    rungs = search_plan(case, pool, first)
    plain = seconds_per_step(case, first, treated=False)
    prices = _prices(case, pool, first, plain)
    steps = sum((1 + count * sum(prices) / len(prices)) * epochs for count, epochs in rungs)
    return {
        "candidates": [one.name for one in pool],
        "rungs": [f"{count} of them and the control, {epochs} epoch(s)" for count, epochs in rungs],
        "scored by": SCORED_BY[judge.select],
        "seconds": plain * case.data.train.steps_per_epoch * steps,
    }


def _prices(case: Case, pool: Sequence[Candidate], batch: Batch, plain: float) -> list[float]:
    """Measure what a step of each candidate costs, in steps of the control."""
    known: dict[tuple[str, ...], float] = {(): 1.0}
    for one in pool:
        if one.constraints not in known:
            own = replace(case, plan=case.plan.but(constraints=one.constraints))
            known[one.constraints] = seconds_per_step(own, batch, treated=True) / plain
    return [max(known[one.constraints], DEARER.get(one.name, 1.0)) for one in pool]


def choose_stage(case: Case, folder: Path, diagnosis: Diagnosis, judge: Judge, watch: Watch) -> Choice:
    """Try candidates on the validation split and return the best; trials.json keeps every rung's scores."""
    record: dict[str, Any] = (
        read_json(folder / TRIALS) if (folder / TRIALS).is_file() else {"select": judge.select, "rungs": []}
    )
    pool = candidates(case.layers, case.data.has_masks, _ends_linear(case))
    first = next(iter(case.data.train.epoch(0, 0)))
    rungs = record.get("ladder") or search_plan(case, pool, first)
    record["ladder"] = rungs

    def run(number: int, epochs: int, tried: Sequence[Candidate]) -> Mapping[str, float]:
        if number < len(record["rungs"]):
            return {name: one["score"] for name, one in record["rungs"][number]["scores"].items()}
        treatment = _try(case, folder / "trials" / f"rung{number}", diagnosis, epochs, number, tried, watch)
        scores = {arm.name: judge.score(arm.state) for arm in treatment.arms}
        record["rungs"].append({"epochs": epochs, "scores": scores})
        write_json(folder / TRIALS, record)
        shutil.rmtree(folder / "trials" / f"rung{number}", ignore_errors=True)
        return {name: one["score"] for name, one in scores.items()}

    found = halve(pool, [(count, epochs) for count, epochs in rungs], run)
    shutil.rmtree(folder / "trials", ignore_errors=True)
    by_name = {one.name: one for one in pool}
    ranked = [by_name[name] for rung in reversed(found) for name in rung.ranking]  # the last rung knows best
    constrained = next((one for one in ranked if one.constraints), None)
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
    """Train one rung's candidates and the control for some epochs, with one seed of its own."""
    settings = case.plan
    recipe = replace(settings.recipe, epochs=epochs)
    shared = {
        "draws": settings.draws_per_step,
        "every": settings.penalty_every,
        "expand_pixels": settings.expand_pixels,
    }
    remedies = [
        remedy_of(one, case.layers, recipe, **shared) if one.constraints else one.name for one in tried
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
    """Whether the network's logits come from a linear layer."""
    try:
        last_linear(case.model, example_of(case.model, case.data))
    except InputError:
        return False
    return True


def listed_arms(settings: Settings) -> tuple[str, ...]:
    """Return the arms that were asked for by name, beside which a search compares; none by default."""
    if settings.arms == "auto" or settings.arms in (default_arms(0), default_arms(LEAST_MASKS)):
        return ()
    return settings.arms


def settled(settings: Chosen, choice: Choice) -> Chosen:
    """Return the settings with the chosen remedy first, beside the arms that were asked for.

    Where `treated` is among arms that were listed and another remedy won, it stands for the best constraints
    that were tried.
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


def hand_back(folder: Path, judge: Judge, treatment: Treatment, arm: str) -> dict[str, Any]:
    """Say whose weights to use: the arm's if it beats the control on validation, else base or control.

    The scores are means over the seeds; the weights handed back are those of the first seed.
    """
    base = judge.score({name: one.detach().cpu() for name, one in judge.case.model.state_dict().items()})
    scores = {"base": [base["score"]]}
    for one in treatment.arms:
        if one.name in ("control", arm):
            scores.setdefault(one.name, []).append(judge.score(one.state)["score"])
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    fallback = "control" if means["control"] > means["base"] else "base"
    use = arm if means[arm] > means["control"] and means[arm] > means["base"] else fallback
    said = ", ".join(f"{name} {mean:.1f}" for name, mean in means.items())
    found = {
        "use": use,
        "arm": arm,
        "select": judge.select,
        "validation_scores": scores,
        "means": means,
        "reason": f"by {SCORED_BY[judge.select]}: {said}",
    }
    record = read_json(folder / TRIALS)
    write_json(folder / TRIALS, {**record, "handed_back": found})
    return found

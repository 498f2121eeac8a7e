"""Let the validation split choose a cure within a budget."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from torchdoctor.case.defaults import masked_count
from torchdoctor.case.preparation import Case
from torchdoctor.case.reviewed import answered_arms
from torchdoctor.case.settings import BUDGET_TIMES, Settings
from torchdoctor.diagnosis.causes_result import Cause, Causes
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.display.counts import count_of
from torchdoctor.files.reading import read_json
from torchdoctor.files.writing import write_json
from torchdoctor.treatment.arms import LEAST_MASKS
from torchdoctor.treatment.cure import JOINED_BY, Remedy
from torchdoctor.treatment.heads import linear_head
from torchdoctor.treatment.labels_by_hand import ANSWERED
from torchdoctor.treatment.remedies import REMEDIES, cure_named
from torchdoctor.treatment.result import Treatment
from torchdoctor.treatment.search import (
    CONTROL,
    LEAST_SHARE,
    Candidate,
    candidates,
    candidates_for,
    halve,
    remedy_of,
    rung_of,
    sortable,
)
from torchdoctor.treatment.settings import TreatmentSettings
from torchdoctor.treatment.treat import trial_of
from torchdoctor.verbs.begin import Watch
from torchdoctor.verbs.cures import available_cures, cures_of, remedies_for
from torchdoctor.verbs.judge import SCORED_BY, TRIALS, Judge, check_choice
from torchdoctor.verbs.search_budget import (
    budget_steps,
    fitting_rungs,
    is_in_steps,
    prices_of,
    search_plan,
    usual_steps,
)
from torchdoctor.verbs.treat import ArmFolder

Chosen = TypeVar("Chosen", bound=Settings)


@dataclass(frozen=True)
class Choice:
    """The result of a search.

    Attributes:
        best: The best candidate of all.
        constrained: The best of the candidates that are constraints; None if none was tried.
        rival: The best candidate of the other kind: of those that only edit the trained network where `best`
            trains differently, and the other way round. An edit shows all that it can in a short trial, and a
            training does not, so both are trained in full and validation images decide. None without one.
    """

    best: Candidate
    constrained: Candidate | None = None
    rival: Candidate | None = None

    @property
    def tried(self) -> tuple[str, ...]:
        """The arms that are trained in full, of which one is compared with the control.

        Where one of them only edits the trained network, it also edits what the other has trained.
        """
        names = [one.arm for one in (self.best, self.rival) if one is not None]
        joined = [JOINED_BY.join(pair) for pair in (names, names[::-1])]
        both = [name for name in joined if len(names) == 2 and cure_named(name) is not None]
        return tuple(dict.fromkeys([*names, *both]))


def search_forecast(
    case: Case, control_seconds: float, price: Callable[[Sequence[str]], float]
) -> dict[str, object]:
    """Say what a choice would try and about how long it would take, without training anything.

    Which causes the errors have is not known yet: where they decide, the time is that of the whole budget.

    Args:
        case: The prepared case.
        control_seconds: What a step without constraints takes, in seconds.
        price: Returns what a step under constraints (as texts) costs, in steps without.

    Returns:
        The candidates, the rungs, what scores them, and `seconds` of the whole search.

    Raises:
        InputError: If the budget cannot be read or is too small, or masks are needed that are not there.
    """
    check_choice(case)
    if not case.plan.auto:
        steps = usual_steps(case, 1.0)
        if case.plan.budget is not None:
            steps = budget_steps(case.plan.budget, lambda: control_seconds) or 0.0
        return {
            "candidates": "the cures of the causes that are found",
            "scored by": SCORED_BY[case.plan.select],
            "seconds": control_seconds * max(steps, 0.0),
        }
    pool = candidates(case.layers, case.data.has_masks, _ends_linear(case))
    trained = [one for one in pool if _costs(one)]
    prices = prices_of(trained, price)
    in_minutes = case.plan.budget is not None and not is_in_steps(case.plan.budget)
    planned = prices if in_minutes else prices_of(trained, lambda _texts: 1.0)
    rungs = fitting_rungs(case, planned, control_seconds)
    steps = sum((1 + count * sum(prices) / len(prices)) * epochs for count, epochs in rungs)
    return {
        "candidates": [one.name for one in pool],
        "rungs": [f"{count} of them and the control, {count_of(epochs, 'epoch')}" for count, epochs in rungs],
        "scored by": SCORED_BY[case.plan.select],
        "seconds": control_seconds * case.data.train.steps_per_epoch * steps,
    }


def choose_stage(
    case: Case, folder: Path, known: tuple[Diagnosis, Causes], judge: Judge, watch: Watch
) -> Choice:
    """Try candidates on the validation split, round by round, and record the scores in `trials.json`.

    Args:
        case: The prepared case.
        folder: The run's folder; rounds that an earlier process finished are read from it.
        known: The diagnosis of the case's network, and the causes of its errors.
        judge: How weights are scored.
        watch: Who watches the run.

    Returns:
        The best candidates; without trials (too few steps, or no validation images) the first.

    Raises:
        InputError: The budget does not suffice for the smallest search.
    """
    diagnosis, causes = known
    record: dict[str, Any] = (
        read_json(folder / TRIALS) if (folder / TRIALS).is_file() else {"select": judge.select, "rungs": []}
    )
    pool = _pool(case, folder, diagnosis, causes)
    edits = [one for one in pool if not _costs(one)]  # they cost nothing, so every round tries them
    trained = [one for one in pool if _costs(one)]
    judge = judge.among(candidate.name for candidate in pool)
    first = case.data.train.first_batch(0)
    planned = record["ladder"] if "ladder" in record else search_plan(case, trained, first)
    rungs = [(int(count), int(epochs)) for count, epochs in planned]
    record |= {"ladder": rungs, "causes": causes.expected, "candidates": [one.name for one in pool]}
    watch.say(_announced(case, causes, pool, rungs))

    def run(number: int, epochs: int, tried: Sequence[Candidate]) -> Mapping[str, float]:
        if number >= len(record["rungs"]):
            place = folder / "trials" / f"rung{number}"
            treatment = _try(judge, place, diagnosis, epochs, number, [*edits, *tried], watch)
            scores = {arm.name: judge.score(arm.state) for arm in treatment.arms}
            record["rungs"].append({"epochs": epochs, "scores": scores})
            write_json(folder / TRIALS, record)
            shutil.rmtree(place, ignore_errors=True)
        return {name: scored["score"] for name, scored in record["rungs"][number]["scores"].items()}

    finished = halve(trained, rungs, run, judge.margin_of)
    shutil.rmtree(folder / "trials", ignore_errors=True)
    by_name = {candidate.name: candidate for candidate in pool}
    # From the last rung, which trained longest, to the first.
    ranked = [by_name[name] for rung in reversed(finished) for name in rung.ranking] or trained
    last = run(len(finished) - 1, 0, []) if finished else {}
    if last:
        best = rung_of(finished[-1].epochs, last, edits, judge.margin_of).ranking
        edits = [by_name[name] for name in best]
    firsts = [*ranked[:1], *edits[:1]]
    firsts.sort(key=lambda one: (-sortable(last.get(one.name, 0.0)), pool.index(one)))
    constrained = next((candidate for candidate in ranked if candidate.constraints), None)
    record["chosen"] = asdict(firsts[0])
    record["constrained"] = asdict(constrained) if finished and constrained is not None else None
    if last:
        record["beats_control"] = last[firsts[0].name] > last[CONTROL]
    write_json(folder / TRIALS, record)
    return Choice(firsts[0], constrained if finished else None, *firsts[1:])


def _pool(case: Case, folder: Path, diagnosis: Diagnosis, causes: Causes) -> tuple[Candidate, ...]:
    """Return what is tried: everything where that was asked for, else the cures of the causes."""
    if case.plan.auto:
        return candidates(case.layers, case.data.has_masks, _ends_linear(case))
    available = available_cures(case, folder, diagnosis)
    masked = masked_count(case.data)
    constrain = masked >= LEAST_MASKS and case.plan.budget is not None  # its steps cost more than others
    pool = candidates_for(weighed(case, causes), available, case.layers, constrain=constrain)
    if case.answers is None:
        return pool
    answered = tuple(Candidate(name) for name in available if name == ANSWERED)  # somebody's work comes first
    return (*answered, *(one for one in pool if one not in answered))


def weighed(case: Case, causes: Causes) -> Mapping[Cause, float]:
    """Return the expected errors by cause, weighed as the score weighs them.

    Where all categories weigh the same, an error counts the more, the fewer validation images its category
    has: a rare category has few errors because it has few images.

    Args:
        case: The prepared case.
        causes: The causes of its validation errors.

    Returns:
        The weighed number of errors by cause.
    """
    if case.plan.select != "balanced":
        return causes.expected
    # A rare category may have so few validation images that no error of theirs says that it is rare.
    labels = case.data.validation.table.labels
    counts = dict(zip(case.classes, np.bincount(labels, minlength=len(case.classes)).tolist(), strict=True))
    sums: dict[Cause, float] = {"rare category": 0.0}
    for error in causes.errors:
        weight = len(labels) / (len(case.classes) * max(counts[error.label], 1))
        for cause, chance in error.probabilities.items():
            sums[cause] = sums.get(cause, 0.0) + weight * chance
    least = LEAST_SHARE * sum(sums.values()) / (1 - LEAST_SHARE)
    return {**sums, "rare category": max(sums["rare category"], least)}


def _costs(candidate: Candidate) -> bool:
    """Tell whether a candidate needs a training of its own."""
    cure = REMEDIES.get(candidate.name)
    return cure is None or cure.passes > 0


def _announced(
    case: Case,
    causes: Causes,
    pool: Sequence[Candidate],
    rungs: Sequence[tuple[int, int]],
) -> str:
    """Say what is tried, why, and what it costs."""
    found = ", ".join(f"{cause} {number:.0f}" for cause, number in causes.expected.items() if number >= 0.5)
    names = ", ".join(one.name for one in pool)
    trials = "; ".join(
        f"{count} for {epochs} epoch{'s' if epochs > 1 else ''} each" for count, epochs in rungs
    )
    how = f"tried beside the control: {trials}" if rungs else _untried(pool)
    least = BUDGET_TIMES if case.plan.budget is None and not case.plan.auto else 0
    limit = f"; all training takes at most {least:g} times the control's own" if least else ""
    return f"choosing a cure (expected errors by cause: {found or 'none'}): {names}; {how}{limit}"


def _untried(pool: Sequence[Candidate]) -> str:
    """Say what happens without trials: the first training and the first edit are both trained in full."""
    trained = next((one.name for one in pool if _costs(one)), None)
    edit = next((one.name for one in pool if not _costs(one)), None)
    firsts = " and ".join(name for name in (trained, edit) if name is not None)
    return f"too few steps or no validation images for trials, so these are trained in full: {firsts}"


def _try(
    judge: Judge,
    folder: Path,
    diagnosis: Diagnosis,
    epochs: int,
    number: int,
    tried: Sequence[Candidate],
    watch: Watch,
) -> Treatment:
    """Train a rung's candidates and the control for some epochs, with a seed of the rung's own."""
    case, settings = judge.case, judge.case.plan
    recipe = replace(settings.recipe, epochs=epochs)
    shared = {
        "draws": settings.draws_per_step,
        "every": settings.penalty_every,
        "expand_pixels": settings.expand_pixels,
    }
    cures = cures_of(case, folder.parent.parent)
    remedies: list[str | Remedy] = []
    for candidate in tried:
        if candidate.constraints:
            remedies.append(remedy_of(candidate, case.layers, recipe, **shared))
        else:
            remedies += remedies_for([candidate.name], cures)
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
        validation=judge.shown,
        store=ArmFolder(folder, case.card, watch),
        progress=lambda stage, done, total: watch.progress(f"trial {stage}", done, total),
        processes=case.processes,
    )


def _ends_linear(case: Case) -> bool:
    """Whether the network's logits come from a linear layer with a bias."""
    return linear_head(case.model, [case.data.train.first_batch(0)]) is not None


def listed_arms(settings: Settings, masked: int) -> tuple[str, ...]:
    """Return the arms that were asked for; a choice is compared with them as well.

    Args:
        settings: What was asked for, or a plan.
        masked: The number of training images with masks.

    Returns:
        The arms' names; where `arms` was left at its default, those that use a person's answers, or none.
    """
    if settings.arms != "auto":
        return settings.arms
    return answered_arms(settings, masked)


def plan_with_choice(settings: Chosen, choice: Choice, masked: int) -> Chosen:
    """Return the settings with the remedy that a search chose, beside the arms that were asked for.

    Args:
        settings: What was asked for, or a plan.
        choice: The result of the search.
        masked: The number of training images with masks.

    Returns:
        The settings whose arms are the control, the chosen remedy with its rival, and the arms that were
        asked for by name.
        Where `treated` is asked for and another remedy won, it means the best constraints that were tried.
    """
    best, asked = choice.best, list(listed_arms(settings, masked))
    constrained = next((one for one in (best, choice.rival) if one is not None and one.constraints), None)
    treatment = constrained or choice.constrained
    if treatment is None:
        asked = [arm for arm in asked if arm != "treated"]
    arms = tuple(dict.fromkeys(["control", *choice.tried, *asked]))
    settings = settings.but(arms=arms)
    if treatment is not None and "treated" in arms:
        settings = settings.but(constraints=treatment.constraints, tau=treatment.tau)
    return settings

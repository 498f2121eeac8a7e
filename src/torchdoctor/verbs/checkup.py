"""Run a whole checkup: diagnose, treat, compare and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torchdoctor.case.defaults import masked_count
from torchdoctor.case.outcome import Outcome, arm_of
from torchdoctor.case.preparation import Case, prepare
from torchdoctor.case.settings import Settings
from torchdoctor.diagnosis.causes_result import FILE as CAUSES
from torchdoctor.diagnosis.causes_result import Causes
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.processes import launched
from torchdoctor.runs.folder import open_run
from torchdoctor.runs.history import check_trackers
from torchdoctor.treatment.result import Treatment
from torchdoctor.types import Progress, silent
from torchdoctor.verbs.begin import (
    Say,
    Watch,
    is_done,
    open_locked_run,
    refuse_without_out,
    silent_text,
    with_facts,
)
from torchdoctor.verbs.causes import causes_stage, with_more_annotated
from torchdoctor.verbs.compare import compare_stage, read_checkup, with_weights_to_use
from torchdoctor.verbs.judge import Judge, better_arm, choose_weights, judge_of
from torchdoctor.verbs.learning_rate import with_rate
from torchdoctor.verbs.model_folder import model_stage
from torchdoctor.verbs.next_steps import read_steps, steps_record, steps_stage
from torchdoctor.verbs.report import report_stage
from torchdoctor.verbs.search import Choice, choose_stage, listed_arms, plan_with_choice
from torchdoctor.verbs.suspects import suspects_stage
from torchdoctor.verbs.treat import diagnosis_of, reused_diagnosis, treat_stage


def checkup_stages(case: Case, folder: Path, reused: Diagnosis | None, watch: Watch) -> Outcome:
    """Run the stages of a checkup in a folder; what an earlier process finished is read.

    Args:
        case: The prepared case.
        folder: The run's folder.
        reused: The diagnosis of another run; None: it is made, or read where it was made already.
        watch: Who watches the run.

    Returns:
        The outcome, with the path of the report.
    """
    masked = masked_count(case.data)
    judge, asked = (judge_of(case) if case.plan.chooses else None), listed_arms(case.plan, masked)
    diagnosis = diagnosis_of(case, folder, reused, watch)
    found = (folder / CAUSES).is_file()
    causes = Causes.load(folder) if found else causes_stage(case, folder, diagnosis, watch.progress)
    suspects = suspects_stage(case, folder, watch.progress)
    before, case = case, with_more_annotated(case, causes)
    if case is not before:
        watch.say(case.notes[-1])
    if judge is not None:
        case = with_rate(case, folder, watch)
        choice = choose_stage(case, folder, (diagnosis, causes), judge, watch)
        case = replace(case, plan=plan_with_choice(case.plan, choice, masked))
    diagnosis, treatment = treat_stage(case, folder, diagnosis, watch)
    if judge is not None:
        case, treatment = with_better_arm(case, folder, judge, treatment, choice, asked)
    if (folder / "compare.json").is_file():
        outcome = read_checkup(case, folder)
    else:
        outcome = compare_stage(case, folder, diagnosis, treatment, watch.progress)
    if judge is not None:
        choice_of_weights = choose_weights(folder, judge, treatment, arm_of(case))
        outcome = with_weights_to_use(case, folder, outcome, choice_of_weights)
    outcome = model_stage(case, folder, outcome)
    steps = steps_stage(case, folder, diagnosis, causes, suspects, outcome)
    outcome = replace(outcome, record={**outcome.record, **steps_record(steps)})
    report, comparison = folder / "report.html", outcome.comparison
    if case.processes.main:
        report_stage(case, folder, report, diagnosis, treatment, comparison, watch.progress, "checkup")
    return replace(outcome, record={**outcome.record, "report": str(report)})


def with_better_arm(
    case: Case, folder: Path, judge: Judge, treatment: Treatment, choice: Choice, asked: Sequence[str]
) -> tuple[Case, Treatment]:
    """Leave the arm out that a choice led to and that is not compared.

    Args:
        case: The prepared case, whose plan names the trained arms.
        folder: The run's folder.
        judge: How weights are scored.
        treatment: The trained arms.
        choice: What the trials led to.
        asked: The arms that were asked for by name.

    Returns:
        The case and the treatment with the control, the better of the chosen arms, and those that were asked
        for.
    """
    better = better_arm(folder, judge, treatment, choice.tried)
    left_out = set(choice.tried) - {better} - set(asked)
    names = [name for name in case.plan.arm_names if name not in left_out]
    arms = tuple(sorted(names, key=lambda name: (name != "control", name != better)))
    kept = tuple(arm for arm in treatment.arms if arm.name in arms)
    return replace(case, plan=case.plan.but(arms=arms)), replace(treatment, arms=kept)


def run_checkup(
    settings: Settings, progress: Progress = silent, *, resume: bool = False, say: Say = silent_text
) -> Outcome:
    """Diagnose, treat, compare and report.

    Args:
        settings: What was asked for.
        progress: Called with stage, done, of how many.
        resume: Whether to go on where an earlier process stopped; a finished run is only read.
        say: Receives sentences about costs and about what had to be repaired.

    Returns:
        The outcome of the comparison, with the path of the report.

    Raises:
        InputError: A setting does not fit the network or the data, or the folder cannot be used.
    """
    refuse_without_out(settings, resume)
    check_trackers(settings.tensorboard, settings.tracker)
    case = prepare(settings, "checkup", processes=launched())
    reused = reused_diagnosis(case)
    folder = case.folder
    if resume and is_done(folder, case.processes):
        outcome = read_checkup(case, open_run(folder))
        steps = steps_record(read_steps(folder))
        return with_facts(replace(outcome, record={**outcome.record, **steps}), case)
    with open_locked_run(case, "checkup", resume, progress, say) as (place, watch):
        for tests in case.data.tests.values():
            tests.check()
        return with_facts(checkup_stages(case, place, reused, watch), case)

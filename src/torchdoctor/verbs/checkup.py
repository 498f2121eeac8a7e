"""Write the report of a run, and run a whole checkup, of which it is the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torchdoctor.case.outcome import Outcome, arm_of
from torchdoctor.case.preparation import Case, prepare
from torchdoctor.case.settings import Settings
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.runs.folder import open_run
from torchdoctor.runs.history import check_tensorboard
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
from torchdoctor.verbs.causes import causes_stage
from torchdoctor.verbs.compare import _handed_back, compare_stage, read_checkup
from torchdoctor.verbs.model_folder import model_stage
from torchdoctor.verbs.report import report_stage
from torchdoctor.verbs.search import choose_stage, hand_back, judge_of, settled
from torchdoctor.verbs.treat import diagnosis_of, taken_over, treat_stage


def checkup_stages(case: Case, folder: Path, given: Diagnosis | None, watch: Watch) -> Outcome:
    """Run the stages of a checkup in a folder; what an earlier process finished is read."""
    judge = judge_of(case) if case.plan.auto else None
    if judge is not None:
        given = diagnosis_of(case, folder, given, watch)
        choice = choose_stage(case, folder, given, judge, watch)
        case = replace(case, plan=settled(case.plan, choice))
    diagnosis, treatment = treat_stage(case, folder, given, watch)
    if not (folder / "causes.json").is_file():
        causes_stage(case, folder, diagnosis, watch.progress)
    if (folder / "compare.json").is_file():
        outcome = read_checkup(case, folder)
    else:
        outcome = compare_stage(case, folder, diagnosis, treatment, watch.progress)
    if judge is not None:
        outcome = _handed_back(case, folder, outcome, hand_back(folder, judge, treatment, arm_of(case)))
    outcome = model_stage(case, folder, outcome)
    report = folder / "report.html"
    report_stage(case, folder, report, diagnosis, treatment, outcome.comparison, watch.progress, "checkup")
    return replace(outcome, record={**outcome.record, "report": str(report)})


def run_checkup(
    settings: Settings, progress: Progress = silent, *, resume: bool = False, say: Say = silent_text
) -> Outcome:
    """Diagnose, treat, compare and report in one go; `resume` goes on where an earlier process stopped."""
    refuse_without_out(settings, resume)
    check_tensorboard(settings.tensorboard)
    case = prepare(settings, "checkup")
    given = taken_over(case)
    folder = case.folder
    if resume and is_done(folder):
        return with_facts(read_checkup(case, open_run(folder)), case)
    with open_locked_run(case, "checkup", resume, progress, say) as (place, watch):
        for tests in case.data.tests.values():
            tests.check()
        return with_facts(checkup_stages(case, place, given, watch), case)

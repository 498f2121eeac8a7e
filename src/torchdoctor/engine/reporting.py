"""Write the report of a run, and run a whole checkup, of which it is the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchdoctor.engine.choosing import TRIALS, choose_stage, hand_back, judge_of, settled
from torchdoctor.engine.examples import collect_examples
from torchdoctor.engine.findings import causes_stage, explained_errors, load_causes, load_robustness
from torchdoctor.engine.model_folder import model_stage, with_model
from torchdoctor.engine.preparation import Case, environment, loading_code
from torchdoctor.engine.records import (
    comparison_record,
    load_comparison,
    load_diagnosis,
    load_treatment,
)
from torchdoctor.engine.settings import settings_record
from torchdoctor.engine.stages import (
    DONE,
    INCONCLUSIVE,
    Outcome,
    arm_of,
    command_of,
    compare_stage,
    exit_code_of,
    lines_of,
    notes_of,
)
from torchdoctor.engine.storage import read_json, write_bytes
from torchdoctor.engine.treating import Watch, diagnosis_of, treat_stage
from torchdoctor.report import render_report
from torchdoctor.types import Comparison, Diagnosis, Progress, Treatment


def report_stage(
    case: Case,
    folder: Path,
    target: Path,
    diagnosis: Diagnosis,
    treatment: Treatment | None,
    comparison: Comparison | None,
    progress: Progress,
    verb: str,
) -> None:
    """Collect the images behind the errors, explain some, and write the page."""
    progress("report", 0, 1)
    found = folder / "causes.json"
    causes = load_causes(found) if found.is_file() else None
    curves, trials = folder / "robustness.json", folder / TRIALS
    examples = collect_examples(case, treatment, comparison)
    page = render_report(
        title=f"{case.settings.model} on {case.settings.data}",
        diagnosis=diagnosis,
        comparison=comparison,
        examples=examples,
        prescription=treatment.prescription if treatment else (),
        settings=settings_record(verb, case.settings),
        environment=environment(),
        command=command_of(folder, verb),
        loading_code=lines_of(case, folder, arm_of(case, comparison)) if treatment else "",
        notes=notes_of(diagnosis),
        causes=causes,
        explained=explained_errors(case, diagnosis, causes) if causes else (),
        robustness=load_robustness(curves) if curves.is_file() else None,
        trials=read_json(trials) if trials.is_file() else None,
        arm=arm_of(case, comparison),
    )
    write_bytes(target, page.encode())
    progress("report", 1, 1)


def checkup_stages(case: Case, folder: Path, given: Diagnosis | None, watch: Watch) -> Outcome:
    """Run the stages of a checkup in a folder; what an earlier process finished is read."""
    judge = judge_of(case) if case.settings.auto else None
    if judge is not None:
        given = diagnosis_of(case, folder, given, watch)
        choice = choose_stage(case, folder, given, judge, watch)
        case = replace(case, settings=settled(case.settings, choice))
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


def _handed_back(case: Case, folder: Path, outcome: Outcome, found: Mapping[str, Any]) -> Outcome:
    """Return the outcome with whose weights to use; a gain that validation did not see is no evidence."""
    code, use = outcome.exit_code, str(found["use"])
    if use != found["arm"] and code == DONE:
        code = INCONCLUSIVE
    record = {**outcome.record, "exit_code": code, "handed_back": found}
    lines = (
        loading_code(case, Path(str(case.settings.weights))) if use == "base" else lines_of(case, folder, use)
    )
    return replace(outcome, exit_code=code, record=record, loading_code=lines)


def read_checkup(case: Case, folder: Path) -> Outcome:
    """Read what a checkup found."""
    diagnosis = load_diagnosis(folder / "diagnosis")
    comparison = load_comparison(folder / "compare.json")
    code = exit_code_of(diagnosis, comparison)
    record = {"out": str(folder), **comparison_record(comparison, code)}
    if (folder / "report.html").is_file():
        record["report"] = str(folder / "report.html")
    treatment = load_treatment(folder / "treatment")
    lines = lines_of(case, folder, comparison.arm)
    outcome = with_model(folder, Outcome(code, record, diagnosis, treatment, comparison, lines))
    chosen = read_json(folder / TRIALS).get("handed_back") if (folder / TRIALS).is_file() else None
    return _handed_back(case, folder, outcome, chosen) if isinstance(chosen, dict) else outcome

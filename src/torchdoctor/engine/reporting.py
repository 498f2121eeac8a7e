"""Write the report of a run, and run a whole checkup, of which it is the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torchdoctor.engine.examples import collect_examples
from torchdoctor.engine.findings import causes_stage, explained_errors, load_causes, load_robustness
from torchdoctor.engine.preparation import Case, environment
from torchdoctor.engine.settings import settings_record
from torchdoctor.engine.stages import Outcome, command_of, compare_stage, lines_of, notes_of, treat_stage
from torchdoctor.engine.storage import write_bytes
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
    curves = folder / "robustness.json"
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
        loading_code=lines_of(case, folder) if treatment else "",
        notes=notes_of(diagnosis),
        causes=causes,
        explained=explained_errors(case, diagnosis, causes) if causes else (),
        robustness=load_robustness(curves) if curves.is_file() else None,
    )
    write_bytes(target, page.encode())
    progress("report", 1, 1)


def checkup_stages(case: Case, folder: Path, given: Diagnosis | None, progress: Progress) -> Outcome:
    """Run the stages of a checkup in a folder."""
    diagnosis, treatment = treat_stage(case, folder, given, progress)
    causes_stage(case, folder, diagnosis, progress)
    outcome = compare_stage(case, folder, diagnosis, treatment, progress)
    report = folder / "report.html"
    report_stage(case, folder, report, diagnosis, treatment, outcome.comparison, progress, "checkup")
    return replace(outcome, record={**outcome.record, "report": str(report)})

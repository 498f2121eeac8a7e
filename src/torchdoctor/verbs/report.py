"""Write the HTML report of a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from torchdoctor.case.config import settings_record, verb_of
from torchdoctor.case.outcome import DONE, Outcome, arm_loading_code, arm_of, command_of, notes_of
from torchdoctor.case.preparation import Case
from torchdoctor.case.surroundings import environment
from torchdoctor.diagnosis.causes_result import FILE as CAUSES
from torchdoctor.diagnosis.causes_result import Causes
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.robustness_result import Robustness
from torchdoctor.diagnosis.suspects_result import FILE as SUSPECTS
from torchdoctor.diagnosis.suspects_result import Suspects
from torchdoctor.files.reading import read_json
from torchdoctor.files.writing import write_bytes
from torchdoctor.proof.result import Comparison
from torchdoctor.report.page import ReportContents, render_report
from torchdoctor.runs.folder import RunFolder
from torchdoctor.treatment.result import Treatment
from torchdoctor.types import InputError, Progress, silent
from torchdoctor.verbs.begin import reopen_run
from torchdoctor.verbs.causes import explained_errors, with_more_annotated
from torchdoctor.verbs.examples import collect_examples
from torchdoctor.verbs.judge import TRIALS
from torchdoctor.verbs.next_steps import read_steps
from torchdoctor.verbs.suspects import shown_suspects


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
    """Collect images of errors, explain some of them, and write the page.

    Args:
        case: The prepared case.
        folder: The run's folder.
        target: Where the page is written.
        diagnosis: The diagnosis of the base network.
        treatment: The trained arms; None where nothing was treated.
        comparison: The comparison; None where nothing was compared.
        progress: Called with stage, done, of how many.
        verb: The command that made the run.
    """
    progress("report", 0, 1)
    causes = Causes.load(folder) if (folder / "causes.json").is_file() else None
    suspects = Suspects.load(folder) if (folder / SUSPECTS).is_file() else None
    curves, trials = folder / "robustness.json", folder / TRIALS
    examples = collect_examples(case, treatment, comparison)
    contents = ReportContents(
        title=f"{case.plan.model} on {case.plan.data}",
        diagnosis=diagnosis,
        comparison=comparison,
        examples=examples,
        prescription=treatment.prescription if treatment else (),
        settings=settings_record(verb, case.plan),
        environment=environment(),
        command=command_of(case, folder, verb),
        loading_code=arm_loading_code(case, folder, arm_of(case, comparison)) if treatment else "",
        notes=notes_of(diagnosis),
        causes=causes,
        explained=explained_errors(case, diagnosis, causes) if causes else (),
        suspects=suspects,
        shown_suspects=shown_suspects(case, suspects) if suspects else (),
        robustness=Robustness.load(folder) if curves.is_file() else None,
        next_steps=read_steps(folder),
        trials=read_json(trials) if trials.is_file() else None,
        arm=arm_of(case, comparison),
        images={name: len(loader) for name, loader in case.data.loaders.items()},
        remarks=(*case.notes, *case.data.notes, *(f"left out: {reason}" for reason in case.data.skipped)),
    )
    write_bytes(target, render_report(contents).encode())
    progress("report", 1, 1)


def run_report(
    run: str, changes: Mapping[str, object], file: str | None = None, progress: Progress = silent
) -> Outcome:
    """Write the report of a finished run.

    Args:
        run: The folder of a finished run with a diagnosis.
        changes: Settings that differ from those of the run, by name; None means unchanged.
        file: Where the page is written; None: `report.html` in the run.
        progress: Called with stage, done, of how many.

    Returns:
        The outcome, with the path of the report.

    Raises:
        InputError: The run is unfinished or damaged, or the file exists already.
    """
    folder, case, diagnosis = reopen_run(run, changes)
    target = Path(file) if file else folder / "report.html"
    if target.exists():
        raise InputError(f"{str(target)!r} exists already: give --out another file")
    if verb_of(folder) == "checkup" and (folder / CAUSES).is_file():
        case = with_more_annotated(case, Causes.load(folder))
    treatment = Treatment.load(folder / "treatment") if (folder / "treatment").is_dir() else None
    comparison = Comparison.load(folder) if (folder / "compare.json").is_file() else None
    with nullcontext() if file else RunFolder(folder):
        report_stage(case, folder, target, diagnosis, treatment, comparison, progress, verb_of(folder))
    record = {"out": str(folder), "report": str(target)}
    lines = arm_loading_code(case, folder, arm_of(case, comparison)) if treatment else None
    return Outcome(DONE, record, diagnosis, treatment, comparison, lines)

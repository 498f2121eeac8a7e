"""Compare the arms of a treatment on the test splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchdoctor.case.outcome import DONE, INCONCLUSIVE, Outcome, arm_of, exit_code_of, lines_of
from torchdoctor.case.preparation import Case
from torchdoctor.case.splits import splits_to_compare
from torchdoctor.case.surroundings import loading_code
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.files.reading import read_json
from torchdoctor.proof.compare import compare
from torchdoctor.proof.result import Comparison
from torchdoctor.runs.folder import RunFolder
from torchdoctor.treatment.result import Treatment
from torchdoctor.types import InputError, Progress, silent
from torchdoctor.verbs.begin import reopened
from torchdoctor.verbs.model_folder import model_stage, with_model
from torchdoctor.verbs.search import TRIALS


def compare_stage(
    case: Case, folder: Path, diagnosis: Diagnosis, treatment: Treatment, progress: Progress
) -> Outcome:
    """Compare, write compare.json, and turn the verdict into an exit code."""
    settings = case.plan
    comparison = compare(
        case.model,
        treatment,
        splits_to_compare(case),
        primary=settings.primary,
        classes=case.classes,
        layers=case.layers,
        evidence=settings.evidence,
        min_gain=settings.min_gain,
        max_loss=settings.max_loss,
        seed=settings.seed,
        arm=arm_of(case),
        progress=progress,
    )
    code = exit_code_of(diagnosis, comparison)
    comparison.save(folder, exit_code=code)
    record = {"out": str(folder), **comparison.record(code)}
    return Outcome(code, record, diagnosis, treatment, comparison, lines_of(case, folder))


def _handed_back(case: Case, folder: Path, outcome: Outcome, found: Mapping[str, Any]) -> Outcome:
    """Return the outcome with whose weights to use; a gain that validation did not see is no evidence."""
    code, use = outcome.exit_code, str(found["use"])
    if use != found["arm"] and code == DONE:
        code = INCONCLUSIVE
    record = {**outcome.record, "exit_code": code, "handed_back": found}
    lines = (
        loading_code(case.plan, len(case.classes), Path(case.plan.weights))
        if use == "base"
        else lines_of(case, folder, use)
    )
    return replace(outcome, exit_code=code, record=record, loading_code=lines)


def read_checkup(case: Case, folder: Path) -> Outcome:
    """Read what a checkup found."""
    diagnosis = Diagnosis.load(folder / "diagnosis")
    comparison = Comparison.load(folder)
    code = exit_code_of(diagnosis, comparison)
    record = {"out": str(folder), **comparison.record(code)}
    if (folder / "report.html").is_file():
        record["report"] = str(folder / "report.html")
    treatment = Treatment.load(folder / "treatment")
    lines = lines_of(case, folder, comparison.arm)
    outcome = with_model(folder, Outcome(code, record, diagnosis, treatment, comparison, lines))
    chosen = read_json(folder / TRIALS).get("handed_back") if (folder / TRIALS).is_file() else None
    return _handed_back(case, folder, outcome, chosen) if isinstance(chosen, dict) else outcome


def run_compare(run: str, given: Mapping[str, object], progress: Progress = silent) -> Outcome:
    """Compare the arms of a finished treat run on the test splits: once."""
    folder, case, diagnosis = reopened(run, given)
    with RunFolder(folder):
        if (folder / "compare.json").exists():
            outcome = read_checkup(case, folder)
            if "model" not in outcome.record:  # killed before, or made by a version that wrote none
                return model_stage(case, folder, outcome)
            raise InputError(
                f"run {run!r} is compared already ({folder / 'compare.json'}): the test split is used once"
            )
        treatment = Treatment.load(folder / "treatment")
        return model_stage(case, folder, compare_stage(case, folder, diagnosis, treatment, progress))

"""Compare the arms of a treatment on the test splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchdoctor.case.outcome import (
    DONE,
    INCONCLUSIVE,
    Outcome,
    arm_loading_code,
    arm_of,
    arm_weights,
    exit_code_of,
)
from torchdoctor.case.preparation import Case
from torchdoctor.case.splits import splits_to_compare
from torchdoctor.case.surroundings import loading_code
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.files.reading import read_json
from torchdoctor.processes import launched
from torchdoctor.proof.compare import compare
from torchdoctor.proof.result import Comparison
from torchdoctor.runs.folder import RunFolder
from torchdoctor.treatment.result import Treatment
from torchdoctor.types import InputError, Progress, silent
from torchdoctor.verbs.begin import reopen_run, written_by_main
from torchdoctor.verbs.judge import TRIALS
from torchdoctor.verbs.model_card import WEIGHTS
from torchdoctor.verbs.model_folder import FOLDER as MODEL_FOLDER
from torchdoctor.verbs.model_folder import model_stage, with_model


def compare_stage(
    case: Case, folder: Path, diagnosis: Diagnosis, treatment: Treatment, progress: Progress
) -> Outcome:
    """Compare the arms with their control, write `compare.json`, and turn the verdict into an exit code.

    Args:
        case: The prepared case.
        folder: The run's folder.
        diagnosis: The diagnosis that the treatment rests on.
        treatment: The trained arms.
        progress: Called with stage, done, of how many.

    Returns:
        The outcome: exit code 0 (helped), 3 (harmed, or gained less than asked), 4 (no evidence).
    """
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
        arm=arm_of(case),
        progress=progress,
        processes=case.processes,
    )
    code = exit_code_of(diagnosis, comparison)
    comparison.save(folder, exit_code=code)
    record = {"out": str(folder), **comparison.record(code)}
    return Outcome(code, record, diagnosis, treatment, comparison, arm_loading_code(case, folder))


def with_weights_to_use(case: Case, folder: Path, outcome: Outcome, choice: Mapping[str, Any]) -> Outcome:
    """Add to an outcome whose weights to use.

    Args:
        case: The prepared case.
        folder: The run's folder.
        outcome: The outcome of the comparison.
        choice: What `choose_weights` returns.

    Returns:
        The outcome with the choice and the code that loads the chosen weights. Exit code 0 becomes 4 (no
        evidence) where the validation split preferred other weights than those of the compared arm.
    """
    code, use = outcome.exit_code, str(choice["use"])
    if use != choice["arm"] and code == DONE:
        code = INCONCLUSIVE
    record = {**outcome.record, "exit_code": code, "handed_back": choice}
    if use == "base":
        file = Path(case.plan.weights)
    elif (choice.get("soup") or {}).get("used"):
        file = folder / MODEL_FOLDER / WEIGHTS
    else:
        file = arm_weights(folder, use)
    lines = loading_code(case.plan, len(case.classes), file)
    return replace(outcome, exit_code=code, record=record, loading_code=lines)


def read_checkup(case: Case, folder: Path) -> Outcome:
    """Read the results of a checkup from its folder.

    Args:
        case: The prepared case.
        folder: The run's folder.

    Returns:
        The same outcome that the checkup ended with.

    Raises:
        InputError: A file of the run is missing or damaged.
    """
    diagnosis = Diagnosis.load(folder / "diagnosis")
    comparison = Comparison.load(folder)
    code = exit_code_of(diagnosis, comparison)
    record = {"out": str(folder), **comparison.record(code)}
    if (folder / "report.html").is_file():
        record["report"] = str(folder / "report.html")
    treatment = Treatment.load(folder / "treatment")
    lines = arm_loading_code(case, folder, comparison.arm)
    outcome = with_model(folder, Outcome(code, record, diagnosis, treatment, comparison, lines))
    chosen = read_json(folder / TRIALS).get("handed_back") if (folder / TRIALS).is_file() else None
    return with_weights_to_use(case, folder, outcome, chosen) if isinstance(chosen, dict) else outcome


def run_compare(run: str, changes: Mapping[str, object], progress: Progress = silent) -> Outcome:
    """Compare the arms of a finished treatment with their control on the test splits.

    Args:
        run: The folder of a finished run of `treat`.
        changes: Settings that differ from those of the run, by name; None means unchanged.
        progress: Called with stage, done, of how many.

    Returns:
        The outcome: exit code 0 (helped), 3 (harmed, or gained less than asked), 4 (no evidence).

    Raises:
        InputError: The run is unfinished or damaged, or was compared before: test images are used once.
    """
    _, case, diagnosis = reopen_run(run, changes, launched())
    with written_by_main(case.processes, lambda: RunFolder(Path(run))) as folder:
        if (folder / "compare.json").exists():
            outcome = read_checkup(case, folder)
            if "model" not in outcome.record:  # killed before, or made by a version that wrote no model
                return model_stage(case, folder, outcome)
            raise InputError(
                f"run {run!r} is compared already ({folder / 'compare.json'}): the test split is used once"
            )
        treatment = Treatment.load(folder / "treatment")
        return model_stage(case, folder, compare_stage(case, folder, diagnosis, treatment, progress))

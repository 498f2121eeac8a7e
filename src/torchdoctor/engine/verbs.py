"""Run the verbs: each prepares its case, calls the function of its name, and writes a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torchdoctor.diagnosis import Progress, silent
from torchdoctor.engine.demo import demo_settings
from torchdoctor.engine.preparation import Case, prepare
from torchdoctor.engine.records import (
    load_comparison,
    load_diagnosis,
    load_treatment,
)
from torchdoctor.engine.settings import Settings, filled, read_config, settings_from, verb_of
from torchdoctor.engine.stages import (
    DONE,
    INCONCLUSIVE,
    Outcome,
    check_weights,
    checkup_stages,
    compare_stage,
    diagnose_stage,
    diagnosis_record,
    lines_of,
    out_folder,
    report_stage,
    start_run,
    taken_over,
    train_stage,
    treat_stage,
)
from torchdoctor.engine.storage import (
    RunFolder,
    open_run,
    seal,
)
from torchdoctor.types import Diagnosis, InputError


def _with_facts(outcome: Outcome, case: Case) -> Outcome:
    """Add to what is printed how the images were prepared."""
    return replace(outcome, record={**outcome.record, **case.facts})


def run_train(settings: Settings, progress: Progress = silent) -> Outcome:
    """Train a classifier, so that there is something to treat; the last epoch's weights are kept."""
    settings = filled(settings, "train")
    case = prepare(settings, needs_weights=False)
    with RunFolder.create(out_folder(settings, "train")) as run:
        start_run(run.path, "train", case)
        return _with_facts(train_stage(case, run.path, progress), case)


def run_diagnose(settings: Settings, progress: Progress = silent) -> Outcome:
    """Diagnose the classifier on its training images."""
    case = prepare(filled(settings, "diagnose"))
    with RunFolder.create(out_folder(settings, "diagnose")) as run:
        start_run(run.path, "diagnose", case)
        diagnosis = diagnose_stage(case, run.path, progress)
        code = INCONCLUSIVE if diagnosis.inconclusive else DONE
        return _with_facts(Outcome(code, diagnosis_record(run.path, diagnosis), diagnosis), case)


def run_treat(settings: Settings, progress: Progress = silent) -> Outcome:
    """Treat the classifier beside its control; the diagnosis is made first unless a run has one."""
    case = prepare(filled(settings, "treat"))
    given = taken_over(case)
    with RunFolder.create(out_folder(settings, "treat")) as run:
        start_run(run.path, "treat", case)
        diagnosis, treatment = treat_stage(case, run.path, given, progress)
        arms = [
            {"arm": arm.name, "seed": arm.seed, "seconds": round(arm.seconds, 1), "steps": arm.steps,
             **(dict(arm.history[-1]) if arm.history else {})}
            for arm in treatment.arms
        ]  # fmt: skip
        record = {"out": str(run.path), "prescription": treatment.prescription, "arms": arms}
        code = INCONCLUSIVE if diagnosis.inconclusive else DONE
        outcome = Outcome(code, record, diagnosis, treatment, loading_code=lines_of(case, run.path))
        return _with_facts(outcome, case)


def run_compare(run: str, given: Mapping[str, object], progress: Progress = silent) -> Outcome:
    """Compare the arms of a finished treat run on the test splits: once."""
    folder, case, diagnosis = _reopened(run, given)
    if (folder / "compare.json").exists():
        raise InputError(
            f"run {run!r} is compared already ({folder / 'compare.json'}): the test split is used once"
        )
    treatment = load_treatment(folder / "treatment")
    outcome = compare_stage(case, folder, diagnosis, treatment, progress)
    seal(folder)
    return outcome


def _reopened(run: str, given: Mapping[str, object]) -> tuple[Path, Case, Diagnosis]:
    """Open a finished run and prepare its case again from its own settings, with its diagnosis."""
    folder = open_run(Path(run))
    settings = settings_from(given, base=settings_from(read_config(folder / "config.yaml")))
    if not (folder / "diagnosis").is_dir():
        raise InputError(f"run {run!r} holds no diagnosis: give a run of diagnose, treat or checkup")
    case = prepare(filled(settings, "treat"))
    diagnosis = load_diagnosis(folder / "diagnosis")
    check_weights(case, diagnosis, f"run {run!r}")
    return folder, case, diagnosis


def run_report(
    run: str, given: Mapping[str, object], file: str | None = None, progress: Progress = silent
) -> Outcome:
    """Write the report of a finished run, into the run or to another file."""
    folder, case, diagnosis = _reopened(run, given)
    target = Path(file) if file else folder / "report.html"
    if target.exists():
        raise InputError(f"{str(target)!r} exists already: give --out another file")
    treatment = load_treatment(folder / "treatment") if (folder / "treatment").is_dir() else None
    found = folder / "compare.json"
    comparison = load_comparison(found) if found.is_file() else None
    report_stage(case, folder, target, diagnosis, treatment, comparison, progress, verb_of(folder))
    if not file:
        seal(folder)
    record = {"out": str(folder), "report": str(target)}
    lines = lines_of(case, folder) if treatment else None
    return Outcome(DONE, record, diagnosis, treatment, comparison, lines)


def run_checkup(settings: Settings, progress: Progress = silent) -> Outcome:
    """Diagnose, treat, compare and report in one go."""
    case = prepare(filled(settings, "checkup"))
    given = taken_over(case)
    with RunFolder.create(out_folder(settings, "checkup")) as run:
        for tests in case.data.tests.values():
            tests.check()
        start_run(run.path, "checkup", case)
        return _with_facts(checkup_stages(case, run.path, given, progress), case)


def run_demo(settings: Settings, progress: Progress = silent) -> Outcome:
    """Train a small network on `scenes`, where the background gives the category away, and check it up."""
    base, further = demo_settings(settings)
    case = prepare(filled(base, "train"), needs_weights=False)
    prepare(filled(further, "demo"), needs_weights=False)  # refuses now what it would refuse after training
    with RunFolder.create(out_folder(settings, "demo")) as run:
        trained = train_stage(case, run.path / "base", progress)
        again = prepare(filled(replace(further, weights=str(trained.record["weights"])), "demo"))
        start_run(run.path, "checkup", again)
        outcome = checkup_stages(again, run.path, None, progress)
        return _with_facts(replace(outcome, record={**outcome.record, "base": trained.record}), again)

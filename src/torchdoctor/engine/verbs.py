"""Run the verbs: each prepares its case, calls the function of its name, and writes a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from torchdoctor.causes import Causes
from torchdoctor.engine.demo import demo_settings
from torchdoctor.engine.findings import causes_stage, figures_stage, load_causes, write_robustness
from torchdoctor.engine.identity import identity_of, start_run
from torchdoctor.engine.interruption import interruptible
from torchdoctor.engine.locking import LOCK, FolderLock
from torchdoctor.engine.model_folder import model_stage
from torchdoctor.engine.preparation import Case, prepare
from torchdoctor.engine.records import (
    load_comparison,
    load_diagnosis,
    load_treatment,
)
from torchdoctor.engine.reporting import checkup_stages, read_checkup, report_stage
from torchdoctor.engine.settings import Settings, filled, read_config, settings_from, verb_of
from torchdoctor.engine.stages import (
    DONE,
    INCONCLUSIVE,
    Outcome,
    arm_of,
    check_weights,
    compare_stage,
    cost_of,
    diagnose_stage,
    diagnosis_record,
    lines_of,
    out_folder,
    train_stage,
    trained_outcome,
)
from torchdoctor.engine.storage import (
    RunFolder,
    is_finished,
    open_run,
)
from torchdoctor.engine.trackers import check_tensorboard
from torchdoctor.engine.treating import Watch, taken_over, treat_stage
from torchdoctor.models import load_into, load_weights
from torchdoctor.robustness import RANDOM_LAYER, RANGES, Units, measure_robustness
from torchdoctor.types import Diagnosis, InputError, Progress, Treatment, silent

Say = Callable[[str], None]


def silent_text(_text: str) -> None:
    """Say nothing."""


def _with_facts(outcome: Outcome, case: Case) -> Outcome:
    """Add to what is printed how the images were prepared."""
    return replace(outcome, record={**outcome.record, **case.facts})


def _refuse_without_out(settings: Settings, resume: bool) -> None:
    """Raise InputError where a run is to go on and none is named."""
    if resume and settings.out is None:
        raise InputError("--resume needs --out RUN: the folder of the run to go on with")


def _is_done(folder: Path) -> bool:
    """Whether a folder holds a finished run; the lock of a process killed after sealing it is removed."""
    if not is_finished(folder):
        return False
    if (folder / LOCK).exists():
        FolderLock.acquire(folder).release()
    return True


@contextmanager
def _going(
    folder: Path, verb: str, case: Case, resume: bool, progress: Progress, say: Say
) -> Iterator[tuple[Path, Watch]]:
    """Begin a run, or go on with it, in a folder that is locked and sealed; Ctrl-C asks it to stop."""
    wanted = identity_of(folder, verb, case)
    opened = RunFolder.resume(folder, wanted) if resume else RunFolder.create(folder)
    with opened as run, interruptible() as stop:
        start_run(run.path, verb, case)
        yield run.path, Watch(progress, stop, say)


def run_train(
    settings: Settings, progress: Progress = silent, *, resume: bool = False, say: Say = silent_text
) -> Outcome:
    """Train a classifier, so that there is something to treat; the last epoch's weights are kept.

    `resume` goes on with an unfinished run in the same folder; a finished one is only read.
    """
    _refuse_without_out(settings, resume)
    check_tensorboard(settings.tensorboard)
    case = prepare(filled(settings, "train"), needs_weights=False)
    folder = out_folder(settings, "train")
    if resume and _is_done(folder):
        load_into(case.model, load_weights(open_run(folder) / "model.safetensors"), str(folder))
        return _with_facts(trained_outcome(case, folder), case)
    with _going(folder, "train", case, resume, progress, say) as (place, watch):
        return _with_facts(train_stage(case, place, progress, watch.stop, say), case)


def run_diagnose(
    settings: Settings,
    progress: Progress = silent,
    *,
    resume: bool = False,
    say: Say = silent_text,
) -> Outcome:
    """Diagnose the classifier on its training images, and find the causes of its validation errors.

    `resume` goes on with an unfinished run in the same folder; a finished one is only read. `say` is told
    the cost before anything is computed.
    """
    _refuse_without_out(settings, resume)
    case = prepare(filled(settings, "diagnose"))
    folder = out_folder(settings, "diagnose")
    if resume and _is_done(folder):
        diagnosis = load_diagnosis(open_run(folder) / "diagnosis")
        check_weights(case, diagnosis, f"run {str(folder)!r}")
        return _diagnosed(case, folder, diagnosis, load_causes(folder / "causes.json"))
    say(cost_of(case))
    wanted = identity_of(folder, "diagnose", case)
    with RunFolder.resume(folder, wanted) if resume else RunFolder.create(folder) as run:
        start_run(run.path, "diagnose", case)
        diagnosis = diagnose_stage(case, run.path, progress)
        causes = causes_stage(case, run.path, diagnosis, progress)
        figures_stage(case, run.path / "figures", diagnosis)
        return _diagnosed(case, run.path, diagnosis, causes)


def _diagnosed(case: Case, folder: Path, diagnosis: Diagnosis, causes: Causes) -> Outcome:
    """Return what a diagnosis ends with."""
    code = INCONCLUSIVE if diagnosis.inconclusive else DONE
    record = {
        **diagnosis_record(folder, diagnosis),
        "validation_accuracy": causes.accuracy,
        "causes": causes.counts,
        "figures": str(folder / "figures"),
    }
    return _with_facts(Outcome(code, record, diagnosis), case)


def run_robustness(
    settings: Settings,
    run: str | None = None,
    *,
    layer: str = RANDOM_LAYER,
    ranges: Sequence[float] = RANGES,
    units: Units = "absolute",
    number: int = 100,
    repeats: int = 10,
    epsilon: float = 8 / 255,
    progress: Progress = silent,
) -> Outcome:
    """Measure the noise curves on validation images, into a new run or into a finished one (`run`)."""
    if run is not None:
        folder, case, _ = _reopened(run, {"device": settings.device, "workers": settings.workers})
        if (folder / "robustness.json").exists():
            raise InputError(f"run {run!r} holds {folder / 'robustness.json'} already: give --out instead")
    else:
        case = prepare(filled(settings, "robustness"))
        folder = out_folder(settings, "robustness")
    fitted = case.data.preprocessing
    with RunFolder(folder) if run is not None else RunFolder.create(folder) as place:
        found = measure_robustness(
            case.model, case.data.validation, mean=fitted.mean, std=fitted.std, layer=layer, ranges=ranges,
            units=units, number=number, repeats=repeats, epsilon=epsilon, seed=case.settings.seed,
            progress=progress,
        )  # fmt: skip
        if run is None:
            start_run(place.path, "robustness", case)
        write_robustness(place.path, found)
    return _with_facts(Outcome(DONE, {"out": str(folder), **asdict(found)}), case)


def run_treat(
    settings: Settings, progress: Progress = silent, *, resume: bool = False, say: Say = silent_text
) -> Outcome:
    """Treat the classifier beside its control; the diagnosis is made first unless a run has one.

    `resume` goes on where an earlier process stopped, and ends with the same weights, bit for bit.
    """
    _refuse_without_out(settings, resume)
    check_tensorboard(settings.tensorboard)
    # Where a checkup's config.yaml is taken over: a search ends in a comparison, which this verb leaves out.
    case = prepare(filled(replace(settings, auto=False), "treat"), treats=True)
    given = taken_over(case)
    folder = out_folder(settings, "treat")
    if resume and _is_done(folder):
        return _treated(case, open_run(folder), load_diagnosis(folder / "diagnosis"))
    with _going(folder, "treat", case, resume, progress, say) as (place, watch):
        diagnosis, treatment = treat_stage(case, place, given, watch)
        return _treated(case, place, diagnosis, treatment)


def _treated(case: Case, folder: Path, diagnosis: Diagnosis, treatment: Treatment | None = None) -> Outcome:
    """Return what a treatment ends with; its arms are read from the run unless they are at hand."""
    treatment = treatment or load_treatment(folder / "treatment")
    arms = [
        {"arm": arm.name, "seed": arm.seed, "seconds": round(arm.seconds, 1), "steps": arm.steps,
         "skipped_batches": [case.names_of(ids) for ids in arm.skipped],
         **(dict(arm.history[-1]) if arm.history else {})}
        for arm in treatment.arms
    ]  # fmt: skip
    record = {"out": str(folder), "prescription": treatment.prescription, "arms": arms}
    code = INCONCLUSIVE if diagnosis.inconclusive else DONE
    arm = next(name for name in treatment.names() if name != "control")
    outcome = Outcome(code, record, diagnosis, treatment, loading_code=lines_of(case, folder, arm))
    return _with_facts(outcome, case)


def run_compare(run: str, given: Mapping[str, object], progress: Progress = silent) -> Outcome:
    """Compare the arms of a finished treat run on the test splits: once."""
    folder, case, diagnosis = _reopened(run, given)
    with RunFolder(folder):
        if (folder / "compare.json").exists():
            outcome = read_checkup(case, folder)
            if "model" not in outcome.record:  # killed before, or made by a version that wrote none
                return model_stage(case, folder, outcome)
            raise InputError(
                f"run {run!r} is compared already ({folder / 'compare.json'}): the test split is used once"
            )
        treatment = load_treatment(folder / "treatment")
        return model_stage(case, folder, compare_stage(case, folder, diagnosis, treatment, progress))


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
    with nullcontext() if file else RunFolder(folder):
        report_stage(case, folder, target, diagnosis, treatment, comparison, progress, verb_of(folder))
    record = {"out": str(folder), "report": str(target)}
    lines = lines_of(case, folder, arm_of(case, comparison)) if treatment else None
    return Outcome(DONE, record, diagnosis, treatment, comparison, lines)


def run_checkup(
    settings: Settings, progress: Progress = silent, *, resume: bool = False, say: Say = silent_text
) -> Outcome:
    """Diagnose, treat, compare and report in one go; `resume` goes on where an earlier process stopped."""
    _refuse_without_out(settings, resume)
    check_tensorboard(settings.tensorboard)
    case = prepare(filled(settings, "checkup"), treats=True)
    given = taken_over(case)
    folder = out_folder(settings, "checkup")
    if resume and _is_done(folder):
        return _with_facts(read_checkup(case, open_run(folder)), case)
    with _going(folder, "checkup", case, resume, progress, say) as (place, watch):
        for tests in case.data.tests.values():
            tests.check()
        return _with_facts(checkup_stages(case, place, given, watch), case)


def run_demo(settings: Settings, progress: Progress = silent) -> Outcome:
    """Train a small network on `scenes`, where the background gives the category away, and check it up."""
    check_tensorboard(settings.tensorboard)
    base, further = demo_settings(settings)
    case = prepare(filled(base, "train"), needs_weights=False)
    prepare(
        filled(further, "demo"), needs_weights=False, treats=True
    )  # refuses now what it would refuse after training
    with RunFolder.create(out_folder(settings, "demo")) as run, interruptible() as stop:
        trained = train_stage(case, run.path / "base", progress, stop)
        again = prepare(filled(replace(further, weights=str(trained.record["weights"])), "demo"), treats=True)
        start_run(run.path, "checkup", again)
        outcome = checkup_stages(again, run.path, None, Watch(progress, stop))
        return _with_facts(replace(outcome, record={**outcome.record, "base": trained.record}), again)

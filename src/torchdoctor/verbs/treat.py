"""Treat a prepared case: the diagnosis it rests on, and arms that are kept as they come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torchdoctor.case.config import read_config
from torchdoctor.case.outcome import (
    DONE,
    INCONCLUSIVE,
    Outcome,
    check_weights,
    lines_of,
)
from torchdoctor.case.preparation import Case, prepare
from torchdoctor.case.settings import Settings
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.runs.checkpoints import CheckpointFolder
from torchdoctor.runs.folder import open_run
from torchdoctor.runs.history import check_tensorboard, write_trackers
from torchdoctor.runs.parts import PartsFolder
from torchdoctor.treatment.recipe import Checkpoints
from torchdoctor.treatment.result import Arm, Treatment
from torchdoctor.treatment.settings import TreatmentSettings
from torchdoctor.treatment.treat import trial_of
from torchdoctor.types import InputError, Progress, silent
from torchdoctor.verbs.begin import (
    Say,
    Watch,
    is_done,
    open_locked_run,
    refuse_without_out,
    silent_text,
    with_facts,
)
from torchdoctor.verbs.diagnose import cost_of, diagnose_stage


def run_treat(
    settings: Settings, progress: Progress = silent, *, resume: bool = False, say: Say = silent_text
) -> Outcome:
    """Treat the classifier beside its control; the diagnosis is made first unless a run has one.

    `resume` goes on where an earlier process stopped, and ends with the same weights, bit for bit.
    """
    refuse_without_out(settings, resume)
    check_tensorboard(settings.tensorboard)
    # Where a checkup's config.yaml is taken over: a search ends in a comparison, which this verb leaves out.
    case = prepare(settings.but(auto=False), "treat")
    given = taken_over(case)
    folder = case.folder
    if resume and is_done(folder):
        return _treated(case, open_run(folder), Diagnosis.load(folder / "diagnosis"))
    with open_locked_run(case, "treat", resume, progress, say) as (place, watch):
        diagnosis, treatment = treat_stage(case, place, given, watch)
        return _treated(case, place, diagnosis, treatment)


def _treated(case: Case, folder: Path, diagnosis: Diagnosis, treatment: Treatment | None = None) -> Outcome:
    """Return what a treatment ends with; its arms are read from the run unless they are at hand."""
    treatment = treatment or Treatment.load(folder / "treatment")
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
    return with_facts(outcome, case)


@dataclass(frozen=True)
class ArmFolder:
    """Arms in a folder of a run, each finished one whole, an unfinished one with its checkpoints."""

    folder: Path
    card: Mapping[str, object]
    watch: Watch

    def home(self, name: str, seed: int) -> Path:
        """Return an arm's own folder."""
        return self.folder / name / f"seed{seed}"

    def finished(self, name: str, seed: int) -> Arm | None:
        """Return an arm that an earlier process finished; a damaged one is trained again, and said so."""
        home = self.home(name, seed)
        if not (home / "model.safetensors").is_file():
            return None
        try:
            arm = Arm.load(home, name, seed)
            self._checkpoints(name, seed).remove()  # left where the process was killed right after saving
            return arm
        except InputError as error:
            self.watch.say(f"{error}: {name}, seed {seed} is trained again")
            return None

    def checkpoints(self, name: str, seed: int) -> Checkpoints | None:
        """Return where the arm's state is kept until it is finished."""
        return self._checkpoints(name, seed)

    def save(self, arm: Arm) -> None:
        """Write a finished arm; its checkpoints are no longer needed."""
        arm.save(self.home(arm.name, arm.seed), card=self.card)
        self._checkpoints(arm.name, arm.seed).remove()

    def _checkpoints(self, name: str, seed: int) -> CheckpointFolder:
        return CheckpointFolder(
            self.home(name, seed) / "checkpoints",
            label=f"{name}/seed{seed}",
            stop=self.watch.stop,
            say=self.watch.say,
        )


def treat_stage(
    case: Case, folder: Path, given: Diagnosis | None, watch: Watch
) -> tuple[Diagnosis, Treatment]:
    """Diagnose (unless a diagnosis is given or was made), treat, and keep each arm as it ends."""
    settings = case.plan
    diagnosis = diagnosis_of(case, folder, given, watch)
    trial = trial_of(
        case.model,
        case.data.train,
        diagnosis,
        arms=settings.arms,
        constraints=settings.constraints,
        layers=case.layers[-1:],
        draws=settings.draws_per_step,
        recipe=settings.recipe,
        settings=settings.part(TreatmentSettings),
        seed=settings.seed,
    )
    treatment = trial.run(
        seeds=settings.seeds,
        validation=case.data.validation,
        store=ArmFolder(folder / "treatment", case.card, watch),
        progress=watch.progress,
    )
    treatment.save_prescription(folder / "treatment")
    write_trackers(folder, treatment, tensorboard=settings.tensorboard)
    return diagnosis, treatment


def diagnosis_of(case: Case, folder: Path, given: Diagnosis | None, watch: Watch) -> Diagnosis:
    """Return the diagnosis of a run: given, made before it was interrupted, or made now."""
    home = folder / "diagnosis"
    if given is not None:
        given.save(home)
        return given
    if (home / "diagnosis.json").is_file():
        try:
            found = Diagnosis.load(home)
            check_weights(case, found, f"the diagnosis in {str(folder)!r}")
            PartsFolder(home / "parts").remove()
            return found
        except InputError as error:
            watch.say(f"{error}: the diagnosis is made again")
    watch.say(cost_of(case))
    return diagnose_stage(case, folder, watch.progress)


def taken_over(case: Case) -> Diagnosis | None:
    """Read the diagnosis of another run where one is named; InputError where it does not belong here.

    It must be of the same weights, data, categories and layers, and what only a new diagnosis could
    follow must not be asked for.
    """
    settings = case.plan
    _ = settings.draws_per_step  # refuses what only a diagnosis can do
    if settings.diagnosis is None:
        return None
    source = open_run(Path(settings.diagnosis))
    diagnosis = Diagnosis.load(source / "diagnosis")
    check_weights(case, diagnosis, f"--diagnosis {settings.diagnosis!r}")
    data = str(read_config(source / "config.yaml").get("data"))
    if _place(data) != _place(str(settings.data)):
        raise InputError(
            f"--diagnosis {settings.diagnosis!r} is of --data {data!r}; this run has {settings.data!r}, "
            "where its image numbers mean other images"
        )
    for name in ("theta", "delta", "confidence", "images_per_category"):
        if getattr(settings, name) != getattr(Settings(), name):
            raise InputError(
                f"--{name.replace('_', '-')} {getattr(settings, name)!r} would need a new diagnosis, and "
                f"--diagnosis {settings.diagnosis!r} is used as it is: leave one of them out"
            )
    if diagnosis.classes != case.classes:
        raise InputError(
            f"--diagnosis {settings.diagnosis!r} is of {len(diagnosis.classes)} categories; the data has "
            f"{len(case.classes)}"
        )
    known = [layer.name for layer in diagnosis.layers]
    missing = [layer for layer in case.layers if layer not in known]
    if missing:
        raise InputError(
            f"--diagnosis {settings.diagnosis!r} has no layer {', '.join(missing)}; it has "
            f"{', '.join(known)}: give --layers out of these, or diagnose again"
        )
    return diagnosis


def _place(data: str) -> str:
    """Return the data's spec with its path in full, so that two ways to write it are equal."""
    scheme, mark, location = data.partition("@" if "@" in data.partition("/")[0] else ":")
    return data if scheme == "scenes" else f"{scheme}{mark}{Path(location).expanduser().resolve()}"

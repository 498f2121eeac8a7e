"""Treat a classifier: read or make its diagnosis, and train arms; each is saved as soon as it is finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torchdoctor.case.config import read_config
from torchdoctor.case.outcome import (
    DONE,
    INCONCLUSIVE,
    Outcome,
    arm_loading_code,
    check_weights,
)
from torchdoctor.case.preparation import Case, prepare
from torchdoctor.case.settings import Settings
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.processes import launched
from torchdoctor.runs.checkpoints import CheckpointFolder
from torchdoctor.runs.folder import open_run
from torchdoctor.runs.history import check_trackers, write_trackers
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
from torchdoctor.verbs.cures import cures_of, remedies_for, validation_images
from torchdoctor.verbs.diagnose import cost_of, diagnose_stage
from torchdoctor.verbs.learning_rate import with_rate


def run_treat(
    settings: Settings, progress: Progress = silent, *, resume: bool = False, say: Say = silent_text
) -> Outcome:
    """Treat the classifier beside its control; the diagnosis is made first unless a run with it is named.

    Args:
        settings: What was asked for.
        progress: Called with stage, done, of how many.
        resume: Whether to go on where an earlier process stopped; it ends with the same weights, bit for bit.
        say: Receives sentences about costs and about what had to be repaired.

    Returns:
        The outcome: exit code 0, or 4 where the diagnosis is inconclusive.

    Raises:
        InputError: A setting does not fit the network or the data, or the folder cannot be used.
    """
    refuse_without_out(settings, resume)
    check_trackers(settings.tensorboard, settings.tracker)
    # `auto` can come from a checkup's config.yaml: a search ends in a comparison, which this verb leaves out.
    case = prepare(settings.but(auto=False), "treat", processes=launched())
    reused = reused_diagnosis(case)
    folder = case.folder
    if resume and is_done(folder, case.processes):
        return _treated(case, open_run(folder), Diagnosis.load(folder / "diagnosis"))
    with open_locked_run(case, "treat", resume, progress, say) as (place, watch):
        diagnosis, treatment = treat_stage(case, place, reused, watch)
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
    outcome = Outcome(code, record, diagnosis, treatment, loading_code=arm_loading_code(case, folder, arm))
    return with_facts(outcome, case)


@dataclass(frozen=True)
class ArmFolder:
    """The arms of a treatment in a folder of a run: finished arms whole, the unfinished arm as checkpoints.

    Attributes:
        folder: The folder, with a folder for each arm and seed.
        card: What is written beside the weights: model, categories, preprocessing.
        watch: Who watches the run.
    """

    folder: Path
    card: Mapping[str, object]
    watch: Watch

    def home(self, name: str, seed: int) -> Path:
        """Return an arm's own folder.

        Args:
            name: The arm's name.
            seed: Its seed.

        Returns:
            The folder, which may be missing.
        """
        return self.folder / name / f"seed{seed}"

    def finished(self, name: str, seed: int) -> Arm | None:
        """Read an arm that an earlier process finished.

        Args:
            name: The arm's name.
            seed: Its seed.

        Returns:
            The arm; None where it is unfinished, or damaged, which is reported to the watch.
        """
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
        """Return where the arm's state is saved until it is finished.

        Args:
            name: The arm's name.
            seed: Its seed.

        Returns:
            The arm's checkpoints.
        """
        return self._checkpoints(name, seed)

    def save(self, arm: Arm) -> None:
        """Write a finished arm and remove its checkpoints.

        Args:
            arm: The arm.
        """
        arm.save(self.home(arm.name, arm.seed), card=self.card)
        self._checkpoints(arm.name, arm.seed).remove()

    def _checkpoints(self, name: str, seed: int) -> CheckpointFolder:
        """Return the folder of an arm's checkpoints."""
        return CheckpointFolder(
            self.home(name, seed) / "checkpoints",
            label=f"{name}/seed{seed}",
            stop=self.watch.stop,
            say=self.watch.say,
        )


def treat_stage(
    case: Case, folder: Path, reused: Diagnosis | None, watch: Watch
) -> tuple[Diagnosis, Treatment]:
    """Diagnose and treat; each arm is saved as soon as it is finished.

    Args:
        case: The prepared case.
        folder: The run's folder.
        reused: The diagnosis of another run; None: it is made, or read where it was made already.
        watch: Who watches the run.

    Returns:
        The diagnosis, and the trained arms.

    Raises:
        Interrupted: The watch asked to stop.
    """
    diagnosis = diagnosis_of(case, folder, reused, watch)
    case = with_rate(case, folder, watch)
    settings = case.plan
    trial = trial_of(
        case.model,
        case.data.train,
        diagnosis,
        arms=remedies_for(settings.arm_names, cures_of(case, folder)),
        constraints=settings.constraints,
        layers=case.layers[-1:],
        draws=settings.draws_per_step,
        recipe=settings.recipe,
        settings=settings.part(TreatmentSettings),
        seed=settings.seed,
    )
    treatment = trial.run(
        seeds=settings.seeds,
        validation=validation_images(case, settings.arm_names)[0],
        store=ArmFolder(folder / "treatment", case.card, watch),
        progress=watch.progress,
        processes=case.processes,
    )
    treatment.save_prescription(folder / "treatment")
    tracker = settings.tracker if case.processes.main else "none"
    write_trackers(folder, treatment, tensorboard=settings.tensorboard, tracker=tracker)
    return diagnosis, treatment


def diagnosis_of(case: Case, folder: Path, reused: Diagnosis | None, watch: Watch) -> Diagnosis:
    """Return the diagnosis of a run, which is made unless it exists.

    Args:
        case: The prepared case.
        folder: The run's folder.
        reused: The diagnosis of another run, which is saved in this run as well; None: it is made, or read
            where it was made before the run was interrupted.
        watch: Who watches the run.

    Returns:
        The diagnosis.
    """
    home = folder / "diagnosis"
    if reused is not None:
        reused.save(home)
        return reused
    if (home / "diagnosis.json").is_file():
        try:
            diagnosis = Diagnosis.load(home)
            check_weights(case, diagnosis, f"the diagnosis in {str(folder)!r}")
            PartsFolder(home / "parts").remove()
            return diagnosis
        except InputError as error:
            watch.say(f"{error}: the diagnosis is made again")
    watch.say(cost_of(case))
    return diagnose_stage(case, folder, watch.progress)


def reused_diagnosis(case: Case) -> Diagnosis | None:
    """Read the diagnosis of another run, where `--diagnosis` names a run.

    Args:
        case: The prepared case.

    Returns:
        The diagnosis; None where no run is named.

    Raises:
        InputError: The run is unfinished or damaged, its weights, data, categories or layers are not those of
            the case, or a setting is given that only a new diagnosis could follow.
    """
    settings = case.plan
    _ = settings.draws_per_step  # refuses what only a diagnosis can do
    if settings.diagnosis is None:
        return None
    source = open_run(Path(settings.diagnosis))
    diagnosis = Diagnosis.load(source / "diagnosis")
    check_weights(case, diagnosis, f"--diagnosis {settings.diagnosis!r}")
    data = str(read_config(source / "config.yaml").get("data"))
    if _absolute_spec(data) != _absolute_spec(str(settings.data)):
        raise InputError(
            f"--diagnosis {settings.diagnosis!r} is of --data {data!r}; this run has {settings.data!r}, "
            "where its image numbers mean other images"
        )
    for name in ("theta", "delta", "confidence", "images_per_category"):
        if getattr(settings, name) != getattr(Settings(), name):
            raise InputError(
                f"--{name.replace('_', '-')} {getattr(settings, name)!r} would need a new diagnosis, and "
                f"--diagnosis {settings.diagnosis!r} is used as it is: leave either out"
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


def _absolute_spec(data: str) -> str:
    """Return the data's spec with its path in full, so that two ways to write it are equal."""
    scheme, mark, location = data.partition("@" if "@" in data.partition("/")[0] else ":")
    return data if scheme == "scenes" else f"{scheme}{mark}{Path(location).expanduser().resolve()}"

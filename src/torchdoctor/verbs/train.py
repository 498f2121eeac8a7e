"""Train a classifier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchdoctor.case.outcome import DONE, Outcome
from torchdoctor.case.preparation import Case, prepare
from torchdoctor.case.settings import Settings
from torchdoctor.case.surroundings import loading_code
from torchdoctor.files.reading import read_json
from torchdoctor.files.writing import write_json, write_weights
from torchdoctor.models.weights import load_into, load_weights
from torchdoctor.processes import launched
from torchdoctor.runs.checkpoints import CheckpointFolder
from torchdoctor.runs.folder import open_run
from torchdoctor.runs.history import check_trackers, write_trackers
from torchdoctor.treatment.result import Arm, Treatment
from torchdoctor.treatment.training import accuracy, fit
from torchdoctor.types import Progress, silent
from torchdoctor.verbs.begin import Say, is_done, open_locked_run, refuse_without_out, silent_text, with_facts


def train_stage(
    case: Case,
    folder: Path,
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda _text: None,
) -> Outcome:
    """Train the case's network in place and write its weights, card and history; go on where it stood.

    Args:
        case: The prepared case.
        folder: Where the files go.
        progress: Called with stage, done, of how many.
        stop: Returns whether the training is to save and stop.
        say: Receives sentences about what had to be repaired.

    Returns:
        The outcome, with the validation accuracy in percent.

    Raises:
        Interrupted: `stop` asked for it.
    """
    home = folder / "checkpoints"
    checkpoints = CheckpointFolder(home, label="train", stop=stop, say=say)
    trained = fit(
        case.model,
        lambda epoch: case.data.train.epoch(epoch, case.plan.seed),
        case.plan.recipe,
        steps_per_epoch=case.data.train.steps_per_epoch,
        seed=case.plan.seed,
        validation=case.data.validation,
        checkpoints=checkpoints,
        progress=progress,
        stage="train",
        processes=case.processes,
    )
    # The weights come first: nothing that fails later costs them.
    write_json(folder / "model.json", case.card)
    write_weights(folder / "model.safetensors", case.model.state_dict())
    write_json(
        folder / "history.json",
        {
            "epochs": trained.history,
            "steps": trained.steps,
            "seconds": round(trained.seconds, 1),
            "skipped_batches": trained.skipped,
        },
    )
    arm = Arm("train", case.plan.seed, {}, trained.history, trained.steps, trained.seconds)
    tracker = case.plan.tracker if case.processes.main else "none"
    write_trackers(folder, Treatment((arm,), ()), tensorboard=case.plan.tensorboard, tracker=tracker)
    checkpoints.remove()
    return trained_outcome(case, folder)


def trained_outcome(case: Case, folder: Path) -> Outcome:
    """Return what a finished training ends with.

    Args:
        case: The prepared case, whose network holds the trained weights.
        folder: Where the training was written.

    Returns:
        The outcome, with the validation accuracy in percent.
    """
    history: Any = read_json(folder / "history.json")
    record = {
        "out": str(folder),
        "weights": str(folder / "model.safetensors"),
        "steps": history["steps"],
        "seconds": history["seconds"],
        "validation_accuracy": accuracy(case.model, case.data.validation),
        "skipped_batches": [case.names_of(ids) for ids in history["skipped_batches"]],
        "images": {"train": len(case.data.train), "validation": len(case.data.validation)},
    }
    code = loading_code(case.plan, len(case.classes), folder / "model.safetensors")
    return Outcome(DONE, record, loading_code=code)


def run_train(
    settings: Settings, progress: Progress = silent, *, resume: bool = False, say: Say = silent_text
) -> Outcome:
    """Train a classifier, so that there is something to treat; the last epoch's weights are saved.

    Args:
        settings: What was asked for.
        progress: Called with stage, done, of how many.
        resume: Whether to go on with an unfinished run in the same folder; a finished run is only read.
        say: Receives sentences about what had to be repaired.

    Returns:
        The outcome, with the validation accuracy in percent.

    Raises:
        InputError: A setting does not fit the network or the data, or the folder cannot be used.
    """
    refuse_without_out(settings, resume)
    check_trackers(settings.tensorboard, settings.tracker)
    case = prepare(settings, "train", needs_weights=False, processes=launched())
    folder = case.folder
    if resume and is_done(folder, case.processes):
        load_into(case.model, load_weights(open_run(folder) / "model.safetensors"), str(folder))
        return with_facts(trained_outcome(case, folder), case)
    with open_locked_run(case, "train", resume, progress, say) as (place, watch):
        return with_facts(train_stage(case, place, progress, watch.stop, say), case)

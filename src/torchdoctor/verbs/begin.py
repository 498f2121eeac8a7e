"""Run the verbs: each prepares its case, calls the function of its name, and writes a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torchdoctor.case.config import read_config, settings_from
from torchdoctor.case.identity import comparable, identity_of, start_run
from torchdoctor.case.outcome import Outcome, check_weights
from torchdoctor.case.preparation import Case, prepare
from torchdoctor.case.settings import Settings
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.runs.folder import RunFolder, is_finished, open_run
from torchdoctor.runs.interruption import interruptible
from torchdoctor.runs.lock import LOCK, FolderLock
from torchdoctor.types import InputError, Progress

Say = Callable[[str], None]


def silent_text(_text: str) -> None:
    """Say nothing."""


def with_facts(outcome: Outcome, case: Case) -> Outcome:
    """Add to what is printed how the images were prepared."""
    return replace(outcome, record={**outcome.record, **case.facts})


def refuse_without_out(settings: Settings, resume: bool) -> None:
    """Raise InputError where a run is to go on and none is named."""
    if resume and settings.out is None:
        raise InputError("--resume needs --out RUN: the folder of the run to go on with")


def is_done(folder: Path) -> bool:
    """Whether a folder holds a finished run; the lock of a process killed after sealing it is removed."""
    if not is_finished(folder):
        return False
    if (folder / LOCK).exists():
        FolderLock.acquire(folder).release()
    return True


@contextmanager
def open_locked_run(
    case: Case, verb: str, resume: bool, progress: Progress, say: Say
) -> Iterator[tuple[Path, Watch]]:
    """Begin a run, or go on with it, in a folder that is locked and sealed; Ctrl-C asks it to stop."""
    folder = case.folder
    wanted = identity_of(verb, case)
    opened = RunFolder.resume(folder, comparable(folder, wanted)) if resume else RunFolder.create(folder)
    with opened as run, interruptible() as stop:
        start_run(run.path, verb, case)
        yield run.path, Watch(progress, stop, say)


def reopened(run: str, given: Mapping[str, object]) -> tuple[Path, Case, Diagnosis]:
    """Open a finished run and prepare its case again from its own settings, with its diagnosis."""
    folder = open_run(Path(run))
    recorded = settings_from(read_config(folder / "config.yaml"))
    settings = settings_from({**given, "out": str(folder)}, base=recorded)
    if not (folder / "diagnosis").is_dir():
        raise InputError(f"run {run!r} holds no diagnosis: give a run of diagnose, treat or checkup")
    case = prepare(settings.but(auto=False), "treat")
    diagnosis = Diagnosis.load(folder / "diagnosis")
    check_weights(case, diagnosis, f"run {run!r}")
    return folder, case, diagnosis


@dataclass(frozen=True)
class Watch:
    """Who watches a run: the progress bar, the one that may ask it to stop, and who is told of repairs."""

    progress: Progress
    stop: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = lambda _text: None

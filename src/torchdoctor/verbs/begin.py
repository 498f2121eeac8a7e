"""What commands begin with: open the folder of a run, lock it, and read a run that exists already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torchdoctor.case.config import read_config, settings_from
from torchdoctor.case.identity import comparable, identity_of, start_run
from torchdoctor.case.memory_format import settle_format
from torchdoctor.case.outcome import Outcome, check_weights
from torchdoctor.case.preparation import Case, prepare
from torchdoctor.case.settings import Settings
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.network.prediction import device_of
from torchdoctor.processes import ALONE, Processes
from torchdoctor.runs.folder import RunFolder, is_finished, open_run
from torchdoctor.runs.interruption import interruptible
from torchdoctor.runs.lock import LOCK, FolderLock
from torchdoctor.runs.private_copy import private_copy, remove_stale_copies
from torchdoctor.types import InputError, Progress

Say = Callable[[str], None]


def silent_text(_text: str) -> None:
    """Say nothing: the default receiver of messages.

    Args:
        _text: A message; it is dropped.
    """


def with_facts(outcome: Outcome, case: Case, *, said: bool = True) -> Outcome:
    """Add to what is printed how the images were prepared.

    Args:
        outcome: The outcome of a command.
        case: The prepared case.
        said: Whether the remarks on the case were said before the run began; else they are printed with the
            outcome.

    Returns:
        The outcome whose record also holds `preprocessing` and `skipped_images`.
    """
    remarks = {} if said or not case.remarks else {"remarks": list(case.remarks)}
    return replace(outcome, record={**outcome.record, **case.facts, **remarks})


def refuse_without_out(settings: Settings, resume: bool) -> None:
    """Refuse to resume a run where no folder is named.

    Args:
        settings: What was asked for.
        resume: Whether an unfinished run is to be resumed.

    Raises:
        InputError: It is, and `out` is missing.
    """
    if resume and settings.out is None:
        raise InputError("--resume needs --out RUN: the folder of the run to go on with")


def is_done(folder: Path, processes: Processes = ALONE) -> bool:
    """Tell whether a folder holds a finished run.

    The lock's file of a process that was killed right after finishing the run is removed.

    Args:
        folder: The folder of a run, which may be missing.
        processes: The processes that work on the run together; the main process looks.

    Returns:
        True where the run is finished.
    """

    def look() -> bool:
        finished = is_finished(folder)
        if finished and (folder / LOCK).exists():
            FolderLock.acquire(folder).release()
        return finished

    return processes.by_main(look)


@contextmanager
def open_run_folder(case: Case, verb: str, resume: bool, say: Say = silent_text) -> Iterator[Path]:
    """Begin a run, or resume it, in a folder that is locked meanwhile and sealed at the end.

    Args:
        case: The prepared case.
        verb: The command that runs.
        resume: Whether an unfinished run in the folder is resumed.
        say: Receives a sentence about how a GPU computes.

    Yields:
        The folder that this process writes (see `written_by_main`).

    Raises:
        InputError: The folder is in use or not empty, or the run to resume is about something else.
    """
    folder = case.folder

    def begin() -> RunFolder:
        wanted = identity_of(verb, case)
        return RunFolder.resume(folder, comparable(folder, wanted)) if resume else RunFolder.create(folder)

    with written_by_main(case.processes, begin) as place:
        start_run(place, verb, case)
        if device_of(case.model).type == "cuda" and (chosen := settle_format(case, place)) is not None:
            say(chosen)
        yield place


@contextmanager
def written_by_main(processes: Processes, begin: Callable[[], RunFolder]) -> Iterator[Path]:
    """Open a run folder that the main process alone writes.

    Every other process has a private copy of what the folder holds now, so that all of them read the same and
    go on from the same place.

    Args:
        processes: The processes that work on the run together.
        begin: Opens the folder, in the main process.

    Yields:
        The folder that this process writes: the run's own, or a private copy.

    Raises:
        InputError: What `begin` raises, or the folder is in use.
    """
    opened: list[RunFolder] = []

    def enter() -> Path | None:
        remove_stale_copies()
        run = begin().__enter__()
        opened.append(run)
        return None if run.fresh else run.path

    filled = processes.by_main(enter)
    with opened[0] if opened else private_copy(filled) as run:
        processes.wait()  # for those who copy the folder
        yield run.path if isinstance(run, RunFolder) else run


@contextmanager
def open_locked_run(
    case: Case, verb: str, resume: bool, progress: Progress, say: Say
) -> Iterator[tuple[Path, Watch]]:
    """Begin a run, or resume it, in a folder that is locked meanwhile and sealed at the end.

    The first Ctrl-C asks the run to save and stop.

    Args:
        case: The prepared case.
        verb: The command that runs.
        resume: Whether an unfinished run in the folder is resumed.
        progress: Called with stage, done, of how many.
        say: Receives sentences about what had to be repaired.

    Yields:
        The run's folder (see `open_run_folder`), and who watches the run.

    Raises:
        InputError: The folder is in use or not empty, or the run to resume is about something else.
    """
    with open_run_folder(case, verb, resume, say) as place, interruptible(case.processes.main) as asked:
        for remark in case.remarks:
            say(remark)
        yield place, Watch(progress, asked, say)


def reopen_run(
    run: str, changes: Mapping[str, object], processes: Processes = ALONE
) -> tuple[Path, Case, Diagnosis]:
    """Open a finished run and prepare its case again from its own settings.

    Args:
        run: The folder of a finished run.
        changes: Settings that differ from those of the run, by name; None means unchanged.
        processes: The processes that work on the run together.

    Returns:
        The folder, the prepared case, and the run's diagnosis.

    Raises:
        InputError: The run is unfinished or damaged, holds no diagnosis, or its weights have changed since.
    """
    folder = open_run(Path(run))
    recorded = settings_from(read_config(folder / "config.yaml"))
    settings = settings_from({**changes, "out": str(folder)}, base=recorded)
    if not (folder / "diagnosis").is_dir():
        raise InputError(f"run {run!r} holds no diagnosis: give a run of diagnose, treat or checkup")
    case = prepare(settings.but(auto=False), "treat", processes=processes)
    diagnosis = Diagnosis.load(folder / "diagnosis")
    check_weights(case, diagnosis, f"run {run!r}")
    return folder, case, diagnosis


@dataclass(frozen=True)
class Watch:
    """Who watches a run.

    Attributes:
        progress: Called with stage, done, of how many.
        stop: Returns whether this process was asked to save and stop; of several, one may have been.
        say: Receives sentences about what had to be repaired.
    """

    progress: Progress
    stop: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = lambda _text: None

"""Ask a person about labels and masks of a finished run, in a page of a local server."""

from __future__ import annotations

import shlex
import threading
import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torchdoctor.case.config import read_config, settings_from
from torchdoctor.case.outcome import check_weights
from torchdoctor.case.preparation import Case, prepare
from torchdoctor.case.settings import Settings
from torchdoctor.diagnosis.causes_result import FILE as CAUSES
from torchdoctor.diagnosis.causes_result import Causes
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.suspects_result import FILE as SUSPECTS
from torchdoctor.diagnosis.suspects_result import Suspects
from torchdoctor.files.reading import read_json
from torchdoctor.review.queue import queue_of
from torchdoctor.review.session import Session
from torchdoctor.runs.folder import open_run
from torchdoctor.runs.lock import FolderLock
from torchdoctor.types import InputError, Progress, silent
from torchdoctor.verbs.begin import Say
from torchdoctor.verbs.next_steps import read_steps

MISSING = "the page needs starlette and uvicorn: pip install 'torchdoctor[review]'"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Serving:
    """Where the page of a review is served.

    Attributes:
        host: The address or name of this machine.
        port: The port; 0: a free one.
        browser: Whether a browser is opened.
    """

    host: str = LOOPBACK
    port: int = 0
    browser: bool = True


def run_review(run: str, changes: Mapping[str, object], serving: Serving, say: Say) -> dict[str, object]:
    """Serve the page of a review until it is stopped.

    Args:
        run: The folder of a finished run of `diagnose` or `checkup`.
        changes: Settings that differ from those of the run, by name; None means unchanged.
        serving: Where the page is served.
        say: Receives the address of the page, and what is to be known.

    Returns:
        What has been answered (see `review_record`).

    Raises:
        InputError: The run is unfinished or damaged, has nothing to review, its images changed, another
            process works in it, or the address cannot be served.
    """
    try:
        from torchdoctor.review.serve import bound_socket, is_loopback, serve
    except ImportError as error:
        raise InputError(f"{MISSING} ({error})") from error

    with bound_socket(serving.host, serving.port) as opened, opened_session(run, changes) as session:
        for sentence in session.masks.take_over_changes():
            say(sentence)
        if not is_loopback(opened):
            say(
                f"--host {serving.host}: other machines can reach this page. Whoever has its whole address "
                "sees the images and can answer; what is sent is not encrypted"
            )

        def ready(address: str) -> None:
            say(f"review of {run}: {address}")
            say("answers are kept as you go; Ctrl-C ends the review")
            if serving.browser:
                # A browser in the terminal would keep the server waiting.
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

        serve(session, opened, serving.host, ready)
        return review_record(run, session)


def run_propose(run: str, changes: Mapping[str, object], progress: Progress = silent) -> dict[str, object]:
    """Store proposals for masks; nobody's answer changes.

    Args:
        run: The folder of a finished run of `diagnose` or `checkup`.
        changes: Settings that differ from those of the run, by name; None means unchanged.
        progress: Called with stage, done, of how many.

    Returns:
        What has been answered (see `review_record`), and `proposed`: how many proposals were stored.

    Raises:
        InputError: As for `run_review`.
    """
    with opened_session(run, changes) as session:
        proposed = session.propose(progress)
        return {**review_record(run, session), "proposed": proposed}


def review_record(run: str, session: Session) -> dict[str, object]:
    """Say what has been answered in a review.

    Args:
        run: The run's folder.
        session: The review.

    Returns:
        Numbers of questions and answers, what they say of the list of labels, and the command that uses them.
    """
    found = session.precision()
    return {
        "out": run,
        "labels": {"asked": len(session.queue.labels), "answered": found.answered, "wrong": found.wrong},
        "masks": {"asked": len(session.queue.masks), **session.masks.counts()},
        "proposals": len(session.proposals.records),
        "sentences": found.sentences,
        "command": f"torchdoctor checkup --review {shlex.quote(run)}",
    }


@contextmanager
def opened_session(run: str, changes: Mapping[str, object]) -> Iterator[Session]:
    """Open the review of a finished run, in which no other process works meanwhile.

    Args:
        run: The run's folder.
        changes: Settings that differ from those of the run, by name; None means unchanged.

    Yields:
        The review.

    Raises:
        InputError: As for `run_review`.
    """
    folder = open_run(Path(run))
    lock = FolderLock.acquire(folder)
    try:
        yield _session(folder, run, changes)
    finally:
        lock.release()


def _session(folder: Path, run: str, changes: Mapping[str, object]) -> Session:
    """Prepare the case of a run again and make its questions."""
    if not (folder / "diagnosis").is_dir():
        raise InputError(f"run {run!r} holds no diagnosis: give a run of diagnose or checkup")
    recorded = settings_from(read_config(folder / "config.yaml"))
    plain = recorded.but(auto=False, arms="auto", constraints="auto", labels=None, second_opinion=None)
    try:
        case = prepare(settings_from({**changes, "out": str(folder)}, base=plain), "diagnose")
    except InputError as error:
        if not _seen_from_elsewhere(recorded):
            raise
        raise InputError(
            f"{error}. Run {run!r} names its files as they are seen from the folder in which the command was "
            "started then: start this one there as well"
        ) from error
    diagnosis = Diagnosis.load(folder / "diagnosis")
    check_weights(case, diagnosis, f"run {run!r}")
    check_images(folder, case)
    queue = queue_of(
        case.data.train.table,
        diagnosis,
        Suspects.load(folder) if (folder / SUSPECTS).is_file() else None,
        Causes.load(folder) if (folder / CAUSES).is_file() else None,
        read_steps(folder),
    )
    if not queue.labels and not queue.masks:
        raise InputError(
            f"run {run!r} has nothing to review: no label looks wrong, and every image whose mask would "
            "teach much has one"
        )
    return Session(folder, case, queue)


def _seen_from_elsewhere(recorded: Settings) -> bool:
    """Tell whether files of a run are named from a folder, and are not to be found from this one."""
    names = (recorded.weights, (recorded.data or "").partition(":")[2])
    return any(name and not Path(name).is_absolute() and not Path(name).exists() for name in names)


def check_images(folder: Path, case: Case) -> None:
    """Refuse training images that are not those of a run.

    Args:
        folder: The run's folder.
        case: The case, prepared again.

    Raises:
        InputError: Images or their labels differ; the message says in what.
    """
    data = read_json(folder / "inputs.json").get("data")
    recorded = data.get("train") if isinstance(data, dict) else None
    if not isinstance(recorded, dict):
        return  # a run of an early version
    now = case.data.fingerprints["train"]
    changes = {
        "images": f"they were {recorded.get('images')} and are {now['images']}",
        "images_sha256": "an image of them has changed, or another has taken its place",
        "labels_sha256": "an image of them is in another category now",
    }
    for name, change in changes.items():
        if recorded.get(name) != now[name]:
            raise InputError(
                f"the training images of {case.plan.data!r} are not those of run {str(folder)!r}: {change}. "
                "Bring the images back, or diagnose anew"
            )

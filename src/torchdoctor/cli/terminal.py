"""What all commands share: JSON or tables on stdout, and progress on stderr."""

from __future__ import annotations

import codecs
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

SECONDS_BETWEEN_LINES = 30.0  # of progress, where stderr is no terminal
REPLACEMENTS = {  # for streams whose encoding lacks these characters
    "\u2212": "-", "\u221e": "inf", "\u2192": "->", "\u2026": "...", "\u00b7": ".", "\u00d7": "x",
    "\u2264": "<=", "\u2265": ">=", "\u2013": "-", "\u2014": "-", "\u2018": "'", "\u2019": "'",
    "\u201c": '"', "\u201d": '"', "\u00b1": "+-", "\u2009": " ",
    **dict.fromkeys("\u2500\u2501\u2550", "-"), **dict.fromkeys("\u2502\u2503\u2551", "|"),
}  # fmt: skip
UNITS = {  # what a stage counts, where that is not the steps of a training
    "diagnose": "images",
    "causes": "images",
    "explain": "images",
    "compare": "evaluations",
    "robustness": "evaluations",
    "report": "pages",
}


def make_streams_safe(streams: Sequence[object]) -> None:
    """Let text streams that are not UTF-8 replace characters that they do not have, instead of failing.

    Args:
        streams: Streams such as `sys.stdout`; those that cannot be configured are left as they are.
    """
    codecs.register_error("torchdoctor", _replaced)
    for stream in streams:
        encoding = getattr(stream, "encoding", None)
        if isinstance(stream, io.TextIOWrapper) and encoding and not is_utf(encoding):
            stream.reconfigure(errors="torchdoctor")


@contextmanager
def silence() -> Iterator[None]:
    """Drop what is printed inside the block on stdout and stderr, and treat SIGTERM as Ctrl-C from then on.

    It is for launched processes beside the main one, which a launcher ends by that signal.

    Yields:
        Nothing.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        yield


def is_utf(encoding: str) -> bool:
    """Return whether an encoding has every character.

    Args:
        encoding: The name of the encoding, in any spelling.

    Returns:
        False for an encoding that Python does not know.
    """
    try:
        return codecs.lookup(encoding).name.startswith("utf-")
    except LookupError:
        return False


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Replace the characters that could not be encoded, and return where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(REPLACEMENTS.get(letter, "?") for letter in text), error.end


def show(result: Any, as_json: bool, pretty: Callable[[Console, Any], None]) -> None:
    """Print a result on stdout.

    Args:
        result: What a command has computed.
        as_json: Whether to print it as one line of JSON; otherwise as tables for a person.
        pretty: Prints the tables on a console.
    """
    if as_json:
        from torchdoctor.files.writing import plain

        sys.stdout.write(json.dumps(plain(result), allow_nan=False) + "\n")
    else:
        console = Console()
        pretty(console if console.is_terminal else Console(width=120), result)


@dataclass
class Stage:
    """How far a stage of a command is.

    Attributes:
        name: What the stage is called.
        started: When it began, in seconds of the clock that is used.
        first_done: How many steps were done when it began.
        done: How many steps are done now.
        total: How many steps there are.
        reported: Whether a line has been written while it was under way.
    """

    name: str
    started: float
    first_done: int
    done: int
    total: int
    reported: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing is left of it."""
        return self.done >= self.total


class ProgressLines:
    """Progress as lines of text, for a log file: one every 30 seconds, and one where a reported stage ends.

    A stage that ends before a line is due is not mentioned, so that short commands write nothing. Lines look
    like `torchdoctor: control, seed 0: 120 of 640 steps, about 3 min left`.
    """

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic, unit: str = "steps"
    ) -> None:
        """Start to wait for the first line.

        Args:
            write: Takes each line, without a line break.
            clock: Returns the time in seconds; it must never go back.
            unit: What is counted in stages that `UNITS` does not name.
        """
        self._write = write
        self._clock = clock
        self._unit = unit
        self._lock = threading.Lock()  # the work and the thread that waits beside it both call
        self._started = self._last_line = clock()
        self._stage: Stage | None = None

    def move(self, name: str, done: int, total: int) -> None:
        """Take notice of progress, and write a line where one is due.

        Args:
            name: The stage under way, such as `control, seed 0`. A new name begins a new stage.
            done: How many steps or images are done.
            total: How many there are in all.
        """
        with self._lock:
            stage = self._stage
            if stage is None or stage.name != name or done < stage.done:
                stage = self._stage = Stage(name, self._clock(), done, done, total)
                just_ended = False
            else:
                just_ended = not stage.ended and done >= total
                stage.done, stage.total = done, total
            if just_ended and stage.reported:
                passed = duration(self._clock() - stage.started)
                self._line(f"{self._counted(stage)}, done in {passed}")
            else:
                self._line_if_due()

    def tick(self) -> None:
        """Write a line where one is due although nothing has moved."""
        with self._lock:
            self._line_if_due()

    def _line_if_due(self) -> None:
        """Write a line once the interval since the last one has passed."""
        now, stage = self._clock(), self._stage
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        if stage is None:
            self._line(f"preparing, {duration(now - self._started)} so far")
        elif stage.ended:
            self._line(f"{self._counted(stage)}, done; preparing the next stage")
        else:
            stage.reported = True
            self._line(f"{self._counted(stage)}, {_time_left(stage, now)}")

    def _counted(self, stage: Stage) -> str:
        """Say how far a stage is."""
        return f"{stage.name}: {stage.done:,} of {stage.total:,} {UNITS.get(stage.name, self._unit)}"

    def _line(self, text: str) -> None:
        """Write one line."""
        self._last_line = self._clock()
        self._write(f"torchdoctor: {text}")


def _time_left(stage: Stage, now: float) -> str:
    """Say how long a stage still takes at the speed so far, or how long it has taken while nothing moved."""
    moved, passed = stage.done - stage.first_done, now - stage.started
    if moved == 0:
        return f"{duration(passed)} so far"
    return f"about {duration(passed * (stage.total - stage.done) / moved)} left"


def duration(seconds: int | float) -> str:
    """Return a length of time in one unit, rounded.

    Args:
        seconds: The length of time, in seconds.

    Returns:
        Seconds below 90, with a decimal below 10; minutes below 90 minutes; hours below 36 hours and
        days above, with one decimal.

    >>> [duration(seconds) for seconds in (0.26, 12.3, 90.0, 3_000.0, 9_000.0, 400_000.0)]
    ['0.3 s', '12 s', '2 min', '50 min', '2.5 h', '4.6 d']
    """
    if seconds < 90:
        return f"{round(seconds, 1 if seconds < 9.95 else None):g} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36 * 3600 else f"{seconds / 86400:,.1f} d"


class ProgressBar:
    """Progress on stderr while a command runs: a bar per stage on a terminal, lines of text elsewhere.

    On a terminal, `--json` turns the bars off. Where stderr is a file or a pipe, lines come every 30 seconds,
    with `--json` too; stdout carries nothing but the result in either case.
    """

    def __init__(self, quiet: bool, unit: str = "steps") -> None:
        """Choose between bars and lines.

        Args:
            quiet: Whether to draw no bars on a terminal.
            unit: What is counted in stages that `UNITS` does not name; lines say so.
        """
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self.tasks: dict[str, Any] = {}
        self.lines = None if console.is_terminal else ProgressLines(_to_stderr, unit=unit)
        self.ended = threading.Event()
        self.ticking: threading.Thread | None = None

    def __enter__(self) -> Callable[[str, int, int], None]:
        """Start to show progress.

        Returns:
            A function (stage, done, total) that takes notice of progress.
        """
        self.bar.start()
        if self.lines is not None:
            # Progress comes from the work itself, which can be silent for minutes.
            self.ticking = threading.Thread(target=self._tick, daemon=True)
            self.ticking.start()
        return self.move

    def __exit__(self, *_error: object) -> None:
        """Stop to show progress."""
        self.bar.stop()
        self.ended.set()
        if self.ticking is not None:
            self.ticking.join()

    def move(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is.

        Args:
            stage: What is under way.
            done: How many steps or images are done.
            total: How many there are in all.
        """
        if self.lines is not None:
            self.lines.move(stage, done, total)
            return
        if stage not in self.tasks:
            self.tasks[stage] = self.bar.add_task(stage, total=total)
        self.bar.update(self.tasks[stage], completed=done, total=total)

    def _tick(self) -> None:
        """Let lines come while nothing moves, until the command ends."""
        assert self.lines is not None
        while not self.ended.wait(1.0):
            self.lines.tick()


def _to_stderr(line: str) -> None:
    """Print a line on stderr as it is at this moment."""
    print(line, file=sys.stderr, flush=True)

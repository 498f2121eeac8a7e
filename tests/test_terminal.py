"""Progress without a terminal: lines at an interval, nothing for short work, and a clean stdout."""

import io
import sys
import time

import pytest

from torchdoctor.cli.terminal import (
    SECONDS_BETWEEN_LINES,
    ProgressBar,
    ProgressLines,
    duration,
    make_streams_safe,
)


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def watched():
    """Return progress lines, the clock they go by, and the list of what they wrote."""
    clock, written = Clock(), []
    return ProgressLines(written.append, clock), clock, written


def test_the_interval_is_what_the_documents_say():
    assert SECONDS_BETWEEN_LINES == 30


def test_a_line_comes_every_thirty_seconds_and_where_a_reported_stage_ends(watched):
    lines, clock, written = watched
    for step in range(1, 101):
        lines.move("control, seed 0", step, 100)
        clock.now += 1.0
    assert written == [
        "torchdoctor: control, seed 0: 31 of 100 steps, about 69 s left",
        "torchdoctor: control, seed 0: 61 of 100 steps, about 39 s left",
        "torchdoctor: control, seed 0: 91 of 100 steps, about 9 s left",
        "torchdoctor: control, seed 0: 100 of 100 steps, done in 2 min",
    ]


def test_short_work_writes_nothing(watched):
    lines, clock, written = watched
    for stage in ("diagnose", "control, seed 0", "compare"):
        for step in range(1, 10):
            lines.move(stage, step, 9)
            lines.tick()
            clock.now += 1.0
    assert written == []


def test_a_stage_that_ends_before_its_line_is_due_is_left_out(watched):
    lines, clock, written = watched
    lines.move("diagnose", 0, 50)
    clock.now += 29
    lines.move("diagnose", 50, 50)
    lines.move("control, seed 0", 1, 4)
    clock.now += 2
    lines.move("control, seed 0", 2, 4)
    lines.move("control, seed 0", 4, 4)
    lines.move("treated, seed 0", 4, 4)
    assert written == [
        "torchdoctor: control, seed 0: 2 of 4 steps, about 4 s left",
        "torchdoctor: control, seed 0: 4 of 4 steps, done in 2 s",
    ]


def test_silence_is_reported_too(watched):
    lines, clock, written = watched
    lines.tick()
    clock.now += 30
    lines.tick()
    lines.move("diagnose", 64, 2000)
    clock.now += 45
    lines.tick()
    lines.tick()
    lines.move("diagnose", 2000, 2000)
    clock.now += 31
    lines.tick()
    assert written == [
        "torchdoctor: preparing, 30 s so far",
        "torchdoctor: diagnose: 64 of 2,000 images, 45 s so far",
        "torchdoctor: diagnose: 2,000 of 2,000 images, done in 45 s",
        "torchdoctor: diagnose: 2,000 of 2,000 images, done; preparing the next stage",
    ]


def test_a_resumed_training_is_judged_by_its_own_speed(watched):
    lines, clock, written = watched
    lines.move("train", 600, 640)
    clock.now += 30
    lines.move("train", 610, 640)
    assert written == ["torchdoctor: train: 610 of 640 steps, about 2 min left"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0.2 s"),
        (9.0, "9 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (89.0, "89 s"),
        (90.0, "2 min"),
        (180.0, "3 min"),
        (5399.0, "90 min"),
        (5400.0, "1.5 h"),
        (129_599.0, "36.0 h"),
        (129_600.0, "1.5 d"),
        (200_000_000.0, "2,314.8 d"),
    ],
)
def test_durations_have_one_unit(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("quiet", [False, True])
def test_lines_go_to_stderr_where_it_is_no_terminal(monkeypatch, capsys, quiet):
    monkeypatch.setattr("torchdoctor.cli.terminal.SECONDS_BETWEEN_LINES", 0.0)
    with ProgressBar(quiet, unit="images") as progress:
        progress("iid", 1, 2)
        progress("iid", 2, 2)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "torchdoctor: iid: 1 of 2 images, 0 s so far\n" in printed.err
    assert "torchdoctor: iid: 2 of 2 images, done in 0 s\n" in printed.err


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr("torchdoctor.cli.terminal.SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with ProgressBar(False) as progress:
        progress("train", 1, 2)
        progress("train", 2, 2)
    assert "2/2" in screen.getvalue() and "torchdoctor:" not in screen.getvalue()


def test_the_waiting_thread_writes_while_the_work_is_silent(monkeypatch, capsys):
    monkeypatch.setattr("torchdoctor.cli.terminal.SECONDS_BETWEEN_LINES", 0.2)
    out, err = "", ""
    with ProgressBar(True) as progress:
        progress("train", 1, 9)
        moved, line = capsys.readouterr().err, "torchdoctor: train: 1 of 9 steps, "
        deadline = time.monotonic() + 30
        while line not in err and time.monotonic() < deadline:
            time.sleep(0.05)
            printed = capsys.readouterr()
            out, err = out + printed.out, err + printed.err
    assert out == moved == "" and line in err


def test_a_stream_without_a_minus_sign_gets_a_hyphen():
    raw = io.BytesIO()
    for encoding in ("latin-1", "ascii", "cp1252", "utf-8"):
        stream = io.TextIOWrapper(raw, encoding=encoding)
        make_streams_safe((stream, None, io.StringIO()))
        stream.write("−1.0 to ∞ │ 漢 ")
        stream.flush()
        stream.detach()
    lines = raw.getvalue()
    assert lines == 3 * b"-1.0 to inf | ? " + "−1.0 to ∞ │ 漢 ".encode()

"""Ctrl-C once saves and stops, twice stops at once; the handlers of before come back."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader

from processes import Child, wait_for
from torchdoctor.runs.checkpoints import CheckpointFolder
from torchdoctor.runs.folder import RunFolder
from torchdoctor.runs.interruption import SIGNALS, interruptible
from torchdoctor.treatment.recipe import TrainingState
from torchdoctor.types import Interrupted


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_first_signal_asks_and_the_second_stops(first, second, capfd):
    before = [signal.getsignal(one) for one in SIGNALS]
    with pytest.raises(KeyboardInterrupt), interruptible() as stop:
        assert not stop()
        os.kill(os.getpid(), first)
        assert stop()
        said = capfd.readouterr().err
        assert "will save and stop" in said and "interrupt again to stop at once" in said
        os.kill(os.getpid(), second)
        pytest.fail("the second signal did not stop it")
    assert [signal.getsignal(one) for one in SIGNALS] == before
    assert capfd.readouterr().err == ""


def test_handlers_come_back_after_an_error_and_one_inside_the_other():
    before = [signal.getsignal(one) for one in SIGNALS]
    with pytest.raises(ZeroDivisionError), interruptible() as outer:
        own = [signal.getsignal(one) for one in SIGNALS]
        assert own != before
        with interruptible() as inner:
            os.kill(os.getpid(), signal.SIGINT)
            assert inner() and not outer()
        assert [signal.getsignal(one) for one in SIGNALS] == own
        raise ZeroDivisionError
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_is_done():
    before = [signal.getsignal(one) for one in SIGNALS]
    found = []

    def run():
        with interruptible() as stop:
            found.append((stop(), [signal.getsignal(one) for one in SIGNALS]))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(False, before)]


class Slow:
    """Images that take a while."""

    def __len__(self):
        return 10**6

    def __getitem__(self, number):
        time.sleep(0.02)
        return torch.tensor(number)


def a_training(folder, stubborn):
    """Train as a verb does, in a process group of its own; a stubborn one does not look at `stop`."""
    os.setsid()
    os.dup2(os.open(folder / "stderr", os.O_CREAT | os.O_WRONLY), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        with RunFolder.create(folder / "run") as run, interruptible() as stop:
            kept = CheckpointFolder(run.path / "checkpoints", stop=stop)
            for step, batch in enumerate(DataLoader(Slow(), 2, num_workers=2), 1):
                (folder / "step").write_text(str(step))
                if kept.stopping() and not stubborn:
                    kept.save(TrainingState(step, {"sum": batch.sum()}, {}, 0.0))
                    raise Interrupted(f"saved at step {step}")
    except Interrupted as error:
        return error.exit_code


@pytest.mark.parametrize("stubborn", [False, True])
def test_ctrl_c_in_a_terminal_reaches_the_loaders_workers_too(tmp_path, stubborn):
    def passed(number):
        words = (tmp_path / "step").read_text() if (tmp_path / "step").exists() else ""
        return words and int(words) >= number

    child = Child(lambda: a_training(tmp_path, stubborn))
    wait_for(lambda: passed(3))
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to all processes of the group
    if stubborn:
        wait_for(lambda: passed(20))  # the workers go on, and so does the run
        os.killpg(child.pid, signal.SIGINT)
    assert child.ended() == 130
    err = (tmp_path / "stderr").read_text()
    assert err.count("will save and stop") == 1 and "Traceback" not in err
    names = sorted(one.name for one in (tmp_path / "run").rglob("*"))
    step = int((tmp_path / "step").read_text())
    assert names == ([] if stubborn else ["checkpoints", f"step{step}.safetensors", f"step{step}.sha256"])

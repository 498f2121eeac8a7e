"""Run a function in a forked process, which can be killed without harm to the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time


class Child:
    """A forked process that runs `action`; its exit status is what `action` returns, or 99 for an error."""

    def __init__(self, action):
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                code = action() or 0
            except KeyboardInterrupt:
                code = 130
            finally:
                os._exit(code)

    def ended(self, within=20.0):
        """Wait and return the exit status, or minus the signal that killed it."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        self.kill()
        raise AssertionError("the process did not end")

    def kill(self):
        """Kill it as kill -9 does and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Command:
    """The command line in a forked process, with what the tests use of `subprocess.Popen`.

    It spares the seconds that a new process takes to import everything.
    """

    def __init__(self, *words):
        (said, out), (warned, err) = os.pipe(), os.pipe()
        self.stdout, self.stderr = os.fdopen(said), os.fdopen(warned)
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                code = self._run(words, out, err)
            finally:
                os._exit(code)
        os.close(out)
        os.close(err)

    def _run(self, words, out, err):
        """Run the command in the forked process; return its exit code."""
        from torchdoctor.cli import app

        sys.stdout, sys.stderr = (os.fdopen(pipe, "w", buffering=1) for pipe in (out, err))
        sys.argv = ["torchdoctor", *map(str, words)]
        try:
            app.main()
        except SystemExit as ended:
            return ended.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    def poll(self):
        """Return the exit code, or minus the signal that killed it; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout):
        """Wait for its end and return the exit code; subprocess.TimeoutExpired if it does not end."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("torchdoctor", timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number):
        """Send it a signal while it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """Kill it as kill -9 does."""
        self.send_signal(signal.SIGKILL)


def wait_for(condition, within=20.0):
    """Wait until something holds; AssertionError if it never does."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def killed_at(place, action):
    """Run `action` in a process that is killed at a kill point; return how it ended."""

    def run():
        os.environ["TORCHDOCTOR_KILL_AT"] = place
        return action()

    return Child(run).ended()

"""Run a function in a forked process, which can be killed without harm to the tests."""

from __future__ import annotations

import os
import signal
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

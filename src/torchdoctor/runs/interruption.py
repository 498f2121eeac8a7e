"""Let a run end in order: the first Ctrl-C asks it to save and stop, the second stops it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = "\ntorchdoctor: will save and stop after this step; interrupt again to stop at once\n"


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether to save and stop; the handlers before are put back at the end.

    SIGINT and SIGTERM count alike; the second raises KeyboardInterrupt. Signals that were ignored stay so
    (nohup). Outside the main thread, where no handler can be set, the function always says False.
    """
    asked: list[int] = []
    owner = os.getpid()

    def handle(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:
            _in_a_worker(number)
        elif asked:
            raise KeyboardInterrupt
        else:
            asked.append(number)
            os.write(2, NOTICE.encode())  # print may not be entered again from within itself

    before = {}
    if threading.current_thread() is threading.main_thread():
        found = {one: signal.getsignal(one) for one in SIGNALS}
        before = {one: old for one, old in found.items() if old not in (signal.SIG_IGN, None)}
    try:
        for one in before:
            signal.signal(one, handle)
        yield lambda: bool(asked)
    finally:
        for one, old in before.items():
            signal.signal(one, old)


def _in_a_worker(number: int) -> None:
    """Handle a signal in a forked process, which has the handlers of the run.

    A terminal's Ctrl-C reaches the workers of a loader too: they must go on, for the step is finished with
    what they decode. They end with the run, by SIGTERM.
    """
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

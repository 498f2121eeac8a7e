"""Let Ctrl-C end a run in order: the first asks it to save and stop, the second stops it at once."""

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
def interruptible(speaks: bool = True) -> Iterator[Callable[[], bool]]:
    """Catch SIGINT and SIGTERM while the context is open; the earlier handlers come back at its end.

    Both signals count alike. Signals that were ignored stay ignored (nohup). Outside the main thread, where
    Python sets no handlers, nothing is caught.

    Args:
        speaks: Whether the first signal is answered on stderr.

    Yields:
        A function that returns True from the first signal on: the run is to save its state and stop.

    Raises:
        KeyboardInterrupt: A second signal came.
    """
    received: list[int] = []
    owner = os.getpid()

    def handle(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:
            _handle_in_worker(number)
        elif received:
            raise KeyboardInterrupt
        else:
            received.append(number)
            if speaks:
                os.write(2, NOTICE.encode())  # print may not be entered again from within itself

    earlier = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        earlier = {
            number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)
        }
    try:
        for number in earlier:
            signal.signal(number, handle)
        yield lambda: bool(received)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _handle_in_worker(number: int) -> None:
    """Handle a signal in a forked process, which has inherited the handlers of the run.

    A terminal's Ctrl-C also reaches the worker processes that load images. They ignore it, because the run
    finishes its step with what they decode. They end with the run, by SIGTERM.
    """
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

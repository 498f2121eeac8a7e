"""Kill the own process at a named place, for tests that prove that a killed run goes on correctly.

A place is named `before/FILE` and `after/FILE` (around the moment in which a file replaces its older
version), or `ARM/seedK/stepN` (after a training step). The environment variable TORCHDOCTOR_KILL_AT names
the place at which the process is to die, as a pattern of `fnmatch` (`before/*`). `#n` behind it means the
n-th time that a matching place is passed: `*#17` is the seventeenth place of all, whatever it is called.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from fnmatch import fnmatchcase

VARIABLE = "TORCHDOCTOR_KILL_AT"
# Ends a process without any clean-up. Windows has no SIGKILL; there os.kill does the same with SIGTERM.
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)

_passings: Counter[str] = Counter()


def kill_point(name: str) -> None:
    """Kill the process if TORCHDOCTOR_KILL_AT names this place; else do nothing.

    Args:
        name: The name of the place, such as `after/model.safetensors`.
    """
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    pattern, mark, number = wanted.rpartition("#")
    if not mark:
        pattern, number = wanted, "1"
    if not fnmatchcase(name, pattern):
        return
    _passings[wanted] += 1
    if _passings[wanted] == int(number):
        os.kill(os.getpid(), KILL)

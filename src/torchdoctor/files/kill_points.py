"""Kill the own process at a named place, to prove that a run goes on after kill -9 at any step.

Places are named `before/FILE` and `after/FILE` (a file's replacement) and `ARM/seedK/stepN`. The environment
variable TORCHDOCTOR_KILL_AT names one, as a pattern (`before/*`); `#n` behind it means its n-th passing:
`*#17` is the seventeenth place that is passed, whatever it is called.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from fnmatch import fnmatchcase

VARIABLE = "TORCHDOCTOR_KILL_AT"

_passings: Counter[str] = Counter()


def kill_point(name: str) -> None:
    """Kill the process if this is where TORCHDOCTOR_KILL_AT says so; else do nothing."""
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
        os.kill(os.getpid(), signal.SIGKILL)

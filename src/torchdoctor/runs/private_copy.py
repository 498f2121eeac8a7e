"""Give a process beside the main one, which alone writes the run folder, a private copy of it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from torchdoctor.runs.lock import LOCK

LEFT_OUT = (LOCK, "parts", ".*.part")  # the lock, the parts of a diagnosis, half-written files
PREFIX = "torchdoctor-copy-"
YOUNGEST = 60.0  # seconds: a younger copy may not be locked yet


@contextmanager
def private_copy(folder: Path | None) -> Iterator[Path]:
    """Make a folder that is removed when the context ends.

    The process holds a lock in it meanwhile, which the operating system frees where the process is killed.

    Args:
        folder: The run folder of which it is a copy, so that what an earlier run finished is there too; None:
            it is empty.

    Yields:
        The private folder.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX) as place, FileLock(Path(place) / LOCK):
        copy = Path(place) / "run"
        if folder is None:
            copy.mkdir()
        else:
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
        yield copy


def remove_stale_copies() -> None:
    """Remove the private copies of killed processes of this user from the folder for temporary files."""
    for place in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # somebody else removes it, too
            if _is_stale(place):
                shutil.rmtree(place, ignore_errors=True)


def _is_stale(place: Path) -> bool:
    """Return whether a copy is of this user, not quite young, and its process is gone."""
    found = place.lstat()
    if place.is_symlink() or not place.is_dir() or time.time() - found.st_mtime < YOUNGEST:
        return False
    if os.name == "posix" and found.st_uid != os.getuid():
        return False
    try:
        with FileLock(place / LOCK, timeout=0):
            return True
    except Timeout:
        return False

"""Keep a run folder to one process at a time, and say who has it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torchdoctor.types import InputError

LOCK = ".lock"
PATIENCE = 1.0  # seconds for which a lock is tried again: its holder may be about to end
BUSY = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)


@dataclass
class FolderLock:
    """A lock on a folder that this process holds until `release`, or until it dies in whatever way.

    The kernel keeps the lock on an open file in the folder, so nobody has to judge whether a holder is
    alive: kill -9 frees it. The file itself only says who holds it.
    """

    file: Path
    handle: int

    @classmethod
    def acquire(cls, folder: Path) -> FolderLock:
        """Lock the folder; InputError names the process that has it, OSError says why nothing can be written.

        On a file system that knows no locks the run goes on without one, and stderr says so.
        """
        deadline = time.monotonic() + PATIENCE
        file = folder / LOCK
        while True:
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                if _locked(handle, folder) and _is_at(handle, file):
                    _write_holder(handle)
                    _held.add(handle)
                    return cls(file, handle)
                os.close(handle)
            except BaseException:
                os.close(handle)
                raise
            if time.monotonic() > deadline:
                raise InputError(_in_use(folder))
            time.sleep(0.02)

    def release(self) -> None:
        """Remove the file and free the lock; the second time nothing happens.

        The file goes while it is still locked: whoever has opened it by then finds it gone from its place
        and starts over with a new one (`_is_at`), so two processes never lock different files.
        """
        if self.handle not in _held:
            return
        with suppress(OSError):
            if _is_at(self.handle, self.file):
                self.file.unlink()
        _held.discard(self.handle)
        os.close(self.handle)
        self.handle = -1  # its number may soon be another file's


_held: set[int] = set()


def _forget_in_child() -> None:
    """Close the locks' files in a forked process: a worker must not keep the lock when its run is killed."""
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def refuse_locked(folder: Path) -> None:
    """Raise InputError, naming the process, if one has the folder; nothing is written."""
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            raise InputError(_in_use(folder)) from None
    finally:
        os.close(handle)


def _locked(handle: int, folder: Path) -> bool:
    """Try to lock an open file; True also where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            return False
        reason = error.strerror or str(error)
        print(f"torchdoctor: {str(folder)!r} cannot be locked ({reason}): run nothing else on it",
              file=sys.stderr)  # fmt: skip
    return True


def _is_at(handle: int, file: Path) -> bool:
    """Return whether an open file is the one that lies at its place."""
    try:
        there = file.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), there)


def _write_holder(handle: int) -> None:
    """Write into the lock's file who holds it."""
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(sys.argv),
    }
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(holder).encode(), 0)


def _in_use(folder: Path) -> str:
    """Say who has the folder, as far as the lock's file tells."""
    try:
        found = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        who = f"process {found['pid']} on {found['host']} since {found['since']} ({found['command'][:300]})"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return f"{str(folder)!r} is in use by {who}: wait for it, stop it, or choose another folder"

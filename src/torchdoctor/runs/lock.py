"""Let a single process at a time work in a run folder, and tell every other process who that is."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor

from torchdoctor.types import InputError

LOCK = ".lock"
PATIENCE = 1.0  # seconds for which a lock is tried again: its holder may be about to end
POLL_INTERVAL = 0.02  # seconds between two tries
NEVER_A_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has no such flag


class FolderLock:
    """The lock of a folder, which the process holds until `release`, or until it ends in any way.

    The operating system ties the lock to an open file in the folder (`filelock.FileLock`: flock on Linux and
    macOS, LockFileEx on Windows). It frees the lock when the process ends, even after kill -9, so nobody has
    to judge whether a holder is still alive. Processes forked from the holder do not keep the lock. The
    content of the file only says who the holder is.

    Attributes:
        file: The lock's file, `.lock` in the folder.
        handle: The file descriptor that carries the lock; -1 where there is none.
    """

    def __init__(self, folder: Path) -> None:
        """Prepare the lock of a folder without touching the disk; `acquire` takes it.

        Args:
            folder: An existing folder.
        """
        self.file = folder / LOCK
        self.handle = -1
        self._process: int | None = None  # the process that holds the lock
        self._system_lock = FileLock(
            self.file,
            timeout=PATIENCE,
            poll_interval=POLL_INTERVAL,
            thread_local=False,
            fallback_to_soft=False,
            on_acquired=self._write_holder,
        )

    @classmethod
    def acquire(cls, folder: Path) -> FolderLock:
        """Lock a folder for this process, trying again for `PATIENCE` seconds.

        On a file system without locks the run goes on unlocked, and stderr says so.

        Args:
            folder: An existing folder.

        Returns:
            The lock, held by this process.

        Raises:
            InputError: Another process holds the folder; the message names it.
            OSError: The lock's file cannot be written.
        """
        lock = cls(folder)
        try:
            lock._system_lock.acquire()
        except Timeout:
            raise InputError(_in_use(folder)) from None
        except OSError as error:
            lock._go_on_without(error)
        lock._process = os.getpid()
        return lock

    def release(self) -> None:
        """Remove the lock's file and free the lock; the second time, and in a forked child, do nothing.

        The file is removed while it is still locked. A process that has opened it by then and gets its lock
        finds that the file has no name any more, and starts over with a new file: two processes never lock
        different files. Windows removes no open file; there filelock removes it afterwards.
        """
        if self._process != os.getpid():
            return
        with suppress(OSError):
            if self.handle < 0 or os.path.samestat(os.fstat(self.handle), self.file.stat()):
                self.file.unlink()
        self._system_lock.release()
        self.handle, self._process = -1, None

    def _write_holder(self, handle: int) -> None:
        """Write into the locked file who holds it."""
        self.handle = handle
        os.ftruncate(handle, 0)
        os.write(handle, _holder())

    def _go_on_without(self, error: OSError) -> None:
        """Write who works in the folder into an unlocked file, and say on stderr that nothing is locked."""
        handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_TRUNC | NEVER_A_LINK, 0o666)
        try:
            os.write(handle, _holder())
        finally:
            os.close(handle)
        folder, reason = str(self.file.parent), error.strerror or str(error)
        print(f"torchdoctor: {folder!r} cannot be locked ({reason}): run nothing else on it", file=sys.stderr)


def refuse_locked(folder: Path) -> None:
    """Refuse a folder in which another process works; nothing is written.

    Args:
        folder: A folder, which may be missing.

    Raises:
        InputError: Another process holds the folder's lock; the message names it.
    """
    deadline = time.monotonic() + PATIENCE
    while _is_locked(folder / LOCK):
        if time.monotonic() > deadline:
            raise InputError(_in_use(folder))
        time.sleep(POLL_INTERVAL)


def _is_locked(file: Path) -> bool:
    """Return whether a process holds the lock of a file; False where the file cannot be opened or locked."""
    try:
        handle = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not lock_descriptor(handle, blocking=False)
    except OSError:
        return False
    finally:
        os.close(handle)  # which frees the lock


def _holder() -> bytes:
    """Return who this process is, as JSON behind a blank: Windows lets nobody read a locked first byte."""
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(sys.argv),
    }
    return b" " + json.dumps(holder).encode()


def _in_use(folder: Path) -> str:
    """Return the sentence that says who works in the folder, as far as the lock's file tells."""
    try:
        with (folder / LOCK).open("rb", buffering=0) as file:
            file.seek(1)
            text = file.read().decode()
        holder = json.loads(text if text.startswith("{") else "{" + text)  # older versions wrote no blank
        who = (
            f"process {holder['pid']} on {holder['host']} since {holder['since']} ({holder['command'][:300]})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return f"{str(folder)!r} is in use by {who}: wait for it, stop it, or choose another folder"

"""Open, lock, resume and finish run folders.

Each file of a run is written atomically. The last file is the manifest, which holds the sha256 of all others:
a folder with a manifest is a finished run, and can be checked against it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import yaml

from torchdoctor.diagnosis.suspects_result import LIST
from torchdoctor.files.reading import Record, read_record, sha256_of
from torchdoctor.files.writing import plain, write_json
from torchdoctor.runs.lock import LOCK, FolderLock, refuse_locked
from torchdoctor.runs.review_files import REVIEW
from torchdoctor.types import InputError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
FILLED_IN = (LIST,)  # files that people write answers into, beside the folder of a review
ENVIRONMENT = "environment.json"

# Settings that a resumed run may change: they change no number.
FREE_SETTINGS = ("out", "workers", "download", "tensorboard", "tracker")


@dataclass
class RunFolder:
    """The folder of a run, in which a single process works at a time.

    Used as a context manager, it is sealed (`seal`) when the run ends without an error. Make it with
    `create` or `resume`.

    Attributes:
        path: The folder.
        was_there: Whether the folder existed before this run, empty.
        fresh: Whether `create` began it: only then is it removed again where the input is refused.
        resumed: Whether it holds an unfinished run that goes on.
        lock: The folder's lock while this process holds it.
    """

    path: Path
    was_there: bool = False
    fresh: bool = False
    resumed: bool = False
    lock: FolderLock | None = None

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """Refuse a path at which there is something already; an empty folder is fine.

        Args:
            path: The folder that a new run is to use.

        Raises:
            InputError: The path is a file, or a folder that is not empty.
        """
        if path.exists() and (not path.is_dir() or _contents(path)):
            raise InputError(
                f"--out {str(path)!r} exists already and is never overwritten: choose another folder"
            )

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Create and lock the folder of a new run.

        Args:
            path: The folder; missing or empty.

        Returns:
            The folder, locked by this process.

        Raises:
            InputError: Another process works there, something is there already, or it cannot be written.
        """
        with _writable(path):
            refuse_locked(path)
            cls.refuse_existing(path)
            was_there = path.exists()
            lock = _locked(path)
            try:
                cls.refuse_existing(path)  # again: another process may have been quicker
                _remove_leftovers(path)
            except BaseException:
                lock.release()
                raise
        return cls(path, was_there, fresh=True, lock=lock)

    @classmethod
    def resume(cls, path: Path, wanted: Mapping[str, object]) -> RunFolder:
        """Open and lock the folder of an unfinished run to go on with it, or create it where there is none.

        Args:
            path: The folder.
            wanted: What the run is about (settings, data, weights): by file name, the content that the file
                is expected to have. They are the first files that a run writes, so a run that was killed
                among them has nothing else.

        Returns:
            The folder, locked by this process.

        Raises:
            InputError: Another process works there, the run is finished, what it is about differs from
                `wanted` (the message says in what), or the folder cannot be read or written.
        """
        with _writable(path):
            if path.exists() and not path.is_dir():
                raise InputError(f"--resume: {str(path)!r} is no folder; give the --out of an unfinished run")
            if not path.exists() or not _contents(path):
                return cls.create(path)
            lock = _locked(path)
            try:
                _check_unfinished(path, wanted)
                _remove_leftovers(path)
            except BaseException:
                lock.release()
                raise
        return cls(path, was_there=True, resumed=True, lock=lock)

    def __enter__(self) -> RunFolder:
        """Lock the folder where it is not locked yet.

        Returns:
            This object.

        Raises:
            InputError: Another process works there, or the folder cannot be written.
        """
        if self.lock is None:
            with _writable(self.path):
                self.lock = _locked(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Seal a finished run, or remove a run that was refused before any training; unlock the folder.

        An interrupted run stays as it is, and so does whatever has been trained by then.

        Args:
            kind: The type of the exception that ends the run; None for a finished run.
            _error: The exception; not used.
            _trace: Its traceback; not used.
        """
        refused = kind is not None and issubclass(kind, InputError) and self.fresh
        empty = refused and not any(self.path.rglob("model.safetensors"))
        try:
            if kind is None:
                _remove_leftovers(self.path)
                seal(self.path)
            elif empty:
                self._take_away()
        finally:
            if self.lock is not None:
                self.lock.release()
        if empty and not self.was_there:
            with suppress(OSError):  # another process has begun here meanwhile
                self.path.rmdir()

    def _take_away(self) -> None:
        """Remove what the run has written."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != LOCK:
                entry.unlink(missing_ok=True)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about a folder into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"run folder {str(path)!r} cannot be written ({error.strerror or error})") from error


def _locked(path: Path) -> FolderLock:
    """Make the folder where it is missing and lock it, which also proves that files can be written there."""
    path.mkdir(parents=True, exist_ok=True)
    return FolderLock.acquire(path)


def _contents(path: Path) -> set[str]:
    """Return the names of what a run has written in full: without its lock and half-written files."""
    return {entry.name for entry in path.iterdir() if entry.name != LOCK and not _is_leftover(entry)}


def _is_leftover(path: Path) -> bool:
    """Return whether a file was being written when its run was killed."""
    return path.name.startswith(".") and path.suffix == ".part"


def _remove_leftovers(path: Path) -> None:
    """Remove the files that were being written when the run was killed."""
    for leftover in path.rglob(".*.part"):
        leftover.unlink(missing_ok=True)


def _check_unfinished(path: Path, wanted: Mapping[str, object]) -> None:
    """Raise InputError unless the folder holds an unfinished run that is about the same."""
    if is_finished(path):
        raise InputError(
            f"--resume: {str(path)!r} has been finished by another process: run the same again to read it"
        )
    for name, now in wanted.items():
        file = path / name
        if not file.is_file():
            if _contents(path) <= {*wanted, ENVIRONMENT}:
                continue
            raise InputError(
                f"--resume: {str(path)!r} has no {name}, so it is no unfinished run to go on with"
            )
        try:
            was = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"--resume: {str(file)!r} cannot be read ({error}): start a new run") from error
        difference = _difference(was, plain(now))
        if difference:
            hint = "" if name != "config.yaml" else f"; to keep its settings add --config {file}"
            raise InputError(f"--resume: {str(file)!r} was made otherwise: {difference}{hint}")


def _difference(was: object, now: object) -> str:
    """Name the first few entries in which two nests of mappings differ; empty where they do not."""
    old, new = _entries(was), _entries(now)
    differences = [
        f"{name} was {_shortened(old.get(name))} and is {_shortened(new.get(name))}"
        for name in {**old, **new}
        if old.get(name) != new.get(name) and name not in FREE_SETTINGS
    ]
    more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
    return "; ".join(differences[:3]) + more


def _entries(value: object, name: str = "") -> dict[str, object]:
    """Flatten nested mappings: return every value that is not a mapping, under its dotted name."""
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    inner = [_entries(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()]
    return {key: item for entries in inner for key, item in entries.items()}


def _shortened(value: object) -> str:
    """Return a value as text; of long text, the beginning."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}..."


def is_finished(path: Path) -> bool:
    """Tell whether a folder holds a finished run.

    Args:
        path: The folder.

    Returns:
        True where it has a manifest.
    """
    return (path / MANIFEST).is_file()


class Manifest(Record):
    """What `manifest.json` holds: the version of the run format, and the sha256 of every file."""

    schema_version: int
    files: dict[str, str]


def seal(path: Path) -> None:
    """Write the manifest, which makes the run finished: the schema's version and every file's sha256.

    Args:
        path: The run's folder.
    """
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and file.name not in (MANIFEST, LOCK) and not _is_leftover(file)
        and file.relative_to(path).parts[0] != REVIEW
    )  # fmt: skip
    sums = {file.relative_to(path).as_posix(): sha256_of(file) for file in files}
    write_json(path / MANIFEST, {"schema_version": SCHEMA_VERSION, "files": sums})


def open_run(path: Path) -> Path:
    """Check that a folder holds a finished run, and that no file of it is missing or changed.

    A list that people fill in may have changed; what a review wrote is not looked at.

    Args:
        path: The folder.

    Returns:
        The same folder.

    Raises:
        InputError: It is no finished run, was written in another schema version, or a file of it is missing
            or changed; the message names the file.
    """
    if not path.is_dir():
        raise InputError(f"run {str(path)!r}: no such folder")
    if not (path / MANIFEST).is_file():
        raise InputError(f"run {str(path)!r} has no {MANIFEST}: it was not finished, or is no run folder")
    manifest = read_record(path / MANIFEST, Manifest)
    if manifest.schema_version != SCHEMA_VERSION:
        raise InputError(
            f"{str(path / MANIFEST)!r} has schema version {manifest.schema_version}; expected "
            f"{SCHEMA_VERSION}"
        )
    for name, wanted in manifest.files.items():
        file = path / name
        if not file.is_file() or (sha256_of(file) != wanted and name not in FILLED_IN):
            raise InputError(
                f"run {str(path)!r}: {name} is missing or not what the run wrote (sha256 differs)"
            )
    return path

"""Write run folders so that what is there is whole: each file atomically, the manifest last."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import yaml

from torchdoctor.files.reading import Record, read_record, sha256_of
from torchdoctor.files.writing import plain, write_json
from torchdoctor.runs.lock import LOCK, FolderLock, refuse_locked
from torchdoctor.types import InputError

SCHEMA_VERSION = 1


MANIFEST = "manifest.json"


ENVIRONMENT = "environment.json"


# Settings that a resumed run may change: they change no number.
FREE = ("out", "workers", "download", "tensorboard")


@dataclass
class RunFolder:
    """A run's folder, which one process has at a time. As a context it is sealed when the run is finished.

    Only a folder that `create` began (`fresh`) is taken away again where the input is refused.
    """

    path: Path
    was_there: bool = False
    fresh: bool = False
    resumed: bool = False
    lock: FolderLock | None = None

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """Raise InputError if something is there already; an empty folder is welcome."""
        if path.exists() and (not path.is_dir() or _contents(path)):
            raise InputError(
                f"--out {str(path)!r} exists already and is never overwritten: choose another folder"
            )

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Create and lock the folder; InputError if something is there, or it cannot be written."""
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
        """Go on in an unfinished run's folder, or create it; InputError says what differs from `wanted`.

        `wanted` holds, by file name, what the run is about: its settings, its data, its weights. They are
        the first files of a run, so one that was killed among them has nothing else.
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
        """Return the folder, locked."""
        if self.lock is None:
            with _writable(self.path):
                self.lock = _locked(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Seal a finished run; take away one whose input was refused before anything was trained.

        An interrupted run stays as it is, and so does whatever has been trained by then.
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
    """Turn what the operating system says about a folder into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"run folder {str(path)!r} cannot be written ({error.strerror or error})") from error


def _locked(path: Path) -> FolderLock:
    """Make the folder where it is missing and lock it, which tries out that files can be written there."""
    path.mkdir(parents=True, exist_ok=True)
    return FolderLock.acquire(path)


def _contents(path: Path) -> set[str]:
    """Return the names of what a run has finished writing, lock and half-written files left out."""
    return {one.name for one in path.iterdir() if one.name != LOCK and not _is_leftover(one)}


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
            raise InputError(f"--resume: {str(file)!r} was made otherwise: {difference}")


def _difference(was: object, now: object) -> str:
    """Name the first few entries in which two nests of mappings differ; empty where they do not."""
    old, new = _entries(was), _entries(now)
    found = [
        f"{name} was {_shown(old.get(name))} and is {_shown(new.get(name))}"
        for name in {**old, **new}
        if old.get(name) != new.get(name) and name not in FREE
    ]
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _entries(value: object, name: str = "") -> dict[str, object]:
    """Return what is not a mapping, under its dotted name."""
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    inner = [_entries(one, f"{name}.{key}" if name else str(key)) for key, one in value.items()]
    return {key: one for entries in inner for key, one in entries.items()}


def _shown(value: object) -> str:
    """Show a value, a long one by its beginning."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}..."


def is_finished(path: Path) -> bool:
    """Return whether a folder holds a finished run."""
    return (path / MANIFEST).is_file()


class Manifest(Record):
    """What `manifest.json` holds: the version of the run format, and the sha256 of every file."""

    schema_version: int
    files: dict[str, str]


def seal(path: Path) -> None:
    """Write the manifest: the schema's version and the sha256 of every file, last of all."""
    files = sorted(
        one
        for one in path.rglob("*")
        if one.is_file() and one.name not in (MANIFEST, LOCK) and not _is_leftover(one)
    )
    sums = {one.relative_to(path).as_posix(): sha256_of(one) for one in files}
    write_json(path / MANIFEST, {"schema_version": SCHEMA_VERSION, "files": sums})


def open_run(path: Path) -> Path:
    """Check that a folder is a finished run and unchanged; InputError says which file is not."""
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
        if not file.is_file() or sha256_of(file) != wanted:
            raise InputError(
                f"run {str(path)!r}: {name} is missing or not what the run wrote (sha256 differs)"
            )
    return path

"""Write run folders so that what is there is whole: each file atomically, the manifest last."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import yaml
from safetensors.torch import save as save_tensors
from torch import Tensor

from torchdoctor.types import InputError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that at every moment the old or the new content is there, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def plain(value: object) -> object:
    """Turn dataclass-free nests into what JSON can say: tuples to lists, NaN and infinity to null."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON."""
    text = json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def write_yaml(path: Path, value: Mapping[str, object]) -> None:
    """Write a mapping as YAML, in its own order."""
    text = yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True)
    write_bytes(path, text.encode())


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as safetensors: the same tensors give the same bytes."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    write_bytes(path, save_tensors(tensors, metadata={"format": "pt"}))


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object; InputError names the file and what is wrong with it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{str(path)!r} is not there; expected it in a finished run folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{str(path)!r} holds {type(found).__name__}; expected an object")
    return found


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class RunFolder:
    """A new run's folder. As a context: refused input takes it away again, a finished run seals it."""

    path: Path
    was_there: bool = False
    resumed: bool = False

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """Raise InputError if something is there already; an empty folder is welcome."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(
                f"--out {str(path)!r} exists already and is never overwritten: choose another folder"
            )

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Create the folder; InputError if something is there already or it cannot be written."""
        cls.refuse_existing(path)
        was_there = path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise InputError(f"--out {str(path)!r} cannot be written ({error.strerror or error})") from error
        return cls(path, was_there)

    @classmethod
    def resume(cls, path: Path, wanted: Mapping[str, object]) -> RunFolder:
        """Go on in an unfinished run's folder, or create it; InputError says what differs from `wanted`.

        `wanted` holds, by file name, what the run is about: its settings and its data.
        """
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return cls.create(path)
        for name, now in wanted.items():
            file = path / name
            if not file.is_file():
                raise InputError(
                    f"--resume: {str(path)!r} has no {name}, so it is no unfinished run to go on with"
                )
            was = yaml.safe_load(file.read_text(encoding="utf-8"))
            difference = _difference(was, plain(now))
            if difference:
                raise InputError(f"--resume: {str(file)!r} was made otherwise: {difference}")
        for leftover in path.rglob(".*.part"):  # of a file that was being written when the run was killed
            leftover.unlink()
        return cls(path, was_there=True, resumed=True)

    def __enter__(self) -> RunFolder:
        """Return the folder."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Seal a finished run; take away one whose input was refused before anything was trained.

        An interrupted run stays as it is, and so does whatever has been trained by then.
        """
        if kind is None:
            seal(self.path)
        elif (
            issubclass(kind, InputError)
            and not self.resumed
            and not any(self.path.rglob("model.safetensors"))
        ):
            for entry in self.path.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
            if not self.was_there:
                self.path.rmdir()


def _difference(was: object, now: object) -> str:
    """Name the first few entries in which two mappings differ; empty where they do not."""
    old, new = (one if isinstance(one, dict) else {"": one} for one in (was, now))
    found = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def is_finished(path: Path) -> bool:
    """Return whether a folder holds a finished run."""
    return (path / MANIFEST).is_file()


def seal(path: Path) -> None:
    """Write the manifest: the schema's version and the sha256 of every file, last of all."""
    files = sorted(one for one in path.rglob("*") if one.is_file() and one.name != MANIFEST)
    sums = {one.relative_to(path).as_posix(): sha256_of(one) for one in files}
    write_json(path / MANIFEST, {"schema_version": SCHEMA_VERSION, "files": sums})


def open_run(path: Path) -> Path:
    """Check that a folder is a finished run and unchanged; InputError says which file is not."""
    if not path.is_dir():
        raise InputError(f"run {str(path)!r}: no such folder")
    if not (path / MANIFEST).is_file():
        raise InputError(f"run {str(path)!r} has no {MANIFEST}: it was not finished, or is no run folder")
    manifest = read_json(path / MANIFEST)
    files = manifest.get("files")
    if manifest.get("schema_version") != SCHEMA_VERSION or not isinstance(files, dict):
        raise InputError(
            f"{str(path / MANIFEST)!r} has schema version {manifest.get('schema_version')!r}; expected "
            f"{SCHEMA_VERSION}"
        )
    for name, wanted in files.items():
        file = path / name
        if not file.is_file() or sha256_of(file) != wanted:
            raise InputError(
                f"run {str(path)!r}: {name} is missing or not what the run wrote (sha256 differs)"
            )
    return path

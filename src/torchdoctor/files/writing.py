"""Write files as a whole: a reader finds the old content or the new, never a part."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml
from safetensors.torch import save as save_tensors
from torch import Tensor

from torchdoctor.files.kill_points import kill_point
from torchdoctor.types import ModelDoctorError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that at every moment the old or the new content is there, never a part.

    Args:
        path: The file; missing folders are made.
        content: What it is to hold.

    Raises:
        ModelDoctorError: The disk is full or cannot be written; the text names the path and the reason.
    """
    with _told_where(path):
        made = [folder for folder in path.parents if not folder.exists()]
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
            kill_point(f"before/{path.name}")
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        kill_point(f"after/{path.name}")
        for folder in (path.parent, *(new.parent for new in made)):
            _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Wait until a folder's list of names is on the disk; Windows opens no folder and needs none of this."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _told_where(path: Path) -> Iterator[None]:
    """Turn what the operating system says into an error that names the file and what to do."""
    try:
        yield
    except OSError as error:
        raise ModelDoctorError(
            f"{str(path)!r} cannot be written ({error.strerror or error}): what was written before is whole, "
            "and once this is mended, a run with --resume goes on from it"
        ) from error


def plain(value: object) -> object:
    """Turn nested values into what JSON can hold.

    Args:
        value: Mappings, lists, tuples, arrays, tensors, numbers, texts, in any nesting.

    Returns:
        The same with tuples, arrays and tensors as lists, NaN and infinity as None, and anything else that
        JSON does not know as text.
    """
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON.

    Names of files that are no UTF-8 keep their bytes: `\\udce9` stands for the byte 0xe9, as in Python.

    Args:
        path: The file.
        value: What `plain` accepts.

    Raises:
        ModelDoctorError: The file cannot be written.
    """
    text = json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode("utf-8", "backslashreplace"))


def write_yaml(path: Path, value: Mapping[str, object]) -> None:
    """Write a mapping as YAML, in its own order.

    Args:
        path: The file.
        value: Values by name, as `plain` accepts them.

    Raises:
        ModelDoctorError: The file cannot be written.
    """
    text = yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True)
    write_bytes(path, text.encode())


def weights_bytes(state: Mapping[str, Tensor]) -> bytes:
    """Return a state dict as the content of a safetensors file.

    Args:
        state: Tensors by name.

    Returns:
        The bytes; equal tensors give equal bytes.
    """
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    return save_tensors(tensors, metadata={"format": "pt"})


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as a safetensors file.

    Args:
        path: The file.
        state: Tensors by name.

    Raises:
        ModelDoctorError: The file cannot be written.
    """
    write_bytes(path, weights_bytes(state))

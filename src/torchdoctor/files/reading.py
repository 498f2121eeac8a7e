"""Read files that a run wrote; a damaged or foreign file gives an InputError that says what is wrong."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from torchdoctor.types import InputError

MOST_PROBLEMS = 3  # described in an error text; of further problems only the number is given


class Record(BaseModel):
    """The fields of a JSON file that are read back; fields beside them are for human readers."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


SomeRecord = TypeVar("SomeRecord", bound=Record)


def _float_of(value: object) -> object:
    """Return what stands for a number that JSON cannot hold as that number, anything else as it is."""
    if value is None:
        return math.nan
    return (
        {"Infinity": math.inf, "-Infinity": -math.inf}.get(value, value) if isinstance(value, str) else value
    )


Number = Annotated[float, BeforeValidator(_float_of)]  # null is NaN, "Infinity" and "-Infinity" the bounds


def read_record(path: Path, kind: type[SomeRecord]) -> SomeRecord:
    """Read a JSON file into a record.

    Args:
        path: The file.
        kind: The record's class; its fields say what is expected in the file.

    Returns:
        The record.

    Raises:
        InputError: Where the file is missing, is no JSON, or does not hold what `kind` expects; the text
            names the file, the place in it, the value there and what was expected.
    """
    try:
        return kind.model_validate_json(_content(path))
    except ValidationError as error:
        raise InputError(f"{str(path)!r} {_problems(error)}") from error


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object whose fields are checked where they are used.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        InputError: Where the file is missing or holds no JSON object.
    """
    try:
        content = json.loads(_content(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{str(path)!r} holds {type(content).__name__}; expected an object")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: The file.

    Returns:
        The tensors by name.

    Raises:
        InputError: Where the file is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{str(path)!r} is not there; expected it in a finished run folder")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{str(path)!r} is damaged ({error}); expected a safetensors file") from error


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content.

    Args:
        path: The file.

    Returns:
        The checksum in hexadecimal digits.

    Raises:
        OSError: Where the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(path: Path) -> bytes:
    """Return a file's bytes; InputError where there are none to be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{str(path)!r} is not there; expected it in a finished run folder") from error
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error.strerror or error})") from error


def _problems(error: ValidationError) -> str:
    """Say what is wrong with a file: place by place which value stands there and which was expected."""
    problems = error.errors(include_url=False)
    if problems[0]["type"] == "json_invalid":
        return f"cannot be read as JSON ({problems[0]['msg'].removeprefix('Invalid JSON: ')})"
    said = []
    for problem in problems[:MOST_PROBLEMS]:
        place = ".".join(map(str, problem["loc"])) or "the whole file"
        if problem["type"] == "missing":
            said.append(f"{place} is missing")
            continue
        if problem["type"] == "value_error":
            said.append(problem["msg"].removeprefix("Value error, "))
            continue
        value = repr(problem["input"])
        expected = problem["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        said.append(f"{place} is {value if len(value) <= 60 else value[:57] + '...'}, expected {expected}")
    more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
    return f"does not hold what a run writes there: {'; '.join(said)}{more}"

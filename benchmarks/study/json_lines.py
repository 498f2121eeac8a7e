"""Files of results with one line of JSON for each measurement, which the programs of this folder share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def read(file: Path) -> list[Line]:
    """Return the lines of a file; FileNotFoundError where it is missing."""
    return [json.loads(text) for text in file.read_text().splitlines()]


def read_finished(file: Path | None) -> list[Line]:
    """Return the lines that an earlier run left, for one that is resumed; none without a file."""
    return read(file) if file and file.is_file() else []


def append(line: Mapping[str, Any], file: Path | None) -> None:
    """Append a line to a file; without a file, do nothing."""
    if file:
        with file.open("a") as opened:
            opened.write(json.dumps(line) + "\n")


def write(line: Mapping[str, Any], file: Path | None) -> None:
    """Print a line at once, and append it to the file where one is given."""
    print(json.dumps(line), flush=True)
    append(line, file)

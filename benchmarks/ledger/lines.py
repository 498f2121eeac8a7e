"""The ledger's lines: what a result is called, where it is kept, and which are there already.

A file holds one JSON object per line and is only ever added to. Its key is the first nine fields; a key that
is there is not measured again. A line that was cut off by a kill is ignored and measured anew.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torchvision
from filelock import lock_descriptor

import torchdoctor

RESULTS = Path(__file__).resolve().parents[1] / "results"
ARMS = ("base", "control", "channel", "space", "all")

Line = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """What one accuracy is of; `variant` says what the program varies (empty where nothing is)."""

    program: str
    architecture: str
    dataset: str
    classes_seed: int
    image_size: int
    arm: str
    variant: str
    seed: int
    protocol: str

    @property
    def text(self) -> str:
        """The key as one word, as `make ledger-check CELL=...` takes it."""
        return "/".join(str(value) for value in asdict(self).values())


KEY = tuple(one.name for one in fields(Key))


def key_of(line: Mapping[str, Any]) -> Key:
    """Return the key of a line."""
    return Key(**{name: line[name] for name in KEY})


def key_from(text: str) -> Key:
    """Read a key that was written as one word; ValueError says what was expected."""
    parts = text.split("/")
    if len(parts) != len(KEY):
        raise ValueError(f"{text!r}: expected {'/'.join(name.upper() for name in KEY)}")
    whole = {"classes_seed", "image_size", "seed"}
    return Key(
        **{name: int(one) if name in whole else one for name, one in zip(KEY, parts, strict=True)}  # type: ignore[arg-type]
    )


@dataclass(frozen=True)
class Ledger:
    """One file of results."""

    file: Path

    def lines(self) -> list[Line]:
        """Return every whole line; of lines with the same key the last one."""
        return list({key_of(line): line for line in self._read()}.values())

    def _read(self) -> Iterator[Line]:
        if not self.file.exists():
            return
        for text in self.file.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # cut off by a kill
            if isinstance(line, dict) and set(KEY) <= set(line):
                yield line

    def keys(self) -> set[Key]:
        """Return the keys that need not be measured again."""
        return {key_of(line) for line in self._read()}

    def append(self, key: Key, values: Mapping[str, Any], *, revision: str, device: str) -> Line:
        """Add one result with what it was measured on; safe beside other processes."""
        line = {**asdict(key), **values, "device": device, "versions": versions(), "revision": revision,
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}  # fmt: skip
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a+b") as file:
            lock_descriptor(file.fileno())
            file.seek(0, os.SEEK_END)
            torn = file.tell() > 0 and _last_byte(file) != b"\n"
            file.write(b"\n" * torn + json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return line


def _last_byte(file: Any) -> bytes:
    """Return the last byte of an open file."""
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def versions() -> dict[str, str]:
    """Return the versions that a number may depend on."""
    return {
        "torchdoctor": torchdoctor.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }


def revision_here() -> str:
    """Return the git revision of these files, `+` where they were changed since; empty outside git."""
    place = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=place,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def device_words(device: torch.device) -> str:
    """Return the device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} thread(s)"

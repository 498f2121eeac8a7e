"""Give a process beside the main one, which alone writes the run folder, a private copy of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchdoctor.runs.lock import LOCK

LEFT_OUT = (LOCK, "parts", ".*.part")  # the lock, the parts of a diagnosis, half-written files


@contextmanager
def private_copy(folder: Path | None) -> Iterator[Path]:
    """Make a folder that is removed when the context ends.

    Args:
        folder: The run folder of which it is a copy, so that what an earlier run finished is there too; None:
            it is empty.

    Yields:
        The private folder.
    """
    with tempfile.TemporaryDirectory(prefix="torchdoctor-") as place:
        copy = Path(place) / "run"
        if folder is None:
            copy.mkdir()
        else:
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
        yield copy

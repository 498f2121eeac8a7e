"""Folders that several tests share, and figures that are left blank where no test looks at them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of a folder by its name."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@contextmanager
def unchanged(folder: Path) -> Iterator[Path]:
    """Hand out a folder that others share; AssertionError if a test has changed it."""
    before = contents(folder)
    yield folder
    after = contents(folder)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    assert changed == [], f"tests changed what others share in {folder}: {changed}"


def leave_blank(patch: pytest.MonkeyPatch) -> None:
    """Write figures as empty files, and put empty pictures into reports."""
    from torchdoctor.report.pictures import Picture

    blank = "data:image/png;base64,"
    patch.setattr("torchdoctor.verbs.pictures.figure_files", lambda _figure: {"png": b"", "svg": b""})
    patch.setattr("torchdoctor.report.pictures.draw", lambda _figure, alt: Picture(blank, 1, 1, alt))

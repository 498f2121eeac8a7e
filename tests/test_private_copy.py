"""The private copy of a run folder is gone with its process, or at the next start where that was killed."""

from __future__ import annotations

import os
import tempfile
import time

import pytest

from processes import Child, wait_for
from torchdoctor.runs.private_copy import PREFIX, YOUNGEST, private_copy, remove_stale_copies


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder for temporary files, and a run folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "run" / "parts").mkdir(parents=True)
    for name in (".lock", "config.yaml", "parts/one", ".half.part"):
        (tmp_path / "run" / name).write_text(name)
    return tmp_path / "temporary", tmp_path / "run"


def copies(temporary):
    return list(temporary.glob(f"{PREFIX}*"))


def aged(folder):
    """Let a folder be old enough to be removed."""
    before = time.time() - 2 * YOUNGEST
    os.utime(folder, (before, before))
    return folder


def test_a_copy_holds_what_is_finished_and_is_removed(place):
    temporary, run = place
    with private_copy(run) as copy:
        assert [file.name for file in copy.iterdir()] == ["config.yaml"]
        remove_stale_copies()
        aged(copy.parent)
        remove_stale_copies()  # old, but its process is there
        assert copy.is_dir()
    assert copies(temporary) == []
    with private_copy(None) as copy:
        assert list(copy.iterdir()) == []


def test_the_copy_of_a_killed_process_is_removed_at_the_next_start(place):
    temporary, run = place

    def held():
        with private_copy(run):
            time.sleep(60)

    child = Child(held)
    wait_for(lambda: list(temporary.glob(f"{PREFIX}*/run/config.yaml")))
    (left,) = copies(temporary)
    aged(left)
    remove_stale_copies()
    assert left.is_dir()  # the process is at work in it
    child.kill()
    os.utime(left)
    remove_stale_copies()
    assert left.is_dir()  # so young that its process may not have locked it yet
    aged(left)
    remove_stale_copies()
    assert copies(temporary) == []


def test_nothing_else_is_removed(place, tmp_path):
    temporary, _ = place
    (temporary / "torchdoctor-other").mkdir()
    other = aged(temporary / "torchdoctor-other")
    (tmp_path / "elsewhere").mkdir()
    link = temporary / f"{PREFIX}link"
    link.symlink_to(aged(tmp_path / "elsewhere"), target_is_directory=True)
    os.utime(link, (0, 0), follow_symlinks=False)
    remove_stale_copies()
    assert other.is_dir() and link.is_symlink() and (tmp_path / "elsewhere").is_dir()

"""One process per run folder: the second is told who has it, and a dead one's lock is nobody's."""

from __future__ import annotations

import fcntl
import os
import re
import time

import pytest

from processes import Child, killed_at, wait_for
from torchdoctor.files.writing import write_json
from torchdoctor.runs.folder import RunFolder
from torchdoctor.runs.lock import LOCK, FolderLock
from torchdoctor.types import InputError


def holding(folder, begin=FolderLock.acquire):
    """Start a process that holds the folder until it is killed."""

    def hold():
        kept = begin(folder)
        (folder.parent / "held").touch()
        time.sleep(60)
        return kept is None

    child = Child(hold)
    wait_for((folder.parent / "held").exists)
    (folder.parent / "held").unlink()
    return child


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Do not wait for a holder to end."""
    monkeypatch.setattr("torchdoctor.runs.lock.PATIENCE", 0.1)


def test_the_second_process_is_told_who_has_the_folder(tmp_path):
    run = tmp_path / "run"
    child = holding(run, RunFolder.create)
    try:
        write_json(run / "config.yaml", {})
        for begin in (RunFolder.create, lambda path: RunFolder.resume(path, {"config.yaml": {}})):
            with pytest.raises(InputError) as raised:
                begin(run)
            found = re.search(
                r"process (\d+) on (\S+) since (\d{4}-\d\d-\d\d \S+) \((.+)\)", str(raised.value)
            )
            assert found and int(found[1]) == child.pid and found[2] == os.uname().nodename
            assert "in use by" in str(raised.value) and "choose another folder" in str(raised.value)
    finally:
        child.kill()


def test_a_dead_holders_lock_is_taken_over(tmp_path):
    run = tmp_path / "run"
    child = holding(run, RunFolder.create)
    write_json(run / "config.yaml", {})
    child.kill()
    assert (run / LOCK).exists()
    with RunFolder.resume(run, {"config.yaml": {}}) as again:
        assert str(os.getpid()) in (run / LOCK).read_text()
        assert again.resumed
    assert sorted(one.name for one in run.iterdir()) == ["config.yaml", "manifest.json"]


def test_a_run_killed_with_nothing_but_its_lock_leaves_an_empty_folder(tmp_path):
    assert killed_at("before/first", lambda: write_first(tmp_path / "run")) < 0
    assert (tmp_path / "run" / LOCK).exists()
    with RunFolder.create(tmp_path / "run") as run:
        assert [one.name for one in run.path.iterdir()] == [LOCK]


def write_first(path):
    with RunFolder.create(path) as run:
        write_json(run.path / "first", {})


def test_a_killed_runs_workers_do_not_keep_its_lock(tmp_path):
    """The workers of a loader are forked and outlive a killed run for seconds."""

    def hold_with_worker(folder):
        lock = FolderLock.acquire(folder)
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
        (tmp_path / "worker").write_text(str(worker))
        return lock

    (tmp_path / "run").mkdir()
    child = holding(tmp_path / "run", hold_with_worker)
    child.kill()
    worker = int((tmp_path / "worker").read_text())
    try:
        os.kill(worker, 0)  # it lives
        FolderLock.acquire(tmp_path / "run").release()
    finally:
        os.kill(worker, 9)


@pytest.mark.parametrize("failure", [None, InputError("x"), ValueError("x"), KeyboardInterrupt()])
def test_the_lock_goes_however_the_run_ends(tmp_path, failure):
    run = tmp_path / "run"
    try:
        with RunFolder.create(run) as place:
            write_json(place.path / "model.safetensors", {})
            if failure is not None:
                raise failure
    except BaseException as error:
        if error is not failure:
            raise
    assert not (run / LOCK).exists() and (run / "model.safetensors").exists()
    FolderLock.acquire(run).release()


def test_a_lock_that_is_removed_between_opening_and_locking_it_is_not_taken(tmp_path, monkeypatch):
    """Whoever opened the old file must end up with the lock of the new one, or two would have the folder."""
    holder, real = FolderLock.acquire(tmp_path), fcntl.flock

    def released_just_before(handle, how):
        holder.release()
        return real(handle, how)

    monkeypatch.setattr("fcntl.flock", released_just_before)
    lock = FolderLock.acquire(tmp_path)
    assert os.path.samestat(os.fstat(lock.handle), (tmp_path / LOCK).stat())
    with pytest.raises(InputError, match="in use"):
        FolderLock.acquire(tmp_path)
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_of_many_processes_one_at_a_time_has_the_folder(tmp_path):
    (tmp_path / "counter").write_text("0")

    def adds():
        for _ in range(40):
            lock = acquired(tmp_path)
            number = int((tmp_path / "counter").read_text())
            time.sleep(0.0002)
            (tmp_path / "counter").write_text(str(number + 1))
            lock.release()

    children = [Child(adds) for _ in range(4)]
    assert [one.ended() for one in children] == [0] * 4
    assert (tmp_path / "counter").read_text() == "160"
    assert [one.name for one in tmp_path.iterdir()] == ["counter"]


def acquired(folder):
    """Acquire, however long it takes."""
    while True:
        try:
            return FolderLock.acquire(folder)
        except InputError:
            continue


def test_damaged_words_about_the_holder_and_a_second_release(tmp_path):
    lock = FolderLock.acquire(tmp_path)
    (tmp_path / LOCK).write_text("{half")
    with pytest.raises(InputError, match="in use by another process"):
        FolderLock.acquire(tmp_path)
    lock.release()
    other = FolderLock.acquire(tmp_path)
    lock.release()
    with pytest.raises(InputError, match=f"process {os.getpid()}"):
        FolderLock.acquire(tmp_path)
    other.release()


def test_a_file_system_without_locks_is_said_so(tmp_path, monkeypatch, capsys):
    def none(*_given):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    FolderLock.acquire(tmp_path).release()
    assert "cannot be locked (No locks available)" in capsys.readouterr().err


def test_a_forked_child_cannot_free_the_lock(tmp_path):
    lock = FolderLock.acquire(tmp_path)
    assert Child(lambda: lock.release()).ended() == 0
    with pytest.raises(InputError, match=f"process {os.getpid()}"):
        FolderLock.acquire(tmp_path)
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_locks_place_is_not_written_through(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(precious)
    with pytest.raises(OSError, match="symbolic link"):
        FolderLock.acquire(tmp_path / "run")
    assert precious.read_text() == "mine"


def test_the_lock_of_a_version_that_wrote_no_blank_is_understood(tmp_path):
    lock = FolderLock.acquire(tmp_path)
    (tmp_path / LOCK).write_text((tmp_path / LOCK).read_text().lstrip())
    with pytest.raises(InputError, match=f"process {os.getpid()}"):
        FolderLock.acquire(tmp_path)
    lock.release()

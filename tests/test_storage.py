"""Run folders at the worst moments: killed, full, not writable, changed, and what is refused then."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from processes import killed_at
from test_cli import weights
from torchdoctor.case.settings import Settings
from torchdoctor.diagnosis.robustness import RobustnessSettings
from torchdoctor.files.reading import read_json
from torchdoctor.files.writing import write_bytes, write_json
from torchdoctor.runs.folder import RunFolder, open_run
from torchdoctor.types import InputError, ModelDoctorError
from torchdoctor.verbs.diagnose import run_diagnose
from torchdoctor.verbs.robustness import run_robustness

KILLED = -signal.SIGKILL
OF_THE_PLACE = ("config.yaml", "manifest.json")  # they hold the path of the run


def tree(folder):
    """Return the content of every file."""
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def test_a_write_that_is_killed_leaves_the_old_or_the_new(tmp_path):
    file = tmp_path / "state.json"
    for place, wanted in (("before/state.json", b"old"), ("after/state.json", b"new")):
        file.write_bytes(b"old")
        assert killed_at(place, lambda: write_bytes(file, b"new")) == KILLED
        assert file.read_bytes() == wanted
    assert killed_at("before/other.json", lambda: write_bytes(file, b"last")) == 0
    assert file.read_bytes() == b"last"
    assert len(list(tmp_path.glob(".state.json.*.part"))) == 1  # of the kill before the replacement


def test_the_nth_place_of_any_name_can_be_meant(tmp_path):
    def writes():
        for name in "abc":
            write_bytes(tmp_path / name, b"x")

    for number, there in enumerate([set(), {"a"}, {"a"}, {"a", "b"}, {"a", "b"}, {"a", "b", "c"}], 1):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        assert killed_at(f"*#{number}", writes) == KILLED
        assert {one for one in tree(tmp_path) if not one.endswith(".part")} == there
    assert killed_at("*#7", writes) == 0
    assert killed_at("before/b#2", writes) == 0


def test_names_that_are_no_text_are_written_and_read_back(tmp_path):
    names = {"names": ["caf\udce9.png", "caf\u00e9.png"], "\udce9": 1}
    write_json(tmp_path / "a.json", names)
    assert read_json(tmp_path / "a.json") == names and b"\\udce9" in (tmp_path / "a.json").read_bytes()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "fdopen"])
def test_what_cannot_be_written_leaves_the_old_and_nothing_else(tmp_path, monkeypatch, code, call):
    file = tmp_path / "model.safetensors"
    write_bytes(file, b"old")

    def fails(*_given):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(os, call, fails)
        with pytest.raises(ModelDoctorError) as raised:
            write_bytes(file, b"new")
    assert raised.value.exit_code == 1
    for part in (str(file), os.strerror(code), "what was written before is whole", "--resume"):
        assert part in str(raised.value)
    assert tree(tmp_path) == {"model.safetensors": b"old"}


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 128 KiB, where this machine lets us make one."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(place)], capture_output=True
    )
    if made.returncode:
        pytest.skip("only root can mount a disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_keeps_the_old_state_and_the_lock_goes(tiny_disk):
    path = tiny_disk / "run"
    with pytest.raises(ModelDoctorError, match="No space left on device"), RunFolder.create(path) as run:
        write_bytes(run.path / "state", b"a" * 50_000)
        write_bytes(run.path / "state", b"b" * 100_000)
    assert tree(path) == {"state": b"a" * 50_000}
    with pytest.raises(OSError), (tiny_disk / "filler").open("wb") as filler:
        while True:
            filler.write(b"x")
    with pytest.raises(InputError, match=r"cannot be written \(No space left"):
        RunFolder.resume(path, {})
    assert set(tree(path)) <= {"state", ".lock"} and (path / "state").read_bytes() == b"a" * 50_000


def test_a_disk_that_may_not_be_written_is_refused_at_the_start(tiny_disk):
    unfinished = tiny_disk / "unfinished"
    unfinished.mkdir()
    write_json(unfinished / "data.json", {"a": 1})
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    for begin in (
        lambda: RunFolder.create(tiny_disk / "new"),
        lambda: RunFolder.resume(tiny_disk / "new", {}),
        lambda: RunFolder.resume(unfinished, {"data.json": {"a": 1}}),
    ):
        with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\)"):
            begin()


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    file = tmp_path / "taken"
    file.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        RunFolder.create(file)
    with pytest.raises(InputError, match="is no folder"):
        RunFolder.resume(file, {})
    for begin in (RunFolder.create, lambda path: RunFolder.resume(path, {})):
        with pytest.raises(InputError, match="cannot be written"):
            begin(file / "below")
    assert tree(tmp_path) == {"taken": b"mine"}


def test_a_run_killed_among_its_first_files_can_be_resumed(tmp_path):
    wanted = {"config.yaml": {"seed": 1}, "inputs.json": {"sum": "x"}}

    def begins():
        with RunFolder.create(tmp_path / "run") as run:
            for name, record in wanted.items():
                write_json(run.path / name, record)
            write_json(run.path / "environment.json", {})

    for number in range(1, 7):
        assert killed_at(f"*#{number}", begins) == KILLED
        with RunFolder.resume(tmp_path / "run", wanted) as run:
            assert not list(run.path.glob("*.part"))
            begun = set(tree(run.path))
            for name, record in wanted.items():
                write_json(run.path / name, record)
        assert begun <= {".lock", *wanted, "environment.json"}
        listed = json.loads((tmp_path / "run" / "manifest.json").read_text())["files"]
        assert set(listed) == set(tree(tmp_path / "run")) - {"manifest.json"} and ".lock" not in listed
        shutil.rmtree(tmp_path / "run")


def test_resume_names_what_differs_by_its_place_in_the_nest(tmp_path):
    was = {"data": {"train": {"masks_sha256": "aa", "images": 3}}, "weights": None, "out": "here"}
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "inputs.json", was)
    before = tree(tmp_path)
    now = {**was, "data": {"train": {"masks_sha256": "bb", "images": 3}}}
    with pytest.raises(InputError, match=r"otherwise: data\.train\.masks_sha256 was 'aa' and is 'bb'$"):
        RunFolder.resume(tmp_path / "run", {"inputs.json": now})
    assert tree(tmp_path) == before
    RunFolder.resume(tmp_path / "run", {"inputs.json": {**was, "out": "./here"}}).lock.release()
    (tmp_path / "run" / "inputs.json").write_bytes(b"\xff{")
    with pytest.raises(InputError, match="cannot be read"):
        RunFolder.resume(tmp_path / "run", {"inputs.json": was})


def test_a_run_that_was_finished_meanwhile_is_not_gone_on_with(tmp_path):
    with RunFolder.create(tmp_path / "run") as run:
        write_json(run.path / "data.json", {})
    before = tree(tmp_path)
    with pytest.raises(InputError, match="finished by another process"):
        RunFolder.resume(tmp_path / "run", {"data.json": {}})
    assert tree(tmp_path) == before


def test_a_typing_error_does_not_cost_a_finished_run(trained, photos, tmp_path, blank_figures):
    out = tmp_path / "d"
    settings = Settings(weights=str(weights(trained)), data=f"folder:{photos}", draws=0, confidence=0.6)
    run_diagnose(Settings(**{**vars(settings), "out": str(out)}))
    before = tree(out)
    with pytest.raises(InputError, match="'bogus' is not in this"):
        run_robustness(Settings(), str(out), RobustnessSettings(layer="bogus"))
    assert tree(out) == before and open_run(out)


def test_changed_data_masks_and_weights_are_refused_with_the_difference(
    trained, photos, tmp_path, blank_figures
):
    root, home = tmp_path / "photos", tmp_path / "base"
    shutil.copytree(photos, root)
    shutil.copytree(trained, home)
    Image.new("L", (24, 24), 255).save(root / "train/blue/0.mask.png")
    out = tmp_path / "d"
    settings = Settings(
        weights=str(weights(home)), data=f"folder:{root}", draws=0, confidence=0.6, out=str(out)
    )
    run_diagnose(settings)
    (out / "manifest.json").unlink()
    before = tree(out)

    def refused(pattern):
        with pytest.raises(InputError, match=pattern):
            run_diagnose(settings, resume=True)
        assert tree(out) == before

    kept = (root / "train/blue/0.mask.png").read_bytes()
    Image.new("L", (24, 24), 254).save(root / "train/blue/0.mask.png")
    refused(r"inputs\.json' was made otherwise: data\.\w+\.masks_sha256 was '\w+' and is '\w+'$")
    (root / "train/blue/0.mask.png").write_bytes(kept)
    shutil.copy(root / "test/blue/1.png", root / "test/blue/0.png")
    refused(r"otherwise: data\.test\.images_sha256 was")
    shutil.copy(photos / "test/blue/0.png", root / "test/blue/0.png")
    os.utime(root / "test/blue/0.png", (0, 0))  # a copy of the data is the same data
    state = load_file(weights(home))
    name = next(one for one in state if state[one].is_floating_point())
    state[name].view(-1)[0] = torch.nextafter(state[name].view(-1)[0], torch.tensor(9.0))
    save_file(state, weights(home))
    refused(r"otherwise: weights\.model_sha256 was")
    shutil.copy(weights(trained), weights(home))
    assert run_diagnose(settings, resume=True).exit_code == 0


@pytest.mark.slow
def test_a_diagnosis_killed_at_any_write_is_resumed_to_the_same_bits(trained, photos, tmp_path):
    common = {"weights": str(weights(trained)), "data": f"folder:{photos}", "draws": 1, "confidence": 0.6}
    whole = tmp_path / "whole"
    run_diagnose(Settings(**common, out=str(whole)))
    wanted = {name: one for name, one in tree(whole).items() if name not in OF_THE_PLACE}
    cut = tmp_path / "cut"

    def runs():
        run_diagnose(Settings(**common, out=str(cut)))

    for place in ("*.safetensors#3", "after/causes.json"):
        assert killed_at(place, runs) == KILLED
        assert run_diagnose(Settings(**common, out=str(cut)), resume=True).exit_code == 0
        assert open_run(cut)
        assert {name: one for name, one in tree(cut).items() if name not in OF_THE_PLACE} == wanted
        shutil.rmtree(cut)

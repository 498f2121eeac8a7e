"""A treatment that is killed, stopped or damaged at any point ends bit for bit as one that never was."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchdoctor
from processes import Child, killed_at, wait_for
from torchdoctor.case.settings import Settings
from torchdoctor.runs.folder import open_run
from torchdoctor.types import InputError, ModelDoctorError
from torchdoctor.verbs.checkup import run_checkup
from torchdoctor.verbs.train import run_train
from torchdoctor.verbs.treat import run_treat

SOURCE = Path(torchdoctor.__file__).parents[1]
KILLED = -signal.SIGKILL
QUICK = {
    "batch_size": 8,
    "epochs": 1,
    "seeds": 2,
    "draws": 1,
    "confidence": 0.3,
    "arms": ("control", "treated", "dfr"),
}


def settings(trained, photos, out, **more):
    return Settings(
        weights=str(Path(trained) / "model.safetensors"),
        data=f"folder:{photos}",
        out=str(out),
        **{**QUICK, **more},
    )


def results(folder):
    """Return every file of a run that does not speak of times or places, by its content."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if not file.is_file() or name in ("config.yaml", "environment.json", "manifest.json"):
            continue
        content = file.read_bytes()
        if file.name == "history.json":
            content = b"\n".join(line for line in content.splitlines() if b"seconds" not in line)
        found[name] = content
    return found


@pytest.fixture(scope="module")
def whole(trained, photos, tmp_path_factory):
    """A treatment that was never interrupted: its results, and how to run the same elsewhere."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_treat(settings(trained, photos, folder))
    return results(
        folder
    ), lambda out: lambda resume=False: run_treat(settings(trained, photos, out), resume=resume)


PLACES = ["treated/seed0/step2"]
MORE_PLACES = [
    "after/diagnosis.json", "after/step2.safetensors", "after/manifest.json",
    "before/config.yaml", "control/seed0/step1", "before/step2.safetensors", "before/step2.sha256",
    "treated/seed0/step3", "before/model.safetensors#3",
    "before/model.safetensors", "after/model.safetensors#2", "treated/seed1/step2",
    "before/prescription.json", "before/manifest.json",
]  # fmt: skip


@pytest.mark.parametrize(
    "place", [*PLACES, *(pytest.param(one, marks=pytest.mark.slow) for one in MORE_PLACES)]
)
def test_a_treatment_killed_at_a_kill_point_ends_the_same(whole, tmp_path, place, monkeypatch):
    monkeypatch.setenv("TORCHDOCTOR_CHECKPOINT_STEPS", "1")
    wanted, at = whole
    run = at(tmp_path / "run")
    assert killed_at(place, run) == KILLED
    assert run(resume=True).exit_code == 0
    assert results(open_run(tmp_path / "run")) == wanted


@pytest.mark.slow
def test_three_random_kills_in_a_row_end_the_same(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHDOCTOR_CHECKPOINT_STEPS", "2")
    wanted, at = whole
    run, chance = at(tmp_path / "run"), random.Random(7)
    for _ in range(3):
        assert killed_at(f"*#{chance.randint(5, 25)}", lambda: run(resume=True).exit_code) == KILLED
    assert run(resume=True).exit_code == 0
    assert results(open_run(tmp_path / "run")) == wanted


def test_a_finished_run_is_only_read(whole, tmp_path):
    _, at = whole
    run = at(tmp_path / "run")
    first = run()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    again = run(resume=True)
    assert again.exit_code == first.exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")} == before
    for one, other in zip(first.treatment.arms, again.treatment.arms, strict=True):
        assert (one.name, one.seed, one.history) == (other.name, other.seed, other.history)
        assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)


@pytest.mark.slow
def test_ctrl_c_saves_and_stops_and_the_run_goes_on(whole, tmp_path):
    wanted, at = whole
    folder = tmp_path / "run"
    run = at(folder)

    def stopped():
        try:
            run()
        except ModelDoctorError as error:
            return error.exit_code

    child = Child(stopped)
    wait_for(lambda: (folder / "treatment").is_dir())
    os.kill(child.pid, signal.SIGINT)
    assert child.ended(60) == 130
    assert not (folder / "manifest.json").exists() and not list(folder.rglob("*.part"))
    run(resume=True)
    assert results(open_run(folder)) == wanted


@pytest.mark.slow
def test_a_damaged_arm_is_trained_again_and_said_so(trained, photos, whole, tmp_path):
    wanted, at = whole
    folder = tmp_path / "run"
    assert killed_at("before/prescription.json", at(folder)) == KILLED
    weights = folder / "treatment" / "treated" / "seed0" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    said = []
    run_treat(settings(trained, photos, folder), resume=True, say=said.append)
    (again,) = [one for one in said if not one.startswith("learning rate")]
    assert "treated/seed0/model.safetensors" in again and "trained again" in again
    assert results(open_run(folder)) == wanted


def test_other_settings_are_refused_with_the_difference(trained, photos, whole, tmp_path):
    _, at = whole
    folder = tmp_path / "run"
    assert killed_at("treated/seed0/step1", at(folder)) == KILLED
    with pytest.raises(InputError, match=r"config.yaml' was made otherwise: .*epochs was 1 and is 2"):
        run_treat(settings(trained, photos, folder, epochs=2), resume=True)
    assert (folder / "treatment").is_dir()


def test_resume_needs_a_folder():
    with pytest.raises(InputError, match="--resume needs --out RUN"):
        run_treat(Settings(), resume=True)


def test_a_training_from_scratch_goes_on_too(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHDOCTOR_CHECKPOINT_STEPS", "1")
    common = {"model": "small_resnet", "data": f"folder:{photos}", "epochs": 2, "batch_size": 8}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_train(Settings(**common, out=str(whole)))
    assert killed_at("train/step4", lambda: run_train(Settings(**common, out=str(cut)))) == KILLED
    run_train(Settings(**common, out=str(cut)), resume=True)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_checkup_goes_on_and_uses_the_test_split_once(trained, photos, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_checkup(settings(trained, photos, whole, seeds=1))
    action = lambda resume=False: run_checkup(settings(trained, photos, cut, seeds=1), resume=resume)  # noqa: E731
    assert killed_at("after/compare.json", action) == KILLED
    before = (cut / "compare.json").read_bytes()
    action(resume=True)
    assert (cut / "compare.json").read_bytes() == before
    weights = "treatment/treated/seed0/model.safetensors"
    assert (cut / weights).read_bytes() == (whole / weights).read_bytes()
    shutil.rmtree(cut)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["after/learning_rate.json", "after/trials.json", "after/causes.json"])
def test_a_choice_goes_on_where_it_was_killed(place, trained, photos, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    asked = {"seeds": 2, "epochs": 8, "arms": "auto"}
    run_checkup(settings(trained, photos, whole, **asked))
    trials = json.loads((whole / "trials.json").read_text())
    assert trials["rungs"] and len(trials["candidates"]) > 1
    action = lambda resume=False: run_checkup(settings(trained, photos, cut, **asked), resume=resume)  # noqa: E731
    assert killed_at(place, action) == KILLED
    action(resume=True)
    assert json.loads((cut / "trials.json").read_text()) == trials
    for file in sorted((whole / "treatment").rglob("model.safetensors")):
        assert (cut / file.relative_to(whole)).read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_other_processes_come_to_the_same_bits(trained, photos, tmp_path):
    """Sums in the order of a set would differ from process to process: strings hash differently in each."""
    found = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        command = [
            sys.executable, "-m", "torchdoctor", "treat", "--weights", trained / "model.safetensors",
            "--data", f"folder:{photos}", "--out", out, "--epochs", "1", "--seeds", "1", "--batch-size", "8",
            "--confidence", "0.3",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(SOURCE)}
        subprocess.run(list(map(str, command)), check=True, env=environment, capture_output=True)
        found.append(results(out))
    assert found[0] == found[1]

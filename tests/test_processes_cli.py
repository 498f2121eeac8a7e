"""Several launched processes write one run: numbers, output and exit codes are those of a single process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pytest
import torch

from launching import ended, environment, start, together
from pictures import write_split
from processes import wait_for
from torchdoctor.data.load import load_data
from torchdoctor.files.reading import sha256_of
from torchdoctor.files.writing import write_weights
from torchdoctor.models.loading import load_model
from torchdoctor.runs.folder import open_run

pytest.importorskip("accelerate")
MODULE = ("-m", "torchdoctor")
EVERY_STEP = {"TORCHDOCTOR_CHECKPOINT_STEPS": "1"}
TIMED = ("history.json",)  # holds seconds


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with untrained weights for `scenes`."""
    folder = tmp_path_factory.mktemp("together")
    torch.manual_seed(0)
    names = load_data("scenes:31", limit=20).classes
    write_weights(folder / "raw.safetensors", load_model("small_resnet", names).state_dict())
    return folder


def words(verb, out, *more):
    return (
        *MODULE, verb, "--model", "small_resnet", "--weights", "raw.safetensors", "--data", "scenes:31",
        "--limit", 20, "--confidence", 0, "--batch-size", 8, "--layers", "last:1", "--out", out, "--json",
        *more,
    )  # fmt: skip


def nameless(text):
    """Return what a run says without the name of its folder."""
    return re.sub(r"\b(one|two|killed|stopped|trained)\b", "RUN", text)


def sums(run, *left_out):
    """Return the sha256 of the files of a run that hold no path, time or machine."""
    left_out = {"config.yaml", "environment.json", "manifest.json", "next_steps.json", *left_out}
    return {
        file.relative_to(run).as_posix(): sha256_of(file)
        for file in sorted(run.rglob("*"))
        if file.is_file() and file.name not in left_out
    }


@pytest.fixture(scope="module")
def alone(place):
    """A diagnosis by a single process."""
    [(code, out, err)] = together(1, words("diagnose", "one"), cwd=place)
    assert code in (0, 4), err
    return code, out


@pytest.mark.slow
def test_two_processes_write_the_run_of_one(place, alone):
    first, second = together(2, words("diagnose", "two"), cwd=place)
    assert (first[0], second) == (alone[0], (0, "", "")), first[2] + second[2]
    assert json.loads(nameless(first[1])) == json.loads(nameless(alone[1]))  # the next steps as well
    assert sums(open_run(place / "two")) == sums(open_run(place / "one"))
    assert not (place / "two" / "diagnosis" / "parts").exists()


@pytest.mark.slow
def test_a_killed_process_costs_only_its_share(place, alone):
    dies = {1: {"TORCHDOCTOR_KILL_AT": "after/*.safetensors#2"}}
    first, second = together(2, words("diagnose", "killed"), cwd=place, of_rank=dies)
    assert second[0] == -9
    assert first[0] == 1 and "another of the processes has ended" in first[2] and "--resume" in first[2]
    parts = list((place / "killed" / "diagnosis" / "parts").glob("*.safetensors"))
    assert len(parts) > 2 and not (place / "killed" / "manifest.json").exists()
    times = {part.name: part.stat().st_mtime_ns for part in parts}
    again = together(2, words("diagnose", "killed", "--resume"), cwd=place)
    assert [code for code, _, _ in again] == [alone[0], 0], again[0][2] + again[1][2]
    assert times and sums(open_run(place / "killed")) == sums(open_run(place / "one"))


@pytest.mark.slow
def test_what_cannot_be_used_is_said_once(place, alone):
    first, second = together(2, words("diagnose", "one"), cwd=place)  # the folder is not empty
    assert first[0] == second[0] == 2
    assert first[2].count("'one' exists already") == 1
    assert second[1] == ""  # a launcher ends it before it says on stderr why it failed as well
    first, second = together(2, (*MODULE, "config", "diagnose"), cwd=place)
    assert (first[0], second) == (0, (0, "", "")) and "draws" in first[1]


@pytest.mark.slow
def test_all_stop_at_the_same_step_or_are_killed_and_go_on(place):
    quick = (
        "train",
        "--model",
        "small_resnet",
        "--data",
        "scenes:31",
        "--limit",
        20,
        "--learning-rate",
        0.01,
    )
    command = (*MODULE, *quick, "--epochs", 2, "--json", "--out")
    at_once = together(2, (*command, "trained"), cwd=place)
    assert [code for code, _, _ in at_once] == [0, 0], at_once[0][2]
    running = start(2, (*command, "stopped"), cwd=place, of_rank=dict.fromkeys((0, 1), EVERY_STEP))
    wait_for(lambda: list((place / "stopped" / "checkpoints").glob("*.sha256")), within=600)
    running[1].send_signal(signal.SIGINT)  # one of them: the other learns of it
    first, second = ended(running)
    assert (first[0], second) == (130, (130, "", "")), first[2] + second[2]
    assert "was stopped after step" in first[2] and "--resume" in first[2]
    again = together(2, (*command, "stopped", "--resume"), cwd=place)
    assert [code for code, _, _ in again] == [0, 0], again[0][2] + again[1][2]
    assert sums(open_run(place / "stopped"), *TIMED) == sums(open_run(place / "trained"), *TIMED)
    dies = {
        0: {"TORCHDOCTOR_CHECKPOINT_STEPS": "2"},
        1: {"TORCHDOCTOR_CHECKPOINT_STEPS": "2", "TORCHDOCTOR_KILL_AT": "*/step5"},
    }
    first, second = together(2, (*command, "killed_training"), cwd=place, of_rank=dies)
    assert (first[0], second[0]) == (1, -9), first[2] + second[2]
    assert "another of the processes has ended" in first[2]
    assert {file.name for file in (place / "killed_training" / "checkpoints").rglob("*.sha256")} == {
        "step2.sha256", "step4.sha256",
    }  # fmt: skip
    again = together(2, (*command, "killed_training", "--resume"), cwd=place)
    assert [code for code, _, _ in again] == [0, 0], again[0][2] + again[1][2]
    assert sums(open_run(place / "killed_training"), *TIMED) == sums(open_run(place / "trained"), *TIMED)


@pytest.mark.slow
def test_the_noise_curves_are_those_of_one_process(place):
    for split in ("train", "validation", "test"):
        write_split(place / "photographs" / split, {"cat": 4, "dog": 4})
    torch.manual_seed(0)
    model = load_model("small_resnet", ["cat", "dog"], image_size=32).eval()
    (batch,) = load_data(f"folder:{place / 'photographs'}").validation
    with torch.no_grad():
        model.fc.bias -= model(batch.images).mean(0)  # undecided, so that an attack decides
    write_weights(place / "two.safetensors", model.state_dict())
    command = (
        *MODULE, "robustness", "--model", "small_resnet", "--weights", "two.safetensors", "--data",
        "folder:photographs", "--repeats", 3, "--ranges", "0,1", "--epsilon", 200, "--json", "--out",
    )  # fmt: skip
    [(code, _, err)] = together(1, (*command, "curves_one"), cwd=place)
    assert code == 0, err
    first, second = together(2, (*command, "curves_two"), cwd=place)
    assert (first[0], second) == (0, (0, "", "")), first[2] + second[2]
    assert sums(open_run(place / "curves_two")) == sums(open_run(place / "curves_one"))


def launched(count, command, folder):
    """Run a command with torchrun."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count)
    process = subprocess.run(
        [*map(str, (*launcher, *command))], cwd=folder, env=environment(), capture_output=True,
        text=True, timeout=900, check=False,
    )  # fmt: skip
    return process.returncode, process.stdout, process.stderr


def numbers_in(record, path=""):
    """Return all numbers of a nested record by their place, but for those of single images."""
    if isinstance(record, dict):
        kept = {
            name: value for name, value in record.items() if name not in ("seconds", "repaired", "broken")
        }
        parts = [numbers_in(value, f"{path}/{name}") for name, value in kept.items()]
        return {place: number for part in parts for place, number in part.items()}
    if isinstance(record, bool) or not isinstance(record, int | float):
        return {}
    return {path: record}


def comparison(run):
    """Return the accuracies and gains of a run's comparison, in percent, by their place."""
    record = json.loads((run / "compare.json").read_text())
    numbers = numbers_in(record)
    return {place: number for place, number in numbers.items() if place.endswith(("accuracy", "/mean"))}


@pytest.mark.slow
def test_a_launched_checkup_compares_as_one_process_does(place):
    quick = ("--epochs", 1, "--seeds", 1, "--arms", "control,treated", "--draws", 1)
    [(code, out, err)] = together(1, words("checkup", "whole", *quick), cwd=place)
    assert code in (0, 3, 4), err
    launcher_code, printed, said = launched(2, words("checkup", "launched", *quick), place)
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    assert len(lines) == 1, said
    assert json.loads(lines[0])["verdict"] == json.loads(out)["verdict"]
    assert launcher_code == (0 if code == 0 else 1)  # a launcher has no exit codes but these
    shared, whole = (comparison(open_run(place / name)) for name in ("launched", "whole"))
    # Sums over two processes are rounded differently, and an image at the border between two categories may
    # change sides: at most eight of the 960.
    assert shared.keys() == whole.keys() and len(whole) >= 4
    assert max(abs(shared[name] - whole[name]) for name in whole) <= 100 * 8 / 960 + 1e-9, (shared, whole)

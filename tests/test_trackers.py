"""What other tools read of a treatment."""

from __future__ import annotations

import csv
import json
import math
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from torchdoctor.runs import history as trackers
from torchdoctor.runs.folder import open_run
from torchdoctor.runs.history import EVENTS, events_of, write_history, write_trackers
from torchdoctor.treatment.result import Arm, Treatment

FIRST = ({"epoch": 0.0, "loss": 0.1 + 0.2}, {"epoch": 1.0, "loss": 1e-17})
SECOND = ({"epoch": 0.0, "loss": 2.0, "channel": 0.5, "validation_accuracy": 50.0},)
TREATMENT = Treatment((Arm("control", 0, {}, FIRST, 4, 1.0), Arm("a,b", 1, {}, SECOND, 2, 1.0)), ())


def read(folder):
    """Return what TensorBoard reads: by term the values and their steps."""
    events = EventAccumulator(str(folder)).Reload()
    return {
        name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]
    }


def as_read(history):
    """Return a history as TensorBoard should hold it: by term, in float32."""
    names = dict.fromkeys(name for epoch in history for name in epoch if name != "epoch")
    return {
        name: [(int(epoch["epoch"]), float(np.float32(epoch[name]))) for epoch in history if name in epoch]
        for name in names
    }


def test_the_history_is_a_table_with_blanks_and_exact_numbers(tmp_path):
    write_history(tmp_path, TREATMENT)
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert list(rows[0]) == ["arm", "seed", "epoch", "loss", "channel", "validation_accuracy"]
    assert [row["epoch"] for row in rows] == ["0", "1", "0"] and rows[2]["arm"] == "a,b"
    assert float(rows[0]["loss"]) == 0.1 + 0.2 and float(rows[1]["loss"]) == 1e-17
    assert rows[0]["channel"] == "" and rows[2]["channel"] == "0.5"


def test_tensorboard_reads_every_term_of_every_epoch(tmp_path):
    write_trackers(tmp_path, TREATMENT, tensorboard=True)
    places = {arm.name: tmp_path / "tensorboard" / f"{arm.name}-seed{arm.seed}" for arm in TREATMENT.arms}
    assert [one.name for one in places["control"].iterdir()] == [EVENTS] and "tfevents" in EVENTS
    assert read(places["control"]) == as_read(FIRST) and read(places["a,b"]) == as_read(SECOND)


def test_terms_that_are_not_finite_are_kept_and_the_same_history_gives_the_same_bytes(tmp_path):
    arm = Arm("treated", 0, {}, ({"epoch": 0.0, "loss": math.nan}, {"epoch": 1.0, "loss": math.inf}), 2, 9.0)
    (tmp_path / EVENTS).write_bytes(events_of(arm))
    (first, last) = read(tmp_path)["loss"]
    assert math.isnan(first[1]) and last == (1, math.inf)
    assert events_of(arm) == (tmp_path / EVENTS).read_bytes()


def test_without_the_flag_there_are_no_event_files(tmp_path):
    write_trackers(tmp_path, TREATMENT, tensorboard=False)
    assert [one.name for one in tmp_path.iterdir()] == ["history.csv"]


def test_train_and_treat_write_what_their_histories_hold(command, photos, tmp_path):
    common = ("--data", f"folder:{photos}", "--batch-size", 16, "--tensorboard")
    code, _, err = command("train", "--model", "small_resnet", *common, "--epochs", 2, "--out", "base")
    assert code == 0, err
    code, _, err = command(
        "treat", "--weights", "base/model.safetensors", *common, "--epochs", 1, "--seeds", 1, "--draws", 1,
        "--confidence", 0, "--out", "run",
    )  # fmt: skip
    assert code == 0, err
    base, run = open_run(tmp_path / "base"), open_run(tmp_path / "run")
    homes = {"train": base, **{arm: run / "treatment" / arm / "seed0" for arm in ("control", "treated")}}
    for arm, home in homes.items():
        history = json.loads((home / "history.json").read_text())["epochs"]
        place = (base if arm == "train" else run) / "tensorboard" / f"{arm}-seed0"
        assert read(place) == as_read(history) and "loss" in read(place)
    rows = list(csv.DictReader((base / "history.csv").open()))
    assert [(row["arm"], row["epoch"]) for row in rows] == [("train", "0"), ("train", "1")]
    assert f"tensorboard/treated-seed0/{EVENTS}" in json.loads((run / "manifest.json").read_text())["files"]


@pytest.mark.parametrize("verb", ["train", "treat", "checkup"])
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_missing_tensorboard_is_told_before_anything_is_computed(
    command, monkeypatch, verb, more, tmp_path
):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    code, out, err = command(verb, "--tensorboard", "--out", "run", "--data", "scenes", *more)
    assert (code, out) == (2, "") and "pip install 'torchdoctor[tensorboard]'" in err
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_may_ask_for_events_it_did_not_ask_for(command, photos, tmp_path):
    from processes import killed_at
    from torchdoctor.case.settings import Settings
    from torchdoctor.verbs.train import run_train

    settings = Settings(
        model="small_resnet", data=f"folder:{photos}", out=str(tmp_path / "run"), epochs=1, batch_size=16
    )
    assert killed_at("before/model.safetensors", lambda: run_train(settings).exit_code) == -9
    code, _, err = command(
        "train", "--model", "small_resnet", "--data", f"folder:{photos}", "--out", tmp_path / "run",
        "--epochs", 1, "--batch-size", 16, "--tensorboard", "--resume",
    )  # fmt: skip
    assert code == 0 and (open_run(tmp_path / "run") / "tensorboard" / "train-seed0" / EVENTS).is_file(), err


class Recorded:
    """Stands for the package trackio: notes what it is told."""

    def __init__(self):
        self.runs, self.config = [], {}

    def init(self, project, name):
        self.runs.append([(project, name)])
        return self

    def log(self, values, step):
        self.runs[-1].append((step, values))

    def finish(self):
        self.runs[-1].append("finished")


def test_a_tracker_gets_a_run_of_each_arm(monkeypatch, tmp_path):
    pytest.importorskip("accelerate")
    trackio = Recorded()
    trackio.config = type("Config", (), {"update": lambda self, values, allow_val_change: None})()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    write_trackers(tmp_path, TREATMENT, tensorboard=False, tracker="trackio")
    first, second = trackio.runs
    assert first == [
        ("torchdoctor", f"{tmp_path.name}/control-seed0"), (0, {"loss": 0.1 + 0.2}), (1, {"loss": 1e-17}),
        "finished",
    ]  # fmt: skip
    assert second[1] == (0, {"loss": 2.0, "channel": 0.5, "validation_accuracy": 50.0})
    assert (tmp_path / "history.csv").exists() and not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize(
    ("tracker", "said"),
    [("wandb", "pip install wandb"), ("tensorboard", "pip install 'torchdoctor[tensorboard]'")],
)
def test_a_missing_tracker_is_told_before_anything_is_computed(command, monkeypatch, tracker, said, tmp_path):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    code, out, err = command("train", "--tracker", tracker, "--out", "run", "--data", "scenes")
    assert (code, out) == (2, "") and f"--tracker {tracker} needs the package" in err and said in err
    assert not (tmp_path / "run").exists()

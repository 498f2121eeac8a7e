"""The command line: every refusal is one clear line with exit code 2 and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from torchdoctor.case.config import settings_from
from torchdoctor.data.load import load_data
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.files.reading import sha256_of
from torchdoctor.models.loading import load_model
from torchdoctor.runs.folder import RunFolder, open_run
from torchdoctor.treatment.remedies import REMEDIES
from torchdoctor.types import InputError
from torchdoctor.verbs.demo import demo_settings


def weights(trained):
    return trained / "model.safetensors"


QUICK = ("--epochs", 1, "--seeds", 2, "--batch-size", 16, "--draws", 1)


def test_train_leaves_weights_with_their_card(trained, photos):
    card = json.loads((trained / "model.json").read_text())
    assert card["classes"] == ["blue", "red"] and card["model"] == "small_resnet"
    assert card["preprocessing"]["image_size"] == 24
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["files"]["model.safetensors"] == sha256_of(weights(trained))
    assert (trained / "history.json").is_file() and not (trained / "checkpoints").exists()
    assert yaml.safe_load((trained / "config.yaml").read_text())["epochs"] == 6


def test_a_checkup_leaves_a_whole_run(command, trained, photos, tmp_path):
    code, out, err = command(
        "checkup",
        "--weights",
        weights(trained),
        "--data",
        f"folder:{photos}",
        "--out",
        "run",
        "--json",
        *QUICK,
    )
    found = json.loads(out)
    assert code == found["exit_code"] and code in (0, 3, 4), err
    cure = found["arm"]
    assert (
        cure in REMEDIES and cure in json.loads((tmp_path / "run" / "trials.json").read_text())["candidates"]
    )
    assert found["next_steps"][0]["cause"] == "all" and found["handed_back"]["arm"] == cure
    run = open_run(tmp_path / "run")
    for name in (
        "config.yaml",
        "environment.json",
        "compare.json",
        "causes.json",
        "report.html",
        "diagnosis/diagnosis.json",
    ):
        assert (run / name).is_file(), name
    saved = json.loads((run / "compare.json").read_text())
    assert len(saved["arms"][cure]["test"]["accuracy"]) == 2
    assert len(saved["arms"]["base"]["test"]["accuracy"]) == 1
    assert set(saved["against_control"]["test"][cure]["gain"]) >= {"mean", "low", "high", "p_value"}
    assert saved["against_control"]["test"][cure]["verdict"] == saved["verdict"]
    for arm in ("control", cure):
        for seed in (0, 1):
            state = load_file(run / "treatment" / arm / f"seed{seed}" / "model.safetensors")
            load_model("small_resnet", 2).load_state_dict(state)
    assert Diagnosis.load(run / "diagnosis").classes == ("blue", "red")
    assert not list(run.rglob("*.part"))
    again, _, err = command(
        "checkup", "--weights", weights(trained), "--data", f"folder:{photos}", "--out", "run", *QUICK
    )
    assert again == 2 and "'run' exists already" in err and open_run(run)


@pytest.mark.slow
def test_the_verbs_one_by_one_give_the_checkups_numbers(command, trained, photos, tmp_path):
    common = ("--weights", weights(trained), "--data", f"folder:{photos}")
    code, out, err = command(
        "diagnose", *common, "--out", "d", "--evidence", "gradient_x_activation", "--json", "--draws", 1
    )
    assert code == 0, err
    assert [len(layer["correlated_kernels"]) for layer in json.loads(out)["layers"]] == [2, 2, 2]
    code, out, err = command("treat", *common, "--diagnosis", "d", "--out", "t", *QUICK)
    assert code == 0, err
    assert "load_state_dict" in out and "Prescription" in out
    assert not (tmp_path / "t" / "compare.json").exists()
    code, _, err = command("compare", "t")
    assert code in (0, 3, 4), err
    assert command("compare", "t")[0] == 2
    assert command("report", "t")[0] == 0 and (tmp_path / "t" / "report.html").is_file()
    assert command("report", "t")[0] == 2
    assert command("report", "d", "--out", "d.html")[0] == 0 and (tmp_path / "d.html").is_file()
    command("checkup", *common, "--arms", "treated", "--out", "c", *QUICK)
    one, other = (
        json.loads((tmp_path / name / "compare.json").read_text())["against_control"] for name in ("t", "c")
    )
    assert one == other
    for arm in ("control", "treated"):
        place = Path("treatment") / arm / "seed1" / "model.safetensors"
        assert (tmp_path / "t" / place).read_bytes() == (tmp_path / "c" / place).read_bytes()


def test_predict_names_the_categories(command, trained, photos):
    code, out, _ = command("predict", photos / "test" / "red", "--weights", weights(trained), "--json")
    found = json.loads(out)
    assert code == 0 and len(found) == 8
    assert all(0 <= one["confidence"] <= 1 and one["category"] in ("blue", "red") for one in found)
    assert sum(one["category"] == "red" for one in found) >= 6
    assert json.loads(command("predict", photos / "test" / "red", "--weights", trained, "--json")[1]) == found
    code, _, err = command("predict", photos / "test" / "red", "--weights", photos)
    assert code == 2 and "is a folder without a model.safetensors: give the file" in err


def test_dry_run_writes_nothing(command, trained, photos, tmp_path):
    code, out, _ = command(
        "checkup", "--weights", weights(trained), "--data", f"folder:{photos}", "--dry-run", "--json"
    )
    plan = json.loads(out)
    assert code == 0 and plan["seconds"] > 0 and len(plan["layers"]) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_search_says_what_it_tries(command, trained, photos, tmp_path):
    code, out, err = command(
        "checkup", "--auto", "--budget", "60steps", "--epochs", 2, "--weights", weights(trained),
        "--data", f"folder:{photos}", "--dry-run", "--json",
    )  # fmt: skip
    plan = json.loads(out)
    assert code == 0, err
    assert "smoothing" in plan["search"]["candidates"] and len(plan["search"]["rungs"]) >= 1
    assert plan["search"]["scored by"] == "validation accuracy" and "seconds" not in plan["search"]
    assert list(plan["seconds_by_stage"]) == ["diagnose", "search", "control", "chosen", "compare"]
    assert plan["seconds_by_stage"]["search"] > 0 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--arms", "dfr", "--budget", "60steps"), "--budget '60steps' is used where the command chooses"),
        (("--constraints", "channel", "--select", "iid"), "--select 'iid' is used where the command chooses"),
        (("--arms", "dfr", "--labels", "l.csv"), "--labels 'l.csv' is used by the arm relabelled"),
        (("--arms", "relabelled"), "arm 'relabelled' needs labels from a person"),
        (("--epochs", 0), "--epochs 0: nothing would be treated"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(command, trained, photos, tmp_path, flags, message):
    given = ("--weights", weights(trained), "--data", f"folder:{photos}", "--out", "run")
    code, _, err = command("checkup", *given, *flags)
    assert code == 2 and message in err and list(tmp_path.iterdir()) == []


def test_config_files_come_between_defaults_and_flags(command, trained, photos, tmp_path):
    (tmp_path / "c.yaml").write_text(
        f"weights: {weights(trained)}\ndata: 'folder:{photos}'\nepochs: 3\nbatch-size: 8\n"
    )
    code, out, err = command("checkup", "--config", "c.yaml", "--epochs", 2, "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0, err
    assert plan["epochs"] == 2 and plan["steps_per_arm"] >= 2 * 40 // 8
    (tmp_path / "bad.yaml").write_text("epoch: 3\n")
    code, _, err = command("checkup", "--config", "bad.yaml")
    assert code == 2 and "'epoch' is no setting; did you mean epochs?" in err


def nine_logits():
    """A factory that cannot be told the number of categories, but takes the weights of two."""
    model = load_model("small_resnet", 2)
    model.register_forward_hook(lambda _module, _inputs, logits: logits[:, :1].repeat(1, 9))
    return model


def refusals(trained, photos):
    good = {"--weights": weights(trained), "--data": f"folder:{photos}"}
    return {
        "no weights": ({"--data": f"folder:{photos}", "--model": "small_resnet"}, "--weights is missing"),
        "no data": ({"--weights": weights(trained)}, "--data is missing"),
        "wrong weights path": ({**good, "--weights": "no/such.safetensors"}, "'no/such.safetensors'"),
        "wrong data path": ({**good, "--data": "folder:no/such"}, "no/such"),
        "wrong scheme": ({**good, "--data": "foldr:x"}, "foldr"),
        "unknown layer": ({**good, "--layers": "layer4.conv3"}, "did you mean layer4.conv"),
        "flat layer": ({**good, "--layers": "fc"}, "'fc' gives shape (1, 2); expected a 4-dimensional map"),
        "no masks": ({**good, "--constraints": "space"}, "'space' needs object masks"),
        "no such constraint": ({**good, "--constraints": "spice"}, "'spice' is unknown"),
        "class count": ({**good, "--data": "scenes"}, "were trained for 2 categories"),
        "unknown model": ({**good, "--model": "torchvision:resnet81"}, "did you mean resnet18"),
        "unknown split": ({**good, "--primary": "shifted"}, "shifted"),
        "no masks to swap by": ({**good, "--primary": "swapped"}, "'swapped' puts test images before"),
        "bad weight": ({**good, "--weight": "heavy"}, "--weight 'heavy'"),
        "bad evidence": ({**good, "--evidence": "grad"}, "--evidence 'grad'"),
        "no diagnosis": ({**good, "--diagnosis": "nowhere"}, "'nowhere'"),
        "no layer": ({**good, "--layers": ""}, "--layers '': expected at least one name"),
        "logits": ({**good, "--model": "test_cli:nine_logits"}, "gives 9 logits, and"),
        "two weights": ({**good, "--weight": "1,space=2"}, "--weight '1, space=2': expected one number"),
    }


@pytest.mark.parametrize("verb", ["checkup", "treat", "diagnose"])
def test_refusals_repeat_the_bad_value_and_leave_nothing(command, trained, photos, tmp_path, verb):
    for name, (flags, message) in refusals(trained, photos).items():
        if verb == "diagnose" and name in (
            "no masks",
            "no such constraint",
            "bad weight",
            "no diagnosis",
            "two weights",
        ):
            continue
        words = [word for pair in flags.items() for word in pair]
        code, out, err = command(verb, *words, "--out", "run")
        assert code == 2, (name, out, err)
        assert message in err and err.count("\n") == 1, (name, err)
        assert list(tmp_path.iterdir()) == [], name


def test_a_head_of_another_size_is_refused(command, photos, tmp_path):
    save_file(load_model("small_resnet", 5).state_dict(), tmp_path / "five.safetensors")
    code, _, err = command(
        "treat", "--weights", "five.safetensors", "--model", "small_resnet", "--data", f"folder:{photos}"
    )
    assert code == 2 and "fc.weight: (5, 128) in the file, (2, 128) in the model" in err


def test_a_model_that_cannot_take_the_images_is_refused(command, trained, photos, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(num_classes):\n"
        "    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)]\n"
        "    return nn.Sequential(nn.Conv2d(5, 4, 3), *head)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    code, _, err = command("train", "--model", "mine:net", "--data", f"folder:{photos}", "--out", "o")
    assert code == 2 and "--model 'mine:net' fails on an image of shape [3, 24, 24]" in err, err
    assert not (tmp_path / "o").exists()


def test_a_checkpoint_with_code_is_refused_and_not_run(command, photos, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"state_dict": Evil()}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        code, _, err = command(
            "treat", "--weights", name, "--model", "small_resnet", "--data", f"folder:{photos}"
        )
        assert code == 2 and name in err
    assert not (tmp_path / "ran").exists()


def test_damaged_weights_and_runs_are_named(command, trained, photos, tmp_path):
    whole = weights(trained).read_bytes()
    for size in (0, 7, 100, len(whole) // 2):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        code, _, err = command(
            "treat", "--weights", "cut.safetensors", "--model", "small_resnet", "--data", f"folder:{photos}"
        )
        assert code == 2 and "'cut.safetensors'" in err, size
    code, _, err = command("compare", tmp_path)
    assert code == 2 and "manifest.json" in err
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in ("manifest.json", "model.json"):
        (changed / file).write_bytes((trained / file).read_bytes())
    with pytest.raises(InputError, match="is missing or not what the run wrote"):
        open_run(changed)


@pytest.mark.slow
def test_a_barely_trained_network_gets_a_report_and_exit_code_4(command, tmp_path):
    data = load_data("scenes:31", limit=20)
    torch.manual_seed(0)
    save_file(load_model("small_resnet", data.classes).state_dict(), tmp_path / "raw.safetensors")
    code, out, err = command(
        "checkup", "--model", "small_resnet", "--weights", "raw.safetensors", "--data", "scenes:31",
        "--limit", 20, "--epochs", 1, "--seeds", 1, "--draws", 1, "--out", "run",
    )  # fmt: skip
    assert code == 4, err
    assert "not diagnosed: 0 of 100" in out
    assert "Inconclusive" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_a_demo_can_be_planned(command, tmp_path):
    code, out, err = command("demo", "--limit", 20, "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert plan["train"]["epochs"] == 14 and plan["checkup"]["epochs"] == 6
    assert plan["checkup"]["search"]["candidates"] == "the cures of the causes that are found"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_small_demo_runs_to_its_report(command, tmp_path):
    code, out, err = command("demo", "--limit", 20, "--epochs", 1, "--seeds", 1, "--out", "run")
    assert code in (0, 3, 4), err
    assert "Comparison" in out and "shifted *" in out and "load_state_dict" in out
    run = open_run(tmp_path / "run")
    assert (run / "report.html").is_file() and (run / "base" / "model.safetensors").is_file()
    arm = json.loads((run / "compare.json").read_text())["arm"]
    assert arm in REMEDIES and (run / "treatment" / arm / "seed0" / "model.safetensors").is_file()
    assert "What to do next:" in out and json.loads((run / "next_steps.json").read_text())["steps"]


def test_version_and_help(command):
    assert command("--version")[1].startswith("torchdoctor 0.")
    code, out, _ = command("checkup", "--help")
    assert code == 0 and "--masks-per-category" in out
    assert command("chekup")[0] == 2


def test_a_diagnosis_of_something_else_is_refused(command, trained, photos, tmp_path, blank_figures):
    common = ("--weights", weights(trained), "--data", f"folder:{photos}")
    assert command("diagnose", *common, "--out", "d", "--draws", 1)[0] == 0
    state = load_file(weights(trained))
    state["fc.bias"] += 1
    save_file(state, tmp_path / "other.safetensors")
    shutil.copy(weights(trained).with_suffix(".json"), tmp_path / "other.json")
    shutil.copytree(photos, tmp_path / "photos")
    for flags, message in (
        (("--weights", "other.safetensors", *common[2:]), "'d' was made of other weights"),
        ((*common[:2], "--data", "folder:photos"), "where its image numbers mean other images"),
        ((*common, "--theta", 0.5), "--theta 0.5 would need a new diagnosis"),
    ):
        code, _, err = command("treat", *flags, "--diagnosis", "d", "--out", "t")
        assert code == 2 and message in err, err
        assert not (tmp_path / "t").exists()
    assert command("treat", *common, "--diagnosis", "d", "--out", "t", "--dry-run")[0] == 0


@pytest.mark.slow
def test_reports_of_unfinished_ways_say_what_they_are(command, trained, photos, tmp_path):
    common = ("--weights", weights(trained), "--data", f"folder:{photos}")
    assert command("diagnose", *common, "--out", "a d", "--draws", 1)[0] == 0
    code, _, err = command("compare", "a d")
    assert code == 2 and "'a d' holds no treatment: give a run of treat or checkup" in err
    assert command("report", "a d")[0] == 0
    page = (tmp_path / "a d" / "report.html").read_text()
    assert "not yet treated" in page and "Nothing was trained" in page and "Load the" not in page
    assert "torchdoctor diagnose --config &#39;a d/config.yaml&#39;" in page
    assert command("treat", *common, "--out", "t", *QUICK)[0] == 0
    code, out, _ = command("report", "t")
    page = (tmp_path / "t" / "report.html").read_text()
    assert code == 0 and "load_state_dict" in out
    assert "Treated, not yet compared" in page and "Load the treated network" in page
    assert "torchdoctor treat --config" in page and "Nothing was trained" not in page


def test_a_refusal_after_training_keeps_what_was_trained(tmp_path):
    for trained_first in (False, True):
        path = tmp_path / str(trained_first)
        with pytest.raises(InputError), RunFolder.create(path) as run:
            (run.path / "config.yaml").write_text("x")
            if trained_first:
                (run.path / "model.safetensors").write_bytes(b"x")
            raise InputError("late")
        assert path.exists() == trained_first
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError), RunFolder.create(empty) as run:
        (run.path / "config.yaml").write_text("x")
        raise InputError("early")
    assert list(empty.iterdir()) == []


def test_a_card_cannot_choose_code_to_run(command, trained, photos, tmp_path):
    shutil.copy(weights(trained), tmp_path / "w.safetensors")
    card = json.loads(weights(trained).with_suffix(".json").read_text())
    (tmp_path / "w.json").write_text(json.dumps({**card, "model": "os:getcwd"}))
    for words in (("checkup", "--data", f"folder:{photos}"), ("predict", photos / "test")):
        code, _, err = command(*words, "--weights", "w.safetensors")
        assert code == 2 and "names the factory 'os:getcwd'" in err


def test_predict_without_a_card_finds_the_head(command, photos, tmp_path):
    save_file(load_model("torchvision:squeezenet1_1", 3).state_dict(), tmp_path / "w.safetensors")
    code, out, err = command(
        "predict", photos / "test", "--weights", "w.safetensors", "--model", "torchvision:squeezenet1_1",
        "--image-size", 32, "--json",
    )  # fmt: skip
    assert code == 0, err
    assert {one["category"] for one in json.loads(out)} <= {"0", "1", "2"}


def test_text_is_no_checkpoint_and_yaml_numbers_are_read(command, photos, tmp_path):
    (tmp_path / "w.pt").write_text("hello there")
    code, _, err = command("checkup", "--weights", "w.pt", "--data", f"folder:{photos}")
    assert code == 2 and "no checkpoint of torch.save" in err
    (tmp_path / "c.yaml").write_text("learning_rate: 1e-3\n")
    assert settings_from({}, tmp_path / "c.yaml").learning_rate == 0.001
    (tmp_path / "c.yaml").write_bytes(b"model: \xff\xfe")
    code, _, err = command("checkup", "--config", "c.yaml")
    assert code == 2 and "'c.yaml' is not YAML" in err


def test_the_demo_lets_the_user_decide():
    base, further = demo_settings(settings_from({"learning_rate": 0.02, "limit": 9}))
    assert (base.epochs, base.limit) == (14, 9) and further.learning_rate == 0.02
    assert (further.epochs, further.arms, further.constraints) == (6, "auto", "auto")
    assert demo_settings(settings_from({"epochs": 3}))[1].epochs == 3
    _, other = demo_settings(settings_from({"model": "torchvision:resnet18"}))
    assert other.layers == other.epochs == "auto"

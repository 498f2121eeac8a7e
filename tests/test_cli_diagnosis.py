"""The verbs that look closer, on a small trained network: what they write, say, refuse and resume."""

from __future__ import annotations

import copy
import io
import json
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch
from PIL import Image

from test_cli import weights
from torchdoctor.case.settings import Settings
from torchdoctor.cli import app as cli
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.suspects_result import Suspect, Suspects, read_labels
from torchdoctor.evidence import measurement as measurement_module
from torchdoctor.files.reading import sha256_of
from torchdoctor.runs.folder import open_run
from torchdoctor.runs.parts import PartsFolder
from torchdoctor.verbs.diagnose import run_diagnose


def sums(folder):
    """Return the sha256 of every file that does not hold a path or a time."""
    return {
        str(one.relative_to(folder)): sha256_of(one)
        for one in sorted(folder.rglob("*"))
        if one.is_file() and one.name not in ("config.yaml", "manifest.json", "environment.json")
    }


@pytest.fixture(scope="module")
def finished(trained, photos, tmp_path_factory):
    """The folder of a finished diagnosis `d` of all layers, and what it printed."""
    home, out, err = tmp_path_factory.mktemp("finished"), io.StringIO(), io.StringIO()
    words = (
        "diagnose", "--weights", weights(trained), "--data", f"folder:{photos}", "--out", "d", "--layers",
        "all", "--draws", 0, "--json", "--confidence", 0.6,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(home)
        patch.setattr(sys, "argv", ["torchdoctor", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert not ended.value.code, err.getvalue()
    assert "12 layers, no noise: about 2.0 forward passes" in err.getvalue()
    return home / "d", json.loads(out.getvalue())


@pytest.fixture
def diagnosed(finished, tmp_path):
    """What the diagnosis printed, and a copy of its run in the folder `d`."""
    run, printed = finished
    shutil.copytree(run, tmp_path / "d")
    return copy.deepcopy(printed)


def test_all_layers_in_one_run_with_pictures_and_causes(diagnosed, tmp_path):
    assert len(diagnosed["layers"]) == 12
    assert {one["path"] for one in diagnosed["layers"]} == {"one gradient call"}
    assert all(0 < share <= 1 for one in diagnosed["layers"] for share in one["kernels_for_90_percent"])
    run = open_run(tmp_path / "d")
    for name in ("sparsity", "overlays", "confusion", "kernels-layer4.conv2"):
        for kind in ("png", "svg"):
            assert (run / "figures" / f"{name}.{kind}").stat().st_size > 1000
    causes = json.loads((run / "causes.json").read_text())
    assert causes["split"] == "validation" and sum(causes["counts"].values()) == len(causes["errors"])
    found = Diagnosis.load(run / "diagnosis")
    assert found.layers[0].interval.shape == (2, 2, 16) and not (run / "diagnosis" / "parts").exists()


@pytest.fixture
def suspecting(trained, photos, monkeypatch, blank_figures):
    """Let every search find two suspects; return the arguments of a quick diagnosis."""

    def find(model, images, *, seed, classes, second, progress, processes):
        assert second == []  # nobody else was asked
        first, next_one, *_, last = images.table.ids.tolist()
        one = Suspect(first, classes[0], classes[1], 0.9, (next_one,), (last,))
        return Suspects((one, Suspect(last, classes[1], classes[0], 0.6)), len(images), 0.05, 95.0)

    monkeypatch.setattr("torchdoctor.verbs.suspects.find_suspects", find)
    given = ("--weights", weights(trained), "--data", f"folder:{photos}", "--confidence", 0.5, "--draws", 0)
    return ("diagnose", *given, "--layers", "last:1", "--out", "d")


def test_suspects_are_listed(command, suspecting, tmp_path):
    code, out, err = command(*suspecting, "--json")
    assert code == 0, err
    run, record = open_run(tmp_path / "d"), json.loads(out)["suspects"]
    assert record["listed"] == 2 and record["expected"] == 0.75 and record["list"].endswith("labels.csv")
    lines = read_labels(run / "labels.csv")
    assert [(line.split, line.given, line.proposed) for line in lines] == [
        ("train", "blue", "red"), ("train", "red", "blue"),
    ]  # fmt: skip
    names = [one["image"] for one in json.loads((run / "suspects.json").read_text())["suspects"]]
    assert [line.image for line in lines] == names and all(name.endswith(".png") for name in names)
    code, out, err = command(*suspecting, "--resume")
    assert code == 0 and "labels to look at: 2 of" in " ".join(out.split()), err


@pytest.mark.slow
def test_suspects_are_shown_in_the_report(command, suspecting, tmp_path):
    assert command(*suspecting)[0] == command("report", "d", "--out", "page.html")[0] == 0
    names = [line.image for line in read_labels(tmp_path / "d" / "labels.csv")]
    page = (tmp_path / "page.html").read_text()
    assert "Labels to look at" in page and all(name in page for name in names)
    assert page.count('alt="An image of red"') == page.count('alt="An image of blue"') == 1


def test_right_training_labels_are_not_listed(diagnosed, tmp_path):
    assert diagnosed["suspects"]["listed"] == 0 and diagnosed["suspects"]["share"] == 0
    assert read_labels(tmp_path / "d" / "labels.csv") == ()


def test_too_few_images_to_look_at_labels_end_no_run(command, trained, photos, tmp_path, blank_figures):
    root = tmp_path / "few"
    shutil.copytree(photos, root)
    for position in range(3, 24):
        (root / f"train/red/{position}.png").unlink()
    code, out, err = command(
        "diagnose", "--weights", weights(trained), "--data", f"folder:{root}", "--confidence", 0.5,
        "--draws", 0, "--layers", "last:1", "--out", "d", "--json",
    )  # fmt: skip
    assert code in (0, 4), err
    (remark,) = json.loads(out)["suspects"]["remarks"]
    assert remark.startswith("Labels were not looked at: 1 of 2 categories have 5 images or more")


def test_the_layers_of_a_pattern_and_exact_draws(command, trained, photos, tmp_path, blank_figures):
    common = ("--weights", weights(trained), "--data", f"folder:{photos}", "--confidence", 0.6, "--json")
    code, out, err = command("diagnose", *common, "--layers", "layer[34].conv2", "--out", "a", "--draws", 2)
    assert code == 0, err
    assert [one["path"] for one in json.loads(out)["layers"]] == ["vmap", "closed form"]
    code, out, err = command("diagnose", *common, "--layers", "last:1", "--out", "b", "--draws", "exact")
    assert code == 0 and json.loads(out)["draws"] == "exact", err
    code, _, err = command("diagnose", *common, "--layers", "layer1.conv1", "--out", "c", "--draws", "exact")
    assert code == 2 and "layer 'layer1.conv1' has no closed form" in err and not (tmp_path / "c").exists()
    code, _, err = command("checkup", *common, "--out", "e", "--draws", "exact")
    assert code == 2 and "--draws 'exact' is for diagnose" in err


@pytest.mark.slow
def test_an_interrupted_diagnosis_goes_on_to_the_same_files(trained, photos, tmp_path, monkeypatch):
    shared = {
        "weights": str(weights(trained)),
        "data": f"folder:{photos}",
        "batch_size": 8,
        "confidence": 0.6,
    }
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_diagnose(Settings(**shared, out=str(whole), draws=2))
    right = measurement_module._batch_rows
    calls = []

    def breaks(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return right(*given)

    monkeypatch.setattr(measurement_module, "_batch_rows", breaks)
    with pytest.raises(KeyboardInterrupt):
        run_diagnose(Settings(**shared, out=str(cut), draws=2))
    parts = PartsFolder(cut / "diagnosis" / "parts")
    assert len(parts) > 2 and not (cut / "manifest.json").exists()
    damaged = next(iter(parts))
    (cut / "diagnosis" / "parts" / f"{damaged}.safetensors").write_bytes(b"broken")
    assert damaged not in parts
    (cut / "diagnosis" / ".diagnosis.json.x1.part").write_text("half a fi")
    run_diagnose(Settings(**shared, out=str(cut), draws=2), resume=True)
    assert sums(cut) == sums(whole) and open_run(cut)
    before = {one: one.stat().st_mtime_ns for one in cut.rglob("*")}
    again = run_diagnose(Settings(**shared, out=str(cut), draws=2), resume=True)
    assert again.exit_code == 0 and {one: one.stat().st_mtime_ns for one in cut.rglob("*")} == before


def test_resume_refuses_what_has_changed(command, trained, photos, tmp_path, blank_figures):
    common = ("diagnose", "--weights", weights(trained), "--data", f"folder:{photos}", "--confidence", 0.6)
    assert command(*common, "--out", "d", "--draws", 1)[0] == 0
    (tmp_path / "d" / "manifest.json").unlink()
    kept = sums(tmp_path / "d")
    code, _, err = command(*common, "--out", "d", "--draws", 3, "--resume")
    assert code == 2 and "was made otherwise: draws was 1 and is 3" in err
    code, _, err = command(*common, "--draws", 1, "--resume")
    assert code == 2 and "--resume needs --out" in err
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "note.txt").write_text("mine")
    code, _, err = command(*common, "--out", "x", "--draws", 1, "--resume")
    assert code == 2 and "has no config.yaml, so it is no unfinished run to go on with" in err
    assert (tmp_path / "x" / "note.txt").read_text() == "mine" and sums(tmp_path / "d") == kept
    assert command(*common, "--out", "new", "--draws", 1, "--resume")[0] == 0


def test_images_are_explained_with_and_without_a_diagnosis(command, diagnosed, trained, photos, tmp_path):
    red = photos / "test" / "red" / "0.png"
    shutil.copy(red, tmp_path / "0.png")
    mask = Image.new("L", (24, 24))
    mask.paste(255, (6, 6, 18, 18))
    mask.save(tmp_path / "0.mask.png")
    code, out, err = command(
        "explain", red, tmp_path / "0.png", "test:9", "--diagnosis", "d", "--out", "e", "--json"
    )
    assert code == 0, err
    first, second, third = json.loads(out)["explanations"]
    assert (first["label"], second["label"]) == ("red", None) and third["label"] in ("red", "blue")
    assert first["prediction"] == second["prediction"] and first["background_share"] is None
    assert 0 <= second["background_share"] <= 1
    assert first["because"] == (first["check"] is not None and first["check"]["agrees"])
    run = open_run(tmp_path / "e")
    assert {one.name for one in run.glob("00*")} == {
        f"00{n}.{kind}" for n in range(3) for kind in ("png", "svg")
    }
    code, out, err = command("explain", red, "--weights", weights(trained), "--out", "f")
    assert code == 0 and "Predicted" in out and "out: f" in out, err


def test_grad_cam_is_drawn_beside_ours(command, diagnosed, photos, tmp_path):
    pytest.importorskip("torchcam")
    red = photos / "test" / "red" / "0.png"
    code, _, err = command("explain", red, "--diagnosis", "d", "--out", "e", "--grad-cam")
    assert code == 0, err
    assert b"Grad-CAM" in (tmp_path / "e" / "000.svg").read_bytes() or (tmp_path / "e" / "000.png").is_file()


def test_what_cannot_be_explained_is_refused(command, diagnosed, photos, tmp_path):
    red = photos / "test" / "red" / "0.png"
    for words, said in (
        (("nowhere.png", "--diagnosis", "d"), "'nowhere.png': no such file or folder"),
        (("tset:3", "--diagnosis", "d"), "the data has no split 'tset', but train, validation, test"),
        (("test:first", "--diagnosis", "d"), "expected test:ID with the number of an image, as in test:7"),
        (("test:900", "--diagnosis", "d"), "test has no image 900; its 16 are numbered 0, 1, 2, ..."),
        ((red, "--diagnosis", "d", "--label", "pink"), "--label 'pink' is none of the categories: blue, red"),
        ((red, "--diagnosis", "nothing"), "run 'nothing': no such folder"),
        ((red,), "--weights is missing"),
    ):
        code, _, err = command("explain", *words, "--out", "e")
        assert code == 2 and said in err, err
        assert not (tmp_path / "e").exists()


def test_noise_curves_go_into_a_run_and_its_report(command, diagnosed, tmp_path):
    small = ("--images", 5, "--repeats", 2, "--ranges", "0,0.5,50", "--epsilon", 40)
    code, out, err = command("robustness", "d", *small, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert np.array(found["normal"]).shape == (3, 2) and set(np.ravel(found["normal"][0])) == {100}
    assert (tmp_path / "d" / "figures" / "noise-curves.svg").is_file() and open_run(tmp_path / "d")
    code, _, err = command("robustness", "d", *small)
    assert (code == 2 and "robustness.json' already" in err) or "already" in err
    code, _, err = command("report", "d")
    assert code == 0, err
    page = (tmp_path / "d" / "report.html").read_text()
    for said in ("Why it errs", "How few kernels carry the evidence", "Noise against adversarial images"):
        assert said in page


def test_noise_curves_stand_alone_and_refuse_nonsense(command, trained, photos, tmp_path):
    common = ("--weights", weights(trained), "--data", f"folder:{photos}", "--images", 3, "--repeats", 1)
    code, out, err = command("robustness", *common, "--out", "r", "--epsilon", 40, "--layer", "layer3.conv1",
                             "--units", "deviation", "--ranges", "0,1")  # fmt: skip
    assert code == 0 and "adversarial back" in out, err
    assert json.loads((tmp_path / "r" / "robustness.json").read_text())["units"] == "deviation"
    for words, said in (
        (("--ranges", "a,b"), "--ranges 'a,b': expected numbers by commas"),
        (("--units", "pixels"), "--units 'pixels': expected one of absolute, deviation"),
        (("--layer", "layer9"), "layer 'layer9' is not in this"),
        (("--epsilon", 0), "expected a step above 0"),
    ):
        code, _, err = command("robustness", *common, "--out", "bad", *words)
        assert code == 2 and said in err, err
        assert not (tmp_path / "bad").exists()


def test_published_weights_are_explained_without_data(command, photos, tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model

    def seeded(name, pretrained=False, **more):
        torch.manual_seed(0)
        return create(name, pretrained=False, **more)

    monkeypatch.setattr(timm, "create_model", seeded)
    code, out, err = command(
        "explain", photos / "test" / "red" / "0.png", "--model", "timm:tf_efficientnet_lite0", "--weights",
        "pretrained", "--image-size", 64, "--out", "e", "--json",
    )  # fmt: skip
    assert code == 0, err
    (found,) = json.loads(out)["explanations"]
    assert not found["prediction"].isdecimal() and found["kernels"][0]["usual"] is None

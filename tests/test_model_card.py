"""The folder of handed-back weights: anybody can load it, and its card says what was measured, no more."""

from __future__ import annotations

import json
import math
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image
from safetensors.torch import load_file

from fake_results import fake_comparison, fake_diagnosis, with_more_arms
from processes import killed_at
from torchdoctor.case.preparation import prepare
from torchdoctor.case.settings import Settings
from torchdoctor.data.load import load_data
from torchdoctor.files.writing import write_json, write_weights
from torchdoctor.models.loading import load_model
from torchdoctor.network.copying import copy_of
from torchdoctor.network.prediction import predict_logits
from torchdoctor.runs.folder import open_run
from torchdoctor.types import InputError
from torchdoctor.verbs.checkup import run_checkup
from torchdoctor.verbs.compare import read_checkup, run_compare
from torchdoctor.verbs.model_card import data_name, escaped, loading_lines, model_card, of_first_seed
from torchdoctor.verbs.model_folder import model_stage
from torchdoctor.verbs.treat import run_treat

pytestmark = pytest.mark.usefixtures("blank_figures_throughout")
KILLED = -signal.SIGKILL
QUICK = {"epochs": 1, "batch_size": 8, "draws": 1, "confidence": 0.3}
PRESCRIPTION = [
    {
        "constraint": "channel",
        "layers": ["layer|3", "layer1.conv2"],
        "evidence": "gradient",
        "scale": "share",
        "weight": 0.40512,
        "weight_chosen": "auto",
    }
]


def parsed(card):
    """Return a card's front matter and its Markdown's tables, as rows of the cells' text."""
    _, matter, body = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    tables, cell = [], None
    for token in MarkdownIt("commonmark").enable("table").parse(body):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type in ("td_open", "th_open"):
            cell = True
        elif token.type == "inline" and cell:
            tables[-1][-1].append("".join(one.content for one in token.children))
            cell = False
    return yaml.safe_load(matter), tables


def python_of(card):
    """Return the Python code of a card, block by block."""
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def checked(blank_figures_throughout, trained, photos, tmp_path_factory):
    """A finished checkup with three arms and two seeds, and its outcome."""
    out = tmp_path_factory.mktemp("checked") / "run"
    outcome = run_checkup(
        Settings(
            weights=str(trained / "model.safetensors"), data=f"folder:{photos}", out=str(out), seeds=2,
            arms=("control", "treated", "smoothing"), **QUICK,
        )
    )  # fmt: skip
    return open_run(out), outcome


@pytest.fixture(scope="module")
def case(trained, photos):
    return prepare(
        Settings(
            weights=str(trained / "model.safetensors"), data=f"folder:{photos}", epochs=1, learning_rate=0.01
        ),
        "treat",
    )


def test_the_folder_holds_the_first_seeds_weights_and_both_cards(checked):
    run, outcome = checked
    assert outcome.record["model"] == str(run / "model")
    assert set(files_of(run / "model")) == {"README.md", "model.json", "model.safetensors"}
    assert {f"model/{name}" for name in files_of(run / "model")} <= set(
        json.loads((run / "manifest.json").read_text())["files"]
    )
    first = run / "treatment" / "treated" / "seed0"
    assert (run / "model" / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert (run / "model" / "model.json").read_text() == (first / "model.json").read_text()


def test_the_cards_numbers_are_the_comparisons(checked):
    run, _ = checked
    found = json.loads((run / "compare.json").read_text())
    card = ModelCard.load(run / "model" / "README.md")
    matter, (own, arms, constraints) = parsed(card.content)
    assert matter["library_name"] == "torchdoctor" and matter["pipeline_tag"] == "image-classification"
    assert matter["metrics"] == ["accuracy"] and "license" not in matter
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.dataset_split) == (Path(found_data(run)).name, "test")
    assert (result.dataset_type, result.metric_type) == ("imagefolder", "accuracy")
    seen = found["arms"]["treated"]["test"]["accuracy"]
    assert len(seen) == 2 and result.metric_value == pytest.approx(seen[0] / 100, abs=1e-6)
    assert own[1] == ["test", "16", f"{seen[0]:.2f}"]
    assert [row[1] for row in arms[1:]] == ["base", "control", "treated", "smoothing"]
    for row in arms[1:]:
        one = found["arms"][row[1]]["test"]
        assert row[2] == f"{sum(one['accuracy']) / len(one['accuracy']):.1f}"
        assert row[7] == f"{one['calibration_error']:.1f}"
        worst = found["classes"][one["per_category"].index(one["worst_category"])]
        assert row[8] == f"{one['worst_category']:.1f} ({worst})"
    gain = found["against_control"]["test"]["smoothing"]["gain"]
    assert float(arms[4][3].replace("−", "-")) == pytest.approx(gain["mean"], abs=0.05)
    assert float(arms[4][5]) == pytest.approx(gain["p_adjusted"], rel=0.05)
    prescribed = json.loads((run / "treatment" / "prescription.json").read_text())["constraints"]
    assert constraints[1][0] == "channel" and constraints[1][1] == ", ".join(prescribed[0]["layers"])
    assert constraints[1][4] == f"{prescribed[0]['weight']:.3g} (auto)"


def found_data(run):
    return yaml.safe_load((run / "config.yaml").read_text())["data"].partition(":")[2]


def test_no_folder_of_this_machine_is_named(checked, trained):
    run, _ = checked
    for name in ("README.md", "model.json"):
        text = (run / "model" / name).read_text()
        assert str(Path(found_data(run)).parent) not in text and str(trained.parent) not in text
        assert "/tmp" not in text and str(run) not in text


def test_the_cards_own_lines_give_our_logits(checked, photos, monkeypatch):
    run, _ = checked
    data = load_data(f"folder:{photos}", image_size=24)
    batch = next(iter(data.tests["test"]))
    monkeypatch.chdir(run / "model")
    Image.open(photos / "test" / "blue" / "0.png").save("photo.png")
    code = "\n".join(python_of(Path("README.md").read_text())).replace("photo.jpg", "photo.png")
    names = {}
    exec(code, names)
    Path("photo.png").unlink()
    own = load_model("small_resnet", 2, Path("model.safetensors"), image_size=24).eval()
    assert torch.allclose(names["logits"], own(batch.images[:1]), atol=1e-5)


def test_the_folder_can_be_checked_up_and_predicted_with(checked, photos, command):
    run, _ = checked
    weights = run / "model" / "model.safetensors"
    code, out, err = command("predict", photos / "test" / "red", "--weights", weights, "--json")
    assert code == 0 and {one["category"] for one in json.loads(out)} <= {"blue", "red"}, err
    code, _, err = command("checkup", "--weights", weights, "--data", f"folder:{photos}", "--dry-run")
    assert code == 0, err


def test_treat_and_compare_leave_the_same_folder_and_a_killed_compare_is_finished(
    checked, trained, photos, command, tmp_path
):
    run, _ = checked
    code, _, err = command(
        "treat", "--weights", trained / "model.safetensors", "--data", f"folder:{photos}", "--out", "t",
        "--arms", "control,treated,smoothing", "--seeds", 2, "--epochs", 1, "--batch-size", 8, "--draws", 1,
        "--confidence", 0.3,
    )  # fmt: skip
    assert code == 0 and not (tmp_path / "t" / "model").exists(), err
    assert killed_at("before/README.md", lambda: run_compare("t", {}).exit_code) == KILLED
    assert (tmp_path / "t" / "compare.json").is_file()
    code, out, err = command("compare", "t")
    assert code in (0, 3, 4) and "model: t/model" in out, err
    assert files_of(open_run(tmp_path / "t") / "model") == files_of(run / "model")
    assert command("compare", "t")[0] == 2


@pytest.mark.slow
def test_a_checkup_killed_among_the_folders_files_ends_the_same(checked, trained, photos, tmp_path):
    run, _ = checked
    settings = Settings(
        weights=str(trained / "model.safetensors"), data=f"folder:{photos}", out=str(tmp_path / "cut"),
        seeds=2, arms=("control", "treated", "smoothing"), **QUICK,
    )  # fmt: skip
    assert killed_at("before/README.md", lambda: run_checkup(settings).exit_code) == KILLED
    assert not (tmp_path / "cut" / "model" / "README.md").exists()
    outcome = run_checkup(settings, resume=True)
    assert files_of(open_run(tmp_path / "cut") / "model") == files_of(run / "model")
    assert run_checkup(settings, resume=True).record["model"] == outcome.record["model"]


@pytest.mark.parametrize("use", ["base", "control", "treated"])
def test_what_validation_chose_is_handed_back(checked, case, trained, tmp_path, use):
    run, _ = checked
    means = {"base": 81.25, "control": 80.0, "treated": 79.5}
    outcome = read_checkup(case, run)
    outcome = replace(outcome, record={**outcome.record, "handed_back": {"use": use, "means": means}})
    assert model_stage(case, tmp_path, outcome).record["model"] == str(tmp_path / "model")
    wanted = {
        "base": trained / "model.safetensors",
        "control": run / "treatment" / "control" / "seed0" / "model.safetensors",
        "treated": run / "treatment" / "treated" / "seed0" / "model.safetensors",
    }[use]
    found, known = load_file(tmp_path / "model" / "model.safetensors"), load_file(wanted)
    assert found.keys() == known.keys() and all(torch.equal(found[name], known[name]) for name in known)
    card = (tmp_path / "model" / "README.md").read_text()
    seen = json.loads((run / "compare.json").read_text())["arms"][use]["test"]["accuracy"]
    value = parsed(card)[0]["model-index"][0]["results"][0]["metrics"][0]["value"]
    assert value == pytest.approx(seen[0] / 100, abs=1e-6)
    assert "`base` 81.2, `control` 80.0, `treated` 79.5)" in " ".join(card.split())
    assert ("did not beat both base and control" in card) == (use != "treated")
    assert ("whose weights are not the ones in this folder" in card) == (use != "treated")


def test_the_mean_of_the_seeds_is_handed_back_where_validation_says_so(checked, case, tmp_path):
    run, _ = checked
    outcome = read_checkup(case, run)
    treatment = outcome.treatment
    handed = {"use": "treated", "means": {}, "soup": {"score": 90.0, "used": True}}
    model_stage(case, tmp_path, replace(outcome, record={**outcome.record, "handed_back": handed}))
    found = load_file(tmp_path / "model" / "model.safetensors")
    states = [treatment.arm("treated", number).state for number in treatment.seeds()]
    assert len(states) == 2
    for name, _ in case.model.named_parameters():
        torch.testing.assert_close(found[name], (states[0][name] + states[1][name]) / 2)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "the mean over its seeds" in card and "seed 0" not in card.split("## Results")[0]
    own = copy_of(case.model)
    own.load_state_dict(found)
    _, labels, logits = predict_logits(own, case.data.tests["test"])
    value = parsed(card)[0]["model-index"][0]["results"][0]["metrics"][0]["value"]
    assert value == pytest.approx(float((logits.argmax(1) == labels).double().mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("verdict", "gain", "said"),
    [
        ("helped", 12.4, "The treatment helped: +12.4 points on shifted"),
        ("harmed", -6.0, "These weights should not replace the base weights."),
        ("no evidence", 0.2, "On the split that decides nothing speaks for these weights"),
    ],
)
def test_the_card_says_the_verdict_plainly(case, verdict, gain, said):
    comparison = fake_comparison(gain, verdict)
    case = replace(case, data=replace(case.data, classes=comparison.classes))
    card = model_card(
        case, fake_diagnosis(), PRESCRIPTION, comparison, of_first_seed(comparison, "treated"), {}
    )
    assert said in card
    for other in ("should not replace", "nothing speaks", "The treatment helped"):
        assert (other in card) == (other in said)
    _, (own, arms, constraints) = parsed(card)
    assert len(own) == 4 and len(arms) == 10 and "Every number is a mean over 5 seeds" in card
    first = comparison.splits["shifted"].accuracy["treated"]
    assert own[1] == ["shifted", "1600", f"{first[0]:.2f}"]
    assert arms[3][2] == f"{math.fsum(first) / 5:.1f}" != f"{first[0]:.1f}"
    assert constraints[1] == ["channel", "layer|3, layer1.conv2", "gradient", "share", "0.405 (auto)"]


HOSTILE = (
    "a | b", "new\nline\r\n---\nlicense: mit", "<script>alert(1)</script>", "`code` *bold* _x_ [l](http://e)",
    'quote " : #', "| --- |\n| x |", "{{ 7 * 7 }} $x$ ~~y~~", "\u202e\x00\\|",
)  # fmt: skip


def test_hostile_names_break_neither_yaml_nor_markdown(case, tmp_path):
    fake = with_more_arms(fake_comparison(classes=HOSTILE), ("smoothing",))
    splits = {f"{HOSTILE[number]} {number}": one for number, one in enumerate(fake.splits.values())}
    comparison = replace(fake, splits=splits, primary=next(iter(splits)), reason=HOSTILE[2])
    place = tmp_path / 'x: [|]\n---\n"<b>'
    plan = case.plan.but(data=f"folder:{place}", weights=f"{tmp_path}/`|`.pt")
    case = replace(case, plan=plan, data=replace(case.data, classes=HOSTILE))
    card = model_card(
        case, fake_diagnosis(HOSTILE), PRESCRIPTION, comparison, of_first_seed(comparison, "treated"), {}
    )
    matter, (own, arms, _) = parsed(card)
    assert "license" not in matter and ModelCard(card).data.model_name == "small_resnet (treated)"
    results = matter["model-index"][0]["results"]
    assert [one["dataset"]["split"] for one in results] == [
        "a | b 0", "new line --- license: mit 1", "<script>alert(1)</script> 2"
    ]  # fmt: skip
    assert {one["dataset"]["name"] for one in results} == {'x: [|] --- "<b>'}
    assert [row[0] for row in own[1:]] == [one["dataset"]["split"] for one in results]
    assert {len(row) for row in arms} == {9} and len(arms) == 1 + 3 * 4
    worst = {re.sub(r"^[\d.]+ \((.*)\)$", r"\1", row[8]) for row in arms[1:]}
    assert worst <= {" ".join(re.sub("[\u202e\x00]", " ", name).split()) for name in HOSTILE}
    assert "<script>" not in card.partition("\n---\n")[2] and str(tmp_path) not in card
    shown = MarkdownIt("commonmark").enable("table").render(card.partition("\n---\n")[2])
    assert "<em>" not in shown and "<a " not in shown and "{{ 7 * 7 }}" in shown
    assert escaped("a|b_c<d>") == r"a\|b\_c&lt;d&gt;"


def test_data_are_named_without_their_folder():
    assert data_name("torchvision:CIFAR10@/home/me") == ("CIFAR10", "CIFAR10")
    assert data_name("cifar10@/home/me") == ("cifar10", "cifar10")
    assert data_name("scenes:3") == ("scenes", "scenes:3") and data_name("scenes") == ("scenes", "scenes")
    assert data_name("folder:/home/me/photos/") == ("imagefolder", "photos")
    assert data_name("table:/home/me/labels.csv") == ("table", "labels.csv")


def handed_back(name, photos, folder, **more):
    """Treat and compare a network with new weights and return the folder of what is handed back."""
    torch.manual_seed(0)
    fresh = load_model(name, 2, channels=more.get("channels", 3), image_size=32)
    for module in fresh.modules():  # timm starts with residual branches that are switched off
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.any():
            torch.nn.init.ones_(module.weight)
    write_weights(folder / "base.safetensors", fresh.state_dict())
    settings = Settings(
        model=name, weights=str(folder / "base.safetensors"), data=f"folder:{photos}",
        out=str(folder / "run"), image_size=32, seeds=1, limit=8, **{**QUICK, "confidence": 0.0}, **more,
    )  # fmt: skip
    run_treat(settings)
    run_compare(str(folder / "run"), {})
    return open_run(folder / "run") / "model"


def images_of(photos, channels=3):
    data = load_data(f"folder:{photos}", image_size=32, channels=channels)
    return next(iter(data.tests["test"])).images


def logits(model, images):
    with torch.no_grad():
        return model.eval()(images)


def test_plain_torchvision_loads_the_folder(photos, tmp_path):
    from torchvision import models

    name = "shufflenet_v2_x0_5"
    folder = handed_back(f"torchvision:{name}", photos, tmp_path)
    plain = models.get_model(name, weights=None, num_classes=2)
    plain.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    ours = load_model(f"torchvision:{name}", 2, folder / "model.safetensors")
    images = images_of(photos)
    assert torch.equal(logits(plain, images), logits(ours, images))
    assert parsed((folder / "README.md").read_text())[0]["library_name"] == "torchvision"
    names = {}
    loading, _ = python_of((folder / "README.md").read_text())
    exec(loading.replace("'model.safetensors'", repr(str(folder / "model.safetensors"))), names)
    assert torch.equal(logits(names["model"], images), logits(ours, images))


@pytest.mark.parametrize("channels", [3, 1])
def test_plain_timm_loads_the_folder(photos, tmp_path, channels, monkeypatch):
    import timm

    folder = handed_back("timm:test_resnet", photos, tmp_path, channels=channels)
    plain = timm.create_model("test_resnet", num_classes=2, in_chans=channels)
    plain.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    ours = load_model("timm:test_resnet", 2, folder / "model.safetensors", channels=channels)
    images = images_of(photos, channels)
    wanted = logits(ours, images)
    assert torch.equal(logits(plain, images), wanted)
    whole = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert whole.num_classes == 2 and torch.equal(logits(whole, images), wanted)
    prepared = timm.data.resolve_model_data_config(whole)
    card = json.loads((folder / "model.json").read_text())
    assert list(prepared["mean"]) == card["preprocessing"]["mean"] and prepared["crop_pct"] == 1.0
    assert tuple(prepared["input_size"]) == (channels, 32, 32)
    written = json.loads((folder / "config.json").read_text())
    assert written["label_names"] == ["blue", "red"] and "license" not in written["pretrained_cfg"]
    monkeypatch.chdir(folder)
    for block in python_of((folder / "README.md").read_text())[:-1]:
        names = {}
        exec(block, names)
        assert torch.equal(logits(names["model"], images), wanted)


def test_a_network_of_a_local_folder_is_named_without_it(photos, tmp_path):
    source = tmp_path / "mine"
    source.mkdir()
    write_json(
        source / "config.json", {"architecture": "test_resnet", "num_classes": 2, "pretrained_cfg": {}}
    )
    folder = handed_back(f"local-dir:{source}", photos, tmp_path)
    for name in ("README.md", "model.json", "config.json"):
        assert str(tmp_path) not in (folder / name).read_text(), name
    assert json.loads((folder / "model.json").read_text())["model"] == "local-dir:mine"
    assert "--weights model.safetensors --model local-dir:.`" in (folder / "README.md").read_text()
    with pytest.raises(InputError, match="names the factory 'local-dir:mine'"):
        prepare(Settings(weights=str(folder / "model.safetensors"), data=f"folder:{photos}"), "checkup")
    again = prepare(
        Settings(
            model=f"local-dir:{folder}", weights=str(folder / "model.safetensors"), data=f"folder:{photos}"
        ),
        "checkup",
    )
    assert again.data.preprocessing.image_size == 32


def test_the_state_of_an_adapted_stem_fits_the_plain_network_and_the_card_adapts_it(case):
    from torchvision import models

    state = load_model("shufflenet_v2", 2, image_size=24).state_dict()
    models.get_model("shufflenet_v2_x1_0", weights=None, num_classes=2).load_state_dict(state, strict=True)
    case = replace(case, plan=case.plan.but(model="shufflenet_v2"))
    assert "load_model('shufflenet_v2', 2, channels=3, image_size=24)" in loading_lines(case)[0]

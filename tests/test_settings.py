"""Settings: one place for each, the same default everywhere, and files of earlier versions."""

from __future__ import annotations

import inspect
import json
import re
from typing import Literal

import pytest
import torch
import typer.testing
import yaml

import torchdoctor as td
from torchdoctor.case.config import read_config, schema, settings_from, settings_record, template
from torchdoctor.case.identity import DECIDED, comparable
from torchdoctor.case.settings import GROUPS, USED_BY, Plan, Settings, check_verb, decided_by_verb
from torchdoctor.cli.app import app, build_app
from torchdoctor.cli.options import help_of, metavar_of
from torchdoctor.data.settings import SOURCE
from torchdoctor.glossary import GLOSSARY
from torchdoctor.settings import SettingsGroup, flag_of, setting
from torchdoctor.treatment.arms import chosen_constraints
from torchdoctor.treatment.constraints import CONSTRAINTS, constraints_named, default_constraints
from torchdoctor.treatment.search import candidates

RUNNER = typer.testing.CliRunner()
WIDE = {"COLUMNS": "200"}
# What config.yaml of a checkup held in the version before settings had groups.
EARLIER = """\
verb: checkup
model: small_resnet
weights: w.safetensors
data: folder:photos
out: run
seeds: 3
seed: 0
epochs: 10
batch_size: 64
workers: 0
device: auto
primary: test
classes_seed: 0
validation_share: 0.1
download: false
on_error: fail
optimizer: sgd
learning_rate: 0.01
weight_decay: 0.0005
norm: train
precision: fp32
augment: crop_flip
layers: [layer2.conv2, layer3.conv2, layer4.conv2]
evidence: gradient_x_activation
scale: share
lazy: 2
theta: 0.2
images_per_category: 100
confidence: 0.9
arms: [control, treated]
constraints: ['channel scale=none layers=layer4.conv2']
weight: [auto]
tau: 0.3
targets: prediction
annotated_per_batch: 0.125
budget_kind: steps
min_gain: 0.0
max_loss: 5.0
auto: false
tensorboard: false
tracker: none
"""


class Ink(SettingsGroup):
    """A group that a user adds from outside."""

    ink: Literal["black", "blue"] = setting("black", "The colour of the ink.")


class Wider(Settings, Ink):
    """All settings and the user's."""


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", "x", "--epochs 'x': expected a whole number of at least 0, or auto"),
        ("limit", 0, "--limit 0: expected a whole number of at least 1, or all"),
        ("evidence", "grad", "--evidence 'grad': expected one of gradient, gradient_x_activation, auto"),
        ("layers", "", "--layers '': expected at least one name"),
        ("layers", {}, "--layers {}: expected a list"),
        ("theta", 2, "--theta 2: expected a number from 0 to 1"),
        ("theta", float("nan"), "--theta nan: expected a number from 0 to 1"),
        ("seed", True, "--seed True: expected a whole number of at least 0"),
        ("seed", 1.0, "--seed 1.0: expected a whole number of at least 0"),
        ("auto", 1, "--auto 1: expected true or false"),
        (
            "learning_rate",
            float("inf"),
            "--learning-rate inf: expected a number of at least 0, or one of auto, measured",
        ),
        ("epoch", 1, "'epoch' is no setting of Settings; there are: "),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_is_expected(name, value, expected):
    with pytest.raises(td.InputError) as raised:
        Settings(**{name: value})
    assert str(raised.value).startswith(expected)


def test_text_is_read_as_the_kind_of_its_setting():
    found = Settings(
        limit="9", learning_rate="1e-3", layers="a, b", channels="1", weight={"space": 2}, arms="swap"
    )
    assert (found.limit, found.learning_rate, found.layers, found.channels) == (9, 0.001, ("a", "b"), 1)
    assert found.weights_by_constraint == {"space": 2.0} and found.arms == ("swap",)
    assert Settings(layers="auto").layers == "auto" and Settings(draws="exact").draws == "exact"
    with pytest.raises(ValueError, match="frozen"):
        found.limit = 3
    assert found.but(limit="all").limit == "all" and found.given(limit=None).limit == 9


def test_every_setting_says_what_it_does_and_stands_in_a_group():
    grouped = [name for groups in GROUPS.values() for group in groups for name in group.model_fields]
    assert set(grouped) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        assert field.description and field.description.endswith("."), name
        assert metavar_of(field) or field.annotation is bool, name
        assert field.description in help_of(field)
    properties = schema()["properties"]
    assert set(properties) == {"verb", *Settings.model_fields}
    assert all(
        entry["description"] and entry["group"] in GROUPS
        for key, entry in properties.items()
        if key != "verb"
    )


@pytest.mark.parametrize("verb", ["train", "diagnose", "treat", "checkup"])
def test_a_command_has_the_flags_of_its_groups_and_no_other(verb):
    shown = RUNNER.invoke(app, [verb, "--help"], env=WIDE).output
    wanted = {name for group in USED_BY[verb] for name in group.model_fields}
    assert all(f"{flag_of(name)} " in shown for name in wanted)
    assert not [name for name in set(Settings.model_fields) - wanted if f"{flag_of(name)} " in shown]
    start = shown.split("Start here")[1].split("─ Model")[0]
    assert [word for word in start.split() if word.startswith("--")] == [
        "--model", "--weights", "--data", "--out", "--dry-run",
    ]  # fmt: skip


def test_diagnose_refuses_what_only_a_treatment_uses():
    for flag in ("--scale", "--seeds", "--epochs", "--arms", "--auto", "--max-loss"):
        assert RUNNER.invoke(app, ["diagnose", flag, "1"]).exit_code == 2


def test_a_setting_added_from_outside_is_flag_file_record_and_schema(tmp_path):
    used = {**USED_BY, "train": (*USED_BY["train"], Ink)}
    wider = build_app(used, Wider)
    shown = RUNNER.invoke(wider, ["train", "--help"], env=WIDE).output
    assert "--ink" in shown and "black|blue" in shown and "The colour of the ink. [black]" in shown
    with pytest.raises(td.InputError, match="--ink 'red': expected one of black, blue"):
        RUNNER.invoke(wider, ["train", "--ink", "red"], catch_exceptions=False)
    (tmp_path / "c.yaml").write_text("ink: blue\n")
    found = settings_from({}, tmp_path / "c.yaml", kind=Wider)
    assert (
        found.ink == "blue"
        and settings_from({"ink": "black"}, tmp_path / "c.yaml", kind=Wider).ink == "black"
    )
    assert settings_record("train", found, used["train"])["ink"] == "blue"
    assert schema({**GROUPS, "Pen": (Ink,)})["properties"]["ink"]["enum"] == ["black", "blue"]
    assert "ink: black" in template("train", {**GROUPS, "Pen": (Ink,)}, used)


def test_the_config_command_prints_a_file_that_changes_nothing(tmp_path):
    for verb in ("train", "checkup"):
        text = RUNNER.invoke(app, ["config", verb]).output
        assert max(map(len, text.splitlines())) <= 110
        (tmp_path / "c.yaml").write_text(text)
        assert settings_from({}, tmp_path / "c.yaml") == Settings()
        values = [line[1:] for line in text.splitlines() if re.match(r"#\w", line)]
        (tmp_path / "c.yaml").write_text("\n".join(values))
        assert settings_from({}, tmp_path / "c.yaml") == Settings()
        assert len(values) == len({name for group in USED_BY[verb] for name in group.model_fields})
    printed = json.loads(RUNNER.invoke(app, ["config", "--schema"]).output)
    assert printed["properties"]["theta"]["maximum"] == 1 and printed["properties"]["theta"]["default"] == 0.2


def test_python_and_the_command_line_have_the_same_defaults():
    for function, group in ((td.diagnose, td.DiagnosisSettings), (td.treat, td.TreatmentSettings)):
        assert inspect.signature(function).parameters["settings"].default == group()
        for name, field in group.model_fields.items():
            assert field.default == Settings.model_fields[name].default, name
            parameter = inspect.signature(function).parameters.get(name)
            assert parameter is None or parameter.default is None or name == "draws", name
    assert inspect.signature(td.load_data).parameters["settings"].default == td.DataSettings()
    further, plain = decided_by_verb(Settings(), "treat"), td.Recipe()
    assert (further["epochs"], further["learning_rate"]) == (plain.epochs, "auto")  # measured, else plain's
    for name in ("optimizer", "weight_decay", "norm", "precision"):
        assert Settings.model_fields[name].default == getattr(plain, name)
    assert inspect.signature(td.treat).parameters["draws"].default == Settings().draws_per_step
    assert inspect.signature(td.compare).parameters["max_loss"].default == Settings().max_loss
    assert inspect.signature(td.compare).parameters["min_gain"].default == Settings().min_gain


def small_diagnosis():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(4, 2),
    )  # fmt: skip
    images = [td.Batch(torch.randn(8, 3, 9, 9), torch.arange(8) % 2, torch.arange(8))]
    return model, images, td.diagnose(model, images, layers=["2"], confidence=0.0)


def test_the_channel_wise_constraint_is_the_same_however_it_is_asked_for():
    _, _, diagnosis = small_diagnosis()
    settings = td.TreatmentSettings()
    (unasked,) = chosen_constraints(None, None, diagnosis, settings, has_masks=False)
    (named,) = chosen_constraints(["channel"], None, diagnosis, settings, has_masks=False)
    flags = settings_from({"constraints": ["channel"]}).part(td.TreatmentSettings)
    (flagged,) = chosen_constraints(None, None, diagnosis, flags, has_masks=False)
    tried = next(one for one in candidates(["1", "2"], has_masks=False) if one.constraints)
    (searched,) = constraints_named(tried.constraints, layers=["2"])
    assert unasked == named == flagged == searched
    assert unasked.scale == "none" and td.Constraint("mine", unasked.penalty).scale == "none"


def test_nobody_is_given_what_was_measured_as_harmful():
    assert all(constraint.scale == "none" for constraint in CONSTRAINTS.values())
    assert not any("share" in text for masks in (True, False) for text in default_constraints(masks))
    assert not any(
        "share" in text
        for masks in (True, False)
        for one in candidates(["a"], masks)
        for text in one.constraints
    )


def test_a_diagnosis_alone_is_the_papers_and_one_before_a_treatment_is_the_penalties():
    _, _, diagnosis = small_diagnosis()
    assert diagnosis.evidence == decided_by_verb(Settings(), "diagnose")["evidence"] == "gradient"
    before = decided_by_verb(Settings(), "checkup")["evidence"]
    assert before == td.TreatmentSettings().penalised_evidence == "gradient_x_activation"


def test_a_plan_has_nothing_left_to_decide():
    fields = Plan.model_fields
    decided = {name for name, field in fields.items() if field.is_required()}
    assert {"model", "weights", "data", "out", "epochs", "layers", "arms", "constraints"} <= decided
    later = {
        name
        for name, field in Plan.model_fields.items()
        if field.default in ("auto", None) and name not in decided
    }
    assert later - set(SOURCE) == {
        "delta",
        "draws",
        "device",
        "budget",
        "diagnosis",
        "second_opinion",
        "labels",
        "review",
        "workers",
        "annotated_per_batch",  # a checkup decides by the causes it finds
    }


def test_a_file_of_an_earlier_version_is_read(tmp_path):
    (tmp_path / "config.yaml").write_text(EARLIER)
    found = settings_from(read_config(tmp_path / "config.yaml"))
    assert found.penalty_every == 2 and found.scale == "share" and found.limit == "all"
    with pytest.raises(td.InputError, match="'lasy' is no setting"):
        (tmp_path / "bad.yaml").write_text("lasy: 2\n")
        read_config(tmp_path / "bad.yaml")


def test_a_run_of_an_earlier_version_is_resumed_by_the_same_settings_only(tmp_path):
    (tmp_path / "config.yaml").write_text(EARLIER)
    recorded = yaml.safe_load(EARLIER)
    decided = {
        "image_size": 24, "channels": 3, "expand_pixels": 3, "select": "iid",
        "mean": (0.5,), "std": (0.5,), "resize": "crop", "crop_share": 1.0,
    }  # fmt: skip
    assert set(decided) <= DECIDED
    asked = settings_from(read_config(tmp_path / "config.yaml"))
    now = settings_record("checkup", Plan(**{**dict(asked), **decided}))
    assert comparable(tmp_path, {"config.yaml": now})["config.yaml"] == recorded
    other = settings_record("checkup", Plan(**{**dict(asked.but(penalty_every=1)), **decided}))
    assert comparable(tmp_path, {"config.yaml": other})["config.yaml"] == {**recorded, "lazy": 1}
    other = settings_record("checkup", Plan(**{**dict(asked.but(masks_per_category=7)), **decided}))
    assert comparable(tmp_path, {"config.yaml": other})["config.yaml"] != recorded


def test_help_texts_use_the_words_of_the_glossary():
    shared = {"evidence", "draws", "delta", "theta", "scale", "tau", "seed"}
    assert shared <= set(GLOSSARY) & set(Settings.model_fields)
    for name in shared:
        assert str(Settings.model_fields[name].description).startswith(GLOSSARY[name])


def test_what_a_run_records_can_be_run_again(tmp_path):
    (tmp_path / "c.yaml").write_text(EARLIER)
    decided = {
        "image_size": 24, "channels": 3, "expand_pixels": 3, "select": "mean",
        "mean": (0.5,), "std": (0.5,), "resize": "crop", "crop_share": 1.0,
    }  # fmt: skip
    for auto, name in ((False, "auto"), (True, "mean")):
        asked = settings_from({"auto": auto}, tmp_path / "c.yaml")
        plan = Plan(**{**dict(asked), **decided})
        (tmp_path / "again.yaml").write_text(yaml.safe_dump(settings_record("checkup", plan)))
        again = settings_from({}, tmp_path / "again.yaml")
        check_verb(again, "checkup")
        assert again.select == name and again == Settings(**{**dict(plan), "select": name})


@pytest.mark.parametrize(
    ("command", "sentences"),
    [
        ("data check", ["What to do with images that cannot be decoded", "[fail, with exit code 2]"]),
        ("compare", ["The test split that decides the verdict", "[as in the run]", "[5.0]"]),
        ("demo", ["[scenes]", "[small_resnet]", "[6 for each arm; the first training takes 14]"]),
        ("predict", ["[they must be given]", "[that of the weights, else 224]"]),
        ("explain", ["[those of --diagnosis; without it they must be given]"]),
        ("layers", ["How many categories the model tells apart. [10]", "timm:NAME"]),
        ("config", ["train, diagnose, treat, checkup, demo", "--schema"]),
    ],
)
def test_help_says_what_holds_in_this_command_where_a_flag_is_left_out(command, sentences):
    printed = RUNNER.invoke(app, [*command.split(), "--help"], env=WIDE).output
    shown = " ".join(printed.replace("│", " ").split())
    assert [sentence for sentence in sentences if sentence not in shown] == []


def test_data_check_says_what_is_missing_or_does_not_fit():
    for words, message in (
        ([], "--data is missing: give the data set to check"),
        (["--data", "scenes", "--on-error", "perhaps"], "--on-error 'perhaps': expected one of fail, skip"),
        (["--data", "scenes", "--workers", "-1"], "--workers -1: expected 0 or more"),
    ):
        with pytest.raises(td.InputError, match=message):
            RUNNER.invoke(app, ["data", "check", "--json", *words], catch_exceptions=False)


def test_the_earlier_name_of_a_flag_is_accepted(command):
    assert settings_from({"lazy": "3", "tau": None}).penalty_every == 3
    with pytest.raises(td.InputError, match="--lazy is the earlier name of --penalty-every"):
        settings_from({"lazy": 2, "penalty_every": 3})
    code, _, err = command("treat", "--lazy", 0, "--data", "scenes")
    assert code == 2 and "--penalty-every 0: expected a whole number of at least 1" in err
    assert "--lazy" not in RUNNER.invoke(app, ["treat", "--help"], env=WIDE).output

"""Networks of the paper go through train, checkup and predict, as a user would run them."""

from __future__ import annotations

import json

import pytest
import torch

from torchdoctor.models.catalogue import MODELS
from torchdoctor.models.loading import load_model
from torchdoctor.network.state import load_state
from torchdoctor.verbs import predict, run_checkup, run_train, settings_from

PAPER = (
    "alexnet", "vgg16", "resnet34", "resnet50", "senet34", "wideresnet28_10", "resnext50", "densenet121",
    "simplenet_v1", "efficientnetv2_s", "squeezenet", "mnasnet", "mobilenet_v2",
    "shufflenet_v2", "googlenet", "xception", "inception_v3",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_a_network_of_the_paper_is_trained_examined_and_used(name, photos, tmp_path):
    assert name in MODELS
    common = {"data": f"folder:{photos}", "image_size": 32, "batch_size": 16, "epochs": 1, "limit": 8}
    base = run_train(settings_from({**common, "model": name, "out": str(tmp_path / "base")}))
    assert base.exit_code == 0
    weights = str(tmp_path / "base" / "model.safetensors")
    about = {
        **common, "weights": weights, "out": str(tmp_path / "run"), "draws": 1, "seeds": 2,
        "confidence": 0.0, "arms": ("treated",),
    }  # fmt: skip
    outcome = run_checkup(settings_from(about))
    assert outcome.exit_code in (0, 3, 4)
    record = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert set(record["arms"]) == {"base", "control", "treated"}
    assert (tmp_path / "run" / "report.html").is_file()
    treated = tmp_path / "run" / "model" / "model.safetensors"
    found = predict(settings_from({"weights": str(treated)}), [str(photos / "test")])
    assert len(found) == 16 and {one["category"] for one in found} <= {"blue", "red"}


def test_a_state_without_versions_is_loaded_and_one_with_versions_keeps_them():
    mnasnet = load_model("mnasnet", 3, image_size=32)
    plain = {name: value.clone() for name, value in mnasnet.state_dict().items()}
    other = load_model("mnasnet", 3, image_size=32)
    load_state(other, plain)
    assert all(torch.equal(value, plain[name]) for name, value in other.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        load_state(other, dict(list(plain.items())[1:]))
    versioned = mnasnet.state_dict()
    for entry in versioned._metadata.values():
        entry["version"] = 3  # torchvision's MnasNet refuses a version that it does not know
    with pytest.raises((ValueError, RuntimeError)):
        load_state(other, versioned)

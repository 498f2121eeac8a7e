"""Every classifier of the catalogue: parameters, sizes, channels, and one diagnosis and treatment each."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

import torchdoctor
from torchdoctor import Batch, InputError, check_model, diagnose, load_model, treat
from torchdoctor.diagnosis.settings import DiagnosisSettings
from torchdoctor.models.catalogue import MODELS, ModelEntry
from torchdoctor.models.stems import halvings_to_drop, set_input_channels
from torchdoctor.network.outputs import as_logits, auxiliary_logits
from torchdoctor.network.taps import map_shapes
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.settings import TreatmentSettings
from torchdoctor.treatment.training import fit

PAPER = (
    "alexnet", "vgg16", "resnet34", "resnet50", "senet34", "wideresnet28_10", "resnext50", "densenet121",
    "simplenet_v1", "efficientnetv2_s", "googlenet", "xception", "mobilenet_v2", "inception_v3",
    "shufflenet_v2", "squeezenet", "mnasnet",
)  # fmt: skip
SIZES = (28, 32, 64, 84, 96)


def two_images(size: int, channels: int = 3) -> list[Batch]:
    """Return one batch of two random images with masks, one of each category."""
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 1, size, size)
    masks[:, :, : size // 2, : size // 2] = 1
    both = torch.tensor([True, True])
    return [Batch(images, torch.tensor([0, 1]), torch.tensor([0, 1]), masks, both)]


def parameters(model: nn.Module) -> int:
    """Count the parameters."""
    return sum(one.numel() for one in model.parameters())


def test_the_catalogue_holds_the_papers_classifiers():
    assert set(PAPER) < set(MODELS)
    assert len(PAPER) == 17


@pytest.mark.parametrize("name", PAPER)
def test_parameter_counts_equal_upstream(name):
    source, _, upstream = MODELS[name].source.partition(":")
    with torch.device("meta"):
        if source == "timm":
            import timm

            wanted = parameters(timm.create_model(upstream))
        elif source == "torchvision":
            from torchvision import models

            extra = {"init_weights": False} if upstream in ("googlenet", "inception_v3") else {}
            wanted = parameters(models.get_model(upstream, weights=None, **extra))
        else:
            wanted = None
        for size in (32, 224):
            found = parameters(MODELS[name].build(1000, 3, size))
            assert wanted is None or found == wanted


def test_our_own_counts_equal_the_published_ones():
    with torch.device("meta"):
        wide, simple = MODELS["wideresnet28_10"].build(10), MODELS["simplenet_v1"].build(10)
    assert round(parameters(wide) / 1e6, 1) == 36.5
    norms = sum(parameters(one) for one in simple.modules() if isinstance(one, nn.BatchNorm2d))
    assert round((parameters(simple) - norms) / 1e6, 2) == 5.48


DEEPEST = ("densenet121", "efficientnetv2_s", "googlenet", "inception_v3")


@pytest.mark.parametrize(
    ("channels", "sizes"),
    [(3, SIZES), (1, SIZES[:1]), pytest.param(1, SIZES[1:], marks=pytest.mark.slow)],
    ids=["colour", "grey", "grey at further sizes"],
)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in DEEPEST else name for name in PAPER]
)
def test_default_layers_have_maps_at_every_size(name, channels, sizes):
    for size in sizes:
        with torch.device("meta"):
            model = MODELS[name].build(7, channels, size)
            images = torch.empty(2, channels, size, size)
        shapes = map_shapes(model, images, MODELS[name].layers)
        assert min(shapes[MODELS[name].layers[-1]][1:]) >= 3, (size, shapes)
        sides = [shape[1] for shape in shapes.values()]
        assert sides == sorted(sides, reverse=True)


@pytest.mark.parametrize("name", PAPER)
def test_photos_of_224_pixels_on_meta_tensors(name):
    with torch.device("meta"):
        model = MODELS[name].build(1000, 3, 224)
        output = model.eval()(torch.empty(2, 3, 224, 224))
    assert as_logits(output).shape == (2, 1000)
    assert min(map_shapes(model, torch.empty(1, 3, 224, 224, device="meta"), MODELS[name].layers)[
        MODELS[name].layers[-1]][1:]) >= 5  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", PAPER)
def test_forward_diagnosis_and_treatment_are_finite_and_live(name, size):
    torch.manual_seed(0)
    model = load_model(name, 2, image_size=size).eval()
    batches = two_images(size)
    with torch.no_grad():
        assert torch.isfinite(as_logits(model(batches[0].images))).all()
    layer = MODELS[name].layers[1]
    diagnosis = diagnose(
        model,
        batches,
        layers=[layer],
        draws=1,
        confidence=0.0,
        settings=DiagnosisSettings(images_per_category=1),
    )
    assert torch.isfinite(torch.from_numpy(diagnosis.layer(layer).correlation)).all()
    for constraint in ("channel", "space"):
        treatment = treat(
            model,
            batches,
            diagnosis,
            constraints=[constraint],
            layers=[layer],
            seeds=1,
            settings=TreatmentSettings(weight=1.0, expand_pixels=0, annotated_per_batch=0.5),
            recipe=Recipe(epochs=1, learning_rate=1e-3),
        )
        assert treatment.prescription[0]["parameters_reached"] > 0
        arms = {arm.name: arm.state for arm in treatment.arms}
        assert all(torch.isfinite(one).all() for one in arms["treated"].values() if one.is_floating_point())
        assert any(not torch.equal(one, arms["control"][key]) for key, one in arms["treated"].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_the_battery_finds_nothing_wrong(name):
    torch.manual_seed(0)
    model = load_model(name, 3, image_size=32)
    found = check_model(model, torch.randn(2, 3, 32, 32), MODELS[name].layers)
    assert [one for one in found if one.level == "error"] == []


@pytest.mark.parametrize(("name", "heads"), [("googlenet", 2), ("inception_v3", 1)])
def test_auxiliary_heads_train_and_stay_out_of_the_diagnosis(name, heads):
    torch.manual_seed(0)
    model = load_model(name, 2, image_size=32)
    batch = two_images(32)[0]
    assert len(auxiliary_logits(model.train()(batch.images))) == heads
    before = {key: value.clone() for key, value in model.state_dict().items()}
    recipe = Recipe(epochs=1, learning_rate=0.01)
    history = fit(model, lambda _epoch: [batch], recipe, steps_per_epoch=1, seed=0).history
    assert history[0]["auxiliary"] > 0
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert any(key.startswith(("aux", "Aux")) for key in moved)
    assert auxiliary_logits(model.eval()(batch.images)) == ()
    inside = next(key for key, one in model.named_modules() if "ux" in key and isinstance(one, nn.Conv2d))
    with pytest.raises(InputError, match=inside):
        diagnose(model, [batch], layers=[inside], draws=0, confidence=0.0)


def test_stems_keep_the_networks_parameters_and_the_maps_side():
    assert [halvings_to_drop(224, size) for size in (28, 32, 64, 84, 96, 224)] == [2, 2, 1, 1, 1, 0]
    small, large = load_model("resnet34", 5, image_size=32), load_model("resnet34", 5, image_size=224)
    assert {k: v.shape for k, v in small.state_dict().items()} == {
        k: v.shape for k, v in large.state_dict().items()
    }
    assert isinstance(small.maxpool, nn.Identity)
    assert small.conv1.stride == (1, 1)
    assert large.conv1.stride == (2, 2)


def test_grey_kernels_answer_a_grey_image_as_the_colour_ones_do():
    torch.manual_seed(0)
    colour = nn.Sequential(nn.Conv2d(3, 4, 3))
    grey = nn.Sequential(nn.Conv2d(3, 4, 3))
    grey.load_state_dict(colour.state_dict())
    set_input_channels(grey, 1)
    image = torch.randn(1, 1, 8, 8)
    assert torch.allclose(grey(image), colour(image.expand(-1, 3, -1, -1)), atol=1e-5)


def test_an_entry_from_outside_the_package(monkeypatch, tmp_path, capsys):
    def make(classes: int, channels: int, _image_size: int) -> nn.Module:
        body = nn.Conv2d(channels, 4, 3)
        return nn.Sequential(body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))

    entry = ModelEntry("mine", "A network of mine", "my own", make, layers=("0",), made_for=16)
    monkeypatch.setitem(MODELS, "mine", entry)
    assert load_model("mine", 3, channels=1)(torch.zeros(2, 1, 16, 16)).shape == (2, 3)
    from torchdoctor.cli.app import main

    monkeypatch.setattr(sys, "argv", ["torchdoctor", "models", "--json"])
    with pytest.raises(SystemExit):
        main()
    listed = json.loads(capsys.readouterr().out)
    assert next(one for one in listed if one["name"] == "mine")["layers"] == ["0"]


def test_the_layers_command_says_what_decides(monkeypatch, capsys):
    from torchdoctor.cli.app import main

    argv = ["torchdoctor", "layers", "squeezenet", "--image-size", "32", "--channels", "1", "--json"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit):
        main()
    listed = json.loads(capsys.readouterr().out)
    assert {"name", "shape", "kernels", "rho", "affine", "reaches_earlier"} <= set(listed[0])
    assert [one["rho"] for one in listed] == sorted((one["rho"] for one in listed), reverse=True)
    assert [one["name"] for one in listed if one["default"]] == list(MODELS["squeezenet"].layers)


class Facts(nn.Module):
    """A network whose every layer is of a known kind."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 4, 3, padding=1)
        self.activation, self.fc = activation, nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.activation(self.second(self.activation(self.first(images))))
        return self.fc(self.last(maps).mean((2, 3)))


def test_layer_facts_of_known_networks():
    torch.manual_seed(0)
    images = torch.randn(1, 3, 8, 8)
    straight = {one.name: one for one in torchdoctor.survey_layers(Facts(nn.ReLU()), images)}
    assert [one.affine for one in straight.values()] == [False, False, True]
    assert [one.reaches_earlier["gradient"] for one in straight.values()] == [False, False, False]
    assert straight["last"].rho == pytest.approx(4 * 2 / (64 * 9 * (3 + 4 + 4) * 4 + 4 * 2), rel=1e-6)
    curved = {one.name: one for one in torchdoctor.survey_layers(Facts(nn.SiLU()), images)}
    assert [one.affine for one in curved.values()] == [False, False, True]
    assert [one.reaches_earlier["gradient"] for one in curved.values()] == [True, True, False]
    assert all(one.reaches_earlier["gradient_x_activation"] for one in curved.values())


def test_unknown_names_come_with_near_ones():
    with pytest.raises(InputError, match="mobilenet_v2"):
        load_model("mobilenetv2", 10)
    with pytest.raises(InputError, match="0 categories"):
        load_model("vgg16", 0)

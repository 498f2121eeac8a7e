"""A user's own network: probabilities are seen by their values, and errors of its factory are named."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from torchdoctor import InputError, check_model, load_model
from torchdoctor.network.checks import TO_TRAIN, try_out


class Ending(nn.Module):
    """A small classifier with a softmax and one step behind it."""

    def __init__(self, step):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head, self.step = nn.Linear(4, 3), step

    def forward(self, images):
        return self.step(self.head(self.body(images)))


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.softmax(1).view(len(x), -1),
        lambda x: x.softmax(1).clamp(1e-7, 1),
        lambda x: x.softmax(1) * 1.0,
        lambda x: x.exp() / x.exp().sum(1, keepdim=True),
        lambda x: x.relu().add(0.1) / x.relu().add(0.1).sum(1, keepdim=True),
        lambda x: x.double().softmax(1).float(),
    ],
)
def test_probabilities_are_seen_by_their_values(step):
    found = [each for each in check_model(Ending(step), torch.rand(2, 3, 8, 8)) if each.check == "output"]
    assert [each.level for each in found] == ["error"]
    assert "ends in Softmax" in found[0].message


@pytest.mark.parametrize(
    ("step", "level", "kind"),
    [
        (lambda x: x.sigmoid().view(len(x), -1), "error", "Sigmoid"),
        (lambda x: x.sigmoid().clamp(1e-6, 1 - 1e-6), "error", "Sigmoid"),
        (lambda x: x.softmax(1) + 1e-3, "error", "Softmax"),
        (lambda x: 100 * x.softmax(1), "error", "Softmax"),
        (lambda x: x.softmax(1) + (2 * x).softmax(1), "error", "Softmax"),
        (lambda x: torch.stack([x.softmax(1), (2 * x).softmax(1)]).sum(0), "error", "Softmax"),
        (lambda x: -x.softmax(1), "error", "Softmax"),
        (lambda x: x.log_softmax(1) * 1.0, "warning", "LogSoftmax"),
        (lambda x: (x.softmax(1) + 1e-8).log(), "warning", "Log of Softmax"),
    ],
)
def test_probabilities_are_seen_behind_further_steps(step, level, kind):
    found = [each for each in check_model(Ending(step), torch.rand(2, 3, 8, 8)) if each.check == "output"]
    assert [each.level for each in found] == [level]
    assert f"ends in {kind}:" in found[0].message


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x * x.sigmoid(),
        lambda x: 10 * x.sigmoid() - 5,
        lambda x: x + x.softmax(1),
        lambda x: x.softmax(1) @ torch.randn(3, 3),
        lambda x: x.abs() + 1,
    ],
)
def test_gates_and_bounds_are_no_probabilities(step):
    torch.manual_seed(0)  # with other weights a scaled sigmoid may lie within 0..1 by chance
    found = check_model(Ending(step), torch.rand(2, 3, 8, 8))
    assert [each for each in found if each.check == "output"] == []


def test_positive_logits_are_no_probabilities():
    found = check_model(Ending(lambda x: x.exp()), torch.rand(2, 3, 8, 8))
    assert [each for each in found if each.check == "output"] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def make(cfg): return cfg['n']", "the factory raised TypeError"),
        ("def make(num_classes): raise FileNotFoundError('backbone.pth')", "FileNotFoundError: backbone.pth"),
        ("import torch\ntorch.no_such_thing\ndef make(num_classes): pass", "fails on import: AttributeError"),
        ("def make(:", "fails on import: SyntaxError"),
        ("import no_such_module_here\n", "cannot be imported"),
        (
            "import torch\ndef make(num_classes): return torch.nn.Linear(3, 2).half()",
            "half precision .*float16",
        ),
        ("import torch\ndef make(num_classes): return torch.nn.Linear(3, 2).bfloat16()", "half precision"),
        (
            "import torch\ndef make(num_classes): return torch.nn.Linear(3, 2).double()",
            r"another precision .*float64.*leave .*\.double",
        ),
        (
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('--lr', required=True)\n"
            "p.parse_args([])",
            r"ended the program on import \(sys.exit\(2\)\).*__name__",
        ),
        ("import sys\nsys.exit()", r"ended the program on import \(sys.exit\(None\)\)"),
        ("def make(num_classes): raise SystemExit('no config')", "the factory ended the program .*no config"),
        ("def make(num_classes): assert num_classes == 7", "own_network.*line 1: def make.*assert"),
        ("make = 3", "holds no function or class 'make'"),
        ("other = 3", "has no 'make'"),
    ],
)
def test_errors_of_a_factory_are_told(text, said, tmp_path, monkeypatch, request):
    module = f"own_network_{abs(hash(request.node.name))}"
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=said):
        load_model(f"{module}:make", 2)


def test_lazy_layers_get_their_weights_from_an_image_of_the_size(tmp_path, monkeypatch):
    (tmp_path / "own_lazy.py").write_text(
        "from torch import nn\ndef make(num_classes):\n    return nn.Sequential(nn.LazyConv2d(4, 3), "
        "nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes))"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = load_model("own_lazy:make", 2, channels=3, image_size=8)
    assert model.training and model[3].weight.shape == (2, 144)
    assert check_model(model, torch.rand(2, 3, 8, 8)) == ()
    with pytest.raises(InputError, match=r"no weights yet: 0\.weight belongs to a lazy layer"):
        load_model("own_lazy:make", 2)
    with pytest.raises(InputError, match="lazy layers, and fails on an image of 3 x 2 x 2"):
        load_model("own_lazy:make", 2, image_size=2)


class Plain(Ending):
    def __init__(self):
        super().__init__(lambda logits: logits)


class NoGrad(Plain):
    def forward(self, images):
        with torch.no_grad():
            maps = self.body(images)
        return self.head(maps)


class Inference(Plain):
    @torch.inference_mode()
    def forward(self, images):
        return super().forward(images)


class Detached(Plain):
    def forward(self, images):
        return self.head(self.body(images).detach())


class InPlace(Plain):
    def forward(self, images):
        return super().forward(images.mul_(2))


class Asserting(Plain):
    def forward(self, images):
        if images.shape[-1] != 224:
            raise AssertionError  # as `assert` does, without a text
        return super().forward(images)


@pytest.mark.parametrize(
    ("kind", "check", "said"),
    [
        (NoGrad, "layers", r"runs them under torch\.no_grad"),
        (Inference, "layers", r"runs them under torch\.inference_mode"),
        (Detached, "layers", r"cuts them off on the way \(detach"),
        (InPlace, "forward", "changes the images that it is given, in place"),
        (Asserting, "forward", r"AssertionError at test_own_networks\.py, line \d+: raise AssertionError"),
    ],
)
def test_what_forward_does_is_named(kind, check, said):
    images = torch.rand(2, 3, 8, 8)
    before = images.clone()
    (finding,) = check_model(kind(), images)
    assert finding.check == check and re.search(said, finding.message)
    assert torch.equal(images, before)


def test_a_network_without_derivatives_is_not_trained():
    (finding,) = try_out(Inference(), torch.rand(2, 3, 8, 8), (), TO_TRAIN)
    assert finding.check == "training" and "training would change nothing" in finding.message
    assert try_out(NoGrad(), torch.rand(2, 3, 8, 8), (), TO_TRAIN) == ()  # its head can be trained

"""A user's own network: probabilities are seen by their values, and errors of its factory are named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchdoctor import InputError, check_model, load_model


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

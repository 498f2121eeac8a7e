"""Evidence averaged over the draws in closed form is the mean of the draws' evidence, its gradient too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from test_shortcuts import batch_for, residual
from torchdoctor.network.shortcuts import find_shortcuts
from torchdoctor.network.tails import remembering
from torchdoctor.treatment import penalties
from torchdoctor.treatment.constraints import CONSTRAINTS, Constraint, constraints_named
from torchdoctor.treatment.losses import classification_terms
from torchdoctor.treatment.passes import Noise, Tails
from torchdoctor.treatment.penalties import penalise
from torchdoctor.treatment.weighting import Prescription


class Plain(nn.Module):
    """A convolution, batch-norm, an activation, and a head that weighs positions differently or not."""

    def __init__(self, activation, pooled):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.act = activation
        self.pooled = pooled
        self.head = nn.Linear(6 if pooled else 6 * 64, 4)

    def forward(self, images):
        maps = self.act(self.bn(self.conv(self.stem(images).relu())))
        return self.head(maps.mean((2, 3)) if self.pooled else maps.flatten(1))


def network(name):
    torch.manual_seed(5)
    if name == "residual":
        return residual(), "two.conv2"
    kind = nn.ReLU6() if name == "relu6" else nn.ReLU(inplace=name == "in place")
    model = Plain(kind, name != "every position").double()
    model.bn.running_mean.normal_()
    model.bn.running_var.uniform_(0.5, 1.5)
    model.bn.weight.data.normal_()
    return model.eval(), "conv"


def both_ways(model, layer, constraints, reduce="mean"):
    batch, diagnosis = batch_for(model, layers=[layer])
    shortcuts = find_shortcuts(model, batch.images, [layer])
    found = []
    for closed in ((layer,), ()):
        with remembering(model, shortcuts) as trunk:
            logits, _ = classification_terms(model, batch)
        value = penalise(
            model, batch, constraints, diagnosis, noise=Noise(6, reduce, seed=2), expand_pixels=1, step=5,
            logits=logits.detach(), tails=Tails(trunk, closed),
        )  # fmt: skip
        found.append(value)
    return found


@pytest.fixture
def used(monkeypatch):
    """Count how often the closed form is asked."""
    calls = []
    real = penalties.mean_evidence
    monkeypatch.setattr(penalties, "mean_evidence", lambda *given: calls.append(1) or real(*given))
    return calls


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("name", ["residual", "relu6", "in place", "every position"])
def test_every_constraint_and_its_gradient_equal_the_draws_one_by_one(name, reduce, used):
    model, layer = network(name)
    constraints = constraints_named(list(CONSTRAINTS), layers=[layer])
    short, long = both_ways(model, layer, constraints, reduce)
    assert used
    for one in CONSTRAINTS:
        assert long[one].abs().sum() > 0
        torch.testing.assert_close(short[one], long[one], rtol=1e-10, atol=1e-13)
        gradients = [
            torch.autograd.grad(
                value[one].sum(), list(model.parameters()), allow_unused=True, retain_graph=True
            )
            for value in (short, long)
        ]
        assert any(grad is not None and grad.abs().sum() > 0 for grad in gradients[1])
        for parameter, mine, other in zip(model.parameters(), *gradients, strict=True):
            mine, other = (torch.zeros_like(parameter) if each is None else each for each in (mine, other))
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-13)


def test_a_penalty_that_is_not_linear_sees_every_draw(used):
    model, layer = network("in place")
    seen = []

    def squared(evidence):
        seen.append(len(evidence.target))
        return evidence.target.square().sum((2, 3, 4))

    own = Constraint("own", squared, (layer,), uses_runner_up=False)
    short, long = both_ways(model, layer, (own,))
    assert seen == [6, 6]
    assert not used
    torch.testing.assert_close(short["own"], long["own"])


@pytest.mark.parametrize(("draws", "asked"), [(1, 0), (4, 1)])
def test_a_prescription_finds_the_closed_form_for_many_draws(draws, asked, used):
    model, layer = network("residual")
    batch, diagnosis = batch_for(model, layers=[layer, "one.conv1"])
    constraints = constraints_named(["channel weight=1"], layers=[layer, "one.conv1"])
    Prescription(constraints, diagnosis, Noise(draws), 1).terms(model, batch.images, 3)(model, batch, 0)
    assert len(used) == asked  # one.conv1 has a whole block behind it

"""Closed forms equal the plain loop wherever they are taken, and are not taken elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from reference import correlation, tiny_net
from torchdoctor.diagnosis.diagnose import diagnose
from torchdoctor.diagnosis.settings import DiagnosisSettings
from torchdoctor.evidence.closed_form import ClosedForm, closed_form
from torchdoctor.evidence.gates import NoClosedFormError, gated
from torchdoctor.images.batches import Batch
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.types import InputError

SHAPE = (6, 4, 4)


class Tail(nn.Module):
    """A convolution, and behind it one of several small tails."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(3)
        self.kind = kind
        self.stem = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(12 if kind == "joined" else 6)
        self.bn.running_mean.uniform_(-0.2, 0.2)
        self.bn.running_var.uniform_(0.3, 1.5)
        with torch.no_grad():
            self.bn.weight.uniform_(-1.5, 1.5)
            self.bn.weight[2] = 0.0
            self.bn.bias.uniform_(-0.3, 0.3)
        self.fc = nn.Linear(6 * 16 if kind == "flat" else 12 if kind == "joined" else 6, 4)
        self.eval().double()

    def forward(self, images):
        before = torch.sin(self.stem(images))
        maps = self.conv(before)
        if self.kind == "shortcut":
            maps = torch.relu(self.bn(maps) + before)
        elif self.kind == "joined":
            maps = torch.relu(self.bn(torch.cat([before, maps], 1)))
        elif self.kind == "relu6":
            maps = nn.functional.relu6(8 * self.bn(maps))
        elif self.kind == "in place":
            maps = torch.relu_(self.bn(maps))
        elif self.kind == "bare":
            return self.fc(nn.functional.adaptive_avg_pool2d(self.bn(maps), 1).flatten(1))
        elif self.kind == "silu":
            maps = nn.functional.silu(maps)
        elif self.kind == "max pool":
            maps = nn.functional.max_pool2d(torch.relu(maps), 2)
        elif self.kind == "twice":
            maps = maps + torch.relu(self.bn(maps))
        elif self.kind == "squared":
            maps = torch.relu(maps)
            maps = maps * maps
        else:
            maps = torch.relu(self.bn(maps))
        if self.kind == "flat":
            return self.fc(maps.flatten(1))
        return self.fc(maps.mean((2, 3)))


KNOWN = ("plain", "shortcut", "joined", "relu6", "in place", "bare", "flat")


def some_batch(model, number=20):
    images = torch.rand(number, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch(images, model(images).argmax(1).detach(), 5 * torch.arange(number) + 2)


@pytest.mark.parametrize("kind", ["gradient", "gradient_x_activation"])
@pytest.mark.parametrize("tail", KNOWN)
def test_a_closed_form_equals_the_plain_loop(tail, kind):
    model = Tail(tail)
    batch = some_batch(model)
    found = diagnose(
        model,
        [batch],
        layers=["conv"],
        draws=4,
        settings=DiagnosisSettings(delta=0.4),
        confidence=0.0,
        evidence=kind,
        seed=7,
    ).layers[0]
    assert found.path == "closed form"
    wanted = correlation(
        model, batch.images, batch.ids.tolist(), batch.labels.tolist(), "conv", SHAPE,
        delta=0.4, draws=4, seed=7, kind=kind, categories=4,
    ).numpy()  # fmt: skip
    assert wanted.max() > 0
    np.testing.assert_allclose(found.correlation, wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("tail", ["silu", "max pool", "twice", "squared"])
def test_other_tails_are_run_again(tail):
    model = Tail(tail)
    batch = some_batch(model)
    found = diagnose(
        model,
        [batch],
        layers=["conv"],
        draws=2,
        settings=DiagnosisSettings(delta=0.4),
        confidence=0.0,
        seed=7,
    ).layers[0]
    assert found.path == "vmap"
    wanted = correlation(
        model, batch.images, batch.ids.tolist(), batch.labels.tolist(), "conv", SHAPE,
        delta=0.4, draws=2, seed=7, kind="gradient", categories=4,
    ).numpy()  # fmt: skip
    np.testing.assert_allclose(found.correlation, wanted, rtol=1e-10, atol=1e-13)
    with frozen_eval(model), pytest.raises(NoClosedFormError):
        gated(model, batch.images[:2], "conv")


def test_batch_statistics_have_no_closed_form():
    model = Tail("plain")
    with frozen_eval(model):
        model.bn.train()
        with pytest.raises(NoClosedFormError, match="the batch's own statistics"):
            gated(model, torch.rand(2, 1, 8, 8, dtype=torch.float64), "conv")


def test_a_closed_form_that_the_network_does_not_confirm_is_not_taken(monkeypatch):
    model = Tail("plain")
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    with frozen_eval(model) as frozen:
        assert closed_form(frozen, images, "conv") is not None
        right = ClosedForm.slope
        monkeypatch.setattr(ClosedForm, "slope", lambda *given: 1.01 * right(*given))
        assert closed_form(frozen, images, "conv") is None


def integral(model, batch, delta, kind, points=2001):
    """Average the evidence of a `plain` tail over a fine grid of noise."""
    maps = model.conv(torch.sin(model.stem(batch.images))).detach()
    scale = (model.bn.weight / torch.sqrt(model.bn.running_var + model.bn.eps)).detach()
    shift = (model.bn.bias - model.bn.running_mean * scale).detach()
    slope = (model.fc.weight[batch.labels] / 16 * scale).detach().abs()[:, :, None, None]
    total = torch.zeros_like(maps)
    middles = (torch.arange(points, dtype=torch.float64) + 0.5) / points * 2 - 1
    for one in middles.tolist():
        noisy = maps + delta * one
        is_open = noisy * scale[:, None, None] + shift[:, None, None] > 0
        total += slope * is_open * (1.0 if kind == "gradient" else noisy.abs())
    rows = (total / points).sum((2, 3)).numpy()
    labels = batch.labels.numpy()
    return np.stack([rows[labels == c].mean(0) if (labels == c).any() else np.zeros(6) for c in range(4)])


@pytest.mark.parametrize("kind", ["gradient", "gradient_x_activation"])
def test_exact_draws_are_the_integral_and_the_limit_of_many(kind):
    model = Tail("plain")
    batch = some_batch(model)
    settings = {
        "layers": ["conv"],
        "confidence": 0.0,
        "evidence": kind,
        "settings": DiagnosisSettings(delta=0.3),
    }
    exact = diagnose(model, [batch], draws="exact", **settings).layers[0].correlation
    np.testing.assert_allclose(exact, integral(model, batch, 0.3, kind), rtol=2e-3)
    errors = [
        np.abs(diagnose(model, [batch], draws=draws, **settings).layers[0].correlation - exact).max()
        for draws in (4, 400)
    ]
    assert errors[1] < 0.02 * exact.max() and errors[1] < errors[0]


def test_exact_draws_without_noise_are_the_plain_gradient():
    model = Tail("relu6")
    batch = some_batch(model)
    one, other = (
        diagnose(
            model,
            [batch],
            layers=["conv"],
            draws=draws,
            settings=DiagnosisSettings(delta=0.0),
            confidence=0.0,
        )
        .layers[0]
        .correlation
        for draws in ("exact", 0)
    )
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_exact_draws_are_refused_where_there_is_no_closed_form():
    model = tiny_net()
    batch = some_batch(model)
    with pytest.raises(InputError, match="draws 'exact': layer 'conv1' has no closed form"):
        diagnose(model, [batch], layers=["conv1"], draws="exact", confidence=0.0)
    with pytest.raises(InputError, match="draws is -1; expected 0"):
        diagnose(model, [batch], layers=["conv1"], draws=-1, confidence=0.0)

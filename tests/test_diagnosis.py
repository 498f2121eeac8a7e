"""The diagnosis equals the plain rewrite of Eq. 2-4, and obeys its laws."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from reference import correlation, tiny_net
from torchdoctor.diagnosis.diagnose import diagnose, state_sha256
from torchdoctor.diagnosis.settings import DiagnosisSettings
from torchdoctor.diagnosis.statistics import correlated_kernels
from torchdoctor.images.batches import Batch
from torchdoctor.types import InputError

LAYERS = {"conv1": (5, 8, 8), "conv2": (6, 4, 4), "conv3": (7, 4, 4)}


def some_images(number=24, categories=4, seed=1):
    """Return images [number, 1, 8, 8] in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(number, 1, 8, 8, generator=generator, dtype=torch.float64)


def batches_of(model, images, size, order=None):
    """Cut the images into batches labelled with the network's own predictions."""
    labels = model(images).argmax(1).detach()
    ids = torch.arange(len(images)) * 3 + 7
    order = torch.arange(len(images)) if order is None else order
    return [Batch(images[part], labels[part], ids[part]) for part in torch.split(order, size)]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
@pytest.mark.parametrize("kind", ["gradient", "gradient_x_activation"])
@pytest.mark.parametrize("draws", [0, 3])
def test_correlation_equals_the_plain_rewrite(activation, kind, draws):
    model, images = tiny_net(activation), some_images()
    batches = batches_of(model, images, 7)
    found = diagnose(
        model,
        batches,
        layers=list(LAYERS),
        evidence=kind,
        draws=draws,
        settings=DiagnosisSettings(delta=0.05),
        confidence=0.0,
        seed=5,
    )
    labels = model(images).argmax(1).tolist()
    ids = (torch.arange(len(images)) * 3 + 7).tolist()
    for layer, shape in LAYERS.items():
        wanted = correlation(
            model, images, ids, labels, layer, shape,
            delta=0.05, draws=draws, seed=5, kind=kind, categories=4,
        )  # fmt: skip
        assert wanted.abs().max() > 0
        np.testing.assert_allclose(found.layer(layer).correlation, wanted.numpy(), rtol=1e-10, atol=1e-13)


def test_batches_order_and_chunks_change_no_bit(monkeypatch):
    model, images = tiny_net(), some_images()
    settings = {"layers": ["conv2"], "draws": 4, "confidence": 0.0}
    one = diagnose(model, batches_of(model, images, 24), **settings)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    many = diagnose(model, batches_of(model, images, 5, order), **settings)
    monkeypatch.setattr("torchdoctor.evidence.probes.floats_at_hand", lambda _device: 1)
    chunked = diagnose(model, batches_of(model, images, 24), **settings)
    for other in (many, chunked):
        for field in ("correlation", "variance", "quantiles", "activation"):
            np.testing.assert_allclose(
                getattr(one.layers[0], field), getattr(other.layers[0], field), rtol=1e-12, atol=1e-15
            )
        assert one.layers[0].delta == pytest.approx(other.layers[0].delta, rel=1e-12)


def test_delta_defaults_to_a_tenth_of_the_standard_deviation_over_the_sifted_images():
    model, images = tiny_net(), some_images()
    found = diagnose(model, batches_of(model, images, 8), layers=["conv1"], draws=1, confidence=0.0)
    assert found.layers[0].delta == pytest.approx(0.1 * float(model.conv1(images).std(correction=0)))


def test_no_noise_agrees_with_captum():
    captum = pytest.importorskip("captum.attr")
    model, images = tiny_net(), some_images()
    labels = model(images).argmax(1)
    found = diagnose(model, batches_of(model, images, 24), layers=list(LAYERS), draws=0, confidence=0.0)
    for layer in LAYERS:
        attribution = captum.LayerGradientXActivation(
            model, model.get_submodule(layer), multiply_by_inputs=False
        ).attribute(images, target=labels)
        sums = attribution.abs().sum((2, 3))
        for category in labels.unique().tolist():
            np.testing.assert_allclose(
                found.layer(layer).correlation[category],
                sums[labels == category].mean(0).detach().numpy(),
                rtol=1e-10,
            )


def test_a_diagnosis_changes_no_parameter_buffer_or_mode():
    model, images = tiny_net(), some_images()
    batches = batches_of(model, images, 8)
    model.train()
    model.bn1.eval()
    model.conv1.weight.requires_grad_(False)
    before = state_sha256(model)
    diagnose(model, batches, layers=["conv1", "conv3"], confidence=0.0)
    assert state_sha256(model) == before
    assert model.training and model.conv2.training and not model.bn1.training
    assert not model.conv1.weight.requires_grad and model.conv2.weight.requires_grad
    assert not any(module._forward_hooks for module in model.modules())


def test_models_that_cannot_be_vmapped_fall_back_to_repeated_images():
    class InPlaceSum(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_net()
            self.side = nn.Conv2d(1, 5, 1).double()

        def forward(self, images):
            maps = self.side(images)
            maps += self.inner.conv1(images)
            maps = self.inner.activation(self.inner.bn1(maps))
            maps = self.inner.activation(self.inner.conv2(maps))
            maps = self.inner.activation(self.inner.bn3(self.inner.conv3(maps)))
            return self.inner.fc(maps.mean((2, 3)))

    model, images = InPlaceSum().eval(), some_images()
    labels = model(images).argmax(1)
    found = diagnose(
        model,
        batches_of(model, images, 24),
        layers=["inner.conv1"],
        draws=2,
        settings=DiagnosisSettings(delta=0.1),
        confidence=0.0,
    )
    assert found.layers[0].path == "repeat"
    wanted = correlation(
        model, images, (torch.arange(24) * 3 + 7).tolist(), labels.tolist(), "inner.conv1", (5, 8, 8),
        delta=0.1, draws=2, seed=0, kind="gradient", categories=4,
    )  # fmt: skip
    np.testing.assert_allclose(found.layers[0].correlation, wanted.numpy(), rtol=1e-10)


def test_in_place_activations_equal_their_twin():
    plain = tiny_net()
    in_place = copy.deepcopy(plain)
    in_place.activation = nn.ReLU(inplace=True)
    images = some_images()
    for layer in ("conv1", "bn1", "conv3", "bn3"):
        one, other = (
            diagnose(
                model,
                batches_of(model, images, 24),
                layers=[layer],
                draws=2,
                settings=DiagnosisSettings(delta=0.1),
                confidence=0.0,
                evidence="gradient_x_activation",
            )
            for model in (plain, in_place)
        )
        np.testing.assert_array_equal(one.layers[0].correlation, other.layers[0].correlation)


def test_correlated_kernels_by_relative_height():
    table = np.array([[0.0, 1.0, 5.0], [2.0, 2.0, 2.0], [1.0, 1.8, 5.0]])
    wanted = [[False, True, True], [False, False, False], [False, True, True]]
    assert correlated_kernels(table, 0.2).tolist() == wanted


def test_a_category_without_a_confident_image_is_not_diagnosed():
    model, images = tiny_net(), some_images()
    labels = model(images).argmax(1)
    never = torch.where(labels == 0, 1, labels)
    found = diagnose(model, [Batch(images, never, torch.arange(24))], layers=["conv3"], confidence=0.0)
    assert found.counts[0] == 0 and "0" in found.not_diagnosed
    assert not found.layers[0].correlated[0].any() and (found.layers[0].correlation[0] == 0).all()
    assert not found.inconclusive
    nothing = diagnose(model, [Batch(images, labels, torch.arange(24))], layers=["conv3"], confidence=1.0)
    assert nothing.inconclusive and nothing.layers[0].correlation.shape == (4, 7)


def test_bad_layers_are_named_with_near_ones():
    model, images = tiny_net(), some_images()
    batches = batches_of(model, images, 24)
    with pytest.raises(InputError, match=r"layer 'conv33' .*did you mean conv3"):
        diagnose(model, batches, layers=["conv33"])
    with pytest.raises(InputError, match=r"layer 'fc' gives shape .*expected a 4-dimensional map"):
        diagnose(model, batches, layers=["fc"])
    with pytest.raises(InputError, match="'activation' is called 3 times"):
        diagnose(model, batches, layers=["activation"])


def test_a_layer_beside_the_logits_is_an_error_not_a_zero():
    model, images = tiny_net(), some_images()
    model.auxiliary = nn.Conv2d(1, 2, 3).double()
    forward = model.forward

    def with_auxiliary(pixels):
        model.auxiliary(pixels)
        return forward(pixels)

    model.forward = with_auxiliary
    with pytest.raises(InputError, match="'auxiliary' does not feed the logits"):
        diagnose(model, batches_of(model, images, 24), layers=["auxiliary"], confidence=0.0)

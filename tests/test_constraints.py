"""The constraints equal the plain rewrite of Eq. 5-7, and their gradients equal finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from reference import penalty, tiny_net, total_loss
from test_diagnosis import LAYERS, batches_of, some_images
from torchdoctor.diagnosis.diagnose import diagnose
from torchdoctor.diagnosis.settings import DiagnosisSettings
from torchdoctor.images.batches import Batch
from torchdoctor.images.masks import background_mask
from torchdoctor.treatment.constraints import Constraint, constraints_named
from torchdoctor.treatment.passes import Noise
from torchdoctor.treatment.penalties import penalise
from torchdoctor.types import InputError


def case(activation=nn.ReLU, layers=("conv2", "conv3")):
    """Return (model, diagnosis, batch with masks on some images)."""
    model, images = tiny_net(activation), some_images()
    diagnosis = diagnose(
        model,
        batches_of(model, images, 24),
        layers=list(layers),
        draws=2,
        confidence=0.0,
        settings=DiagnosisSettings(theta=0.4),
    )
    generator = torch.Generator().manual_seed(9)
    masks = torch.zeros(6, 1, 8, 8, dtype=torch.float64)
    masks[:, :, 2:5, 1:4] = 1
    labels = torch.randint(0, 4, (6,), generator=generator)
    annotated = torch.tensor([True, False, True, True, False, True])
    return model, diagnosis, Batch(images[:6], labels, torch.arange(6) + 50, masks, annotated)


@pytest.mark.parametrize("which", ["channel", "space"])
@pytest.mark.parametrize("kind", ["gradient", "gradient_x_activation"])
@pytest.mark.parametrize("scale", ["none", "share"])
@pytest.mark.parametrize("targets", ["prediction", "label"])
@pytest.mark.parametrize(("draws", "reduce"), [(0, "mean"), (3, "mean"), (3, "sum")])
def test_penalties_equal_the_plain_rewrite(which, kind, scale, targets, draws, reduce):
    model, diagnosis, batch = case()
    constraints = constraints_named(
        [which], layers=["conv2", "conv3"], evidence=kind, scale=scale, targets=targets
    )
    found = penalise(
        model, batch, constraints, diagnosis, noise=Noise(draws, reduce, seed=4), expand_pixels=1, step=11,
    )[which]  # fmt: skip
    for row in range(6):
        wanted = sum(
            penalty(
                model, batch.images[row], int(batch.ids[row]), int(batch.labels[row]), layer, LAYERS[layer],
                which=which, correlated=diagnosis.layer(layer).correlated, diagnosed=diagnosis.counts > 0,
                mask=batch.masks[row, 0] if batch.annotated[row] else None, pixels=1,
                delta=diagnosis.layer(layer).delta, draws=draws, reduce=reduce, seed=4, step=11, kind=kind,
                scale=scale, targets=targets,
            )
            for layer in ("conv2", "conv3")
        )  # fmt: skip
        assert float(found[row]) == pytest.approx(float(wanted), rel=1e-10, abs=1e-13)
    assert which == "channel" or bool((found[~batch.annotated] == 0).all())


@pytest.mark.parametrize("draws", [0, 2])
def test_the_total_loss_and_its_gradient_equal_eq_7(draws):
    model, diagnosis, batch = case(nn.SiLU)
    constraints = constraints_named(
        ["channel", "space"], layers=["conv2"], evidence="gradient", scale="share"
    )
    found = penalise(model, batch, constraints, diagnosis, noise=Noise(draws, seed=1), step=2)
    weights = {"channel": 0.3, "space": 0.7}
    loss = nn.functional.cross_entropy(model(batch.images), batch.labels)
    total = loss + sum(weights[name] * value.mean() for name, value in found.items())
    slow = [
        (
            weights[one.name],
            [
                penalty(
                    model, batch.images[row], int(batch.ids[row]), int(batch.labels[row]), "conv2",
                    LAYERS["conv2"], which=one.name, correlated=diagnosis.layer("conv2").correlated,
                    diagnosed=diagnosis.counts > 0,
                    mask=batch.masks[row, 0] if batch.annotated[row] else None,
                    delta=diagnosis.layer("conv2").delta, draws=draws, seed=1, step=2, scale="share",
                )
                for row in range(6)
            ],
        )
        for one in constraints
    ]  # fmt: skip
    wanted = total_loss(model, batch.images, batch.labels, slow)
    assert float(total) == pytest.approx(float(wanted), rel=1e-10)
    parameters = list(model.parameters())
    fast = torch.autograd.grad(total, parameters)
    for one, other in zip(fast, torch.autograd.grad(wanted, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def finite_difference(function, parameter, index, width=1e-6):
    """Return the central difference of function() by one entry of a parameter."""
    with torch.no_grad():
        flat = parameter.view(-1)
        kept = float(flat[index])
        flat[index] = kept + width
    above = float(function())
    with torch.no_grad():
        flat[index] = kept - width
    below = float(function())
    with torch.no_grad():
        flat[index] = kept
    return (above - below) / (2 * width)


@pytest.mark.parametrize("which", ["channel", "space"])
@pytest.mark.parametrize("scale", ["none", "share"])
@pytest.mark.parametrize("draws", [0, 2])
def test_gradients_of_penalties_equal_finite_differences_with_silu(which, scale, draws):
    model, diagnosis, batch = case(nn.SiLU)
    constraints = constraints_named([which], layers=["conv2"], evidence="gradient", scale=scale)
    clean = model(batch.images).detach()

    def value():
        return penalise(model, batch, constraints, diagnosis, noise=Noise(draws, seed=3), logits=clean)[
            which
        ].mean()

    named = {name: one for name, one in model.named_parameters() if name.split(".")[0] != "fc"}
    named["fc.weight"] = model.fc.weight
    found = torch.autograd.grad(value(), list(named.values()), allow_unused=True)
    for (name, parameter), gradient in zip(named.items(), found, strict=True):
        for index in {0, parameter.numel() // 2, parameter.numel() - 1}:
            slow = finite_difference(value, parameter, index)
            assert float(gradient.reshape(-1)[index]) == pytest.approx(slow, rel=2e-4, abs=2e-6), name


def test_relu_reaches_what_lies_after_the_layer_and_nothing_before():
    model, diagnosis, batch = case(nn.ReLU)
    constraints = constraints_named(["channel"], layers=["conv2"], evidence="gradient", scale="none")
    clean = model(batch.images).detach()

    def value():
        return penalise(model, batch, constraints, diagnosis, noise=Noise(0), logits=clean)["channel"].mean()

    named = dict(model.named_parameters())
    found = dict(
        zip(named, torch.autograd.grad(value(), list(named.values()), allow_unused=True), strict=True)
    )
    for name in ("conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias", "conv2.weight", "conv2.bias"):
        assert found[name] is None or bool((found[name] == 0).all()), name
    for name in ("bn2.weight", "conv3.weight", "bn3.weight", "fc.weight"):
        for index in (0, named[name].numel() - 1):
            slow = finite_difference(value, named[name], index)
            assert float(found[name].reshape(-1)[index]) == pytest.approx(slow, rel=1e-5, abs=1e-7), name
        assert bool((found[name] != 0).any()), name


def test_a_users_own_penalty_needs_no_registration():
    model, diagnosis, batch = case()

    def all_evidence(evidence):
        return evidence.target.sum((-3, -2, -1))

    own = Constraint("mine", all_evidence, layers=("conv3",), evidence="gradient", scale="none")
    found = penalise(model, batch, [own], diagnosis, noise=Noise(0))["mine"]
    share = penalise(model, batch, [replace(own, scale="share")], diagnosis, noise=Noise(0))["mine"]
    assert bool((found > 0).all()) and bool((share < 1).all())


def test_an_undiagnosed_category_skips_the_first_term_only():
    model, diagnosis, batch = case()
    blank = replace(diagnosis, counts=diagnosis.counts * 0)
    settings = {"layers": ["conv3"], "evidence": "gradient", "scale": "none"}
    constraints = constraints_named(["channel"], **settings)
    found = penalise(model, batch, constraints, blank, noise=Noise(0))["channel"]
    for row in range(6):
        wanted = penalty(
            model, batch.images[row], 0, 0, "conv3", LAYERS["conv3"], which="channel",
            correlated=diagnosis.layer("conv3").correlated, diagnosed=[False] * 4,
        )  # fmt: skip
        assert float(found[row]) == pytest.approx(float(wanted), rel=1e-10)


def test_images_without_any_evidence_give_zero_and_finite_gradients():
    model, diagnosis, batch = case()
    with torch.no_grad():
        model.fc.weight.zero_()
    constraints = constraints_named(["channel", "space"], layers=["conv3"])
    found = penalise(model, batch, constraints, diagnosis, noise=Noise(1))
    total = sum(value.sum() for value in found.values())
    assert float(total) == 0
    gradients = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    assert all(one is None or bool(torch.isfinite(one).all()) for one in gradients)


def test_the_background_shrinks_as_the_object_grows():
    masks = torch.zeros(1, 1, 8, 8)
    masks[:, :, 3:5, 3:5] = 1
    assert background_mask(masks, (8, 8)).sum() == 60
    assert background_mask(masks, (8, 8), 1).sum() == 48
    assert background_mask(masks, (4, 4))[0, 0].tolist()[1] == [1, 0.75, 0.75, 1]


def test_an_unknown_constraint_lists_the_known_ones():
    with pytest.raises(InputError, match=r"'chanel' is unknown; there are: channel, channel_paper"):
        constraints_named(["chanel"], layers=["conv1"])

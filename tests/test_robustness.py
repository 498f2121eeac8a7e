"""Noise curves: what they must be at their ends, and that they repeat."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference import tiny_net
from torchdoctor.diagnosis.diagnose import state_sha256
from torchdoctor.diagnosis.robustness import RobustnessSettings, fast_gradient_sign, measure_robustness
from torchdoctor.images.batches import Batch
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.randomness import uniform_noise
from torchdoctor.types import InputError

MEAN, STD = (0.5,), (0.25,)


def case(number=40):
    """Return a network and normalised images that it classifies as labelled."""
    model = tiny_net()
    pixels = torch.rand(number, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images = (pixels - 0.5) / 0.25
    labels = model(images).argmax(1).detach()
    return model, [Batch(images[part], labels[part], part) for part in torch.arange(number).split(16)]


def run(model, batches, *, mean=MEAN, std=STD, seed=0, **more):
    settings = RobustnessSettings(**{"epsilon": 0.1, "repeats": 3, **more})
    return measure_robustness(model, batches, settings, mean=mean, std=std, seed=seed)


def test_without_noise_everything_stays_and_much_noise_ends_it():
    model, batches = case()
    before = state_sha256(model)
    found = run(model, batches, layer="conv1", ranges=(0.0, 1.0, 1e4))
    assert 0 < found.images <= 40 and found.attack_success == pytest.approx(100 * found.images / found.tried)
    assert (found.normal[0] == 100).all() and (found.fooled[0] == 100).all() and not found.restored[0].any()
    assert found.normal[2].mean() < 80 and found.fooled[2].mean() < 80
    assert found.normal.shape == (3, 3) and found.layers == ("conv1",) * 3
    assert state_sha256(model) == before and not any(one._forward_hooks for one in model.modules())


def test_the_curves_repeat_and_follow_the_seed():
    model, batches = case()
    one, other, third = (run(model, batches, ranges=(0.5, 2.0), seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.normal, other.normal)
    assert one.layers == other.layers and set(one.layers) <= {"conv1", "conv2", "conv3"}
    assert (one.normal != third.normal).any() or one.layers != third.layers


def test_a_curve_equals_its_plain_rewrite():
    model, batches = case()
    found = run(model, batches, layer="conv2", ranges=(0.8,), repeats=1, number=12, seed=3)
    images = torch.cat([one.images for one in batches])
    labels = torch.cat([one.labels for one in batches])
    normal, twins, kept, false = [], [], [], []
    for image, label in zip(images, labels, strict=True):
        inner = image[None].clone().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(model(inner), label[None])
        (gradient,) = torch.autograd.grad(loss, inner)
        pixels = (image * 0.25 + 0.5 + 0.1 * gradient[0].sign()).clamp(0, 1)
        twin = (pixels - 0.5) / 0.25
        said = int(model(twin[None]).argmax())
        if said != int(label) and len(kept) < 12:
            normal.append(image)
            twins.append(twin)
            kept.append(int(label))
            false.append(said)
    counts = [0, 0, 0]
    for row in range(len(kept)):
        noise = 0.8 * uniform_noise(
            torch.tensor([row]), range(1), (6, 4, 4), seed=3, layer="conv2", stream="robustness 0",
            dtype=torch.float64,
        )[0]  # fmt: skip
        handle = model.conv2.register_forward_hook(lambda _m, _i, output, noise=noise: output + noise)
        first, second = int(model(normal[row][None]).argmax()), int(model(twins[row][None]).argmax())
        handle.remove()
        counts[0] += first == kept[row]
        counts[1] += second == kept[row]
        counts[2] += second == false[row]
    wanted = [100 * one / len(kept) for one in counts]
    assert [found.normal[0, 0], found.restored[0, 0], found.fooled[0, 0]] == pytest.approx(wanted)


def test_ranges_can_be_in_standard_deviations():
    model, batches = case()
    found = run(model, batches, layer="conv1", ranges=(0.0, 0.7), units="deviation", number=10, repeats=1)
    normal = torch.cat([one.images for one in batches])[:40]
    absolute = run(model, batches, layer="conv1", ranges=(0.0, 0.7), number=10, repeats=1)
    assert found.images == absolute.images and found.units == "deviation"
    assert model.conv1(normal).std() > 0


def test_twins_stay_within_the_pixels_and_one_step():
    model, batches = case()
    images, labels = batches[0].images, batches[0].labels
    pixel = tuple(torch.tensor(one, dtype=torch.float64).view(1, 1, 1, 1) for one in (-2.0, 2.0, 4.0))
    with frozen_eval(model) as frozen:
        _, twins = fast_gradient_sign(frozen, images, labels, pixel, 0.1)
    assert float(twins.min()) >= -2 and float(twins.max()) <= 2
    assert float((twins - images).abs().max()) == pytest.approx(0.4)


def test_what_cannot_be_measured_is_refused():
    model, batches = case()
    for more, said in (
        ({"ranges": ()}, "expected finite numbers >= 0"),
        ({"ranges": (-1.0,)}, "expected finite numbers >= 0"),
        ({"repeats": 0}, "expected at least 1 of each"),
        ({"epsilon": 0.0}, "expected a step above 0"),
        ({"mean": (0.5, 0.5, 0.5)}, "expected one for each of the images' 1 channels"),
        ({"layer": "conv9"}, "did you mean conv"),
        ({"epsilon": 1e-9}, "could be attacked with epsilon 1e-09"),
    ):
        with pytest.raises(InputError, match=said):
            run(model, batches, **more)

"""Images that are unlike the others, and images with too few pixels, are told by what shows it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from torchdoctor import Batch, diagnose, find_causes
from torchdoctor.data.arrangement import larger_images
from torchdoctor.data.load import load_data
from torchdoctor.diagnosis.detail import with_more_pixels
from torchdoctor.diagnosis.unlike import FAR, FOREIGN, distances, logits_and_features, unlike_others
from torchdoctor.types import InputError

SIZE = 16


class Stripes(nn.Module):
    """Tells fine stripes along one axis from those along the other; each needs two pixels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        along = torch.tensor([[-1.0, 2, -1]] * 3) / 6
        self.conv.weight.data = torch.stack([along, along.T])[:, None]

    def forward(self, images):
        return 8 * self.conv(images).square().mean((2, 3))


def striped(number=240, seed=0, size=SIZE):
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % 2
    wave = ((torch.arange(size) // 2) % 2).float() * 2 - 1
    across, down = wave.expand(size, size), wave[:, None].expand(size, size)
    pixels = torch.stack([across, down])[labels][:, None]
    return Batch(pixels + 0.2 * torch.randn(pixels.shape, generator=random), labels, torch.arange(number))


def test_images_of_one_colour_are_unlike_the_others_and_the_others_are_not():
    model, images = Stripes(), striped()
    strange = images.images.clone()
    odd = torch.arange(1, 13, 2)  # of label 1: what is left of the stripes says 0
    strange[odd] = 3 + 0.1 * images.images[0]
    batch = Batch(strange, images.labels, images.ids)
    (_, labels, logits), features = logits_and_features(model, [batch], ["conv"])
    far = distances(features, (logits.argmax(1) == labels).numpy())
    others = np.setdiff1d(np.arange(240), odd.numpy())
    assert (far[odd.numpy()] > 2).all() and (far[others] > 1).mean() <= FOREIGN + 0.01
    diagnosis = diagnose(model, [images], layers=["conv"], draws=0, confidence=0.3)
    found = find_causes(model, [batch], diagnosis)
    assert found.counts == {"unlike the training images": 6}
    assert found.expected["unlike the training images"] == pytest.approx(6 * (1 - 2 * FAR))
    assert np.isnan(distances({name: rows[:90] for name, rows in features.items()}, np.ones(90, bool))).all()


def test_foreign_images_that_are_right_by_chance_do_not_hide_the_others():
    model, images = Stripes(), striped()
    strange = images.images.clone()
    strange[:8] = 3 + 0.1 * images.images[0]  # half of them are of label 0, and so are called
    (_, labels, logits), features = logits_and_features(
        model, [Batch(strange, images.labels, images.ids)], ["conv"]
    )
    right = (logits.argmax(1) == labels).numpy()
    assert right[:8].sum() == 4
    told = unlike_others(distances(features, right), right)
    assert np.flatnonzero(~right & (told["as_far"] <= FAR)).tolist() == [1, 3, 5, 7]


def test_enlarged_images_are_far_by_their_lack_of_detail():
    random = torch.Generator().manual_seed(1)
    model, images = Stripes(), striped(seed=2)
    strange = images.images + torch.randn(images.images.shape, generator=random)
    small = torch.randn(1, 1, 4, 4, generator=random)
    large = torch.nn.functional.interpolate(small, size=(SIZE, SIZE), mode="bilinear")
    strange[7] = large / large.std() * strange[8].std()
    (_, labels, _), features = logits_and_features(
        model, [Batch(strange, labels=images.labels, ids=images.ids)], ["conv"]
    )
    far = distances({"log": features["log"]}, np.ones(len(labels), bool))
    assert far.argmax() == 7 and far[7] > 1.5 * np.sort(far)[-2]


def test_distances_do_not_depend_on_the_unit_or_order_of_features():
    random = np.random.default_rng(0)
    rows, right = random.normal(size=(400, 12)), np.arange(400) >= 20
    rows[:20] += 9
    far = distances({"a": rows}, right)
    assert far[:20].min() > far[20:].max()
    order = random.permutation(400)
    scaled = distances({"a": rows[order] * 10.0 + 5}, right[order])
    np.testing.assert_allclose(scaled, far[order], rtol=1e-6)


def blurred(images: Batch) -> Batch:
    """Half as many pixels, as stripes of one pixel."""
    return Batch(
        functional.interpolate(images.images, size=(SIZE // 2, SIZE // 2)), images.labels, images.ids
    )


def test_errors_that_more_pixels_repair_have_too_little_detail():
    model, images = Stripes(), striped()
    gone = images.images.clone()
    order = torch.randperm(SIZE * SIZE, generator=torch.Generator().manual_seed(1))
    gone[:60] = gone[:60].flatten(2)[:, :, order].view(60, 1, SIZE, SIZE)  # brightness and contrast are kept
    poor = Batch(gone, images.labels, images.ids)
    diagnosis = diagnose(model, [images], layers=["conv"], draws=0, confidence=0.3)
    found = find_causes(model, [poor], diagnosis, larger=[images])
    assert found.counts["too little detail"] >= 0.9 * len(found.errors) > 10
    shares = [one.probabilities["too little detail"] for one in found.errors if one.cause != "unknown"]
    assert np.allclose(shares, 1.0)
    same = find_causes(model, [poor], diagnosis, larger=[poor])
    assert "too little detail" not in same.counts


def test_what_the_network_or_the_images_do_not_allow_is_refused_or_left_out():
    model, images = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 14 * 14, 2)), striped()
    right = np.zeros(240, dtype=bool)
    larger = striped(size=32)
    assert with_more_pixels(model, [larger], images.ids, right) is None
    with pytest.raises(InputError, match="other images"):
        with_more_pixels(Stripes(), [larger], images.ids[:100], right[:100])


def test_larger_images_are_made_only_of_files_that_have_the_pixels(photos):
    small = load_data(f"folder:{photos}", image_size=16)
    larger = larger_images(small.validation)
    assert larger is not None and larger.preprocessing.image_size == 24
    assert [batch.ids.tolist() for batch in larger] == [batch.ids.tolist() for batch in small.validation]
    assert larger_images(load_data(f"folder:{photos}", image_size=24).validation) is None

"""The share of wrong labels is estimated, and an unprepared image or another order of categories is seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from torchdoctor import Batch, diagnose, find_causes
from torchdoctor.diagnosis.label_doubts import label_doubts, probability_disputed, probability_wrong
from torchdoctor.diagnosis.preparation_check import better_preparation, other_preparations, prepared


def answers(number=4000, categories=6, temperature=1.0, seed=0):
    """Logits that are as often right as their softmax says, divided by `temperature`, and true labels."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2.5, (number, categories))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (chances.cumsum(1) > random.random((number, 1))).argmax(1)
    return logits / temperature, labels


@pytest.mark.parametrize("share", [0.03, 0.1, 0.25])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_share_and_temperature_are_found(share, temperature):
    logits, truth = answers(temperature=temperature)
    random = np.random.default_rng(1)
    hit = random.random(len(truth)) < share
    labels = np.where(hit, (truth + random.integers(1, 6, len(truth))) % 6, truth)
    found = label_doubts(logits, labels)
    assert found.share == pytest.approx(share, abs=0.02)
    assert found.temperature == pytest.approx(1 / temperature, rel=0.25)
    assert found.wrong.mean() == pytest.approx(hit.mean(), abs=0.03)  # calibrated on the whole ...
    errors = logits.argmax(1) != labels
    claimed = errors & (found.wrong >= 0.5)
    assert hit[claimed].mean() == pytest.approx(
        found.wrong[claimed].mean(), abs=0.1
    )  # ... and where it claims
    assert found.wrong[errors & hit].mean() > 2 * found.wrong[errors & ~hit].mean()


def test_wrong_labels_that_follow_a_pattern_are_told_from_close_categories():
    logits, truth = answers()
    hit = np.random.default_rng(1).random(len(truth)) < 0.1
    labels = np.where(hit, (truth + 1) % 6, truth)
    pattern = np.zeros((len(labels), 6))
    pattern[np.arange(len(labels)), (labels - 1) % 6] = 1.0  # wrong labels are always the next category
    uniform, told = label_doubts(logits, labels), label_doubts(logits, labels, mistaken=pattern)
    assert told.share == pytest.approx(0.1, abs=0.02)
    assert told.wrong[hit].mean() > uniform.wrong[hit].mean() and told.wrong[~hit].mean() < 0.05
    plain = np.full((len(labels), 6), 0.2)
    plain[np.arange(len(labels)), labels] = 0.0
    again = label_doubts(logits, labels, mistaken=plain)
    assert again.share == pytest.approx(uniform.share) and again.temperature == uniform.temperature


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("number", [1, 40, 4000])
def test_without_wrong_labels_none_is_claimed(temperature, number):
    found = label_doubts(*answers(number, temperature=temperature, seed=5))
    assert found.share == 0.0 and not found.wrong.any() and np.isfinite(found.log_odds).all()


def test_probabilities_stay_in_their_range():
    for odds in (-50.0, 0.0, 3.0, 500.0):
        for one in (0.0, 0.4, 1.0):
            assert one <= probability_wrong(one, odds) <= 1
            assert 0 < probability_disputed(odds, one) < 1
    assert probability_wrong(0.0, 8.0) < 0.3  # confidence alone never makes a label look wrong


class Colours(nn.Module):
    """Says which channel of an image is brightest; its map is the image."""

    def __init__(self, order=(0, 1, 2)):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.conv.weight.data = 8 * torch.eye(3)[list(order)][:, :, None, None]

    def forward(self, images):
        return self.conv(images).mean((2, 3))


def coloured(number=90, seed=0):
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % 3
    pixels = 0.4 + 0.05 * torch.randn(number, 3, 8, 8, generator=random)
    pixels[torch.arange(number), labels] += 0.4
    return Batch(pixels, labels, torch.arange(number))


def test_colours_in_reverse_order_are_the_cause():
    images = coloured()
    diagnosis = diagnose(Colours(), [images], layers=["conv"], draws=0, confidence=0.3)
    swapped = Batch(images.images.flip(1), images.labels, images.ids)
    assert better_preparation(Colours(), [images], images.ids.tolist()) is None
    name, way = better_preparation(Colours(), [swapped], images.ids.tolist()) or ("", None)
    assert name == "with the colours in reverse order" and way is None
    found = find_causes(Colours(), [swapped], diagnosis)
    assert found.counts == {"preparation": 60}  # green is green in both orders


def test_exchanged_categories_are_the_cause():
    images = coloured()
    exchanged = Batch(images.images, torch.tensor([0, 2, 1])[images.labels], images.ids)
    diagnosis = diagnose(Colours(), [exchanged], layers=["conv"], draws=0, confidence=0.3)
    found = find_causes(Colours(), [exchanged], diagnosis)
    assert found.counts == {"category order": 60}
    assert found.expected["category order"] == pytest.approx(57)


def test_another_order_is_the_cause_where_the_network_is_not_always_right():
    images = coloured()
    random = torch.Generator().manual_seed(3)
    noise = torch.rand(len(images.labels), generator=random) < 0.3
    guessed = torch.randint(0, 3, images.labels.shape, generator=random)
    labels = torch.where(noise, guessed, (images.labels + 1) % 3)  # in a circle
    circled = Batch(images.images, labels, images.ids)
    diagnosis = diagnose(Colours(), [circled], layers=["conv"], draws=0, confidence=0.3)
    assert diagnosis.accuracy.min() > 5  # no category is never right
    assert better_preparation(Colours(), [circled], circled.ids.tolist()) is None
    found = find_causes(Colours(), [circled], diagnosis)
    moved = int((images.labels == (labels - 1) % 3).sum())
    assert found.counts["category order"] == moved > 50


def test_every_other_preparation_has_one_that_undoes_it_or_is_its_own_inverse():
    pixels = torch.rand(2, 3, 4, 4)
    ways = other_preparations(3)
    for way in ways.values():
        assert any(
            torch.allclose(prepared(prepared(pixels, way), back), pixels, atol=1e-4) for back in ways.values()
        )
    assert None not in other_preparations(1).values()

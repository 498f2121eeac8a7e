"""Training images with planted wrong labels are found, and nothing is claimed where none are."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import torchdoctor as td
from torchdoctor import Batch, InputError, Suspects, find_suspects
from torchdoctor.diagnosis.crossed_heads import (
    crossed_log_probabilities,
    crossed_mistakes,
    folds_of,
    standardised,
)
from torchdoctor.diagnosis.suspects import margins
from torchdoctor.diagnosis.suspects_result import COLUMNS, Suspect, read_labels

CATEGORIES = 3


class Colours(nn.Module):
    """Says which channel is brightest, and gives back the images' averages as features."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.conv.weight.data = torch.eye(3)[:, :, None, None]
        self.head = nn.Linear(3, 3)
        self.head.weight.data = 3 * torch.eye(3)
        self.head.bias.data.zero_()

    def forward(self, images):
        return self.head(self.conv(images).mean((2, 3)))


def coloured(number=900, spread=0.55, seed=0):
    """Images whose label is mostly, but not always, their brightest channel; the labels are right."""
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randn(number, 3, 1, 1, generator=random) * spread
    labels = torch.arange(number) % CATEGORIES
    pixels[torch.arange(number), labels] += 2.0
    return Batch(pixels.expand(-1, -1, 2, 2).clone(), labels, torch.arange(number))


def with_wrong(batch, share, seed=1):
    """Give a share of the images another label; return the images and which labels are wrong."""
    random = np.random.default_rng(seed)
    hit = random.random(len(batch.labels)) < share
    shift = torch.from_numpy(hit * random.integers(1, CATEGORIES, len(hit)))
    return Batch(batch.images, (batch.labels + shift) % CATEGORIES, batch.ids), hit


def halves(batch):
    half = len(batch.ids) // 2
    return [
        Batch(batch.images[part], batch.labels[part], batch.ids[part])
        for part in (slice(None, half), slice(half, None))
    ]


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_planted_wrong_labels_are_found_and_counted(share):
    images, hit = with_wrong(coloured(), share)
    found = find_suspects(Colours(), halves(images))
    right = [bool(hit[one.id]) for one in found.suspects]
    assert found.images == 900 and found.remarks == ()
    assert found.share == pytest.approx(share, abs=0.03)
    assert np.mean(right) > 0.9 and sum(right) > 0.75 * hit.sum()
    assert np.mean(right) == pytest.approx(found.expected(), abs=0.08)
    chances = [one.probability for one in found.suspects]
    assert chances == sorted(chances, reverse=True) and chances[-1] >= 0.5
    assert found.expected(1) == chances[0] and math.isnan(found.expected(0))
    truth = coloured().labels
    proposed = [int(one.proposed) == int(truth[one.id]) for one in found.suspects if hit[one.id]]
    assert np.mean(proposed) > 0.95
    assert all(int(one.label) == int(images.labels[one.id]) for one in found.suspects)


@pytest.mark.parametrize("spread", [0.2, 0.55, 1.5])
@pytest.mark.parametrize("number", [30, 900])
def test_nothing_is_claimed_of_right_labels(number, spread):
    found = find_suspects(Colours(), [coloured(number, spread, seed=3)])
    assert found.suspects == () and found.share == 0.0
    assert "not proven" in repr(found) and math.isnan(found.expected())


def test_the_order_of_the_images_does_not_matter_and_ids_stay():
    images, _ = with_wrong(coloured(), 0.1)
    ids = images.ids * 7 + 100
    straight = find_suspects(Colours(), [Batch(images.images, images.labels, ids)])
    order = torch.randperm(900, generator=torch.Generator().manual_seed(5))
    shuffled = find_suspects(Colours(), halves(Batch(images.images[order], images.labels[order], ids[order])))
    assert straight.suspects and shuffled == straight
    assert {one.id for one in straight.suspects} <= set(ids.tolist())


def test_similar_images_are_of_the_two_categories_and_no_suspects():
    images, _ = with_wrong(coloured(), 0.1)
    found = find_suspects(Colours(), [images], classes=("r", "g", "b"))
    suspects = {one.id for one in found.suspects}
    for one in found.suspects:
        for name, similar in ((one.label, one.like_label), (one.proposed, one.like_proposed)):
            assert len(similar) == 2 and not suspects & set(similar)
            assert {"rgb"[int(images.labels[other])] for other in similar} == {name}


def test_every_image_is_judged_by_a_head_that_was_fitted_without_it():
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 2, 2, 2])
    fold = folds_of(labels, 2, 0)
    for category in range(3):
        counts = np.bincount(fold[labels == category], minlength=2)
        assert abs(counts[0] - counts[1]) <= 1
    assert abs(np.bincount(fold)[0] - 5) <= 1
    # Features that say nothing: a head that had seen an image's label would repeat it.
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 60)
    noise = standardised(torch.from_numpy(random.normal(size=(60, 200))).float())
    judged = crossed_log_probabilities(noise, labels, 2, folds=5, seed=0, device=torch.device("cpu"))
    assert np.exp(judged).sum(1) == pytest.approx(np.ones(60), abs=1e-5)
    assert (judged.argmax(1) == labels).mean() < 0.75


def test_heads_equal_a_regression_fitted_by_plain_gradient_descent():
    images, _ = with_wrong(coloured(60), 0.1)
    features = standardised(images.images.mean((2, 3)))
    labels = images.labels.numpy()
    judged = crossed_log_probabilities(
        features, labels, 3, folds=3, seed=0, device=torch.device("cpu"), ridges=(1.0,)
    )
    fold = folds_of(labels, 3, 0)
    place = features.double().numpy()
    for number in range(3):
        fitted = fold != number
        weight, bias = np.zeros((3, 3)), np.zeros(3)
        for _ in range(4000):
            scores = place[fitted] @ weight + bias
            chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            slope = (chances - np.eye(3)[labels[fitted]]) / fitted.sum()
            weight -= 0.5 * (place[fitted].T @ slope + weight / fitted.sum())
            bias -= 0.5 * slope.sum(0)
        scores = place[~fitted] @ weight + bias
        expected = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        np.testing.assert_allclose(judged[~fitted], expected, atol=0.02)


def test_mistakes_are_counted_in_the_other_folds():
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 3, 40), random.normal(size=(40, 3))
    mistakes, fold = crossed_mistakes(scores, labels, folds=4, seed=2), folds_of(labels, 4, 2)
    for row in range(40):
        for true in range(3):
            others = (fold != fold[row]) & (scores.argmax(1) == true) & (labels != true)
            alike = others & (labels == labels[row])
            expected = 0.0 if true == labels[row] else (alike.sum() + 1) / (others.sum() + 2)
            assert mistakes[row, true] == pytest.approx(expected)


def test_margins_are_against_the_best_other_category():
    margin, best = margins(np.log([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]), np.array([0, 1]))
    np.testing.assert_allclose(margin, [np.log(0.7 / 0.2), np.log(0.3 / 0.6)])
    assert best.tolist() == [1, 2]


def test_constant_features_stay_finite():
    features = standardised(torch.cat([torch.full((9, 1), 3.0), torch.randn(9, 1)], dim=1))
    assert features.isfinite().all() and not features[:, 0].any()


class Attention(nn.Module):
    """Tokens and no convolution."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        tokens = images.flatten(2).transpose(1, 2)
        return {"logits": self.head(self.encoder(nn.functional.pad(tokens, (0, 1))).mean(1))}


def headless():
    """A convolution gives the logits."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


@pytest.mark.parametrize("make", [Attention, headless, lambda: Colours().double()])
def test_networks_of_all_kinds(make):
    torch.manual_seed(0)
    assert find_suspects(make(), [coloured(60)]).images == 60


def test_layers_can_be_named_and_states_are_left_as_they_were():
    model = Colours().train()
    found = find_suspects(model, [coloured(60)], layers=["conv"], folds=3, seed=4)
    assert found.images == 60 and model.training and not model.conv._forward_hooks
    with pytest.raises(InputError, match="'nothing'"):
        find_suspects(model, [coloured(60)], layers=["nothing"])


def test_what_nothing_can_be_said_about_is_refused_in_words():
    images = coloured(60)
    for folds in (0, 1):
        with pytest.raises(InputError, match=f"folds is {folds}; expected at least 2"):
            find_suspects(Colours(), [images], folds=folds)
    one = Batch(images.images, torch.zeros_like(images.labels), images.ids)
    with pytest.raises(InputError, match="1 of 3 categories have 5 images or more"):
        find_suspects(Colours(), [one])
    broken = images.images.clone()
    broken[7] = torch.nan
    with pytest.raises(InputError, match="NaN or infinity for 1 of 60 images, such as image id 7"):
        find_suspects(Colours(), [Batch(broken, images.labels, images.ids)])
    with pytest.raises(InputError, match="comes twice"):
        find_suspects(Colours(), [images, images])
    with pytest.raises(InputError, match="2 class names for 3 logits"):
        find_suspects(Colours(), [images], classes=("a", "b"))

    class Bare(nn.Module):
        def forward(self, pixels):
            return pixels.mean((2, 3))

    with pytest.raises(InputError, match=r"no two-dimensional convolution.*No linear layer"):
        find_suspects(Bare(), [images])


def test_a_rare_category_is_left_out_and_named():
    images, _ = with_wrong(coloured(600), 0.1)
    keep = (images.labels != 2) | (torch.arange(600) < 9)
    found = find_suspects(
        Colours(),
        [Batch(images.images[keep], images.labels[keep], images.ids[keep])],
        classes=("r", "g", "b"),
    )
    assert found.remarks == ("Not looked at, with fewer than 5 images each: b.",)
    assert found.images == int((images.labels != 2).sum()) and found.suspects
    assert "b" not in {name for one in found.suspects for name in (one.label, one.proposed)}


def test_a_network_that_knows_its_labels_by_heart_is_said_to():
    found = find_suspects(Colours(), [coloured(60, spread=0.1)])
    assert found.accuracy == 100.0 and "by heart" in found.remarks[0] and "by heart" in repr(found)


SOME = Suspects(
    (Suspect(4, "cat", "dog", 0.9375, (1, 2), (3,)), Suspect(2, "dog, old", 'a "cat"', 0.5)),
    60, 0.0625, 91.5, ("Not looked at: fox.",),
)  # fmt: skip


def test_the_list_is_read_back_with_what_people_wrote(tmp_path):
    names = {4: "train/a, b\n/é.png", 2: "=1+1.png"}
    SOME.save(tmp_path / "new", names=names)
    assert Suspects.load(tmp_path / "new") == SOME
    file = tmp_path / "new" / "labels.csv"
    assert file.read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)
    lines = read_labels(file)
    assert [
        (one.image, one.split, one.given, one.proposed, one.probability, one.answer) for one in lines
    ] == [
        (names[4], "train", "cat", "dog", 0.9375, ""),
        (names[2], "train", "dog, old", 'a "cat"', 0.5, ""),
    ]
    answered = file.read_text(encoding="utf-8").replace("0.5,", '0.5, "right" ')
    file.write_text("\ufeff" + answered, encoding="utf-8")
    assert [one.answer for one in read_labels(file)] == ["", '"right"']
    record = json.loads((tmp_path / "new" / "suspects.json").read_text())
    assert record["suspects"][0]["image"] == names[4] and record["split"] == "train"
    assert record["expected"] == pytest.approx(SOME.expected())


def test_without_names_the_list_has_ids_and_without_suspects_a_head_alone(tmp_path):
    SOME.save(tmp_path)
    assert [one.image for one in read_labels(tmp_path / "labels.csv")] == ["4", "2"]
    nothing = Suspects((), 60, 0.0, 91.5)
    nothing.save(tmp_path)
    assert read_labels(tmp_path / "labels.csv") == () and Suspects.load(tmp_path) == nothing


def test_a_list_that_cannot_be_read_is_named(tmp_path):
    file = tmp_path / "labels.csv"
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(file)
    file.write_text("image;split\n")
    with pytest.raises(InputError, match=r"no column 'image'; expected image, split"):
        read_labels(file)
    file.write_text(",".join(COLUMNS) + "\na.png,train,cat,dog,high,\n")
    with pytest.raises(InputError, match=r"line 2: probability is 'high'"):
        read_labels(file)


def test_the_public_name():
    assert td.find_suspects is find_suspects

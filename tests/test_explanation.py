"""Explanations name the kernels that decide, and say "because" only where silencing them agrees."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from torchdoctor.diagnosis.cause_rules import decide
from torchdoctor.diagnosis.causes import find_causes
from torchdoctor.diagnosis.causes_result import MEANINGS, Cause, some_of
from torchdoctor.diagnosis.diagnose import diagnose, state_sha256
from torchdoctor.diagnosis.explanation import explain
from torchdoctor.diagnosis.grad_cam import grad_cam
from torchdoctor.diagnosis.silencing import random_sets, silenced_logits
from torchdoctor.images.backgrounds import background_alone, before_other_backgrounds
from torchdoctor.images.batches import Batch
from torchdoctor.types import InputError


class Detectors(nn.Module):
    """Kernel k sees colour k in the image, and votes for category k; kernel 3 sees every bright spot."""

    def __init__(self, votes=None):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 1, bias=False)
        self.head = nn.Linear(8, 3)
        with torch.no_grad():
            self.conv.weight.zero_()
            for kernel in range(8):
                self.conv.weight[kernel, kernel % 4] = 1.0
            self.head.weight.copy_(torch.eye(3, 8) * 60 if votes is None else votes)
            self.head.bias.zero_()
        self.eval().double()

    def forward(self, images):
        return self.head(torch.tanh(self.conv(images) / 4).mean((2, 3)))


def coloured(category, generator, extra=None, size=8):
    """Return an image with a square of one colour, and a second square where asked for."""
    image = 0.05 * torch.rand(4, size, size, generator=generator, dtype=torch.float64)
    image[category, 2:6, 2:6] += 1.0
    if extra is not None:
        image[extra, 0:6, 0:7] += 2.0
    return image


def trained(number=60, votes=None):
    """Return the network, its images in one batch, and its diagnosis."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(number) % 3
    images = torch.stack([coloured(int(one), generator) for one in labels])
    model = Detectors(votes)
    batch = Batch(images, labels, torch.arange(number))
    found = diagnose(
        model, [batch], layers=["conv"], draws=0, confidence=0.3, evidence="gradient_x_activation",
        classes=("red", "green", "blue"),
    )  # fmt: skip
    return model, batch, found


def test_a_kernel_that_decides_is_named_and_silencing_it_agrees():
    model, _, diagnosis = trained()
    before = state_sha256(model)
    image = coloured(0, torch.Generator().manual_seed(5), extra=1)
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6, 2:6] = 1.0
    found = explain(model, image, diagnosis, label="red", mask=mask)
    assert (found.label, found.prediction, found.runner_up) == ("red", "green", "red")
    assert found.kernels[0].kernel == 1 and found.kernels[0].deviations > 3
    assert found.kernels[0].owners[0] == "green"
    assert found.check is not None and found.check.agrees and found.check.prediction == "red"
    assert any("because of conv[1]" in one for one in found.sentences)
    assert found.background_share > 0.5 and found.usual_background_share is None
    assert found.summed_map.shape == (8, 8) and found.summed_map[:6, :7].min() > found.summed_map[7].max()
    assert state_sha256(model) == before and not any(one._forward_hooks for one in model.modules())


def test_a_kernel_that_stands_out_without_deciding_is_no_because():
    votes = torch.eye(3, 8) * 60
    votes[:, 3] = torch.tensor([10.0, 0.0, 0.0])  # kernel 3 counts for red a little
    model, _, diagnosis = trained(votes=votes)
    found = explain(model, coloured(0, torch.Generator().manual_seed(5), extra=3), diagnosis, label="red")
    assert found.prediction == "red" and found.kernels[0].kernel == 3
    assert not found.check.agrees and found.check.prediction == "red"
    assert not any("because" in one for one in found.sentences)
    assert len(found.kernels) == 1 and any(
        "conv[3] stands out, but it does not decide: with it silenced" in one for one in found.sentences
    )


def test_an_ordinary_image_has_nothing_that_stands_out():
    model, batch, diagnosis = trained()
    found = [explain(model, image, diagnosis, label="red") for image in batch.images[:9:3]]
    assert all(one.kernels == () and one.check is None for one in found[:1]) or len(found[0].kernels) <= 2
    cosine, low, high = found[0].alike["conv"]
    assert low <= high <= 1 and cosine > 0.99


def test_without_a_diagnosis_the_strongest_kernels_are_checked():
    model = Detectors()
    found = explain(model, coloured(2, torch.Generator().manual_seed(1)), layers=["conv"])
    assert found.prediction == "2" and found.kernels[0].kernel == 2
    assert found.kernels[0].usual is None and found.kernels[0].owners == () and found.alike == {}
    assert (
        "stand out" not in " ".join(found.sentences)
        and "nothing is known of what is usual" in found.sentences[-1]
    )


def test_what_cannot_be_explained_is_refused():
    model, batch, diagnosis = trained()
    with pytest.raises(InputError, match="label 'pink' is none of the 3 categories: red, green, blue"):
        explain(model, batch.images[0], diagnosis, label="pink")
    with pytest.raises(InputError, match="layer 'head' was not diagnosed; diagnosed: conv"):
        explain(model, batch.images[0], diagnosis, layers=["head"])
    with pytest.raises(InputError, match="2 category names for 3 logits"):
        explain(model, batch.images[0], classes=("a", "b"))


def test_silencing_sets_maps_to_their_level_for_each_image_apart():
    model = Detectors()
    images = torch.stack([coloured(0, torch.Generator().manual_seed(2))] * 3)
    chosen = torch.zeros(3, 8, dtype=torch.bool)
    chosen[1, 0] = chosen[2, :] = True
    levels = torch.full((8,), 0.25, dtype=torch.float64)
    found = silenced_logits(model, images, {"conv": chosen}, {"conv": levels})
    maps = model.conv(images).detach()
    maps[1, 0], maps[2] = 0.25, 0.25
    wanted = model.head(torch.tanh(maps / 4).mean((2, 3)))
    torch.testing.assert_close(found, wanted.detach())


def test_random_sets_follow_the_weights_and_repeat_no_kernel():
    weights = torch.tensor([0.0, 1.0, 1.0, 8.0])
    sets = random_sets(weights, 2, 4000, seed=0)
    assert (sets.sum(1) == 2).all() and not sets[:, 0].any()
    assert sets[:, 3].double().mean() > 0.9 > sets[:, 1].double().mean()
    assert random_sets(weights, 9, 2, seed=0).sum(1).tolist() == [3, 3]
    assert not random_sets(torch.zeros(4), 2, 2, seed=0).any()


def test_objects_move_before_other_backgrounds():
    image, donor = torch.full((1, 3, 8, 8), 1.0), torch.full((1, 3, 8, 8), 5.0)
    donor[:, :, 0:2, 0:2] = 9.0
    mask, donor_mask = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[:, :, 4:6, 4:6] = donor_mask[:, :, 0:2, 0:2] = 1.0
    swapped = before_other_backgrounds(image, mask, donor, donor_mask)
    assert swapped.shape == (1, 1, 3, 8, 8)
    assert (swapped[0, 0, :, 4:6, 4:6] == 1).all() and (swapped[0, 0, :, :4, :] == 5).all()
    assert (background_alone(donor, donor_mask) == 5).all()
    everything = background_alone(donor, torch.ones(1, 1, 8, 8))
    torch.testing.assert_close(everything, donor.mean((2, 3), keepdim=True).expand_as(donor))


class Pictures(nn.Module):
    """Reads the object's colour in the middle and the background's in a corner; `trust` is in the corner."""

    def __init__(self, trust):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.trust = trust
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None])
        self.eval()

    def forward(self, images):
        maps = self.conv(images)
        middle, corner = maps[:, :, 6:10, 6:10].mean((2, 3)), maps[:, :, :2, :2].mean((2, 3))
        return 6 * ((1 - self.trust) * middle + self.trust * corner)


def pictures(objects, backgrounds):
    """Return images of coloured squares on coloured grounds with masks, labelled by the object."""
    images = torch.zeros(len(objects), 3, 16, 16)
    for row, (inner, outer) in enumerate(zip(objects, backgrounds, strict=True)):
        images[row, outer] = 1.0
        images[row, :, 5:11, 5:11] = 0.0
        images[row, inner, 5:11, 5:11] = 1.0
    masks = torch.zeros(len(objects), 1, 16, 16)
    masks[:, :, 5:11, 5:11] = 1.0
    number = len(objects)
    return Batch(images, torch.tensor(objects), torch.arange(number), masks, torch.ones(number).bool())


def test_errors_by_the_background_are_called_so():
    model = Pictures(trust=0.6)
    agreeing = pictures([0, 1, 2] * 10, [0, 1, 2] * 10)
    diagnosis = diagnose(model, [agreeing], layers=["conv"], draws=0, confidence=0.3)
    shifted = pictures([0, 1, 2] * 8, [1, 2, 0, 0, 1, 2] * 4)
    found = find_causes(model, [shifted], diagnosis)
    assert found.images == 24 and len(found.errors) == 12
    assert set(found.counts) == {"background"}
    assert found.errors[0].numbers["backgrounds_decide"] > 0.9
    assert {(one.label, one.prediction) for one in found.errors} == {("0", "1"), ("1", "2"), ("2", "0")}
    without = Batch(shifted.images, shifted.labels, shifted.ids)
    assert "background" not in find_causes(model, [without], diagnosis).counts


@pytest.mark.parametrize(("trust", "least", "most"), [(0.6, 0.8, 1.0), (0.0, -0.1, 0.1)])
def test_correctly_classified_objects_show_whether_backgrounds_give_categories(trust, least, most):
    model = Pictures(trust=trust)
    agreeing = pictures([0, 1, 2] * 10, [0, 1, 2] * 10)
    diagnosis = diagnose(model, [agreeing], layers=["conv"], draws=0, confidence=0.3)
    labels = agreeing.labels.clone()
    labels[0] = 1  # one error
    found = find_causes(model, [Batch(agreeing.images, labels, agreeing.ids, agreeing.masks)], diagnosis)
    assert len(found.errors) == 1
    assert least <= found.errors[0].numbers["background_gives_category"] <= most


def test_wrong_labels_are_called_so():
    model = Pictures(trust=0.0)
    plain = pictures([0, 1, 2] * 100, [2, 0, 1, 1, 2, 0] * 50)
    contrast = torch.linspace(0.2, 2, 300)[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    images = Batch(plain.images * contrast[:, None, None, None], plain.labels, plain.ids, plain.masks)
    diagnosis = diagnose(model, [images], layers=["conv"], draws=0, confidence=0.3)
    labels, wrong = images.labels.clone(), list(range(4, 300, 15))
    labels[wrong] = (labels[wrong] + 1) % 3
    found = find_causes(model, [Batch(images.images, labels, images.ids, images.masks)], diagnosis)
    assert [one.id for one in found.errors] == wrong
    assert found.counts["label looks wrong"] >= 14 and set(found.counts) <= {"label looks wrong", "unknown"}
    assert found.errors[0].numbers["wrong_labels"] == pytest.approx(20 / 300, abs=0.03)
    # Where every answer is as sure, a wrong label cannot be told from a network that is wrong now and then.
    sure = find_causes(model, [Batch(plain.images, labels, images.ids, images.masks)], diagnosis)
    assert sure.counts == {"unknown": 20}


BASE = {
    "confidence": 0.6, "label_confidence": 0.2, "training_accuracy": 95.0, "validation_accuracy": 90.0,
    "overall_training_accuracy": 95.0, "overall_validation_accuracy": 90.0, "training_images_of_median": 1.0,
    "confused_on_training": 0.0, "evidence_on_changed_kernels": 0.0, "log_odds": 1.1, "confused_back": 0.01,
    "label_wrong_by_share": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("cause", "numbers"),
    [
        ("unknown", {}),
        ("rare category", {"training_images_of_median": 0.1}),
        ("wrong kernels", {"evidence_on_changed_kernels": 0.3}),
        ("under-fitted", {"overall_training_accuracy": 40.0, "training_accuracy": 40.0,
                          "validation_accuracy": 35.0}),
        ("close categories", {"confused_on_training": 0.4, "confused_beyond_others": 9.0,
                              "label_confidence": 0.3}),
        ("unknown", {"confused_on_training": 0.4, "confused_beyond_others": 2.0,
                     "label_confidence": 0.3}),
        ("close categories", {"confused_on_examined": 0.4, "confused_on_examined_beyond": 12.0,
                              "label_confidence": 0.3}),
        ("unknown", {"confused_on_examined": 0.4, "confused_on_examined_beyond": 6.0,
                     "label_confidence": 0.3}),
        ("unknown", {"confused_on_examined": 0.3, "confused_on_examined_beyond": 30.0,
                     "label_confidence": 0.3}),
        ("ambiguous", {"log_odds": 8.0, "confused_back": 0.5}),
        ("background", {"label_before_others": 1.0, "errors_gone_before_others": 0.5,
                        "backgrounds_decide": 0.5}),
        ("background", {"background_alone_predicts_it": 1.0, "errors_gone_before_others": 0.5,
                        "backgrounds_decide": 0.5}),
        ("background", {"label_before_others": 1.0, "errors_gone_before_others": 0.5,
                        "backgrounds_decide": 0.1, "background_gives_category": 0.3}),
        ("unknown", {"label_before_others": 1.0, "background_alone_predicts_it": 1.0,
                     "errors_gone_before_others": 0.9, "backgrounds_decide": 0.1,
                     "background_gives_category": 0.15}),
        ("unknown", {"label_before_others": 1.0, "background_alone_predicts_it": 1.0,
                     "errors_gone_before_others": 0.1, "backgrounds_decide": 0.7}),
        ("unknown", {"label_before_others": 0.0, "background_alone_predicts_it": 0.0,
                     "errors_gone_before_others": 0.5, "backgrounds_decide": 0.7}),
        ("label looks wrong", {"label_wrong_by_share": 0.9, "log_odds": 6.0}),
        ("label looks wrong", {"label_wrong_by_share": 0.9, "overall_validation_accuracy": 60.0,
                               "validation_accuracy": 55.0}),
        ("over-fitted", {"label_wrong_by_share": 0.9, "log_odds": 6.0, "overall_training_accuracy": 75.0,
                         "overall_validation_accuracy": 45.0, "validation_accuracy": 45.0}),
        ("background", {"label_wrong_by_share": 0.9, "label_before_others": 1.0,
                        "errors_gone_before_others": 0.5, "backgrounds_decide": 0.5}),
        ("over-fitted", {"overall_validation_accuracy": 60.0, "validation_accuracy": 55.0}),
        ("category order", {"label_never_right": 1.0, "taken_for_prediction": 0.9}),
        ("unknown", {"label_never_right": 1.0, "taken_for_prediction": 0.1}),
        ("preparation", {"right_if_prepared_otherwise": 1.0, "label_never_right": 1.0,
                         "taken_for_prediction": 0.9}),
        ("unknown", {"right_if_prepared_otherwise": 0.0}),
        ("unlike the training images", {"as_far": 0.0, "far_beyond_chance": 0.8,
                                        "training_images_of_median": 0.1}),
        ("unknown", {"as_far": 0.0, "far_beyond_chance": 0.8, "validation_accuracy": 40.0,
                     "training_accuracy": 40.0}),
        ("unknown", {"as_far": 0.05, "far_beyond_chance": 0.8}),
        ("unknown", {"as_far": 0.0, "far_beyond_chance": 0.3}),
        ("too little detail", {"right_if_larger": 1.0, "repaired_if_larger_beyond_chance": 0.7}),
        ("unknown", {"right_if_larger": 1.0, "repaired_if_larger_beyond_chance": 0.2}),
        ("unknown", {"right_if_larger": 0.0, "repaired_if_larger_beyond_chance": 0.7}),
        ("unknown", {"label_wrong_by_share": math.nan, "log_odds": math.nan}),
    ],
)  # fmt: skip
def test_causes_follow_their_documented_rules(cause, numbers):
    found, probabilities = decide({**BASE, **numbers})
    assert found == cause
    assert sum(probabilities.values()) == pytest.approx(1) and min(probabilities.values()) >= 0
    assert cause == "unknown" or probabilities[cause] == max(probabilities.values()) >= 0.5


def test_every_cause_has_its_meaning_and_none_is_claimed_without_numbers():
    assert set(MEANINGS) == set(Cause.__args__)
    assert decide({}) == ("unknown", {"label looks wrong": 0.0, "ambiguous": 0.0, "unknown": 1.0})


def test_shown_errors_take_every_cause_in_turn():
    model = Pictures(trust=0.6)
    diagnosis = diagnose(
        model, [pictures([0, 1, 2] * 10, [0, 1, 2] * 10)], layers=["conv"], draws=0, confidence=0.3
    )
    found = find_causes(model, [pictures([0, 1, 2] * 8, [1, 2, 0, 0, 1, 2] * 4)], diagnosis)
    assert len(some_of(found, 5)) == 5 and len(some_of(found, 50)) == 12
    nothing = find_causes(model, [pictures([0, 1, 2], [0, 1, 2])], diagnosis)
    assert nothing.errors == () and nothing.counts == {} and nothing.accuracy == 100.0


def test_grad_cam_equals_its_formula():
    pytest.importorskip("torchcam")
    model = Pictures(trust=0.0)
    image = pictures([1], [2]).images[0]
    found = grad_cam(model, image, "conv", 1)
    maps = model.conv(image[None]).detach().requires_grad_(True)
    score = 6 * maps[0, 1, 6:10, 6:10].mean()
    (gradient,) = torch.autograd.grad(score, maps)
    wanted = (gradient.mean((2, 3), keepdim=True) * maps).sum(1).relu()[0].detach().numpy()
    assert found.max() > 0
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
    with pytest.raises(InputError, match="layer 'cony' is not in this"):
        grad_cam(model, image, "cony", 1)

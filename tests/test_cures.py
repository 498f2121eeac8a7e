"""Every cure equals a plain rewrite of what it says, or obeys a law."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import torchdoctor as td
from test_treatment import Net, data, patient, same  # noqa: F401 - a fixture
from torchdoctor.images.batches import Batch, ShuffledBatches
from torchdoctor.network.copying import copy_of
from torchdoctor.network.prediction import predict_logits
from torchdoctor.randomness import key
from torchdoctor.treatment.altered_images import TriviallyAugmented
from torchdoctor.treatment.balancing import TAUS, balance, balanced_head
from torchdoctor.treatment.head_solver import balancing_weights, solve_head
from torchdoctor.treatment.heads import Head, balanced_accuracy, features_of, install, present_head
from torchdoctor.treatment.labels_by_hand import relabelled, without
from torchdoctor.treatment.learning_rate import measured_rate, rates_of, short_steps
from torchdoctor.treatment.norm_statistics import measure_statistics
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.remedies import REMEDIES, cure_named
from torchdoctor.treatment.result import Treatment
from torchdoctor.treatment.reweighting import ERROR_WEIGHT, grouped, last_layer, weighed_errors
from torchdoctor.treatment.soup import mean_of, soup
from torchdoctor.treatment.treat import trial_of
from torchdoctor.types import InputError

RECIPE = Recipe(epochs=1, learning_rate=0.05)


def images():
    return ShuffledBatches(tuple(data()))


def unlike(counts=(30, 12, 3), size=12, seed=3):
    """Return batches of noise around the colour of a category, with unlike numbers of images."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    pixels = torch.rand(len(labels), 3, size, size, generator=generator)
    pixels[torch.arange(len(labels)), labels] += 0.15
    order = torch.randperm(len(labels), generator=generator)
    return tuple(Batch(pixels[part], labels[part], part) for part in order.split(15))


def counted(diagnosis, counts):
    """Return a diagnosis of training images with so many of each category."""
    return replace(diagnosis, confusion=np.diag(counts))


def treated(patient, arm, validation=None, recipe=RECIPE, batches=None, seeds=1):  # noqa: F811
    """Return an arm beside its control."""
    model, own, diagnosis = patient
    trial = trial_of(model, batches or own, diagnosis, arms=[arm], recipe=recipe)
    found = trial.run(seeds=seeds, validation=validation)
    name = arm if isinstance(arm, str) else arm.name
    return found.arm("control", 0), found.arm(name, 0)


def test_balance_shifts_the_logits_by_the_chosen_tau(patient):  # noqa: F811
    model, validation = Net().eval(), unlike((900, 300, 90), seed=5)
    own = features_of(model, model.fc, unlike((900, 90, 10), seed=6))
    fitted = solve_head(own.inputs, own.labels, np.full(1000, 1e-3), present_head(model.fc), l2=1e-4)
    install(fitted, model.fc)  # a network that prefers the frequent categories
    diagnosis = counted(patient[2], (900, 90, 10))
    _, labels, before = predict_logits(model, validation)
    afterwards = balance(model, images(), diagnosis, 0).afterwards
    facts = afterwards(model, images(), validation)
    shares = torch.tensor([0.9, 0.09, 0.01])
    wanted = before - facts["tau"] * shares.log()
    torch.testing.assert_close(predict_logits(model, validation)[2], wanted)
    recalls = {
        tau: np.mean([
            float(((before - tau * shares.log()).argmax(1) == label)[labels == label].float().mean())
            for label in range(3)
        ])
        for tau in TAUS
    }  # fmt: skip
    for tau, recall in recalls.items():
        assert facts["balanced_validation_accuracy"][f"{tau:g}"] == pytest.approx(100 * recall)
    best = max(TAUS, key=lambda tau: recalls[tau])
    chosen = (before - best * shares.log()).argmax(1)
    counts = [(int((chosen[labels == k] == k).sum()) + 1, int((labels == k).sum()) + 2) for k in range(3)]
    doubt = sum(hits * (count - hits) / count**3 for hits, count in counts) ** 0.5 / 3
    good = [tau for tau in TAUS if recalls[tau] >= recalls[best] - doubt - 1e-12]
    assert facts["tau"] == min(good, key=lambda tau: abs(tau - 1)) and len(good) < len(TAUS)


def test_balance_trains_as_the_control_does_and_refuses_a_network_without_a_head(patient):  # noqa: F811
    control, arm = treated(patient, "balance", validation=data())
    changed = {name for name in arm.state if not torch.equal(arm.state[name], control.state[name])}
    assert changed <= {"fc.bias"} and arm.facts[0]["tau"] in TAUS
    model = nn.Sequential(nn.Conv2d(3, 3, 12), nn.Flatten())
    for remedy in (balance, balanced_head, last_layer):
        with pytest.raises(InputError, match="do not come straight from a linear layer"):
            remedy(model, images(), patient[2], 0)
    with pytest.raises(InputError, match="do not come straight"):
        balance(nn.Sequential(nn.Flatten(), nn.Linear(432, 3, bias=False)), images(), patient[2], 0)


def test_a_solved_head_has_no_gradient_and_weighs_categories_alike():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], (60, 25, 5))
    inputs = generator.normal(size=(90, 6)) * (1, 2, 5, 1, 1, 0.1) + labels[:, None]
    weights = balancing_weights(labels)
    assert weights.sum() == pytest.approx(1)
    assert [weights[labels == label].sum() for label in range(3)] == pytest.approx([1 / 3] * 3)
    solved = solve_head(inputs, labels, weights, Head(np.zeros((3, 6)), np.zeros(3)), l2=1e-2)
    scaled = torch.from_numpy((inputs - inputs.mean(0)) / inputs.std(0))
    weight = torch.from_numpy(solved.weight * inputs.std(0)).requires_grad_(True)
    bias = torch.from_numpy(solved.bias + solved.weight @ inputs.mean(0)).requires_grad_(True)
    counts = torch.bincount(torch.from_numpy(labels)).double()
    losses = functional.cross_entropy(scaled @ weight.T + bias, torch.from_numpy(labels), reduction="none")
    loss = sum(losses[torch.from_numpy(labels == label)].sum() / counts[label] for label in range(3)) / 3
    (loss + 0.5e-2 * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-6 and bias.grad.abs().max() < 1e-6


def test_a_penalty_on_absolute_weights_meets_its_conditions():
    """At the optimum each slope is -l1 sign(w) where w is not 0, and at most l1 where it is."""
    generator = np.random.default_rng(1)
    labels = np.arange(80) % 2
    inputs = generator.normal(size=(80, 8))
    inputs[:, 0] += 2 * labels
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    start = Head(generator.normal(size=(2, 8)), np.zeros(2))
    solved = solve_head(inputs, labels, np.full(80, 1 / 80), start, l1=0.05)
    weight = torch.from_numpy(solved.weight).requires_grad_(True)
    logits = torch.from_numpy(inputs) @ weight.T + torch.from_numpy(solved.bias)
    functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
    slope, zero = weight.grad.numpy(), np.abs(solved.weight) < 1e-6
    assert zero.sum() >= 12 and not zero.all()
    assert np.abs(slope[zero]).max() <= 0.05 + 1e-5
    np.testing.assert_allclose(slope[~zero], -0.05 * np.sign(solved.weight[~zero]), atol=1e-5)


def test_a_balanced_head_is_never_worse_on_validation_and_changes_the_head_alone(patient):  # noqa: F811
    control, arm = treated(patient, "balanced-head", validation=unlike(), batches=list(unlike()))
    changed = {name for name in arm.state if not torch.equal(arm.state[name], control.state[name])}
    assert changed <= {"fc.weight", "fc.bias"}
    scores = arm.facts[0]["balanced_validation_accuracy"]
    assert scores[arm.facts[0]["l2"]] == max(scores.values()) >= scores["as it was"]
    own = Net().eval()
    own.load_state_dict(dict(arm.state))
    _, labels, logits = predict_logits(own, unlike())
    assert 100 * balanced_accuracy(logits.numpy(), labels.numpy()) == pytest.approx(max(scores.values()))


def test_features_times_head_are_the_logits():
    model = Net().eval()
    found = features_of(model, model.fc, data())
    ids, labels, logits = predict_logits(model, data())
    np.testing.assert_allclose(present_head(model.fc).logits(found.inputs), logits.numpy(), atol=1e-5)
    assert found.ids.tolist() == ids.tolist() and found.labels.tolist() == labels.tolist()


def test_dfr_solves_the_head_on_held_out_groups(patient):  # noqa: F811
    control, arm = treated(patient, "dfr", validation=data())
    changed = {name for name in arm.state if not torch.equal(arm.state[name], control.state[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert arm.facts[0]["groups"] == 6 and arm.facts[0]["held_out"] == "validation images"
    assert same(treated(patient, "dfr", validation=data())[1].state, arm.state)


def test_without_masks_the_groups_of_dfr_are_the_categories(patient):  # noqa: F811
    assert treated(patient, "dfr", validation=data(masks=False))[1].facts[0]["groups"] == 3
    assert treated(patient, "dfr")[1].facts[0]["held_out"] == "training images"


def test_dfr_takes_the_groups_that_the_data_names(patient):  # noqa: F811
    held_out = data()
    ids = [image for batch in held_out for image in batch.ids.tolist()]
    named = {image: ("day", "night")[image % 2] for image in ids}
    by_name = grouped(REMEDIES["dfr"], named)
    arm = treated(patient, by_name, validation=held_out)[1]
    assert arm.facts[0]["groups"] == 6 and arm.facts[0]["images"] == len(ids)
    alike = grouped(REMEDIES["dfr"], dict.fromkeys(ids, "day"))
    assert treated(patient, alike, validation=held_out)[1].facts[0]["groups"] == 3
    assert (
        treated(patient, by_name)[1].facts[0]["held_out"] == "training images"
    )  # their groups are not known


def test_errors_of_the_start_weigh_more_in_every_loss(patient):  # noqa: F811
    model, _, diagnosis = patient
    start, own = copy_of(model), ShuffledBatches(unlike())
    ids, labels, logits = predict_logits(start, own)
    right = dict(zip(ids.tolist(), (logits.argmax(1) == labels).tolist(), strict=True))
    course = weighed_errors(start, own, diagnosis, 0)
    assert 0 < course.facts[0]["errors"] == sum(not one for one in right.values()) < len(right)
    moved = 0
    for batch in own:
        weights = torch.tensor([1.0 if right[one] else ERROR_WEIGHT for one in batch.ids.tolist()])
        each = functional.cross_entropy(model(batch.images), batch.labels, reduction="none")
        found = course.terms(model, batch, 0)["loss"]
        torch.testing.assert_close(found, (weights * each).sum() / weights.sum())
        moved += not torch.isclose(found, each.mean())
    assert moved


def test_a_joined_remedy_trains_as_the_first_and_is_edited_by_the_second(patient):  # noqa: F811
    model, own, diagnosis = patient
    diagnosis, validation = counted(diagnosis, (900, 90, 10)), unlike((60, 30, 20), seed=5)

    def arms(*names):
        return trial_of(model, own, diagnosis, arms=names, recipe=RECIPE).run(seeds=1, validation=validation)

    alone, beside = arms("smoothing+balance"), arms("smoothing", "smoothing+balance", "balance")
    joined = alone.arm("smoothing+balance", 0)
    assert same(joined.state, beside.arm("smoothing+balance", 0).state)  # trained anew, and edited only
    assert joined.facts == beside.arm("smoothing+balance", 0).facts and joined.facts[0]["tau"] in TAUS
    smoothed = beside.arm("smoothing", 0)
    assert {name for name in joined.state if not torch.equal(joined.state[name], smoothed.state[name])} == {
        "fc.bias"
    }
    assert not same(joined.state, beside.arm("balance", 0).state)
    assert cure_named("swap+balance").needs == {"masks", "linear head"}
    for wrong in ("balance+swap", "swap+smoothing", "swap+nothing", "balance+batchnorm"):
        assert cure_named(wrong) is None
        with pytest.raises(
            InputError, match=r"unknown; there are: .*as in swap\+balance, may be: .*batchnorm"
        ):
            arms(wrong)


def test_statistics_measured_anew_are_the_means_over_the_batches():
    model, given = Net(), images()
    measure_statistics(model.eval(), given, 0)
    assert not model.training and model.drop.p == 0.3
    maps = [model.conv1(batch.images).detach() for batch in given.batches]
    torch.testing.assert_close(
        model.bn1.running_mean, torch.stack([one.mean((0, 2, 3)) for one in maps]).mean(0)
    )
    torch.testing.assert_close(
        model.bn1.running_var, torch.stack([one.transpose(0, 1).flatten(1).var(1) for one in maps]).mean(0)
    )


def test_batchnorm_changes_statistics_alone(patient):  # noqa: F811
    control, arm = treated(patient, "batchnorm")
    changed = {name for name in arm.state if not torch.equal(arm.state[name], control.state[name])}
    assert changed == {"bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"}


def test_damaged_layers_are_trained_alone(patient):  # noqa: F811
    model, batches, diagnosis = patient
    layers = [
        replace(layer, drift=np.where(np.arange(len(layer.drift)) == 2, 9.0, 0.01)) if layer.name == "conv1"
        else layer
        for layer in diagnosis.layers
    ]  # fmt: skip
    hurt = replace(diagnosis, layers=tuple(layers))
    found = td.treat(model, batches, hurt, arms=["damaged-layers"], recipe=RECIPE, seeds=1)
    arm, before = found.arm("damaged-layers", 0), model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], arm.state[name])}
    assert changed == {name for name in before if name.startswith(("conv1", "bn1"))}
    assert arm.facts[0]["damaged_layers"] == ["conv1"]
    with pytest.raises(InputError, match="'damaged-layers' needs kernels that are out of step"):
        td.treat(model, batches, diagnosis, arms=["damaged-layers"], recipe=RECIPE, seeds=1)


def test_decay_is_the_control_with_another_weight_decay(patient):  # noqa: F811
    _, arm = treated(patient, "decay")
    control, _ = treated(patient, "decay", recipe=replace(RECIPE, weight_decay=5e-3))
    assert same(arm.state, control.state)
    assert (
        REMEDIES["decay"](*patient[:1], images(), patient[2], 0).recipe(Recipe(weight_decay=0.1)).weight_decay
        == 1
    )


def test_augmented_images_are_those_of_torchvision():
    from torchvision.transforms import v2

    given = TriviallyAugmented(images())
    batch, plain = next(given.epoch(1, 7)), next(images().epoch(1, 7))
    assert batch.masks is None and torch.equal(batch.ids, plain.ids)
    darkest = torch.stack([one.images.amin((0, 2, 3)) for one in data()]).amin(0)[:, None, None]
    span = torch.stack([one.images.amax((0, 2, 3)) for one in data()]).amax(0)[:, None, None] - darkest
    torch.manual_seed(key("augment", 7, 1, 0))
    change = v2.TrivialAugmentWide()
    wanted = [change((image - darkest) / span) * span + darkest for image in plain.images]
    torch.testing.assert_close(batch.images, torch.stack(wanted))
    assert not torch.equal(batch.images, plain.images)
    assert torch.equal(next(given.epoch(1, 7)).images, batch.images)
    assert [torch.equal(one.images, other.images) for one, other in zip(given, images(), strict=True)] == [
        True
    ] * 3


def test_images_can_be_dropped_and_relabelled(patient):  # noqa: F811
    model, _, diagnosis = patient
    course = without(range(40))(model, images(), diagnosis, 0)
    assert [one.ids.tolist() for one in course.images] == [list(range(40, 48))]
    assert [one.ids.tolist() for one in course.images.epoch(0, 0)] == [list(range(40, 48))]
    course = relabelled({0: 2, 47: 0})(model, images(), diagnosis, 0)
    labels = torch.cat([one.labels for one in course.images])
    wanted = torch.arange(48) % 3
    wanted[0], wanted[47] = 2, 0
    assert torch.equal(labels, wanted)
    assert not same(*(arm.state for arm in treated(patient, without([1, 2]))))
    assert not same(*(arm.state for arm in treated(patient, relabelled({1: 2}))))
    with pytest.raises(InputError, match="image id 99: not among the 48"):
        without([99])(model, images(), diagnosis, 0)
    with pytest.raises(InputError, match="label 3: expected the number of a category, 0 to 2"):
        relabelled({1: 3})(model, images(), diagnosis, 0)


def test_a_soup_of_one_seed_is_that_seed_and_of_two_their_mean(patient):  # noqa: F811
    model, batches, diagnosis = patient
    found = td.treat(model, batches, diagnosis, arms=["smoothing"], recipe=RECIPE, seeds=2)
    for name in ("control", "smoothing"):
        single = Treatment((found.arm(name, 0),), ())
        alone = soup(model, single, name, images(), data())
        assert same(alone.state, found.arm(name, 0).state) and alone.helps
        assert alone.of_seeds == (alone.accuracy,)
        both = soup(model, found, name, images(), data())
        one, other = found.arm(name, 0).state, found.arm(name, 1).state
        torch.testing.assert_close(both.state["fc.weight"], (one["fc.weight"] + other["fc.weight"]) / 2)
        assert both.helps == (both.accuracy >= max(both.of_seeds)) and len(both.of_seeds) == 2
        own = Net().eval()
        own.load_state_dict(mean_of([one, other]))
        measure_statistics(own, images(), 0)
        assert same(both.state, own.state_dict())


def test_the_learning_rate_is_the_highest_of_the_best_of_short_trainings(patient):  # noqa: F811
    model, _, _ = patient
    assert rates_of(Recipe()) == (0.003, 0.01, 0.03, 0.1)
    assert rates_of(Recipe(optimizer="adamw")) == (9e-5, 0.0003, 0.0009, 0.003)
    assert [short_steps(Recipe(epochs=10), steps) for steps in (1, 8, 30)] == [8, 20, 48]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = measured_rate(model, images(), data(), Recipe(), steps=4)
    assert same(model.state_dict(), before) and found.steps == 16
    best = max(found.accuracies.values())
    error = (best * (100 - best) / 48) ** 0.5  # of an accuracy on 48 images
    assert found.chosen == max(rate for rate, value in found.accuracies.items() if value >= best - error)
    for last, expected in ((90.0, 0.1), (86.0, 0.1), (85.0, 0.01), (float("nan"), 0.01)):
        known = {0.003: 80.0, 0.01: 90.0, 0.03: 84.0, 0.1: last}  # 4.3 points are a standard error
        assert measured_rate(model, images(), data(), Recipe(), known=known).chosen == expected
    assert "for all arms" in found.sentence
    torch.manual_seed(0)
    fresh = measured_rate(Net(), images(), data(), Recipe(), steps=12)
    assert fresh.chosen > 0.003

"""Every remedy does what its name says, and an arm of a user's own needs no registration."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchdoctor as td
from test_treatment import data, patient, same  # noqa: F401 - a fixture
from torchdoctor.images.backgrounds import across_categories, background_alone
from torchdoctor.images.batches import Batch, ShuffledBatches
from torchdoctor.randomness import key
from torchdoctor.treatment.masked_remedies import swapped_batch
from torchdoctor.treatment.recipe import Recipe, set_mode
from torchdoctor.treatment.remedies import FROM_LISTS, REMEDIES
from torchdoctor.treatment.settings import TreatmentSettings
from torchdoctor.types import InputError

RECIPE = Recipe(epochs=1, learning_rate=0.05)


def images(masks=True):
    return ShuffledBatches(tuple(data(masks)))


def test_every_remedy_runs_beside_the_control_and_changes_the_weights(patient):  # noqa: F811
    model, batches, diagnosis = patient
    left_out = ("damaged-layers", *FROM_LISTS)  # they need drifted kernels, or a list of images
    arms = ["treated", *(name for name in list(REMEDIES)[1:] if name not in left_out)]
    found = td.treat(model, batches, diagnosis, arms=arms, recipe=RECIPE, seeds=1)
    assert found.names() == ("control", *arms)
    control = found.arm("control", 0)
    for name in arms:
        arm = found.arm(name, 0)
        assert arm.steps == control.steps == 3 and arm.skipped == ()
        nothing_wrong = name == "weighed-errors"  # this network is right on all of its training images
        assert same(arm.state, control.state) == nothing_wrong, name
    again = td.treat(model, batches, diagnosis, arms=arms, recipe=RECIPE, seeds=1)
    assert all(same(found.arm(name, 0).state, again.arm(name, 0).state) for name in arms)


def test_swapping_shows_objects_before_the_background_of_another(patient):  # noqa: F811
    model, batches, diagnosis = patient
    course = REMEDIES["swap"](model, images(), diagnosis, 5)
    batch, seen = batches[0], []
    model.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    course.terms(model, batch, 2)
    model._forward_pre_hooks.clear()
    generator = torch.Generator().manual_seed(key("swap", 5, 2))
    half = len(batch.labels) // 2  # all images have masks, and no more than half of them are swapped
    chosen = torch.randperm(len(batch.labels), generator=generator)[:half].sort().values.tolist()
    by = int(torch.randint(1, half, (), generator=generator))
    for row in range(len(batch.labels)):
        if row not in chosen:
            assert torch.equal(seen[0][row], batch.images[row])
            continue
        mask = batch.masks[row]
        donor = chosen[(chosen.index(row) - by) % half]
        behind = background_alone(batch.images[donor][None], batch.masks[donor][None])[0]
        torch.testing.assert_close(seen[0][row], mask * batch.images[row] + (1 - mask) * behind)


def test_few_annotated_images_are_all_swapped(patient):  # noqa: F811
    batch = patient[1][0]
    few = replace(batch, annotated=torch.arange(len(batch.labels)) < len(batch.labels) // 4)
    changed = (swapped_batch(few, 1, 2).images != batch.images).flatten(1).any(1)
    assert torch.equal(changed, few.annotated)


def test_the_input_gradient_penalty_equals_its_formula(patient):  # noqa: F811
    model, batches, diagnosis = patient
    course = REMEDIES["rrr"](model, images(), diagnosis, 0)
    weight = course.facts[0]["weight"]
    set_mode(model, "frozen")
    batch = batches[1]
    found = course.terms(model, batch, 0)["rrr"].item() / weight
    model.eval()
    wanted = 0.0
    for row in range(len(batch.labels)):
        pixels = batch.images[row : row + 1].clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(model(pixels).log_softmax(1).sum(), pixels)
        wanted += float(((1 - batch.masks[row]) * slope[0]).square().sum()) / len(batch.labels)
    assert found == pytest.approx(wanted, rel=1e-4)


def test_batch_norm_that_is_not_trained_keeps_its_statistics():
    frozen, trained, plain = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)
    frozen.requires_grad_(False)
    model = nn.Sequential(frozen, trained, plain)
    set_mode(model, "train")
    assert (frozen.training, trained.training, plain.training) == (False, True, True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(3 + torch.randn(8, 3, 4, 4))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    kept = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{place}.{name}" for place in (1, 2) for name in kept}
    set_mode(model, "frozen")
    assert not any(module.training for module in model)


def test_smoothed_labels_are_those_of_pytorch(patient):  # noqa: F811
    model, batches, diagnosis = patient
    model.eval()
    course = REMEDIES["smoothing"](model, images(), diagnosis, 0)
    wanted = functional.cross_entropy(model(batches[0].images), batches[0].labels, label_smoothing=0.1)
    assert course.terms(model, batches[0], 0)["loss"].item() == pytest.approx(wanted.item())


@pytest.mark.parametrize("name", ["swap", "rrr"])
def test_remedies_that_need_masks_say_so(patient, name):  # noqa: F811
    model, _, diagnosis = patient
    with pytest.raises(InputError, match=f"arm '{name}' needs object masks"):
        td.treat(model, data(masks=False), diagnosis, arms=[name], recipe=RECIPE, seeds=1)


def test_a_remedy_of_ones_own_is_a_function(patient):  # noqa: F811
    model, batches, diagnosis = patient

    def focal(model, images, diagnosis, seed):
        def terms(model, batch, step):
            logits, parts = td.classification_terms(model, batch)
            sure = torch.softmax(logits, 1).gather(1, batch.labels[:, None])[:, 0]
            return {"loss": (-((1 - sure) ** 2) * sure.log()).mean(), "plain": 0 * parts["loss"]}

        return td.Course(terms)

    found = td.treat(model, batches, diagnosis, arms=["control", focal], recipe=RECIPE, seeds=1)
    assert found.names() == ("control", "focal")
    assert not same(found.arm("focal", 0).state, found.arm("control", 0).state)
    with pytest.raises(InputError, match="arm 'rubbish' is unknown; there are: control, treated, balance"):
        td.treat(model, batches, diagnosis, arms=["rubbish"], seeds=1)
    with pytest.raises(InputError, match="no arm but the control"):
        td.treat(model, batches, diagnosis, arms=["control"], seeds=1)


def test_time_as_the_budget_gives_the_control_the_same_seconds(patient):  # noqa: F811
    model, batches, diagnosis = patient
    found = td.treat(
        model, batches, diagnosis, arms=["control", "treated"], recipe=Recipe(epochs=4), seeds=1, draws=2,
        settings=TreatmentSettings(budget_kind="time"),
    )  # fmt: skip
    control, treated = found.arm("control", 0), found.arm("treated", 0)
    assert treated.steps == 12 and control.steps > treated.steps
    assert control.seconds >= treated.seconds


def test_validation_images_stand_before_backgrounds_of_other_categories():
    batches = data()
    labels = torch.cat([one.labels for one in batches])
    found = across_categories(batches, seed=1)
    assert sum(len(one.labels) for one in found) == len(labels)
    pixels = torch.cat([one.images for one in batches])
    behind = background_alone(pixels, torch.cat([one.masks for one in batches]))
    whole = Batch(*(torch.cat([getattr(one, name) for one in found]) for name in ("images", "labels", "ids")))
    outside = torch.ones(12, 12).bool()
    outside[4:8, 3:9] = False
    for row in range(len(labels)):
        same_as = ((whole.images[row] - behind)[:, :, outside].abs().amax((1, 2)) < 1e-6).nonzero()[:, 0]
        assert len(same_as) == 1 and labels[same_as[0]] != whole.labels[row]
    assert across_categories(data(masks=False)) == ()

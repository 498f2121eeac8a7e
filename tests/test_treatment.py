"""The control arm differs in nothing but the constraints, and dead constraints are refused."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from reference import tiny_net
from torchdoctor.diagnosis.diagnose import diagnose, state_sha256
from torchdoctor.images.batches import Batch, ShuffledBatches, TrainingImages
from torchdoctor.proof.compare import compare
from torchdoctor.treatment.annotated_share import share_against_backgrounds, share_drawn
from torchdoctor.treatment.constraints import CONSTRAINTS, constraints_named
from torchdoctor.treatment.masked_images import drawn_per_batch, masked_ids
from torchdoctor.treatment.optimizer import learning_rate_factor
from torchdoctor.treatment.passes import Noise
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.settings import TreatmentSettings
from torchdoctor.treatment.training import fit
from torchdoctor.treatment.treat import treat
from torchdoctor.treatment.weighting import Prescription
from torchdoctor.types import InputError, ModelDoctorError, Targets, check_choice


class Net(nn.Module):
    """A small classifier with batch-norm and drop-out, in float32."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(12, 3)

    def forward(self, images):
        maps = torch.relu(self.bn1(self.conv1(images)))
        maps = torch.relu(self.conv2(maps))
        return self.fc(self.drop(maps.mean((2, 3))))


def data(masks=True):
    """Return batches whose category is the colour of a square."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 * torch.rand(48, 3, 12, 12, generator=generator)
    labels = torch.arange(48) % 3
    object_masks = torch.zeros(48, 1, 12, 12)
    object_masks[:, :, 4:8, 3:9] = 1
    for row in range(48):
        images[row, labels[row], 4:8, 3:9] += 0.7
    return [
        Batch(
            images[part], labels[part], torch.arange(48)[part], object_masks[part] if masks else None,
            torch.ones(len(part)).bool() if masks else None,
        )
        for part in torch.arange(48).split(16)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def patient():
    """A trained network, its data, and its diagnosis."""
    torch.manual_seed(0)
    model, batches = Net(), data()
    recipe = Recipe(epochs=12, learning_rate=0.1, norm="train")
    fit(model, lambda epoch: batches, recipe, steps_per_epoch=3, seed=0)
    diagnosis = diagnose(model.eval(), batches, layers=["conv1", "conv2"], draws=2, confidence=0.3)
    assert min(diagnosis.counts) > 0
    return model, batches, diagnosis


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("norm", ["frozen", "train"])
@pytest.mark.parametrize("draws", [0, 2])
def test_weight_zero_is_the_control_arm_bit_for_bit(patient, norm, draws):
    model, batches, diagnosis = patient
    recipe = Recipe(epochs=2, learning_rate=0.05, norm=norm)
    found = treat(
        model, batches, diagnosis, settings=TreatmentSettings(weight=0.0), draws=draws, recipe=recipe, seeds=2
    )
    for seed in (0, 1):
        assert same(found.arm("control", seed).state, found.arm("treated", seed).state)
    assert not same(found.arm("control", 0).state, found.arm("control", 1).state)


def test_weights_change_the_treated_arm_and_never_the_model(patient):
    model, batches, diagnosis = patient
    before = state_sha256(model)
    found = treat(
        model, batches, diagnosis, settings=TreatmentSettings(weight=1.0), recipe=Recipe(epochs=1), seeds=1
    )
    assert state_sha256(model) == before
    assert not same(found.arm("control", 0).state, found.arm("treated", 0).state)
    assert found.arm("control", 0).steps == found.arm("treated", 0).steps == 3
    again = treat(
        model, batches, diagnosis, settings=TreatmentSettings(weight=1.0), recipe=Recipe(epochs=1), seeds=1
    )
    assert same(found.arm("treated", 0).state, again.arm("treated", 0).state)


def test_a_large_weight_lowers_the_penalty(patient):
    model, batches, diagnosis = patient
    recipe = Recipe(epochs=6, learning_rate=0.05)
    found = treat(
        model,
        batches,
        diagnosis,
        constraints=["space"],
        layers=["conv1"],
        settings=TreatmentSettings(weight=20.0, expand_pixels=0, scale="share"),
        recipe=recipe,
        seeds=1,
    )
    history = found.arm("treated", 0).history
    assert history[-1]["space"] < 0.8 * history[0]["space"]


def test_auto_weight_balances_the_gradient_norms(patient):
    model, batches, diagnosis = patient
    found = treat(
        model, batches, diagnosis, settings=TreatmentSettings(tau=0.5), recipe=Recipe(epochs=0), seeds=1
    )
    for one in found.prescription:
        balance = one["weight"] * one["penalty_gradient_norm"] / one["loss_gradient_norm"]
        assert balance == pytest.approx(0.5) and one["weight_chosen"] == "auto"


@pytest.mark.parametrize("weight", ["auto", math.nan, math.inf])
def test_a_penalty_without_a_finite_weight_is_not_trained_with(patient, weight):
    model, batches, diagnosis = patient
    constraint = replace(CONSTRAINTS["channel"], layers=("conv2",), weight=weight)
    if weight == "auto":  # a pixel that is not finite makes the measured norms so
        images = batches[0].images.clone()
        images[0, 0, 0, 0] = math.inf
        batches = [replace(batches[0], images=images), *batches[1:]]
    with pytest.raises(InputError, match=r"constraint 'channel' on conv2: .*(nan|inf) on the first batches"):
        treat(model, batches, diagnosis, constraints=[constraint], recipe=Recipe(epochs=1), seeds=1)


def test_a_penalty_that_reaches_nothing_is_refused(patient):
    model, batches, diagnosis = patient
    frozen = copy.deepcopy(model)
    frozen.fc.requires_grad_(False)
    with pytest.raises(InputError, match=r"'channel' on conv2 with evidence 'gradient' reaches no trainable"):
        treat(
            frozen,
            batches,
            diagnosis,
            constraints=["channel"],
            layers=["conv2"],
            settings=TreatmentSettings(evidence="gradient"),
            recipe=Recipe(epochs=1),
            seeds=1,
        )


def test_space_without_masks_is_refused(patient):
    model, _, diagnosis = patient
    with pytest.raises(InputError, match="'space' needs object masks"):
        treat(model, data(masks=False), diagnosis, constraints=["space"], seeds=1)
    found = treat(model, data(masks=False), diagnosis, recipe=Recipe(epochs=0), seeds=1)
    assert [one["constraint"] for one in found.prescription] == ["channel"]


def test_constraints_without_layers_act_at_the_last_that_was_diagnosed(patient):
    model, batches, diagnosis = patient
    settings = {"settings": TreatmentSettings(weight=1.0), "recipe": Recipe(epochs=1), "seeds": 1}
    found = treat(model, batches, diagnosis, **settings)
    assert [one["layers"] for one in found.prescription] == [["conv2"], ["conv2"]]
    turned = diagnose(model, batches, layers=["conv2", "conv1"], draws=0, confidence=0.3)
    assert [layer.name for layer in turned.layers] == ["conv1", "conv2"]
    named = ["channel layers=conv1", "space"]
    found = treat(model, batches, diagnosis, constraints=named, layers=["conv1", "conv2"], **settings)
    assert [one["layers"] for one in found.prescription] == [["conv1"], ["conv1", "conv2"]]


def test_layers_must_be_diagnosed(patient):
    model, batches, diagnosis = patient
    with pytest.raises(InputError, match="layer 'bn1', which was not diagnosed; diagnosed: conv1, conv2"):
        treat(model, batches, diagnosis, layers=["bn1"], seeds=1)


def test_masks_are_taken_from_the_low_images_first(patient):
    _, batches, diagnosis = patient
    chosen = masked_ids(ShuffledBatches(tuple(batches)), diagnosis, 4)
    assert len(chosen) == 12
    for category, low in enumerate(diagnosis.sifting.low):
        assert set(low[:4]) <= set(chosen), category
    everything = sorted(image for batch in batches for image in batch.ids.tolist())
    assert list(masked_ids(ShuffledBatches(tuple(batches)), diagnosis, None)) == everything


def test_a_frozen_model_is_refused():
    model = tiny_net().requires_grad_(False)
    with pytest.raises(InputError, match="no parameter of the model is trainable"):
        fit(model, lambda epoch: [], Recipe(epochs=1), steps_per_epoch=0, seed=0)


def test_plain_batches_are_training_images():
    assert isinstance(ShuffledBatches(tuple(data())), TrainingImages)


def test_treat_and_compare_from_python(patient):
    model, batches, diagnosis = patient
    treatment = treat(model, batches, diagnosis, recipe=Recipe(epochs=1), seeds=2)
    comparison = compare(model, treatment, {"test": batches})
    split = comparison.splits["test"]
    assert len(split.accuracy["treated"]) == 2 and len(split.accuracy["base"]) == 1
    assert split.first.gain.mean == pytest.approx(
        sum(split.accuracy["treated"]) / 2 - sum(split.accuracy["control"]) / 2
    )
    assert 0 < split.background_share["base"] < 1
    assert comparison.steps == 3


def test_an_arm_of_which_every_step_was_skipped_is_not_compared(patient):
    model, batches, diagnosis = patient
    treatment = treat(model, batches, diagnosis, recipe=Recipe(epochs=1), seeds=2)
    for skipped, refused in ((((1, 2),) * 2, False), (((1, 2),) * 3, True)):
        arms = tuple(
            replace(arm, skipped=skipped) if (arm.name, arm.seed) == ("treated", 1) else arm
            for arm in treatment.arms
        )
        expected = pytest.raises(ModelDoctorError, match="treated, seed 1: all 3 steps were skipped")
        with expected if refused else nullcontext():
            compare(model, replace(treatment, arms=arms), {"test": batches})


def test_the_diagnosis_must_be_of_these_weights(patient):
    model, batches, diagnosis = patient
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other.fc.bias)
    with pytest.raises(InputError, match="the diagnosis was made of other weights"):
        treat(other, batches, diagnosis, seeds=1)


def test_names_that_the_history_could_not_tell_apart_are_refused(patient):
    model, batches, diagnosis = patient
    for constraints, message in (
        (["channel", "channel"], "'channel' is given twice"),
        ([replace(CONSTRAINTS["channel"], name="loss", layers=("conv2",))], "'loss': this name is taken"),
    ):
        with pytest.raises(InputError, match=message):
            treat(model, batches, diagnosis, constraints=constraints, seeds=1)
    with pytest.raises(InputError, match="weight of 'spice': no such constraint"):
        treat(model, batches, diagnosis, settings=TreatmentSettings(weight={"spice": 1.0}), seeds=1)


def test_choices_of_words_are_checked():
    check_choice("targets", "label", Targets)
    with pytest.raises(InputError, match="targets 'both': expected one of prediction, label"):
        check_choice("targets", "both", Targets)


def test_the_seed_reaches_the_arms(patient):
    model, batches, diagnosis = patient
    recipe = Recipe(epochs=1, learning_rate=0.05)
    zero, again, one = (
        treat(
            model,
            batches,
            diagnosis,
            settings=TreatmentSettings(weight=1.0),
            recipe=recipe,
            seeds=1,
            seed=seed,
        )
        for seed in (0, 0, 1)
    )
    for arm in ("control", "treated"):
        assert same(zero.arm(arm, 0).state, again.arm(arm, 0).state)
        assert not same(zero.arm(arm, 0).state, one.arm(arm, 0).state)


def test_weights_measured_do_not_depend_on_the_other_constraints(patient):
    model, batches, diagnosis = patient
    alone, beside = (
        treat(model, batches, diagnosis, constraints=names, recipe=Recipe(epochs=0), seeds=1).prescription[-1]
        for names in (["space"], ["channel", "space"])
    )
    assert alone == beside


def test_at_least_one_annotated_image_is_drawn():
    assert [drawn_per_batch(share, 16) for share in (0.0, 0.01, 0.125, 0.5)] == [0, 1, 2, 8]


@pytest.mark.parametrize(
    ("masked", "share"), [(0, 0.5), (400, 4 / 9), (1600, 1 / 6), (1900, 0.125), (4000, 0.125)]
)
def test_against_backgrounds_half_of_each_batch_is_annotated(masked, share):
    drawn = share_against_backgrounds(masked, 4000)
    assert drawn == pytest.approx(share)
    half = drawn + (1 - drawn) * masked / 4000
    assert half == pytest.approx(0.5) if masked <= 1600 else half >= 0.5


def test_the_usual_share_is_an_eighth():
    assert share_drawn("auto") == 0.125 and share_drawn(0.25) == 0.25


def test_the_warm_up_never_exceeds_the_learning_rate():
    for total in range(1, 40):
        factors = [learning_rate_factor(step, total, 0.1) for step in range(total)]
        assert 0 < max(factors) <= 1.0, total


def test_lazy_constraints_act_at_every_kth_step_with_k_times_their_weight(patient):
    model, batches, diagnosis = patient
    built = constraints_named(["channel", "space"], layers=["conv1"], weights={"channel": 0.5, "space": 2.0})
    plan = Prescription(built, diagnosis, Noise(draws=2), 0)
    example = batches[0].images
    eager, lazy = (each.terms(model, example, 3) for each in (plan, replace(plan, every_k_steps=3)))
    for step in range(7):
        batch = batches[step % 3]
        wanted, found = eager(model, batch, step), lazy(model, batch, step)
        assert set(found) == ({"loss"} if step % 3 else {"loss", "channel", "space"})
        for name in set(found) - {"loss"}:
            assert wanted[name] > 0
            torch.testing.assert_close(found[name], 3 * wanted[name])


def test_lazy_treatment_has_the_same_control_and_refuses_nonsense(patient):
    model, batches, diagnosis = patient
    settings = {"constraints": ["channel"], "layers": ["conv1"], "seeds": 1, "recipe": Recipe(epochs=2)}
    every, second = (
        treat(model, batches, diagnosis, settings=TreatmentSettings(penalty_every=lazy), **settings)
        for lazy in (1, 2)
    )
    assert same(every.arm("control", 0).state, second.arm("control", 0).state)
    assert not same(every.arm("treated", 0).state, second.arm("treated", 0).state)
    assert every.prescription == second.prescription
    assert second.arm("treated", 0).history[0]["channel"] > 0
    with pytest.raises(InputError, match="--penalty-every 0: expected a whole number of at least 1"):
        treat(model, batches, diagnosis, settings=TreatmentSettings(penalty_every=0), **settings)

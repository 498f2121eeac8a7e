"""The penalty in a loop of the user's own is that of the treated arm, and says what is wrong with it."""

from __future__ import annotations

import copy
import importlib.util
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchdoctor as td
from test_treatment import Net, data
from torchdoctor.diagnosis.diagnose import diagnose
from torchdoctor.images.batches import Batch, ShuffledBatches
from torchdoctor.randomness import key
from torchdoctor.treatment.optimizer import build_optimizer, learning_rate_factor, trained_parameters
from torchdoctor.treatment.recipe import Recipe, set_mode
from torchdoctor.treatment.training import fit


def double(batch: Batch) -> Batch:
    return Batch(batch.images.double(), batch.labels, batch.ids, batch.masks.double(), batch.annotated)


@pytest.fixture(scope="module")
def patient():
    """A trained network in float64 without drop-out, its batches, and its diagnosis."""
    torch.manual_seed(0)
    model, batches = Net().double(), [double(batch) for batch in data()]
    model.drop = nn.Identity()
    fit(model, lambda epoch: batches, Recipe(epochs=12, learning_rate=0.1), steps_per_epoch=3, seed=0)
    return model, batches, diagnose(model.eval(), batches, layers=["conv1", "conv2"], draws=2, confidence=0.3)


def own_training(model, batches, recipe, penalty):
    """Train as the treated arm does, in a plain loop."""
    stream = key("treatment", 0, 0)
    optimizer = build_optimizer(trained_parameters(model, None), recipe)
    total, step = recipe.epochs * len(batches), 0
    for epoch in range(recipe.epochs):
        for batch in ShuffledBatches(tuple(batches)).epoch(epoch, stream):
            set_mode(model, recipe.norm)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * learning_rate_factor(step, total, recipe.warm_up)
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(batch.images), batch.labels)
            loss = loss + penalty(batch.images, batch.labels, batch.masks)
            loss.backward()
            optimizer.step()
            step += 1


@pytest.mark.parametrize("norm", ["train", "frozen"])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("constraint", ["channel", "space layers=conv1 schedule=ramp"])
def test_a_loop_of_ones_own_ends_at_the_weights_of_the_treated_arm(patient, norm, every, constraint):
    model, batches, diagnosis = patient
    recipe = Recipe(epochs=3, learning_rate=0.05, norm=norm)
    settings = td.TreatmentSettings(weight=0.5, penalty_every=every)
    treated = td.treat(
        model,
        batches,
        diagnosis,
        constraints=[constraint],
        draws=0,
        recipe=recipe,
        seeds=1,
        settings=settings,
    )
    own, control = copy.deepcopy(model), treated.arm("control", 0).state
    penalty = td.penalty(own, diagnosis, constraint, weight=0.5, draws=0, steps=9, settings=settings)
    own_training(own, batches, recipe, penalty)
    assert penalty.step == 9 and penalty.terms.keys() == {constraint.split()[0]}
    for name, value in treated.arm("treated", 0).state.items():
        torch.testing.assert_close(own.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(own.fc.weight, control["fc.weight"], rtol=1e-6)


def test_the_automatic_weight_is_that_of_treat(patient):
    model, batches, diagnosis = patient
    wanted = td.treat(model, batches, diagnosis, recipe=Recipe(epochs=0), seeds=1).prescription
    given = td.penalty(model, diagnosis, "channel", "space", images=batches)
    assert given.prescription == wanted
    first = td.penalty(model.train(), diagnosis, "channel", "space")
    assert first.prescription == ()
    before = torch.get_rng_state()
    first(batches[0].images, batches[0].labels, batches[0].masks)
    assert torch.equal(torch.get_rng_state(), before)
    alone = td.treat(model.eval(), batches[:1], diagnosis, recipe=Recipe(epochs=0), seeds=1).prescription
    for found, one in zip(first.prescription, alone, strict=True):
        assert found["weight"] == pytest.approx(one["weight"]) and found["weight_chosen"] == "auto"


def test_images_without_a_mask_count_for_nothing_and_are_waited_for(patient):
    model, batches, diagnosis = patient
    batch = batches[0]
    penalty = td.penalty(model, diagnosis, "channel weight=1", "space layers=conv1")
    none = penalty(batch.images, batch.labels, torch.zeros_like(batch.masks))
    assert [one["constraint"] for one in penalty.prescription] == ["channel"] and penalty.terms.keys() == {
        "channel"
    }
    assert float(none.detach()) == float(penalty.terms["channel"])
    penalty(batch.images, batch.labels, batch.masks[:, 0].bool())
    assert [one["constraint"] for one in penalty.prescription] == ["channel", "space"]
    assert float(penalty.terms["space"]) > 0
    alone = td.penalty(model, diagnosis, "space layers=conv1", weight=1.0, draws=0)
    some = batch.masks.clone()
    some[4:] = 0
    part = alone(batch.images, batch.labels, some) * len(some)
    torch.testing.assert_close(part, 4 * alone(batch.images[:4], batch.labels[:4], some[:4]))
    with pytest.raises(
        td.InputError, match=r"space needs object masks: call penalty\(images, labels, masks\)"
    ):
        alone(batch.images, batch.labels)


def test_the_network_is_left_as_it_was_but_for_gradients(patient):
    model, batches, diagnosis = patient
    own = copy.deepcopy(model).train()
    penalty = td.penalty(own, diagnosis, "channel", weight=0.1)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    penalty(batches[0].images, batches[0].labels).backward()
    assert own.training and own.bn1.momentum == 0.1
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    with torch.no_grad():
        assert float(penalty(batches[0].images, batches[0].labels)) == 0 and penalty.step == 1


def test_a_penalty_that_is_not_finite_is_named(patient):
    model, batches, diagnosis = patient
    own = copy.deepcopy(model)
    penalty = td.penalty(own, diagnosis, "channel", weight=0.1, draws=0)
    images = batches[0].images.clone()
    penalty(images, batches[0].labels)
    images[0, 0, 0, 0] = math.nan
    with pytest.raises(td.ModelDoctorError, match=r"not finite in step 1 .*channel nan.*look for pixels"):
        penalty(images, batches[0].labels)
    with torch.no_grad():
        own.conv2.weight[0] = math.inf
    with pytest.raises(
        td.ModelDoctorError, match=r"weights of the network .*\(conv2.weight\).*learning rate"
    ):
        penalty(batches[0].images, batches[0].labels)
    with pytest.raises(td.InputError, match=r"constraint 'channel' on conv2: .*nan on the first batches"):
        td.penalty(copy.deepcopy(model), diagnosis, "channel")(images, batches[0].labels)


def test_what_cannot_be_penalised_is_refused(patient):
    model, batches, diagnosis = patient
    with pytest.raises(td.InputError, match="no constraint is named: name one or more of channel, "):
        td.penalty(model, diagnosis)
    with pytest.raises(td.InputError, match="'channel' has a schedule: say by steps="):
        td.penalty(model, diagnosis, "channel schedule=decay")
    with pytest.raises(td.InputError, match="'space' needs object masks and the training data has none"):
        td.penalty(model, diagnosis, "space", images=[(batches[0].images, batches[0].labels)])
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fc.bias += 1
    with pytest.raises(td.InputError, match="the diagnosis was made of other weights"):
        td.penalty(other, diagnosis, "channel")
    with pytest.raises(td.InputError, match="expected the number of one category for each image"):
        td.penalty(model, diagnosis, "channel", weight=1.0)(batches[0].images, torch.rand(16, 3))


# The loops that people have


def test_a_plain_loop(patient):
    model, batches, diagnosis = copy.deepcopy(patient[0]), patient[1], patient[2]
    penalty = td.penalty(model, diagnosis, "channel", "space")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(batch.images), batch.labels)
        (loss + penalty(batch.images, batch.labels, batch.masks)).backward()
        optimizer.step()
    assert not torch.equal(model.conv2.weight, patient[0].conv2.weight)


def test_a_training_step_as_lightning_calls_it(patient):
    class Classifier(nn.Module):  # a LightningModule is used the same way
        def __init__(self, network, diagnosis):
            super().__init__()
            self.network = network
            self.penalty = td.penalty(network, diagnosis, "channel")

        def training_step(self, batch, batch_idx):
            images, labels = batch
            return functional.cross_entropy(self.network(images), labels) + self.penalty(images, labels)

    module = Classifier(copy.deepcopy(patient[0]), patient[2])
    names = set(module.state_dict())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for number, batch in enumerate(patient[1]):
        loss = module.train().training_step((batch.images, batch.labels), number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert module.penalty.step == 3
    assert names == {f"network.{name}" for name in patient[0].state_dict()}


class Wrapped(nn.Module):
    """A network that is called as those of transformers are."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixel_values, labels=None):
        logits = self.network(pixel_values)
        loss = {} if labels is None else {"loss": functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


class StandInTrainer:
    """Calls `compute_loss` as the Trainer of Hugging Face does, in training and in evaluation."""

    def __init__(self, model, batches):
        self.model, self.batches = model, batches

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def train(self):
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        for batch in self.batches:
            self.model.train()
            inputs = {"pixel_values": batch.images, "labels": batch.labels}
            self.compute_loss(self.model, inputs, num_items_in_batch=len(batch.labels)).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            self.compute_loss(self.model.eval(), inputs, return_outputs=True)


def penalised(trainer):
    """Return a trainer's class with the penalty in its loss, as docs/how-to/own-loop.md shows it."""

    class PenalisedTrainer(trainer):
        penalty = None

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
            loss = loss + self.penalty(inputs["pixel_values"], inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    return PenalisedTrainer


def test_compute_loss_as_the_trainer_of_hugging_face_calls_it(patient):
    model = Wrapped(copy.deepcopy(patient[0])).eval()
    diagnosis = td.diagnose(model, patient[1], layers=["network.conv2"], confidence=0.3)
    trainer = penalised(StandInTrainer)(model, patient[1])
    trainer.penalty = td.penalty(model, diagnosis, "channel")
    trainer.train()
    assert trainer.penalty.step == 3


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("transformers", "accelerate"))), reason="needs both packages"
)
def test_the_trainer_of_hugging_face(patient, tmp_path):
    from transformers import Trainer, TrainingArguments

    model = Wrapped(copy.deepcopy(patient[0]).float()).eval()
    rows = [
        {"pixel_values": image.float(), "labels": int(label)}
        for batch in patient[1]
        for image, label in zip(batch.images, batch.labels, strict=True)
    ]
    diagnosis = td.diagnose(model, rows, layers=["network.conv2"], confidence=0.3)
    asked = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=16, num_train_epochs=1, report_to=[], use_cpu=True,
        save_strategy="no", eval_strategy="epoch",
    )  # fmt: skip
    trainer = penalised(Trainer)(model=model, args=asked, train_dataset=rows, eval_dataset=rows)
    trainer.penalty = td.penalty(model, diagnosis, "channel")
    trainer.train()
    assert trainer.penalty.step == 3

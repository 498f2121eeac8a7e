"""What a course can change of an arm, and that a change of nothing leaves the control bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

import torchdoctor as td
from fake_results import fake_diagnosis
from test_training import Memory, net, shuffled
from test_treatment import data, patient, same  # noqa: F401 - a fixture
from torchdoctor.images.batches import Batch, ShuffledBatches
from torchdoctor.treatment.altered_images import Relabelled, Without
from torchdoctor.treatment.cure import Cure
from torchdoctor.treatment.recipe import Course, Recipe
from torchdoctor.treatment.regularising import cutmix, mixup, sharpness_aware, uphill
from torchdoctor.treatment.remedies import REMEDIES, meant_for
from torchdoctor.treatment.result import Arm
from torchdoctor.treatment.training import fit
from torchdoctor.treatment.treat import trial_of
from torchdoctor.types import InputError, Interrupted, ModelDoctorError

RECIPE = Recipe(epochs=2, learning_rate=0.05)


def trained(course, recipe=RECIPE, **settings):
    """Return a trained network and what its training left."""
    model = net()
    found = fit(model, shuffled(data()), recipe, steps_per_epoch=3, seed=4, course=course, **settings)
    return model.state_dict(), found


def images():
    return ShuffledBatches(tuple(data()))


class Shuffled(ShuffledBatches):
    """The batches in the order of `shuffled`, whatever the seed."""

    def epoch(self, number, seed):
        yield from shuffled(self.batches)(number)


NOTHING = {
    "step": Course(step=lambda step: None),
    "images": Course(images=Shuffled(tuple(data()))),
    "none left out": Course(images=Without(Shuffled(tuple(data())), frozenset())),
    "no new label": Course(images=Relabelled(Shuffled(tuple(data())), {})),
    "recipe": Course(recipe=lambda recipe: recipe),
    "trains": Course(trains=("conv1", "bn1", "conv2", "fc.weight", "fc.bias")),
    "sam of radius 0": sharpness_aware(radius=0.0, begin=0.0),
    "average of the last step": Course(average_from=0.0, average_decay=0.0),
}


@pytest.mark.parametrize("what", sorted(NOTHING))
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_change_of_nothing_is_the_control_bit_for_bit(what, optimizer):
    recipe = replace(RECIPE, optimizer=optimizer)
    wanted, plain = trained(Course(), recipe)
    found, other = trained(NOTHING[what], recipe)
    assert same(found, wanted)
    assert other.history == plain.history and other.steps == plain.steps == 6
    assert other.passes == (12 if what.startswith("sam") else 6)


def test_an_edit_that_does_nothing_is_the_control_bit_for_bit(patient):  # noqa: F811
    model, batches, diagnosis = patient

    def idle(model, images, diagnosis, seed):
        return Course(afterwards=lambda model, images, validation: None)

    trial = trial_of(model, batches, diagnosis, arms=[idle], recipe=RECIPE)
    found = trial.run(seeds=2, validation=batches)
    for seed in (0, 1):
        control, other = found.arm("control", seed), found.arm("idle", seed)
        assert same(control.state, other.state) and control.history == other.history


STOPPED = {
    "sam": sharpness_aware(),
    "ema": Course(average_from=0.0, average_decay=0.9),
    "fewer images": Course(images=Without(Shuffled(tuple(data())), frozenset(range(16, 48)))),
    "part": Course(trains=("fc",), schedule=lambda fraction: 1 - fraction),
}


@pytest.mark.parametrize("what", sorted(STOPPED))
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_course_goes_on_bit_for_bit_where_it_was_stopped(what, optimizer):
    recipe = replace(RECIPE, optimizer=optimizer)
    wanted, whole = trained(STOPPED[what], recipe)
    assert whole.steps == 6
    for stop in (1, 3, 5, 6):
        memory = Memory(stop)
        with pytest.raises(Interrupted):
            trained(STOPPED[what], recipe, checkpoints=memory)
        memory.stop_after = None
        found, again = trained(STOPPED[what], recipe, checkpoints=memory)
        assert same(found, wanted), stop
        assert (again.steps, again.passes, again.history) == (6, whole.passes, whole.history)


def test_an_arm_with_fewer_images_has_the_steps_of_the_control(patient):  # noqa: F811
    model, batches, diagnosis = patient

    def first_batch_alone(model, images, diagnosis, seed):
        return Course(images=Without(images, frozenset(range(16, 48))))

    found = td.treat(model, batches, diagnosis, arms=[first_batch_alone], recipe=RECIPE, seeds=1)
    arm = found.arm("first_batch_alone", 0)
    assert arm.steps == found.arm("control", 0).steps == 6 and len(arm.history) == 6

    def nobody(model, images, diagnosis, seed):
        return Course(images=Without(images, frozenset(range(48))))

    with pytest.raises(InputError, match="has chosen no image"):
        td.treat(model, batches, diagnosis, arms=[nobody], recipe=RECIPE, seeds=1)


def test_only_what_the_course_trains_changes():
    before = net().state_dict()
    after, _ = trained(Course(trains=("conv2", "fc.bias")), replace(RECIPE, norm="frozen"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"conv2.weight", "conv2.bias", "fc.bias"}
    with pytest.raises(InputError, match="trains 'conv9' alone"):
        trained(Course(trains=("conv9",)))


def test_a_recipe_and_a_schedule_of_ones_own():
    wanted, _ = trained(Course(), replace(RECIPE, learning_rate=0.1))
    found, _ = trained(Course(recipe=lambda shared: replace(shared, learning_rate=0.1)))
    assert same(found, wanted)
    found, _ = trained(Course(schedule=lambda fraction: 0.0), replace(RECIPE, norm="frozen"))
    assert same(found, net().state_dict())
    for change in ({"epochs": 3}, {"seconds": 1.0}, {"precision": "bf16"}):
        with pytest.raises(InputError, match="another length or precision"):
            trained(Course(recipe=lambda shared, change=change: replace(shared, **change)))
    with pytest.raises(InputError, match="'fp16' scales the gradients"):
        trained(NOTHING["step"], replace(RECIPE, precision="fp16"))


def test_a_step_uphill_equals_its_plain_rewrite():
    """One step of plain SGD with the gradient at w + rho g / |g|."""
    recipe = Recipe(epochs=1, learning_rate=0.1, momentum=1e-12, weight_decay=0.0)
    batch, model, plain = data()[0], net().eval(), net().eval()

    def terms(model, batch, step):
        model.eval()
        return {"loss": torch.nn.functional.cross_entropy(model(batch.images), batch.labels)}

    rate = []

    def uphill_by_one(step):
        uphill(step, 1.0)

    def noted(fraction):
        rate.append(1.0)
        return 1.0

    course = Course(terms, step=uphill_by_one, schedule=noted)
    found = fit(model, lambda epoch: [batch], recipe, steps_per_epoch=1, seed=0, course=course)
    assert found.passes == 2 and rate == [1.0]
    weights = list(plain.parameters())
    slopes = torch.autograd.grad(terms(plain, batch, 0)["loss"], weights)
    length = torch.cat([slope.flatten() for slope in slopes]).norm()
    moved = [weight.detach() + slope / length for weight, slope in zip(weights, slopes, strict=True)]
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, there in zip(weights, moved, strict=True):
            weight.copy_(there)
    slopes = torch.autograd.grad(terms(plain, batch, 0)["loss"], weights)
    for weight, old, slope in zip(model.parameters(), before, slopes, strict=True):
        torch.testing.assert_close(weight.detach(), old - 0.1 * slope)


def test_a_moving_average_equals_its_plain_rewrite():
    memory = Memory()
    memory.due = lambda step: True
    memory.stopping = lambda: False
    after, _ = trained(Course(average_from=0.0, average_decay=0.3), checkpoints=memory)
    states = [state.tensors["model.fc.weight"] for state in memory.states]
    wanted = states[0]
    for step, weight in enumerate(states[1:], start=1):
        decay = min(0.3, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * weight
    torch.testing.assert_close(after["fc.weight"], wanted)


def test_an_edit_may_not_change_the_network_itself_or_leave_rubbish(patient):  # noqa: F811
    model, batches, diagnosis = patient

    def another_layer(model, images, diagnosis, seed):
        return Course(
            afterwards=lambda model, images, validation: setattr(model, "fc", torch.nn.Linear(12, 4))
        )

    def rubbish(model, images, diagnosis, seed):
        def spoil(model, images, validation):
            model.fc.bias.data.fill_(torch.nan)

        return Course(afterwards=spoil)

    for remedy, text in ((another_layer, "changed their shapes"), (rubbish, "not finite")):
        with pytest.raises(ModelDoctorError, match=text):
            td.treat(model, batches, diagnosis, arms=[remedy], recipe=RECIPE, seeds=1)


def test_passes_as_the_budget_give_the_control_as_many_steps_more(patient):  # noqa: F811
    model, batches, diagnosis = patient
    settings = td.TreatmentSettings(budget_kind="passes")
    found = td.treat(
        model, batches, diagnosis, arms=["sam", "ema"], recipe=RECIPE, seeds=1, settings=settings
    )
    sam, control, ema = (found.arm(name, 0) for name in ("sam", "control", "ema"))
    assert (sam.steps, sam.passes) == (6, 9)
    assert control.steps == control.passes == ema.steps == 9
    found = td.treat(
        model, batches, diagnosis, arms=["ema", "sam"], recipe=RECIPE, seeds=1, settings=settings
    )
    assert found.arm("sam", 0).passes in (6, 7) and found.arm("sam", 0).steps < 6
    equal = td.treat(model, batches, diagnosis, arms=["ema"], recipe=RECIPE, seeds=1)
    for name in ("control", "ema"):  # as many passes as steps: the same training
        assert same(equal.arm(name, 0).state, found.arm(name, 0).state)


def test_what_a_remedy_found_is_saved_with_its_arm(patient, tmp_path):  # noqa: F811
    model, batches, diagnosis = patient

    def telling(model, images, diagnosis, seed):
        return Course(
            step=lambda step: step.again() and None, facts=({"before": 1},),
            afterwards=lambda model, images, validation: {"images": sum(len(one.ids) for one in images)},
        )  # fmt: skip

    arm = td.treat(model, batches, diagnosis, arms=[telling], recipe=RECIPE, seeds=1).arm("telling", 0)
    assert arm.facts == ({"before": 1}, {"images": 48}) and arm.passes == 12
    arm.save(tmp_path)
    read = Arm.load(tmp_path, "telling", 0)
    assert read.facts == arm.facts and read.passes == 12 and same(read.state, arm.state)


def doubled(model, images, diagnosis, seed):
    def afterwards(model, images, validation):
        with torch.no_grad():
            model.fc.weight *= 2

    return Course(afterwards=afterwards, facts=({"doubled": True},))


def moved(model, images, diagnosis, seed):
    with torch.no_grad():
        model.fc.weight += 0.1
    return Course(afterwards=lambda model, images, validation: None)


EDITS = ["balance", "balanced-head", "dfr", "batchnorm", doubled, moved]


def test_an_arm_that_only_edits_afterwards_takes_the_controls_training_and_ends_the_same(
    patient, monkeypatch  # noqa: F811
):  # fmt: skip
    model, batches, diagnosis = patient
    given = {"arms": EDITS, "recipe": RECIPE, "seeds": 2}
    steps = []
    monkeypatch.setattr(
        "torchdoctor.treatment.treat.fit", lambda *a, **k: steps.append(k["stage"]) or fit(*a, **k)
    )
    quick = td.treat(model, batches, diagnosis, **given)
    assert steps == ["control, seed 0", "moved, seed 0", "control, seed 1", "moved, seed 1"]
    monkeypatch.setattr(Course, "only_edits", False)
    whole = td.treat(model, batches, diagnosis, **given)
    assert len(steps) == 4 + 2 * 7
    for name in quick.names():
        for seed in (0, 1):
            one, other = quick.arm(name, seed), whole.arm(name, seed)
            assert same(one.state, other.state) and one.history == other.history, name
            assert (one.steps, one.passes, one.facts) == (other.steps, other.passes, other.facts)


@pytest.mark.parametrize("remedy", [mixup, cutmix])
def test_mixed_images_have_labels_in_the_same_shares(remedy):
    class Seen(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3 * 64, 3)

        def forward(self, images):
            self.images = images
            return self.linear(images.flatten(1))

    torch.manual_seed(0)
    model, batch = Seen(), Batch(torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 2, 1]), torch.arange(6))
    course = remedy(model, ShuffledBatches((batch,)), fake_diagnosis(("a", "b", "c")), 4)
    shares = set()
    for step in range(4):
        loss = course.terms(model, batch, step)["loss"]
        mixed, other = model.images, batch.images.roll(1, 0)
        own = ((mixed - other) / (batch.images - other)).mean((1, 2, 3))  # the share of the own image
        torch.testing.assert_close(own, own[:1].expand(6), atol=1e-4, rtol=1e-4)
        if remedy is cutmix:
            from_own = (mixed == batch.images).all(1)
            assert bool((from_own | (mixed == other).all(1)).all())
            assert float(from_own.double().mean()) == pytest.approx(float(own[0]), abs=1e-4)
        logits = model.linear(mixed.flatten(1))
        both = [functional.cross_entropy(logits, labels) for labels in (batch.labels, batch.labels.roll(1))]
        torch.testing.assert_close(loss, own[0] * both[0] + (1 - own[0]) * both[1], atol=1e-4, rtol=1e-4)
        assert torch.equal(loss, course.terms(model, batch, step)["loss"])
        shares.add(round(float(own[0]), 4))
    assert len(shares) > 1


def test_every_built_in_remedy_says_what_it_is_for():
    for name, cure in REMEDIES.items():
        assert cure.name == name and cure.causes and (cure.passes >= 1 or name in EDITS)
        assert (cure.passes == 0) == (name in EDITS)
        assert cure.summary.endswith(".") and len(cure.summary) < 120, cure.summary
    assert meant_for("rare category") == ("balance", "balanced-head", "swap")
    assert meant_for("under-fitted") == ("control", "balanced-head")


def test_a_cure_of_ones_own_says_what_it_needs(patient):  # noqa: F811
    model, _, diagnosis = patient

    def plain(model, images, diagnosis, seed):
        return Course()

    headless = torch.nn.Sequential(model.conv1, model.bn1, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    for need, text in (("masks", "object masks"), ("drifted kernels", "out of step")):
        with pytest.raises(InputError, match=f"arm 'mine' needs .*{text}"):
            td.treat(
                model,
                data(masks=False),
                diagnosis,
                arms=[Cure("mine", plain, needs=frozenset({need}))],
                seeds=1,
            )
    with pytest.raises(InputError, match="'mine' needs a network whose logits"):
        Cure("mine", plain, needs=frozenset({"linear head"})).check(headless, data(), None)
    with pytest.raises(InputError, match="'mine' needs batch-norm"):
        Cure("mine", plain, needs=frozenset({"batch-norm"})).check(torch.nn.Linear(2, 2), data(), None)
    with pytest.raises(InputError, match="arm 'balance': the name is taken"):
        td.treat(model, data(), diagnosis, arms=[Cure("balance", plain)], seeds=1)

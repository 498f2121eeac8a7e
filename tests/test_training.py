"""The training loop: what is not finite is skipped, and what was interrupted ends bit for bit the same."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from test_treatment import Net, data, same
from torchdoctor.treatment.losses import classification_terms
from torchdoctor.treatment.optimizer import build_optimizer
from torchdoctor.treatment.recipe import Course, Recipe, TrainingState
from torchdoctor.treatment.training import fit
from torchdoctor.types import Interrupted, ModelDoctorError


class Memory:
    """Checkpoints in memory: saves after every step, and asks to stop after some."""

    def __init__(self, stop_after=None):
        self.states = []
        self.stop_after = stop_after

    def load(self):
        return self.states[-1] if self.states else None

    def save(self, state):
        self.states.append(TrainingState(
            state.step, {name: one.clone() for name, one in state.tensors.items()},
            copy.deepcopy(dict(state.numbers)), state.seconds,
        ))  # fmt: skip

    def due(self, step):
        self.step = step
        return False

    def stopping(self):
        return self.step == self.stop_after


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


def shuffled(batches):
    def epoch(number):
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(number)).tolist()
        return [batches[one] for one in order]

    return epoch


COURSES = {"plain": Course(), "averaging": Course(average_from=0.5)}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("course", sorted(COURSES))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_stopped_at_any_step_ends_bit_for_bit_the_same(optimizer, course, precision):
    batches, recipe = data(), Recipe(epochs=3, optimizer=optimizer, learning_rate=0.02, precision=precision)
    settings = {"steps_per_epoch": 3, "seed": 4, "course": COURSES[course], "validation": batches}
    whole = net()
    wanted = fit(whole, shuffled(batches), recipe, **settings)
    assert wanted.steps == 9
    for stop in (1, 3, 5, 8, 9):
        memory, first, second = Memory(stop), net(), net(1)
        with pytest.raises(Interrupted, match=f"stopped after step {stop}"):
            fit(first, shuffled(batches), recipe, checkpoints=memory, **settings)
        memory.stop_after = None
        found = fit(second, shuffled(batches), recipe, checkpoints=memory, **settings)
        assert same(second.state_dict(), whole.state_dict()), stop
        assert found.history == wanted.history and found.steps == 9


def test_averaging_hands_back_the_mean_of_the_second_half():
    batches, recipe = data(), Recipe(epochs=2, learning_rate=0.05)
    memory, model = Memory(), net()
    memory.due = lambda step: True
    memory.stopping = lambda: False
    fit(
        model,
        shuffled(batches),
        recipe,
        steps_per_epoch=3,
        seed=0,
        course=COURSES["averaging"],
        checkpoints=memory,
    )
    late = [state.tensors["model.fc.weight"] for state in memory.states[2:]]
    torch.testing.assert_close(model.fc.weight.detach(), torch.stack(late).mean(0))
    assert len(late) == 4 and not torch.equal(late[0], late[-1])


def test_averaging_takes_in_the_running_statistics_and_copies_their_counters():
    batches, memory, model = data(), Memory(), net()
    memory.due = lambda step: True
    memory.stopping = lambda: False
    recipe, course = Recipe(epochs=2, learning_rate=0.05), COURSES["averaging"]
    fit(model, shuffled(batches), recipe, steps_per_epoch=3, seed=0, course=course, checkpoints=memory)
    late = [state.tensors["model.bn1.running_mean"] for state in memory.states[2:]]
    torch.testing.assert_close(model.bn1.running_mean, torch.stack(late).mean(0))
    assert int(model.bn1.num_batches_tracked) == 6
    counts = [state.numbers["averaged"] for state in memory.states]
    assert counts == [0, 0, 1, 2, 3, 4]
    assert not [name for name in memory.states[1].tensors if name.startswith("average.")]


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_scalars_and_vectors_are_not_decayed_whatever_they_are_called(optimizer, weight_decay):
    model = net()
    model.shift = torch.nn.Module()
    model.shift.bias = torch.nn.Parameter(torch.zeros(1, 3, 1, 1))  # timm would exempt it for its name
    model.scale = torch.nn.Parameter(torch.ones(()))
    parameters = list(model.parameters())
    built = build_optimizer(parameters, Recipe(optimizer=optimizer, weight_decay=weight_decay))
    matrices = [one for one in parameters if one.ndim > 1]
    vectors = [one for one in parameters if one.ndim <= 1]
    assert [group["weight_decay"] for group in built.param_groups] == [weight_decay, 0.0]
    for group, wanted in zip(built.param_groups, [matrices, vectors], strict=True):
        assert list(map(id, group["params"])) == list(map(id, wanted))
    assert any(one is model.shift.bias for one in matrices)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("where", [0, 2])
def test_a_step_that_is_not_finite_changes_nothing_and_is_named(optimizer, where):
    batches = data()
    bad = replace(batches[1], images=torch.full_like(batches[1].images, torch.nan))
    given = [batches[0], batches[2]]
    given.insert(where, bad)
    recipe = Recipe(epochs=1, optimizer=optimizer, learning_rate=0.05)
    memory, model = Memory(), net()
    memory.due = lambda step: True
    memory.stopping = lambda: False
    before = copy.deepcopy(model.state_dict())
    found = fit(model, lambda _epoch: given, recipe, steps_per_epoch=3, seed=0, checkpoints=memory)
    assert found.skipped == (tuple(bad.ids.tolist()),) and found.steps == 3
    states = [before] + [
        {name[6:]: one for name, one in state.tensors.items() if name.startswith("model.")}
        for state in memory.states
    ]
    for step in range(3):
        unchanged = [
            name for name in before
            if torch.equal(states[step][name], states[step + 1][name]) and "num_batches" not in name
        ]  # fmt: skip
        floats = [name for name in before if "num_batches" not in name]
        assert unchanged == (floats if step == where else []), step
    assert all(bool(torch.isfinite(one).all()) for one in model.state_dict().values())
    assert all(value == value for value in found.history[0].values())


def test_a_gradient_that_is_not_finite_counts_too():
    batches = data()

    def terms(model, batch, step):
        loss = classification_terms(model, batch)[1]["loss"]
        root = (model.fc.bias - model.fc.bias).abs().sum().sqrt()  # value 0, derivative infinite times 0
        return {"loss": loss + (root if step == 1 else 0)}

    model = net()
    found = fit(model, lambda _e: batches, Recipe(epochs=1), steps_per_epoch=3, seed=0, course=Course(terms))
    assert found.skipped == (tuple(batches[1].ids.tolist()),)
    assert bool(torch.isfinite(model.fc.bias).all())


def test_ten_skipped_steps_in_a_row_end_the_run():
    batches = data()
    bad = [replace(one, images=one.images * torch.inf) for one in batches]
    with pytest.raises(ModelDoctorError, match=r"not finite in 10 steps in a row.*images \[0, 1, 2"):
        fit(net(), lambda _epoch: bad, Recipe(epochs=4), steps_per_epoch=3, seed=0)


def test_a_batch_of_one_image_trains_on_the_networks_own_statistics():
    one = data()[0]
    single = type(one)(one.images[:1], one.labels[:1], one.ids[:1])
    model = net()
    before = model.bn1.running_mean.clone()
    found = fit(model, lambda _epoch: [single], Recipe(epochs=1), steps_per_epoch=1, seed=0)
    assert found.skipped == () and torch.equal(model.bn1.running_mean, before)


def test_a_budget_in_seconds_ends_the_training_by_the_clock():
    batches, model = data(), net()
    recipe = Recipe(epochs=1, seconds=0.4, learning_rate=0.05)
    found = fit(model, shuffled(batches), recipe, steps_per_epoch=3, seed=0)
    assert 0.4 <= found.seconds < 2 and found.steps > 3
    assert len(found.history) == -(-found.steps // 3)

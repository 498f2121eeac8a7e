"""A tail run alone gives what the whole network gives: scores, penalties and the gradients of both."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from reference import literal_penalties, tiny_net
from test_constraints import case
from torchdoctor.diagnosis.diagnose import diagnose
from torchdoctor.images.batches import Batch
from torchdoctor.models.catalogue import MODELS
from torchdoctor.models.loading import load_model
from torchdoctor.network.shortcuts import find_shortcuts, first_layer
from torchdoctor.network.tails import Trunk, remembering
from torchdoctor.treatment.constraints import constraints_named
from torchdoctor.treatment.losses import classification_terms
from torchdoctor.treatment.passes import Noise, Tails
from torchdoctor.treatment.penalties import penalise
from torchdoctor.treatment.recipe import set_mode
from torchdoctor.treatment.weighting import Prescription


class Block(nn.Module):
    """A residual block that uses one activation twice and writes in place, as many networks do."""

    def __init__(self, width=6):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps):
        out = self.relu(self.bn1(self.conv1(maps)))
        out = self.bn2(self.conv2(out))
        out += maps
        return self.relu(out)


class Residual(nn.Module):
    """Two residual blocks and a drop-out before the head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.one = Block()
        self.two = Block()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)

    def forward(self, images):
        maps = self.two(self.one(self.stem(images)))
        return self.head(self.drop(maps.mean((2, 3))))


def residual():
    torch.manual_seed(3)
    model = Residual().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def batch_for(model, number=6, layers=("one.conv2", "two.conv1")):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(number, 1, 8, 8, dtype=torch.float64, generator=generator)
    masks = torch.zeros(number, 1, 8, 8, dtype=torch.float64)
    masks[:, :, 2:6, 2:5] = 1
    annotated = torch.arange(number) % 2 == 0
    labels = torch.arange(number) % 4
    own = Batch(images, labels, torch.arange(number))
    diagnosis = diagnose(model, [own], layers=list(layers), draws=1, confidence=0.0)
    return Batch(images, labels, torch.arange(number), masks, annotated), diagnosis


@pytest.mark.parametrize("draws", [0, 1, 3])
@pytest.mark.parametrize("names", [["channel"], ["space"], ["channel", "space"], ["channel_authors"]])
def test_penalties_and_gradients_equal_the_long_way(draws, names):
    model = residual()
    batch, diagnosis = batch_for(model)
    constraints = constraints_named(names, layers=["two.conv1", "one.conv2"])
    layers = ["one.conv2", "two.conv1"]
    shortcuts = find_shortcuts(model, batch.images, layers)
    assert set(shortcuts) == set(layers)
    if draws == 0:
        assert first_layer(model, batch.images, ["two.conv1", "one.conv2"]) == "one.conv2"
        shortcuts = {"one.conv2": shortcuts["one.conv2"]}
    with remembering(model, shortcuts) as trunk:
        logits, _ = classification_terms(model, batch)
    settings = {"noise": Noise(draws, seed=2), "expand_pixels": 1, "step": 5}
    found = penalise(
        model,
        batch,
        constraints,
        diagnosis,
        logits=logits.detach(),
        tails=Tails(trunk),
        **settings,
    )  # fmt: skip
    wanted = penalise(model, batch, constraints, diagnosis, **settings)
    parameters = list(model.parameters())
    for name in names:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-10, atol=1e-12)
        fast = torch.autograd.grad(found[name].sum(), parameters, allow_unused=True, retain_graph=True)
        slow = torch.autograd.grad(wanted[name].sum(), parameters, allow_unused=True, retain_graph=True)
        for one, other in zip(fast, slow, strict=True):
            one, other = (torch.zeros(()) if each is None else each for each in (one, other))
            torch.testing.assert_close(one.double(), other.double().expand_as(one), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("draws", [0, 3])
def test_penalties_equal_the_literal_way_of_whole_forward_passes(draws):
    model = residual()
    batch, diagnosis = batch_for(model)
    weights = {"channel": 1.0, "space": 1.0}
    constraints = constraints_named(list(weights), layers=["one.conv2"], scale="share", weights=weights)
    found = Prescription(constraints, diagnosis, Noise(draws=draws), 1).terms(model, batch.images, 7)(
        model, batch, 2
    )
    layer = diagnosis.layer("one.conv2")
    wanted = literal_penalties(
        model, batch, "one.conv2", list(weights), correlated=torch.from_numpy(layer.correlated),
        delta=layer.delta, draws=draws, pixels=1, seed=7, step=2,
    )  # fmt: skip
    for name in weights:
        assert found[name].item() == pytest.approx(wanted[name].item(), rel=1e-10)


def test_only_the_tail_runs_again():
    model = residual()
    batch, diagnosis = batch_for(model)
    constraints = constraints_named(["channel"], layers=["two.conv1"], weights={"channel": 1.0})
    plan = Prescription(constraints, diagnosis, Noise(draws=2), 0)
    terms = plan.terms(model, batch.images, 0)
    terms(model, batch, 0)
    counts = {}
    for name, module in model.named_modules():
        plain = module.forward

        def counted(*given, name=name, plain=plain):
            counts[name] = counts.get(name, 0) + 1
            return plain(*given)

        if name:
            module.forward = counted
    terms(model, batch, 1)
    once = {name for name, count in counts.items() if count == 1}
    assert once == {"stem", "one", "one.conv1", "one.bn1", "one.conv2", "one.bn2", "two.conv1"}
    assert counts["two.bn2"] == 2 and counts["one.relu"] == 2 and counts["two.relu"] == 4


def test_the_networks_mode_and_its_modules_are_as_before():
    model = residual()
    batch, diagnosis = batch_for(model)
    before = copy.deepcopy(model.state_dict())
    set_mode(model, "frozen")
    modes = [module.training for module in model.modules()]
    weights = {"channel": 1.0, "space": 1.0}
    constraints = constraints_named(list(weights), layers=["one.conv2"], weights=weights)
    plan = Prescription(constraints, diagnosis, Noise(draws=2), 0)
    plan.terms(model, batch.images, 0)(model, batch, 0)
    assert modes == [module.training for module in model.modules()]
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


class Twice(nn.Module):
    """One convolution used twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Linear(1, 2)

    def forward(self, images):
        return self.head(self.conv(torch.relu(self.conv(images))).mean((2, 3)))


class Sneaky(nn.Module):
    """A network that remembers the size of its input: its tail cannot be run on more rows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.state = None
        self.head = nn.Linear(2, 2)

    def forward(self, images):
        maps = self.conv(images)
        self.state = maps if self.state is None else self.state
        return self.head((maps + self.state.mean()).mean((2, 3)) + images.mean((1, 2, 3))[:, None])


def test_layers_that_a_tail_cannot_be_cut_from_take_the_long_way():
    images = torch.rand(3, 1, 8, 8)
    assert find_shortcuts(Twice(), images, ["conv"]) == {}
    assert find_shortcuts(Sneaky(), images, ["conv"]) == {}
    assert set(find_shortcuts(tiny_net(), images.double(), ["conv2"])) == {"conv2"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_catalogued_network_has_its_shortcuts(name):
    torch.manual_seed(0)
    model = load_model(name, 10, channels=3, image_size=64).eval()
    layers = MODELS[name].layers
    assert set(find_shortcuts(model, torch.randn(2, 3, 64, 64), layers)) == set(layers)


@pytest.mark.parametrize(
    ("kind", "of_value", "of_gradient"), [(torch.bfloat16, 0.02, 0.05), (torch.float16, 0.002, 0.005)]
)
def test_mixed_precision_stays_within_the_stated_bound_of_float32(kind, of_value, of_gradient):
    """The bound holds where both precisions agree on the two best categories, which Eq. 5 depends on."""
    model, diagnosis, batch = case(nn.SiLU)
    model = model.float()
    with torch.no_grad():
        model.fc.bias.copy_(50.0 * torch.arange(4))  # both precisions agree on the two best categories
    masks = batch.masks.float()
    batch = Batch(batch.images.float(), batch.labels, batch.ids, masks, batch.annotated)
    names = ["channel", "space"]
    constraints = constraints_named(names, layers=["conv2"], weights=dict.fromkeys(names, 1.0))
    terms = Prescription(constraints, diagnosis, Noise(draws=2), 1).terms(model, batch.images, 0)
    exact = terms(model, batch, 0)
    with torch.autocast("cpu", dtype=kind):
        found = terms(model, batch, 0)
    for name in names:
        assert found[name].dtype == torch.float32
        assert found[name].item() == pytest.approx(exact[name].item(), rel=of_value)
        parameters = list(model.parameters())
        rough = torch.autograd.grad(found[name], parameters, allow_unused=True, retain_graph=True)
        right = torch.autograd.grad(exact[name], parameters, allow_unused=True, retain_graph=True)
        pairs = [(one, other) for one, other in zip(rough, right, strict=True) if other is not None]
        error = sum(float((one - other).square().sum()) for one, other in pairs) ** 0.5
        assert error < of_gradient * sum(float(other.square().sum()) for _, other in pairs) ** 0.5


@pytest.mark.parametrize("rows", [None, torch.tensor([0, 3, 4])])
def test_a_tail_gives_the_same_with_and_without_its_shortcut(rows):
    model = residual()
    batch, _ = batch_for(model)
    layer, behind = "one.conv2", ["two.conv1"]
    images = batch.images if rows is None else batch.images[rows]
    with remembering(model, find_shortcuts(model, batch.images, [layer])) as trunk:
        model(batch.images)
    short, long = trunk.tail(layer, images, rows), Trunk(model).tail(layer, images, rows)
    assert short.shortcut is not None and long.shortcut is None
    noise = torch.rand(2, len(images), 6, 8, 8, dtype=torch.float64)
    fast, slow = short.noisy(noise.clone()), long.noisy(noise.clone())
    assert (fast.path, slow.path) == ("shared trunk", "vmap")
    for mine, other in ((fast.logits, slow.logits), (fast.maps, slow.maps)):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
    logits, maps = short.clean(behind)
    wanted, whole = long.clean(behind)
    torch.testing.assert_close(logits, wanted, rtol=1e-10, atol=1e-12)
    assert set(maps) == set(whole) == {layer, *behind}
    for name in maps:
        torch.testing.assert_close(maps[name], whole[name], rtol=1e-10, atol=1e-12)
    with short.alone() as (own, blank):
        assert torch.equal(own, maps[layer])
        torch.testing.assert_close(model(blank), wanted, rtol=1e-10, atol=1e-12)
    with pytest.raises(RuntimeError, match=r"'one\.conv2' has no shortcut: its tail cannot be run alone"):
        long.alone().__enter__()

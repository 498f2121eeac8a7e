"""Default layers, and the check of a network, where weights start at 0 or convolutions serve attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchdoctor import Batch, InputError, Recipe, check_model, default_layers, diagnose, treat
from torchdoctor.network.candidates import sightings
from torchdoctor.network.zero_weights import without_zero_weights, zero_weights


class AskingDown(nn.Module):
    """Three stages; the second begins with attention of fewer queries over the first one's places."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.one = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.kv = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16))
        self.q = nn.Conv2d(8, 8, 1)
        self.two, self.three = (nn.Sequential(nn.Conv2d(8, 8, 3, stride, 1), nn.ReLU()) for stride in (1, 2))
        self.fc = nn.Linear(8, 3)

    def forward(self, images):
        maps = self.one(self.stem(images))
        keys, values = self.kv(maps).flatten(2).chunk(2, 1)
        queries = self.q(maps[..., ::2, ::2])
        weights = (queries.flatten(2).mT @ keys).softmax(-1)
        maps = (values @ weights.mT).view(queries.shape)
        return self.fc(self.three(self.two(maps)).mean((2, 3)))


def test_keys_and_values_of_attention_are_not_chosen():
    torch.manual_seed(0)
    network, images = AskingDown().eval(), torch.randn(1, 3, 16, 16)
    seen = {each.candidate.name: each.is_projection for each in sightings(network, images)}
    assert [name for name, is_projection in seen.items() if is_projection] == ["kv.0", "q"]
    assert default_layers(network, images) == ("one.0", "two.0", "three.0")


class Multiplied(AskingDown):
    """A map that everything passes through is multiplied by itself, and a sum of maps is as well."""

    def forward(self, images):
        maps = self.one(self.stem(images))
        maps = maps + self.q(maps)
        weights = (maps.flatten(2).mT @ maps.flatten(2)).softmax(-1)
        maps = (maps.flatten(2) @ weights.mT).view(maps.shape)
        return self.fc(self.three(self.two(maps)).mean((2, 3)))


def test_what_attention_takes_from_the_way_itself_is_no_projection():
    torch.manual_seed(0)
    seen = sightings(Multiplied().eval(), torch.randn(1, 3, 16, 16))
    assert {each.candidate.name for each in seen} == {"stem.0", "one.0", "q", "two.0", "three.0"}
    assert not any(each.is_projection for each in seen)


class Residual(nn.Module):
    """A convolution of stride 2, and a branch whose last norm starts at a scale of 0."""

    def __init__(self, channels):
        super().__init__()
        self.down = nn.Conv2d(channels, 8, 3, 2, 1)
        self.branch = nn.Sequential(
            nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1)
        )
        self.last_norm = nn.BatchNorm2d(8)
        nn.init.zeros_(self.last_norm.weight)

    def forward(self, maps):
        maps = self.down(maps)
        return (maps + self.last_norm(self.branch(maps))).relu()


def fresh():
    torch.manual_seed(0)
    body = [Residual(3), Residual(8), Residual(8)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()


def treated(network):
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        batch = Batch(images, network(images).argmax(1), torch.arange(4), None, None)
    diagnosis = diagnose(network, [batch], confidence=0.0, draws=0)
    return treat(network, [batch], diagnosis, constraints=["channel"], recipe=Recipe(epochs=1), seeds=1)


def test_a_branch_that_starts_at_0_is_refused_by_check_and_verb_alike():
    network, images = fresh(), torch.randn(2, 3, 32, 32)
    (finding,) = check_model(network, images)
    assert (finding.level, finding.check) == ("error", "derivatives")
    assert "derivatives at 0.branch.3, 1.branch.3, 2.branch.3 are all 0" in finding.message
    assert "weights behind start at 0 (0.last_norm.weight, " in finding.message
    assert "Train the network first, or choose other layers" in finding.message
    with pytest.raises(InputError, match="penalty is exactly 0"):
        treated(network)
    assert check_model(network, images, ["0.down", "1.down", "2.down"]) == ()


def test_a_trained_branch_passes_and_the_default_layers_are_those_of_the_fresh_network():
    network, images = fresh(), torch.randn(2, 3, 32, 32)
    layers = default_layers(network, images)
    for number in range(3):
        nn.init.constant_(network[number].last_norm.weight, 0.1)
    assert layers == default_layers(network, images) == ("0.branch.3", "1.branch.3", "2.branch.3")
    assert check_model(network, images) == ()
    assert treated(network).arm("treated", 0).state


def test_dead_units_are_still_a_warning():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()]
    network = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    nn.init.constant_(network[4].bias, -100.0)
    findings = check_model(network, torch.randn(2, 3, 16, 16), ["4"])
    assert any("dead units" in each.message or "same logits" in each.message for each in findings)
    assert not any("start at 0 (" in each.message for each in findings)


def test_weights_of_0_are_named_and_replaced_in_a_copy_alone():
    network = fresh()
    assert zero_weights(network) == tuple(f"{number}.last_norm.weight" for number in range(3))
    moved = without_zero_weights(network)
    assert zero_weights(moved) == () and len(zero_weights(network)) == 3
    assert without_zero_weights(moved) is moved
    assert torch.equal(moved[0].down.weight, network[0].down.weight)
    assert moved[0].last_norm.weight.tolist() == torch.linspace(0.5, 1.0, 8).tolist()

"""The zoo's own loop agrees with a diagnosis, and says so where it does not."""

from __future__ import annotations

import pytest
import torch

from benchmarks import zoo, zoo_networks


@pytest.mark.parametrize("name", ["nasty:hardswish", "nasty:one_score", "nasty:tuple", "transformers:vit"])
def test_a_network_that_works_is_said_to_work(name):
    if name.startswith("transformers"):
        pytest.importorskip("transformers")
    line = zoo.try_network(name, 64, {})
    assert line["outcome"] == "works", line
    assert line["max_rel_error"] < 1e-5 and line["layer"] in line["layers"]


@pytest.mark.parametrize("draws", [0, 10])
def test_other_evidence_than_the_loops_is_wrong(draws, monkeypatch):
    def other(network, layers, image, label, noise):
        slopes = zoo_loop(network, layers, image, label, noise)
        return [each * 1.01 for each in slopes] if (noise is not None) == bool(draws) else slopes

    zoo_loop = zoo.loop
    monkeypatch.setattr(zoo, "loop", other)
    line = zoo.try_network("nasty:hardswish", 64, {})
    assert line["outcome"] == "wrong" and 0.005 < line["max_rel_error"] < 0.02


def test_other_noise_than_the_diagnosis_used_is_wrong(monkeypatch):
    zoo_noise = zoo.noise_of
    monkeypatch.setattr(zoo, "noise_of", lambda *about: 0 * zoo_noise(*about))
    line = zoo.try_network("nasty:hardswish", 64, {})
    assert line["outcome"] == "wrong" and line["layer"] == line["layers"][0]


def test_what_is_refused_is_refused_in_a_sentence():
    line = zoo.try_network("nasty:softmax", 64, {})
    assert line["outcome"] == "refused" and "ends in Softmax" in line["message"]


def test_constant_parameters_are_moved_as_by_training_and_others_left():
    def made():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2), torch.nn.PReLU()
        )

    fresh, moved = made(), made()
    torch.nn.init.zeros_(moved[2].weight)
    assert zoo_networks.as_trained(moved) is moved
    assert torch.equal(fresh[0].weight, moved[0].weight)
    assert 0 < moved[2].weight.abs().max() < 0.2 and moved[1].bias.all()
    assert 0 < (moved[1].weight - 1).abs().max() < 0.5
    other = made()
    torch.nn.init.zeros_(other[2].weight)
    assert torch.equal(zoo_networks.as_trained(other)[2].weight, moved[2].weight)
    head = zoo_networks.network_of("nasty:zero_head", {}).fc.weight
    assert not head.any()  # what is nasty stays so


def test_batch_norms_get_the_statistics_of_the_images():
    torch.manual_seed(0)
    network, images = torch.nn.Sequential(torch.nn.BatchNorm2d(3)), 5 + 2 * torch.randn(4, 3, 8, 8)
    settled = zoo_networks.with_statistics(network, images)
    assert settled is network and not network.training and network[0].momentum == 0.1
    torch.testing.assert_close(network[0].running_mean, images.mean((0, 2, 3)))
    assert network(images).mean().abs() < 1e-5


@pytest.mark.parametrize(
    ("name", "family"),
    [("resnet18", "resnet"), ("wide_resnet50_2", "wide_resnet"), ("resnext50_32x4d", "resnext"),
     ("efficientnet_v2_s", "efficientnet_v2"), ("efficientnet_b0", "efficientnet"), ("vit_b_16", "vit"),
     ("regnet_y_400mf", "regnet_y"), ("swin_v2_t", "swin_v2"), ("vgg11_bn", "vgg")],
)  # fmt: skip
def test_families_of_torchvision_are_told_apart(name, family):
    assert zoo_networks._family_of(name) == family


def test_a_line_holds_what_is_promised(capsys, monkeypatch, tmp_path):
    out = tmp_path / "zoo.jsonl"
    monkeypatch.setattr(zoo, "in_own_process", lambda label, name, *_: {"name": label, "outcome": "works"})
    monkeypatch.setattr("sys.argv", ["zoo", "--only", "nasty:*", "--out", str(out), "--json"])
    threads = torch.get_num_threads()
    zoo.main()
    torch.set_num_threads(threads)
    first = capsys.readouterr().out.splitlines()
    assert len(first) == len(zoo_networks.nasty_makers())
    for key in zoo.KEYS:
        assert f'"{key}"' in first[0]
    monkeypatch.setattr(zoo, "in_own_process", None)
    zoo.main()
    assert capsys.readouterr().out.splitlines() == first

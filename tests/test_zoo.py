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

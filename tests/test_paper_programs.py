"""The programs of benchmarks/paper run end to end, add their lines once, and say what the page needs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from fake_results import fake_diagnosis

PAPER = Path(__file__).resolve().parents[1] / "benchmarks" / "paper"
READINGS = ("literal", "ours")
ARMS = ("channel", "space", "all")
LAYERS = ("layer1.conv2", "layer2.conv2", "layer3.conv2", "layer4.conv2")
SHORTER = {"table3": ("PIXELS", (0, 30)), "figure6": ("PARTS", 2)}  # the rest would be more of the same
# What each program has to leave of one cell with masks, as arm/variant, and pictures that begin like this.
EXPECTED = {
    "table2": {
        f"{arm}/annotated{count}{reading}"
        for count in (5, 8)
        for arm, reading in [("base", ""), ("control", ""), *(("space", f"-{one}") for one in READINGS)]
    },
    "table3": {"base/", "control/"}
    | {f"space/expand{pixels}-{one}" for pixels in (0, 30) for one in READINGS},
    "figure1": {"base/layer4.conv2", "base/stem.0", "base/layer2.downsample.0"},
    "figure2": {"base/gradient", "base/gradient_x_activation"},
    "figure3": {"base/absolute", "base/deviation"},
    "figure4": {"base/", "base/validation", "control/", "control/rank"}
    | {f"{arm}/{one}{rank}" for arm in ARMS for one in READINGS for rank in ("", "-rank")},
    "figure5": {"base/", "control/", *(f"{arm}/ours" for arm in ARMS)},
    "figure6": {"base/", "control/"}
    | {f"{arm}/{layer}-{one}" for arm in ARMS for layer in LAYERS[1::2] for one in READINGS},
}
FIELDS = {
    "figure1": {"correlated_share", "correlated", "agreement", "between", "kernels", "depth", "place"},
    "figure2": {"correlated_share", "evidence_share", "sifted_per_category", "affine", "layer"},
    "figure3": {"ranges", "normal", "restored", "fooled", "attack_success", "images"},
    "figure5": {"background_gradient", "background_gradient_x_activation", "background_area"},
}
WITHOUT_PICTURE = ("table2", "table3")


@pytest.fixture(scope="module")
def programs():
    """Return a function that imports a program by its dotted name."""
    return importlib.import_module


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The trained networks, shared by all programs."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("program", EXPECTED)
def test_a_program_runs_once_and_leaves_its_lines(program, programs, cache, tmp_path, monkeypatch):
    words = [
        program, "--protocol", "smallest", "--datasets", "scenes", "--architectures", "small_resnet",
        "--seeds", "0", "--data", ".", "--device", "cpu", "--cache", str(cache), "--results", str(tmp_path),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    module = programs(f"benchmarks.paper.{program}")
    if program in SHORTER:
        monkeypatch.setattr(module, *SHORTER[program])
    module.main()
    file = tmp_path / f"{program}.jsonl"
    first = file.read_text()
    lines = [json.loads(line) for line in first.splitlines()]
    key = programs("benchmarks.ledger.lines").KEY
    found = [f"{line['arm']}/{line['variant']}" for line in lines]
    assert len(set(found)) == len(found)
    assert set(found) >= EXPECTED[program]
    if program != "figure1":  # whose layers are not all listed above
        assert set(found) == EXPECTED[program]
    for line in lines:
        assert set(key) <= set(line)
        assert (line["program"], line["protocol"], line["image_size"]) == (program, "smallest", 32)
        assert 0 <= line["accuracy"] <= 100
        assert {"seconds", "settings", "device", "versions", "time"} <= set(line)
        assert FIELDS.get(program, set()) <= set(line)
    drawn = sorted((tmp_path / "figures").glob(f"{program}*.png"))
    assert bool(drawn) == (program not in WITHOUT_PICTURE)
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in drawn)

    module.main()
    assert file.read_text() == first


def test_layers_are_spread_over_the_network(programs):
    cells, protocols = programs("benchmarks.experiment.cells"), programs("benchmarks.ledger.protocols")
    bench = cells.Bench(
        Path(), Path(), programs("benchmarks.ledger.lines").Ledger(Path("none")), cells.torch.device("cpu")
    )
    cell = cells.Cell(bench, "small_resnet", "scenes", 0, protocols.SHORT)
    assert programs("benchmarks.paper.figure6").layers_of(cell) == list(LAYERS)


def test_the_light_network_is_constrained_at_its_last_convolution(programs):
    networks, cells = programs("benchmarks.experiment.networks"), programs("benchmarks.experiment.cells")
    model = networks.network("small_vgg", 3, 28)
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 3)
    named = dict(model.named_modules())
    assert all(
        isinstance(named[layer], torch.nn.Conv2d) for layer in networks.constrained_layers("small_vgg")
    )
    bench = cells.Bench(
        Path(), Path(), programs("benchmarks.ledger.lines").Ledger(Path("none")), cells.torch.device("cpu")
    )
    cell = cells.Cell(bench, "small_vgg", "scenes", 0, programs("benchmarks.ledger.protocols").SHORT)
    assert cell.layers[-1] == programs("benchmarks.paper.figure6").layers_of(cell)[-1] == "conv6"


def test_sparseness_is_of_the_diagnosed_categories(programs):
    diagnosis = fake_diagnosis(empty=(2,))
    layer = diagnosis.layer("layer2.conv2")
    found = programs("benchmarks.paper.sparseness").sparseness(diagnosis, "layer2.conv2")
    kept = [place for place, count in enumerate(diagnosis.counts) if count]
    rows = layer.correlation[kept]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [unit[one] @ unit[other] for one in range(len(kept)) for other in range(one)]
    assert found["between"] == pytest.approx(np.mean(pairs), abs=1e-4)
    assert found["correlated"] == pytest.approx(layer.correlated[kept].sum(1).mean(), abs=0.01)
    assert found["agreement"] == 0.7
    assert found["diagnosed"] == len(kept) < len(diagnosis.classes)


def test_luck_falls_with_accuracy_on_its_own_images_alone(programs):
    """Categories that are all alike: the gain over the base falls with its accuracy, by chance."""
    generator = np.random.default_rng(0)
    base, elsewhere, later = (generator.binomial(50, 0.6, 400) for _ in range(3))
    correlation = programs("benchmarks.paper.figure4").rank_correlation
    same, _ = correlation(base, later - base)
    other, chance = correlation(elsewhere, later - base)
    assert same < -0.5
    assert abs(other) < 0.15
    assert chance > 0.01
    assert correlation([1, 1, 1, 1], [1, 2, 3, 4]) == (None, None)


@pytest.mark.slow
def test_the_study_judges_on_validation_images_while_it_screens(programs, cache, tmp_path, monkeypatch):
    study = programs("benchmarks.study.screening")
    regimes = (
        study.Regime("", study.chosen("space.tau1", "swap.space")),
        study.Regime("scratch", study.chosen("channel.centre"), untrained=True),
    )
    monkeypatch.setattr(study, "STAGES", {"screen": regimes})
    words = [
        "study", "--protocol", "smallest", "--datasets", "scenes", "--seeds", "0", "--data", ".",
        "--device", "cpu", "--cache", str(cache), "--results", str(tmp_path),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    study.main()
    lines = [json.loads(line) for line in (tmp_path / "study_screen.jsonl").read_text().splitlines()]
    found = [f"{line['arm']}/{line['variant']}" for line in lines]
    assert found == [
        "base/", "control/", "space/tau1", "swap/space",
        "base/scratch", "control/scratch", "channel/scratch-centre",
    ]  # fmt: skip
    cells = programs("benchmarks.experiment.cells")
    ledger = programs("benchmarks.ledger.lines").Ledger(tmp_path / "none.jsonl")
    bench = cells.Bench(Path(), cache, ledger, torch.device("cpu"))
    tables = cells.Cell(
        bench, "small_resnet", "scenes", 0, programs("benchmarks.ledger.protocols").SMALLEST
    ).tables
    assert {line["images"] for line in lines} == {len(tables.validation)} != {len(tables.tests["iid"])}
    assert not any("shifted" in line for line in lines)  # no test split was looked at
    assert lines[0]["accuracy"] != lines[4]["accuracy"]  # random weights are not the trained ones


@pytest.mark.slow
def test_processes_share_the_cells(tmp_path):
    words = [
        PAPER / "table3.py", "--protocol", "smallest", "--datasets", "scenes", "--seeds", "0", "1",
        "--data", ".",
        "--device", "cpu", "--cache", tmp_path / "cache", "--results", tmp_path, "--parallel", "2",
    ]  # fmt: skip
    found = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert sorted(found.stdout.splitlines()) == sorted(set(found.stdout.splitlines()))
    lines = [json.loads(line) for line in (tmp_path / "table3.jsonl").read_text().splitlines()]
    assert {line["seed"] for line in lines} == {0, 1}
    assert len({(line["seed"], line["arm"], line["variant"]) for line in lines}) == len(lines) == 2 * 14


def test_the_parts_are_disjoint_and_hold_every_category(programs):
    power, cells = programs("benchmarks.study.power"), programs("benchmarks.experiment.cells")
    bench = cells.Bench(
        Path(), Path(), programs("benchmarks.ledger.lines").Ledger(Path("none")), torch.device("cpu")
    )
    cell = cells.Cell(bench, "small_resnet", "scenes", 3, programs("benchmarks.ledger.protocols").SMALLEST)
    whole = cell.tables.classes
    found = [part.tables for part in power.parts(cell)]
    assert sorted(name for tables in found for name in tables.classes) == sorted(whole)
    for tables in found:
        assert set(np.unique(tables.train.labels)) == set(range(len(tables.classes)))
        assert len(tables.train) == 8 * len(tables.classes)


def test_a_seed_counts_where_all_its_parts_are_there(programs):
    power = programs("benchmarks.study.power")
    gained = {100: 1.0, 101: 2.0, 102: 6.0}
    arms = {
        ("control", ""): {(part, seed): {"accuracy": 50.0} for part in gained for seed in (0, 1)},
        ("channel", "centre"): {
            (part, seed): {"accuracy": 50.0 + gain * (seed + 1)}
            for part, gain in gained.items()
            for seed in (0, 1)
            if (part, seed) != (102, 1)
        },
    }
    assert power.seed_gains(arms, "channel", "centre") == {0: 3.0}


def test_figure_5_trains_with_the_masks_that_it_records(programs, monkeypatch):
    """Its cells are those of Table 1: the same masks, not all that there are."""
    figure5, seen = programs("benchmarks.paper.figure5"), {}
    monkeypatch.setattr(figure5, "arms_at", lambda *_, **__: {})
    monkeypatch.setattr(figure5, "treat", lambda *_, **given: seen.update(given) or SimpleNamespace(arms=()))
    states = figure5._states(MagicMock(layers=["last"], base=torch.nn.Linear(2, 2)))
    assert set(states) == {"base"} and seen["settings"].masks_per_category == figure5.MASKS == 20

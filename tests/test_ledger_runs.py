"""Cells that are measured by more than one call: shards, interruptions, checks, and the GPU's script."""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.experiment import cells
from benchmarks.experiment.cells import Cell
from benchmarks.experiment.running import arguments, bench_of, cells_of, run_cells
from benchmarks.ledger import check
from benchmarks.ledger.lines import Ledger, key_of
from benchmarks.ledger.protocols import PROTOCOLS
from benchmarks.paper.table1 import table_1
from torchdoctor.types import Interrupted

ROOT = Path(__file__).resolve().parents[1]


def given_for(folder, *words):
    """Return the parsed command line of a tiny run on the drawn images."""
    parser = arguments("", architectures=["small_resnet"], datasets=["scenes"])
    return parser.parse_args(
        ["--data", str(folder), "--protocol", "smallest", "--seeds", "0", "--cache", str(folder / "cache"),
         "--results", str(folder), "--revision", "r", *words]
    )  # fmt: skip


def accuracies(folder):
    return {key_of(line): line["accuracy"] for line in Ledger(folder / "table1.jsonl").lines()}


def test_cells_have_sizes_and_shards(tmp_path):
    given = given_for(tmp_path, "--image-sizes", "24", "32", "--shard", "1/2")
    (cell,) = cells_of(given, bench_of(given, "table1"))
    assert cell.key("table1", "base").image_size == 32 and cell.size.image_size == 32


@pytest.mark.slow
def test_an_interrupted_cell_goes_on_and_its_numbers_are_confirmed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHDOCTOR_CHECKPOINT_STEPS", "1")
    monkeypatch.setattr(cells, "load_tables", functools.cache(cells.load_tables))  # drawn once
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = given_for(whole, "--resident")
    run_cells(run, bench_of(run, "table1"), table_1)
    assert len(accuracies(whole)) == 8
    before = (whole / "table1.jsonl").read_text()
    run_cells(run, bench_of(run, "table1"), table_1)
    assert (whole / "table1.jsonl").read_text() == before

    run = given_for(parts, "--resident")
    bench = bench_of(run, "table1")
    for asked in (2, 5, 13):  # in the base's training, in the first arm's, in a later one's
        calls = iter(range(asked))
        stopping = replace(bench, stop=lambda calls=calls: next(calls, None) is None)
        with pytest.raises(Interrupted):
            table_1(Cell(stopping, "small_resnet", "scenes", 0, PROTOCOLS["smallest"]))
    assert any((parts / "cache" / "unfinished").iterdir()) and len(accuracies(parts)) == 1
    run = given_for(parts, "--resident", "--checkpoints")
    run_cells(run, bench_of(run, "table1"), table_1)
    assert accuracies(parts) == accuracies(whole)
    assert not any((parts / "cache" / "unfinished").iterdir())

    cell = next(one for one in accuracies(whole) if one.arm == "control")
    given = argparse.Namespace(
        results=whole, cell=cell.text, data=whole, cache=None, threads=0, device="cpu", tolerance=1.0
    )
    assert check.check(given) == check.CONFIRMED
    file = whole / "table1.jsonl"
    file.write_text(file.read_text().replace(f'"accuracy": {accuracies(whole)[cell]}', '"accuracy": 99.5'))
    capsys.readouterr()
    assert check.check(given) == check.NOT_CONFIRMED
    assert "NOT confirmed: with these versions and threads it has to be the same" in capsys.readouterr().out


@pytest.mark.slow
def test_the_gpu_script_fills_cells_once(tmp_path):
    out = tmp_path / "out"
    settings = {
        "data": tmp_path, "out": out, "cache": tmp_path / "cache", "budget": 5, "parallel": 2,
        "device": "cpu", "protocol": "smallest", "phases": "scenes", "python": sys.executable,
        "revision": "some",
    }  # fmt: skip
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *words]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    found = [line for line in Ledger(out / "table1.jsonl").lines() if line["protocol"] == "smallest"]
    assert len(found) == 8 and all(line["resident"] and line["revision"] == "some" for line in found)
    assert all(file.suffix == ".jsonl" for file in out.iterdir())
    (out / "table1.jsonl").unlink()  # as on a fresh output folder: the cache has the lines
    nothing = [*command, "--phases", ""]
    done = subprocess.run(nothing, check=True, capture_output=True, timeout=240, text=True)
    again = [line for line in Ledger(out / "table1.jsonl").lines() if line["protocol"] == "smallest"]
    assert sorted(map(json.dumps, again)) == sorted(map(json.dumps, found)) and "table1.jsonl" in done.stdout
    wrong = subprocess.run([*command, "--phases", "no"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "phase no is unknown" in wrong.stderr

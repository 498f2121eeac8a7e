"""The proof is calibrated and sharp: bounds on both sides, on simulated predictions."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest

from benchmarks.study.proof import Cell, main, study

RUNS = 600


@functools.cache
def simulated(seeds, sd, gain):
    """Return a cell's line; several tests look at the same one."""
    return study(Cell(seeds, sd, gain), RUNS, seed=11)


@pytest.mark.slow
@pytest.mark.parametrize("sd", [0.3, 0.7])
@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_without_a_difference_it_seldom_speaks(seeds, sd):
    line = simulated(seeds, sd, 0.0)
    assert line["helped"] <= 4.0 and line["harmed"] <= 4.0
    assert line["helped"] + line["harmed"] > 0.0  # an interval that never speaks would pass the line above


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.0, 2.0])
@pytest.mark.parametrize("sd", [0.3, 0.7])
@pytest.mark.parametrize("seeds", [5, 8])
def test_the_interval_covers_the_gain_about_as_often_as_it_says(seeds, sd, gain):
    assert 93.0 <= simulated(seeds, sd, gain)["coverage"] <= 99.0


@pytest.mark.slow
def test_three_seeds_see_two_points_about_every_second_time():
    assert 45.0 <= simulated(3, 0.3, 2.0)["helped"] <= 95.0


@pytest.mark.slow
def test_what_is_called_detectable_is_found_in_about_four_cases_of_five():
    line = simulated(5, 0.7, 0.0)
    assert 65.0 <= study(Cell(5, 0.7, line["detectable"]), RUNS)["helped"] <= 92.0


@pytest.mark.slow
def test_one_seed_never_speaks_and_two_seldom_do():
    assert study(Cell(1, 0.7, 2.0), 200)["helped"] == 0.0
    line = study(Cell(2, 0.7, 0.0), RUNS)
    assert line["helped"] <= 4.0 and line["harmed"] <= 4.0
    assert study(Cell(2, 0.3, 4.0), 200)["helped"] > 50.0


@pytest.mark.slow
def test_the_best_of_four_arms_is_not_found_by_chance():
    line = study(Cell(3, 0.7, 0.0, arms=4), RUNS)
    assert line["helped"] <= 8.0 and line["harmed"] <= 8.0


CELLS = {(seeds, sd, gain) for seeds in (3, 5, 8) for sd in (0.3, 0.7) for gain in (0.0, 2.0)}


def test_the_study_prints_a_line_for_each_cell(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["proof.py", "--quick", "--json", "--runs", "2"])
    main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == len(CELLS) and {(one["seeds"], one["sd"], one["gain"]) for one in lines} == CELLS


@pytest.mark.slow
def test_the_study_runs_in_a_process_of_its_own():
    command = [sys.executable, "benchmarks/study/proof.py", "--quick", "--json", "--runs", "2"]
    lines = [json.loads(line) for line in subprocess.check_output(command, text=True).splitlines()]
    assert {(line["seeds"], line["sd"], line["gain"]) for line in lines} == CELLS

"""The ratios of speed in the documentation are those of the results files."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def page(name):
    return " ".join((ROOT / "docs" / "how-to" / name).read_text(encoding="utf-8").split())


def test_the_documented_gain_of_two_processes_is_that_of_the_results():
    measured = json.loads((RESULTS / "processes.json").read_text())
    assert measured["equal"] and measured["processes"] == 2
    assert f"{measured['ratio']:.2f} times as many images per second as one process" in page(
        "several-processes.md"
    )


def test_the_documented_speed_of_loading_is_that_of_the_results():
    rates = json.loads((RESULTS / "loading_224.json").read_text())["rates"]
    theirs = median(rates["ImageFolder + DataLoader, every epoch"])
    parquet, folder = (median(rates[f"{name}, later epochs"]) / theirs for name in ("parquet", "folder"))
    said = f"{parquet:.2f} times as many images per second from Parquet and {folder:.2f} times from a folder"
    assert said in page("large-data.md")

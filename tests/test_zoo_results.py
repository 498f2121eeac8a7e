"""The table of networks in the documentation is that of the results file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "how-to" / "own-network.md"
LINES = [json.loads(line) for line in (ROOT / "benchmarks/results/zoo.jsonl").read_text().splitlines()]


def test_the_documented_counts_are_those_of_the_results():
    tried = Counter(line["name"].partition(":")[0] for line in LINES)
    works = Counter(line["name"].partition(":")[0] for line in LINES if line["outcome"] == "works")
    page = PAGE.read_text(encoding="utf-8")
    for source, title in {
        "torchvision": "torchvision",
        "timm": "timm",
        "transformers": "transformers, tiny",
        "nasty": "hand-made",
    }.items():
        assert f"| {title} | {tried[source]} | {works[source]} | {tried[source] - works[source]} |" in page


def test_no_network_gives_wrong_values_or_crashes():
    assert {line["outcome"] for line in LINES} == {"works", "refused"}
    assert all(line["message"] for line in LINES if line["outcome"] == "refused")
    assert len({line["name"] for line in LINES}) == len(LINES)

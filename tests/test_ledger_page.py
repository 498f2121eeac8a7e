"""The ledger's page: ours beside the paper's, what is open, and the same page from the same lines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.experiment.running import arguments
from benchmarks.ledger import page_table1
from benchmarks.ledger.gains import Place, by_place
from benchmarks.ledger.page_text import points, table
from benchmarks.ledger.render import page
from made_up_lines import MNIST, cell_of, made, write

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_shows_ours_beside_the_paper_s(tmp_path):
    cifar = {key: values for key, values in MNIST.items() if key[0] != "space"}
    lines = cell_of("vgg16", "mnist", MNIST) + cell_of("vgg16", "cifar10", cifar, image_size=32)
    lines += cell_of("vgg16", "stl10_2", {**MNIST, ("space", "ours"): (91.0,)}, image_size=96, swapped=40.0)
    lines += cell_of("mnasnet", "mnist", MNIST, protocol="smallest")
    lines += cell_of("resnet50", "cifar10", {("base", ""): (90.0,)}, image_size=32)  # stopped after its base
    lines += cell_of("small_vgg", "cifar10", cifar, image_size=32)
    text = page(write(tmp_path / "results", lines), tmp_path / "ledger.md")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]

    def row(*begin):
        (found,) = [one for one in rows if one[: len(begin)] == list(begin)]
        return found[len(begin) :]

    assert row("VGG-16", "MNIST", "channel") == [
        "99.71", "+0.03", "3 of 3", "91.00", "92.00", "+2.00 (−0.48 to +4.48)", "3.26", "+3.00",
        "+0.00 (−0.10 to +0.10)", "0.13", "+1.00",
    ]  # fmt: skip
    assert row("VGG-16", "CIFAR-10 re-encoded as WebP", "space")[:2] == ["93.46", "−2.52"]
    assert "open: needs masks" in row("VGG-16", "CIFAR-10 re-encoded as WebP", "space")
    assert row("ResNet-50", "CIFAR-10 re-encoded as WebP", "channel")[2:6] == ["–", "90.00", "–", "open"]
    assert "open: needs masks" in row("small_vgg (not the paper's)", "CIFAR-10 re-encoded as WebP", "all")
    two = "two categories of STL-10's training split"
    assert row("VGG-16", two, "channel")[:3] == ["–", "–", "3 of 3"]
    assert row("VGG-16", "STL-10, as in the paper", "all")[:2] == ["77.65", "+0.79"]
    assert row("VGG-16", two, "backgrounds swapped", "space")[:3] == ["1 of 3", "40.00", "40.00"]
    assert "smallest" not in text and "Training on alone (control minus base): +1.00 points" in text


def test_what_is_open_has_the_command_that_fills_it(tmp_path):
    complete = {
        **MNIST,
        **{(arm, v): (1.0, 2.0, 3.0) for arm in ("space", "all") for v in ("literal", "ours")},
    }
    lines = cell_of("vgg16", "mnist", complete) + cell_of("vgg16", "cifar10", MNIST, image_size=32)
    lines += cell_of("vgg16", "fashion_mnist", MNIST)  # begun: its masks' arms are missing
    text = page(write(tmp_path / "results", lines), tmp_path / "ledger.md")
    part = text.split("### Protocol `short`: open")[1].split("## Table 2")[0]
    (vgg16,) = [line for line in part.splitlines() if line.startswith("| VGG-16 ")]
    assert "fashion_mnist (0 of 3), cifar100, stl10_2, mini_imagenet30" in vgg16
    wanted = "fashion_mnist cifar100 stl10_2 mini_imagenet30 tiny_imagenet20 scenes"
    command = f"table1.py --data ROOT --protocol short --architectures vgg16 --datasets {wanted}`"
    assert command in vgg16
    paper = text.split("### Protocol `paper`: open")[1].split("### ")[0]
    assert paper.count("svhn†, stl10†") == 16 and "`ROOT/svhn` and `ROOT/stl10`" in paper
    for program in ("table2", "table3", *(f"figure{n}" for n in range(1, 7))):
        assert f"not measured yet: `python benchmarks/paper/{program}.py --data ROOT --protocol paper" in text
    given = arguments("", architectures=[], datasets=[]).parse_args(command.strip("`").split()[1:])
    assert given.protocol == "short" and set(given.datasets) == set(wanted.split())


def test_the_other_tables_and_figures(tmp_path):
    wanted = [
        ("table2", "control", "annotated20", 60.0),
        ("table2", "space", "annotated20-ours", 61.5),
        ("table2", "control", "annotated5", 60.0),
        ("table2", "space", "annotated5-ours", 60.5),
        ("table3", "control", "", 60.0),
        ("table3", "space", "expand30-literal", 59.0),
        ("figure6", "control", "", 60.0),
        ("figure6", "all", "late.conv-ours", 62.0),
        ("figure6", "all", "early.conv-ours", 61.0),
    ]
    lines = [
        made(program, "vgg16", "tiny_imagenet20", arm, variant, 0, value, image_size=64)
        for program, arm, variant, value in wanted
    ]
    results = write(tmp_path / "results", lines)
    (results / "figures").mkdir()
    for name in ("figure6-tiny_imagenet20", "figure6-scenes-smallest"):
        (results / "figures" / f"{name}.png").touch()
    (tmp_path / "docs").mkdir()
    text = page(results, tmp_path / "docs" / "ledger.md")
    five, twenty = (re.search(rf"space \| {n} \| (.*)", text)[1] for n in (5, 20))
    assert five.startswith("– | 1 |") and twenty.startswith("+5.58 | 1 | – | 60.00 |") and "+1.50" in twenty
    assert "space | 30 | +5.58 | 1 | – | 60.00 | −1.00 (one only)" in text
    assert text.index("all | early.conv |") < text.index("all | late.conv |")
    assert "(../results/figures/figure6-tiny_imagenet20.png)" in text and "smallest" not in text


def test_the_page_is_tidy_and_the_same_again(tmp_path):
    results = write(tmp_path / "results", cell_of("vgg16", "mnist", MNIST))
    text = page(results, tmp_path / "ledger.md")
    assert text == page(results, tmp_path / "ledger.md") and "\n\n\n" not in text and text.endswith("|\n")
    assert points(-0.001) == "+0.00" and points(-1.234) == "−1.23"
    assert table(["a", "b"], [["x", "+1.00 (−1.00 to +2.00)"]])[2] == "| --- | ---: |"
    assert table(["a", "b"], []) == []


@pytest.mark.slow
def test_the_command_writes_the_page_under_any_hash_seed(tmp_path):
    results = write(tmp_path / "results", cell_of("vgg16", "mnist", MNIST))
    out = tmp_path / "docs" / "ledger.md"
    command = [sys.executable, ROOT / "benchmarks/ledger/render.py", "--results", results, "--out", out]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert out.read_text() == page(results, out)


@pytest.mark.slow
def test_the_page_in_docs_is_what_the_lines_give():
    kept = ROOT / "docs" / "ledger.md"
    if not kept.exists():
        pytest.skip("no page here")
    assert kept.read_text() == page(ROOT / "benchmarks" / "results", kept), "run make ledger"


def test_what_a_protocol_wants_of_a_cell():
    assert page_table1.wanted_pairs("paper", "mini_imagenet30") == [(n, n) for n in range(10)]
    assert page_table1.wanted_pairs("short", "mnist") == [(0, 0), (0, 1), (0, 2)]
    places = by_place(cell_of("vgg16", "mnist", MNIST, protocol="paper"))
    assert list(page_table1.of_protocol(places, "paper")) == [Place("paper", "mnist", "vgg16", 28)]
    assert page_table1.of_protocol(places, "short") == {}

"""The ledger: its lines, what they say about gains, the page they make, and numbers measured again."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from processes import Child
from torchdoctor.types import Interrupted

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "paper"))

import check
import page_table1
from cells import Bench, Cell
from gains import Place, by_place, control_of, gain_of, gain_over, summaries
from ledger import Key, Ledger, key_from, key_of
from page_text import points, table, with_interval
from protocols import PROTOCOLS
from published import ARCHITECTURES, DATASETS, TABLE_1, TABLE_2, TABLE_3
from render import page
from running import arguments, bench_of, cells_of, run_cells
from table1 import table_1

KEY = Key("table1", "vgg16", "mini_imagenet30", 3, 84, "channel", "ours", 3, "paper")


def made(program, architecture, dataset, arm, variant, seed, accuracy, **more):
    """Return a line as the programs write it."""
    own = {"classes_seed": 0, "image_size": 28, "protocol": "short", "images": 1000, **more}
    return {
        "program": program, "architecture": architecture, "dataset": dataset, "arm": arm, "variant": variant,
        "seed": seed, "accuracy": accuracy, "threads": 1, "device": "cpu, 1 thread(s)", "revision": "abc",
        "versions": {"torch": "2.0"}, "settings": {}, "seconds": 36.0, **own,
    }  # fmt: skip


def write(folder, lines):
    """Write lines into the files of their programs."""
    folder.mkdir(exist_ok=True)
    for line in lines:
        with (folder / f"{line['program']}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    return folder


def cell_of(architecture, dataset, accuracies, **more):
    """Return the lines of Table 1's cell: for each arm and variant the accuracies of the seeds."""
    return [
        made("table1", architecture, dataset, arm, variant, seed, value, **more)
        for (arm, variant), values in accuracies.items()
        for seed, value in enumerate(values)
    ]


MNIST = {
    ("base", ""): (90.0, 91.0, 92.0),
    ("control", ""): (91.0, 92.0, 93.0),
    ("channel", "literal"): (92.0, 94.0, 96.0),  # 1, 2, 3 over the control
    ("channel", "ours"): (91.0, 92.0, 93.0),
}


def test_a_key_is_one_word_and_back():
    assert KEY.text == "table1/vgg16/mini_imagenet30/3/84/channel/ours/3/paper"
    base = replace(KEY, arm="base", variant="")
    assert key_from(KEY.text) == KEY and key_from(base.text) == base
    with pytest.raises(ValueError, match="expected PROGRAM/ARCHITECTURE/.*/SEED/PROTOCOL"):
        key_from("table1/vgg16")


def test_a_torn_line_is_ignored_and_the_next_one_is_whole(tmp_path):
    ledger = Ledger(tmp_path / "deep" / "table1.jsonl")
    assert ledger.lines() == [] and ledger.keys() == set()
    first = ledger.append(KEY, {"accuracy": 1.0}, revision="r", device="cpu")
    assert first["versions"]["torch"] == torch.__version__ and key_of(first) == KEY
    with ledger.file.open("a") as file:
        file.write(json.dumps(first)[:50])
    other = replace(KEY, seed=4)
    assert ledger.keys() == {KEY}
    ledger.append(other, {"accuracy": 2.0}, revision="r", device="cpu")
    ledger.append(KEY, {"accuracy": 3.0}, revision="r", device="cpu")
    assert {key_of(line): line["accuracy"] for line in ledger.lines()} == {KEY: 3.0, other: 2.0}
    assert len(ledger.file.read_text().splitlines()) == 4


def test_two_processes_write_whole_lines(tmp_path):
    ledger = Ledger(tmp_path / "table1.jsonl")

    def writes(process):
        def action():
            for seed in range(40):
                own = replace(KEY, seed=seed, arm=f"arm{process}")
                ledger.append(own, {"filler": "x" * 3000}, revision="", device="")

        return action

    assert [child.ended() for child in (Child(writes(0)), Child(writes(1)))] == [0, 0]
    assert len(ledger.file.read_text().splitlines()) == len(ledger.keys()) == 80


def test_the_paper_s_numbers():
    assert TABLE_1["vgg16", "mini_imagenet"] == {"base": 83.0, "space": 5.58, "channel": 5.5, "all": 5.92}
    assert TABLE_1["alexnet", "cifar100"] == {"base": 55.04, "space": -6.81, "channel": 1.87}
    assert TABLE_1["mnasnet", "stl10"] == {"base": 74.32, "space": 0.29, "channel": 0.19, "all": 0.31}
    assert TABLE_1["inception_v3", "fashion_mnist"]["space"] == 1.29  # the one that is not negative
    assert len(ARCHITECTURES) == 16 and set(TABLE_1) == {(a, d) for a in ARCHITECTURES for d in DATASETS}
    assert {d for (_, d), found in TABLE_1.items() if "all" in found} == {"stl10", "mini_imagenet"}
    assert TABLE_2[200] == TABLE_3[30] == TABLE_1["vgg16", "mini_imagenet"]["space"]


def test_gains_by_hand():
    gain = gain_of([1.0, 2.0, 3.0])
    # Of two degrees of freedom: t(0.975) = 4.302653, t(0.8) = 1.060660; the error is 1 / sqrt(3).
    assert gain.mean == 2.0 and gain.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    assert gain.high == pytest.approx(4 - gain.low) and gain.sign == 0
    assert gain.detectable == pytest.approx((4.302653 + 1.060660) / 3**0.5, abs=1e-5)
    assert gain.p_value == pytest.approx(0.07418, abs=1e-5)
    assert gain_of([-1.0, -1.1, -0.9]).sign == -1
    one = gain_of([0.5])
    assert (one.mean, one.p_value, one.sign) == (0.5, 1.0, 0) and with_interval(one) == "+0.50 (one only)"


def test_seeds_that_agree_by_chance_are_not_certain():
    arms = next(iter(by_place(cell_of("vgg16", "mnist", {
        ("control", ""): (50.0, 60.0, 70.0), ("channel", "ours"): (50.1, 60.1, 70.1),
    })).values()))  # fmt: skip
    gain = gain_over(arms, "channel", "ours")
    assert gain.mean == pytest.approx(0.1)
    assert gain.high - gain.mean == pytest.approx(4.302653 * 0.1 / 12**0.5 / 3**0.5, abs=1e-5)


def test_gains_are_paired_and_know_their_control():
    lines = cell_of("vgg16", "tiny_imagenet20", {
        ("control", "annotated5"): (50.0, 60.0), ("control", "annotated20"): (10.0, 20.0),
        ("base", "annotated5"): (40.0,), ("space", "annotated5-ours"): (51.0, 62.0, 99.0),
    })  # fmt: skip
    arms = next(iter(by_place(lines).values()))
    assert control_of(arms, "annotated5-ours") == "annotated5"
    assert gain_over(arms, "space", "annotated5-ours").mean == 1.5  # the third seed has no control
    assert gain_over(arms, "space", "annotated5-ours", "base").number == 1
    assert gain_over(arms, "space", "annotated5-ours", measure="swapped") is None
    assert control_of({("control", ""): {}}, "layer4.conv2-ours") == ""


def test_a_summary_counts_cells_and_corrects_for_all_tests():
    near, far = (0.0, 0.1, -0.1), (5.0, 5.1, 4.9)
    control = (50.0, 51.0, 52.0)
    lines = []
    for dataset, gains in {"mnist": far, "cifar10": near, "scenes": near}.items():
        arm = tuple(one + gain for one, gain in zip(control, gains, strict=True))
        lines += cell_of("vgg16", dataset, {("control", ""): control, ("channel", "ours"): arm})
    places = by_place(lines)
    paper = {(place, "channel"): 2.0 for place in places if place.dataset == "mnist"}
    (found,), tests = summaries(places, [("channel", "ours"), ("space", "ours")], paper=paper)
    assert tests == 3 and found.gain.number == 3 and found.gain.mean == pytest.approx(5 / 3)
    assert (found.above, found.below, found.with_interval, found.holm_above) == (1, 0, 3, 1)
    assert found.detectable == pytest.approx((4.302653 + 1.060660) * 0.1 / 3**0.5, abs=1e-4)
    assert found.paper == 2.0


def test_the_page_shows_ours_beside_the_paper_s(tmp_path):
    cifar = {key: values for key, values in MNIST.items() if key[0] != "space"}
    lines = cell_of("vgg16", "mnist", MNIST) + cell_of("vgg16", "cifar10", cifar, image_size=32)
    lines += cell_of("vgg16", "stl10_2", {**MNIST, ("space", "ours"): (91.0,)}, image_size=96, swapped=40.0)
    lines += cell_of("mnasnet", "mnist", MNIST, protocol="smallest")
    text = page(write(tmp_path / "results", lines), tmp_path / "ledger.md")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]

    def row(*begin):
        (found,) = [one for one in rows if one[: len(begin)] == list(begin)]
        return found[len(begin) :]

    assert row("VGG-16", "MNIST", "channel") == [
        "99.71", "+0.03", "3 of 3", "91.00", "92.00", "+2.00 (−0.48 to +4.48)", "3.10", "+3.00",
        "+0.00 (−0.07 to +0.07)", "0.09", "+1.00",
    ]  # fmt: skip
    assert row("VGG-16", "CIFAR-10 re-encoded as WebP", "space")[:2] == ["93.46", "−2.52"]
    assert "open: needs masks" in row("VGG-16", "CIFAR-10 re-encoded as WebP", "space")
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
    places = {"image_size": 64}
    lines = [made("table2", "vgg16", "tiny_imagenet20", arm, variant, 0, value, **places)
             for arm, variant, value in (("control", "annotated20", 60.0), ("space", "annotated20-ours", 61.5),
                                         ("control", "annotated5", 60.0), ("space", "annotated5-ours", 60.5))]  # fmt: skip
    lines += [made("table3", "vgg16", "tiny_imagenet20", arm, variant, 0, value, **places)
              for arm, variant, value in (("control", "", 60.0), ("space", "expand30-literal", 59.0))]  # fmt: skip
    lines += [made("figure6", "vgg16", "tiny_imagenet20", arm, variant, 0, value, **places)
              for arm, variant, value in (("control", "", 60.0), ("all", "late.conv-ours", 62.0),
                                          ("all", "early.conv-ours", 61.0))]  # fmt: skip
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


def test_the_page_is_the_same_again(tmp_path):
    results = write(tmp_path / "results", cell_of("vgg16", "mnist", MNIST))
    command = [sys.executable, ROOT / "benchmarks/paper/render.py", "--results", results, "--out"]
    out = tmp_path / "docs" / "ledger.md"
    subprocess.run([*command, out], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert out.read_text() == page(results, out)
    assert "\n\n\n" not in out.read_text() and points(-0.001) == "+0.00"
    assert table(["a", "b"], [["x", "+1.00 (−1.00 to +2.00)"]])[2] == "| --- | ---: |"


def test_the_kept_page_is_what_the_lines_give():
    kept = ROOT / "docs" / "ledger.md"
    if not kept.exists() or not (ROOT / ".git").exists():
        pytest.skip("no page here")
    assert kept.read_text() == page(ROOT / "benchmarks" / "results", kept), "run make ledger"


def test_a_number_measured_again_is_judged():
    before = made("table1", "vgg16", "mnist", "channel", "ours", 0, 90.0, swapped=50.0)
    code, words = check.judge(before, {**before, "seconds": 99.0, "time": "later"}, 1.0)
    assert code == check.CONFIRMED and words[-1] == "confirmed: the same to the last image"
    code, words = check.judge(before, {**before, "accuracy": 90.1}, 1.0)
    assert code == check.NOT_CONFIRMED and "has to be the same" in words[-1]
    elsewhere = {**before, "accuracy": 90.5, "versions": {"torch": "2.1"}, "threads": 2}
    code, words = check.judge(before, elsewhere, 1.0)
    assert code == check.CONFIRMED and "within 1 points" in words[-1]
    assert "not the same: torch: 2.0 then, 2.1 now" in words and "apart by: accuracy 0.5" in words
    assert check.judge(before, elsewhere, 0.4)[0] == check.NOT_CONFIRMED
    gpu = {**before, "device": "a GPU"}
    assert check.judge(gpu, {**gpu, "accuracy": 90.5}, 1.0)[0] == check.CONFIRMED  # no GPU promises bits
    assert check.differences(before, {**before, "swapped": None})["swapped"] == float("inf")


def test_only_what_is_needed_is_measured_again():
    lines = cell_of("vgg16", "mnist", {key: values[:1] for key, values in MNIST.items()})
    keys = {line["arm"]: key_of(line) for line in lines}
    again = [(line["arm"], line["variant"]) for line in check.kept(keys["base"], lines)]
    assert again == [("control", ""), ("channel", "literal"), ("channel", "ours")]
    channel = replace(keys["channel"], variant="literal")
    assert [line["variant"] for line in check.kept(channel, lines)] == ["", "ours"]
    assert [line["variant"] for line in check.kept(keys["control"], lines)] == ["literal"]


def test_what_cannot_be_checked_says_why(tmp_path, capsys, monkeypatch):
    results = write(tmp_path, cell_of("vgg16", "mnist", MNIST))
    given = argparse.Namespace(results=results, cell="table1/vgg16/mnist/0/28/space/ours/0/short")
    assert check.check(given) == check.NOT_CHECKED
    assert "of this cell: base/, channel/literal, channel/ours, control/" in capsys.readouterr().out
    given.cell = "table1/vgg16"
    assert check.check(given) == check.NOT_CHECKED
    monkeypatch.setitem(check.PROGRAMS, "table9", ("table9", "table_9"))
    with pytest.raises(check.CannotCheck, match="'table9' is not there yet"):
        check.program_of("table9")
    assert check.program_of("table1") is table_1


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
    assert page_table1.wanted_pairs("paper", "mini_imagenet30") == [(n, n) for n in range(10)]
    assert page_table1.wanted_pairs("short", "mnist") == [(0, 0), (0, 1), (0, 2)]
    assert Place("paper", "mnist", "vgg16", 28) in page_table1.of_protocol(
        by_place(cell_of("vgg16", "mnist", MNIST, protocol="paper")), "paper"
    )


@pytest.mark.slow
def test_an_interrupted_cell_goes_on_and_its_numbers_are_confirmed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHDOCTOR_CHECKPOINT_STEPS", "1")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = given_for(whole, "--resident")
    run_cells(run, bench_of(run, "table1"), table_1)
    assert len(accuracies(whole)) == 8

    run = given_for(parts, "--resident")
    bench = bench_of(run, "table1")
    for asked in (3, 10, 25):  # in the base's training, in the first arm's, in a later one's
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
    words = ["--data", tmp_path, "--out", out, "--cache", tmp_path / "cache", "--budget", "5", "--parallel", "2",
             "--device", "cpu", "--protocol", "smallest", "--phases", "scenes", "--python", sys.executable]  # fmt: skip
    command = ["bash", ROOT / "benchmarks" / "gpu.sh", *words, "--revision", "some"]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    found = [line for line in Ledger(out / "table1.jsonl").lines() if line["protocol"] == "smallest"]
    assert len(found) == 16 and all(line["resident"] and line["revision"] == "some" for line in found)
    assert all(file.suffix == ".jsonl" for file in out.iterdir())
    (out / "table1.jsonl").unlink()  # as on a fresh output folder: the cache has the lines
    done = subprocess.run(command, check=True, capture_output=True, timeout=240, text=True)
    again = [line for line in Ledger(out / "table1.jsonl").lines() if line["protocol"] == "smallest"]
    assert sorted(map(json.dumps, again)) == sorted(map(json.dumps, found)) and "table1.jsonl" in done.stdout
    wrong = subprocess.run(["bash", ROOT / "benchmarks" / "gpu.sh", "--out", out, "--phases", "no"],
                           capture_output=True, text=True)  # fmt: skip
    assert wrong.returncode == 2 and "phase no is unknown" in wrong.stderr

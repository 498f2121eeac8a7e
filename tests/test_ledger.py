"""The ledger: its lines, what they say about gains, and numbers measured again."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import pytest
import torch

from benchmarks.ledger import check
from benchmarks.ledger.gains import by_place, control_of, gain_of, gain_over, summaries
from benchmarks.ledger.lines import Key, Ledger, key_from, key_of
from benchmarks.ledger.page_text import with_interval
from benchmarks.ledger.published import ARCHITECTURES, DATASETS, TABLE_1, TABLE_2, TABLE_3
from benchmarks.paper.table1 import table_1
from made_up_lines import MNIST, cell_of, made, write
from processes import Child

KEY = Key("table1", "vgg16", "mini_imagenet30", 3, 84, "channel", "ours", 3, "paper")


def test_a_key_is_one_word_and_back():
    assert KEY.text == "table1/vgg16/mini_imagenet30/3/84/channel/ours/3/paper"
    base = replace(KEY, arm="base", variant="")
    assert key_from(KEY.text) == KEY and key_from(base.text) == base
    with pytest.raises(ValueError, match=r"expected PROGRAM/ARCHITECTURE/.*/SEED/PROTOCOL"):
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
    # Of two degrees of freedom: t(0.975) = 4.302653, and a true gain of 5.653489 errors exceeds it in 80 % of
    # cases (noncentral t); the error is 1 / sqrt(3).
    assert gain.mean == 2.0 and gain.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    assert gain.high == pytest.approx(4 - gain.low) and gain.sign == 0
    assert gain.detectable == pytest.approx(5.653489 / 3**0.5, abs=1e-5)
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
    assert gain.high - gain.mean == pytest.approx(4.302653 * 0.1 / 6**0.5 / 3**0.5, abs=1e-5)
    lines = [
        made("figure5", "vgg16", "mnist", arm, "", seed, 1.0, background_gradient=value)
        for arm, value in (("control", 0.5), ("space", 0.25))
        for seed in range(2)
    ]
    shares = next(iter(by_place(lines).values()))  # of evidence, not of images: nothing was rounded
    assert gain_over(shares, "space", "", measure="background_gradient").low == -0.25


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
    # A second network on the same images is no second witness: MNIST counts once, with the mean of both.
    lines += cell_of("resnet50", "mnist", {("control", ""): control, ("channel", "ours"): control})
    places = by_place(lines)
    paper = {(place, "channel"): 2.0 for place in places if place.dataset == "mnist"}
    (found,), tests = summaries(places, [("channel", "ours"), ("space", "ours")], paper=paper)
    assert tests == found.cells == 4 and found.gain.number == 3
    assert found.gain.mean == pytest.approx(2.5 / 3)
    assert (found.above, found.below, found.with_interval, found.holm_above) == (1, 0, 4, 1)
    assert found.detectable == pytest.approx(5.653489 * 0.1 / 3**0.5, abs=1e-4)
    assert found.paper == 2.0


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

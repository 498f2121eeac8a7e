"""Gains, intervals and verdicts by hand-computed values and by laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from torchdoctor.proof.statistics import (
    between_seeds,
    calibration_error,
    compare_split,
    holm,
    mcnemar,
    paired_gain,
    standard_error,
)
from torchdoctor.proof.verdict import overall_verdict, verdict_of


def draws(seeds=3, images=400, gain=0.1, key=0):
    """Return (control, treated) booleans [seed, image] with about that gain."""
    generator = np.random.default_rng(key)
    control = generator.random((seeds, images)) < 0.6
    treated = control | (generator.random((seeds, images)) < gain / 0.4)
    return control, treated


def errors(difference):
    """Return the standard error and its degrees of freedom, from the two-way table written out as loops."""
    seeds, images = difference.shape
    mean, number = difference.mean(), difference.size
    table = [*difference.mean(0), 0.5, -0.5]
    by_image = seeds * sum((one - np.mean(table)) ** 2 for one in table) / (images + 1) / number
    by_seed = images * sum((row.mean() - mean) ** 2 for row in difference) / (seeds - 1) / number
    rest = sum(
        (difference[s, i] - difference[s].mean() - difference[:, i].mean() + mean) ** 2
        for s in range(seeds)
        for i in range(images)
    ) / ((seeds - 1) * (images - 1) * number)
    variance = max(by_image + by_seed - rest, by_image, by_seed)
    squares = (by_image**2 / (images - 1), by_seed**2 / (seeds - 1), rest**2 / ((seeds - 1) * (images - 1)))
    return math.sqrt(variance), max(variance**2 / sum(squares), seeds - 1)


def test_gain_and_interval_by_hand():
    control = np.array([[1, 0, 1, 0] * 50, [1, 0, 0, 0] * 50, [1, 0, 0, 0] * 50], dtype=bool)
    treated = np.array([[1, 1, 1, 0] * 50, [1, 1, 1, 0] * 50, [1, 1, 0, 1] * 50], dtype=bool)
    gain = paired_gain(control, treated)
    error, freedom = errors(treated.astype(float) - control.astype(float))
    assert gain.mean == pytest.approx(100 * 5 / 12) and gain.seeds == 3
    assert (gain.high - gain.low) / 2 == pytest.approx(100 * stats.t.ppf(0.975, freedom) * error)
    assert gain.p_value == pytest.approx(2 * stats.t.sf(gain.mean / 100 / error, freedom))
    # A true gain of so many errors, over the root of a chi square, exceeds the quantile in 4 cases of 5.
    generator = np.random.default_rng(0)
    scale = np.sqrt(generator.chisquare(freedom, 400_000) / freedom)
    seen = (generator.normal(size=400_000) + gain.detectable / 100 / error) / scale
    assert (seen > stats.t.ppf(0.975, freedom)).mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_standard_error_counts_seeds_images_and_the_rest_once(seeds):
    generator = np.random.default_rng(seeds)
    difference = generator.normal(0.05, 0.5, (seeds, 60)) + generator.normal(0, 0.2, (seeds, 1))
    error, freedom = errors(difference)
    found = standard_error(difference)
    assert found == pytest.approx((error, min(freedom, 4.0) if seeds == 2 else freedom))


def test_interval_and_p_value_always_agree():
    for key in range(40):
        control, treated = draws(seeds=1 + key % 5, images=150, gain=0.05, key=key)
        gain = paired_gain(control, treated)
        assert (gain.p_value < 0.05) == (gain.low > 0 or gain.high < 0)


def test_one_seed_is_no_evidence_however_large_the_gain():
    control = np.zeros((1, 500), dtype=bool)
    gain = paired_gain(control, ~control)
    assert gain.low > 90 and verdict_of(gain) == "no evidence"
    right = {"control": list(control), "treated": list(~control)}
    split = compare_split(right, np.zeros(500, dtype=np.int64), np.arange(500), 1)
    verdict, reason = overall_verdict({"test": split}, "test", 5.0)
    assert verdict == "no evidence" and "+100.0 points" in reason and "on these two networks only" in reason
    lost = compare_split(
        {"control": list(~control), "treated": list(control)},
        np.zeros(500, dtype=np.int64),
        np.arange(500),
        1,
    )
    assert overall_verdict({"test": split, "other": lost}, "test", 5.0)[0] == "no evidence"


def test_two_seeds_come_with_a_warning():
    control, treated = draws(seeds=2, gain=0.2)
    split = compare_split(
        {"control": list(control), "treated": list(treated)}, np.zeros(400, dtype=np.int64), np.arange(400), 1
    )
    verdict, reason = overall_verdict({"test": split}, "test", 5.0)
    assert verdict == "helped" and "from two seeds only" in reason


@pytest.mark.slow
@pytest.mark.parametrize(("share", "least", "most"), [(1.0, 0.8, 1.0), (0.35, 0.0, 0.6)])
def test_power_is_what_it_says(share, least, most):
    """A true gain as large as `detectable` is found in at least four of five repetitions, a third is not."""
    generator = np.random.default_rng(3)
    before = generator.random((5, 2000)) < 0.6
    gain = paired_gain(before, generator.random((5, 2000)) < 0.6)
    found = 0
    for _ in range(150):
        control = generator.random((5, 2000)) < 0.6
        treated = generator.random((5, 2000)) < 0.6 + share * gain.detectable / 100
        found += paired_gain(control, treated).low > 0
    assert least <= found / 150 <= most


def test_mcnemar_by_hand():
    control = np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
    treated = np.array([0, 1, 1, 1, 1, 1, 1, 0], dtype=bool)
    assert mcnemar(control, treated) == pytest.approx(2 * (1 + 5) / 2**5)  # 4 better, 1 worse
    assert mcnemar(control, control) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.04]) == [0.04]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_calibration_error_by_hand():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([1, 1, 1, 0, 1, 0], dtype=bool)
    assert calibration_error(confidence, right) == pytest.approx(100 * (4 / 6 * 0.2 + 2 / 6 * 0.05))
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0.0


def many_arms(names, key=0):
    """Return who was right: a control, and arms of which only the first is better."""
    generator = np.random.default_rng(key)
    control = generator.random((3, 600)) < 0.6
    right = {"base": [control[0]], "control": list(control)}
    for place, name in enumerate(names):
        better = control | (generator.random((3, 600)) < 0.25)
        right[name] = list(better if place == 0 else control ^ (generator.random((3, 600)) < 0.02))
    return right


def test_several_arms_are_corrected_and_none_depends_on_the_order():
    names = ["treated", "swap", "dfr"]
    labels, ids = np.arange(600) % 4, np.arange(600)
    right = many_arms(names)
    split = compare_split(right, labels, ids, 4)
    assert list(split.arms) == names
    assert [split.arms[name].verdict for name in names] == ["helped", "no evidence", "no evidence"]
    plain = [split.arms[name].gain.p_value for name in names]
    assert [split.arms[name].gain.p_adjusted for name in names] == pytest.approx(holm(plain))
    assert len(split.first.mcnemar) == 3
    turned = {name: right[name] for name in ("base", "control", "dfr", "treated", "swap")}
    assert compare_split(turned, labels, ids, 4).arms == split.arms
    mixed = np.random.default_rng(1).permutation(600)
    other = {name: [row[mixed] for row in rows] for name, rows in right.items()}
    again = compare_split(other, labels[mixed], ids[mixed], 4)
    assert sorted(again.first.repaired) == list(split.first.repaired)
    assert again.first.gain.mean == pytest.approx(split.first.gain.mean)
    assert compare_split(right, labels, ids, 4, first="dfr").first == split.arms["dfr"]


def test_one_arm_is_not_corrected():
    split = compare_split(many_arms(["treated"]), np.arange(600) % 4, np.arange(600), 4)
    assert split.first.gain.p_adjusted == split.first.gain.p_value


def test_one_seed_uses_images_only_and_shows_mcnemar():
    control = np.array([[1] * 10 + [0] * 10], dtype=bool)
    treated = np.array([[1] * 8 + [0] * 2 + [1] * 9 + [0]], dtype=bool)
    gain = paired_gain(control, treated)
    assert "one seed" in gain.variance_from
    assert gain.mean == pytest.approx(35)
    right = {"control": list(control), "treated": list(treated)}
    split = compare_split(right, np.zeros(20, dtype=np.int64), np.arange(20), 1)
    assert split.first.mcnemar == (pytest.approx(stats.binomtest(9, 11).pvalue),)
    assert math.isnan(split.between_controls)


def test_what_a_seed_alone_changes_is_counted():
    control = np.array([[1, 1, 0, 0, 1], [1, 0, 1, 0, 1], [1, 0, 0, 0, 1]], dtype=bool)
    # Ordered pairs of runs: 1 and 2 differ on one image each way, 1 and 3, and 2 and 3, on one image one way.
    assert between_seeds(control) == pytest.approx((1 + 1 + 1 + 0 + 1 + 0) / 6)


def test_swapping_the_arms_turns_the_sign_and_keeps_the_p_value():
    control, treated = draws()
    one, other = paired_gain(control, treated), paired_gain(treated, control)
    assert one.mean == pytest.approx(-other.mean) and one.low == pytest.approx(-other.high)
    assert one.p_value == other.p_value
    assert verdict_of(one) == "helped" and verdict_of(other) == "harmed"


def test_identical_arms_are_no_evidence():
    control, _ = draws()
    gain = paired_gain(control, control)
    assert (gain.mean, gain.low, gain.high, gain.p_value) == (0, 0, 0, 1)
    assert verdict_of(gain) == "no evidence"


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.03])
def test_the_interval_covers_the_truth_with_three_seeds(spread):
    """Nominal 95 %, with and without seeds that differ."""
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        skill, luck = generator.random(300), generator.normal(0, spread, (2, 3, 1))
        control, treated = (generator.random((3, 300)) < skill + one for one in luck)
        gain = paired_gain(control, treated)
        covered += gain.low <= 0 <= gain.high
    assert 0.92 <= covered / 400 <= 0.99


def test_lists_and_categories():
    labels, ids = np.array([0, 0, 1, 1]), np.array([10, 11, 12, 13])
    right = {
        "base": [np.array([1, 0, 0, 0], dtype=bool)],
        "control": [np.array(row, dtype=bool) for row in ([1, 0, 1, 0], [1, 0, 1, 0], [0, 0, 1, 1])],
        "treated": [np.array(row, dtype=bool) for row in ([1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0])],
    }
    split = compare_split(right, labels, ids, 3)
    assert split.first.repaired == (11,) and split.first.broken == (12,)
    assert split.accuracy["base"] == (25.0,)
    assert split.worst_category == pytest.approx({"base": 0, "control": 100 / 3, "treated": 0})
    assert split.balanced_accuracy == pytest.approx({"base": 25, "control": 50, "treated": 250 / 6})
    assert split.first.gain_per_category[:2] == pytest.approx((50.0, -200 / 3))
    assert math.isnan(split.first.gain_per_category[2])


def test_another_split_that_loses_too_much_turns_the_verdict():
    control, treated = draws()

    def split(one, other):
        right = {"base": [one[0]], "control": list(one), "treated": list(other)}
        return compare_split(right, np.zeros(400, dtype=np.int64), np.arange(400), 1)

    splits = {"iid": split(treated, control), "shifted": split(control, treated)}
    assert splits["shifted"].first.verdict == "helped" and splits["iid"].first.gain.mean < -5
    verdict, reason = overall_verdict(splits, "shifted", 5.0)
    assert verdict == "harmed" and "iid loses" in reason
    verdict, reason = overall_verdict(splits, "shifted", 50.0)
    assert verdict == "helped" and "but iid is harmed" in reason  # proven, and allowed
    margin = -splits["iid"].first.gain.mean - 0.5
    verdict, reason = overall_verdict(
        splits, "shifted", margin
    )  # the mean is past the margin, not the interval
    assert verdict == "helped" and "but iid is harmed" in reason
    verdict, reason = overall_verdict(splits, "shifted", 50.0, min_gain=99.0)
    assert verdict == "helped" and "below the 99 points asked for" in reason
    same = {"shifted": split(control, control)}
    verdict, reason = overall_verdict(same, "shifted", 5.0)
    assert verdict == "no evidence" and "on the same images as the control" in reason
    assert "would have been seen" not in reason and math.isinf(same["shifted"].first.gain.detectable)
    noise = np.random.default_rng(2).random((3, 400)) < 0.6
    assert (
        "would have been seen in about four cases of five"
        in overall_verdict({"shifted": split(control, noise)}, "shifted", 5.0)[1]
    )


def test_a_single_image_that_differs_is_no_evidence():
    control = np.zeros((2, 5), dtype=bool)
    treated = control.copy()
    treated[:, 3] = True
    gain = paired_gain(control, treated)
    assert gain.p_value > 0.3 and verdict_of(gain) == "no evidence"

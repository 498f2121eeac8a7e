"""Gains, intervals and verdicts by hand-computed values and by laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from torchdoctor.proof.statistics import (
    bootstrap_error,
    calibration_error,
    compare_split,
    holm,
    mcnemar,
    paired_gain,
)
from torchdoctor.proof.verdict import overall_verdict, verdict_of


def draws(seeds=3, images=400, gain=0.1, key=0):
    """Return (control, treated) booleans [seed, image] with about that gain."""
    generator = np.random.default_rng(key)
    control = generator.random((seeds, images)) < 0.6
    treated = control | (generator.random((seeds, images)) < gain / 0.4)
    return control, treated


def analytic_error(difference):
    """Return the root of the variance over the images' means plus that over the seeds' means."""
    seeds, images = difference.shape
    of_images = difference.mean(0).var(ddof=1) / images
    return math.sqrt(of_images + (difference.mean(1).var(ddof=1) / seeds if seeds > 1 else 0.0))


def test_gain_and_interval_by_hand():
    control = np.array([[1, 0, 1, 0] * 50, [1, 0, 0, 0] * 50], dtype=bool)
    treated = np.array([[1, 1, 1, 0] * 50, [1, 1, 1, 0] * 50], dtype=bool)
    gain = paired_gain(control, treated, resamples=20_000)
    error = analytic_error(treated.astype(float) - control.astype(float))
    assert gain.mean == pytest.approx(37.5)
    assert (gain.high - gain.low) / 2 == pytest.approx(100 * stats.t.ppf(0.975, 1) * error, rel=0.03)
    # A true gain of so many errors, over a chi of one degree of freedom, exceeds t(0.975) in 4 cases of 5.
    normal, chi = np.random.default_rng(0).normal(size=(2, 400_000))
    seen = (normal + gain.detectable / 100 / error) / abs(chi) > stats.t.ppf(0.975, 1)
    assert seen.mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_the_bootstrap_agrees_with_the_two_variances(seeds):
    generator = np.random.default_rng(seeds)
    difference = generator.normal(0.05, 0.5, (seeds, 400)) + generator.normal(0, 0.02, (seeds, 1))
    assert bootstrap_error(difference, 20_000) == pytest.approx(analytic_error(difference), rel=0.12)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "least", "most"), [(1.0, 0.8, 1.0), (0.35, 0.0, 0.6)])
def test_power_is_what_it_says(share, least, most):
    """A true gain as large as `detectable` is found in at least four of five repetitions, a third is not."""
    generator = np.random.default_rng(3)
    before = generator.random((5, 2000)) < 0.6
    gain = paired_gain(before, generator.random((5, 2000)) < 0.6, flips=1)
    found = 0
    for _ in range(150):
        control = generator.random((5, 2000)) < 0.6
        treated = generator.random((5, 2000)) < 0.6 + share * gain.detectable / 100
        found += paired_gain(control, treated, flips=1, resamples=300).low > 0
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


def test_one_seed_uses_images_only_and_mcnemar():
    control = np.array([[1] * 10 + [0] * 10], dtype=bool)
    treated = np.array([[1] * 8 + [0] * 2 + [1] * 9 + [0]], dtype=bool)
    gain = paired_gain(control, treated)
    assert "one seed" in gain.variance_from
    assert gain.p_value == pytest.approx(stats.binomtest(9, 11).pvalue)
    assert gain.mean == pytest.approx(35)


def test_sign_flips_agree_with_the_exact_answer():
    control = np.zeros((2, 6), dtype=bool)
    treated = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0]], dtype=bool)
    exact = 2 / 2**5
    assert paired_gain(control, treated, flips=40_000).p_value == pytest.approx(exact, rel=0.1)


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
    """Nominal 95 %, with and without seeds that differ; the error counts the residual twice: it is wide."""
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        skill, luck = generator.random(300), generator.normal(0, spread, (2, 3, 1))
        control, treated = (generator.random((3, 300)) < skill + one for one in luck)
        gain = paired_gain(control, treated, flips=1, resamples=400)
        covered += gain.low <= 0 <= gain.high
    assert covered / 400 >= 0.93


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
    assert overall_verdict(splits, "shifted", 50.0)[0] == "helped"
    verdict, reason = overall_verdict(splits, "shifted", 50.0, min_gain=99.0)
    assert verdict == "helped" and "below the 99 points asked for" in reason
    same = {"shifted": split(control, control)}
    verdict, reason = overall_verdict(same, "shifted", 5.0)
    assert verdict == "no evidence" and "on the same images as the control" in reason
    assert "would have been seen" not in reason and math.isinf(same["shifted"].first.gain.detectable)
    noise = np.random.default_rng(2).random((3, 400)) < 0.6
    assert (
        "would have been seen in at least four cases of five"
        in overall_verdict({"shifted": split(control, noise)}, "shifted", 5.0)[1]
    )


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("images", [2, 3, 7, 13])
def test_with_few_images_the_permutation_test_is_exact(seeds, images):
    """Every way to choose signs, one by one; equal sums count, whatever rounding makes of them."""
    for key in range(3):
        generator = np.random.default_rng([seeds, images, key])
        control, treated = (generator.random((seeds, images)) < share for share in (0.3, 0.7))
        difference = treated.sum(0) - control.sum(0)
        signs = np.array(list(itertools.product([-1, 1], repeat=images)))
        exact = float((np.abs(signs @ difference) >= abs(difference.sum())).mean())
        assert paired_gain(control, treated).p_value == pytest.approx(exact, abs=1e-12)


def test_with_many_images_the_permutation_test_draws_signs_and_counts_the_measured_ones():
    control, treated = draws(images=2000)
    assert paired_gain(control, treated, flips=99).p_value == 1 / 100
    control, treated = draws(images=2000, gain=0.0)
    treated = treated ^ (np.random.default_rng(1).random(treated.shape) < 0.1)
    difference = treated.mean(0) - control.mean(0)
    normal = 2 * stats.norm.sf(abs(difference.sum()) / math.sqrt((difference**2).sum()))
    assert paired_gain(control, treated).p_value == pytest.approx(normal, abs=0.02)
    same = [paired_gain(control, treated, seed=7).p_value for _ in range(2)]
    assert same[0] == same[1]


def test_a_single_image_that_differs_is_no_evidence():
    control = np.zeros((2, 5), dtype=bool)
    treated = control.copy()
    treated[:, 3] = True
    assert paired_gain(control, treated).p_value == 1.0

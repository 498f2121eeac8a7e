"""Gains, intervals and verdicts by hand-computed values and by laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from torchdoctor.evaluation import compare_split, overall_verdict, paired_gain, verdict_of


def draws(seeds=3, images=400, gain=0.1, key=0):
    """Return (control, treated) booleans [seed, image] with about that gain."""
    generator = np.random.default_rng(key)
    control = generator.random((seeds, images)) < 0.6
    treated = control | (generator.random((seeds, images)) < gain / 0.4)
    return control, treated


def test_gain_and_interval_by_hand():
    control = np.array([[1, 0, 1, 0], [1, 0, 0, 0]], dtype=bool)
    treated = np.array([[1, 1, 1, 0], [1, 1, 1, 0]], dtype=bool)
    gain = paired_gain(control, treated)
    image_part = np.var([0, 1, 0.5, 0], ddof=1) / 4
    seed_part = np.var([0.25, 0.5], ddof=1) / 2
    width = stats.t.ppf(0.975, 1) * math.sqrt(image_part + seed_part)
    assert gain.mean == pytest.approx(37.5)
    assert gain.low == pytest.approx(100 * (0.375 - width))
    assert gain.high == pytest.approx(100 * (0.375 + width))


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
def test_the_interval_covers_zero_when_nothing_differs():
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        skill = generator.random(300)
        control, treated = (generator.random((3, 300)) < skill for _ in range(2))
        gain = paired_gain(control, treated, flips=1)
        covered += gain.low <= 0 <= gain.high
    assert covered / 400 >= 0.95


def test_lists_and_categories():
    labels, ids = np.array([0, 0, 1, 1]), np.array([10, 11, 12, 13])
    right = {
        "base": [np.array([1, 0, 0, 0], dtype=bool)],
        "control": [np.array(row, dtype=bool) for row in ([1, 0, 1, 0], [1, 0, 1, 0], [0, 0, 1, 1])],
        "treated": [np.array(row, dtype=bool) for row in ([1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0])],
    }
    split = compare_split(right, labels, ids, 3)
    assert split.repaired == (11,) and split.broken == (12,)
    assert split.accuracy["base"] == (25.0,)
    assert split.gain_per_category[:2] == pytest.approx((50.0, -200 / 3))
    assert math.isnan(split.gain_per_category[2])


def test_another_split_that_loses_too_much_turns_the_verdict():
    control, treated = draws()

    def split(one, other):
        right = {"base": [one[0]], "control": list(one), "treated": list(other)}
        return compare_split(right, np.zeros(400, dtype=np.int64), np.arange(400), 1)

    splits = {"iid": split(treated, control), "shifted": split(control, treated)}
    assert splits["shifted"].verdict == "helped" and splits["iid"].gain.mean < -5
    verdict, reason = overall_verdict(splits, "shifted", 5.0)
    assert verdict == "harmed" and "iid loses" in reason
    assert overall_verdict(splits, "shifted", 50.0)[0] == "helped"

"""The replay of measured times over k workers, and the formula of `estimate` beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.speed.scaling import (
    diagnosis_replay,
    line_through,
    pass_time,
    ring_gather,
    ring_sum,
    training_replay,
)
from torchdoctor.case.scaling import (
    GIGABIT,
    Rates,
    Work,
    diagnosis_time,
    gathered_by_each,
    summed_by_each,
    treatment_time,
)

RATES = Rates(0.03, 0.03, 0.1, 0.0, 0.0, 0.2, 0.06, 1e9, 10 * GIGABIT)
WORK = Work(
    images=6400, sifted=3200, looked_at=0, batch=64, gathered=10**9, gradients=10**8, steps=100, price=1.0
)


def test_a_single_worker_does_one_batch_after_another():
    assert pass_time([1.0, 2.0, 3.0], 1, 0.0) == 6.0
    assert pass_time([1.0, 2.0, 3.0], 1, 5.0) == 18.0  # waits for the third batch, then computes it
    assert pass_time([], 4, 1.0) == 0.0


def test_workers_wait_for_their_own_batches_alone():
    # The first worker has batches 0 and 2, the second 1 and 3.
    assert pass_time([4.0, 1.0, 4.0, 1.0], 2, 0.0) == 8.0
    assert pass_time([1.0] * 4, 4, 2.0) == 9.0  # the fourth batch is ready after 8 s


def test_rings_take_what_the_formulas_say():
    parts = [100.0] * 4
    assert ring_gather(parts, 10.0) == pytest.approx(gathered_by_each(400, 4) / 10)
    assert ring_gather([100.0], 10.0) == 0 == ring_sum(400, 1, 10.0)
    assert ring_sum(400, 4, 10.0) == pytest.approx(summed_by_each(400, 4) / 10)


@pytest.mark.parametrize("workers", [1, 2, 5, 16, 50])
@pytest.mark.parametrize("change", [{}, {"loading": 200.0}, {"bandwidth": 1e8}])
def test_with_equal_times_replay_and_formula_agree(workers, change):
    rates = replace(RATES, **change)
    survey, evidence = [64 * rates.survey] * 100, [64 * rates.evidence] * 50
    replayed = diagnosis_replay(survey, evidence, rates, WORK, workers)
    formula, load = diagnosis_time(rates, WORK, workers).seconds, 64 / rates.loading
    # The pipeline has to fill: one batch more is loaded, and one computed, in each of the two passes.
    filling = 2 * load + 64 * (rates.survey + rates.evidence)
    assert 0.999 * formula <= replayed <= formula + filling + 1e-9
    own = rates.step_fixed + -(-64 // workers) * rates.step_image
    replayed = training_replay(lambda k: np.full(k, own), rates, WORK, workers)
    formula = treatment_time(rates, WORK, workers).seconds
    assert 0.999 * formula <= replayed <= formula + load + own + 1.0


def test_a_straggler_is_waited_for():
    slow = training_replay(lambda k: np.array([1.0] * (k - 1) + [2.0]), RATES, WORK, 4)
    assert slow == pytest.approx(100 * (2.0 + summed_by_each(10**8, 4) / RATES.bandwidth))


def test_the_line_of_a_step_is_found():
    fixed, slope = line_through({size: [0.5 + 0.25 * size] * 3 for size in (2, 8, 32)})
    assert (fixed, slope) == (pytest.approx(0.5), pytest.approx(0.25))
    assert line_through({2: [0.1], 4: [0.3]})[0] == 0.0

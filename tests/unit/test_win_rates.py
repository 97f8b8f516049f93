"""Win rates at equal length: worked by hand, against brute force, and on data that one thing explains alone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.tensors.intervals import cluster_bootstrap
from transfuse.tensors.win_rates import (
    INTERCEPT_RIDGE,
    SLOPE_RIDGE,
    length_coefficients,
    length_controlled_win_rate,
)
from transfuse.types import Estimate


def controlled(preferences, lengths, seed=0, n_resamples=200) -> Any:  # estimates may be None
    values = np.array(preferences, dtype=float), np.array(lengths, dtype=float)
    return length_controlled_win_rate(*values, seed, n_resamples)


def brute_force(preferences, lengths):
    """The regression by gradient descent on its cost, with nothing shared with the code under test."""
    y, d = np.array(preferences, dtype=float), np.array(lengths, dtype=float)
    x = np.tanh(d / d.std())
    a = b = 0.0
    for _ in range(60_000):
        p = 1 / (1 + np.exp(-(a + b * x)))
        a -= 0.5 * ((p - y).sum() + INTERCEPT_RIDGE * a) / len(y)
        b -= 0.5 * (((p - y) * x).sum() + SLOPE_RIDGE * b) / len(y)
    return a, b


def test_two_lengths_by_hand():
    # Lengths of +-1 deviation: tanh(+-1). Three in four won where longer, one in four where shorter: at equal length
    # one in two, and the slope takes log 3 from tanh(1), but for the ridge.
    preferences, lengths = [1, 1, 1, 0] * 50 + [0, 0, 0, 1] * 50, [10] * 200 + [-10] * 200
    found = controlled(preferences, lengths)
    assert found.win_rate.value == pytest.approx(0.5, abs=1e-6)
    assert found.slope == pytest.approx(np.log(3) / np.tanh(1), rel=3e-3)
    assert found.win_rate.n == 400


def test_a_judge_who_likes_length_alone_finds_no_winner_at_equal_length():
    # Ours is mostly longer, so it wins mostly; where it is not, it loses.
    lengths = [100] * 80 + [-100] * 20
    preferences = [1] * 70 + [0] * 10 + [1] * 2 + [0] * 18
    assert np.mean(preferences) == 0.72
    found = controlled(preferences, lengths)
    a, b = brute_force(preferences, lengths)
    assert found.win_rate.value == pytest.approx(1 / (1 + np.exp(-a)), abs=1e-7)
    assert found.slope == pytest.approx(b, abs=1e-6)
    assert found.win_rate.value < 0.5
    assert found.win_rate.low < found.win_rate.value < found.win_rate.high


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(5, 60))
def test_equals_brute_force(seed, n):
    rng = np.random.default_rng(seed)
    preferences, lengths = rng.choice([0, 0.25, 0.5, 0.75, 1], n), rng.normal(5, 40, n).round()
    if lengths.std() == 0:
        return
    ((a, b),) = length_coefficients(preferences, lengths, np.ones((1, n)))
    p = 1 / (1 + np.exp(-(a + b * np.tanh(lengths / lengths.std()))))
    # The gradient of the penalised cost is zero there, and the cost is strictly convex: it is the minimum.
    x = np.tanh(lengths / lengths.std())
    assert abs((p - preferences).sum() + INTERCEPT_RIDGE * a) < 1e-6
    assert abs(((p - preferences) * x).sum() + SLOPE_RIDGE * b) < 1e-6


@pytest.mark.parametrize("length", [0, 12, -7.3])
def test_lengths_that_do_not_vary_give_the_raw_rate(length):
    preferences = [1, 1, 0.5, 0, 1, 0.75, 0.25, 1] * 5
    found = controlled(preferences, [length] * 40)
    raw = cluster_bootstrap(np.array(preferences), np.ones(40), np.arange(40), 0)
    assert found.win_rate.value == pytest.approx(raw.value, abs=1e-4)
    assert found.win_rate.low == pytest.approx(raw.low, abs=0.04)
    assert found.win_rate.high == pytest.approx(raw.high, abs=0.04)
    assert found.slope == 0


def test_lengths_that_mean_nothing_give_the_raw_rate():
    lengths = [1, -1] * 40
    preferences = [1, 1, 1, 1, 0, 0, 1, 1] * 10  # three in four with either length
    assert controlled(preferences, lengths).win_rate.value == pytest.approx(0.75, abs=1e-4)


def test_what_length_separates_stays_finite():
    found = controlled([1] * 10 + [0] * 10, list(range(1, 11)) + list(range(-10, 0)))
    assert found.win_rate.value == pytest.approx(0.5, abs=1e-6)
    assert np.isfinite(found.slope)
    assert 0 <= found.win_rate.low <= 0.5 <= found.win_rate.high <= 1


def test_ties_throughout_stay_ties_whatever_the_lengths():
    found = controlled([0.5] * 20, range(20))
    slack = 1 - 0.025 ** (1 / 20)
    assert found.win_rate == pytest.approx((0.5, 0.5 - slack / 2, 0.5 + slack / 2, 20))
    assert found.slope == 0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_side_always_preferred_gives_the_exact_binomial_bound(value):
    found = controlled([value] * 20, range(20))
    slack = 1 - 0.025 ** (1 / 20)
    assert found.win_rate == pytest.approx((0, 0, slack, 20) if value == 0 else (1, 1 - slack, 1, 20))


def test_swapping_the_systems_swaps_the_rate():
    rng = np.random.default_rng(3)
    preferences, lengths = rng.choice([0, 0.5, 1], 50, p=[0.2, 0.2, 0.6]), rng.normal(20, 50, 50)
    one, other = controlled(preferences, lengths), controlled(1 - preferences, -lengths)
    assert one.win_rate.value == pytest.approx(1 - other.win_rate.value, abs=1e-9)
    assert one.win_rate.low == pytest.approx(1 - other.win_rate.high, abs=1e-9)
    assert one.slope == pytest.approx(other.slope, abs=1e-8)


def test_counts_stand_for_repeated_items():
    rng = np.random.default_rng(5)
    preferences, lengths = rng.choice([0, 0.5, 1], 12), rng.normal(0, 9, 12)
    counts = rng.integers(0, 4, 12)
    repeated = length_coefficients(
        np.repeat(preferences, counts), np.repeat(lengths, counts), np.ones((1, counts.sum()))
    )
    counted = length_coefficients(preferences, lengths, counts[None].astype(float))
    np.testing.assert_allclose(counted, repeated, atol=1e-8)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng, hits = np.random.default_rng(11), 0
    for n in range(60):
        lengths = rng.normal(30, 50, 200)
        x = np.tanh(lengths / lengths.std())
        preferences = (rng.random(200) < 1 / (1 + np.exp(-(0.4 + 1.0 * x)))).astype(float)
        estimate = controlled(preferences, lengths, seed=n).win_rate
        hits += estimate.low <= 1 / (1 + np.exp(-0.4)) <= estimate.high
    assert 52 <= hits <= 60  # 57 are expected


def test_no_items_give_no_rate():
    found = controlled([], [])
    assert found.win_rate == Estimate(None, None, None, 0)
    assert found.slope is None


def test_the_same_seed_gives_the_same_interval():
    data = [1, 0, 1, 0.5, 1], [3, -2, 5, 0, 1]
    assert controlled(*data, seed=4) == controlled(*data, seed=4)

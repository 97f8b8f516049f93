"""Intervals: worked by hand, wider where items hang together, honest at 0 and 1."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.tensors.intervals import (
    RatioGroup,
    averaged_ratio,
    averaged_ratio_difference,
    cluster_bootstrap,
    paired_difference,
)
from transfuse.types import Estimate


def mean(values, clusters, seed=0, n_resamples=2000) -> Estimate:
    values = np.array(values, dtype=float)
    return cluster_bootstrap(values, np.ones(len(values)), np.array(clusters), seed, n_resamples)


def ratio(numerators, denominators, seed=0) -> Estimate:
    sums = np.array(numerators, dtype=float), np.array(denominators, dtype=float)
    return cluster_bootstrap(*sums, np.arange(len(numerators)), seed, 2000)


def test_two_clusters_by_hand():
    # Of four equally likely draws, one is AA (0), two are AB (0.5), one is BB (1): both tails exceed 2.5 %.
    assert mean([0, 0, 1, 1], [7, 7, -3, -3]) == Estimate(0.5, 0.0, 1.0, 4)


def test_a_ratio_divides_sums_not_items():
    # 8 bits over 2 bytes and 6 bits over 6 bytes: (8 + 6) / (2 + 6), not the mean of 4 and 1.
    estimate = ratio([8, 6], [2, 6])
    assert estimate == Estimate(1.75, 1.0, 4.0, 2)


def test_percentiles_are_those_of_the_binomial():
    # 40 heads in 100: the resampled mean is binomial(100, 0.4) / 100, whose 95 % range is 0.31 to 0.50.
    estimate = mean([1] * 40 + [0] * 60, range(100), n_resamples=10_000)
    assert estimate.value == pytest.approx(0.4)
    assert estimate.low == pytest.approx(0.31, abs=0.011)
    assert estimate.high == pytest.approx(0.50, abs=0.011)


def test_items_of_one_cluster_count_once():
    values = [1, 0, 1, 0, 1, 0, 0, 0, 1, 1]
    repeated = [value for value in values for _ in range(10)]
    clusters = [n for n in range(len(values)) for _ in range(10)]
    alone = mean(values, range(10))
    assert mean(repeated, clusters)[:3] == pytest.approx(alone[:3])
    as_if_independent = mean(repeated, range(100))
    assert as_if_independent.high - as_if_independent.low < 0.5 * (alone.high - alone.low)


def test_ties_throughout_claim_no_certainty():
    # Of ten items all scored 0.5, up to 1 - 0.025 ** 0.1 of the others could be scored 0, or 1.
    slack = 1 - 0.025**0.1
    assert mean([0.5] * 10, range(10)) == pytest.approx((0.5, 0.5 - slack / 2, 0.5 + slack / 2, 10))
    alike = mean([0.2, 0.8, 0.8, 0.2], [1, 1, 2, 2])  # cluster by cluster
    assert alike.low == pytest.approx(0.5 * 0.025**0.5)


@pytest.mark.parametrize("n", [1, 2, 14, 100])
def test_all_wrong_or_all_right_gives_the_exact_binomial_bound(n):
    slack = 1 - 0.025 ** (1 / n)
    assert mean([0] * n, range(n)) == pytest.approx((0.0, 0.0, slack, n))
    assert mean([1] * n, range(n)) == pytest.approx((1.0, 1 - slack, 1.0, n))


def test_the_exact_bound_counts_clusters():
    assert mean([0] * 12, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]).high == pytest.approx(1 - 0.025**0.25)


def test_a_seed_repeats_the_interval_and_another_differs():
    values = list(np.random.default_rng(5).random(30))
    assert mean(values, range(30), seed=1) == mean(values, range(30), seed=1)
    assert mean(values, range(30), seed=1) != mean(values, range(30), seed=2)


def test_the_block_size_bounds_memory_not_results(monkeypatch):
    values = list(np.random.default_rng(5).random(30))
    whole = mean(values, range(30))
    monkeypatch.setattr("transfuse.tensors.intervals._CELLS_PER_BLOCK", 70)  # two resamples a block
    assert mean(values, range(30)) == whole


def test_nothing_to_score_is_not_zero():
    assert mean([], np.array([], dtype=int)) == Estimate(None, None, None, 0)


def test_weights_that_sum_to_zero_are_refused():
    with pytest.raises(ValueError, match="positive sum"):
        ratio([1.0], [0.0])


item = st.tuples(
    st.floats(0, 1), st.floats(0.5, 100), st.integers(0, 8)
)  # what was reached, out of how much, in which cluster


@settings(deadline=None, max_examples=60)
@given(items=st.lists(item, min_size=1, max_size=40), seed=st.integers(0, 2**32), counts=st.booleans())
def test_the_value_lies_within_its_interval(items, seed, counts):
    shares, weights, clusters = (np.array(column) for column in zip(*items, strict=True))
    weights = np.ones(len(items)) if counts else weights
    estimate = cluster_bootstrap(shares * weights, weights, clusters, seed, 400)
    assert -1e-9 <= estimate.low <= estimate.value + 1e-9
    assert estimate.value <= estimate.high + 1e-9
    assert estimate.high <= 1 + 1e-9
    assert estimate.value == pytest.approx((shares * weights).sum() / weights.sum())
    assert estimate.n == len(items)


def difference(first, second, sizes=None, clusters=None, seed=0) -> Estimate:
    arms = np.array(first, dtype=float), np.array(second, dtype=float)
    sizes = np.ones(len(first)) if sizes is None else np.array(sizes, dtype=float)
    numbers = np.arange(len(first)) if clusters is None else np.array(clusters)
    return paired_difference(*arms, sizes, numbers, seed, 2000)


def test_a_difference_of_two_arms_by_hand():
    # Two items that differ by 1 and by -1: draws give -1, 0 or 1, and both tails exceed 2.5 %.
    assert difference([1, 0], [0, 1]) == Estimate(0.0, -1.0, 1.0, 2)
    # Bits over bytes: (8 - 6 + 6 - 2) / (2 + 6), the first item alone 2 / 2, the second 4 / 6.
    assert difference([8, 6], [6, 2], [2, 6]) == pytest.approx((0.75, 2 / 3, 1.0, 2))


def test_what_makes_an_item_hard_for_both_does_not_widen_the_difference():
    rng = np.random.default_rng(3)
    hardness, gain = rng.random(200), rng.normal(0.01, 0.001, 200)
    paired = difference(hardness + gain, hardness)
    alone = mean(hardness, range(200))
    assert paired.low > 0.009
    assert paired.high - paired.low < 0.02 * (alone.high - alone.low)


def test_seeds_of_one_item_stand_or_fall_together():
    first, second = [1, 0, 1, 1, 0, 0, 1, 0], [0, 0, 1, 0, 1, 0, 0, 0]
    once = difference(first, second)
    assert difference(first * 3, second * 3, clusters=[*range(8)] * 3)[:3] == pytest.approx(once[:3])


@pytest.mark.parametrize(
    ("first", "second", "value", "low", "high"),
    [(1, 1, 0, -1, 1), (1, 0, 1, -1, 1), (0, 1, -1, -1, 1)],
)
def test_scores_that_differ_by_the_same_everywhere_are_not_certain(first, second, value, low, high):
    slack = 1 - 0.025 ** (1 / 30)
    found = difference([first] * 30, [second] * 30)
    assert found == pytest.approx((value, value + slack * (low - value), value + slack * (high - value), 30))


def test_a_difference_of_nothing_is_not_zero():
    assert difference([], [], [], np.array([], dtype=int)) == Estimate(None, None, None, 0)
    with pytest.raises(ValueError, match="positive sum"):
        difference([1.0], [0.5], [0.0])


def _group(numerators: list[float], denominators: list[float], clusters: list[int]) -> RatioGroup:
    return RatioGroup(
        np.array(numerators, dtype=float), np.array(denominators, dtype=float), np.array(clusters)
    )


def test_an_averaged_ratio_counts_groups_alike():
    groups = [_group([1, 3], [1, 1], [0, 1]), _group([10, 10, 10], [1, 1, 1], [0, 1, 2])]
    found = averaged_ratio(groups, seed=1)
    assert found.value == pytest.approx((2 + 10) / 2)
    assert found.n == 5
    # Only the first group varies: its resampled means are 1, 2 and 3, so the averages 5.5, 6 and 6.5.
    assert (found.low, found.high) == (pytest.approx(5.5), pytest.approx(6.5))


def test_one_group_has_the_interval_of_the_plain_bootstrap():
    rng = np.random.default_rng(5)
    values, sizes, clusters = rng.random(80), rng.random(80) + 0.5, np.arange(80) // 2
    plain = cluster_bootstrap(values, sizes, clusters, seed=3)
    found = averaged_ratio([RatioGroup(values, sizes, clusters)], seed=3)
    assert found.value == pytest.approx(plain.value)
    assert found.low == pytest.approx(plain.low, abs=0.02)
    assert found.high == pytest.approx(plain.high, abs=0.02)


def test_a_difference_of_equal_arms_is_nothing_whatever_is_drawn():
    rng = np.random.default_rng(7)
    group = RatioGroup(rng.random(40), rng.random(40) + 0.5, np.arange(40))
    found = averaged_ratio_difference([group], [group], seed=2)
    assert found == (pytest.approx(0), pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12), 40)
    assert averaged_ratio([], seed=1).n == 0


def test_arms_of_other_clusters_or_groups_are_refused():
    one, other = _group([1, 2], [1, 1], [0, 1]), _group([1, 2], [1, 1], [0, 2])
    with pytest.raises(ValueError, match="expected the same clusters in both arms"):
        averaged_ratio_difference([one], [other], seed=1)
    with pytest.raises(ValueError, match="expected as many groups in both arms, got 1 and 0"):
        averaged_ratio_difference([one], [], seed=1)
    with pytest.raises(ValueError, match="positive sum"):
        averaged_ratio([_group([1], [0], [0])], seed=1)

"""Reciprocal rank fusion: sums, ties, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.tensors.rank_fusion import reciprocal_rank_fusion


def ranking(*rows: int) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def test_sums_of_reciprocal_ranks_worked_by_hand():
    rows, scores = reciprocal_rank_fusion([ranking(7, 3, 9), ranking(3, 5)], 10, k=60)
    assert rows.tolist() == [3, 7, 5, 9]
    np.testing.assert_allclose(scores, [1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63], rtol=1e-6)
    assert scores.dtype == np.float32
    assert reciprocal_rank_fusion([ranking(7, 3, 9), ranking(3, 5)], 2)[0].tolist() == [3, 7]


def test_equal_sums_are_decided_by_the_best_single_rank_then_by_the_row():
    # k = 0: row 4 has 1/2, rows 1 and 2 have 1/4 + 1/4; rows 8 and 6 have 1 each.
    first, second = ranking(8, 4, 10, 1, 11), ranking(6, 12, 13, 1, 14)
    rows, scores = reciprocal_rank_fusion([first, second], 5, k=0)
    assert rows.tolist() == [6, 8, 4, 12, 1]
    assert scores.tolist() == [1, 1, 0.5, 0.5, 0.5]


def test_a_row_counts_once_in_a_ranking_and_nothing_gives_nothing():
    rows, scores = reciprocal_rank_fusion([ranking(5, 5, 2)], 5, k=1)
    assert rows.tolist() == [5, 2]
    assert scores.tolist() == [0.5, 0.25]
    assert [found.tolist() for found in reciprocal_rank_fusion([], 5)] == [[], []]
    assert [found.tolist() for found in reciprocal_rank_fusion([ranking()], 5)] == [[], []]


@pytest.mark.parametrize(("top_n", "k"), [(0, 60), (5, -1)])
def test_numbers_out_of_range_are_refused(top_n, k):
    with pytest.raises(ValueError, match=rf"top_n of at least 1 and k of at least 0, got {top_n} and {k}"):
        reciprocal_rank_fusion([ranking(1)], top_n, k)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 12), unique=True), min_size=1, max_size=4), st.randoms())
def test_the_order_of_the_rankings_does_not_matter(rows_of, random):
    rankings = [ranking(*rows) for rows in rows_of]
    shuffled = random.sample(rankings, len(rankings))
    for one, other in zip(
        reciprocal_rank_fusion(rankings, 20), reciprocal_rank_fusion(shuffled, 20), strict=True
    ):
        assert one.tolist() == other.tolist()
    assert sorted(reciprocal_rank_fusion(rankings, 20)[0].tolist()) == sorted(set().union(*rows_of))

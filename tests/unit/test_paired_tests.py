import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.tensors.intervals import RatioGroup, averaged_ratio_difference
from transfuse.tensors.paired_tests import holm, paired_p_value


def group(
    values: list[float], sizes: list[float] | None = None, clusters: list[int] | None = None
) -> RatioGroup:
    n = len(values)
    return RatioGroup(
        np.array(values, dtype=float),
        np.array(sizes or [1.0] * n),
        np.array(clusters if clusters is not None else range(n), dtype=np.int64),
    )


def test_holm_by_hand():
    # Smallest first: 3 x 0.01, then 2 x 0.02, then 1 x 0.03, which may not fall below the one before.
    assert holm([0.03, 0.01, None, 0.02]) == pytest.approx([0.04, 0.03, None, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values: list[float]):
    adjusted = [each for each in holm(p_values) if each is not None]
    assert all(after >= before for before, after in zip(p_values, adjusted, strict=True))
    ranked = [after for _, after in sorted(zip(p_values, adjusted, strict=True))]
    assert ranked == sorted(ranked)


def test_arms_that_are_the_same_differ_by_chance():
    same = group([0, 1, 1, 0, 1])
    assert paired_p_value([same], [same], seed=1) == 1.0


def test_few_clusters_that_all_agree_claim_no_more_than_a_sign_test_could():
    # Every resample of five clusters has the same difference: the bootstrap alone would say p = 0.0002.
    assert paired_p_value([group([1] * 5)], [group([0] * 5)], seed=1) == 2.0**-4


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.floats(-0.4, 0.4))
def test_p_is_below_five_per_cent_where_the_interval_leaves_zero_out(seed: int, shift: float):
    rng = np.random.default_rng(seed)
    first, second = (group(list(rng.normal(move, 1, size=60))) for move in (shift, 0.0))
    interval = averaged_ratio_difference([first], [second], seed=seed)
    p = paired_p_value([first], [second], seed=seed)
    assert interval.low is not None
    assert interval.high is not None
    assert p is not None
    if interval.low > 0.01 or interval.high < -0.01:
        assert p < 0.06
    if interval.low < -0.01 < 0.01 < interval.high:
        assert p > 0.04


def test_arms_may_have_other_items_of_the_same_clusters():
    ours = group([1, 1, 0, 1] * 6, clusters=[n // 4 for n in range(24)])
    theirs = group([0, 0] * 6, clusters=[n // 2 for n in range(12)])
    assert paired_p_value([ours], [theirs], seed=3) == 2.0**-5


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="as many groups in both arms, got 1 and 2"):
        paired_p_value([group([1])], [group([1]), group([0])], seed=1)
    with pytest.raises(ValueError, match="the same clusters in both arms"):
        paired_p_value([group([1, 0], clusters=[0, 1])], [group([1, 0], clusters=[0, 2])], seed=1)
    assert paired_p_value([], [], seed=1) is None
    assert paired_p_value([group([0.0], sizes=[0.0])], [group([1.0])], seed=1) is None

"""Scores of items: pooled as sums over sums, paired by item, stored line by line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfuse.errors import DataError
from transfuse.evaluate.scores import ItemScore, estimates, load_scores, paired_differences, save_scores
from transfuse.types import Estimate


def exact(item: str, value: float, cluster: str | None = None) -> ItemScore:
    return ItemScore("exact_match/quiz", item, cluster or item, value, 1.0)


def bits(item: str, n_bits: float, n_bytes: float) -> ItemScore:
    return ItemScore("bits_per_byte/wiki", item, item, n_bits, n_bytes)


def test_metric_is_sum_over_sum() -> None:
    scores = [exact("a", 1), exact("b", 0), bits("t1", 30, 10), bits("t2", 10, 30)]
    found = estimates(scores, seed=1)
    assert list(found) == ["exact_match/quiz", "bits_per_byte/wiki"]
    assert found["exact_match/quiz"].value == 0.5
    assert found["exact_match/quiz"].n == 2
    assert found["bits_per_byte/wiki"].value == 1.0  # 40 bits over 40 bytes, not the mean of 3 and 1/3
    assert found["bits_per_byte/wiki"].low == pytest.approx(1 / 3)
    assert found["bits_per_byte/wiki"].high == pytest.approx(3)


def test_clusters_widen_the_interval() -> None:
    apart = [exact(str(n), float(n % 2)) for n in range(40)]
    grouped = [exact(str(n), float(n < 20), cluster=str(n // 10)) for n in range(40)]
    one, other = (estimates(each, seed=1)["exact_match/quiz"] for each in (apart, grouped))
    assert one.value == other.value == 0.5
    assert None not in (one.high, one.low, other.high, other.low)
    assert other.high - other.low > one.high - one.low  # type: ignore[operator] - checked above


def test_nothing_measured_is_none_not_zero() -> None:
    assert estimates([bits("t", 0, 0)], seed=1) == {"bits_per_byte/wiki": Estimate(None, None, None, 0)}
    assert estimates([], seed=1) == {}


def test_pairs_only_items_that_both_have() -> None:
    first = [exact("a", 1), exact("b", 1), exact("c", 0), bits("t", 8, 4)]
    second = [exact("b", 0), exact("a", 1), exact("d", 1)]
    found = paired_differences(first, second, seed=1)
    assert list(found) == ["exact_match/quiz"]
    assert found["exact_match/quiz"].value == 0.5
    assert found["exact_match/quiz"].n == 2


def test_seeds_of_an_item_are_paired_in_order() -> None:
    first = [exact("a", 1), exact("a", 0)]
    second = [exact("a", 0), exact("a", 0)]
    assert paired_differences(first, second, seed=1)["exact_match/quiz"][::3] == (0.5, 2)


def test_bytes_may_differ_between_systems() -> None:
    first = [bits("t1", 20, 10), bits("t2", 30, 10)]
    second = [bits("t1", 8, 8), bits("t2", 8, 8)]
    found = paired_differences(first, second, seed=1)["bits_per_byte/wiki"]
    assert found.value == pytest.approx(50 / 20 - 1)
    assert (found.low, found.high) == (pytest.approx(1.0), pytest.approx(2.0))


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 100))
def test_a_system_does_not_differ_from_itself(hits: list[bool], seed: int) -> None:
    scores = [exact(str(n), float(hit)) for n, hit in enumerate(hits)]
    found = paired_differences(scores, list(reversed(scores)), seed)["exact_match/quiz"]
    assert found.value == 0
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 0 <= found.high


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 40)), min_size=1, max_size=20))
def test_difference_is_that_of_the_estimates(rows: list[tuple[float, int]]) -> None:
    first = [bits(str(n), value, size) for n, (value, size) in enumerate(rows)]
    second = [bits(str(n), value + n, size) for n, (value, size) in enumerate(rows)]
    ours, theirs = (estimates(each, 1)["bits_per_byte/wiki"].value for each in (first, second))
    assert ours is not None
    assert theirs is not None
    found = paired_differences(first, second, 1)["bits_per_byte/wiki"].value
    assert found == pytest.approx(ours - theirs, abs=1e-9)


def test_saved_and_loaded_scores_are_the_same(tmp_path: Path) -> None:
    scores = [exact("a", 1, "fact-1"), bits("t", 12.25, 8)]
    save_scores(tmp_path / "scores.jsonl", scores)
    assert load_scores(tmp_path / "scores.jsonl") == scores


def test_a_foreign_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"metric": "a", "value": 1}\n')
    with pytest.raises(DataError, match=r"scores\.jsonl:1: expected a score with the keys metric, item"):
        load_scores(path)

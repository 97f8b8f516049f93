import pytest

from transfuse.evaluate.scores import ItemScore
from transfuse.recipes.compare_figures import (
    AVERAGE_BITS,
    RowScores,
    against_reference,
    all_pairs,
    best_row,
    paired,
)


def answers(values: list[float], metric: str = "f1/reworded") -> list[ItemScore]:
    return [ItemScore(metric, f"q{n}", f"fact{n // 2}", value, 1.0) for n, value in enumerate(values)]


def texts(bits: list[float], name: str, n_bytes: float = 100.0) -> list[ItemScore]:
    return [
        ItemScore(f"bits_per_byte/{name}", f"t{n}", f"t{n}", each, n_bytes) for n, each in enumerate(bits)
    ]


def test_seeds_are_pooled_and_an_untrained_row_meets_each_of_them():
    trained = RowScores([answers([1, 1, 0, 1]), answers([1, 0, 0, 1])])
    base = RowScores([answers([0, 0, 0, 1])])
    assert trained.estimates(3)["f1/reworded"].value == pytest.approx(5 / 8)
    difference = paired("f1/reworded", ("trained", trained), ("base", base), seed=3)
    assert difference is not None
    assert difference.difference.value == pytest.approx(5 / 8 - 1 / 4)
    assert difference.difference.n == 8  # each of four items under two seeds
    assert difference.p_value == pytest.approx(0.5, abs=0.1) or difference.p_value is not None


def test_rows_are_compared_on_the_items_that_both_have():
    oracle = RowScores([answers([1, 1])])
    base = RowScores([answers([0, 1, 1, 1])])
    difference = paired("f1/reworded", ("oracle", oracle), ("base", base), seed=3)
    assert difference is not None
    assert (difference.difference.value, difference.difference.n) == (0.5, 2)
    assert paired("f1/direct", ("oracle", oracle), ("base", base), seed=3) is None


def test_the_average_of_the_texts_to_be_learned_counts_each_alike():
    scores = [*texts([100, 300], "wiki"), *texts([50], "code"), *texts([900], "other")]
    row = RowScores([scores], learned_texts=["wiki", "code"])
    assert row.metrics == ["bits_per_byte/wiki", "bits_per_byte/code", AVERAGE_BITS, "bits_per_byte/other"]
    assert row.estimates(3)[AVERAGE_BITS].value == pytest.approx((2.0 + 0.5) / 2)
    worse = RowScores(
        [[*texts([120, 320], "wiki"), *texts([60], "code"), *texts([900], "other")]], ["wiki", "code"]
    )
    difference = paired(AVERAGE_BITS, ("worse", worse), ("row", row), seed=3)
    assert difference is not None
    assert difference.difference.value == pytest.approx((0.2 + 0.1) / 2)


def test_a_single_text_needs_no_average():
    assert RowScores([texts([1], "wiki")], ["wiki"]).metrics == ["bits_per_byte/wiki"]


def test_families_are_adjusted_apart_and_pairs_together():
    n = 40
    rows = {
        "base": RowScores([answers([0.0] * n)]),
        "good": RowScores([answers([1.0] * n)]),
        "same": RowScores([answers([0.0] * n)]),
    }
    found = {(each.first, each.second): each for each in against_reference(rows, "base", seed=3)}
    assert set(found) == {("good", "base"), ("same", "base")}
    assert found["good", "base"].is_shown
    assert not found["same", "base"].is_shown
    p = found["good", "base"].p_value
    assert p is not None
    assert found["good", "base"].adjusted_p == pytest.approx(2 * p)  # of two rows
    pairs = {(each.first, each.second): each for each in all_pairs(rows, "f1/reworded", seed=3)}
    assert set(pairs) == {("base", "good"), ("base", "same"), ("good", "same")}
    assert pairs["base", "good"].adjusted_p == pytest.approx(3 * p)


def test_the_best_row_has_the_least_bits_and_the_most_right_answers():
    rows = {"a": RowScores([answers([1, 0])]), "b": RowScores([answers([1, 1])])}
    assert best_row({name: row.estimates(3) for name, row in rows.items()}, "f1/reworded") == "b"
    rows = {"a": RowScores([texts([10], "wiki")]), "b": RowScores([texts([20], "wiki")])}
    assert best_row({name: row.estimates(3) for name, row in rows.items()}, "bits_per_byte/wiki") == "a"
    assert best_row({"a": {}}, "f1/reworded") is None

"""The window of greatest sum: exact, whatever the numbers, and the first of equal ones."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.tensors import window_sums
from transfuse.tensors.window_sums import highest_window


def brute_force(scores: torch.Tensor, n_rows: int, n_columns: int) -> tuple[Fraction | int, int, int]:
    rows = [[Fraction(value) for value in row] for row in scores.tolist()]
    sums = [
        (sum(sum(row[j : j + n_columns]) for row in rows[i : i + n_rows]), -i, -j)
        for i in range(len(rows) - n_rows + 1)
        for j in range(len(rows[0]) - n_columns + 1)
    ]
    total, row, column = max(sums)
    return total, -row, -column


DRAWN = {
    "ties": lambda shape, generator: torch.randint(0, 3, shape, generator=generator).float(),
    "constant": lambda shape, generator: torch.rand(1, 1, generator=generator).repeat(shape),
    "constant rows": lambda shape, generator: wide(torch.Size((shape[0], 1)), generator).repeat(1, shape[1]),
    "any size": lambda shape, generator: wide(shape, generator),
    "negative": lambda shape, generator: torch.randn(shape, generator=generator),
    "cancelling": lambda shape, generator: (
        wide(shape, generator) * torch.randn(shape, generator=generator).sign()
    ),
    "overflowing": lambda shape, generator: torch.randint(-2, 3, shape, generator=generator) * 1.7e38,
    "subnormal": lambda shape, generator: torch.randint(-2, 3, shape, generator=generator) * 1.4e-45,
}


def wide(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    return 10 ** (torch.rand(shape, generator=generator) * 60 - 30)


@settings(deadline=None, max_examples=50)
@given(
    kind=st.sampled_from(sorted(DRAWN)),
    seed=st.integers(0, 2**30),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(0, 39), st.integers(0, 8)),
)
def test_the_place_is_that_of_sums_of_fractions(kind, seed, sizes):
    height, width, less_rows, less_columns = sizes
    n_rows, n_columns = max(1, height - less_rows), max(1, width - less_columns)
    scores = DRAWN[kind](torch.Size((height, width)), torch.Generator().manual_seed(seed)).float()
    total, row, column = brute_force(scores, n_rows, n_columns)
    found = highest_window(scores, n_rows, n_columns)
    assert found[:2] == (row, column)
    assert found[2] == pytest.approx(float(total), abs=1e-6 * float(scores.double().abs().sum()))


def test_two_scores_that_float64_cannot_add_decide():
    scores = torch.zeros(3, 40)
    scores[1, 1:] = 1e30
    scores[0, 30], scores[2, 30] = 1e-30, 2e-30
    assert highest_window(scores, 2, 39)[:2] == (1, 1)


def test_more_than_one_batch_of_lines_is_carried_over(monkeypatch):
    n_at_once = 4 * window_sums._N_ROWS_A_PEAK
    monkeypatch.setattr(window_sums, "_N_AT_ONCE", n_at_once * 3)
    n_rows = 2 * n_at_once + window_sums._N_ROWS_A_PEAK + 3
    scores = torch.arange(float(n_rows * 3)).reshape(n_rows, 3) % 7
    scores[-2, 2] = 1000
    for n_more, place in enumerate((0, n_at_once, n_rows - 2), start=1):
        scores[place, 1] += 2000 * n_more
        assert highest_window(scores, 1, 1)[:2] == (place, 1)


def test_float32_alone_settles_what_is_clear(monkeypatch):
    monkeypatch.setattr(window_sums, "_N_ROWS_A_PEAK", 1)
    monkeypatch.setattr(window_sums, "first_highest", lambda *_: pytest.fail("was compared again"))
    scores = torch.rand(60, 50, generator=torch.Generator().manual_seed(3))
    sums = scores.double().unfold(0, 41, 1).unfold(1, 30, 1).sum((2, 3))
    assert highest_window(scores, 41, 30)[:2] == divmod(int(sums.argmax()), sums.shape[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (3, 4), (6, 8)])  # the middle one lies in every window
def test_a_score_that_is_not_finite_is_named(value, place):
    scores = torch.ones(7, 9)
    scores[place] = value
    expected = (
        f"expected finite scores in a matrix of 7 x 9, got {value} in row {place[0]}, column {place[1]}"
    )
    with pytest.raises(ValueError, match=f"^{expected}$"):
        highest_window(scores, 6, 8)

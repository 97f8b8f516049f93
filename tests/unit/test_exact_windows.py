"""Windows whose sums differ by less than rounding are told apart."""

from fractions import Fraction

import pytest
import torch

from transfuse.tensors import exact_windows
from transfuse.tensors.exact_windows import first_highest, strips


def highest_in_fractions(scores: torch.Tensor, n_rows: int, n_columns: int) -> int:
    """The first of the windows of the greatest sum, added up as fractions."""
    exact = [[Fraction(value) for value in row] for row in scores.tolist()]
    sums = [
        sum(sum(row[left : left + n_columns]) for row in exact[top : top + n_rows])
        for top in range(len(exact) - n_rows + 1)
        for left in range(len(exact[0]) - n_columns + 1)
    ]
    return sums.index(max(sums))


def test_a_window_by_hand():
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
    assert first_highest(scores, 2, 2) == 3  # 0 + 2 + 3 + 1


def test_what_moves_a_window_one_step_is_what_enters_less_what_leaves():
    scores = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    rightwards, downwards, corners = strips(scores, 4, 5)
    window = [scores[top : top + 4, left : left + 5].sum() for top, left in ((0, 0), (0, 1), (1, 0), (1, 1))]
    right, down, both = (
        sum(sign * part.sum() for part, sign in moved) for moved in (rightwards, downwards, corners)
    )
    torch.testing.assert_close(right, window[1] - window[0])
    torch.testing.assert_close(down, window[2] - window[0])
    torch.testing.assert_close(right + down + both, window[3] - window[0])


def test_float64_tells_what_float32_would_not(monkeypatch):
    monkeypatch.setattr(exact_windows, "_digits", lambda *_: pytest.fail("was taken apart into digits"))
    scores = 1 + 2.0**-10 * torch.rand(20, 30, generator=torch.Generator().manual_seed(0))
    assert first_highest(scores, 15, 22) == highest_in_fractions(scores, 15, 22)


@pytest.mark.parametrize("small", [2.0**-60, 2.0**-100, 0.0])
def test_digits_tell_what_float64_would_not(small):
    scores = torch.full((6, 7), 1.0)
    scores[0, 0] = scores[5, 6] = 2.0**20
    scores[4, 5] = 1e-38
    scores[3, 6] += small  # lost beside 1 in float32, so the scores are equal
    scores[1, 1], scores[2, 2] = small, 2 * small
    assert first_highest(scores, 3, 4) == highest_in_fractions(scores, 3, 4)


def test_the_first_of_equal_windows_counts():
    assert first_highest(torch.ones(7, 5), 3, 2) == 0
    assert first_highest(torch.zeros(7, 5), 3, 2) == 0

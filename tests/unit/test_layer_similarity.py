"""Likeness of layers, and assignments that keep their order."""

from itertools import combinations, combinations_with_replacement

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.tensors.layer_similarity import linear_cka, monotone_assignment


def test_cka_ignores_rotation_scale_and_width_and_sees_independence():
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    wider = torch.linalg.qr(torch.randn(6, 4, generator=generator, dtype=torch.float64)).Q
    assert linear_cka(left, 7 * left @ wider.T + 3) == pytest.approx(1)
    assert linear_cka(left, torch.randn(500, 4, generator=generator, dtype=torch.float64)) < 0.05
    assert linear_cka(left, torch.ones(500, 2, dtype=torch.float64)) == 0


def test_cka_of_two_columns_is_their_squared_correlation():
    left, right = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [2.0], [1.0]])
    assert linear_cka(left, right) == pytest.approx(0.25)


@settings(max_examples=50, deadline=None)
@given(n_rows=st.integers(1, 4), n_columns=st.integers(1, 6), seed=st.integers(0, 999))
def test_assignment_is_the_best_of_all_that_keep_the_order(n_rows, n_columns, seed):
    similarity = torch.rand(n_rows, n_columns, generator=torch.Generator().manual_seed(seed))
    choices = combinations if n_columns >= n_rows else combinations_with_replacement
    best = max(
        choices(range(n_columns), n_rows),
        key=lambda columns: sum(float(similarity[row, column]) for row, column in enumerate(columns)),
    )
    assert monotone_assignment(similarity) == list(best)


def test_equal_layers_are_matched_in_their_order_from_the_first():
    assert monotone_assignment(torch.ones(2, 4)) == [0, 1]

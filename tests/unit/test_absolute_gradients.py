"""Sums of |gradient| by tiles against whole gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.transfer import absolute_gradients
from transfuse.transfer.absolute_gradients import GradientRows, add_absolute_gradients


def test_two_samples_by_hand():
    total = torch.ones(2, 1)
    gradients = [torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[-3.0, 0.0]])]
    inputs = [torch.tensor([[1.0], [-4.0]]), torch.tensor([[2.0]])]
    # Sample 1: rows 1*1 + 0*-4 = 1 and 2*1 + 1*-4 = -2; sample 2: -6 and 0. A sum before |.| would give 5 and 2.
    assert add_absolute_gradients(total, gradients, inputs) is None
    torch.testing.assert_close(total, torch.tensor([[1.0 + 1 + 6], [1.0 + 2 + 0]]))


@given(
    n_rows=st.integers(1, 7),
    n_columns=st.integers(1, 7),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    tile=st.integers(3, 20),
    width=st.integers(2, 8),
    seed=st.integers(0, 1000),
)
@settings(max_examples=20, deadline=None)
def test_tiles_give_what_whole_gradients_give(n_rows, n_columns, lengths, tile, width, seed):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    gradients = [random(length, n_rows) for length in lengths]
    inputs = [random(length, n_columns) for length in lengths]
    known = [torch.arange(n_rows)[random(n_rows) > 0] for _ in lengths]
    more = [GradientRows(rows, random(len(rows), n_columns)) for rows in known]
    expected, with_more = torch.zeros(n_rows, n_columns), torch.zeros(n_rows, n_columns)
    for gradient, each, extra in zip(gradients, inputs, more, strict=True):
        whole = gradient.T @ each
        expected += whole.abs()
        with_more += whole.index_add(0, extra.rows, extra.values).abs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(absolute_gradients, "_TILE_NUMBERS", {"cpu": tile})
        patch.setattr(absolute_gradients, "_TILE_COLUMNS", width)
        alone, together = torch.zeros(n_rows, n_columns), torch.zeros(n_rows, n_columns)
        add_absolute_gradients(alone, gradients, inputs)
        add_absolute_gradients(together, gradients, inputs, more)
    torch.testing.assert_close(alone, expected)
    torch.testing.assert_close(together, with_more)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_the_sample_at_fault_is_told(bad):
    inputs = [torch.full((2, 3), 10.0) for _ in range(3)]
    gradients = [torch.ones(2, 4) for _ in range(3)]
    gradients[1][0, 2] = bad  # 3e38 overflows only in the product
    assert add_absolute_gradients(torch.zeros(4, 3), gradients, inputs) == 1

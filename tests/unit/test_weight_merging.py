"""Merging one tensor: hand-worked values, and what every method must keep."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from transfuse.tensors.weight_merging import (
    dare_linear,
    dare_ties,
    keep_largest,
    linear,
    model_stock,
    sce,
    slerp,
    thinned,
    ties,
)

HALF = torch.tensor([0.5, 0.5])


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


WITH_BASE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ties": lambda base, stack: ties(base, stack, HALF, 1.0),
    "dare_linear": lambda base, stack: dare_linear(base, stack, HALF, 1.0, generator()),
    "dare_ties": lambda base, stack: dare_ties(base, stack, HALF, 1.0, generator()),
    "sce": lambda base, stack: sce(base, stack, 1.0),
    "model_stock": model_stock,
}


def test_linear_by_hand():
    stack = torch.tensor([[1.0, 2.0], [3.0, -2.0]])
    torch.testing.assert_close(linear(stack, torch.tensor([0.75, 0.25])), torch.tensor([1.5, 1.0]))


def test_slerp_by_hand():
    """A right angle, lengths 2 and 1: at a third of the way the directions are 60 and 30 degrees away."""
    first, second = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    expected = torch.tensor([[2 * math.sin(math.radians(60)), math.sin(math.radians(30))]])
    torch.testing.assert_close(slerp(first, second, 1 / 3), expected)
    torch.testing.assert_close(slerp(first, second, 0.0), first)
    torch.testing.assert_close(slerp(first, second, 1.0), second)


@pytest.mark.parametrize("angle", [1e-7, 1e-5, 1e-3, 0.5, 3.0, math.pi - 1e-5])
def test_slerp_of_units_stays_on_the_circle(angle: float):
    first = torch.tensor([1.0, 0.0], dtype=torch.float64)
    second = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    on_arc = torch.tensor([math.cos(angle / 4), math.sin(angle / 4)], dtype=torch.float64)
    torch.testing.assert_close(slerp(first, second, 0.25), on_arc, rtol=0, atol=1e-9)


def test_slerp_without_an_arc_is_a_straight_line():
    first = torch.tensor([3.0, 4.0])
    for second in (2 * first, -first, torch.zeros(2)):
        torch.testing.assert_close(slerp(first, second, 0.25), 0.75 * first + 0.25 * second)


def test_ties_by_hand():
    """Kept are two of four entries; in the first column signs differ and the larger mass wins."""
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    updates = torch.tensor([[4.0, 0.1, 2.0, -0.2], [-3.0, 0.3, 6.0, 0.1]])
    merged = ties(base, base + updates, HALF, density=0.5)
    torch.testing.assert_close(merged, base + torch.tensor([4.0, 0.0, 4.0, 0.0]))
    twice = ties(base, base + updates, HALF, density=0.5, scale=2.0)
    torch.testing.assert_close(twice, base + torch.tensor([8.0, 0.0, 8.0, 0.0]))


def test_shares_vote_and_weigh_in_ties():
    base = torch.zeros(2)
    updates = torch.tensor([[4.0, 1.0], [-3.0, 4.0]])
    merged = ties(base, updates, torch.tensor([0.25, 0.75]), density=1.0)
    torch.testing.assert_close(merged, torch.tensor([-3.0, 0.25 * 1 + 0.75 * 4]))


def test_sce_by_hand():
    """Variances 12.25, 0 and 1: two thirds of the two that vary is one entry, the first."""
    base = torch.tensor([1.0, 0.0, 0.0])
    updates = torch.tensor([[4.0, 5.0, 1.0], [-3.0, 5.0, -1.0]])
    torch.testing.assert_close(sce(base, base + updates, 2 / 3), base + torch.tensor([4.0, 0.0, 0.0]))
    everything = sce(base, base + updates, 1.0)  # the last column is even: the positive entry stays
    torch.testing.assert_close(everything, base + torch.tensor([4.0, 5.0, 1.0]))


def test_sce_weighs_by_squares():
    base = torch.zeros(1)
    merged = sce(base, torch.tensor([[1.0], [3.0]]), 1.0)
    torch.testing.assert_close(merged, torch.tensor([(1 * 1 + 9 * 3) / 10]))


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_small_updates_are_merged_like_large_ones(size: float):
    """Fine-tuning moves weights by little; squares of 1e-8 must not count as nothing."""
    torch.manual_seed(0)
    base = torch.zeros(64)
    updates = torch.randn(2, 64) * torch.tensor([[1.0], [3.0]])
    for method in (lambda stack: sce(base, stack, 0.5), lambda stack: model_stock(base, stack)):
        torch.testing.assert_close(method(updates * size) / size, method(updates), rtol=1e-4, atol=1e-5)


def test_model_stock_by_hand():
    """Two updates at 60 degrees: cos is 1/2, t is 2 * 1/2 / (1 + 1/2) = 2/3 of the way to their mean."""
    base = torch.tensor([1.0, 1.0])
    updates = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]])
    torch.testing.assert_close(model_stock(base, base + updates), base + updates.mean(dim=0) * 2 / 3)


def test_model_stock_keeps_the_base_where_updates_oppose_or_vanish():
    base = torch.tensor([1.0, 1.0])
    for updates in ([[1.0, 0.0], [-1.0, 0.0]], [[1.0, 0.0], [-1.0, 0.1]], [[0.0, 0.0], [1.0, 0.0]]):
        torch.testing.assert_close(model_stock(base, base + torch.tensor(updates)), base)
    three = torch.tensor([[1.0, 2.0]]).expand(3, 2)
    torch.testing.assert_close(model_stock(base, base + three), base + three[0])


def test_the_largest_entries_are_kept():
    values = torch.tensor([[0.5, -3.0], [2.0, 1.0]])
    torch.testing.assert_close(keep_largest(values, 0.5), torch.tensor([[0.0, -3.0], [2.0, 0.0]]))
    torch.testing.assert_close(keep_largest(values, 0.01), torch.tensor([[0.0, -3.0], [0.0, 0.0]]))
    assert keep_largest(values, 1.0) is values
    even = torch.tensor([1.0, -1.0, 1.0, 0.5])
    torch.testing.assert_close(keep_largest(even, 0.25), torch.tensor([1.0, -1.0, 1.0, 0.0]))


def test_thinning_keeps_the_expectation():
    values = torch.full((40_000,), 2.0)
    kept = thinned(values, 0.3, generator())
    assert set(kept.tolist()) == {0.0, torch.tensor(2.0).div(0.3).item()}
    assert float((kept != 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(kept.mean()) == pytest.approx(2.0, abs=0.07)
    torch.testing.assert_close(kept, thinned(values, 0.3, generator()), rtol=0, atol=0)
    assert not torch.equal(kept, thinned(values, 0.3, generator(4)))
    assert thinned(values, 1.0, generator()) is values


def test_dare_averages_what_is_left():
    base = torch.zeros(1000)
    stack = torch.ones(2, 1000)
    merged = dare_linear(base, stack, HALF, 0.5, generator())
    kept = thinned(stack, 0.5, generator())
    torch.testing.assert_close(merged, kept.mean(dim=0))
    assert set(merged.tolist()) == {0.0, 1.0, 2.0}
    # With an election every entry that anybody kept is the mean of those that kept it.
    assert set(dare_ties(base, stack, HALF, 0.5, generator()).tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("method", WITH_BASE)
@given(values=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=8), seed=st.integers(0, 9))
def test_models_that_agree_are_kept_and_the_base_stays_with_the_base(
    method: str, values: list[float], seed: int
):
    base = torch.randn(len(values), generator=generator(seed))
    model = torch.tensor(values)
    merge = WITH_BASE[method]
    torch.testing.assert_close(merge(base, torch.stack([model, model])), model, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merge(base, torch.stack([base, base])), base)


@pytest.mark.parametrize("method", WITH_BASE)
@given(seed=st.integers(0, 99))
def test_the_order_of_models_does_not_matter(method: str, seed: int):
    draw = generator(seed)
    base, stack = torch.randn(3, 4, generator=draw), torch.randn(2, 3, 4, generator=draw)
    merge = WITH_BASE[method]
    torch.testing.assert_close(merge(base, stack), merge(base, stack.flip(0)))


@pytest.mark.parametrize("method", WITH_BASE)
def test_a_single_number_is_a_tensor_too(method: str):
    merged = WITH_BASE[method](torch.tensor(1.0), torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(merged, torch.tensor(2.0))

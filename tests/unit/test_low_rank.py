"""Low rank: the randomised decomposition against the full one on known spectra, and products against their SVD."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.tensors.low_rank import LowRank, product_svd, truncated_svd

RANK = 16
PLACES = torch.arange(1.0, 401, dtype=torch.float64)
SPECTRA = {
    "one over i": 1 / PLACES,
    "slow": PLACES**-0.2,
    "flat": torch.ones(400, dtype=torch.float64),
    "exponential": torch.exp(-PLACES / 30),
    "outliers": torch.where(PLACES <= 8, 30.0, 1.0),
    "more outliers than the rank": torch.where(PLACES <= 24, 6.0, 1.0),
    "a cliff behind the rank": torch.where(PLACES <= RANK, 1.0, 1e-4),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormal(n_rows: int, n_columns: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(n_rows, n_columns, generator=seeded(seed), dtype=torch.float64)).Q


def with_spectrum(values: torch.Tensor, n_rows: int, n_columns: int) -> torch.Tensor:
    left, right = orthonormal(n_rows, len(values), 1), orthonormal(n_columns, len(values), 2)
    return ((left * values) @ right.T).float()


def assert_decomposes(matrix: torch.Tensor, found: LowRank, tolerance: float = 1e-5) -> None:
    """What holds of every result: orthonormal factors, signs, and the error that is claimed."""
    left, values, right = (factor.double() for factor in found[:3])
    unit = torch.eye(len(values), dtype=torch.float64)
    torch.testing.assert_close(left.T @ left, unit, atol=tolerance, rtol=0)
    torch.testing.assert_close(right @ right.T, unit, atol=tolerance, rtol=0)
    assert (values.diff() <= 0).all()
    assert (left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all()
    rest = float((matrix.double() - (left * values) @ right).norm())
    assert found.error == pytest.approx(rest, rel=1e-3, abs=tolerance * float(matrix.double().norm()))


@pytest.mark.parametrize("shape", [(400, 450), (500, 400)])
@pytest.mark.parametrize("name", sorted(SPECTRA))
def test_the_error_is_within_one_percent_of_the_least(name, shape):
    matrix = with_spectrum(SPECTRA[name], *shape)
    found = truncated_svd(matrix, RANK, generator=seeded())
    assert_decomposes(matrix, found)
    assert found.left.shape == (shape[0], RANK)
    least = float(SPECTRA[name][RANK:].norm())
    assert least * (1 - 1e-4) <= found.error <= 1.01 * least


@pytest.mark.parametrize("name", sorted(SPECTRA))
def test_a_plain_projection_keeps_to_the_bound(name):
    matrix = with_spectrum(SPECTRA[name], 420, 400)
    found = [
        truncated_svd(matrix, RANK, generator=seeded(seed), n_oversampling=5, n_iterations=0)
        for seed in range(8)
    ]
    mean = statistics.mean(each.error**2 for each in found)
    least = float(SPECTRA[name][RANK:].square().sum())
    assert least * (1 - 1e-4) <= mean <= (2 + RANK / 4) * least
    if name == "a cliff behind the rank":  # so that the bound is not met by being the least
        assert mean > 1.5 * least


def test_noise_beneath_few_outliers_is_told_apart():
    noise = torch.randn(600, 500, generator=seeded(4)) / 20
    matrix = with_spectrum(torch.tensor([40.0, 20, 10], dtype=torch.float64), 600, 500) + noise
    found = truncated_svd(matrix, 3, generator=seeded())
    torch.testing.assert_close(found.values, torch.linalg.svdvals(matrix)[:3], rtol=1e-4, atol=0)


def test_the_same_generator_gives_the_same_factors_another_nearly():
    matrix = with_spectrum(SPECTRA["one over i"], 420, 400)
    one, again, other = (truncated_svd(matrix, 4, generator=seeded(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one[:3], again[:3], strict=True))
    torch.testing.assert_close(one.left, other.left, atol=1e-3, rtol=0)


def test_a_small_matrix_by_hand():
    matrix = torch.tensor([[0.0, -3, 0], [2, 0, 0], [0, 0, -1]])
    left, values, right, error = truncated_svd(matrix, 2, generator=seeded())
    assert values.tolist() == pytest.approx([3, 2])
    torch.testing.assert_close(left, torch.tensor([[1.0, 0], [0, 1], [0, 0]]))
    torch.testing.assert_close(right, torch.tensor([[0.0, -1, 0], [1, 0, 0]]))
    assert error == pytest.approx(1)
    assert truncated_svd(matrix, 5, generator=seeded()).error == 0


@pytest.mark.parametrize("scale", [1e30, 1e-35])
def test_numbers_whose_squares_overflow_are_scaled(scale):
    matrix = with_spectrum(SPECTRA["one over i"], 400, 400)
    found, plain = (truncated_svd(each, 4, generator=seeded()) for each in (matrix * scale, matrix))
    assert found.values.tolist() == pytest.approx(
        [value * scale for value in plain.values.tolist()], rel=1e-4
    )
    assert found.error == pytest.approx(plain.error * scale, rel=1e-4)


def test_a_matrix_of_zeros_has_no_error():
    found = truncated_svd(torch.zeros(300, 400), 2, generator=seeded())
    assert (found.values.tolist(), found.error) == ([0, 0], 0)


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(1, 30)),
    max_rank=st.none() | st.integers(1, 14),
    seed=st.integers(0, 2**30),
)
def test_a_product_is_decomposed_as_if_it_had_been_formed(sizes, max_rank, seed):
    n_rows, n_inner, n_columns = sizes
    generator = seeded(seed)
    left, right = (
        torch.randn(shape, generator=generator) for shape in ((n_rows, n_inner), (n_inner, n_columns))
    )
    found = product_svd(left, right, max_rank)
    product = left.double() @ right.double()
    assert_decomposes(product, found)
    expected = torch.linalg.svdvals(product)[: min(sizes)]
    n_kept = min(len(expected), max_rank or len(expected))
    assert found.values.tolist() == pytest.approx(expected[:n_kept].tolist(), rel=1e-5, abs=1e-6)
    assert found.error == pytest.approx(float(expected[n_kept:].norm()), rel=1e-5, abs=1e-9)


def test_parts_that_cancel_leave_a_lower_rank():
    left = torch.tensor([[1.0, 1], [2, 2], [3, 3]])
    right = torch.tensor([[1.0, 0], [0, 1]])
    found = product_svd(left, right, max_rank=1)
    assert found.values.tolist() == pytest.approx([math.sqrt(28)])
    assert found.error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_product_keeps_its_precision_from_float32_on(dtype):
    found = product_svd(torch.ones(3, 2, dtype=dtype), torch.ones(2, 3, dtype=dtype))
    assert {factor.dtype for factor in found[:3]} == {torch.promote_types(dtype, torch.float32)}


def test_a_wide_inner_size_is_decomposed_in_its_own_precision():
    left, right = (torch.randn(shape, generator=seeded(3)) for shape in ((40, 520), (520, 30)))
    assert_decomposes(left.double() @ right.double(), product_svd(left, right))


def test_what_cannot_be_decomposed_is_refused():
    matrix = torch.ones(3, 4)
    matrix[2, 3] = float("inf")
    message = "^expected finite numbers in a matrix of 3 x 4, got NaN or infinity$"
    with pytest.raises(ValueError, match=message):
        truncated_svd(matrix, 1, generator=seeded())
    with pytest.raises(ValueError, match=message):
        product_svd(torch.ones(2, 3), matrix)
    with pytest.raises(ValueError, match=r"^expected a matrix with rows and columns, got one of 0 x 4$"):
        truncated_svd(torch.ones(0, 4), 1, generator=seeded())
    with pytest.raises(ValueError, match=r"^expected a greatest rank of at least 1, got 0$"):
        product_svd(torch.ones(2, 3), torch.ones(3, 2), 0)
    with pytest.raises(ValueError, match=r"^expected a rank of at least 1, .* got 0, 16 and 8$"):
        truncated_svd(torch.ones(3, 4), 0, generator=seeded())

"""Maps between activations: closed forms by brute force, streaming sums, and what cannot be known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.tensors.activation_maps import (
    MAPS,
    PENALTIES,
    empty_moments,
    procrustes_map,
    read_r2,
    ridge_map,
    scaled_procrustes_map,
    scatter,
)


def _moments(left, right, n_chunks=1):
    moments = empty_moments(left.shape[1], right.shape[1])
    for rows in torch.arange(len(left)).tensor_split(n_chunks):
        moments.add(left[rows], right[rows])
    return moments


def _rows(generator, n, *widths):
    return [torch.randn(n, width, generator=generator, dtype=torch.float64) for width in widths]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


@settings(max_examples=20, deadline=None)
@given(n_chunks=st.integers(1, 12), seed=st.integers(0, 99))
def test_sums_added_in_chunks_are_those_of_one_matrix_product(n_chunks, seed):
    left, right = _rows(torch.Generator().manual_seed(seed), 30, 4, 3)
    left, right = left + 100, right - 7  # means far greater than the spread
    moments = _moments(left, right, n_chunks)
    centred = scatter(moments, moments.left_mean(), moments.right_mean())
    left_c, right_c = left - left.mean(0), right - right.mean(0)
    torch.testing.assert_close(moments.left_mean(), left.mean(0))
    torch.testing.assert_close(centred.left, left_c.T @ left_c)
    torch.testing.assert_close(centred.cross, left_c.T @ right_c)
    assert centred.right_total == pytest.approx(float((right_c**2).sum()))
    flipped = scatter(moments.flipped(), right.mean(0), left.mean(0))
    torch.testing.assert_close(flipped.cross, right_c.T @ left_c)


def test_float32_rows_keep_a_spread_that_is_tiny_beside_their_mean(generator):
    left, right = _rows(generator, 400, 5, 5)
    moments = _moments((left + 3000).float(), right.float(), n_chunks=4)
    spread = scatter(moments, moments.left_mean(), moments.right_mean()).left
    left_c = (left + 3000).float().double()
    left_c = left_c - left_c.mean(0)
    torch.testing.assert_close(spread, left_c.T @ left_c, rtol=1e-4, atol=0.05)


def test_ridge_is_the_closed_form_with_the_penalty_of_least_held_out_error(generator):
    left, noise = _rows(generator, 60, 6, 4)
    truth = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    right = left @ truth + 2 * noise + 5
    got = ridge_map(_moments(left[:25], right[:25], 3), _moments(left[25:], right[25:], 2))
    x, y = left[:25].numpy(), right[:25].numpy()
    x_held, y_held = left[25:].numpy() - x.mean(0), right[25:].numpy() - y.mean(0)
    x, y = x - x.mean(0), y - y.mean(0)
    maps = {p: np.linalg.solve(x.T @ x + p * np.trace(x.T @ x) / 6 * np.eye(6), x.T @ y) for p in PENALTIES}
    errors = {p: ((y_held - x_held @ w) ** 2).sum() for p, w in maps.items()}
    best = min(errors, key=lambda p: errors[p])
    assert got.penalty == best
    assert best not in (PENALTIES[0], PENALTIES[-1])  # neither end, so that the choice is one
    np.testing.assert_allclose(got.matrix.numpy(), maps[best].T, rtol=1e-8)
    assert got.r2 == pytest.approx(1 - errors[best] / (y_held**2).sum())


@pytest.mark.parametrize(("left_width", "right_width"), [(5, 5), (4, 7), (7, 4)])
def test_procrustes_finds_a_semi_orthogonal_truth_and_its_transpose_leads_back(
    generator, left_width, right_width
):
    wide, narrow = max(left_width, right_width), min(left_width, right_width)
    columns = torch.linalg.qr(torch.randn(wide, narrow, generator=generator, dtype=torch.float64)).Q
    truth = columns if right_width == wide else columns.T
    (left,) = _rows(generator, 200, left_width)
    # Only what the narrow side can hold, so that the truth is exact in both directions.
    left = left if left_width == narrow else left @ (columns @ columns.T)
    right = left @ truth.T + 3
    fit, held_out = _moments(left[:150], right[:150]), _moments(left[150:], right[150:])
    forward, back = procrustes_map(fit, held_out), procrustes_map(fit.flipped(), held_out.flipped())
    torch.testing.assert_close(forward.matrix, truth)
    torch.testing.assert_close(back.matrix, truth.T)
    assert (forward.r2, forward.n_directions) == (pytest.approx(1), narrow)


def test_directions_that_calibration_never_showed_go_to_zero(generator):
    (left,) = _rows(generator, 50, 4)
    left = left * torch.tensor([1.0, 1.0, 0.0, 1.0])
    got = procrustes_map(_moments(left, left), _moments(left, left))
    torch.testing.assert_close(
        got.matrix, torch.diag(torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64))
    )
    assert got.n_directions == 3


def test_the_scale_is_the_ratio_of_units_and_shrinks_under_noise(generator):
    left, noise = _rows(generator, 4000, 3, 3)
    right = 2.5 * left[:, [2, 0, 1]]
    moments, held_out = _moments(left, right), _moments(left[:9], right[:9])
    assert float(scaled_procrustes_map(moments, held_out).matrix.norm()) == pytest.approx(2.5 * math.sqrt(3))
    plain, scaled = procrustes_map(moments, held_out), scaled_procrustes_map(moments, held_out)
    torch.testing.assert_close(scaled.matrix, plain.unit_scale * plain.matrix)
    assert (plain.unit_scale, plain.r2, scaled.unit_scale) == pytest.approx((2.5, 1, 1))
    noisy = left + noise  # half of what is on the left says nothing about the right
    shrunk = scaled_procrustes_map(_moments(noisy, left), held_out).matrix
    assert float(shrunk.norm()) == pytest.approx(0.5 * math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("kind", MAPS)
def test_nothing_is_predicted_where_nothing_varies(generator, kind):
    (left,) = _rows(generator, 20, 3)
    still = torch.ones(20, 2, dtype=torch.float64)
    fit = _moments(left, still)
    got = MAPS[kind](fit, fit)
    assert torch.equal(got.matrix, torch.zeros(2, 3, dtype=torch.float64))
    assert math.isnan(got.r2)


def test_what_a_delta_reads_counts_along_its_own_directions_alone(generator):
    left, other = _rows(generator, 100, 3, 3)
    right = torch.stack([left[:, 0], other[:, 0]], dim=1)  # the second column cannot be known from the left
    fit = _moments(left, right)
    matrix = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    reads_known = torch.tensor([[4.0, 0.0]], dtype=torch.float64)
    reads_unknown = torch.tensor([[0.0, 4.0]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    assert read_r2(reads_known, one, matrix, fit, fit) == pytest.approx(1)
    assert read_r2(reads_unknown, one, matrix, fit, fit) == pytest.approx(0)
    both = torch.cat([reads_known, reads_unknown])
    # Written with weights 3 and 1 (squared 9 and 1), in columns at right angles.
    varies = right.var(dim=0)
    share = 9 * varies[0] / (9 * varies[0] + varies[1])
    weights = torch.diag(torch.tensor([9.0, 1.0], dtype=torch.float64))
    assert read_r2(both, weights, matrix, fit, fit) == pytest.approx(float(share))

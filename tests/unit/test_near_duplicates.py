"""Near-duplicates: worked by hand, equal to comparing each row with every kept row, whatever the sieve."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.tensors import near_duplicates as module
from transfuse.tensors.near_duplicates import COSINE_ROUNDING, near_duplicates


def at(*degrees: float) -> np.ndarray:
    """Vectors of different lengths at angles in the plane."""
    angles = np.radians(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * (1 + np.arange(len(degrees)))[:, None]


def by_loop(embeddings: np.ndarray, threshold: float, groups: np.ndarray | None = None) -> list[int]:
    """The definition: each row against every kept row, in order."""
    rows = embeddings.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    earliest, kept = [], []
    for i, row in enumerate(rows):
        near = [
            j
            for j in kept
            if (groups is None or groups[i] == groups[j])
            and norms[i] * norms[j] > 0
            and row @ rows[j] / (norms[i] * norms[j]) >= threshold - COSINE_ROUNDING
        ]
        earliest.append(near[0] if near else -1)
        if not near:
            kept.append(i)
    return earliest


def test_a_chain_is_compared_with_kept_rows_only():
    # cos 20 = 0.94: 20 repeats 0; 40 repeats 20, which is gone, and is 40 from 0; 60 repeats 40.
    assert near_duplicates(at(0, 20, 40, 60), 0.9).tolist() == [-1, 0, -1, 2]


def test_the_earliest_kept_row_is_named_and_not_the_nearest():
    assert near_duplicates(at(0, 50, 26), 0.85).tolist() == [-1, -1, 0]


def test_a_cosine_at_the_threshold_counts():
    rows = np.array([[5.0, 0.0], [3.0, 4.0], [0.0, 2.0]])  # cosines 0.6, 0, 0.8
    assert near_duplicates(rows, 0.6).tolist() == [-1, 0, -1]
    assert near_duplicates(rows, 0.6000001).tolist() == [-1, -1, 1]
    thirds = np.full((3, 7), 1 / 3, dtype=np.float32)  # no length of them is exact
    assert near_duplicates(thirds, 1.0).tolist() == [-1, 0, 0]


def test_rows_of_other_groups_are_not_compared():
    groups = np.array([7, -1, 7, -1, 7])
    assert near_duplicates(at(0, 0, 1, 1, 90), 0.9, groups=groups).tolist() == [-1, -1, 0, 1, -1]


def test_rows_of_zeros_resemble_nothing_and_no_rows_give_none():
    assert near_duplicates(np.zeros((3, 4)), 0.5).tolist() == [-1, -1, -1]
    assert near_duplicates(np.zeros((0, 4)), 0.5).tolist() == []


angles = st.lists(st.integers(0, 35).map(lambda n: n * 10), max_size=25)


@settings(deadline=None, max_examples=50)
@given(angles, st.sampled_from([0.5, 0.9, 1.0]), st.integers(1, 9), st.booleans())
def test_any_rows_in_any_blocks_are_as_by_the_loop(degrees, threshold, block, is_grouped):
    # Multiples of ten degrees: many equal rows, and cosines of 0.5 that are exact but for rounding.
    rows = at(*degrees)
    groups = np.arange(len(rows)) % 3 if is_grouped else None
    assert near_duplicates(rows, threshold, groups=groups, block=block).tolist() == by_loop(
        rows, threshold, groups
    )


def clustered(n: int) -> np.ndarray:
    """Rows around thirty centres, near and far, most of their length in a few of 24 dimensions."""
    rng = np.random.default_rng(3)
    scale = 0.7 ** np.arange(24)
    centres = rng.standard_normal((30, 24)) * scale
    noise = rng.standard_normal((n, 24)) * scale * rng.uniform(0, 0.7, (n, 1))
    return (centres[rng.integers(0, 30, n)] + noise).astype(np.float32)


@pytest.mark.parametrize("products_per_pair", [0, 10**9])  # pairs by themselves; tiles as a whole
@pytest.mark.parametrize(("threshold", "n_leading"), [(0.97, 3), (0.9, 1), (0.8, 12)])
def test_the_sieve_loses_nothing(monkeypatch, threshold, n_leading, products_per_pair):
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((24, 24)))[0].astype(np.float32)
    monkeypatch.setattr(
        module, "_sieve", lambda unit, floor, slack: module._sieved(unit, axes[:, :n_leading], slack)
    )
    monkeypatch.setattr(module, "_N_ROWS_WITHOUT_SIEVE", 0)
    monkeypatch.setattr(module, "_TILE_ROWS", 40)
    monkeypatch.setattr(module, "_PRODUCTS_PER_PAIR", products_per_pair)
    rows = clustered(400)
    found = near_duplicates(rows, threshold, block=64)
    assert found.tolist() == by_loop(rows, threshold)
    assert 100 < (found >= 0).sum() < 390


def test_a_sieve_is_as_wide_as_pays():
    slack = 1e-5
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((2000, 300)).astype(np.float32)
    steep = flat * 0.9 ** np.arange(300, dtype=np.float32)
    flat, steep = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (flat, steep))
    assert module._sieve(steep, 0.95, slack).shape == (2000, 33)
    assert module._sieve(flat, 0.2, slack) is flat  # as many pairs would be open with any


def test_the_bound_holds_for_every_pair_and_dimension():
    rng = np.random.default_rng(0)
    unit = rng.standard_normal((60, 40)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    axes = np.linalg.qr(rng.standard_normal((40, 40)))[0].astype(np.float32)
    exact = unit.astype(np.float64) @ unit.T.astype(np.float64)
    slack = 48 * float(np.finfo(np.float32).eps)
    for n_leading in (1, 8, 39):
        sieve = module._sieved(unit, axes[:, :n_leading], slack)
        assert (sieve @ sieve.T >= exact - slack).all()


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.01, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold above 0 up to 1, got"):
        near_duplicates(at(0, 1), threshold)


def test_a_block_of_no_rows_and_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="at least one row, got 0"):
        near_duplicates(at(0, 1), 0.5, block=0)
    with pytest.raises(ValueError, match="row 1: expected finite values"):
        near_duplicates(np.array([[1.0, 0.0], [np.nan, 1.0]]), 0.5)

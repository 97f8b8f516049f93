"""Win rates of one system against another, and what they would be if both wrote at the same length."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from transfuse.tensors.intervals import cluster_bootstrap
from transfuse.types import Estimate

INTERCEPT_RIDGE, SLOPE_RIDGE = 1e-3, 0.1
"""Penalty on half the square of each coefficient, against the log-likelihood of all items: keeps data finite that the
length alone, or nothing at all, separates; an intercept of 1 moves by 1e-3 of an item."""

N_RESAMPLES = 2000
_MAX_STEPS, _MAX_HALVINGS, _TOLERANCE = 100, 40, 1e-10
_CELLS_PER_BLOCK = 1_000_000

# R resamples, N items; the two coefficients are the intercept and the slope of the length.
_Cells = Float[np.ndarray, "resamples items"]
_Coefficients = Float[np.ndarray, "resamples 2"]


class LengthControlled(NamedTuple):
    """A win rate with the effect of length taken out."""

    win_rate: Estimate
    """At equal length, in 0..1."""
    slope: float | None
    """Log-odds that the preference gains where the first reply is far longer; None without items."""


def length_controlled_win_rate(
    preferences: Float[np.ndarray, " items"],
    length_differences: Float[np.ndarray, " items"],
    seed: int,
    n_resamples: int = N_RESAMPLES,
) -> LengthControlled:
    """What a judge's preference would be if both replies were of one length.

    A logistic regression of the preference on tanh(length difference / its standard deviation), read off where the
    difference is 0. Where all differences are alike nothing can be told of length, and the raw rate comes out.

    Args:
        preferences: 1 where the first reply is preferred, 0 where the second, anything between for ties.
        length_differences: the first reply's length minus the second's, in any unit.
        seed: of the bootstrap, which draws items and fits each draw anew.
        n_resamples: how many draws.

    Returns:
        The rate with its 95 % percentile interval, and the length's effect.

    Source:
        Dubois et al. 2024, arXiv:2404.04475, section 3.
        Differs: no term for an instruction's difficulty, which takes many systems to estimate; a fixed small ridge
        instead of a cross-validated one; where all preferences are alike, the raw rate and its exact bound.
    """
    n_items = len(preferences)
    if n_items == 0:
        return LengthControlled(Estimate(None, None, None, 0), None)
    if np.ptp(preferences) == 0:
        raw = cluster_bootstrap(preferences, np.ones(n_items), np.arange(n_items), seed, n_resamples=1)
        return LengthControlled(raw, 0.0)
    whole = length_coefficients(preferences, length_differences, np.ones((1, n_items)))[0]
    rng = np.random.default_rng(seed)
    block = max(1, min(n_resamples, _CELLS_PER_BLOCK // n_items))
    rates: list[np.ndarray] = []
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        counts = rng.multinomial(n_items, np.full(n_items, 1 / n_items), size=size).astype(float)
        rates.append(_sigmoid(length_coefficients(preferences, length_differences, counts)[:, 0]))
    low, high = np.percentile(np.concatenate(rates), [2.5, 97.5])
    value = float(_sigmoid(whole[:1])[0])
    return LengthControlled(Estimate(value, float(low), float(high), n_items), float(whole[1]))


def length_coefficients(
    preferences: Float[np.ndarray, " items"],
    length_differences: Float[np.ndarray, " items"],
    counts: _Cells,
) -> _Coefficients:
    """Intercept and slope of the regression, for each row of how often every item counts.

    Args:
        preferences: in 0..1.
        length_differences: the first reply's length minus the second's.
        counts: not negative, none of the rows all 0.

    Returns:
        Log-odds at equal length, and what a far longer first reply adds to them.
    """
    features = _features(length_differences, counts)
    fitted = np.zeros((len(counts), 2))
    cost = _cost(fitted, features, preferences, counts)
    for _ in range(_MAX_STEPS):
        step = _newton_step(fitted, features, preferences, counts)
        fitted, cost, moved = _descended(fitted, step, cost, features, preferences, counts)
        if moved < _TOLERANCE:
            break
    return fitted


def _features(length_differences: Float[np.ndarray, " items"], counts: _Cells) -> _Cells:
    """Tanh of the differences in standard deviations of their own row; 0 where they do not vary."""
    n = counts.sum(axis=1, keepdims=True)
    mean = counts @ length_differences[:, None] / n
    variance = (counts * (length_differences[None, :] - mean) ** 2).sum(axis=1, keepdims=True) / n
    scale = np.sqrt(variance)
    # What rounding leaves of a spread is none.
    varies = scale > 1e-9 * np.abs(length_differences).max()
    return np.where(varies, np.tanh(length_differences[None, :] / np.where(varies, scale, 1.0)), 0.0)


def _newton_step(
    fitted: _Coefficients, features: _Cells, preferences: Float[np.ndarray, " items"], counts: _Cells
) -> _Coefficients:
    probs = _sigmoid(fitted[:, :1] + fitted[:, 1:] * features)
    surplus = counts * (probs - preferences)
    gradient_0 = surplus.sum(axis=1) + INTERCEPT_RIDGE * fitted[:, 0]
    gradient_1 = (surplus * features).sum(axis=1) + SLOPE_RIDGE * fitted[:, 1]
    weights = counts * probs * (1 - probs)
    h_00 = weights.sum(axis=1) + INTERCEPT_RIDGE
    h_01 = (weights * features).sum(axis=1)
    h_11 = (weights * features**2).sum(axis=1) + SLOPE_RIDGE
    determinant = h_00 * h_11 - h_01**2
    step_0 = (h_11 * gradient_0 - h_01 * gradient_1) / determinant
    step_1 = (h_00 * gradient_1 - h_01 * gradient_0) / determinant
    return -np.stack([step_0, step_1], axis=1)


def _descended(
    fitted: _Coefficients,
    step: _Coefficients,
    cost: Float[np.ndarray, " resamples"],
    features: _Cells,
    preferences: Float[np.ndarray, " items"],
    counts: _Cells,
) -> tuple[_Coefficients, Float[np.ndarray, " resamples"], float]:
    """Each row as far along its step as its cost falls, and the longest way any went."""
    share = np.ones((len(fitted), 1))
    tried, new_cost = fitted, cost
    rises = np.zeros(len(fitted), dtype=bool)
    for _ in range(_MAX_HALVINGS):
        tried = fitted + share * step
        new_cost = _cost(tried, features, preferences, counts)
        rises = new_cost > cost + 1e-12 * np.abs(cost)  # more than rounding
        if not rises.any():
            break
        share = np.where(rises[:, None], share / 2, share)
    tried = np.where(rises[:, None], fitted, tried)
    return tried, np.where(rises, cost, new_cost), float(np.abs(tried - fitted).max())


def _cost(
    fitted: _Coefficients, features: _Cells, preferences: Float[np.ndarray, " items"], counts: _Cells
) -> Float[np.ndarray, " resamples"]:
    log_odds = fitted[:, :1] + fitted[:, 1:] * features
    nats = np.logaddexp(0, log_odds) - preferences * log_odds
    ridge = INTERCEPT_RIDGE * fitted[:, 0] ** 2 + SLOPE_RIDGE * fitted[:, 1] ** 2
    return (counts * nats).sum(axis=1) + ridge / 2


def _sigmoid(log_odds: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return 0.5 * (1 + np.tanh(log_odds / 2))

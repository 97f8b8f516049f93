"""95 % intervals of means, ratios and their differences over clustered items."""

import numpy as np
from jaxtyping import Float, Int

from transfuse.types import Estimate

N_RESAMPLES = 10_000
_CELLS_PER_BLOCK = 4_000_000


def cluster_bootstrap(
    numerators: Float[np.ndarray, " items"],
    denominators: Float[np.ndarray, " items"],
    clusters: Int[np.ndarray, " items"],
    seed: int,
    n_resamples: int = N_RESAMPLES,
) -> Estimate:
    """Ratio of sums with its 95 % percentile interval, resampling whole clusters.

    A mean is the ratio whose denominators are all 1. Items of one cluster (the questions of one fact, the
    tokens of one text) stand or fall together, so clusters are drawn, not items.

    Args:
        numerators: one value an item (a score in 0..1, nats, bits).
        denominators: one weight an item (1, or bytes); not negative, not all zero.
        clusters: which cluster each item belongs to, any integers.
        seed: of the resampling; the same seed gives the same interval.
        n_resamples: how many resamples.

    Returns:
        Value and interval in the unit of numerators / denominators; `n` counts items. All None and n = 0
        where there are no items.

    Raises:
        ValueError: the denominators sum to zero.

    Source:
        Efron and Tibshirani 1993, chapter 13 (percentile interval); Davison and Hinkley 1997, 3.8 (clusters).
        Differs: where every cluster has the same share 0 or 1, the bootstrap would claim certainty; the
        exact binomial (Clopper-Pearson) bound over clusters takes the place of the degenerate side.
    """
    if len(numerators) == 0:
        return Estimate(None, None, None, 0)
    if denominators.sum() <= 0:
        raise ValueError("expected denominators with a positive sum, got zero")
    _, index = np.unique(clusters, return_inverse=True)
    cluster_numerators = np.bincount(index, weights=numerators)
    cluster_denominators = np.bincount(index, weights=denominators)
    value = float(cluster_numerators.sum() / cluster_denominators.sum())
    low, high = _percentiles(cluster_numerators, cluster_denominators, seed, n_resamples)
    if np.all(denominators == 1) and value in (0.0, 1.0):
        slack = 1 - 0.025 ** (1 / len(cluster_numerators))
        low, high = (0.0, slack) if value == 0 else (1 - slack, 1.0)
    return Estimate(value, low, high, len(numerators))


def paired_difference(
    first: Float[np.ndarray, " items"],
    second: Float[np.ndarray, " items"],
    denominators: Float[np.ndarray, " items"],
    clusters: Int[np.ndarray, " items"],
    seed: int,
    n_resamples: int = N_RESAMPLES,
) -> Estimate:
    """Difference of two arms on the same items, first minus second, with its 95 % percentile interval.

    Both arms are drawn together, so what makes an item hard for either does not widen the interval. With the same
    denominators the difference of the ratios of sums is the ratio of the summed differences.

    Args:
        first: one value an item (a score in 0..1, bits).
        second: of the other arm, item by item the same.
        denominators: one weight an item (1, or bytes); not negative, not all zero.
        clusters: which cluster each item belongs to; an item's values under several seeds are one cluster.
        seed: of the resampling.
        n_resamples: how many resamples.

    Returns:
        Difference and interval in the unit of values / denominators; `n` counts items. All None and n = 0 where
        there are no items.

    Raises:
        ValueError: the denominators sum to zero.

    Source:
        Efron and Tibshirani 1993, chapter 13, on differences (paired).
        Differs: where scores in 0..1 differ by the same in every cluster, the bootstrap would claim certainty; the
        share of other clusters that so many could have missed (Clopper-Pearson) is granted to either extreme.
    """
    if len(first) == 0:
        return Estimate(None, None, None, 0)
    if denominators.sum() <= 0:
        raise ValueError("expected denominators with a positive sum, got zero")
    _, index = np.unique(clusters, return_inverse=True)
    differences = np.bincount(index, weights=first - second)
    sizes = np.bincount(index, weights=denominators)
    value = float(differences.sum() / sizes.sum())
    low, high = _percentiles(differences, sizes, seed, n_resamples)
    are_scores = np.all(denominators == 1) and all(np.all((arm >= 0) & (arm <= 1)) for arm in (first, second))
    if are_scores and np.ptp(differences / sizes) < 1e-12:
        slack = 1 - 0.025 ** (1 / len(sizes))
        low, high = value - slack * (1 + value), value + slack * (1 - value)
    return Estimate(value, low, high, len(first))


def _percentiles(
    numerators: Float[np.ndarray, " clusters"],
    denominators: Float[np.ndarray, " clusters"],
    seed: int,
    n_resamples: int,
) -> tuple[float, float]:
    """2.5th and 97.5th percentile of the resampled ratio, in blocks of bounded memory."""
    rng = np.random.default_rng(seed)
    n_clusters = len(numerators)
    block = max(1, min(n_resamples, _CELLS_PER_BLOCK // n_clusters))
    ratios: list[np.ndarray] = []
    for start in range(0, n_resamples, block):
        picked = rng.integers(0, n_clusters, size=(min(block, n_resamples - start), n_clusters))
        totals = denominators[picked].sum(axis=1)
        ratios.append(numerators[picked].sum(axis=1)[totals > 0] / totals[totals > 0])
    low, high = np.percentile(np.concatenate(ratios), [2.5, 97.5])
    return float(low), float(high)

"""95 % intervals of means, ratios and their differences over clustered items."""

from collections.abc import Sequence
from typing import NamedTuple

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
        Differs: where every cluster has the same share, the bootstrap would claim certainty; the share of other
        clusters that so many could have missed (the Clopper-Pearson bound) is granted to either extreme.
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
    are_scores = np.all(denominators == 1) and np.all((numerators >= 0) & (numerators <= 1))
    if are_scores and np.ptp(cluster_numerators / cluster_denominators) < 1e-12:
        slack = 1 - 0.025 ** (1 / len(cluster_numerators))
        low, high = value - slack * value, value + slack * (1 - value)
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


class RatioGroup(NamedTuple):
    """Clustered items of one group, such as the texts of one domain."""

    numerators: Float[np.ndarray, " items"]
    denominators: Float[np.ndarray, " items"]
    """Not negative, not all zero."""
    clusters: Int[np.ndarray, " items"]


def averaged_ratio(groups: Sequence[RatioGroup], seed: int, n_resamples: int = N_RESAMPLES) -> Estimate:
    """Mean over groups of the ratio of sums, each group counting alike, with its 95 % percentile interval.

    Args:
        groups: clusters are drawn within each, so that every resample holds all groups.
        seed: of the resampling.
        n_resamples: how many resamples.

    Returns:
        Value and interval; `n` counts items of all groups. All None and n = 0 where there are no groups.

    Raises:
        ValueError: the denominators of a group sum to zero.

    Source:
        Efron and Tibshirani 1993, chapter 13 (percentile interval), strata as in Davison and Hinkley 1997, 3.2.
    """
    nothing = [each._replace(numerators=np.zeros(len(each.numerators))) for each in groups]
    return averaged_ratio_difference(groups, nothing, seed, n_resamples)


def averaged_ratio_difference(
    first: Sequence[RatioGroup], second: Sequence[RatioGroup], seed: int, n_resamples: int = N_RESAMPLES
) -> Estimate:
    """Difference of two arms' averaged ratios, first minus second, with its 95 % percentile interval.

    The arms may differ in items and denominators (a model that predicts fewer bytes, one with more seeds); only the
    clusters are the same, and are drawn for both together.

    Args:
        first: groups of one arm.
        second: of the other, in the same order and with the same clusters.
        seed: of the resampling.
        n_resamples: how many resamples.

    Returns:
        Difference and interval; `n` counts the items of the first arm.

    Raises:
        ValueError: the groups do not belong together, or the denominators of one sum to zero.
    """
    if len(first) != len(second):
        raise ValueError(f"expected as many groups in both arms, got {len(first)} and {len(second)}")
    if not first:
        return Estimate(None, None, None, 0)
    value, resampled = 0.0, np.zeros(n_resamples)
    for number, (ours, theirs) in enumerate(zip(first, second, strict=True)):
        sums = _cluster_sums(ours, theirs)
        totals = sums.sum(axis=1)
        if totals[1] <= 0 or totals[3] <= 0:
            raise ValueError("expected denominators with a positive sum, got zero")
        value += totals[0] / totals[1] - totals[2] / totals[3]
        resampled += _resampled_difference(sums, np.random.default_rng([seed, number]), n_resamples)
    low, high = np.percentile(resampled, [2.5, 97.5]) / len(first)
    return Estimate(value / len(first), float(low), float(high), sum(len(each.numerators) for each in first))


def _cluster_sums(ours: RatioGroup, theirs: RatioGroup) -> Float[np.ndarray, "4 clusters"]:
    """Numerators and denominators of both arms, summed by cluster."""
    names, index = np.unique(ours.clusters, return_inverse=True)
    other_names, other_index = np.unique(theirs.clusters, return_inverse=True)
    if not np.array_equal(names, other_names):
        raise ValueError("expected the same clusters in both arms, got others")
    columns = ((index, ours.numerators), (index, ours.denominators))
    columns += ((other_index, theirs.numerators), (other_index, theirs.denominators))
    return np.stack([np.bincount(where, weights=values, minlength=len(names)) for where, values in columns])


def _resampled_difference(
    sums: Float[np.ndarray, "4 clusters"], rng: np.random.Generator, n_resamples: int
) -> Float[np.ndarray, " resamples"]:
    n_clusters = sums.shape[1]
    block = max(1, min(n_resamples, _CELLS_PER_BLOCK // (4 * n_clusters)))
    found: list[np.ndarray] = []
    for start in range(0, n_resamples, block):
        drawn = rng.integers(0, n_clusters, size=(min(block, n_resamples - start), n_clusters))
        ours, our_sizes, theirs, their_sizes = sums[:, drawn].sum(axis=2)
        # A resample of nothing but clusters without a denominator stands at the value of the whole.
        ratios = [
            np.where(sizes > 0, values / np.where(sizes > 0, sizes, 1), whole / whole_size)
            for values, sizes, whole, whole_size in (
                (ours, our_sizes, *sums[:2].sum(axis=1)),
                (theirs, their_sizes, *sums[2:].sum(axis=1)),
            )
        ]
        found.append(ratios[0] - ratios[1])
    return np.concatenate(found)


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

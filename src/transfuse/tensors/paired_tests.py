"""How likely a difference of two arms on the same items is by chance, and what remains of it among many comparisons."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from transfuse.tensors.intervals import N_RESAMPLES, RatioGroup

_CELLS_PER_BLOCK = 4_000_000


def paired_p_value(
    first: Sequence[RatioGroup], second: Sequence[RatioGroup], seed: int, n_resamples: int = N_RESAMPLES
) -> float | None:
    """Two-sided p of "both arms' averaged ratios are the same", by resampling clusters for both together.

    Twice the share of resampled differences on the other side of zero: below 0.05 where the 95 % percentile interval
    leaves zero out. No smaller than 2^(1 - clusters), what a sign test could reach at most, since so few clusters that
    all agree would else claim certainty.

    Args:
        first: groups of one arm, such as the texts of each domain; each counts alike.
        second: of the other, with the same groups in the same order, and the same clusters in each.
        seed: of the resampling.
        n_resamples: how many resamples.

    Returns:
        In 0..1; None where there are no items, or where an arm's denominators sum to zero in a group.

    Raises:
        ValueError: the groups do not belong together.

    Source:
        Efron and Tibshirani 1993, chapters 15.4 and 16 (achieved significance level from the percentile interval);
        Davison and Hinkley 1997, 4.2 (one is added to both counts).
    """
    if len(first) != len(second):
        raise ValueError(f"expected as many groups in both arms, got {len(first)} and {len(second)}")
    if not first or any(len(group.numerators) == 0 for group in (*first, *second)):
        return None
    drawn, n_clusters = np.zeros(n_resamples), 0
    for number, (ours, theirs) in enumerate(zip(first, second, strict=True)):
        sums = _cluster_sums(ours, theirs)
        if sums[1].sum() <= 0 or sums[3].sum() <= 0:
            return None
        n_clusters += sums.shape[1]
        drawn += _differences(sums, np.random.default_rng([seed, number]), n_resamples)
    n_below, n_above = int((drawn <= 0).sum()), int((drawn >= 0).sum())
    share = 2 * (1 + min(n_below, n_above)) / (n_resamples + 1)
    return min(1.0, max(share, 2.0 ** (1 - n_clusters)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P values adjusted for being several, so that the chance of any false finding stays below the level.

    Args:
        p_values: of one family of comparisons; None takes no part.

    Returns:
        Adjusted values in the order given, None where None came.

    Source:
        Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        adjusted[place] = least
    return adjusted


def _cluster_sums(ours: RatioGroup, theirs: RatioGroup) -> Float[np.ndarray, "4 clusters"]:
    """Numerators and denominators of both arms, summed by cluster."""
    names, places = np.unique(np.concatenate([ours.clusters, theirs.clusters]), return_inverse=True)
    split = np.split(places, [len(ours.clusters)])
    if any(len(np.unique(each)) < len(names) for each in split):
        raise ValueError("expected the same clusters in both arms, got others")
    columns = ((split[0], ours.numerators), (split[0], ours.denominators))
    columns += ((split[1], theirs.numerators), (split[1], theirs.denominators))
    return np.stack([np.bincount(where, weights=values, minlength=len(names)) for where, values in columns])


def _differences(
    sums: Float[np.ndarray, "4 clusters"], rng: np.random.Generator, n_resamples: int
) -> Float[np.ndarray, " resamples"]:
    """Resampled differences of the two ratios; a resample without a denominator stands at the whole's value."""
    n_clusters, found = sums.shape[1], []
    totals = sums.sum(axis=1)
    block = max(1, min(n_resamples, _CELLS_PER_BLOCK // (4 * n_clusters)))
    for start in range(0, n_resamples, block):
        size = (min(block, n_resamples - start), n_clusters)
        ours, our_sizes, theirs, their_sizes = sums[:, rng.integers(0, n_clusters, size=size)].sum(axis=2)
        ratios = [
            np.where(sizes > 0, values / np.where(sizes > 0, sizes, 1), whole / whole_size)
            for values, sizes, whole, whole_size in (
                (ours, our_sizes, totals[0], totals[1]),
                (theirs, their_sizes, totals[2], totals[3]),
            )
        ]
        found.append(ratios[0] - ratios[1])
    return np.concatenate(found)

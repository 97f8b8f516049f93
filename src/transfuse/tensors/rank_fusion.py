"""One ranking made of several."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64


def reciprocal_rank_fusion(
    rankings: Sequence[Int64[np.ndarray, " _"]], top_n: int, k: int = 60
) -> tuple[Int64[np.ndarray, " hits"], Float32[np.ndarray, " hits"]]:
    """Rows by the sum of 1 / (k + rank) over the rankings that hold them, ranks from 1.

    Args:
        rankings: rows, best first; a row that stands in one ranking twice counts by its better rank.
        top_n: how many rows are wanted at most.
        k: the greater, the less the first ranks outweigh those behind them.

    Returns:
        Rows and sums, best first; equal sums by the row's best single rank, then by the row.

    Raises:
        ValueError: `top_n` is below 1, or `k` below 0.

    Source:
        Cormack et al. 2009, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods",
        SIGIR 2009, section 2.
    """
    if top_n < 1 or k < 0:
        raise ValueError(f"expected top_n of at least 1 and k of at least 0, got {top_n} and {k}")
    firsts = [np.unique(ranking, return_index=True) for ranking in rankings]
    rows = np.concatenate([np.empty(0, dtype=np.int64), *(found for found, _ in firsts)])
    ranks = np.concatenate([np.empty(0, dtype=np.int64), *(place + 1 for _, place in firsts)])
    by_rank = np.lexsort((ranks, rows))  # so that equal sets of ranks give equal sums, to the last bit
    rows, ranks = rows[by_rank], ranks[by_rank]
    fused, starts, of_row = np.unique(rows, return_index=True, return_inverse=True)
    sums = np.bincount(of_row, weights=1 / (k + ranks), minlength=len(fused))
    best_first = np.lexsort((fused, ranks[starts], -sums))[:top_n]
    return fused[best_first], sums[best_first].astype(np.float32)

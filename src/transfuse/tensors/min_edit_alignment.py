"""The paper's token alignment: two token sequences laid along each other at least edit distance."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist


class TokenMatches(NamedTuple):
    """The source tokens of each target token; they follow each other without a gap, so a range says which."""

    source_start: Int64[np.ndarray, " target"]
    source_end: Int64[np.ndarray, " target"]
    """One past the last source token."""

    @property
    def is_single(self) -> Bool[np.ndarray, " target"]:
        """Whether exactly one source token lies along the target token."""
        return self.source_end - self.source_start == 1


def min_edit_alignment(source_tokens: Sequence[str], target_tokens: Sequence[str]) -> TokenMatches:
    """Source tokens along each target token on the path of least total edit distance.

    A path leads from the first pair of tokens to the last one, by one token on one side or on both at a time, and
    costs the edit distances of all its pairs. Of equally cheap ways it is found from the end, one token on both
    sides before one on the source's before one on the target's. Time and memory grow with the product of the
    lengths (4 bytes a pair of tokens).

    Args:
        source_tokens: strings of the tokens, without the marks that a family writes for a space.
        target_tokens: the same of the target.

    Returns:
        At least one source token for each target token.

    Raises:
        ValueError: one side has no token.

    Source:
        Wan et al. 2024, arXiv:2401.10491, section 3.3; ties as in the code published with it.
        Differs: distances are measured once for each pair of different tokens, and each row of the table is
        found at once.
    """
    if not source_tokens or not target_tokens:
        raise ValueError(
            f"expected at least one token on each side, got {len(source_tokens)} and {len(target_tokens)}"
        )
    return _cheapest_path(_least_costs(source_tokens, target_tokens))


def _least_costs(
    source_tokens: Sequence[str], target_tokens: Sequence[str]
) -> Int32[np.ndarray, "source target"]:
    """Cost of the cheapest path from the first pair to each pair."""
    sources, source_kinds = _kinds(source_tokens)
    targets, target_kinds = _kinds(target_tokens)
    distances = cdist(sources, targets, scorer=Levenshtein.distance, dtype=np.int32)[:, target_kinds]
    # A row's cost is its own distances up to there plus the best place to have come down from the row above:
    # cost[j] = sums[j] + min over k <= j of (above[k] - sums[k - 1]).
    sums = distances.cumsum(axis=1, dtype=np.int32)
    sums_before = sums - distances
    costs = np.empty((len(source_tokens), len(target_tokens)), dtype=np.int32)
    costs[0] = sums[source_kinds[0]]
    above = np.empty(len(target_tokens), dtype=np.int32)
    for row in range(1, len(source_tokens)):
        kind, earlier = source_kinds[row], costs[row - 1]
        above[0] = earlier[0]
        np.minimum(earlier[1:], earlier[:-1], out=above[1:])
        above -= sums_before[kind]
        np.minimum.accumulate(above, out=costs[row])
        costs[row] += sums[kind]
    return costs


def _cheapest_path(costs: Int32[np.ndarray, "source target"]) -> TokenMatches:
    source, target = costs.shape[0] - 1, costs.shape[1] - 1
    start, end = np.zeros(target + 1, dtype=np.int64), np.zeros(target + 1, dtype=np.int64)
    end[target] = source + 1
    while target > 0:
        if source > 0:
            both, on_source, on_target = (
                costs[source - 1, target - 1],
                costs[source - 1, target],
                costs[source, target - 1],
            )
            if on_source < both and on_source <= on_target:
                source -= 1
                continue
            if both > on_target:
                start[target], target = source, target - 1
                end[target] = source + 1
                continue
            start[target], source, target = source, source - 1, target - 1
            end[target] = source + 1
        else:
            start[target], target = 0, target - 1
            end[target] = 1
    return TokenMatches(start, end)


def _kinds(tokens: Sequence[str]) -> tuple[list[str], Int64[np.ndarray, " tokens"]]:
    """The different tokens, and which of them each token is."""
    numbers: dict[str, int] = {}
    kinds = np.array([numbers.setdefault(token, len(numbers)) for token in tokens], dtype=np.int64)
    return list(numbers), kinds

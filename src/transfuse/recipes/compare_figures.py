"""From the scores of single items to a table: pooled over seeds, with intervals, and every row against every other."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from transfuse.evaluate.scores import ItemScore, by_metric, estimates, is_better_lower
from transfuse.tensors.intervals import (
    RatioGroup,
    averaged_ratio,
    averaged_ratio_difference,
    paired_difference,
)
from transfuse.tensors.paired_tests import holm, paired_p_value
from transfuse.types import Estimate

AVERAGE_BITS = "bits_per_byte/average"
"""Mean over the texts to be learned, each counting alike."""
ALPHA = 0.05


@dataclass(frozen=True)
class PairedDifference:
    """Two rows on the items that both have."""

    metric: str
    first: str
    second: str
    difference: Estimate
    """First minus second."""
    p_value: float | None
    adjusted_p: float | None = None
    """For being one of several, after Holm."""

    @property
    def is_shown(self) -> bool:
        """Whether a difference is shown among all of its family."""
        return self.adjusted_p is not None and self.adjusted_p < ALPHA


class RowScores:
    """What a row scored under each training seed; one that trains nothing is the same under all."""

    def __init__(self, by_seed: Sequence[Sequence[ItemScore]], learned_texts: Sequence[str] = ()) -> None:
        self._by_seed = [by_metric(scores) for scores in by_seed]
        self._learned = [f"bits_per_byte/{name}" for name in learned_texts]

    @property
    def metrics(self) -> list[str]:
        """In the order in which they first occur; the average of the texts to be learned follows them."""
        names = list(dict.fromkeys(metric for scores in self._by_seed for metric in scores))
        if len(self._learned) > 1 and set(self._learned) <= set(names):
            names.insert(1 + max(names.index(each) for each in self._learned), AVERAGE_BITS)
        return names

    def estimates(self, seed: int) -> dict[str, Estimate]:
        """Each metric, items of all training seeds pooled, with intervals over clusters."""
        pooled = [score for scores in self._by_seed for own in scores.values() for score in own]
        found = estimates(pooled, seed)
        if AVERAGE_BITS in self.metrics:
            groups = [_group(self._pooled(metric)) for metric in self._learned]
            found[AVERAGE_BITS] = averaged_ratio(groups, seed)
        return {metric: found[metric] for metric in self.metrics}

    def parts(self, metric: str) -> list[str]:
        """The metrics that make one up: itself, or those of an average."""
        return self._learned if metric == AVERAGE_BITS else [metric]

    def scores(self, metric: str, n_seeds: int) -> list[ItemScore]:
        """Of all seeds, each item named with its seed; a single one stands for as many as the other row has."""
        by_seed = self._by_seed if len(self._by_seed) > 1 else self._by_seed * n_seeds
        return [
            score._replace(item=f"{n}:{score.item}")
            for n, scores in enumerate(by_seed)
            for score in _numbered(scores.get(metric, []))
        ]

    @property
    def n_seeds(self) -> int:
        """Training seeds."""
        return len(self._by_seed)

    def _pooled(self, metric: str) -> list[ItemScore]:
        return [score for scores in self._by_seed for score in scores.get(metric, [])]


def paired(
    metric: str, first: tuple[str, RowScores], second: tuple[str, RowScores], seed: int
) -> PairedDifference | None:
    """One row minus another by one metric, over the items that both have, clusters drawn for both together.

    Args:
        metric: what was measured of both.
        first: name and scores.
        second: name and scores.
        seed: of the bootstrap.

    Returns:
        The difference, with its p value not yet adjusted; None where they have no item in common.
    """
    (name, ours), (other, theirs) = first, second
    if metric not in ours.metrics or metric not in theirs.metrics:
        return None
    n_seeds = max(ours.n_seeds, theirs.n_seeds)
    groups: list[tuple[RatioGroup, RatioGroup]] = []
    for part in ours.parts(metric):
        pairs = list(_pairs(ours.scores(part, n_seeds), theirs.scores(part, n_seeds)))
        if pairs:
            mine, others = ([pair[n] for pair in pairs] for n in (0, 1))
            groups.append((_group(mine), _group(others)))
    if not groups or any(each.denominators.sum() <= 0 for group in groups for each in group):
        return None
    left, right = ([group[n] for group in groups] for n in (0, 1))
    if len(groups) == 1 and np.array_equal(left[0].denominators, right[0].denominators):
        difference = paired_difference(
            left[0].numerators, right[0].numerators, left[0].denominators, left[0].clusters, seed
        )
    else:
        difference = averaged_ratio_difference(left, right, seed)
    return PairedDifference(metric, name, other, difference, paired_p_value(left, right, seed))


def adjusted(family: Sequence[PairedDifference]) -> list[PairedDifference]:
    """The same comparisons with p values adjusted for being so many."""
    values = holm([each.p_value for each in family])
    return [
        PairedDifference(each.metric, each.first, each.second, each.difference, each.p_value, value)
        for each, value in zip(family, values, strict=True)
    ]


def against_reference(rows: Mapping[str, RowScores], reference: str, seed: int) -> list[PairedDifference]:
    """Every other row against one, by every metric; adjusted over the rows within each metric.

    Args:
        rows: name to scores, in order.
        reference: name of the row that the others are held against.
        seed: of the bootstrap.

    Returns:
        Differences, metric by metric; rows and metrics that cannot be compared are left out.
    """
    found: list[PairedDifference] = []
    for metric in rows[reference].metrics:
        family = [
            difference
            for name, scores in rows.items()
            if name != reference
            and (difference := paired(metric, (name, scores), (reference, rows[reference]), seed)) is not None
        ]
        found += adjusted(family)
    return found


def all_pairs(rows: Mapping[str, RowScores], metric: str, seed: int) -> list[PairedDifference]:
    """Each row against each later one by one metric, adjusted over all pairs."""
    names = list(rows)
    family = [
        difference
        for n, first in enumerate(names)
        for second in names[n + 1 :]
        if (difference := paired(metric, (first, rows[first]), (second, rows[second]), seed)) is not None
    ]
    return adjusted(family)


def best_row(found: Mapping[str, Mapping[str, Estimate]], metric: str) -> str | None:
    """The row with the best value of a metric; None where no row has one."""
    values = {name: row[metric].value for name, row in found.items() if metric in row}
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return None
    choose = min if is_better_lower(metric) else max
    return choose(known, key=lambda name: known[name])


def _numbered(scores: Sequence[ItemScore]) -> Iterator[ItemScore]:
    """Items that a system holds several times told apart."""
    seen: Counter[str] = Counter()
    for score in scores:
        seen[score.item] += 1
        n = seen[score.item]
        yield score if n == 1 else score._replace(item=f"{score.item}#{n}")


def _pairs(first: Sequence[ItemScore], second: Sequence[ItemScore]) -> Iterator[tuple[ItemScore, ItemScore]]:
    """Scores of the same item; where the rows file it under different clusters, that of the first counts."""
    others = {score.item: score for score in second}
    for score in first:
        if score.item in others:
            yield score, others[score.item]._replace(cluster=score.cluster)


def _group(scores: Sequence[ItemScore]) -> RatioGroup:
    numbers = {name: n for n, name in enumerate(sorted({score.cluster for score in scores}))}
    return RatioGroup(
        np.array([score.numerator for score in scores], dtype=float),
        np.array([score.denominator for score in scores], dtype=float),
        np.array([numbers[score.cluster] for score in scores], dtype=np.int64),
    )

"""Scores of single items: the one form that every metric takes before it is averaged, compared or stored."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from transfuse.errors import DataError
from transfuse.io.jsonl import read_jsonl, write_jsonl
from transfuse.tensors.intervals import (
    RatioGroup,
    averaged_ratio_difference,
    cluster_bootstrap,
    paired_difference,
)
from transfuse.types import Estimate

SCORES_FILE = "scores.jsonl"

LOWER_IS_BETTER = frozenset(
    {"bits_per_byte", "wrong_answers", "perplexity", "word_perplexity", "byte_perplexity"}
)
"""Metrics, without what they are measured on, of which less is better."""


def is_better_lower(metric: str) -> bool:
    """Whether less of a metric is better, whatever it is measured on."""
    return metric.partition("/")[0] in LOWER_IS_BETTER


class ItemScore(NamedTuple):
    """What one item is worth by one metric, whose value is the sum of numerators over the sum of denominators."""

    metric: str
    """As in `report.json`: `exact_match/gsm8k`, `bits_per_byte/wiki`."""
    item: str
    """Stable id of the item within its metric."""
    cluster: str
    """What is resampled together: the fact, the subject, the text; the item itself where nothing groups."""
    numerator: float
    """A score in 0..1, or bits."""
    denominator: float
    """1, or bytes."""


def estimates(scores: Iterable[ItemScore], seed: int) -> dict[str, Estimate]:
    """Each metric's value with its 95 % interval, resampling whole clusters.

    Args:
        scores: of any metrics; items of several training seeds may stand side by side.
        seed: of the bootstrap.

    Returns:
        Metric to estimate, in the order in which metrics first occur; a metric whose denominators are all 0 is None.
    """
    return {metric: _estimate(own, seed) for metric, own in by_metric(scores).items()}


def paired_differences(
    first: Iterable[ItemScore], second: Iterable[ItemScore], seed: int
) -> dict[str, Estimate]:
    """First minus second by metric, over the items that both have, with clusters drawn for both together.

    Args:
        first: of one system; the n-th score of an item is paired with the other's n-th (training seeds).
        second: of the other.
        seed: of the bootstrap.

    Returns:
        Metric to difference, in the order of the first; `n` counts pairs, and metrics without a pair are left out.
    """
    others = by_metric(second)
    found: dict[str, Estimate] = {}
    for metric, own in by_metric(first).items():
        pairs = list(_pairs(own, others.get(metric, [])))
        if pairs:
            found[metric] = _difference(pairs, seed)
    return found


def by_metric(scores: Iterable[ItemScore]) -> dict[str, list[ItemScore]]:
    """Scores of each metric, in the order in which metrics first occur."""
    groups: dict[str, list[ItemScore]] = {}
    for score in scores:
        groups.setdefault(score.metric, []).append(score)
    return groups


def save_scores(path: Path, scores: Iterable[ItemScore]) -> None:
    """Write scores, one a line."""
    write_jsonl(path, [score._asdict() for score in scores])


def load_scores(path: Path) -> list[ItemScore]:
    """Read what `save_scores` wrote.

    Args:
        path: a `scores.jsonl`.

    Returns:
        The scores, in order.

    Raises:
        DataError: a line holds other keys than a score.
    """
    scores: list[ItemScore] = []
    for line in read_jsonl(path):
        try:
            score = ItemScore(**line.value)
            scores.append(
                score._replace(numerator=float(score.numerator), denominator=float(score.denominator))
            )
        except (TypeError, ValueError) as err:
            raise DataError(
                f"{path}:{line.number}: expected a score with the keys {', '.join(ItemScore._fields)}, got "
                f"{str(line.value)[:80]}; measure again."
            ) from err
    return scores


def _estimate(scores: Sequence[ItemScore], seed: int) -> Estimate:
    group = _group(scores)
    if group.denominators.sum() <= 0:
        return Estimate(None, None, None, 0)
    return cluster_bootstrap(*group, seed)


def _difference(pairs: Sequence[tuple[ItemScore, ItemScore]], seed: int) -> Estimate:
    # An item that two systems file under different clusters keeps that of the first.
    ours = _group([one for one, _ in pairs])
    theirs = _group([other._replace(cluster=one.cluster) for one, other in pairs])
    if ours.denominators.sum() <= 0 or theirs.denominators.sum() <= 0:
        return Estimate(None, None, None, 0)
    if np.array_equal(ours.denominators, theirs.denominators):
        return paired_difference(ours.numerators, theirs.numerators, ours.denominators, ours.clusters, seed)
    return averaged_ratio_difference([ours], [theirs], seed)


def _pairs(first: Sequence[ItemScore], second: Sequence[ItemScore]) -> Iterator[tuple[ItemScore, ItemScore]]:
    waiting: dict[str, list[ItemScore]] = defaultdict(list)
    for score in second[::-1]:
        waiting[score.item].append(score)
    for score in first:
        if waiting[score.item]:
            yield score, waiting[score.item].pop()


def _group(scores: Sequence[ItemScore]) -> RatioGroup:
    return RatioGroup(
        np.array([score.numerator for score in scores], dtype=float),
        np.array([score.denominator for score in scores], dtype=float),
        _clusters([score.cluster for score in scores]),
    )


def _clusters(names: Sequence[str]) -> Int[np.ndarray, " items"]:
    """A number for each cluster, the same in whatever order they stand."""
    numbers = {name: n for n, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], dtype=np.int64)

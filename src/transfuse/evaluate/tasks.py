"""Tasks: replies asked for and scored, estimates of an arm, and differences of two arms on the same items."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Int

from transfuse.evaluate.task_losses import ItemLoss
from transfuse.generate.protocol import Generator, Reply
from transfuse.generate.task_requests import task_requests
from transfuse.tensors.intervals import cluster_bootstrap, paired_difference
from transfuse.text.task_answers import TASK_METRICS, AnswerKind, score_reply
from transfuse.types import AnswerRecord, Estimate, TaskItem

_Measured = TypeVar("_Measured", AnswerRecord, ItemLoss)


def ask_tasks(
    items: Sequence[TaskItem],
    generator: Generator,
    kind: AnswerKind,
    *,
    max_new_tokens: int,
    is_one_line: bool | None = None,
    on_replies: Callable[[int, int], None] = lambda n_done, n_all: None,
) -> list[AnswerRecord]:
    """Ask each item once, greedily, and score the reply.

    Args:
        items: conversations with their gold answers.
        generator: who answers.
        kind: what the gold answers are; see `answer_kind`.
        max_new_tokens: a reply that has not ended by then is cut, and scored as far as it goes.
        is_one_line: whether a reply ends at its first line break; None means where no gold answer has one.
        on_replies: called with the numbers of items done and to do.

    Returns:
        One record an item, in order; one that cannot be scored carries its reason and no scores.
    """
    asked = [item for item in items if item.messages]
    n_done = 0

    def count(_index: int, _reply: Reply) -> None:
        nonlocal n_done
        n_done += 1
        on_replies(n_done, len(asked))

    requests = task_requests(asked, max_new_tokens=max_new_tokens, is_one_line=is_one_line)
    replies = iter(generator.generate(requests, count))
    unasked = Reply("", error="a plain text, which asks nothing")
    return [_scored(item, next(replies) if item.messages else unasked, kind) for item in items]


def task_estimates(records: Sequence[AnswerRecord], kind: AnswerKind, seed: int) -> dict[str, Estimate]:
    """Mean of each metric over the scorable records, with its 95 % interval over items.

    Args:
        records: of one row of the report; those of several training seeds may stand side by side.
        kind: names the metrics.
        seed: of the bootstrap.

    Returns:
        Metric name to estimate, each in 0..1; None with n = 0 where nothing can be scored.
    """
    scored = [record for record in records if record.scores]
    clusters = _clusters([record.item for record in scored])
    return {
        metric: cluster_bootstrap(
            np.array([record.scores[metric] for record in scored], dtype=float),
            np.ones(len(scored)),
            clusters,
            seed,
        )
        for metric in TASK_METRICS[kind]
    }


def answer_bits_per_byte(losses: Sequence[ItemLoss], seed: int) -> Estimate:
    """Total bits of gold answers over their total bytes, with a 95 % interval over items.

    Args:
        losses: those that carry a reason are left out; those of several training seeds may stand side by side.
        seed: of the bootstrap.

    Returns:
        Bits per byte; n counts losses.
    """
    measured = [loss for loss in losses if loss.n_bytes]
    bits = np.array([loss.nll_nats for loss in measured], dtype=float) / math.log(2)
    sizes = np.array([loss.n_bytes for loss in measured], dtype=float)
    return cluster_bootstrap(bits, sizes, _clusters([loss.item for loss in measured]), seed)


def score_difference(
    first: Sequence[Sequence[AnswerRecord]], second: Sequence[Sequence[AnswerRecord]], metric: str, seed: int
) -> Estimate:
    """How much better the first arm does, over the items that both have scores for.

    Args:
        first: records of one arm, one sequence a training seed.
        second: of the other arm, seed by seed the same.
        metric: whose values are compared.
        seed: of the bootstrap, which draws items, each with all its seeds.

    Returns:
        Difference of means, first minus second; n counts pairs.

    Raises:
        ValueError: the arms have different numbers of seeds.
    """
    pairs = [
        (one.item, one.scores[metric], other.scores[metric])
        for run, other_run in zip(first, second, strict=True)
        for one, other in _paired(run, other_run)
        if metric in one.scores and metric in other.scores
    ]
    ours, theirs = (np.array([pair[side] for pair in pairs], dtype=float) for side in (1, 2))
    return paired_difference(ours, theirs, np.ones(len(pairs)), _clusters([pair[0] for pair in pairs]), seed)


def bits_difference(
    first: Sequence[Sequence[ItemLoss]], second: Sequence[Sequence[ItemLoss]], seed: int
) -> Estimate:
    """How many bits per byte the first arm needs more, over the items that both have losses for.

    Args:
        first: losses of one arm, one sequence a training seed.
        second: of the other arm, seed by seed the same.
        seed: of the bootstrap, which draws items, each with all its seeds.

    Returns:
        Difference of bits per byte, first minus second, negative where the first arm is better; n counts pairs.

    Raises:
        ValueError: the arms have different numbers of seeds, or an item's answer other bytes in one than in the other.
    """
    pairs = [
        (one, other)
        for run, other_run in zip(first, second, strict=True)
        for one, other in _paired(run, other_run)
        if one.n_bytes and other.n_bytes
    ]
    strays = [one.item for one, other in pairs if one.n_bytes != other.n_bytes]
    if strays:
        raise ValueError(f"expected the same answers in both arms, got other bytes of {strays[0]!r}")
    ours, theirs = (np.array([pair[side].nll_nats for pair in pairs]) / math.log(2) for side in (0, 1))
    sizes = np.array([one.n_bytes for one, _ in pairs], dtype=float)
    return paired_difference(ours, theirs, sizes, _clusters([one.item for one, _ in pairs]), seed)


def _scored(item: TaskItem, reply: Reply, kind: AnswerKind) -> AnswerRecord:
    scores: dict[str, float] = {}
    reason = reply.error
    if not reason:
        try:
            scores = score_reply(reply.text, [item.answer, *item.aliases], kind)
        except ValueError as err:
            reason = str(err)
    return AnswerRecord(item.id, item.group, item.question, item.answer, reply.text, scores, reason)


def _paired(first: Sequence[_Measured], second: Sequence[_Measured]) -> Iterator[tuple[_Measured, _Measured]]:
    others = {each.item: each for each in second}
    return ((each, others[each.item]) for each in first if each.item in others)


def _clusters(items: Sequence[str]) -> Int[np.ndarray, " items"]:
    """A number for each item, the same in whatever order they stand."""
    numbers = {item: n for n, item in enumerate(sorted(set(items)))}
    return np.array([numbers[item] for item in items], dtype=np.int64)

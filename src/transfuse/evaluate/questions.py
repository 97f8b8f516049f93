"""Questions asked of a model, and what its answers are worth."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from transfuse.generate.protocol import Generator, Reply, Request
from transfuse.tensors.intervals import cluster_bootstrap
from transfuse.text.answers import ANSWER_METRICS, score_answer
from transfuse.types import AnswerRecord, Estimate, QAPair


def ask_questions(
    pairs: Sequence[QAPair],
    generator: Generator,
    *,
    contexts: Mapping[str, str | None] | None = None,
    max_new_tokens: int = 64,
    on_replies: Callable[[int, int], None] | None = None,
) -> list[AnswerRecord]:
    """Ask each question once, greedily, and score the answer.

    Args:
        pairs: questions with their gold answers.
        generator: who answers.
        contexts: text put before the question, by `QAPair.id`; every pair must be there, with None where its
            question stands alone.
        max_new_tokens: an answer that has not ended by then is cut.
        on_replies: called with the numbers of questions done and asked.

    Returns:
        One record a pair, in order; one that cannot be scored carries its reason and no scores.
    """
    requests = [
        Request(pair.question, contexts[pair.id] if contexts is not None else None, max_new_tokens)
        for pair in pairs
    ]
    n_done = 0

    def count(index: int, reply: Reply) -> None:
        nonlocal n_done
        n_done += 1
        if on_replies:
            on_replies(n_done, len(requests))

    replies = generator.generate(requests, count)
    return [_record(pair, reply.text, reply.error) for pair, reply in zip(pairs, replies, strict=True)]


def _record(pair: QAPair, answer: str, error: str) -> AnswerRecord:
    scores: dict[str, float] = {}
    reason = error
    if not error:
        try:
            scores = score_answer(answer, [pair.answer, *pair.aliases])
        except ValueError as err:
            reason = str(err)
    return AnswerRecord(pair.id, pair.source, pair.question, pair.answer, answer, scores, reason)


def answer_estimates(records: Sequence[AnswerRecord], seed: int) -> dict[str, Estimate]:
    """Mean of each metric over the scorable records, with its 95 % interval over sources.

    Args:
        records: of one row of the report.
        seed: of the bootstrap.

    Returns:
        Metric name to estimate, each in 0..1; None with n = 0 where nothing can be scored.
    """
    scorable = [record for record in records if record.scores]
    sources = {source: number for number, source in enumerate(sorted({record.source for record in scorable}))}
    clusters = np.array([sources[record.source] for record in scorable], dtype=np.int64)
    ones = np.ones(len(scorable))
    return {
        metric: cluster_bootstrap(
            np.array([r.scores[metric] for r in scorable], dtype=float), ones, clusters, seed
        )
        for metric in ANSWER_METRICS
    }


def estimate_json(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
    """Estimates as `report.json` holds them."""
    return {name: estimate._asdict() for name, estimate in estimates.items()}

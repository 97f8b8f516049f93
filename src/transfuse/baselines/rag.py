"""Retrieval instead of training: the passages that a search finds are put before the question.

Source: Ovadia et al. 2023, arXiv:2312.05934 (untouched and trained model, each with and without retrieval). Differs:
answers are generated and graded like those of every other row, not chosen from a list; how many passages are given is
chosen on training questions.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from transfuse.knowledge.passages import searched_text
from transfuse.knowledge.records import Hit, Passage
from transfuse.tensors.intervals import cluster_bootstrap
from transfuse.text.answers import score_answer
from transfuse.text.sentences import split_sentences
from transfuse.types import Dropped, Estimate, QAPair

BETWEEN_PASSAGES = "\n\n"

Fits = Callable[[str, str], bool]
"""Whether a question with a context before it leaves the model room for its answer."""


class ChosenK(NamedTuple):
    """How many passages are given, and how each candidate did."""

    k: int
    f1_by_k: dict[int, Estimate]


def tuning_questions(pairs: Sequence[QAPair], n_questions: int, seed: int) -> list[QAPair]:
    """A sample in which every source has a question before any has two.

    Args:
        pairs: training pairs.
        n_questions: how many to draw; fewer where there are no more.
        seed: of the draw.

    Returns:
        The sample, round by round.
    """
    rng = random.Random(seed)  # noqa: S311 - no secret
    by_source: dict[str, list[QAPair]] = {}
    for pair in pairs:
        by_source.setdefault(pair.source, []).append(pair)
    sources = [rng.sample(members, len(members)) for members in by_source.values()]
    rng.shuffle(sources)
    n_rounds = max(map(len, sources), default=0)
    drawn = [members[turn] for turn in range(n_rounds) for members in sources if turn < len(members)]
    return drawn[:n_questions]


def retrieved_contexts(
    pairs: Sequence[QAPair], hits: Mapping[str, Sequence[Hit]], k: int, fits: Fits
) -> tuple[dict[str, str | None], list[Dropped]]:
    """The best passages of each question as one text, the best one first, each under its heading path.

    Args:
        pairs: the questions.
        hits: what was found, best first, by `QAPair.id`.
        k: passages to give.
        fits: says what the model can read; passages are left out whole, from the worst one up, and only of the best
            one does the beginning stay where it is too long by itself, in whole sentences and at least one.

    Returns:
        Context by `QAPair.id`, None where nothing was found; and for each question of which something had to be left
        out, or for which nothing was found, why.
    """
    contexts: dict[str, str | None] = {}
    dropped: list[Dropped] = []
    for pair in pairs:
        passages = [hit.passage for hit in hits[pair.id][:k]]
        contexts[pair.id], lack = _context(pair.question, passages, fits)
        if lack:
            dropped.append(Dropped("passage", pair.question, lack))
    return contexts, dropped


def _context(question: str, passages: Sequence[Passage], fits: Fits) -> tuple[str | None, str]:
    """The longest run of passages that fits, and what is wrong with it."""
    if not passages:
        return None, "the search found no passage, so the question is asked without one"
    shown = [searched_text(passage, headings=True) for passage in passages]
    for n in range(len(shown), 0, -1):
        context = BETWEEN_PASSAGES.join(shown[:n])
        if fits(question, context):
            lack = f"the model's context holds only the first {n} of {len(shown)} passages"
            return context, lack if n < len(shown) else ""
    best = passages[0]
    lead = shown[0].removesuffix(best.text)
    ends = [end for _, end in split_sentences(best.text)] or [len(best.text)]
    beginnings = [lead + best.text[:end] for end in reversed(ends)]
    fitting = next((text for text in beginnings if fits(question, text)), beginnings[-1])
    return fitting, f"the model's context holds only the beginning of the first of {len(shown)} passages"


def retrieval_recall(pairs: Iterable[QAPair], contexts: Mapping[str, str | None], seed: int) -> Estimate:
    """Share of the questions whose context contains the gold answer or an alias.

    Args:
        pairs: the questions; those whose gold answer holds no word to look for are passed over.
        contexts: by `QAPair.id`; None counts as a context that does not contain it.
        seed: of the bootstrap over sources.

    Returns:
        The share with its 95 % interval.
    """
    found: list[float] = []
    sources: list[str] = []
    for pair in pairs:
        try:
            scores = score_answer(contexts[pair.id] or "", [pair.answer, *pair.aliases])
        except ValueError:  # as an answer to it could not be scored
            continue
        found.append(scores["contains"])
        sources.append(pair.source)
    numbers = {source: number for number, source in enumerate(sorted(set(sources)))}
    clusters = np.array([numbers[source] for source in sources], dtype=np.int64)
    return cluster_bootstrap(np.array(found, dtype=float), np.ones(len(found)), clusters, seed)


def tune_k(candidates: Iterable[int], f1_of: Callable[[int], Estimate]) -> ChosenK:
    """The smallest number of passages with the greatest mean F1.

    Args:
        candidates: at least one; repeated ones are tried once.
        f1_of: mean F1 of the tuning questions, given so many passages.

    Returns:
        The number, and every candidate's F1 in order of size. A candidate with no answer that could be scored is
        taken only where that holds for all.
    """
    f1_by_k = {k: f1_of(k) for k in sorted(set(candidates))}
    scored = {k: estimate.value for k, estimate in f1_by_k.items() if estimate.value is not None}
    best = max(scored, key=lambda k: scored[k]) if scored else min(f1_by_k)  # max: the first of equals
    return ChosenK(best, f1_by_k)

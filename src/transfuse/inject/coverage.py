"""Which facts a set of question-answer pairs carries, and how often: by link, by words, by similarity."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float64

from transfuse.inject.fact_words import FUNCTION_WORDS, NAMED_NUMBERS
from transfuse.text.answers import answer_words
from transfuse.types import Fact, QAPair

ANSWER_SHARE = 0.5
"""A pair carries a fact only where the fact holds this share of the weight of the answer's words."""
WORDS_SHARE = 0.25
"""The same of the words of question and answer together."""
WORDS_MARGIN = 0.01
"""How far a fact's share of the words may lie below that of the fact that holds most of them."""
SIMILARITY = 0.6
"""Cosine of fact and pair from which on the pair carries the fact, with all-MiniLM-L6-v2."""
SIMILARITY_MARGIN = 0.01
"""How far a fact's cosine may lie below that of the fact that is nearest to the pair."""

_PAIRS_PER_STEP = 4096
_ORDINAL = re.compile(r"(\d+)(?:st|nd|rd|th)")
_ENDINGS = {"ing": "", "ies": "y", "ied": "y", "es": "", "ed": "", "s": ""}
_FORM_WORDS = FUNCTION_WORDS | {"many", "much", "name"}


@dataclass(frozen=True, slots=True)
class FactCoverage:
    """How many pairs carry one fact."""

    fact_id: str
    n_linked: int
    """Pairs that name it as their source, or as a further fact that the answer takes."""
    n_by_answer: int
    """Pairs whose words stand in it."""
    n_by_similarity: int | None
    """Pairs near to it; None where nothing was embedded."""
    best_similarity: float | None
    """Cosine of the nearest pair; None where nothing was embedded or there is no pair."""
    pair_ids: tuple[str, ...]
    """Pairs that any of the three counts, in their order."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a set of pairs carries of a list of facts."""

    facts: list[FactCoverage]
    """One a fact, in the facts' order."""
    uncovered_by_answer: list[str]
    """Ids of facts whose words no pair has."""
    uncovered_by_similarity: list[str] | None
    """Ids of facts that no pair is near to; None where nothing was embedded."""
    shares: dict[str, float]
    """Share of the facts with at least one pair, by measure: `linked`, `by_answer`, and `by_similarity` where
    it was measured. Empty without facts."""

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)


def coverage(
    facts: Sequence[Fact],
    pairs: Sequence[QAPair],
    *,
    embed: Callable[[Sequence[str]], np.ndarray] | None,
    threshold: float = SIMILARITY,
) -> Coverage:
    """How many pairs carry each fact.

    By answer: words are compared without endings, number words as digits, function words left out; a word
    weighs the more the fewer facts hold it. A pair carries a fact that holds at least `ANSWER_SHARE` of its
    answer and `WORDS_SHARE` of question and answer together, unless another such fact holds over `WORDS_MARGIN`
    more. By similarity: the cosine of the fact with `question answer` reaches the threshold, and no other
    fact is nearer by over `SIMILARITY_MARGIN`. Endings and function words are English; in other languages the
    weights alone tell content from form. A question about what the document does not say carries no fact.

    Args:
        facts: whose coverage is asked.
        pairs: of either basis; those of one selection, or of a whole file.
        embed: gives one row of L2 norm 1 for each text; None leaves similarity unmeasured.
        threshold: of the cosine; the default is calibrated for `minilm-l6-v2` by `benchmarks/coverage.py`.

    Returns:
        Counts of each fact, in the facts' order, and the shares of facts that are covered at all.

    Source:
        Mecklenburg et al. 2024, arXiv:2404.00213, Figure 2: the number of pairs per fact by cosine >= 0.945 of
        ada-002 embeddings.
        Differs: another embedding model, hence another threshold; a pair near to many facts counts for the
        nearest ones only, since one threshold for all finds too few or too many; words and links are
        counted beside it.
    """
    told = [pair for pair in pairs if pair.kind != "unknown"]
    place_of, words = {fact.id: place for place, fact in enumerate(facts)}, FactWords(facts)
    linked = _numbers_by_fact([_linked(pair, place_of) for pair in told], len(facts))
    by_answer = _numbers_by_fact([words.carried(pair) for pair in told], len(facts))
    by_similarity, nearest = (
        _similar(facts, told, embed, threshold) if embed and facts and told else ([[] for _ in facts], None)
    )
    counts = [
        FactCoverage(
            fact_id=fact.id,
            n_linked=len(linked[place]),
            n_by_answer=len(by_answer[place]),
            n_by_similarity=len(by_similarity[place]) if embed else None,
            best_similarity=float(nearest[place]) if nearest is not None else None,
            pair_ids=tuple(
                told[number].id
                for number in sorted({*linked[place], *by_answer[place], *by_similarity[place]})
            ),
        )
        for place, fact in enumerate(facts)
    ]
    return _summed_up(counts)


def pair_text(pair: QAPair) -> str:
    """What is embedded of a pair."""
    return f"{pair.question} {pair.answer}"


def near_the_top(scores: np.ndarray, floor: float, margin: float) -> np.ndarray:
    """Which facts reach the floor and lie within the margin of the row's highest score; facts are the last axis."""
    return (scores >= floor) & (scores >= scores.max(axis=-1, keepdims=True, initial=-np.inf) - margin)


@final
class FactWords:
    """The words of a list of facts, weighted by how few of the facts hold them."""

    def __init__(self, facts: Sequence[Fact]) -> None:
        places_of: dict[str, list[int]] = {}
        for place, fact in enumerate(facts):
            for word in content_words(fact.fact):
                places_of.setdefault(word, []).append(place)
        self._n_facts = len(facts)
        self._places_of = {word: np.array(places) for word, places in places_of.items()}

    def shares(
        self, question: str, answer: str
    ) -> tuple[Float64[np.ndarray, " facts"], Float64[np.ndarray, " facts"]]:
        """Which share of the weight of the answer's words, and of both texts' words, each fact holds."""
        in_answer = content_words(answer)
        answer_held, answer_weight = self._held(in_answer)
        question_held, question_weight = self._held(content_words(question) - in_answer)
        return (
            answer_held / (answer_weight or 1.0),
            (answer_held + question_held) / (answer_weight + question_weight or 1.0),
        )

    def carried(self, pair: QAPair) -> list[int]:
        """Places of the facts that carry a pair, with its answer or one of its aliases."""
        is_carried = np.zeros(self._n_facts, dtype=bool)
        for answer in (pair.answer, *pair.aliases):
            answer_shares, word_shares = self.shares(pair.question, answer)
            word_shares[answer_shares < ANSWER_SHARE] = 0
            is_carried |= near_the_top(word_shares, WORDS_SHARE, WORDS_MARGIN)
        return np.flatnonzero(is_carried).tolist()

    def _held(self, words: Set[str]) -> tuple[Float64[np.ndarray, " facts"], float]:
        """What the words that each fact holds weigh, and what all weigh; those of no fact weigh most."""
        held, weight = np.zeros(self._n_facts), 0.0
        for word in sorted(words):  # in one order, so that sums are the same in every process
            places = self._places_of.get(word, ())
            own = math.log((self._n_facts + 1) / (len(places) + 0.5))
            weight += own
            if len(places):
                held[places] += own
        return held, weight


def content_words(text: str) -> set[str]:
    """Words of the normalised text without function words, endings cut, numbers as digits.

    Function words alone are kept where a text holds nothing else.
    """
    words = answer_words(text)
    return {_stem(word) for word in words if word not in _FORM_WORDS} or set(words)


def _stem(word: str) -> str:
    if word in NAMED_NUMBERS:
        return NAMED_NUMBERS[word]
    if ordinal := _ORDINAL.fullmatch(word):
        return ordinal[1]
    ending = next((end for end in _ENDINGS if word.endswith(end) and len(word) - len(end) >= 3), "")
    word = word.removesuffix(ending) + _ENDINGS.get(ending, "")
    return word.rstrip("e") if len(word) > 3 else word


def _linked(pair: QAPair, place_of: Mapping[str, int]) -> list[int]:
    names = (pair.source, *pair.also) if pair.basis == "fact" else pair.also
    return list(dict.fromkeys(place_of[name] for name in names if name in place_of))


def _numbers_by_fact(places_by_pair: Iterable[Iterable[int]], n_facts: int) -> list[list[int]]:
    """From the facts of each pair to the pairs of each fact."""
    numbers: list[list[int]] = [[] for _ in range(n_facts)]
    for number, places in enumerate(places_by_pair):
        for place in places:
            numbers[place].append(number)
    return numbers


def _similar(
    facts: Sequence[Fact],
    pairs: Sequence[QAPair],
    embed: Callable[[Sequence[str]], np.ndarray],
    threshold: float,
) -> tuple[list[list[int]], np.ndarray]:
    """Pairs near to each fact, and the cosine of each fact's nearest pair."""
    fact_rows = embed([fact.fact for fact in facts])
    pair_rows = embed([pair_text(pair) for pair in pairs])
    nearest = np.full(len(facts), -np.inf)
    places_by_pair: list[list[int]] = []
    for start in range(0, len(pairs), _PAIRS_PER_STEP):
        cosines = pair_rows[start : start + _PAIRS_PER_STEP] @ fact_rows.T
        nearest = np.maximum(nearest, cosines.max(axis=0))
        is_carried = near_the_top(cosines, threshold, SIMILARITY_MARGIN)
        places_by_pair += [np.flatnonzero(row).tolist() for row in is_carried]
    return _numbers_by_fact(places_by_pair, len(facts)), nearest


def _summed_up(facts: list[FactCoverage]) -> Coverage:
    counts: dict[str, list[int]] = {
        "linked": [fact.n_linked for fact in facts],
        "by_answer": [fact.n_by_answer for fact in facts],
        "by_similarity": [n for fact in facts if (n := fact.n_by_similarity) is not None],
    }
    uncovered = {
        name: [fact.fact_id for fact, n in zip(facts, numbers, strict=False) if not n]
        for name, numbers in counts.items()
    }
    return Coverage(
        facts=facts,
        uncovered_by_answer=uncovered["by_answer"],
        uncovered_by_similarity=uncovered["by_similarity"] if counts["by_similarity"] else None,
        shares={name: sum(n > 0 for n in ns) / len(ns) for name, ns in counts.items() if ns},
    )

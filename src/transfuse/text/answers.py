"""Scores of a short answer against its gold answer.

Normalisation, before every comparison: Unicode NFKC, lower case, thousands separators removed (`67,827` =
`67827`), every other sign than letters, digits, decimal points and percent becomes a space, and the articles
a, an, the are dropped. Comparisons are between word lists, so `12` is not contained in `2012`.

Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1 (exact match, F1).
Differs: the published script deletes punctuation, so that `38-35` equals `3835` and `1.5` equals `15`.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_WORDS = re.compile(r"\d+(?:\.\d+)+|%|[^\s.%]+")
_APOSTROPHES = re.compile(r"(?<=\w)['’](?=\w)")
_ASCII_SIGNS = {code: " " for code in range(128) if not chr(code).isalnum() and chr(code) not in ".%"}
_ARTICLES = frozenset({"a", "an", "the"})


def answer_words(text: str) -> list[str]:
    """Words of the normalised text; empty where nothing but articles and punctuation is left."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    folded = _APOSTROPHES.sub("", _THOUSANDS.sub("", folded))
    if folded.isascii():  # the same, many times faster
        folded = folded.translate(_ASCII_SIGNS)
    else:
        # Marks belong to words: in many scripts the vowels are marks, which `\w` does not know.
        folded = "".join(
            sign if unicodedata.category(sign)[0] in "LMN" or sign in ".%" else " " for sign in folded
        )
    return [word for word in _WORDS.findall(folded) if word not in _ARTICLES]


def exact_match(answer: Sequence[str], gold: Sequence[str]) -> float:
    """1 where both word lists are equal, else 0."""
    return float(list(answer) == list(gold))


def token_f1(answer: Sequence[str], gold: Sequence[str]) -> float:
    """Harmonic mean of word precision and word recall, as bags of words."""
    shared = sum((Counter(answer) & Counter(gold)).values())
    return 2 * shared / (len(answer) + len(gold)) if shared else 0.0


def gold_recall(answer: Sequence[str], gold: Sequence[str]) -> float:
    """Share of the gold answer's words that the answer gives, as bags of words."""
    return sum((Counter(answer) & Counter(gold)).values()) / len(gold)


def contains(answer: Sequence[str], gold: Sequence[str]) -> float:
    """1 where the gold words stand in the answer, in order and without a gap, else 0."""
    n_gold = len(gold)
    windows = (list(answer[i : i + n_gold]) for i in range(len(answer) - n_gold + 1))
    return float(any(window == list(gold) for window in windows))


ANSWER_METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "exact_match": exact_match,
    "f1": token_f1,
    "gold_recall": gold_recall,
    "contains": contains,
}
"""Every metric of a short answer, by the name it has in `report.json`; each takes word lists."""


def score_answer(answer: str, golds: Sequence[str]) -> dict[str, float]:
    """Each metric's best value over the gold answer and its aliases.

    Args:
        answer: what the model said; an empty answer scores 0.
        golds: the gold answer first, then its aliases.

    Returns:
        Metric name to value in 0..1.

    Raises:
        ValueError: the gold answer holds no word, so that nothing can be compared.
    """
    word_lists = [words for words in map(answer_words, golds) if words]
    if not word_lists or not answer_words(golds[0]):
        raise ValueError(f"gold answer {golds[0]!r} holds no word to compare")
    given = answer_words(answer)
    return {name: max(metric(given, gold) for gold in word_lists) for name, metric in ANSWER_METRICS.items()}

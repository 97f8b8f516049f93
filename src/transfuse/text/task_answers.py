"""Scores of a model's replies to a task: by their final number, their letter, or their words.

Source: Cobbe et al. 2021, arXiv:2110.14168 (final number); Hendrycks et al. 2021, arXiv:2009.03300 (letter); Wang et
al. 2022, arXiv:2204.07705 (exact match and ROUGE-L).
Differs: numbers are compared as values, so 1,234.0 equals 1234; words of every script count, as they stand, where the
published ROUGE-L knows the letters a-z alone and stems them.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

from rapidfuzz.distance import LCSseq

from transfuse.text.answers import exact_match, token_f1

AnswerKind = Literal["number", "choice", "text"]
"""What gold answers are: a number at the end of some reasoning, the letter of an option, or any text."""

KIND_SHARE = 0.95
"""Share of the gold answers that must be of a kind for all to be taken as of it; a few may be odd."""

_MAX_NUMBER_CHARS = 100
"""Longer runs of digits answer nothing, and are slow to compare."""

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_CURRENCY = re.compile(r"\\?[$€£¥₹]\s?")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_NUMBER = re.compile(
    r"(?<![^\W_])(?<!\d\.)"  # not within a word or another number
    r"(?P<sign>(?<![\d)\]}%])-)?"  # not the minus of 5-3
    r"(?:(?<!/)(?:(?P<whole>\d+)\s)?(?P<above>\d+)/(?P<below>0*[1-9]\d*)(?![/\d]|\.\d)"
    r"|(?P<plain>(?:\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d{1,2}(?![^\W_]))?))",
    re.IGNORECASE,
)
_NUMBER_FOLLOWS = re.compile(r"####|\\boxed\{|\banswer\s+is\b|\bfinal\s+answer\s*:", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)")

_DECORATION = re.compile(r"[*_`$]|\\(?:boxed|text|mathrm|mathbf)\{|\}")
_CLOSED = r"(?=\s*(?:$|[\n.,:;)\]]))"
_STATED = re.compile(
    r"(?i:\banswer(?:\s+is)?|\b(?:correct|right|best)\s+(?:option|choice)(?:\s+is)?)\s*[:=]?\s*(?i:option\s+)?[\[(]?"
    rf"(?:(?P<article>[AI])(?:{_CLOSED}|(?=\s+(?:because|since|as)\b))|(?P<letter>[B-HJ])(?![^\W_]))"
    r"(?!\s+(?:or|and)\s+[A-J]\b)"
)
_LEAD_IN = re.compile(r"\s*(?:so,?\s+)?(?:the\s+)?(?:correct\s+(?=answer\b))?", re.IGNORECASE)
_LEADING = re.compile(rf"\s*(?:[\[(](?P<inside>[A-J])[\])]|(?P<alone>[A-J])(?:{_CLOSED}|(?=\s*[\n–-])))")
_NAMED = re.compile(
    r"(?:\((?P<inside>[A-J])\)|(?i:\b(?:option|choice|choose|pick|select|think|it's|it\s+is)\s+)(?P<named>[A-J])"
    rf"{_CLOSED})"
)
_SMALL = re.compile(r"\s*\(?(?P<letter>[a-j])[).]*\s*")
_OPTION = re.compile(r"^\s*\(?([A-J])[.):]", re.MULTILINE)

_APOSTROPHES = re.compile(r"(?<=\w)['’](?=\w)")
_WORD = re.compile(r"\d+(?:\.\d+)+|%|[^\s.%]+")
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff])"  # Thai, Lao, Myanmar, Khmer, Kana, Han
)


def final_number(text: str) -> Fraction | None:
    """The number that a reply comes to.

    Args:
        text: the one after the last "answer is", "final answer:", "####" or "\\boxed{" counts, behind the equals sign
            where its sentence holds one; else the last number of all. Thousands separators, currency signs, percent
            signs and units are passed over; 1/2 and 1 1/2 are fractions.

    Returns:
        The value, or None where there is no number.
    """
    plain = _plain_numbers(text)
    stated = _stated_number(plain)
    return stated if stated is not None else next(reversed(_numbers(plain)), None)


def choice_letter(text: str) -> str | None:
    """The option, A to J, that a reply chooses.

    Args:
        text: the letter may be stated ("The answer is D"), come first ("B", "(B)", "B. Because ..."), or be the only
            one that stands in brackets or after "option".

    Returns:
        A capital letter, or None where the reply names none, or several.
    """
    plain = _DECORATION.sub("", text)
    found = _STATED.search(plain) or _LEADING.match(plain) or _SMALL.fullmatch(plain)
    if found is not None:
        return _letter(found).upper()
    named = {_letter(each) for each in _NAMED.finditer(plain)}
    return named.pop() if len(named) == 1 else None


def option_letters(prompt: str) -> list[str]:
    """Letters of the options in a prompt, lines such as "B. Paris": A, B, ... as far as they go without a gap."""
    found = set(_OPTION.findall(prompt))
    letters: list[str] = []
    for letter in "ABCDEFGHIJ":
        if letter not in found:
            break
        letters.append(letter)
    return letters


def task_words(text: str) -> list[str]:
    """Words of a text without case and punctuation; scripts that are written without spaces by the character.

    Args:
        text: of any script.

    Returns:
        The words in order; the characters of a text that has none, such as "+"; empty for white space.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(
        sign if unicodedata.category(sign)[0] in "LMN" or sign in ".%" else " "
        for sign in _APOSTROPHES.sub("", _THOUSANDS.sub("", folded))
    )
    return _WORD.findall(_UNSPACED.sub(r" \1 ", kept)) or [sign for sign in folded if not sign.isspace()]


def rouge_l(answer: Sequence[str], gold: Sequence[str]) -> float:
    """Harmonic mean of the shares of both word lists that their longest common subsequence makes."""
    n_both = len(answer) + len(gold)
    return 2 * LCSseq.similarity(list(answer), list(gold)) / n_both if n_both else 0.0


def _number_scores(reply: str, golds: Sequence[str]) -> dict[str, float]:
    values = {value for value in map(final_number, golds) if value is not None}
    if final_number(golds[0]) is None:
        raise ValueError(f"gold answer {_shown(golds[0])} holds no number to compare")
    return {"accuracy": float(final_number(reply) in values)}


def _choice_scores(reply: str, golds: Sequence[str]) -> dict[str, float]:
    letters = {letter for letter in map(choice_letter, golds) if letter is not None}
    if choice_letter(golds[0]) is None:
        raise ValueError(f"gold answer {_shown(golds[0])} names no option A to J")
    return {"accuracy": float(choice_letter(reply) in letters)}


def _text_scores(reply: str, golds: Sequence[str]) -> dict[str, float]:
    word_lists = [words for words in map(task_words, golds) if words]
    if not task_words(golds[0]):
        raise ValueError("the gold answer is empty")
    given = task_words(reply)
    metrics = {"exact_match": exact_match, "rouge_l": rouge_l, "f1": token_f1}
    return {name: max(metric(given, gold) for gold in word_lists) for name, metric in metrics.items()}


ANSWER_KINDS: dict[AnswerKind, Callable[[str, Sequence[str]], dict[str, float]]] = {
    "number": _number_scores,
    "choice": _choice_scores,
    "text": _text_scores,
}
"""How a reply is scored against its gold answer and that one's aliases, by the kind of answer; values in 0..1."""

TASK_METRICS: dict[AnswerKind, tuple[str, ...]] = {
    "number": ("accuracy",),
    "choice": ("accuracy",),
    "text": ("exact_match", "rouge_l", "f1"),
}
"""Names of the metrics of each kind; the first one is the kind's main one."""


def score_reply(reply: str, golds: Sequence[str], kind: AnswerKind) -> dict[str, float]:
    """Each metric of a kind for one reply, its best value over the gold answers.

    Args:
        reply: what the model said; one without a number, a letter or a word scores 0.
        golds: the gold answer first, then its aliases.
        kind: what the gold answers are.

    Returns:
        Metric name to value in 0..1.

    Raises:
        ValueError: the gold answer is not of that kind, so that nothing can be compared.
    """
    return ANSWER_KINDS[kind](reply, golds)


def answer_kind(golds: Sequence[str]) -> AnswerKind:
    """The kind that nearly all gold answers are of.

    Args:
        golds: of one file.

    Returns:
        `choice` where they are letters ("C", "The answer is: C"), `number` where they are numbers or end in one ("So
        the answer is 10.", "#### 10"), else `text`.
    """
    tests: dict[AnswerKind, Callable[[str], bool]] = {"choice": _is_choice, "number": _is_number}
    for kind, is_of_kind in tests.items():
        if golds and sum(map(is_of_kind, golds)) >= KIND_SHARE * len(golds):
            return kind
    return "text"


def _is_choice(gold: str) -> bool:
    plain = _DECORATION.sub("", gold)
    stated = _STATED.match(_LEAD_IN.sub("", plain, count=1))
    return bool(stated or _LEADING.match(plain) or _SMALL.fullmatch(plain))


def _is_number(gold: str) -> bool:
    plain = _plain_numbers(gold)
    return _stated_number(plain) is not None or bool(_NUMBER.fullmatch(plain.strip(" \n.%")))


def _plain_numbers(text: str) -> str:
    """The text with numbers as Python writes them."""
    text = text.replace("−", "-").replace("⁄", "/")
    return _LATEX_FRACTION.sub(r"\1/\2", _CURRENCY.sub("", _THOUSANDS.sub("", text)))


def _stated_number(plain: str) -> Fraction | None:
    """The number that the text says is its answer."""
    for marker in reversed(list(_NUMBER_FOLLOWS.finditer(plain))):
        said = _SENTENCE_END.split(plain[marker.end() :].lstrip(), maxsplit=1)[0]
        numbers = _numbers(said.rpartition("=")[2]) or _numbers(said)
        if numbers:
            return numbers[0]
    return None


def _numbers(plain: str) -> list[Fraction]:
    return [_value(found) for found in _NUMBER.finditer(plain) if len(found[0]) <= _MAX_NUMBER_CHARS]


def _value(found: re.Match[str]) -> Fraction:
    if found["plain"] is not None:
        value = Fraction(found["plain"])
    else:
        value = Fraction(int(found["above"]), int(found["below"])) + int(found["whole"] or 0)
    return -value if found["sign"] else value


def _letter(found: re.Match[str]) -> str:
    """Whichever group of a match holds the letter."""
    return next(letter for letter in found.groups() if letter)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")

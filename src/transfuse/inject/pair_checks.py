"""What is wrong with a pair, as far as its wording shows: found before anything is paid for."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from rapidfuzz import fuzz

from transfuse.inject.pair_prompts import INSTRUCTIONS
from transfuse.text.answers import answer_words, contains
from transfuse.text.wording import question_key

IsNear = Callable[[str, Sequence[str]], bool]
"""Whether a question says the same as one of the others, in other words."""


class Candidate(NamedTuple):
    """A question with its answer, not yet accepted."""

    question: str
    answer: str


_QUESTION_MARKS = re.compile(r"[?？؟⸮՞፧;][\s\"'”’»)\]]*$|_{2,}|…{2,}|\.{4,}|[か吗嗎呢까]\s*[。.]?$")
_ASKING = re.compile(
    r"^(\W*(in|on|at|by|for|from|of|to|with|under|during|after|before|since|until|according to [^,]+,)\s+)?\W*"
    r"(who|whom|whose|what|when|where|which|why|how|name|list|give|state|tell|complete|fill|identify|explain|"
    r"describe|mention|specify|say)\b",
    re.IGNORECASE,
)
_TEXTS = r"(text|article|passage|document|section|paragraph|excerpt|extract|statement|context|material)"
_SHOWN = r"(above|given|provided|following|preceding|source)"
_SAYS = r"(says?|mentions?|states?|describes?|gives?|indicates?|provides?)"
_OTHER_TEXT = r"(?! (of|on|about|by|for|in|to|from|published|written|\d)\b)"
_ABOUT_THE_DOCUMENT = re.compile(
    rf"\b((according to|based on|as (stated|mentioned|described|noted|said) in) (the|this|that|these|those) "
    rf"({_SHOWN} )*({_TEXTS}|source|facts?|information|overview)\b"
    rf"|(in|from|by|of|does|do|did) (this|(the|this) {_SHOWN}) {_TEXTS}\b"
    rf"|(in|by|from|does|did) the {_TEXTS}{_OTHER_TEXT}(?=\W*$|,| {_SAYS}\b)"
    rf"|the {_TEXTS} {_SAYS}\b"
    rf"|(mentioned|described|stated|listed|noted|given|cited|provided|discussed) "
    rf"(above|below|here|earlier|in (the|this) {_TEXTS})\b)",
    re.IGNORECASE,
)
_PLACEHOLDERS = frozenset({"question", "answer", "string", "text", "null", "n a", "na", "unknown"})
_CHOICE = re.compile(r"\b(or|between)\b", re.IGNORECASE)
"""Questions that name what they let one choose from."""
_ONE_SCRIPT: Mapping[str, str] = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "IDEOGRAPHIC": "CJK"}
_WITHOUT_SPACES = frozenset({"CJK", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"})
_MIN_WORDS = 3
_MIN_LETTERS = 4
"""In scripts that set no space between words."""
_MAX_STRANGE_SHARE = 0.3
"""Of letters in a script that the source does not use."""
_MIN_INSTRUCTION_WORDS = 5


def candidate_fault(candidate: Candidate, source: str, max_answer_words: int) -> str:
    """What is wrong with a question and its answer, in words; empty where nothing is.

    Args:
        candidate: the pair.
        source: what it was written from, with its title: says which scripts are in use.
        max_answer_words: longest answer.

    Returns:
        The first fault, its particulars after a colon.
    """
    question, answer = candidate
    given = answer_words(answer)
    if not given:
        return "the answer is empty"
    if fault := question_fault(question, source):
        return fault
    if question_key(answer) in _PLACEHOLDERS:
        return f"the answer is a placeholder: {answer!r}"
    if len(given) > max_answer_words:
        return f"the answer is longer than {max_answer_words} words: it has {len(given)}"
    if contains(answer_words(question), given) and not _CHOICE.search(question):
        return "the question gives its answer away"
    if _strange_share(answer, source, question) > _MAX_STRANGE_SHARE:
        return "the answer is in another script than its source"
    return ""


def question_fault(question: str, *sources: str) -> str:
    """What is wrong with a question by itself, in words; empty where nothing is. Sources show the scripts in use."""
    words = question_key(question).split()
    if not words or question_key(question) in _PLACEHOLDERS:
        return "the question is empty"
    if _repeats_instructions(words):
        return "the question repeats the generator's instructions"
    if _is_too_short(words):
        return f"the question is too short: {question!r}"
    if not (_QUESTION_MARKS.search(question) or _ASKING.search(question)):
        return "not a question"
    if found := _ABOUT_THE_DOCUMENT.search(question):
        return f"the question speaks of the document: {found[0]!r}"
    if _strange_share(question, *sources) > _MAX_STRANGE_SHARE:
        return "the question is in another script than its source"
    return ""


def likeness(key: str, other: str) -> float:
    """Likeness of two questions' wording by their `question_key`, 0 to 1; 1 is the same."""
    return fuzz.ratio(key, other) / 100


def _is_too_short(words: Sequence[str]) -> bool:
    letters = [sign for word in words for sign in word if sign.isalpha()]
    if any(_script(sign) in _WITHOUT_SPACES for sign in letters):
        return len(letters) < _MIN_LETTERS
    return len(words) < _MIN_WORDS


def _repeats_instructions(words: Sequence[str]) -> bool:
    """Whether five words or more, without a gap, are all that the question holds of its own or of ours."""
    if len(words) < _MIN_INSTRUCTION_WORDS:
        return False
    padded = f" {' '.join(words)} "
    return any(padded in text for text in _instruction_texts()) or any(
        f" {line} " in padded for line in _instruction_lines()
    )


@cache
def _instruction_texts() -> tuple[str, ...]:
    return tuple(f" {question_key(text)} " for text in INSTRUCTIONS)


@cache
def _instruction_lines() -> tuple[str, ...]:
    keys = {question_key(line) for text in INSTRUCTIONS for line in re.split(r"\n|(?<=[.:;])\s", text)}
    return tuple(sorted(key for key in keys if len(key.split()) >= _MIN_INSTRUCTION_WORDS))


def _strange_share(text: str, *sources: str) -> float:
    """Share of the letters that are of a script which no source uses."""
    scripts = Counter(_script(sign) for sign in text if sign.isalpha())
    known = frozenset[str]().union(*map(_scripts, sources))
    if not scripts or not known:
        return 0.0
    return sum(n for script, n in scripts.items() if script not in known) / scripts.total()


@lru_cache(maxsize=1024)
def _scripts(text: str) -> frozenset[str]:
    return frozenset(_script(sign) for sign in set(text) if sign.isalpha())


@cache
def _script(letter: str) -> str:
    """First word of a letter's Unicode name, as a rule its script."""
    name = unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "UNNAMED").split()[0]
    return _ONE_SCRIPT.get(name, name)

"""Whether a statement that a generator wrote may stand as a fact; every refusal says why."""

import re
from dataclasses import dataclass

from rapidfuzz import fuzz

from transfuse.inject.fact_prompts import INSTRUCTIONS
from transfuse.inject.fact_words import (
    Ground,
    content_of,
    long_names,
    names_of,
    numbers_of,
    scripts_of,
    words_of,
)
from transfuse.text.wording import question_key, word_set

MAX_WORDS = 60
MAX_CHARS = 600
_MIN_GROUNDED = 0.5
_MIN_SCRIPT_SHARE = 0.2
_MIN_REPETITION = 88.0
"""Likeness to a line of the prompt, in percent."""
_INSTRUCTION_KEYS = tuple(key for key in map(question_key, INSTRUCTIONS) if len(key) > 8)

_PRONOUNS = word_set(
    "he she it they this these those that him her them his hers its their theirs we you our your my "
    "er elle ils elles ellos ellas él он она они оно"
)
_THE_TWO = re.compile(r"\b(?:the|both|these) two\b", re.IGNORECASE)
_FIRST_WORD = re.compile(r"\W*([^\W\d_]+)")
_FIRST_PERSON = re.compile(r"\W*(I)['’\s]+(?:am|m|was|have|ve|had|will|ll|did|do|would|can|could)\b")
_AFTER_ADVERBIAL = re.compile(
    r"(?:In|On|At|During|By|Since|Until|From)\b[^,]{1,60},\s+(he|she|it|they|this|these|those|his|her|their|its)\b"
)


@dataclass(frozen=True, slots=True)
class FactSource:
    """What facts of a section are held against."""

    section: Ground
    """The section's text, its headings and the document's title."""
    document: Ground
    """The whole document: a full name may have been given in an earlier section."""
    titles: tuple[str, ...]


def fact_fault(fact: str, source: FactSource) -> str:
    """Why a statement cannot be a fact of the source, or nothing where it can.

    Args:
        fact: one statement.
        source: where it is said to come from.

    Returns:
        The reason in words; empty for a statement that is well formed and whose numbers, names and
        at least half of its content words occur in the source. Self-containedness is not judged.
    """
    if not any(sign.isalpha() for sign in fact):
        return "holds no word"
    if fact.rstrip(" \"'”’»)*").endswith(("?", "？", "؟")):
        return "is a question, not a statement"
    n_words = len(words_of(fact))
    if n_words > MAX_WORDS or len(fact) > MAX_CHARS:
        return f"is too long: {n_words} words, {len(fact)} characters; at most {MAX_WORDS} and {MAX_CHARS}"
    strange = [
        script.lower()
        for script, share in scripts_of(fact).items()
        if share >= _MIN_SCRIPT_SHARE and script not in source.section.scripts
    ]
    if strange:
        return f"is written in another script than the source ({', '.join(sorted(strange))})"
    if any(fact.count(opens) > fact.count(closes) for opens, closes in ("()", "[]", "“”", "«»")):
        return "breaks off: a bracket or quotation is not closed"
    key = question_key(fact)
    if any(fuzz.ratio(key, line) >= _MIN_REPETITION for line in _INSTRUCTION_KEYS):
        return "repeats the instructions of the prompt"
    return _ungrounded(fact, source)


def _ungrounded(fact: str, source: FactSource) -> str:
    stated = numbers_of(_THE_TWO.sub(" ", fact), is_strict=False)
    numbers = [number for number in stated if number not in source.section.numbers]
    if numbers:
        return f"holds numbers that the section does not: {', '.join(sorted(numbers))}"
    if strangers := _strangers(fact, source.document):
        return f"holds names that the document does not: {', '.join(strangers)}"
    content = content_of(fact)
    n_known = sum(source.section.holds(word) for word in content)
    if content and n_known < _MIN_GROUNDED * len(content):
        return f"only {n_known} of its {len(content)} content words occur in the section"
    return ""


def _strangers(fact: str, ground: Ground) -> list[str]:
    """Capitalised words that a source does not hold, be it as `US` for `United States` or the other way round.

    A first word may have another ending: it may be no name.
    """
    first = _FIRST_WORD.match(fact)
    first_word = first[1].casefold() if first else ""
    known = {name for initials, names in long_names(fact) if initials in ground.short_names for name in names}
    known |= {initials.casefold() for initials in ground.initials}
    return [
        name
        for name in dict.fromkeys(names_of(fact))
        if name not in known and not ground.holds(name, max_ending=5 if name == first_word else 2)
    ]


def leading_pronoun(fact: str, titles: tuple[str, ...] = ()) -> str:
    """The pronoun a statement begins with, be it after `In 2019, `; empty where there is none.

    Args:
        fact: one statement.
        titles: a statement that begins with one of these begins with a name ("It Happened One Night").

    Returns:
        The pronoun as it is written.
    """
    if any(fact.casefold().startswith(title.casefold()) for title in titles if title.strip()):
        return ""
    first = _FIRST_WORD.match(fact)
    if first and first[1].casefold() in _PRONOUNS and first[1] not in ("US", "IT"):
        return first[1]
    later = _FIRST_PERSON.match(fact) or _AFTER_ADVERBIAL.match(fact)
    return later[1] if later else ""

"""Whether the source bears a pair out: its question is answered a second time, the answer out of sight."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transfuse.generate.protocol import Ask
from transfuse.inject.pair_checks import Candidate, candidate_fault, question_fault
from transfuse.inject.pair_prompts import judge_request, verify_request
from transfuse.inject.pair_settings import PairSettings
from transfuse.text.answers import answer_words, contains
from transfuse.text.replies import read_json
from transfuse.text.wording import word_set


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of checking one pair."""

    is_accepted: bool
    reason: str
    """Why not, its particulars after a colon; empty where accepted."""
    question: str
    """The question, reworded where that made it understandable alone."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """The second answer."""

    answer: str
    is_answerable: bool
    is_standalone: bool
    rewrite: str
    fault: str = ""
    """Why there is none."""


_NEGATIONS = word_set("not no never none nobody nothing neither nor without cannot")
_NUMBER_NAMES = word_set(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million "
    "billion trillion dozen half third quarter first second fourth fifth sixth seventh eighth ninth tenth once "
    "twice thrice hundreds thousands millions billions m bn k %"
)
_LITTLE_WORDS = word_set(
    "of in on at by for from to with and or but as is are was were be been it its he she they his her their "
    "this that these those there very about around"
)
_NOT_ANSWERED = re.compile(
    r"\W*(unknown|none|null|n/?a|not (given|stated|mentioned|known|specified|provided|answerable)|"
    r"(the source|it) does not (say|state|mention|give).*|(i )?(do not|don't) know|no answer)\W*",
    re.IGNORECASE,
)


async def verify(candidate: Candidate, source: str, title: str, ask: Ask, settings: PairSettings) -> Verdict:
    """Answer the question from its source alone, and compare.

    A question that needs its document to be understood is reworded once, and the new wording is
    checked and verified like a new one.

    Args:
        candidate: the pair.
        source: what the answer is to follow from.
        title: what the document is about.
        ask: the generator.
        settings: whether answers in other words are judged, and the limits of the checks.

    Returns:
        The verdict; not accepted where a request failed.
    """
    verdict, rewrite = await _verified(candidate, source, title, ask, settings)
    if not rewrite:
        return verdict
    reworded = Candidate(rewrite, candidate.answer)
    if fault := candidate_fault(reworded, f"{title} {source}", settings.max_answer_words):
        return Verdict(False, f"cannot be understood alone, and neither can its rewording: {fault}", rewrite)
    verdict, still = await _verified(reworded, source, title, ask, settings)
    if still:
        return Verdict(False, f"cannot be understood alone, even reworded: {rewrite!r}", rewrite)
    return verdict


async def verify_unknown(question: str, source: str, title: str, ask: Ask, settings: PairSettings) -> Verdict:
    """Whether the source leaves a question open, though anyone understands what it asks.

    Args:
        question: what nobody is to know.
        source: the whole section.
        title: what the document is about.
        ask: the generator.
        settings: the limits of the checks.

    Returns:
        Accepted where the source gives no answer.
    """
    if fault := question_fault(question, f"{title} {source}"):
        return Verdict(False, fault, question)
    reading = await _read(question, source, title, ask, settings)
    if reading.fault:
        return Verdict(False, reading.fault, question)
    if reading.is_answerable:
        return Verdict(False, f"the source answers it: {reading.answer!r}", question)
    if not reading.is_standalone:
        return Verdict(False, "cannot be understood alone", question)
    return Verdict(True, "", question)


def answers_agree(answer: str, gold: str) -> bool:
    """Whether two answers are the same, or one is the other with more words: never with other numbers or a no."""
    one, other = sorted((answer_words(answer), answer_words(gold)), key=len)
    if one == other:
        return bool(one)
    if not contains(other, one) or not any(word not in _LITTLE_WORDS for word in one):
        return False
    return _numbers(one) == _numbers(other) and not _NEGATIONS & (set(one) ^ set(other))


def _numbers(words: Sequence[str]) -> set[str]:
    return {word for word in words if word in _NUMBER_NAMES or any(sign.isdigit() for sign in word)}


async def _verified(
    candidate: Candidate, source: str, title: str, ask: Ask, settings: PairSettings
) -> tuple[Verdict, str]:
    """The verdict, and the rewording to try next where there is one."""
    question, gold = candidate
    reading = await _read(question, source, title, ask, settings)
    reason = reading.fault
    if not reason and not (reading.is_answerable and answer_words(reading.answer)):
        reason = "the source does not answer it"
    if not reason and not reading.is_standalone:
        return Verdict(False, "cannot be understood alone", question), reading.rewrite
    if not reason and not answers_agree(reading.answer, gold):
        reason = await _difference(question, reading.answer, gold, ask, settings)
    return Verdict(not reason, reason, question), ""


async def _read(question: str, source: str, title: str, ask: Ask, settings: PairSettings) -> _Reading:
    reply = await ask(verify_request(question, source, settings, title=title))
    if reply.error:
        return _unread(f"the request to verify it failed: {reply.error}")
    value = _first_object(read_json(reply.text))
    if value is None or not {"answer", "answerable"} & value.keys():
        return _unread(f"the reply to verify it could not be read: {_short(reply.text)}")
    answer = _text(value.get("answer"))
    has_answer = bool(answer_words(answer)) and not _NOT_ANSWERED.fullmatch(answer)
    return _Reading(
        answer=answer,
        is_answerable=_claim(value.get("answerable"), default=has_answer),
        is_standalone=_claim(value.get("standalone"), default=True),
        rewrite=_text(value.get("rewrite")),
    )


def _unread(fault: str) -> _Reading:
    return _Reading("", is_answerable=False, is_standalone=False, rewrite="", fault=fault)


async def _difference(question: str, answer: str, gold: str, ask: Ask, settings: PairSettings) -> str:
    """In words, how the answers differ; empty where they are judged the same."""
    differs = f"the source answers otherwise: {answer!r} instead of {gold!r}"
    if not settings.judge:
        return differs
    reply = await ask(judge_request(question, gold, answer, settings))
    if reply.error:
        return f"the request to compare its answers failed: {reply.error}"
    value = read_json(reply.text)
    if isinstance(value, bool):
        return "" if value else differs
    value = _first_object(value)
    if value is None or "same" not in value:
        return f"the reply that compares its answers could not be read: {_short(reply.text)}"
    return "" if _claim(value["same"], default=False) else differs


def _first_object(value: Any) -> Mapping[str, Any] | None:
    """The object, or the first of several, its names in lower case."""
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return None
    return {name.strip().casefold(): member for name, member in value.items()}


def _claim(value: Any, default: bool) -> bool:
    """A truth value, however it was written."""
    if isinstance(value, str):
        word = value.strip().casefold()
        return True if word in ("true", "yes", "1") else False if word in ("false", "no", "0") else default
    return bool(value) if isinstance(value, bool | int | float) else default


def _text(value: Any) -> str:
    """A text, a number or a list as one line of text; empty for anything else."""
    if isinstance(value, list):
        return ", ".join(filter(None, map(_text, value)))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    text = " ".join(str(value).split())
    return "" if text.casefold() == "null" else text


def _short(text: str) -> str:
    shown = " ".join(text.split())
    return repr(shown if len(shown) <= 80 else shown[:79] + "…")

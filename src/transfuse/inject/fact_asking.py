"""Asks a generator for the facts of one window: once, again for what is missing, and for repairs."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transfuse.errors import GenerationError
from transfuse.generate.protocol import Ask, Reply, Request
from transfuse.inject.fact_checking import FactSource, fact_fault, leading_pronoun
from transfuse.inject.fact_prompts import PromptSource, again_request, facts_request, repair_request
from transfuse.inject.fact_windows import Sentence, Window, sentences_behind, stated_numbers
from transfuse.text.replies import read_items
from transfuse.types import Dropped

_IS_TOO_LONG = re.compile(r"leaves no room|\bcontext", re.IGNORECASE)
_NUMBER_MARK = re.compile(r"\s*\[(\d{1,3}(?:\s*[,;–-]\s*\d{1,3})*)\]\s*\.?$|^\[(\d{1,3})\]\s*")
_NUMBER_NAMES = ("sentences", "sentence", "sources", "source", "numbers", "number")
_MAX_REASON_CHARS = 200


class Statement(NamedTuple):
    """A fact as it was written, and the sentences behind it."""

    text: str
    sentences: tuple[Sentence, ...]


@dataclass
class Outcome:
    """What came of one window."""

    accepted: list[Statement] = field(default_factory=list)
    pending: list[Statement] = field(default_factory=list)
    """Statements that lack nothing but a name in place of a pronoun."""
    dropped: list[Dropped] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    """Index of a sentence to why it has no fact; one that has facts after all may stand here too."""
    failed: dict[int, str] = field(default_factory=dict)
    """Index of a sentence to why nothing could be learned about it."""

    def left(self, window: Window) -> list[int]:
        """Numbers, from 1, of the window's sentences that no statement covers."""
        covered = {
            sentence.index
            for statement in (*self.accepted, *self.pending)
            for sentence in statement.sentences
        }
        return [
            number
            for number, sentence in enumerate(window.sentences, start=1)
            if sentence.index not in covered
        ]

    def add(self, other: "Outcome") -> None:
        """Take over what came of another part of the window."""
        self.accepted += other.accepted
        self.pending += other.pending
        self.dropped += other.dropped
        self.reasons |= other.reasons
        self.failed |= other.failed


class Asker:
    """Asks about windows; once the generator has stopped, nothing more is asked."""

    def __init__(
        self, ask: Ask, sources: Sequence[FactSource], temperature: float, max_new_tokens: int
    ) -> None:
        self.stopped: GenerationError | None = None
        self._ask = ask
        self._sources = sources
        self._temperature = temperature
        self._max_new_tokens = max_new_tokens

    async def write(self, window: Window) -> Outcome:
        """The facts of a window; never raises GenerationError."""
        outcome = Outcome()
        request = facts_request(
            self._shown(window), temperature=self._temperature, max_new_tokens=self._max_new_tokens
        )
        reply = await self._answer(request)
        if self._is_too_long(reply, window):
            for half in await asyncio.gather(*map(self.write, window.halves())):
                outcome.add(half)
            return outcome
        if reply.error:
            outcome.failed |= {sentence.index: reply.error for sentence in window.sentences}
            return outcome
        self._take(reply, window, outcome)
        if left := outcome.left(window):
            await self._ask_again(window, left, outcome)
        if outcome.pending:
            await self._repair(window, outcome)
        return outcome

    async def _ask_again(self, window: Window, left: list[int], outcome: Outcome) -> None:
        """Ask about the sentences with these numbers once more, and note why one still has no fact."""
        request = again_request(
            self._shown(window), left, temperature=self._temperature, max_new_tokens=self._max_new_tokens
        )
        reply = await self._answer(request)
        if self._is_too_long(reply, window):
            middle = len(window.sentences) // 2
            parts = ([n for n in left if n <= middle], [n - middle for n in left if n > middle])
            for half, part in zip(window.halves(), parts, strict=True):
                if part:
                    await self._ask_again(half, part, outcome)
            return
        asked = [window.sentences[number - 1] for number in left]
        if reply.error:
            outcome.failed |= {sentence.index: reply.error for sentence in asked}
            return
        is_readable = self._take(reply, window, outcome)
        words = self._reasons(reply, window)
        if reply.is_cut:
            n_tokens = self._max_new_tokens
            fallback = f"the reply broke off at {n_tokens} tokens before it; raise max_new_tokens"
        elif not is_readable and not words:
            fallback = f"the reply could not be read: {_short(reply.text) or 'it is empty'}"
        else:
            fallback = ""
        for number in outcome.left(window):
            sentence = window.sentences[number - 1]
            if number in words:
                outcome.reasons[sentence.index] = words[number]
            elif fallback and number in left and sentence.index not in outcome.reasons:
                outcome.failed[sentence.index] = fallback

    async def _repair(self, window: Window, outcome: Outcome) -> None:
        """Have names put in place of pronouns, in one request; what is still unclear is dropped."""
        pending, outcome.pending = outcome.pending, []
        request = repair_request(
            self._shown(window),
            [statement.text for statement in pending],
            temperature=self._temperature,
            max_new_tokens=self._max_new_tokens,
        )
        reply = await self._answer(request)
        repaired = {} if reply.error else _repairs(reply.text, len(pending))
        lost = f"the repair failed: {reply.error}" if reply.error else "the generator gave no repair"
        source = self._sources[window.section_index]
        for number, statement in enumerate(pending, start=1):
            reason = lost
            for text in repaired.get(number, []):
                reason = fact_fault(text, source)
                if not reason and (pronoun := leading_pronoun(text, source.titles)):
                    reason = f"begins with '{pronoun}' again"
                if not reason:
                    outcome.accepted.append(statement._replace(text=text))
                    break
                reason = f"the repaired '{_short(text)}' {reason}"
            if reason:
                pronoun = leading_pronoun(statement.text, source.titles)
                self._drop(
                    statement, f"begins with '{pronoun}', which nobody understands alone; {reason}", outcome
                )

    def _take(self, reply: Reply, window: Window, outcome: Outcome) -> bool:
        """Sort the facts of a reply into accepted, pending and dropped; whether there was anything to read."""
        source = self._sources[window.section_index]
        items, problems = read_items(reply.text, "facts", ("fact",))
        where = f"reply on '{source.titles[-1]}', from '{_short(window.sentences[0].text, 40)}'"
        outcome.dropped += [Dropped("reply", where, problem) for problem in problems]
        for item in items:
            text, numbers = _parted(item, len(window.sentences))
            statement = Statement(text, sentences_behind(text, numbers, window))
            if fault := fact_fault(text, source):
                self._drop(statement, fault, outcome)
            elif not statement.sentences:
                self._drop(
                    statement, "shares no content word with the sentences that were asked about", outcome
                )
            elif leading_pronoun(text, source.titles):
                outcome.pending.append(statement)
            else:
                outcome.accepted.append(statement)
        return bool(items) or not problems

    def _reasons(self, reply: Reply, window: Window) -> dict[int, str]:
        """Number of a sentence to the generator's own words on why it holds no fact."""
        items, _ = read_items(reply.text, "without", ("reason",))
        return {
            number: _short(item["reason"], _MAX_REASON_CHARS)
            for item in items
            for number in stated_numbers(_numbers(item), len(window.sentences))
        }

    def _drop(self, statement: Statement, reason: str, outcome: Outcome) -> None:
        outcome.dropped.append(Dropped("fact", _short(statement.text, _MAX_REASON_CHARS), reason))
        for sentence in statement.sentences:
            outcome.reasons[sentence.index] = f"its fact '{_short(statement.text)}' was dropped: {reason}"

    def _shown(self, window: Window) -> PromptSource:
        return PromptSource(
            self._sources[window.section_index].titles,
            [sentence.text for sentence in window.before],
            [sentence.text for sentence in window.sentences],
        )

    def _is_too_long(self, reply: Reply, window: Window) -> bool:
        if self.stopped or len(window.sentences) < 2:
            return False
        return bool(_IS_TOO_LONG.search(reply.error))

    async def _answer(self, request: Request) -> Reply:
        """The reply; one with an error where the generator has stopped."""
        if self.stopped is None:
            try:
                return await self._ask(request)
            except GenerationError as err:
                self.stopped = self.stopped or err
        return Reply("", error=str(self.stopped) or type(self.stopped).__name__)


def _parted(item: dict[str, Any], n_sentences: int) -> tuple[str, list[int]]:
    """A fact and its sentence numbers, wherever they stand."""
    text = " ".join(item["fact"].split())
    mark = _NUMBER_MARK.search(text)
    value = _numbers(item)
    if mark:
        text = _NUMBER_MARK.sub("", text).strip()
        value = value if value is not None else mark[1] or mark[2]
    return text, stated_numbers(value, n_sentences)


def _numbers(item: dict[str, Any]) -> Any | None:
    return next((item[name] for name in _NUMBER_NAMES if item.get(name) is not None), None)


def _repairs(text: str, n_statements: int) -> dict[int, list[str]]:
    """Number of a statement to its repaired wordings; without numbers, in the order asked."""
    items, _ = read_items(text, "facts", ("fact",))
    repaired: dict[int, list[str]] = {}
    for place, item in enumerate(items, start=1):
        numbers = stated_numbers(_numbers(item), n_statements)
        if not numbers and len(items) == n_statements:
            numbers = [place]
        for number in numbers[:1]:
            repaired.setdefault(number, []).append(" ".join(item["fact"].split()))
    return repaired


def _short(text: str, n_chars: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= n_chars else text[: n_chars - 1] + "…"

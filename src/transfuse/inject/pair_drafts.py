"""Pairs in the making: what one fact or section has given so far, and how candidates are let in."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from transfuse.errors import GenerationError
from transfuse.generate.protocol import Ask, Reply, Request
from transfuse.inject.pair_checks import Candidate, IsNear, candidate_fault
from transfuse.inject.pair_settings import PairSettings
from transfuse.inject.verification import Verdict, verify
from transfuse.text.replies import read_items
from transfuse.text.wording import question_key

T = TypeVar("T")

Title = str | Mapping[str, str]
"""What the documents are about: all of them, or that of each fact (by id) or section (by title)."""
BETWEEN_IDS = " + "
REPEATS = "repeats an earlier question"


class Accepted(NamedTuple):
    """A pair that passed every check."""

    question: str
    answer: str
    key: str
    """The question without case, punctuation and spacing."""
    round: int
    """Which round of requests gave it, from 1."""
    size: int
    """What it counts towards the scale: 1 for a fact, its tokens for a section."""


@dataclass(slots=True)
class Draft:
    """What one fact or section has given so far; nothing in it but `scale` depends on the scale."""

    kind: Literal["fact", "section"]
    id: str
    scale: int
    unit: int
    """Size of the training pairs at scale 1."""
    eval_target: int
    """Size of the eval pairs."""
    accepted: list[Accepted] = field(default_factory=list)
    eval_choices: list[Accepted] = field(default_factory=list)
    """Those that may measure, the preferred ones first."""
    dropped: list[tuple[str, str]] = field(default_factory=list)
    """Questions with their reasons."""
    faults: list[tuple[int, str]] = field(default_factory=list)
    """Rounds whose reply failed or could not be read, with the reason."""
    skip_reason: str = ""
    """Why the generator declined."""
    ending: str = ""
    """Why no more was asked for, where the target is not reached."""

    @property
    def questions(self) -> list[str]:
        """Every accepted question, in order."""
        return [pair.question for pair in self.accepted]

    def drop(self, question: str, reason: str) -> None:
        """Leave a question out, and say why."""
        self.dropped.append((question, reason))


class Desk:
    """What the writers of one sheet share; once no request can succeed, none is sent any more."""

    def __init__(
        self, ask: Ask, settings: PairSettings, title: Title, seed: int, is_near: IsNear | None = None
    ) -> None:
        """Take the generator, the settings, what the documents are about, the seed, and an extra check."""
        self._ask = ask
        self.settings = settings
        self._title = title
        self.seed = seed
        self.is_near = is_near
        self.stopped: GenerationError | None = None

    def title_of(self, source: str) -> str:
        """What the document of a fact or section is about; of several facts, that of the first."""
        return self._title if isinstance(self._title, str) else self._title[source.split(BETWEEN_IDS)[0]]

    async def ask(self, request: Request) -> Reply:
        """The reply; raises GenerationError from the first such error on."""
        if self.stopped is not None:
            raise GenerationError(str(self.stopped))
        try:
            return await self._ask(request)
        except GenerationError as err:
            self.stopped = self.stopped or err
            raise

    async def verdict(self, candidate: Candidate, source: str, title: str) -> Verdict:
        """The verdict on a candidate; accepted without a request where verification is off."""
        if not self.settings.verify:
            return Verdict(True, "", candidate.question)
        return await verify(candidate, source, title, self.ask, self.settings)


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, in order; where one fails unexpectedly, the others are cancelled."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
    return [task.result() for task in tasks]


def read_candidates(reply: Reply, draft: Draft, number: int) -> list[Candidate]:
    """The pairs of a reply; what could not be read is noted in the draft as a fault of that round."""
    if reply.error:
        draft.faults.append((number, f"the request failed: {reply.error}"))
        return []
    items, problems = read_items(reply.text, "pairs", ("question", "answer"))
    draft.faults += [(number, problem) for problem in problems]
    if reply.is_cut and not items:
        draft.faults.append((number, "the reply was cut before its first pair; raise max_new_tokens"))
    return [Candidate(_one_line(item["question"]), _one_line(item["answer"])) for item in items]


async def accept_candidates(
    draft: Draft,
    candidates: Sequence[tuple[Candidate, str]],
    desk: Desk,
    number: int,
    size: Callable[[Candidate], int] = lambda candidate: 1,
    elsewhere: Collection[str] = (),
) -> list[Accepted | None]:
    """Check and verify the candidates of one round; those that pass are added to the draft.

    Args:
        draft: takes the accepted pairs, in the order of the candidates, and the reasons of the others.
        candidates: each with the text that it was written from.
        desk: whom to ask, and how.
        number: of the round.
        size: what a pair counts towards the scale.
        elsewhere: keys of questions that are not in the draft and not to be repeated either.

    Returns:
        For each candidate the accepted pair, None where it was dropped.

    Raises:
        GenerationError: no further request can succeed; what was verified by then is in the draft.
    """
    hopeful: list[int] = []
    known = {*elsewhere, *(pair.key for pair in draft.accepted)}
    earlier = draft.questions
    title = desk.title_of(draft.id)
    for index, (candidate, source) in enumerate(candidates):
        words = f"{title} {source}"
        fault = candidate_fault(candidate, words, desk.settings.max_answer_words)
        if fault := fault or _repeat_fault(candidate.question, earlier, known, desk.is_near):
            draft.drop(candidate.question, fault)
        else:
            known.add(question_key(candidate.question))
            earlier.append(candidate.question)
            hopeful.append(index)
    verdicts = await together(_verdict(*candidates[index], title, desk) for index in hopeful)
    accepted: list[Accepted | None] = [None] * len(candidates)
    for index, verdict in zip(hopeful, verdicts, strict=True):
        candidate, _ = candidates[index]
        fault = verdict.reason
        kept = candidate._replace(question=verdict.question)
        key = question_key(kept.question)
        if not fault and key != question_key(candidate.question):
            fault = _repeat_fault(kept.question, draft.questions, known, desk.is_near)
            known.add(key)
        if fault:
            draft.drop(candidate.question, fault)
        else:
            pair = Accepted(*kept, key, number, size(kept))
            accepted[index] = pair
            draft.accepted.append(pair)
    if desk.stopped is not None:
        raise GenerationError(str(desk.stopped))
    return accepted


async def _verdict(candidate: Candidate, source: str, title: str, desk: Desk) -> Verdict:
    try:
        return await desk.verdict(candidate, source, title)
    except GenerationError as err:
        return Verdict(False, f"not verified: {err}", candidate.question)


def _repeat_fault(question: str, earlier: Sequence[str], known: set[str], is_near: IsNear | None) -> str:
    if question_key(question) in known:
        return REPEATS
    if is_near is not None and earlier and is_near(question, earlier):
        return "says the same as an earlier question"
    return ""


def _one_line(text: str) -> str:
    return " ".join(text.split())

"""A judge model names the better of two replies, in both orders, and what that says of two systems.

Source: Dubois et al. 2023, AlpacaFarm, arXiv:2305.14387 (pairwise judge, win rate);
Dubois et al. 2024, arXiv:2404.04475 (control of length).
Differs: every pair is judged in both orders, at temperature 0, and ties are allowed.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from transfuse.errors import GenerationError
from transfuse.evaluate.instructions import Instruction
from transfuse.evaluate.judging_form import FORM, Place, judge_request, read_winner, second_request
from transfuse.evaluate.judging_settings import JudgeSettings
from transfuse.generate.protocol import Ask, Reply

Winner = Literal["ours", "theirs", "tie"]

N_BEFORE_GIVING_UP = 20
"""Items after which a judge that has not once answered in the asked form is not asked on."""

_SEEN: dict[Place, tuple[Winner, Winner]] = {
    "first": ("ours", "theirs"),
    "second": ("theirs", "ours"),
    "tie": ("tie", "tie"),
}
"""Who is meant, where ours was shown first and where theirs was."""
_VALUES: dict[Winner, float] = {"ours": 1.0, "tie": 0.5, "theirs": 0.0}


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came of one instruction."""

    item: str
    instruction: str
    ours: str
    theirs: str
    winners: tuple[Winner, ...] = ()
    """With our reply shown first, and with theirs; none where the judge was not asked, or could not be read."""
    score: float | None = None
    """Mean over both orders: 1 for ours, 0.5 for a tie; None where it could not be scored."""
    reason: str = ""
    """Why not."""
    said: tuple[str, ...] = ()
    """The judge's own words, in the same order; those of the second request where it was asked again."""
    n_asked_again: int = 0

    @property
    def is_judged(self) -> bool:
        """Whether the judge was asked and understood; two replies that are the same need no judge."""
        return bool(self.winners)


async def judge_replies(
    instructions: Sequence[Instruction],
    ours: Sequence[Reply],
    theirs: Sequence[Reply],
    ask: Ask,
    settings: JudgeSettings,
    on_judged: Callable[[int, int], None] = lambda n_done, n_all: None,
) -> list[Judgement]:
    """Have every pair of replies judged in both orders.

    Args:
        instructions: what was asked.
        ours: replies of the system that the win rate is about, in order; one with an error is not judged.
        theirs: of the other, or references.
        ask: the judge.
        settings: how it is asked.
        on_judged: called with the numbers of items done and to do.

    Returns:
        One judgement an instruction, in order.

    Raises:
        GenerationError: more than half of the items are unscorable by the judge's fault, or none of the first
            `N_BEFORE_GIVING_UP` is scorable; or no request to it can succeed.
    """
    tally = _Tally(len(instructions), settings)
    # Item after item, so that a judge of no use is found out before it has been asked about all of them.
    places = asyncio.Semaphore(settings.n_at_once)

    async def one(each: Instruction, our: Reply, their: Reply) -> Judgement:
        async with places:
            judgement = await _judged(each, our, their, ask, settings)
        tally.add(judgement)
        on_judged(tally.n_done, tally.n_items)
        return judgement

    async with asyncio.TaskGroup() as group:
        triples = zip(instructions, ours, theirs, strict=True)
        tasks = [group.create_task(one(*triple)) for triple in triples]
    return [task.result() for task in tasks]


class _Tally:
    """Counts items, and says when a judge is not worth asking on."""

    def __init__(self, n_items: int, settings: JudgeSettings) -> None:
        self.n_items, self.n_done = n_items, 0
        self._settings = settings
        self._lost: list[Judgement] = []

    def add(self, judgement: Judgement) -> None:
        self.n_done += 1
        if judgement.score is None and judgement.said:
            self._lost.append(judgement)
        is_hopeless = self.n_done >= N_BEFORE_GIVING_UP and len(self._lost) == self.n_done
        if is_hopeless or 2 * len(self._lost) > self.n_items:
            self._refuse()

    def _refuse(self) -> None:
        sample = self._lost[0]
        raise GenerationError(
            f"judge {self._settings.reference}: {len(self._lost)} of {self.n_items} items are unscorable already, so "
            f"there is no win rate; expected {FORM}, but of item {sample.item}: {sample.reason}. Choose a judge that "
            f"follows the form, raise judge.max_judge_tokens where its replies are cut, or mend judge.prompt."
        )


async def _judged(
    instruction: Instruction, ours: Reply, theirs: Reply, ask: Ask, settings: JudgeSettings
) -> Judgement:
    base = Judgement(instruction.id, instruction.text, ours.text, theirs.text)
    for whose, reply in (("our", ours), ("the other", theirs)):
        if reply.error:
            return replace(base, reason=f"{whose} system gave no reply: {reply.error}")
    if ours.text == theirs.text:
        return replace(base, score=0.5)
    orders = await asyncio.gather(
        _verdict(instruction.text, ours.text, theirs.text, ask, settings),
        _verdict(instruction.text, theirs.text, ours.text, ask, settings),
    )
    said = tuple(each.said for each in orders)
    n_again = sum(each.is_asked_again for each in orders)
    reason = next((each.reason for each in orders if each.reason), "")
    places: list[Place] = [each.place for each in orders if each.place is not None]
    if len(places) < len(orders):
        return replace(base, reason=reason, said=said, n_asked_again=n_again)
    winners: tuple[Winner, ...] = tuple(_SEEN[place][order] for order, place in enumerate(places))
    score = sum(_VALUES[winner] for winner in winners) / len(winners)
    return replace(base, winners=winners, score=score, said=said, n_asked_again=n_again)


class _Verdict(NamedTuple):
    place: Place | None
    said: str
    reason: str
    is_asked_again: bool


async def _verdict(instruction: str, first: str, second: str, ask: Ask, settings: JudgeSettings) -> _Verdict:
    request = judge_request(instruction, first, second, settings)
    reply = await ask(request)
    place = None if reply.error else read_winner(reply.text)
    if place is not None or reply.error:
        return _Verdict(place, reply.text, _no_answer(reply), False)
    again = await ask(second_request(request, reply.text))
    place = None if again.error else read_winner(again.text)
    reason = _no_answer(again)
    if place is None and not reason:
        cut = f" (cut after {settings.max_judge_tokens} tokens)" if again.is_cut else ""
        reason = f"the judge answered in another form, asked twice: {_short(again.text)}{cut}"
    return _Verdict(place, again.text or reply.text, reason, True)


def _no_answer(reply: Reply) -> str:
    return f"the judge gave no answer: {reply.error}" if reply.error else ""


def _short(text: str) -> str:
    shown = " ".join(text.split())
    return repr(shown if len(shown) <= 120 else shown[:119] + "…")

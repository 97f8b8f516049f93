"""Facts in other words, kept only where nothing was lost and nothing came in.

Source: Ovadia et al. 2023, arXiv:2312.05934, and Allen-Zhu and Li 2023, arXiv:2309.14316: a fact that is stated in
one wording only is stored, but cannot be asked for.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transfuse.errors import GenerationError
from transfuse.generate.protocol import Ask, Reply
from transfuse.inject.pair_drafts import Desk, Title, together
from transfuse.inject.pair_prompts import drawn, paraphrases_request
from transfuse.inject.pair_settings import PairSettings
from transfuse.text.answers import answer_words
from transfuse.text.replies import read_items
from transfuse.text.wording import question_key, word_set
from transfuse.types import Dropped, Fact


@dataclass(frozen=True, slots=True)
class ParaphraseSheet:
    """Facts with their paraphrases."""

    facts: list[Fact]
    dropped: list[Dropped]
    stopped: GenerationError | None = None
    """Why no further request could succeed; facts not asked about by then have no paraphrases."""


_WORD = re.compile(r"[^\W\d_](?:[\w]|[-'’](?=\w))*")
_POSSESSIVE = re.compile(r"['’]s?$")


_QUANTITIES = word_set(
    "two three four five six seven eight nine ten eleven twelve hundred thousand million billion trillion % "
    "not no never none neither nor without"
)
_OPENERS = word_set(
    "a about according after all along among an and around as at back before between both by during each every "
    "first for from he her his in into it its just more next of on once one only our out over she since that the "
    "their there these they this those through to today together under until up upon when where while who with"
)
"""Words that open a sentence without being a name."""
_OPENING_ENDS = ("ed", "ing", "ly")
_MAX_GROWTH = 2.5
"""How many times as many words as the fact a paraphrase may have."""


async def write_paraphrases(
    facts: Sequence[Fact],
    ask: Ask,
    settings: PairSettings,
    *,
    title: Title,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> ParaphraseSheet:
    """Statements of every fact in other words, in one request a fact.

    Args:
        facts: with unique ids.
        ask: the generator.
        settings: how many paraphrases, and how they are sampled.
        title: what the document is about, or by fact id.
        seed: of sampling.
        on_progress: called with the numbers of facts done and given.

    Returns:
        The facts in the order given, each with what passed the checks, at most `settings.paraphrases`.
    """
    if not settings.paraphrases:
        return ParaphraseSheet(list(facts), [])
    desk = Desk(ask, settings, title, seed)
    n_done = 0

    async def reply_to(fact: Fact) -> Reply:
        nonlocal n_done
        request = paraphrases_request(
            fact.fact, settings, title=desk.title_of(fact.id), seed=drawn(seed, "paraphrases", fact.id)
        )
        try:
            reply = await desk.ask(request)
        except GenerationError as err:
            reply = Reply("", error=str(err))
        n_done += 1
        if on_progress is not None:
            on_progress(n_done, len(facts))
        return reply

    replies = await together(reply_to(fact) for fact in facts)
    written: list[Fact] = []
    dropped: list[Dropped] = []
    for fact, reply in zip(facts, replies, strict=True):
        kept, lost = _screened(fact, reply, settings.paraphrases)
        written.append(replace(fact, paraphrases=tuple(kept)))
        dropped += lost
    return ParaphraseSheet(written, dropped, desk.stopped)


def paraphrase_fault(statement: str, fact: str) -> str:
    """In words, how a statement does not say what the fact says, as far as its wording shows; empty where it may.

    Args:
        statement: the fact in other words.
        fact: the fact.

    Returns:
        The first fault: a number, negation or capitalised name that only one of the two has, or its length.
    """
    words, own = answer_words(statement), answer_words(fact)
    if not words:
        return "the paraphrase is empty"
    if statement.rstrip().endswith(("?", "？", "؟")):
        return "the paraphrase is a question"
    if question_key(statement) == question_key(fact):
        return "the paraphrase is the fact itself"
    for what, theirs, ours, seen, known in (
        ("numbers or negations", _quantities(words), _quantities(own), set(words), set(own)),
        ("names", _names(statement), _names(fact), _bare_words(statement), _bare_words(fact)),
    ):
        if missing := sorted(ours - seen):
            return f"the paraphrase leaves out {what}: {', '.join(missing)}"
        if added := sorted(theirs - known):
            return f"the paraphrase adds {what}: {', '.join(added)}"
    if len(words) > _MAX_GROWTH * len(own) + 2:
        return f"the paraphrase is too long: {len(words)} words for {len(own)}"
    return ""


def _screened(fact: Fact, reply: Reply, n_most: int) -> tuple[list[str], list[Dropped]]:
    if reply.error:
        return [], [Dropped("reply", f"{fact.id}: paraphrases", f"the request failed: {reply.error}")]
    items, problems = read_items(reply.text, "statements", ("statement",))
    dropped = [Dropped("reply", f"{fact.id}: paraphrases", problem) for problem in problems]
    kept: list[str] = []
    for item in items:
        statement = " ".join(item["statement"].split())
        fault = paraphrase_fault(statement, fact.fact)
        if not fault and question_key(statement) in map(question_key, kept):
            fault = "repeats an earlier paraphrase"
        if not fault and len(kept) == n_most:
            fault = "more than were asked for"
        if fault:
            dropped.append(Dropped("paraphrase", f"{fact.id}: {statement}", fault))
        else:
            kept.append(statement)
    return kept, dropped


def _quantities(words: Sequence[str]) -> set[str]:
    return {word for word in words if word in _QUANTITIES or any(sign.isdigit() for sign in word)}


def _names(text: str) -> set[str]:
    """Words that begin with a capital; the first one of the text only where it looks like a name."""
    found = [word[0] for word in _WORD.finditer(text)]
    names = {_bare(word) for word in found[1:] if word[0].isupper()}
    first = _bare(found[0]) if found else ""
    if first and found[0][0].isupper() and first not in _OPENERS and not first.endswith(_OPENING_ENDS):
        names.add(first)
    return names


def _bare_words(text: str) -> set[str]:
    return {_bare(word[0]) for word in _WORD.finditer(text)}


def _bare(word: str) -> str:
    return _POSSESSIVE.sub("", word).casefold()

"""Facts to verified questions and answers, each fact on its own (fact-based scaling).

Source: Mecklenburg et al. 2024, arXiv:2404.00213, fact-based scaling.
Differs: pairs are asked for in rounds until enough have passed, every pair is verified from its source, and the eval
question of a fact is one of the first round, so that it is the same at every scale.
"""

from collections.abc import Callable, Mapping, Sequence

from transfuse.errors import GenerationError
from transfuse.generate.protocol import Ask, Request
from transfuse.inject.ledger import PairSheet
from transfuse.inject.pair_checks import Candidate, IsNear
from transfuse.inject.pair_drafts import (
    Accepted,
    Desk,
    Draft,
    Title,
    accept_candidates,
    read_candidates,
    together,
)
from transfuse.inject.pair_prompts import drawn, fact_pairs_request
from transfuse.inject.pair_settings import PairSettings
from transfuse.inject.pair_settling import is_full, settled
from transfuse.text.replies import read_json
from transfuse.types import Fact


async def write_fact_pairs(
    facts: Sequence[Fact],
    sources: Mapping[str, str],
    ask: Ask,
    settings: PairSettings,
    *,
    scale: int | Mapping[str, int],
    title: Title,
    seed: int = 0,
    is_near: IsNear | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> PairSheet:
    """Questions and answers for every fact; no fact waits for another.

    The requests of a round do not depend on the scale, so that with the same seed a greater scale
    repeats those of a smaller one and goes on from there.

    Args:
        facts: with unique ids.
        sources: by fact id, the text that the fact was taken from.
        ask: the generator.
        settings: how pairs are written and checked.
        scale: training questions a fact, for all facts or by fact id.
        title: what the document is about, or by fact id.
        seed: of sampling and of the choice of eval questions.
        is_near: whether a question says the same as one of the fact's earlier ones in other words.
        on_progress: called with the numbers of facts done and given.

    Returns:
        Pairs by fact, in the order of the facts; a fate for every fact, whatever came of the requests.
    """
    desk = Desk(ask, settings, title, seed, is_near)
    drafts = [
        Draft("fact", fact.id, scale if isinstance(scale, int) else scale[fact.id], 1, settings.n_eval)
        for fact in facts
    ]
    n_done = 0

    async def write(fact: Fact, draft: Draft) -> None:
        nonlocal n_done
        try:
            await _write_fact(fact, sources[fact.id], draft, desk)
        except GenerationError as err:
            draft.ending = str(err)
        draft.eval_choices = _eval_choices(draft, settings.n_eval, seed)
        n_done += 1
        if on_progress is not None:
            on_progress(n_done, len(facts))

    await together(write(fact, draft) for fact, draft in zip(facts, drafts, strict=True))
    return settled(drafts, settings.eval_distance, desk.stopped)


async def _write_fact(fact: Fact, source: str, draft: Draft, desk: Desk) -> None:
    settings = desk.settings
    n_skips = 0
    for number in range(1, settings.max_rounds + 1):
        while True:
            shown = source if n_skips else None
            request = fact_pairs_request(
                fact.fact,
                shown,
                draft.questions,
                settings,
                title=desk.title_of(fact.id),
                seed=drawn(desk.seed, fact.id, number, n_skips),
            )
            candidates, skip_reason = await _asked(request, draft, desk, number)
            if not skip_reason:
                break
            n_skips += 1
            if n_skips > settings.max_retries_skip:
                draft.skip_reason = skip_reason
                draft.ending = f"the generator declined to write more: {skip_reason}"
                return
        await accept_candidates(draft, [(each, source) for each in candidates], desk, number)
        draft.eval_choices = _eval_choices(draft, settings.n_eval, desk.seed)
        if is_full(draft, settings.eval_distance):
            return
    draft.ending = f"asked {settings.max_rounds} times"


async def _asked(request: Request, draft: Draft, desk: Desk, number: int) -> tuple[list[Candidate], str]:
    """The candidates of one reply, or why the generator declines."""
    reply = await desk.ask(request)
    value = None if reply.error else read_json(reply.text)
    skip = value.get("skip") if isinstance(value, dict) else None
    skip_reason = (
        " ".join(skip.split()) if isinstance(skip, str) else "no reason given" if skip is True else ""
    )
    n_faults = len(draft.faults)
    candidates = read_candidates(reply, draft, number)
    if candidates or skip_reason.casefold() in ("", "null", "none", "false", "no"):
        return candidates, ""
    del draft.faults[n_faults:]
    return [], skip_reason


def _eval_choices(draft: Draft, n_eval: int, seed: int) -> list[Accepted]:
    """Pairs of the first rounds that gave enough, each round's from a drawn one on, in a circle."""
    choices: list[Accepted] = []
    for number in sorted({pair.round for pair in draft.accepted}):
        if len(choices) >= n_eval:
            break
        pairs = [pair for pair in draft.accepted if pair.round == number]
        first = drawn(seed, draft.id, number) % len(pairs)
        choices += pairs[first:] + pairs[:first]
    return choices

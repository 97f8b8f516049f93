"""Sections to verified questions and answers, as many tokens of them as the scale asks for (token-based scaling).

Source: Mecklenburg et al. 2024, arXiv:2404.00213, token-based scaling.
Differs: pairs go to training and evaluation in turn as they are written, so that the eval questions are the same at
every scale; every pair is verified from its text; no hand-written pair begins.
"""

import math
from collections.abc import Callable, Sequence

from transfuse.errors import GenerationError
from transfuse.generate.protocol import Ask, Reply
from transfuse.inject.ledger import PairSheet
from transfuse.inject.pair_checks import Candidate, IsNear, likeness
from transfuse.inject.pair_drafts import (
    Accepted,
    Desk,
    Draft,
    Title,
    accept_candidates,
    read_candidates,
    together,
)
from transfuse.inject.pair_prompts import drawn, section_pairs_request
from transfuse.inject.pair_settings import PairSettings
from transfuse.inject.pair_settling import eval_pairs, is_full, settled, trainable_pairs
from transfuse.text.sentences import split_sentences
from transfuse.types import Section

CountTokens = Callable[[str], int]


async def write_section_pairs(
    sections: Sequence[Section],
    ask: Ask,
    settings: PairSettings,
    *,
    scale: int,
    count_tokens: CountTokens,
    title: Title,
    seed: int = 0,
    is_near: IsNear | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> PairSheet:
    """Questions and answers for every section; no section waits for another.

    Training pairs are written until their questions and answers hold `scale` times the section's
    tokens, eval pairs until they hold as many as the section. Requests do not depend on the scale,
    so that with the same seed a greater scale repeats those of a smaller one and goes on from there.

    Args:
        sections: those of one title are treated as one.
        ask: the generator.
        settings: how pairs are written and checked.
        scale: training tokens per token of the section.
        count_tokens: tokens of a text.
        title: what the document is about, or by title of the section.
        seed: of sampling.
        is_near: whether a question says the same as one of the section's earlier ones in other words.
        on_progress: called with the numbers of sections done and given, by title.

    Returns:
        Pairs by section, in the order of the sections; a fate for every title.
    """
    desk = Desk(ask, settings, title, seed, is_near)
    texts: dict[str, list[str]] = {}
    for section in sections:
        texts.setdefault(section.title, []).append(section.text)
    sizes = {heading: max(1, sum(map(count_tokens, parts))) for heading, parts in texts.items()}
    drafts = [Draft("section", heading, scale, size, size) for heading, size in sizes.items()]
    n_done = 0

    async def write(draft: Draft) -> None:
        nonlocal n_done
        windows = [
            window
            for text in texts[draft.id]
            for window in windows_of(text, settings.window_tokens, count_tokens)
        ]
        try:
            await _write_section(windows, draft, desk, count_tokens)
        except GenerationError as err:
            draft.ending = str(err)
        n_done += 1
        if on_progress is not None:
            on_progress(n_done, len(drafts))

    await together(write(draft) for draft in drafts)
    return settled(drafts, settings.eval_distance, desk.stopped)


def windows_of(text: str, max_tokens: int, count_tokens: CountTokens) -> list[str]:
    """The text in stretches of whole sentences.

    Args:
        text: of a section.
        max_tokens: longest stretch; a longer sentence is a stretch of its own.
        count_tokens: tokens of a text.

    Returns:
        Stretches of about the same length, in order; the text itself where it is short enough.
    """
    n_tokens = count_tokens(text)
    if n_tokens <= max_tokens:
        return [text] if text.strip() else []
    aim = n_tokens / math.ceil(n_tokens / max_tokens)
    windows: list[tuple[int, int]] = []
    for start, end in split_sentences(text):
        if windows:
            first = windows[-1][0]
            is_ample = count_tokens(text[slice(*windows[-1])]) >= aim
            if not is_ample and count_tokens(text[first:end]) <= max_tokens:
                windows[-1] = (first, end)
                continue
        windows.append((start, end))
    return [text[slice(*window)] for window in windows]


async def _write_section(windows: Sequence[str], draft: Draft, desk: Desk, count_tokens: CountTokens) -> None:
    settings = desk.settings
    taken: list[list[str]] = [[] for _ in windows]
    n_dry = [0] * len(windows)
    number = 0

    def size(candidate: Candidate) -> int:
        return max(1, count_tokens(candidate.question) + count_tokens(candidate.answer))

    while not is_full(draft, settings.eval_distance):
        live = [index for index in range(len(windows)) if n_dry[index] < settings.max_dry_rounds]
        if not live:
            train = trainable_pairs(draft, eval_pairs(draft, {}), settings.eval_distance)
            share = sum(pair.size for pair in train) / draft.unit
            draft.ending = f"the generator has run dry at {share:.1f} x"
            return
        number += 1
        replies = await together(
            _reply(windows[index], index, taken[index], draft.id, desk, number) for index in live
        )
        written = [read_candidates(reply, draft, number) for reply in replies]
        origins = [index for index, found in zip(live, written, strict=True) for _ in found]
        candidates = [candidate for found in written for candidate in found]
        given = [(each, windows[index]) for each, index in zip(candidates, origins, strict=True)]
        n_accepted = len(draft.accepted)
        try:
            accepted = await accept_candidates(draft, given, desk, number, size)
        finally:
            _allot(draft, draft.accepted[n_accepted:], settings.eval_distance)
        for index in live:
            n_dry[index] += 1
        for index, pair in zip(origins, accepted, strict=True):
            if pair is not None:
                n_dry[index] = 0
                taken[index].append(pair.question)


async def _reply(
    window: str, index: int, taken: Sequence[str], heading: str, desk: Desk, number: int
) -> Reply:
    """The reply of one request for pairs; a failed one where no request can succeed, so that none is lost."""
    seed = drawn(desk.seed, heading, index, number)
    request = section_pairs_request(
        window, taken, desk.settings, title=desk.title_of(heading), heading=heading, seed=seed
    )
    try:
        return await desk.ask(request)
    except GenerationError as err:
        return Reply("", error=str(err))


def _allot(draft: Draft, pairs: Sequence[Accepted], eval_distance: float) -> None:
    """Give pairs to training and evaluation in turn, until evaluation is full.

    A pair whose wording is near one of the other split goes to its own kind, or to neither.
    """
    evals = draft.eval_choices
    n_before = len(draft.accepted) - len(pairs)
    for n_earlier, pair in enumerate(pairs, start=n_before):
        if sum(each.size for each in evals) >= draft.eval_target:
            return
        keys = {each.key for each in evals}
        train = [each for each in draft.accepted[:n_earlier] if each.key not in keys]
        is_turn = len(evals) < len(train)
        is_near_train = any(likeness(pair.key, each.key) >= eval_distance for each in train)
        is_near_eval = any(likeness(pair.key, each.key) >= eval_distance for each in evals)
        if (is_turn or is_near_eval) and not is_near_train:
            evals.append(pair)

"""Further training pairs beside the direct ones: asked the other way round, across two facts, and not answerable.

Source: reversed questions, Berglund et al. 2023, arXiv:2309.12288 (what is learned in one direction is not known in
the other); questions without an answer, Rajpurkar et al. 2018, arXiv:1806.03822.
"""

import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

from transfuse.errors import GenerationError
from transfuse.generate.protocol import Ask
from transfuse.inject.ledger import PairSheet
from transfuse.inject.pair_checks import Candidate, likeness
from transfuse.inject.pair_drafts import (
    BETWEEN_IDS,
    REPEATS,
    Accepted,
    Desk,
    Draft,
    Title,
    accept_candidates,
    read_candidates,
    together,
)
from transfuse.inject.pair_prompts import (
    drawn,
    reverse_pairs_request,
    two_fact_pairs_request,
    unknown_questions_request,
)
from transfuse.inject.pair_settings import PairSettings
from transfuse.inject.verification import Verdict, verify_unknown
from transfuse.text.answers import answer_words, contains
from transfuse.text.replies import read_items
from transfuse.text.wording import question_key
from transfuse.types import Dropped, Fact, PairKind, QAPair, Section

UNKNOWN_ANSWER = "I don't know."
"""The gold answer of questions that the document leaves open."""
MIN_SHARED_LETTERS = 4
"""Two facts are asked about together where they share a word of that length which is not the title's."""


class _Job(NamedTuple):
    """Facts that a few further pairs are asked for."""

    facts: tuple[Fact, ...]
    source: str


class _Kind(NamedTuple):
    """One kind of further pairs: how many, of what, and who writes them."""

    name: PairKind
    n_wanted: int
    jobs: list[_Job]
    write: Callable[[_Job, Draft, int, Collection[str], Desk], Awaitable[None]]


async def write_extra_pairs(
    sheet: PairSheet,
    facts: Sequence[Fact],
    sources: Mapping[str, str],
    sections: Sequence[Section],
    ask: Ask,
    settings: PairSettings,
    *,
    title: Title,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> PairSheet:
    """Add the kinds of pairs whose share is not 0.

    Args:
        sheet: the direct pairs of the facts; the shares are of its training pairs.
        facts: those that the sheet was written from; only facts with training pairs get further ones.
        sources: by fact id, the text that the fact was taken from.
        sections: a question counts as unknown where no section of the fact's title answers it.
        ask: the generator.
        settings: shares and checks.
        title: what the document is about, or by fact id.
        seed: of the choice of facts and of sampling.
        on_progress: called with the numbers of further pairs there and wanted.

    Returns:
        The sheet with the further pairs after the direct ones; no question stands in it twice. The
        fates stay as they are.
    """
    if sheet.stopped is not None:
        return sheet
    desk = Desk(ask, settings, title, seed)
    kinds = _kinds(sheet, facts, sources, sections, settings, desk, seed)
    n_wanted = sum(kind.n_wanted for kind in kinds)
    pairs, dropped = list(sheet.pairs), list(sheet.dropped)
    for kind in kinds:
        await _add(kind, pairs, dropped, desk)
        if on_progress is not None:
            on_progress(len(pairs) - len(sheet.pairs), n_wanted)
    return replace(sheet, pairs=pairs, dropped=dropped, stopped=desk.stopped)


def _kinds(
    sheet: PairSheet,
    facts: Sequence[Fact],
    sources: Mapping[str, str],
    sections: Sequence[Section],
    settings: PairSettings,
    desk: Desk,
    seed: int,
) -> list[_Kind]:
    n_direct = sum(pair.split == "train" and pair.kind == "direct" for pair in sheet.pairs)
    taught = {pair.source for pair in sheet.pairs if pair.split == "train"}
    able = [fact for fact in facts if fact.id in taught]
    whole: dict[str, str] = {}
    for section in sections:
        whole[section.title] = f"{whole.get(section.title, '')}\n\n{section.text}".strip()
    single = [_Job((fact,), sources[fact.id]) for fact in able]
    double = [
        _Job(both, "\n\n".join(dict.fromkeys(sources[fact.id] for fact in both)))
        for both in (_related(able, desk) if settings.two_facts_share else [])
    ]
    near = [_Job((fact,), whole.get(fact.section, sources[fact.id])) for fact in able]
    kinds = [
        _Kind("reverse", round(settings.reverse_share * n_direct), single, _write_reverse),
        _Kind("two-facts", round(settings.two_facts_share * n_direct), double, _write_two_facts),
        _Kind("unknown", round(settings.unknown_share * n_direct), near, _write_unknown),
    ]
    for kind in kinds:
        kind.jobs.sort(key=lambda job, name=kind.name: drawn(seed, name, *(fact.id for fact in job.facts)))
    return [kind for kind in kinds if kind.n_wanted]


def _related(facts: Sequence[Fact], desk: Desk) -> list[tuple[Fact, Fact]]:
    """Facts of one section that share a word which is not the title's."""
    words = {
        fact.id: {word for word in answer_words(fact.fact) if len(word) >= MIN_SHARED_LETTERS}
        - set(answer_words(desk.title_of(fact.id)))
        for fact in facts
    }
    return [
        (one, other)
        for one, other in combinations(facts, 2)
        if one.section == other.section and words[one.id] & words[other.id]
    ]


async def _add(kind: _Kind, pairs: list[QAPair], dropped: list[Dropped], desk: Desk) -> None:
    """Ask about as many facts as pairs are missing, then about the next ones for what was dropped."""
    n_before, n_asked = len(pairs), 0
    n_each = math.ceil(kind.n_wanted / len(kind.jobs)) if kind.jobs else 1
    while (n_missing := kind.n_wanted - (len(pairs) - n_before)) > 0 and desk.stopped is None:
        jobs = kind.jobs[n_asked : n_asked + math.ceil(n_missing / n_each)]
        if not jobs:
            break
        n_asked += len(jobs)
        taken = {question_key(pair.question) for pair in pairs}
        drafts = await together(_written(job, kind, n_each, taken, desk) for job in jobs)
        for job, draft in zip(jobs, drafts, strict=True):
            chosen = _chosen(job, draft, pairs, desk.settings.eval_distance)
            n_free = n_before + kind.n_wanted - len(pairs)
            for pair in chosen[n_free:]:
                draft.drop(pair.question, "more than the share asks for")
            pairs += [
                _pair(pair, job, kind, len(pairs) + n) for n, pair in enumerate(chosen[:n_free], start=1)
            ]
            dropped += [Dropped("pair", f"{draft.id}: {what}", why) for what, why in draft.dropped]
            dropped += [Dropped("reply", f"{draft.id}: {kind.name}", fault) for _, fault in draft.faults]
    n_kept = len(pairs) - n_before
    if n_kept < kind.n_wanted:
        why = str(desk.stopped) if desk.stopped else f"all {len(kind.jobs)} choices of facts were asked about"
        what = f"{kind.n_wanted - n_kept} of {kind.n_wanted} pairs of kind {kind.name}"
        dropped.append(Dropped("pair", what, f"never written: {why}"))


async def _written(job: _Job, kind: _Kind, n_each: int, taken: Collection[str], desk: Desk) -> Draft:
    draft = Draft("fact", BETWEEN_IDS.join(fact.id for fact in job.facts), n_each, 1, 0)
    try:
        await kind.write(job, draft, n_each, taken, desk)
    except GenerationError as err:
        draft.faults.append((1, str(err)))
    return draft


def _chosen(job: _Job, draft: Draft, pairs: Sequence[QAPair], eval_distance: float) -> list[Accepted]:
    """The accepted pairs whose question is new, and not near an eval question of the same facts."""
    taken = {question_key(pair.question) for pair in pairs}
    ids = {fact.id for fact in job.facts}
    measuring = [question_key(pair.question) for pair in pairs if pair.split == "eval" and pair.source in ids]
    chosen: list[Accepted] = []
    for pair in draft.accepted:
        if pair.key in taken:
            draft.drop(pair.question, REPEATS)
        elif any(likeness(pair.key, key) >= eval_distance for key in measuring):
            draft.drop(pair.question, "too near to an eval question")
        else:
            taken.add(pair.key)
            chosen.append(pair)
    return chosen


def _pair(pair: Accepted, job: _Job, kind: _Kind, number: int) -> QAPair:
    first, *others = (fact.id for fact in job.facts)
    return QAPair(
        f"q{number}",
        "fact",
        first,
        "train",
        pair.question,
        pair.answer,
        kind=kind.name,
        also=tuple(others),
    )


async def _write_reverse(job: _Job, draft: Draft, n_each: int, taken: Collection[str], desk: Desk) -> None:
    (fact,) = job.facts
    seed = drawn(desk.seed, "reverse", fact.id)
    request = reverse_pairs_request(fact.fact, n_each, desk.settings, title=desk.title_of(fact.id), seed=seed)
    candidates: list[tuple[Candidate, str]] = []
    for candidate in read_candidates(await desk.ask(request), draft, 1):
        words = answer_words(candidate.answer)
        if words and contains(answer_words(fact.fact), words):
            candidates.append((candidate, job.source))
        else:
            draft.drop(candidate.question, f"its answer is not in the fact: {candidate.answer!r}")
    await accept_candidates(draft, candidates, desk, 1, elsewhere=taken)


async def _write_two_facts(job: _Job, draft: Draft, n_each: int, taken: Collection[str], desk: Desk) -> None:
    seed = drawn(desk.seed, "two-facts", *(fact.id for fact in job.facts))
    statements = [fact.fact for fact in job.facts]
    request = two_fact_pairs_request(
        statements, n_each, desk.settings, title=desk.title_of(draft.id), seed=seed
    )
    candidates = read_candidates(await desk.ask(request), draft, 1)
    await accept_candidates(
        draft, [(candidate, job.source) for candidate in candidates], desk, 1, elsewhere=taken
    )


async def _write_unknown(job: _Job, draft: Draft, n_each: int, taken: Collection[str], desk: Desk) -> None:
    (fact,) = job.facts
    seed = drawn(desk.seed, "unknown", fact.id)
    request = unknown_questions_request(
        fact.fact, job.source, n_each, desk.settings, title=desk.title_of(fact.id), seed=seed
    )
    reply = await desk.ask(request)
    if reply.error:
        draft.faults.append((1, f"the request failed: {reply.error}"))
        return
    items, problems = read_items(reply.text, "questions", ("question",))
    draft.faults += [(1, problem) for problem in problems]
    questions: list[str] = []
    known = set(taken)
    for item in items:
        question = " ".join(item["question"].split())
        if question_key(question) in known:
            draft.drop(question, REPEATS)
        else:
            known.add(question_key(question))
            questions.append(question)
    verdicts = await together(
        _unknown(question, job.source, desk.title_of(fact.id), desk) for question in questions
    )
    for question, verdict in zip(questions, verdicts, strict=True):
        if verdict.is_accepted:
            draft.accepted.append(Accepted(question, UNKNOWN_ANSWER, question_key(question), 1, 1))
        else:
            draft.drop(question, verdict.reason)


async def _unknown(question: str, source: str, title: str, desk: Desk) -> Verdict:
    try:
        return await verify_unknown(question, source, title, desk.ask, desk.settings)
    except GenerationError as err:
        return Verdict(False, f"not verified: {err}", question)

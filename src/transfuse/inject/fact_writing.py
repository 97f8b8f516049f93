"""From sections to atomic facts: every sentence is asked about, and every one has a known fate."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from transfuse.errors import GenerationError
from transfuse.generate.protocol import Ask
from transfuse.inject.fact_asking import Asker, Outcome
from transfuse.inject.fact_checking import FactSource
from transfuse.inject.fact_merging import Similar, merge_reason, near_identical
from transfuse.inject.fact_windows import Sentence, cut_windows, number_sentences
from transfuse.inject.fact_words import ground_of
from transfuse.types import Dropped, Fact, Section, StrictModel


class FactSettings(StrictModel):
    """How facts are written."""

    window_sentences: PositiveInt = 12
    """Most sentences that one request shows; fewer take more requests and miss less."""
    window_chars: PositiveInt = 4000
    """Most characters of text that one request shows; a longer sentence goes alone."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """0 decodes greedily."""
    max_new_tokens: PositiveInt = 1024
    """Longest reply; the sentences that a cut reply leaves out are asked about again."""
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.92
    """From which likeness on two facts are merged, if they have the same numbers, names and denials."""


Fate = Literal["facts", "no fact", "failed"]


@dataclass(frozen=True, slots=True)
class SentenceFate:
    """What became of one sentence."""

    document: str
    section: str
    """`Section.title`."""
    span: tuple[int, int]
    """Start and end character offsets in `Document.text`."""
    text: str
    fate: Fate
    fact_ids: tuple[str, ...] = ()
    """The facts that state it; some may have been merged from facts of its own."""
    reason: str = ""
    """Why there is no fact, where there is none."""


@dataclass
class FactSheet:
    """Facts of a set of sections, and what became of everything else."""

    facts: list[Fact]
    sentences: list[SentenceFate]
    """Every sentence of every section, in order."""
    dropped: list[Dropped]
    """Facts that were refused or merged, and pieces of replies that could not be read."""
    stopped: GenerationError | None = None
    """Why the generator stopped answering, where it did."""


async def write_facts(
    sections: Sequence[Section],
    document_texts: Mapping[str, str],
    ask: Ask,
    settings: FactSettings,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    similar: Similar | None = None,
) -> FactSheet:
    """Have a generator write down the facts of every sentence.

    Args:
        sections: in document order.
        document_texts: `Document.name` to `Document.text`.
        ask: called for all windows at once; it limits itself.
        settings: how.
        on_progress: called with the windows done and the windows in all.
        similar: likeness in meaning; merges facts whose wordings differ more.

    Returns:
        A complete sheet, whatever the generator did: each sentence has exactly one fate.

    Raises:
        DataError: the text of a section's document was not given.
    """
    numbered = number_sentences(sections, document_texts)
    grounds = {name: ground_of([text, name]) for name, text in document_texts.items()}
    sources = [
        FactSource(
            ground_of([section.text, *titles_of(section)]), grounds[section.document], titles_of(section)
        )
        for section in sections
    ]
    windows = [
        window
        for index, sentences in enumerate(numbered)
        for window in cut_windows(index, sentences, settings.window_sentences, settings.window_chars)
    ]
    asker = Asker(ask, sources, settings.temperature, settings.max_new_tokens)
    n_done = 0

    async def write(index: int) -> Outcome:
        nonlocal n_done
        outcome = await asker.write(windows[index])
        n_done += 1
        if on_progress:
            on_progress(n_done, len(windows))
        return outcome

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(write(index)) for index in range(len(windows))]
    return _sheet(sections, numbered, [task.result() for task in tasks], asker.stopped, settings, similar)


def titles_of(section: Section) -> tuple[str, ...]:
    """The document's title and the headings down to the section's own."""
    return section.heading_path or (section.document,)


def _sheet(
    sections: Sequence[Section],
    numbered: Sequence[Sequence[Sentence]],
    outcomes: Sequence[Outcome],
    stopped: GenerationError | None,
    settings: FactSettings,
    similar: Similar | None,
) -> FactSheet:
    """Merge what the windows gave, number it in document order, and settle each sentence's fate."""
    statements = [
        statement
        for outcome in outcomes
        for statement in sorted(outcome.accepted, key=lambda each: each.sentences[0].index)
    ]
    texts = [statement.text for statement in statements]
    merges = {
        merge.gone: merge for merge in near_identical(texts, similarity=settings.similarity, similar=similar)
    }
    section_of = {
        sentence.index: section
        for section, sentences in zip(sections, numbered, strict=True)
        for sentence in sentences
    }
    facts: dict[int, Fact] = {}
    for index, statement in enumerate(statements):
        if index not in merges:
            first, last = statement.sentences[0], statement.sentences[-1]
            section = section_of[first.index]
            span = (first.span[0], last.span[1])
            facts[index] = Fact(f"f{len(facts) + 1:03d}", section.title, statement.text, span)
    dropped = [drop for outcome in outcomes for drop in outcome.dropped]
    ids: dict[int, list[str]] = {}
    for index, statement in enumerate(statements):
        merge = merges.get(index)
        fact = facts[merge.kept if merge else index]
        if merge:
            dropped.append(Dropped("fact", statement.text, merge_reason(merge, fact)))
        for sentence in statement.sentences:
            ids.setdefault(sentence.index, []).append(fact.id)
    reasons = {index: reason for outcome in outcomes for index, reason in outcome.reasons.items()}
    failed = {index: error for outcome in outcomes for index, error in outcome.failed.items()}
    fates: list[SentenceFate] = []
    for section, sentences in zip(sections, numbered, strict=True):
        for sentence in sentences:
            at = (section.document, section.title, sentence.span, sentence.text)
            if sentence.index in ids:
                fates.append(SentenceFate(*at, "facts", tuple(dict.fromkeys(ids[sentence.index]))))
            elif sentence.index in failed:
                fates.append(SentenceFate(*at, "failed", reason=failed[sentence.index]))
            else:
                reason = reasons.get(sentence.index, "the generator gave no fact for it, twice")
                fates.append(SentenceFate(*at, "no fact", reason=reason))
    return FactSheet(list(facts.values()), fates, dropped, stopped)

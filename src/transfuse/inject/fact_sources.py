"""The text that a fact was taken from: what its questions are checked against."""

from collections.abc import Mapping, Sequence

from transfuse.types import Document, Fact, Section

MARGIN_CHARACTERS = 400
"""How far the source text of a fact reaches beyond its own sentences, both ways, within its section."""


def fact_sources(
    facts: Sequence[Fact], sections: Sequence[Section], documents: Sequence[Document]
) -> dict[str, str]:
    """Text in which each fact stands.

    Args:
        facts: each perhaps with its span.
        sections: of the documents; a fact names one by its title.
        documents: as read; spans are offsets in their texts.

    Returns:
        By fact id: the fact's sentences with what stands around them, the whole section where the fact has no
        span in it, and the fact itself where its section is in no document.
    """
    texts = {document.name: document.text for document in documents}
    by_title: dict[str, list[Section]] = {}
    for section in sections:
        by_title.setdefault(section.title, []).append(section)
    return {fact.id: _source(fact, by_title.get(fact.section, []), texts) for fact in facts}


def _source(fact: Fact, sections: Sequence[Section], texts: Mapping[str, str]) -> str:
    for section in sections:
        if fact.span and section.span[0] <= fact.span[0] < fact.span[1] <= section.span[1]:
            return _around(texts[section.document], fact.span, section.span)
    return "\n\n".join(section.text for section in sections) or fact.fact


def _around(text: str, span: tuple[int, int], bounds: tuple[int, int]) -> str:
    """The span and its surroundings, cut between words."""
    start, end = max(bounds[0], span[0] - MARGIN_CHARACTERS), min(bounds[1], span[1] + MARGIN_CHARACTERS)
    while bounds[0] < start < span[0] and not text[start - 1].isspace():
        start += 1
    while span[1] < end < bounds[1] and not text[end].isspace():
        end -= 1
    return text[start:end].strip()

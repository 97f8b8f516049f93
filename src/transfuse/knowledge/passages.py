"""Sections as passages: as many whole sentences as are embedded together."""

import hashlib
import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from transfuse.errors import DataError
from transfuse.knowledge.passage_spans import locate_all
from transfuse.knowledge.records import Passage, PassageSettings
from transfuse.text.sentences import Span, split_sentences
from transfuse.types import Document, Section

CountTokens = Callable[[Sequence[str]], list[int]]
"""Number of tokens of each text, without the model's special ones."""

_MAX_CHARS_PER_TOKEN = 32
"""A word that the tokenizer takes for one unknown token counts as if it had at least one for so many characters."""
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class _Piece:
    """A sentence, or a part of one that is too long."""

    start: int
    end: int
    """Offsets in the section's text, white space at the ends excluded."""
    n_tokens: int
    """Together with the white space before it."""
    is_sentence: bool


def searched_text(passage: Passage, *, headings: bool) -> str:
    """What is embedded and searched by words: the headings on a line of their own, if wanted, then the text."""
    return _below(passage.heading_path, passage.text) if headings else passage.text


def cut_passages(
    document: Document, sections: Sequence[Section], settings: PassageSettings, count_tokens: CountTokens
) -> list[Passage]:
    """Cut the sections of a document into passages.

    A passage lies in one section and is a stretch of its text: whole sentences, as many as the limit lets in.
    It begins with what it repeats of the one before. A sentence beyond the limit is cut at white space, and a
    word beyond it anywhere; such parts are not repeated. Of a heading path that would take more than half of
    the limit the nearest headings are kept.

    Args:
        document: as read.
        sections: of this document, in order.
        settings: the limits.
        count_tokens: called a few times, with many texts at once.

    Returns:
        Passages in order. Every sentence of the sections stands in at least one. None is longer than the limit,
        but for a single character of more tokens than it.

    Raises:
        DataError: a section is of another document.
    """
    for section in sections:
        if section.document != document.name:
            raise DataError(
                f"section '{section.title}': expected one of document '{document.name}', got one of "
                f"'{section.document}'; cut each document by itself."
            )
    paths = _kept_headings(sections, settings, count_tokens)
    cuts = _cut(sections, paths, settings, count_tokens)
    n_earlier = Counter[tuple[tuple[str, ...], str]]()
    passages: list[Passage] = []
    for section, path, spans in zip(sections, paths, cuts, strict=True):
        located = _located(spans, section, document)
        for span, (start, end) in zip(spans, located, strict=True):
            text = section.text[slice(*span)]
            page = max(bisect_right(document.page_starts, start), 1) if document.page_starts else None
            id_ = _id(document.name, path, text, n_earlier[path, text])
            n_earlier[path, text] += 1
            passages.append(Passage(id_, document.name, path, text, (start, end), page))
    return passages


def _below(heading_path: Sequence[str], text: str) -> str:
    return f"{' > '.join(heading_path)}\n{text}" if heading_path else text


def _id(document: str, heading_path: Sequence[str], text: str, n_earlier: int) -> str:
    parts = json.dumps([document, list(heading_path), text, n_earlier])
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


# headings


def _kept_headings(
    sections: Sequence[Section], settings: PassageSettings, count_tokens: CountTokens
) -> list[tuple[str, ...]]:
    """Of each section's heading path what takes up to half of the limit: the nearest ones, or words of the last."""
    if not settings.headings:
        return [section.heading_path for section in sections]
    room = settings.max_tokens // 2
    kept: dict[tuple[str, ...], tuple[str, ...]] = {}
    paths = dict.fromkeys(section.heading_path for section in sections if section.heading_path)
    tails = list(dict.fromkeys(path[at:] for path in paths for at in range(len(path))))
    n_tokens = _counts([_below(tail, "") for tail in tails], count_tokens)
    fitting = {tail for tail, n in zip(tails, n_tokens, strict=True) if n <= room}
    alone = [path[-1] for path in paths if path[-1:] not in fitting]
    parts = _parts([(heading, 0, len(heading), room - 1) for heading in alone], count_tokens)
    first_of = {heading: heading[of[0].start : of[0].end] for heading, of in zip(alone, parts, strict=True)}
    for path in paths:
        tail = next((path[at:] for at in range(len(path)) if path[at:] in fitting), None)
        kept[path] = tail or (first_of[path[-1]],)
    return [kept.get(section.heading_path, ()) for section in sections]


# text


def _cut(
    sections: Sequence[Section],
    paths: Sequence[tuple[str, ...]],
    settings: PassageSettings,
    count_tokens: CountTokens,
) -> list[list[Span]]:
    """The passages of each section as spans of its text."""
    shown = [path if settings.headings else () for path in paths]
    distinct = list(dict.fromkeys(shown))
    n_of = dict(
        zip(distinct, _counts([_below(path, "") for path in distinct], count_tokens, least=0), strict=True)
    )
    rooms = [max(1, settings.max_tokens - n_of[path]) for path in shown]
    cuts: list[list[Span]] = [[] for _ in sections]
    pending = list(range(len(sections)))
    while pending:
        fresh = _pieces([(sections[at].text, rooms[at]) for at in pending], count_tokens)
        for at, pieces in zip(pending, fresh, strict=True):
            cuts[at] = _packed(pieces, rooms[at], settings.overlap_tokens)
        # Tokens may join differently across sentences: the finished passages are counted, and cut shorter if need be.
        texts = [_below(shown[at], sections[at].text[slice(*span)]) for at in pending for span in cuts[at]]
        n_tokens = iter(count_tokens(texts) if texts else [])
        excess = {at: max((next(n_tokens) for _ in cuts[at]), default=0) for at in pending}
        pending = [at for at in pending if excess[at] > settings.max_tokens and rooms[at] > 1]
        for at in pending:
            rooms[at] = max(1, rooms[at] - (excess[at] - settings.max_tokens))
    return cuts


def _pieces(texts: Sequence[tuple[str, int]], count_tokens: CountTokens) -> list[list[_Piece]]:
    """The sentences of each text, those beyond its room in parts."""
    spans = [split_sentences(text) for text, _ in texts]
    n_tokens = iter(
        _counts(
            [
                text[before:end]
                for (text, _), of_text in zip(texts, spans, strict=True)
                for before, (_, end) in zip((0, *(span[1] for span in of_text)), of_text, strict=False)
            ],
            count_tokens,
        )
    )
    sized = [[_Piece(*span, next(n_tokens), is_sentence=True) for span in of_text] for of_text in spans]
    long = [
        (text, piece.start, piece.end, room)
        for (text, room), pieces in zip(texts, sized, strict=True)
        for piece in pieces
        if piece.n_tokens > room
    ]
    parts = iter(_parts(long, count_tokens))
    return [
        [part for piece in pieces for part in (next(parts) if piece.n_tokens > room else [piece])]
        for (_, room), pieces in zip(texts, sized, strict=True)
    ]


def _parts(stretches: Sequence[tuple[str, int, int, int]], count_tokens: CountTokens) -> list[list[_Piece]]:
    """Stretches (text, start, end, room) as parts that fit: words together, and words that do not fit cut evenly."""
    pending = [
        (index, *word.span())
        for index, (text, start, end, _) in enumerate(stretches)
        for word in _WORD.finditer(text, start, end)
    ]
    words: list[list[_Piece]] = [[] for _ in stretches]
    while pending:
        texts = [stretches[index][0][start:end] for index, start, end in pending]
        cut: list[tuple[int, int, int]] = []
        for (index, start, end), n in zip(pending, _counts(texts, count_tokens), strict=True):
            room = stretches[index][3]
            if n <= room or end - start == 1:
                words[index].append(_Piece(start, end, n, is_sentence=False))
                continue
            n_parts = min(ceil(n / room), end - start)
            marks = [start + (end - start) * part // n_parts for part in range(n_parts + 1)]
            cut += [(index, *span) for span in pairwise(marks)]
        pending = cut
    return [
        _joined(sorted(of_stretch, key=lambda piece: piece.start), room)
        for of_stretch, (*_, room) in zip(words, stretches, strict=True)
    ]


def _joined(words: Sequence[_Piece], room: int) -> list[_Piece]:
    """Neighbouring words in parts of at most `room` tokens."""
    parts: list[_Piece] = []
    for word in words:
        if parts and parts[-1].n_tokens + word.n_tokens <= room:
            parts[-1] = _Piece(parts[-1].start, word.end, parts[-1].n_tokens + word.n_tokens, False)
        else:
            parts.append(word)
    return parts


def _packed(pieces: Sequence[_Piece], room: int, overlap: int) -> list[Span]:
    """Pieces in passages of at most `room` tokens, each beginning with whole sentences of the one before."""
    passages: list[Span] = []
    first, n_tokens = 0, 0
    for at, piece in enumerate(pieces):
        if at and n_tokens + piece.n_tokens > room:
            passages.append((pieces[first].start, pieces[at - 1].end))
            first, n_tokens = at, 0
            while (
                first
                and pieces[first - 1].is_sentence
                and n_tokens + pieces[first - 1].n_tokens <= min(overlap, room - piece.n_tokens)
            ):
                first -= 1
                n_tokens += pieces[first].n_tokens
        n_tokens += piece.n_tokens
    if pieces:
        passages.append((pieces[first].start, pieces[-1].end))
    return passages


def _counts(texts: Sequence[str], count_tokens: CountTokens, *, least: int = 1) -> list[int]:
    """Tokens of each text, with a lower bound for words that the tokenizer does not know."""
    if not texts:
        return []
    return [
        max(least, n, len(text) // _MAX_CHARS_PER_TOKEN)
        for text, n in zip(texts, count_tokens(texts), strict=True)
    ]


def _located(spans: Sequence[Span], section: Section, document: Document) -> list[Span]:
    """The same stretches as spans of the document's text."""
    offset = section.span[0]
    raw = document.text[slice(*section.span)]
    return [(start + offset, end + offset) for start, end in locate_all(spans, section.text, raw)]

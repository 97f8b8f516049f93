"""Sections as numbered sentences, and the windows in which a generator reads them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from transfuse.errors import DataError
from transfuse.inject.fact_words import content_of, same_stem
from transfuse.text.sentences import locate, split_sentences
from transfuse.types import Section

N_BEFORE = 3
"""Sentences before a window that are shown with it."""
_NUMBERS = re.compile(r"(?<![\d-])(\d{1,4})(?:\s*[-–]\s*(\d{1,4}))?(?!\d)")


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a section."""

    index: int
    """Position among the sentences of all sections."""
    text: str
    span: tuple[int, int]
    """Start and end character offsets in `Document.text`."""


@dataclass(frozen=True, slots=True)
class Window:
    """Neighbouring sentences of one section that go into one request."""

    section_index: int
    sentences: tuple[Sentence, ...]
    before: tuple[Sentence, ...]
    """The last sentences of the section before the window."""

    def halves(self) -> tuple["Window", "Window"]:
        """The window cut in two; it has at least two sentences."""
        middle = len(self.sentences) // 2
        first, second = self.sentences[:middle], self.sentences[middle:]
        return (
            Window(self.section_index, first, self.before),
            Window(self.section_index, second, (*self.before, *first)[-N_BEFORE:]),
        )


def number_sentences(
    sections: Sequence[Section], document_texts: Mapping[str, str]
) -> list[tuple[Sentence, ...]]:
    """The sentences of each section, numbered through all of them.

    Args:
        sections: in document order.
        document_texts: `Document.name` to `Document.text`.

    Returns:
        One tuple for each section.

    Raises:
        DataError: the text of a section's document was not given.
    """
    numbered: list[tuple[Sentence, ...]] = []
    index = 0
    for section in sections:
        if section.document not in document_texts:
            raise DataError(
                f"section '{section.title}': expected the text of its document '{section.document}', "
                f"got only {sorted(document_texts)}; pass the text of every document."
            )
        raw = document_texts[section.document][slice(*section.span)]
        spans = split_sentences(section.text)
        offset = section.span[0]
        sentences = tuple(
            Sentence(index + place, section.text[slice(*span)], (start + offset, end + offset))
            for place, (span, (start, end)) in enumerate(
                zip(spans, locate(spans, section.text, raw), strict=True)
            )
        )
        numbered.append(sentences)
        index += len(sentences)
    return numbered


def cut_windows(
    section_index: int, sentences: Sequence[Sentence], max_sentences: int, max_chars: int
) -> list[Window]:
    """Whole sentences in windows of about equal length; one longer than `max_chars` has a window of its own."""
    n_windows = ceil(len(sentences) / max_sentences)
    size = ceil(len(sentences) / n_windows) if n_windows else 0
    groups: list[list[Sentence]] = []
    n_chars = 0
    for sentence in sentences:
        if not groups or len(groups[-1]) >= size or n_chars + len(sentence.text) > max_chars:
            groups.append([])
            n_chars = 0
        groups[-1].append(sentence)
        n_chars += len(sentence.text)
    windows: list[Window] = []
    done = 0
    for group in groups:
        windows.append(Window(section_index, tuple(group), tuple(sentences[max(0, done - N_BEFORE) : done])))
        done += len(group)
    return windows


def stated_numbers(value: object, n_sentences: int) -> list[int]:
    """Sentence numbers as a model writes them (`[1, 2]`, `"[3]"`, `"2-4"`), those that exist."""
    found: set[int] = set()
    for match in _NUMBERS.finditer(str(value)):
        first, last = int(match[1]), int(match[2] or match[1])
        found.update(number for number in range(first, min(last, n_sentences) + 1) if number >= 1)
    return sorted(number for number in found if number <= n_sentences)


def sentences_behind(fact: str, numbers: Sequence[int], window: Window) -> tuple[Sentence, ...]:
    """The sentences of a window that state a fact.

    Args:
        fact: the statement.
        numbers: as the generator gave them, from 1; one whose sentence shares no content word with
            the fact does not count.
        window: what the generator read.

    Returns:
        Sentences in order; where no number counts, the one that shares most words; empty where
        none shares any.
    """
    words = set(content_of(fact))
    shared = [_n_shared(words, _content(sentence.text)) for sentence in window.sentences]
    named = [number for number in numbers if shared[number - 1] > 0]
    if not named and max(shared) > 0:
        named = [shared.index(max(shared)) + 1]
    return tuple(window.sentences[number - 1] for number in named)


@lru_cache(maxsize=4096)  # the same sentence is compared with every fact of its window
def _content(text: str) -> dict[str, tuple[str, ...]]:
    """The content words of a sentence under their first four letters."""
    by_beginning: dict[str, tuple[str, ...]] = {}
    for word in content_of(text):
        by_beginning[word[:4]] = (*by_beginning.get(word[:4], ()), word)
    return by_beginning


def _n_shared(words: set[str], others: Mapping[str, tuple[str, ...]]) -> int:
    return sum(any(same_stem(word, other) for other in others.get(word[:4], ())) for word in words)

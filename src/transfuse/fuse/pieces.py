"""Long texts cut into pieces that every model reads whole, at the same places for all of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from transfuse.errors import DataError
from transfuse.io.token_spans import token_spans

BREAKS = ("\n\n", "\n", ". ", "; ", ", ", " ")
"""Where a text is cut, the best place first; a blank stays with what follows it, a line break with what precedes it."""

MIN_SHARE = 0.5
"""Share of the room that a piece fills at least, if it is to end at a better place."""

_TEXTS_A_BATCH = 256
_SHRINK = 0.9


class Piece(NamedTuple):
    """A stretch of a text."""

    text: str
    source: int
    """Which text it is of."""


def cut_texts(
    texts: Sequence[str],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    max_tokens: int,
    on_texts: Callable[[int, int], None] = lambda n_done, n_all: None,
) -> list[Piece]:
    """Cut texts so that no piece has more tokens than allowed, whichever of the tokenizers reads it.

    Args:
        texts: plain texts.
        tokenizers: at least one, fast.
        max_tokens: of a piece, BOS included; at least 8.
        on_texts: called with the numbers of texts done and to do.

    Returns:
        Pieces in order; those of one text, laid end to end, are that text. Texts that a tokenizer keeps nothing of
        are a piece each all the same.

    Raises:
        DataError: `max_tokens` is too small to hold a single character of a text, or a text is not valid Unicode.
        ModelError: a tokenizer does not say which characters its tokens cover.
    """
    if max_tokens < 8:
        raise DataError(f"pieces: expected at least 8 tokens a piece, got {max_tokens}; allow more.")
    pieces: list[Piece] = []
    for start in range(0, len(texts), _TEXTS_A_BATCH):
        batch = texts[start : start + _TEXTS_A_BATCH]
        ends_by_tokenizer = [[spans.ends for spans in token_spans(each, batch)] for each in tokenizers]
        for n, text in enumerate(batch):
            ends = [by_text[n] for by_text in ends_by_tokenizer]
            if max(map(len, ends)) <= max_tokens:
                pieces.append(Piece(text, start + n))
            else:
                pieces += [Piece(part, start + n) for part in _cut(text, ends, tokenizers, max_tokens)]
        on_texts(min(start + _TEXTS_A_BATCH, len(texts)), len(texts))
    return pieces


def _cut(
    text: str,
    ends: Sequence[Int[np.ndarray, " _"]],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    max_tokens: int,
) -> list[str]:
    """Cuts by the tokens of the whole text, each piece then counted by itself: cut off, it may have a token more."""
    data = text.encode()
    parts: list[str] = []
    first = 0
    while first < len(data):
        room = min(_reach(each, first, max_tokens - 2) for each in ends)
        while True:
            window = data[first : max(room, first + 4)].decode(errors="ignore")
            part = window if first + len(window.encode()) == len(data) else window[: _best_break(window)]
            longest = max(len(token_spans(each, [part])[0].ends) for each in tokenizers)
            if longest <= max_tokens:
                break
            if len(part) <= 1:
                raise DataError(
                    f"pieces: one character, {part!r}, has {longest} tokens, more than {max_tokens}; allow more."
                )
            room = first + max(1, int(len(part.encode()) * _SHRINK))
        parts.append(part)
        first += len(part.encode())
    return parts


def _reach(ends: Int[np.ndarray, " tokens"], first: int, n_tokens: int) -> int:
    """The byte that `n_tokens` tokens from byte `first` on reach."""
    start = int(np.searchsorted(ends, first, side="right"))
    return int(ends[min(start + n_tokens, len(ends)) - 1])


def _best_break(window: str) -> int:
    """How many characters of a window a piece takes."""
    least = int(len(window) * MIN_SHARE)
    for mark in BREAKS:
        place = window.rfind(mark, least)
        if place > 0:
            return place + len(mark.rstrip(" "))
    return len(window)

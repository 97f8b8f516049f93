"""Which bytes of a text each token covers, for fast tokenizers of every family."""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Int32, Int64
from transformers import PreTrainedTokenizerBase

from transfuse.errors import DataError, ModelError
from transfuse.io.chat import bos_ids
from transfuse.io.token_bytes import token_bytes

_BATCH_TEXTS = 256
"""Texts are tokenized together, as many at a time as their encodings fit memory easily."""


class TokenSpans(NamedTuple):
    """A text as tokens, and where each one ends."""

    token_ids: Int32[np.ndarray, " tokens"]
    """As `PromptFormat.encode_text` gives them: with BOS where the tokenizer writes one, without EOS."""
    ends: Int32[np.ndarray, " tokens"]
    """UTF-8 bytes of the text that the tokens up to this one cover; never falls."""


class _Spelling(NamedTuple):
    """What the tokens of one tokenizer stand for."""

    pieces: list[bytes | None]
    """Added tokens are their own text, special ones too; None for ids without a token."""
    n_bytes: Int64[np.ndarray, " vocab"]
    added_ids: frozenset[int]
    """Tokens that are cut out of a text before anything else; what follows one begins as a text does."""


_SPELLINGS: WeakKeyDictionary[PreTrainedTokenizerBase, _Spelling] = WeakKeyDictionary()
"""Reading a large vocabulary takes a second, and texts come in many batches."""


def token_spans(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[TokenSpans]:
    """Token ids of texts, and the byte at which each token ends.

    Where the tokens spell the text, as those of most language models do, their own lengths are counted, so that
    a token that holds a part of a character ends within it; a space that a tokenizer puts in front of a text is
    no byte of it. Elsewhere (WordPiece, Unicode normalisation, unknown characters) the tokenizer's offsets in
    characters say where a token ends. Bytes that it drops belong to the token after them, those at the end to the
    last one. Where it writes one character as several tokens that do not spell it (`ﬁ` as `f` and `i`), all of
    them end behind it: the first has it, the others have no bytes.

    Args:
        tokenizer: a fast one; left as it is.
        texts: plain text; special tokens written in it are read as `tokenizer(text)` reads them.

    Returns:
        One item a text. BOS has no bytes; the last text token ends at the text's length. A text of which the
        tokenizer keeps nothing has no token but BOS.

    Raises:
        ModelError: a tokenizer written in Python, which does not say what its tokens cover.
        DataError: a text that is not valid Unicode.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"tokenizer {type(tokenizer).__name__} of {tokenizer.name_or_path!r}: expected a fast tokenizer, got one "
            "that does not say which characters its tokens cover; convert it to a tokenizer.json first "
            "(AutoTokenizer does, where it can)."
        )
    encoded = [_utf8(text, number) for number, text in enumerate(texts)]
    if not encoded:
        return []
    leading_ids, spelling = bos_ids(tokenizer), _spelling(tokenizer)
    result: list[TokenSpans] = []
    for start in range(0, len(texts), _BATCH_TEXTS):
        some = list(texts[start : start + _BATCH_TEXTS])
        # verbose=False: how long a text may be is for whoever cuts it to say.
        batch = tokenizer(some, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for number, (ids, encoding) in enumerate(zip(batch["input_ids"], batch.encodings or (), strict=True)):
            data, pieces = encoded[start + number], [spelling.pieces[token_id] for token_id in ids]
            text_ends = _spelled_ends(data, pieces, spelling.n_bytes[np.array(ids, dtype=np.int64)])
            if text_ends is None:
                begins = [True, *(token_id in spelling.added_ids for token_id in ids[:-1])][: len(ids)]
                offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
                text_ends = _walked_ends(some[number], data, pieces, offsets, begins)
            token_ids = np.array([*leading_ids, *ids], dtype=np.int32)
            ends = np.zeros(len(token_ids), dtype=np.int32)
            ends[len(leading_ids) :] = text_ends
            result.append(TokenSpans(token_ids, ends))
    return result


def _utf8(text: str, number: int) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as err:
        raise DataError(
            f"text {number}: expected valid Unicode, got half of a surrogate pair, {text[err.start]!r}, at character "
            f"{err.start}; mend or leave out the text."
        ) from err


def _spelling(tokenizer: PreTrainedTokenizerBase) -> _Spelling:
    known = _SPELLINGS.get(tokenizer)
    if known is None or len(known.pieces) < len(tokenizer):
        pieces = token_bytes(tokenizer)
        added = tokenizer.added_tokens_decoder
        for token_id, token in added.items():
            if pieces[token_id] is None:
                pieces[token_id] = str(token).encode()
        n_bytes = np.array([len(piece or b"") for piece in pieces], dtype=np.int64)
        known = _Spelling(pieces, n_bytes, frozenset(added))
        _SPELLINGS[tokenizer] = known
    return known


def _spelled_ends(
    data: bytes, pieces: Sequence[bytes | None], n_bytes: Int64[np.ndarray, " tokens"]
) -> Int64[np.ndarray, " tokens"] | None:
    """Ends counted from the tokens' own bytes, or None where these do not spell the text."""
    spelled = b"".join(piece or b"" for piece in pieces)
    if spelled == data:
        return n_bytes.cumsum()
    if spelled[:1] == b" " and spelled[1:] == data:
        return np.maximum(n_bytes.cumsum() - 1, 0)
    return None


def _walked_ends(
    text: str,
    data: bytes,
    pieces: Sequence[bytes | None],
    offsets: Int64[np.ndarray, "tokens 2"],
    begins: Sequence[bool],
) -> Int64[np.ndarray, " tokens"]:
    """Ends from offsets in characters, and within characters from the tokens' bytes where these are the text's.

    Args:
        text: what was tokenized.
        data: the same in UTF-8.
        pieces: bytes that each token stands for, None where unknown.
        offsets: first character and one past the last that a token has a part in.
        begins: whether a token begins a stretch of text in front of which the tokenizer may put a space.

    Returns:
        Bytes up to and with each token.
    """
    if not pieces:
        return np.zeros(0, dtype=np.int64)
    byte_of = np.append(np.flatnonzero((np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80), len(data))
    last = np.maximum.accumulate(offsets[:, 1])
    next_first = np.append(offsets[1:, 0], len(text))
    lowest = byte_of[np.maximum(last - 1, 0)]
    for index in np.flatnonzero(next_first > last).tolist():
        # Offsets of "e" and an accent that became one letter, or were shorn of it, are those of the "e" alone.
        with_marks = _end_of_character(text, int(last[index]), int(next_first[index]))
        if with_marks > last[index]:
            last[index] = with_marks
            lowest[index] = byte_of[with_marks]
    # Offsets of byte-level tokens may leave out white space that a token holds, so up to the next token it may go.
    highest = byte_of[np.maximum(last, next_first)]
    # Tokens that share a character stand in one group.
    group_ends = np.flatnonzero(next_first >= last) + 1
    group_end = group_ends[np.searchsorted(group_ends, np.arange(len(pieces)), side="right")].tolist()
    group_byte = byte_of[last].tolist()
    bounds = lowest.tolist(), highest.tolist()
    ends: list[int] = []
    position = 0
    while len(ends) < len(pieces):
        index = len(ends)
        piece = pieces[index]
        if begins[index] and _has_space_put_in_front(data, position, pieces, index):
            piece = (piece or b" ")[1:]
        end = _end_of_piece(data, position, piece)
        if end is not None and bounds[0][index] <= end <= bounds[1][index]:
            ends.append(end)
        else:
            # Rewritten by the tokenizer: whatever shares a character with it ends where that does.
            end = max(position, group_byte[group_end[index] - 1])
            ends += [end] * (group_end[index] - index)
        position = end
    result = np.array(ends, dtype=np.int64)
    result[result == result[-1]] = len(data)
    return result


def _end_of_character(text: str, start: int, stop: int) -> int:
    """One past the marks (accents, Hangul vowels and finals) that stand between two places of a text."""
    for place in range(start, stop):
        mark = unicodedata.normalize("NFKD", text[place])[0]
        is_hangul = "\u1160" <= mark <= "\u11ff" or "\ud7b0" <= mark <= "\ud7ff"
        if not is_hangul and not unicodedata.category(mark).startswith("M"):
            return place
    return stop


def _has_space_put_in_front(data: bytes, position: int, pieces: Sequence[bytes | None], index: int) -> bool:
    """Whether the tokens from `index` on begin with one space more than the text does from `position` on."""
    n_written = 0
    for number in range(index, len(pieces)):
        piece = pieces[number] or b""
        n_written += len(piece) - len(piece.lstrip(b" "))
        if piece.strip(b" ") or not piece:
            break
    spaces = data[position : position + n_written]
    n_in_text = len(spaces) - len(spaces.lstrip(b" "))
    return n_written > 0 and n_in_text == n_written - 1


def _end_of_piece(data: bytes, position: int, piece: bytes | None) -> int | None:
    """Where a piece ends that stands at this place, with or without the space it begins with."""
    if piece is None:
        return None
    if data.startswith(piece, position):
        return position + len(piece)
    if len(piece) > 1 and piece[:1] == b" " and data.startswith(piece[1:], position):
        return position + len(piece) - 1
    return None

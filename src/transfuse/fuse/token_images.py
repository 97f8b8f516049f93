"""The token of a target vocabulary that stands for given bytes of text, by three ways of matching."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist
from transformers import PreTrainedTokenizerBase

from transfuse.fuse.first_tokens import first_tokens
from transfuse.io.token_bytes import token_bytes
from transfuse.tensors.nearest_strings import OnStrings, nearest_strings

MapKind = Literal["exact", "min-edit", "retokenize"]
"""`exact`: the token of the same bytes; `min-edit`: else the one of least edit distance (FuseLLM's MinED);
`retokenize`: else the first token of the text as the target tokenizer cuts it."""

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class TokenImages(NamedTuple):
    """An image for each token."""

    ids: Int[np.ndarray, " tokens"]
    """int32; -1 where there is none."""
    distances: Int[np.ndarray, " tokens"]
    """int32, edit distance in characters; -1 where there is no image."""


def token_images(
    tokens: Sequence[bytes | None],
    target: PreTrainedTokenizerBase,
    kind: MapKind,
    *,
    n_threads: int = 1,
    on_strings: OnStrings | None = None,
) -> TokenImages:
    """The target token for each token of another vocabulary.

    Strings are compared as characters of the bytes' UTF-8 text, so that families can be compared; a byte that is
    part of no valid character is a character of its own (a lone surrogate). Control tokens are nobody's image.

    Args:
        tokens: as `token_bytes` gives them; None and empty tokens have no image.
        target: images are its ids.
        kind: how tokens are matched whose bytes the target does not have.
        n_threads: cores for the edit distances.
        on_strings: told of progress with edit distances.

    Returns:
        An id and a distance for each token. Of equally near ones the lowest id; of ids with the same bytes the
        piece before the byte token, which a tokenizer writes only where it has no piece.

    Raises:
        ModelError: the target has no fast backend.
    """
    id_of = ids_by_bytes(target)
    found = {token: (id_of[token], 0) for token in tokens if token and token in id_of}
    others = [token for token in dict.fromkeys(tokens) if token and token not in id_of]
    if kind == "min-edit" and id_of:
        found |= _nearest(others, id_of, n_threads, on_strings)
    elif kind == "retokenize":
        found |= _retokenized(others, target, id_of)
    pairs = [found.get(token, (-1, -1)) if token else (-1, -1) for token in tokens]
    ids, distances = np.array(pairs, dtype=np.int32).reshape(-1, 2).T.copy()  # two rows, as files want them
    return TokenImages(ids, distances)


def as_text(token: bytes) -> str:
    """The characters of a token; different tokens have different ones."""
    return token.decode("utf-8", "surrogateescape")


def ids_by_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[bytes, int]:
    """The id that a tokenizer writes for some bytes: the lowest of its pieces, else its byte token.

    Args:
        tokenizer: a fast one.

    Returns:
        An id for the bytes of every token that is neither a control token nor empty.

    Raises:
        ModelError: the tokenizer has no fast backend.
    """
    found: dict[bytes, int] = {}
    for index, token in enumerate(token_bytes(tokenizer)):
        if token and (token not in found or _is_byte_token(tokenizer, token, found[token])):
            found[token] = index
    return found


def _is_byte_token(tokenizer: PreTrainedTokenizerBase, token: bytes, index: int) -> bool:
    return len(token) == 1 and _BYTE_TOKEN.fullmatch(str(tokenizer.convert_ids_to_tokens(index))) is not None


def _nearest(
    tokens: Sequence[bytes], id_of: Mapping[bytes, int], n_threads: int, on_strings: OnStrings | None
) -> dict[bytes, tuple[int, int]]:
    by_id = sorted((index, token) for token, index in id_of.items())  # the first of several is the lowest id
    nearest = nearest_strings(
        [as_text(token) for token in tokens],
        [as_text(token) for _, token in by_id],
        n_threads=n_threads,
        on_strings=on_strings,
    )
    places, distances = nearest.places.tolist(), nearest.distances.tolist()
    return {
        token: (by_id[place][0], distance)
        for token, place, distance in zip(tokens, places, distances, strict=True)
    }


def _retokenized(
    tokens: Sequence[bytes], target: PreTrainedTokenizerBase, id_of: Mapping[bytes, int]
) -> dict[bytes, tuple[int, int]]:
    token_of = {index: token for token, index in id_of.items()}
    first = first_tokens(tokens, target, id_of)
    images = [as_text(token_of[index]) for index in first.values()]
    distances = cpdist([as_text(token) for token in first], images, scorer=Levenshtein.distance)
    return {
        token: (index, int(distance))
        for (token, index), distance in zip(first.items(), distances, strict=True)
    }

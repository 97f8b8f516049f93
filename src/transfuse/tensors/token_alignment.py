"""Two tokenizations of one text, aligned exactly by the byte at which each token ends.

State i means that tokens 0 to i have been read, and predicts token i + 1. Two states are comparable where they have
read the same bytes. A token of no bytes (BOS, or what is left of a character that a tokenizer's normaliser wrote
as several letters) ends where the token before it ends: of several states with one end only the last has read all
that belongs to it, so it stands for that end, on both sides.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int64


class StateAlignment(NamedTuple):
    """What a target's states find in a source."""

    source_state: Int64[np.ndarray, " target"]
    """The source's state that has read the same bytes; -1 where there is none, or where the next target token
    has no bytes."""
    is_one_to_one: Bool[np.ndarray, " target"]
    """Whether both then read one token each over the same bytes: the next chunk is 1-1. False at the last state."""


class Chunks(NamedTuple):
    """Shortest spans that both tokenizers cut cleanly, in order, as ranges of tokens; they tile both sides."""

    source_start: Int64[np.ndarray, " chunks"]
    source_end: Int64[np.ndarray, " chunks"]
    """One past the last token."""
    target_start: Int64[np.ndarray, " chunks"]
    target_end: Int64[np.ndarray, " chunks"]
    """One past the last token."""

    @property
    def is_one_to_one(self) -> Bool[np.ndarray, " chunks"]:
        """Whether a chunk is one token on each side."""
        return (self.source_end - self.source_start == 1) & (self.target_end - self.target_start == 1)


def align_states(
    source_ends: Int[np.ndarray, " source"], target_ends: Int[np.ndarray, " target"]
) -> StateAlignment:
    """For each target state the source state that has read the same bytes.

    Args:
        source_ends: bytes of the text that each state has read, never falling.
        target_ends: the same of the target, over the same text.

    Returns:
        One entry a target state. With one tokenizer on both sides every state finds itself, but for those
        in front of a token without bytes.

    Raises:
        ValueError: ends fall, or the two are not of one text.
    """
    _check(source_ends, target_ends)
    if not len(source_ends) or not len(target_ends):
        return StateAlignment(np.full(len(target_ends), -1), np.zeros(len(target_ends), dtype=bool))
    source_is_last, target_is_last = _is_last_of_its_end(source_ends), _is_last_of_its_end(target_ends)
    state = np.searchsorted(source_ends, target_ends, side="right") - 1
    is_found = target_is_last & (state >= 0) & (source_ends[state] == target_ends)
    one = is_found[:-1] & target_is_last[1:] & (state[:-1] + 1 < len(source_ends))
    next_state = np.where(one, state[:-1] + 1, 0)
    one &= source_is_last[next_state] & (source_ends[next_state] == target_ends[1:])
    return StateAlignment(np.where(is_found, state, -1), np.append(one, False))


def align_chunks(source_ends: Int[np.ndarray, " source"], target_ends: Int[np.ndarray, " target"]) -> Chunks:
    """The shortest spans that both tokenizers cut cleanly.

    Tokens without bytes at the beginning are a chunk of their own, empty on a side that has none, so that a BOS
    on one side leaves the first word alone; others belong to the chunk that ends there. Where a tokenizer kept
    nothing of the text, the other's tokens are one chunk, empty on its side.

    Args:
        source_ends: bytes of the text that each state has read, never falling.
        target_ends: the same of the target, over the same text.

    Returns:
        At least one chunk, unless there is no token on either side.

    Raises:
        ValueError: ends fall, or the two are not of one text.
    """
    _check(source_ends, target_ends)
    target_end = np.flatnonzero(_is_last_of_its_end(target_ends)) + 1
    cuts = target_ends[target_end - 1]
    source_end = np.searchsorted(source_ends, cuts, side="right")
    is_common = source_end > 0
    is_common[is_common] = source_ends[source_end[is_common] - 1] == cuts[is_common]
    source_end, target_end = source_end[is_common], target_end[is_common]
    leading = [int(np.searchsorted(ends, 0, side="right")) for ends in (source_ends, target_ends)]
    if (leading[0] == 0) != (leading[1] == 0):
        source_end, target_end = np.append(leading[0], source_end), np.append(leading[1], target_end)
    covered = (source_end[-1], target_end[-1]) if len(source_end) else (0, 0)
    if covered != (len(source_ends), len(target_ends)):
        source_end = np.append(source_end, len(source_ends))
        target_end = np.append(target_end, len(target_ends))
    return Chunks(_starts(source_end), source_end, _starts(target_end), target_end)


def _starts(ends: Int64[np.ndarray, " chunks"]) -> Int64[np.ndarray, " chunks"]:
    return np.concatenate([np.zeros(min(1, len(ends)), dtype=np.int64), ends[:-1]])


def _is_last_of_its_end(ends: Int[np.ndarray, " states"]) -> Bool[np.ndarray, " states"]:
    is_last = np.ones(len(ends), dtype=bool)
    np.greater(ends[1:], ends[:-1], out=is_last[:-1])
    return is_last


def _check(source_ends: Int[np.ndarray, " source"], target_ends: Int[np.ndarray, " target"]) -> None:
    n_bytes = []
    for side, ends in (("source", source_ends), ("target", target_ends)):
        if len(ends) and (ends[0] < 0 or (ends[1:] < ends[:-1]).any()):
            raise ValueError(f"expected {side} ends that begin at 0 or more and never fall, got {ends}")
        n_bytes.append(int(ends[-1]) if len(ends) else 0)
    if n_bytes[0] != n_bytes[1] and all(n_bytes):
        raise ValueError(
            f"expected ends of one text, got {n_bytes[0]} bytes in the source and {n_bytes[1]} in the target; "
            "tokenize the same text with both."
        )

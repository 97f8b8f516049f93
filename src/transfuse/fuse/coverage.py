"""How well the tokens of a source and of the target fit together, before any model is run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Bool, Int

from transfuse.errors import DataError
from transfuse.io.token_spans import TokenSpans
from transfuse.tensors.token_alignment import Chunks, StateAlignment, align_chunks, align_states

MAX_SHOWN_CHARACTERS = 200
"""Of the longest chunk's text."""


_DIGITS = np.frombuffer(b"0123456789", dtype=np.uint8)


@final
@dataclass(frozen=True, slots=True)
class PairCoverage:
    """How much of the target's tokens one source can teach. Shares are in 0..1, None where nothing is counted."""

    source: str
    target: str
    n_texts: int
    n_bytes: int
    n_target_tokens: int
    """Those that some state predicts: all but the first one of each text."""
    n_digit_tokens: int
    """Of these, tokens that hold a digit 0 to 9."""
    one_to_one_share: float | None
    """Of the target's tokens, those that cover the same bytes as one token of the source, read after the same bytes."""
    taught_share: float | None
    """Of the target's tokens, those that the source has a distribution for: the ones that are one to one, or, where the
    map can take a token apart, all in front of which both have read the same bytes."""
    byte_share: float | None
    """Of the texts' bytes, those in tokens that are taught."""
    digit_share: float | None
    """Of the target's tokens with digits, those that are taught."""
    n_chunks: int
    """Stretches of the texts between places where both cut."""
    chunk_share: float | None
    """Of these, those that are one token on each side."""
    longest_chunk_tokens: int
    """Of the target's, in the chunk that has the most tokens on both sides together."""
    longest_chunk_source_tokens: int
    longest_chunk_bytes: int
    longest_chunk_text: str
    """At most `MAX_SHOWN_CHARACTERS` of it."""

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)

    def check(self, minimum_share: float) -> None:
        """Stop before work starts where the source would teach too little.

        Args:
            minimum_share: of the target's tokens that have to be taught, in 0..1.

        Raises:
            DataError: fewer are, or there is no token to teach.
        """
        pair = f"fuse: source {self.source!r} and target {self.target!r}"
        if self.taught_share is None:
            raise DataError(f"{pair}: no text has two tokens of the target; give longer texts.")
        if self.taught_share < minimum_share:
            raise DataError(
                f"{pair}: the source teaches {self.taught_share:.1%} of the target's {self.n_target_tokens} tokens; "
                f"expected at least {minimum_share:.1%}. Map by 'retokenize', which also teaches where the two cut a "
                "word apart, leave this source out, or lower fusion.min_coverage."
            )


def pair_coverage(
    texts: Sequence[str],
    source: Sequence[TokenSpans],
    target: Sequence[TokenSpans],
    *,
    source_name: str,
    target_name: str,
    needs_one_to_one: bool = True,
    taught: Sequence[Bool[np.ndarray, " _"]] | None = None,
) -> PairCoverage:
    """What a source can teach a target over some texts, by their tokenizers alone.

    Args:
        texts: plain texts.
        source: each text as the source reads it.
        target: each text as the target reads it.
        source_name: how a message calls the source.
        target_name: how a message calls the target.
        needs_one_to_one: whether a source's token can only be mapped whole; false for a map that takes its first
            part (`retokenize`).
        taught: of each text the target's states at which the source teaches, where another alignment than that by
            bytes says so; None goes by bytes.

    Returns:
        Sums over all texts.

    Raises:
        DataError: the numbers of texts differ, or a text is not the one that was tokenized.
    """
    if not len(texts) == len(source) == len(target):
        raise DataError(
            f"coverage of {source_name!r} and {target_name!r}: expected each text tokenized by both, got {len(texts)} "
            f"texts, {len(source)} for the source and {len(target)} for the target."
        )
    counts, longest = _Counts(), _Chunk(0, 0, b"")
    for number, (text, one, other) in enumerate(zip(texts, source, target, strict=True)):
        data = text.encode()
        for name, spans in ((source_name, one), (target_name, other)):
            n_covered = int(spans.ends[-1]) if len(spans.ends) else 0
            if n_covered not in (0, len(data)):
                raise DataError(
                    f"coverage: text {number} has {len(data)} bytes, but its tokens by {name!r} cover {n_covered}; "
                    "give the texts that were tokenized."
                )
        chunks = align_chunks(one.ends, other.ends)
        by_bytes = align_states(one.ends, other.ends)
        is_taught = (
            taught[number] if taught is not None else _taught_by_bytes(by_bytes, one, needs_one_to_one)
        )
        found = _text_counts(data, other.ends, chunks, by_bytes, is_taught)
        counts = _Counts(*map(sum, zip(counts, found, strict=True)))
        longest = max(longest, _longest_chunk(data, other.ends, chunks), key=_Chunk.n_tokens)
    return PairCoverage(
        source=source_name,
        target=target_name,
        n_texts=len(texts),
        n_bytes=counts.n_bytes,
        n_target_tokens=counts.n_tokens,
        n_digit_tokens=counts.n_digit_tokens,
        one_to_one_share=_share(counts.n_one_to_one, counts.n_tokens),
        taught_share=_share(counts.n_taught, counts.n_tokens),
        byte_share=_share(counts.n_taught_bytes, counts.n_bytes),
        digit_share=_share(counts.n_taught_digit_tokens, counts.n_digit_tokens),
        n_chunks=counts.n_chunks,
        chunk_share=_share(counts.n_single_chunks, counts.n_chunks),
        longest_chunk_tokens=longest.n_target,
        longest_chunk_source_tokens=longest.n_source,
        longest_chunk_bytes=len(longest.data),
        longest_chunk_text=longest.data.decode(errors="replace")[:MAX_SHOWN_CHARACTERS],
    )


class _Counts(NamedTuple):
    n_bytes: int = 0
    n_tokens: int = 0
    n_one_to_one: int = 0
    n_taught: int = 0
    n_taught_bytes: int = 0
    n_digit_tokens: int = 0
    n_taught_digit_tokens: int = 0
    n_chunks: int = 0
    n_single_chunks: int = 0


class _Chunk(NamedTuple):
    n_source: int
    n_target: int
    data: bytes

    def n_tokens(self) -> int:
        """On both sides together."""
        return self.n_source + self.n_target


def _taught_by_bytes(
    found: StateAlignment, source: TokenSpans, needs_one_to_one: bool
) -> Bool[np.ndarray, " target"]:
    if needs_one_to_one:
        return found.is_one_to_one
    return (found.source_state >= 0) & (found.source_state < len(source.ends) - 1)


def _text_counts(
    data: bytes,
    target_ends: Int[np.ndarray, " target"],
    chunks: Chunks,
    by_bytes: StateAlignment,
    is_taught_at: Bool[np.ndarray, " target"],
) -> _Counts:
    is_one_to_one, is_taught = by_bytes.is_one_to_one[:-1], is_taught_at[:-1]
    n_digits = np.append(0, np.isin(np.frombuffer(data, dtype=np.uint8), _DIGITS).cumsum())
    has_digit = np.diff(n_digits[target_ends]) > 0
    # Tokens without bytes in front of the text meet nothing and miss nothing.
    is_of_text = chunks.target_end > np.searchsorted(target_ends, 0, side="right")
    return _Counts(
        n_bytes=len(data),
        n_tokens=len(is_taught),
        n_one_to_one=int(is_one_to_one.sum()),
        n_taught=int(is_taught.sum()),
        n_taught_bytes=int(np.diff(target_ends)[is_taught].sum()),
        n_digit_tokens=int(has_digit.sum()),
        n_taught_digit_tokens=int((has_digit & is_taught).sum()),
        n_chunks=int(is_of_text.sum()),
        n_single_chunks=int((chunks.is_one_to_one & is_of_text).sum()),
    )


def _longest_chunk(data: bytes, target_ends: Int[np.ndarray, " target"], chunks: Chunks) -> _Chunk:
    """The chunk of most tokens on both sides together, the first of equal ones."""
    n_source = chunks.source_end - chunks.source_start
    n_target = chunks.target_end - chunks.target_start
    if not len(n_source):
        return _Chunk(0, 0, b"")
    longest = int(np.argmax(n_source + n_target))
    ends = np.append(0, target_ends)
    start, end = ends[chunks.target_start[longest]], ends[chunks.target_end[longest]]
    return _Chunk(int(n_source[longest]), int(n_target[longest]), data[start:end])


def _share(n: int, n_all: int) -> float | None:
    return n / n_all if n_all else None

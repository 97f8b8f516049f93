"""Distributions of a model over texts, read from disk one text at a time.

A cache is a folder: `header.json`, shards of records, and perhaps `texts.jsonl`. It belongs to no tokenizer but the
model's own: every token comes with the byte at which it ends, so that any other tokenization of the same text can be
laid beside it. A shard holds, one after the other and little-endian: its records, each of `record_bytes`; the SHA-256
of each text; the token count of each text (uint32); rows and then lengths of the tokens too long for their records
(uint32 each).
"""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float, Int

from transfuse.errors import CacheError
from transfuse.io.distribution_header import (
    DIGEST_BYTES,
    TEXTS_FILE,
    CacheHeader,
    ShardInfo,
    again,
    read_header,
    shard_state,
    text_sha256,
)
from transfuse.io.files import file_sha256
from transfuse.io.jsonl import read_jsonl
from transfuse.tensors.packed_records import LONG, decode_records

_N_SHOWN = 8


class TextDistributions(NamedTuple):
    """What a model says at each state of a text; at state i it has read tokens 0 to i."""

    token_ids: Int[np.ndarray, " states"]
    """int32, the model's own."""
    ends: Int[np.ndarray, " states"]
    """int32: bytes of the text that are read at each state."""
    observed_log_probs: Float[np.ndarray, " states"]
    """float32: natural log of the probability of token i + 1; NaN at the last state."""
    top_ids: Int[np.ndarray, "states k"]
    """int32, the likeliest first."""
    top_log_probs: Float[np.ndarray, "states k"]
    """float32, over the whole vocabulary; minus infinity where fewer than k are kept."""
    tail_log_probs: Float[np.ndarray, " states"]
    """float32, of all that is not kept; minus infinity where nothing is left."""


class _OpenShard(NamedTuple):
    """A shard's tables; its records stay on disk."""

    records: np.ndarray
    starts: Int[np.ndarray, " bounds"]
    """Row at which each text begins, and the number of rows."""
    long_rows: Int[np.ndarray, " long"]
    long_lengths: Int[np.ndarray, " long"]


@final
class DistributionCache:
    """A finished cache; reading a text touches its own records only."""

    def __init__(self, folder: Path, header: CacheHeader) -> None:
        self.folder = folder
        self.header = header
        self._first_texts = [0, *accumulate(shard.n_texts for shard in header.shards)]
        self._open: dict[int, _OpenShard] = {}
        self._digests: list[bytes] | None = None

    @classmethod
    def open(cls, folder: Path) -> "DistributionCache":
        """Open a cache; the sizes of its files are checked, their contents by `verify`.

        Args:
            folder: the cache.

        Returns:
            The cache.

        Raises:
            CacheError: none is there, it is unfinished, of another format, or a shard is missing or truncated.
        """
        header = read_header(folder)
        _refuse_damage(folder, header, verify=False)
        return cls(folder, header)

    def __len__(self) -> int:
        """Number of texts."""
        return self.header.n_texts

    @property
    def text_digests(self) -> list[bytes]:
        """SHA-256 of each text's UTF-8."""
        if self._digests is None:
            self._digests = [
                digest for number in range(len(self.header.shards)) for digest in self._shard_digests(number)
            ]
        return self._digests

    @property
    def bytes_per_token(self) -> float:
        """What the cache takes on disk for each token, all its files counted but the copy of the texts."""
        files = [path for path in self.folder.iterdir() if path.name != TEXTS_FILE]
        return sum(path.stat().st_size for path in files) / max(1, self.header.n_tokens)

    def text(self, number: int) -> TextDistributions:
        """The distributions of one text.

        Args:
            number: of the text, from 0.

        Returns:
            Arrays of the text's own; kept tokens and tail sum to 1 at each state.

        Raises:
            IndexError: there is no such text.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"{self.folder}: expected text 0 to {len(self) - 1}, got {number}")
        place = int(np.searchsorted(self._first_texts, number, side="right")) - 1
        shard = self._shard(place)
        start, stop = shard.starts[number - self._first_texts[place] :][:2].tolist()
        records = decode_records(self.header.layout, shard.records[start:stop])
        lengths = records.lengths.astype(np.int64)
        is_long = np.flatnonzero(lengths == LONG)
        lengths[is_long] = shard.long_lengths[np.searchsorted(shard.long_rows, start + is_long)]
        return TextDistributions(records.token_ids, np.cumsum(lengths).astype(np.int32), *records[2:])

    def texts(self) -> list[str] | None:
        """The texts themselves, where a copy was kept.

        Returns:
            All of them, or None.

        Raises:
            CacheError: the copy is not the one that was written.
        """
        if self.header.texts_sha256 is None:
            return None
        path = self.folder / TEXTS_FILE
        if not path.is_file() or file_sha256(path) != self.header.texts_sha256:
            raise CacheError(f"{path}: the copy of the texts is missing or altered; {again()}")
        return [str(line.value["text"]) for line in read_jsonl(path)]

    def _shard(self, number: int) -> _OpenShard:
        if number not in self._open:
            shard, layout = self.header.shards[number], self.header.layout
            raw = self._raw(shard)
            n_records = shard.n_tokens * layout.record_bytes
            counts_at = n_records + shard.n_texts * DIGEST_BYTES
            tables = np.frombuffer(raw[counts_at:].tobytes(), dtype="<u4").astype(np.int64)
            counts, long = tables[: shard.n_texts], tables[shard.n_texts :]
            self._open[number] = _OpenShard(
                raw[:n_records].reshape(shard.n_tokens, layout.record_bytes),
                np.concatenate([[0], np.cumsum(counts)]),
                long[: shard.n_long],
                long[shard.n_long :],
            )
        return self._open[number]

    def _shard_digests(self, number: int) -> list[bytes]:
        shard = self.header.shards[number]
        start = shard.n_tokens * self.header.layout.record_bytes
        table = self._raw(shard)[start : start + shard.n_texts * DIGEST_BYTES].tobytes()
        return [table[at : at + DIGEST_BYTES] for at in range(0, len(table), DIGEST_BYTES)]

    def _raw(self, shard: ShardInfo) -> np.ndarray:
        try:
            return np.memmap(self.folder / shard.file, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as err:
            raise CacheError(f"{self.folder / shard.file}: cannot be read ({err}); {again()}") from err


def verify(cache: DistributionCache) -> None:
    """Compare the checksum of every shard, which reads them whole.

    Args:
        cache: an open one.

    Raises:
        CacheError: a shard is not the one that was written; every such shard is named.
    """
    _refuse_damage(cache.folder, cache.header, verify=True)


def refuse_other_texts(cache: DistributionCache, texts: Sequence[str], where: str) -> None:
    """Check that a cache was made of given texts.

    Args:
        cache: any.
        texts: as they are to be used.
        where: whose texts these are, for the message.

    Raises:
        CacheError: they are others, or in another order; the first that differs is named.
    """
    for number, (text, digest) in enumerate(zip(texts, cache.text_digests, strict=False)):
        if text_sha256(text) != digest:
            raise CacheError(
                f"{cache.folder}: text {number} is another one than that of {where}, which begins {text[:60]!r}; "
                f"make the cache of the same texts, in the same order and cut alike, or give --rebuild."
            )
    if len(texts) != len(cache):
        raise CacheError(
            f"{cache.folder}: expected the {len(texts):,} texts of {where}, found {len(cache):,}, of which the "
            f"first {min(len(texts), len(cache)):,} agree; make the cache of the same texts, or give --rebuild."
        )


def _refuse_damage(folder: Path, header: CacheHeader, *, verify: bool) -> None:
    states = {shard.file: shard_state(folder, shard, verify=verify) for shard in header.shards}
    damaged = [f"{file} is {state}" for file, state in states.items() if state != "whole"]
    if damaged:
        raise CacheError(
            f"{folder}: {', '.join(damaged[:_N_SHOWN])}"
            f"{f' and {len(damaged) - _N_SHOWN} more are damaged' if len(damaged) > _N_SHOWN else ''}; {again()}"
        )

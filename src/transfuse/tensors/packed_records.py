"""Token records packed to the bit: ids, lengths and log-probabilities in as few bytes as they need.

A record is a row of whole bytes that holds unsigned fields of fixed widths, the least significant bit first. All
records of a layout have one size, so any stretch of a memory-mapped file can be read by itself.

Log-probabilities are kept as codes of `value_bits` bits. Their levels lie close together near 0, where a small step
is a large step of probability, and far apart far out: the gap grows in proportion to `KNEE_NATS - log p`. Two codes
are set aside, for minus infinity and for NaN; what lies below `FLOOR_NATS` is kept as `FLOOR_NATS`. With 32 bits the
float32 number itself is kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt32

FLOOR_NATS = -64.0
"""The least log-probability that codes of fewer than 32 bits can tell, but for minus infinity."""

KNEE_NATS = 0.5
"""Where the levels change from evenly spaced in log-probability to evenly spaced in its logarithm."""

LENGTH_BITS = 6

LONG = (1 << LENGTH_BITS) - 1
"""The length field of a token of this many bytes or more; how many is kept elsewhere."""

EXACT_BITS = 32
MIN_VALUE_BITS, MAX_VALUE_BITS = 8, 16


class TokenRecords(NamedTuple):
    """What records hold, one row a token."""

    token_ids: Int[np.ndarray, " tokens"]
    lengths: Int[np.ndarray, " tokens"]
    """In bytes; those of `LONG` or more come back as `LONG`."""
    observed_log_probs: Float[np.ndarray, " tokens"]
    """NaN where nothing was observed."""
    top_ids: Int[np.ndarray, "tokens k"]
    top_log_probs: Float[np.ndarray, "tokens k"]
    """Minus infinity where fewer than k are kept."""
    tail_log_probs: Float[np.ndarray, " tokens"]
    """Of all tokens that are not kept, together."""


@final
@dataclass(frozen=True)
class RecordLayout:
    """Which fields a record has, and how wide they are."""

    n_vocab: int
    """Ids lie below it."""
    k: int
    """Kept tokens; with none, there is no tail either."""
    value_bits: int
    """Of a log-probability: 8 to 16, or 32 for float32 itself; the observed one has also what its last byte leaves."""
    is_sampled: bool = False
    """Whether kept tokens are draws: their log-probability is log(count / k), kept exactly as the count, and nothing
    is left for a tail."""

    def __post_init__(self) -> None:
        if self.n_vocab < 1 or not 0 <= self.k <= self.n_vocab:
            raise ValueError(
                f"expected a vocabulary, and no more kept tokens than it has; got {self.n_vocab} and {self.k}"
            )
        if self.value_bits != EXACT_BITS and not MIN_VALUE_BITS <= self.value_bits <= MAX_VALUE_BITS:
            raise ValueError(
                f"expected {MIN_VALUE_BITS} to {MAX_VALUE_BITS} bits a value, or {EXACT_BITS}; got {self.value_bits}"
            )

    @property
    def id_bits(self) -> int:
        """Bits of a token id."""
        return max(1, (self.n_vocab - 1).bit_length())

    @property
    def kept_bits(self) -> int:
        """Bits of a kept token's log-probability, or of its count."""
        return self.k.bit_length() if self.is_sampled else self.value_bits

    @property
    def has_tail(self) -> bool:
        """Whether the tail is a field of its own, or known without."""
        return self.k > 0 and not self.is_sampled

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits of each field: id, length, observed value, tail if there is one, kept ids, kept values."""
        return (self.id_bits, LENGTH_BITS, self.observed_bits, *self._kept_widths)

    @property
    def observed_bits(self) -> int:
        """Bits of the observed log-probability, at most 16 unless all have 32: losses are summed over many."""
        spare = -(self.id_bits + LENGTH_BITS + self.value_bits + sum(self._kept_widths)) % 8
        return max(self.value_bits, min(self.value_bits + spare, MAX_VALUE_BITS))

    @property
    def record_bytes(self) -> int:
        """Bytes of a record."""
        return -(-sum(self.widths) // 8)

    @property
    def _kept_widths(self) -> tuple[int, ...]:
        tail = (self.value_bits,) if self.has_tail else ()
        return (*tail, *(self.id_bits,) * self.k, *(self.kept_bits,) * self.k)


def widest_value_bits(n_vocab: int, k: int, *, is_sampled: bool = False) -> int:
    """The most bits a log-probability can have in a record of at most 4 k - 1 bytes, so that with digests and tables
    a cache stays under 4 k bytes a token; at least 9, and 16 where nothing is kept."""
    if k == 0:
        return MAX_VALUE_BITS
    for bits in range(MAX_VALUE_BITS, 9, -1):
        if RecordLayout(n_vocab, k, bits, is_sampled).record_bytes <= 4 * k - 1:
            return bits
    return 9


def encode_records(layout: RecordLayout, records: TokenRecords) -> UInt8[np.ndarray, "tokens size"]:
    """Pack tokens into records.

    Args:
        layout: fields and widths.
        records: ids in the vocabulary, lengths of any size, log-probabilities of at most 0 (rounding above it is
            taken for 0).

    Returns:
        One row of bytes a token.

    Raises:
        ValueError: an id is not in the vocabulary, or a length is negative.
    """
    for name, ids in (("token ids", records.token_ids), ("kept ids", records.top_ids)):
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < layout.n_vocab:
            raise ValueError(
                f"{name}: expected 0 to {layout.n_vocab - 1}, got {int(ids.min())} to {int(ids.max())}"
            )
    if records.lengths.size and int(records.lengths.min()) < 0:
        raise ValueError(f"lengths: expected 0 or more bytes, got {int(records.lengths.min())}")
    bits = layout.value_bits
    fields = [
        records.token_ids,
        np.minimum(records.lengths, LONG),
        encode_log_probs(records.observed_log_probs, layout.observed_bits),
    ]
    if layout.has_tail:
        fields.append(encode_log_probs(records.tail_log_probs, bits))
    fields += list(records.top_ids.T)
    if layout.is_sampled:
        fields += list(np.rint(np.exp(records.top_log_probs) * layout.k).T)
    else:
        fields += list(encode_log_probs(records.top_log_probs, bits).T)
    return pack_fields([np.ascontiguousarray(field).astype(np.uint64) for field in fields], layout.widths)


def decode_records(layout: RecordLayout, records: UInt8[np.ndarray, "tokens size"]) -> TokenRecords:
    """Unpack records.

    Kept tokens and tail are brought to a sum of 1 again, which rounding takes from them: each row's log-probabilities
    are shifted by one number, which is no greater than the greatest rounding error in the row, as `rounding_nats`
    bounds it. With 32 bits nothing is changed.

    Args:
        layout: as they were packed with.
        records: any rows, in any order.

    Returns:
        The tokens; int32 and float32.
    """
    fields = unpack_fields(records, layout.widths)
    ids, lengths = fields[0].astype(np.int32), fields[1].astype(np.int32)
    observed = decode_log_probs(fields[2], layout.observed_bits)
    rest = fields[3 + layout.has_tail :]
    n = len(records)
    top_ids = np.empty((n, layout.k), dtype=np.int32)
    kept = np.empty((n, layout.k), dtype=np.float32)
    for place in range(layout.k):
        top_ids[:, place] = rest[place]
        codes = rest[layout.k + place]
        kept[:, place] = (
            _log_shares(layout.k)[codes] if layout.is_sampled else decode_log_probs(codes, layout.value_bits)
        )
    if layout.has_tail:
        tail = decode_log_probs(fields[3], layout.value_bits)
        if layout.value_bits != EXACT_BITS:
            kept, tail = _summing_to_one(kept, tail)
    else:
        tail = np.full(n, -np.inf if layout.k else 0.0, dtype=np.float32)
    return TokenRecords(ids, lengths, observed, top_ids, kept, tail)


def rounding_nats(log_probs: Float[np.ndarray, "..."], bits: int) -> Float[np.ndarray, "..."]:
    """The most that keeping log-probabilities in so many bits changes them, in nats.

    Args:
        log_probs: between `FLOOR_NATS` and 0.
        bits: of a value.

    Returns:
        Half the gap between levels at each: 0.0024 nats at 0 and 0.007 at -1 with 9 bits.
    """
    if bits == EXACT_BITS:
        return np.zeros_like(log_probs, dtype=np.float64)
    return (KNEE_NATS - np.asarray(log_probs, dtype=np.float64)) * math.expm1(_step(bits)) / 2


def encode_log_probs(log_probs: Float[np.ndarray, "..."], bits: int) -> UInt32[np.ndarray, "..."]:
    """The code of each log-probability: that of the nearest level, or of minus infinity or NaN."""
    values = np.asarray(log_probs, dtype=np.float32)
    if bits == EXACT_BITS:
        return np.ascontiguousarray(values).view(np.uint32)
    levels = _levels(bits)
    middles = (levels[1:] + levels[:-1]) / 2
    codes = np.searchsorted(middles, -values).astype(np.uint32)
    codes[values == -np.inf] = len(levels)
    codes[np.isnan(values)] = len(levels) + 1
    return codes


def decode_log_probs(codes: Int[np.ndarray, "..."] | UInt32[np.ndarray, "..."], bits: int) -> np.ndarray:
    """The log-probability of each code, in float32."""
    if bits == EXACT_BITS:
        return codes.astype(np.uint32).view(np.float32)
    return _values(bits)[codes]


def pack_fields(fields: Sequence[np.ndarray], widths: Sequence[int]) -> UInt8[np.ndarray, "records size"]:
    """Lay unsigned numbers end to end.

    Args:
        fields: one array of uint64 a field, all of one length; none needs more bits than its width.
        widths: 1 to 32 bits each.

    Returns:
        One row of whole bytes a record, padded with zero bits.
    """
    n_bits, n = sum(widths), len(fields[0])
    words = np.zeros((-(-n_bits // 64), n), dtype=np.uint64)
    at = 0
    for field, width in zip(fields, widths, strict=True):
        word, shift = divmod(at, 64)
        words[word] |= field << np.uint64(shift)
        if shift + width > 64:
            words[word + 1] |= field >> np.uint64(64 - shift)
        at += width
    rows = np.ascontiguousarray(words.T).astype("<u8", copy=False)
    return np.ascontiguousarray(rows.view(np.uint8)[:, : -(-n_bits // 8)])


def unpack_fields(records: UInt8[np.ndarray, "records size"], widths: Sequence[int]) -> list[np.ndarray]:
    """The numbers that `pack_fields` laid end to end, one array of int64 a field."""
    n_words = -(-sum(widths) // 64)
    padded = np.zeros((len(records), 8 * n_words), dtype=np.uint8)
    padded[:, : records.shape[1]] = records
    words = np.ascontiguousarray(padded.view("<u8").T).astype(np.uint64, copy=False)
    fields: list[np.ndarray] = []
    at = 0
    for width in widths:
        word, shift = divmod(at, 64)
        field = words[word] >> np.uint64(shift)
        if shift + width > 64:
            field |= words[word + 1] << np.uint64(64 - shift)
        fields.append((field & np.uint64((1 << width) - 1)).view(np.int64))
        at += width
    return fields


def _summing_to_one(
    kept: Float[np.ndarray, "tokens k"], tail: Float[np.ndarray, " tokens"]
) -> tuple[np.ndarray, np.ndarray]:
    total = np.exp(kept).sum(axis=1) + np.exp(tail)
    with np.errstate(divide="ignore"):
        shift = np.log(total)
    shift[total == 0] = 0  # a record that holds no distribution
    return kept - shift[:, None], tail - shift


def _step(bits: int) -> float:
    """Difference between the logarithms of neighbouring levels' distances from the knee."""
    return math.log1p(-FLOOR_NATS / KNEE_NATS) / ((1 << bits) - 3)


@cache
def _levels(bits: int) -> Float[np.ndarray, " levels"]:
    """The levels of minus log-probability, rising from 0."""
    levels = KNEE_NATS * np.expm1(np.arange((1 << bits) - 2) * _step(bits))
    levels[-1] = -FLOOR_NATS
    return levels.astype(np.float32)


@cache
def _values(bits: int) -> Float[np.ndarray, " codes"]:
    """The log-probability of each code."""
    return np.concatenate([-_levels(bits), np.array([-np.inf, np.nan], dtype=np.float32)])


@cache
def _log_shares(k: int) -> Float[np.ndarray, " counts"]:
    """log(count / k) of each count from 0 to k."""
    with np.errstate(divide="ignore"):
        return np.log(np.arange(k + 1, dtype=np.float32) / np.float32(k))

"""Records come back as they were packed, within the bound that is told."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfuse.tensors.packed_records import (
    FLOOR_NATS,
    LONG,
    RecordLayout,
    TokenRecords,
    decode_log_probs,
    decode_records,
    encode_log_probs,
    encode_records,
    pack_fields,
    rounding_nats,
    unpack_fields,
    widest_value_bits,
)

FLOAT32_NATS = 1e-5
"""What float32 itself rounds, at log-probabilities down to the floor."""


def drawn_records(layout: RecordLayout, n: int, seed: int) -> TokenRecords:
    """Softmax outputs over a small vocabulary, their likeliest tokens kept; ids anywhere in the layout's."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, layout.k + 20)) * generator.choice([0.1, 2, 20], size=(n, 1))
    log_probs = -np.sort(-(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))), axis=1)
    with np.errstate(divide="ignore"):
        tail = np.log(np.exp(log_probs[:, layout.k :]).sum(axis=1))
    return TokenRecords(
        generator.integers(layout.n_vocab, size=n).astype(np.int32),
        generator.integers(200, size=n).astype(np.int32),
        log_probs[:, -1].astype(np.float32),
        generator.integers(layout.n_vocab, size=(n, layout.k)).astype(np.int32),
        log_probs[:, : layout.k].astype(np.float32),
        (tail if layout.k else np.zeros(n)).astype(np.float32),
    )


def test_fields_lie_end_to_end_from_the_least_bit():
    # 3 bits of 5, 10 bits of 1, 6 bits of 63: 101 | 0000000001 | 111111, written from the right.
    packed = pack_fields([np.array([n], dtype=np.uint64) for n in (5, 1, 63)], [3, 10, 6])
    assert packed.tolist() == [[0b00001101, 0b11100000, 0b00000111]]


@given(st.data())
def test_any_fields_come_back(data):
    widths = data.draw(st.lists(st.integers(1, 32), min_size=1, max_size=40))
    n = data.draw(st.integers(0, 5))
    fields = [
        np.array(data.draw(st.lists(st.integers(0, 2**width - 1), min_size=n, max_size=n)), dtype=np.uint64)
        for width in widths
    ]
    packed = pack_fields(fields, widths)
    assert packed.shape == (n, -(-sum(widths) // 8))
    for back, field in zip(unpack_fields(packed, widths), fields, strict=True):
        assert back.tolist() == field.tolist()


@given(
    st.lists(st.floats(FLOOR_NATS, 0, width=32), min_size=1, max_size=50), st.sampled_from([8, 9, 10, 13, 16])
)
def test_a_log_probability_changes_by_no_more_than_the_bound(values, bits):
    log_probs = np.array(values, dtype=np.float32)
    back = decode_log_probs(encode_log_probs(log_probs, bits), bits)
    assert (np.abs(back - log_probs) <= rounding_nats(log_probs, bits) + FLOAT32_NATS).all()


def test_the_bound_is_reached_but_not_by_far_missed():
    log_probs = np.linspace(-30, 0, 100_001, dtype=np.float32)
    errors = np.abs(decode_log_probs(encode_log_probs(log_probs, 9), 9) - log_probs)
    assert (errors / rounding_nats(log_probs, 9)).max() > 0.98
    # As the documentation says, and what it means for a probability.
    np.testing.assert_allclose(rounding_nats(np.array([0.0, -1.0]), 9), [0.0024, 0.0072], atol=5e-5)
    assert np.abs(np.exp(log_probs) * errors).max() < 0.003


def test_zero_infinity_and_nan_have_codes_and_the_rest_is_clamped():
    values = np.array([0.0, 1e-4, -np.inf, np.nan, -64.0, -1000.0], dtype=np.float32)
    for bits in (8, 9, 16):
        back = decode_log_probs(encode_log_probs(values, bits), bits)
        np.testing.assert_array_equal(back, np.float32([0, 0, -np.inf, np.nan, FLOOR_NATS, FLOOR_NATS]))
    np.testing.assert_array_equal(decode_log_probs(encode_log_probs(values, 32), 32), values)


@given(
    st.sampled_from([300, 49152, 262144]),
    st.sampled_from([0, 1, 3, 10]),
    st.sampled_from([9, 12, 16, 32]),
    st.integers(0, 2**20),
)
def test_records_come_back_valid_and_within_the_bound(n_vocab, k, bits, seed):
    layout = RecordLayout(n_vocab, k, bits)
    records = drawn_records(layout, 7, seed)
    packed = encode_records(layout, records)
    assert packed.shape == (7, layout.record_bytes)
    back = decode_records(layout, packed)
    np.testing.assert_array_equal(back.token_ids, records.token_ids)
    np.testing.assert_array_equal(back.lengths, np.minimum(records.lengths, LONG))
    np.testing.assert_array_equal(back.top_ids, records.top_ids)
    observed = records.observed_log_probs if bits == 32 else records.observed_log_probs.clip(FLOOR_NATS)
    errors = np.abs(back.observed_log_probs - observed)
    assert (errors <= rounding_nats(observed, layout.observed_bits) + FLOAT32_NATS).all()
    total = np.exp(back.top_log_probs).sum(axis=1) + np.exp(back.tail_log_probs)
    np.testing.assert_allclose(total, 1, atol=2e-6)
    before = np.column_stack([records.top_log_probs, records.tail_log_probs])
    after = np.column_stack([back.top_log_probs, back.tail_log_probs])
    is_told = before >= FLOOR_NATS
    bounds = np.where(is_told, rounding_nats(before.clip(FLOOR_NATS), bits), 0)
    shift = np.log((np.exp(before) * np.exp(bounds)).sum(axis=1)) + FLOAT32_NATS
    assert (np.where(is_told, np.abs(after - before) - bounds, 0).max(axis=1) <= shift).all()


def test_counts_of_draws_come_back_exactly():
    layout = RecordLayout(1000, 10, 9, is_sampled=True)
    counts = np.array([[7, 2, 1, 0, 0, 0, 0, 0, 0, 0], [1] * 10])
    with np.errstate(divide="ignore"):
        log_shares = np.log(counts / np.float32(10)).astype(np.float32)
    records = drawn_records(layout, 2, 0)._replace(top_log_probs=log_shares)
    back = decode_records(layout, encode_records(layout, records))
    np.testing.assert_array_equal(back.top_log_probs, log_shares)
    assert (back.tail_log_probs == -np.inf).all()


@pytest.mark.parametrize(
    ("n_vocab", "bits", "observed_bits", "size"), [(262144, 9, 9, 39), (49152, 10, 12, 38)]
)
def test_at_ten_kept_tokens_a_record_leaves_room_within_forty_bytes(n_vocab, bits, observed_bits, size):
    assert widest_value_bits(n_vocab, 10) == bits
    layout = RecordLayout(n_vocab, 10, bits)
    assert (layout.observed_bits, layout.record_bytes) == (observed_bits, size)
    assert RecordLayout(n_vocab, 10, 32).observed_bits == 32


def test_without_kept_tokens_a_record_holds_the_observed_one_only():
    layout = RecordLayout(49152, 0, widest_value_bits(49152, 0))
    assert (layout.widths, layout.record_bytes) == ((16, 6, 16), 5)
    back = decode_records(layout, encode_records(layout, drawn_records(layout, 3, 0)))
    assert back.top_ids.shape == (3, 0)
    assert back.tail_log_probs.tolist() == [0, 0, 0]


def test_what_does_not_fit_is_refused():
    layout = RecordLayout(300, 2, 9)
    records = drawn_records(layout, 3, 0)
    with pytest.raises(ValueError, match=r"token ids: expected 0 to 299, got 0 to 300"):
        encode_records(layout, records._replace(token_ids=np.array([0, 300, 1], dtype=np.int32)))
    with pytest.raises(ValueError, match=r"kept ids: expected 0 to 299, got -1 to -1"):
        encode_records(layout, records._replace(top_ids=np.full((3, 2), -1, dtype=np.int32)))
    with pytest.raises(ValueError, match=r"lengths: expected 0 or more bytes, got -2"):
        encode_records(layout, records._replace(lengths=np.array([0, -2, 1], dtype=np.int32)))
    with pytest.raises(ValueError, match=r"expected 8 to 16 bits a value, or 32; got 7"):
        RecordLayout(300, 2, 7)
    with pytest.raises(ValueError, match=r"no more kept tokens than it has; got 300 and 301"):
        RecordLayout(300, 301, 9)

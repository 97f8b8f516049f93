"""An ensemble over common chunks: hand-worked, per token for equal tokenizers, within its bounds."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfuse.tensors.ensemble import SourceStates, ensemble_bits_per_byte, ensemble_loss


def states(ends: list[int], probs: list[float]) -> SourceStates:
    """A reading whose token i + 1 has the chance `probs[i]`; the last state's is not known."""
    log_probs = np.append(np.log(np.array(probs, dtype=np.float32)), np.float32(np.nan))
    return SourceStates(np.array(ends, dtype=np.int32), log_probs.astype(np.float32))


@st.composite
def readings(draw, n_bytes: int, has_bos: bool | None = None) -> SourceStates:
    """Some way to cut a text of `n_bytes`, now and then with tokens of no bytes."""
    inner = draw(st.lists(st.integers(1, n_bytes), max_size=12))
    starts_empty = draw(st.booleans()) if has_bos is None else has_bos
    ends = sorted([*([0] if starts_empty else []), *inner, n_bytes])
    log_probs = draw(st.lists(st.floats(-20, 0), min_size=len(ends), max_size=len(ends)))
    return SourceStates(np.array(ends, dtype=np.int32), np.array([*log_probs[:-1], np.nan], dtype=np.float32))


@st.composite
def texts(draw, n_min: int = 1) -> list[SourceStates]:
    n_bytes = draw(st.integers(1, 15))
    return draw(st.lists(readings(n_bytes), min_size=n_min, max_size=4))


def test_two_tokenizers_by_hand():
    """ "abcdef": one reads BOS ab|cd|ef, the other a|b|cdef without BOS: common are the positions 2 and 6."""
    first = states([0, 2, 4, 6], [0.5, 0.5, 0.4])
    second = states([1, 2, 6], [0.9, 0.6])
    loss = ensemble_loss([first, second])
    assert (loss.n_bytes, loss.n_chunks) == (4, 1)
    assert loss.nll_nats == pytest.approx(-math.log((0.5 * 0.4 + 0.6) / 2), rel=1e-6)
    assert loss.source_nll_nats == pytest.approx([-math.log(0.2), -math.log(0.6)], rel=1e-6)
    weighted = ensemble_loss([first, second], np.array([3.0, 1.0]))
    assert weighted.nll_nats == pytest.approx(-math.log(0.75 * 0.2 + 0.25 * 0.6), rel=1e-6)


def test_a_token_of_no_bytes_belongs_to_the_chunk_that_it_closes():
    """A source that writes a mark after its first word: the mark's chance counts with the word's."""
    marked = states([0, 1, 1, 2], [0.5, 0.25, 0.5])
    plain = states([0, 1, 2], [0.5, 0.5])
    loss = ensemble_loss([marked, plain])
    assert loss.nll_nats == pytest.approx(-math.log((0.125 + 0.5) / 2) - math.log(0.5), rel=1e-6)


def test_a_source_that_rules_the_text_out_leaves_it_to_the_others():
    impossible = SourceStates(np.array([0, 1]), np.array([-np.inf, np.nan]))
    loss = ensemble_loss([impossible, states([0, 1], [0.5])])
    assert loss.nll_nats == pytest.approx(math.log(4))
    assert loss.source_nll_nats[0] == math.inf
    assert ensemble_loss([impossible, impossible]).nll_nats == math.inf


@given(readings(12))
def test_one_source_gives_its_own_loss(source: SourceStates):
    loss = ensemble_loss([source])
    first_state = int(np.searchsorted(source.ends, source.ends[0], side="right")) - 1
    own = -source.observed_log_probs[first_state:-1].astype(float)
    # Tokens of no bytes after the last byte are read too.
    assert loss.nll_nats == pytest.approx(float(own.sum()), abs=1e-6)
    assert loss.source_nll_nats.tolist() == pytest.approx([loss.nll_nats], abs=1e-6)
    assert loss.n_bytes == source.ends[-1] - source.ends[0]


@given(
    st.lists(
        st.lists(st.floats(-9, 0, width=32), min_size=6, max_size=6),
        min_size=1,
        max_size=4,
    )
)
def test_equal_tokenizers_average_token_by_token(rows: list[list[float]]):
    ends = np.array([0, 1, 3, 4, 8, 9, 11], dtype=np.int32)
    log_probs = np.array(rows)
    sources = [SourceStates(ends, np.array([*row, np.nan], dtype=np.float32)) for row in rows]
    loss = ensemble_loss(sources)
    assert loss.n_chunks == 6
    assert loss.nll_nats == pytest.approx(-np.log(np.exp(log_probs).mean(axis=0)).sum(), rel=1e-6, abs=1e-6)


@given(texts())
def test_no_order_matters_and_bounds_hold(sources: list[SourceStates]):
    loss = ensemble_loss(sources)
    back = ensemble_loss(sources[::-1])
    assert back.nll_nats == pytest.approx(loss.nll_nats, abs=1e-9)
    assert back.source_nll_nats[::-1].tolist() == pytest.approx(loss.source_nll_nats.tolist(), abs=1e-9)
    # In every chunk the mean is at least the best one's share, and by Jensen at most the mean loss.
    best = loss.source_nll_nats.min() + loss.n_chunks * math.log(len(sources))
    assert loss.nll_nats <= best + 1e-6
    assert loss.nll_nats <= loss.source_nll_nats.mean() + 1e-6


@given(texts(n_min=2))
def test_chunks_equal_a_plain_search(sources: list[SourceStates]):
    common = sorted(set.intersection(*(set(source.ends.tolist()) for source in sources)))
    total = 0.0
    for start, end in itertools.pairwise(common):
        chances = []
        for source in sources:
            last = {int(position): state for state, position in enumerate(source.ends)}
            chances.append(math.exp(sum(map(float, source.observed_log_probs[last[start] : last[end]]))))
        total -= math.log(sum(chances) / len(chances))
    loss = ensemble_loss(sources)
    assert loss.nll_nats == pytest.approx(total, rel=1e-6, abs=1e-6)
    assert loss.n_chunks == max(0, len(common) - 1)


def test_texts_without_a_common_chunk_count_no_bytes():
    loss = ensemble_loss([states([2, 4], [0.5]), states([3, 4], [0.5])])
    assert (loss.nll_nats, loss.n_bytes, loss.n_chunks) == (0, 0, 0)
    nothing = SourceStates(np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))
    assert ensemble_loss([nothing, nothing]).n_bytes == 0


def test_bits_per_byte_over_texts():
    short = ensemble_loss([states([0, 1], [0.5]), states([0, 1], [0.25])])
    long = ensemble_loss([states([0, 3], [0.125]), states([0, 3], [0.125])])
    unread = ensemble_loss([states([2, 4], [0.5]), states([3, 4], [0.5])])
    found = ensemble_bits_per_byte([short, long, unread], seed=5)
    assert found.ensemble.value == pytest.approx((-math.log2(0.375) + 3) / 4, rel=1e-6)
    assert [each.value for each in found.sources] == pytest.approx([1.0, 1.25], rel=1e-6)
    assert found.ensemble.n == 2
    assert found.sources[0].low == found.sources[0].high == pytest.approx(1.0)
    low, high = found.sources[1].low, found.sources[1].high
    assert low is not None
    assert high is not None
    assert low == pytest.approx(1.0)
    assert high == pytest.approx(2.0)


def test_no_text_gives_no_estimate():
    found = ensemble_bits_per_byte([], seed=1)
    assert found.ensemble.value is None
    assert found.sources == []


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ([], None, "expected one source or more, got none"),
        ([states([0, 2], [0.5]), states([0, 3], [0.5])], None, r"expected readings of one text, .* \[2, 3\]"),
        ([states([0, 2, 1], [0.5, 0.5])], None, "source 0: expected ends that never fall"),
        ([SourceStates(np.array([0, 1]), np.array([0.0]))], None, "source 0: .* each of 2 states, got 1"),
        ([SourceStates(np.array([0, 1]), np.array([np.nan, 0.0]))], None, "source 0: .* got NaN"),
        ([states([0, 2], [0.5])], np.array([1.0, 1.0]), r"expected 1 weights, .* got \[1.0, 1.0\]"),
        ([states([0, 2], [0.5])], np.array([0.0]), "not all 0"),
        ([states([0, 2], [0.5])], np.array([-1.0]), "none negative"),
    ],
)
def test_refusals(sources, weights, message):
    with pytest.raises(ValueError, match=message):
        ensemble_loss(sources, weights)

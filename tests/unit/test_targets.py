"""What a target is to learn of a piece, worked by hand and against what must hold."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.fuse.fusion_settings import FusionSettings
from transfuse.fuse.targets import FusedPiece, FusionSource, fuse_piece
from transfuse.fuse.vocabulary_map import VocabularyMap
from transfuse.io.distribution_cache import TextDistributions
from transfuse.io.token_spans import TokenSpans
from transfuse.tensors.fusion_rules import UNTAUGHT


def spans(ids: Sequence[int], ends: Sequence[int]) -> TokenSpans:
    return TokenSpans(np.array(ids, dtype=np.int32), np.array(ends, dtype=np.int32))


def said(
    ids: Sequence[int],
    ends: Sequence[int],
    probs: Sequence[float] | None = None,
    tops: Sequence[dict[int, float]] | None = None,
    k: int = 2,
) -> TextDistributions:
    """What a source says: the probability of each next token (none of the last), and what is kept at each state."""
    n = len(ids)
    observed = np.full(n, np.nan, dtype=np.float32)
    observed[: n - 1] = np.log(probs if probs is not None else [0.5] * max(0, n - 1))
    top_ids, top = np.zeros((n, k), dtype=np.int32), np.full((n, k), -np.inf, dtype=np.float32)
    for state, row in enumerate(tops or [{}] * n):
        for place, (token, probability) in enumerate(sorted(row.items(), key=lambda item: -item[1])):
            top_ids[state, place], top[state, place] = token, np.log(probability)
    with np.errstate(divide="ignore"):
        tail = np.log(np.maximum(0, 1 - np.exp(top).sum(axis=1))).astype(np.float32)
    return TextDistributions(*spans(ids, ends), observed, top_ids, top, tail)


def source(images: Sequence[int], name: str = "source") -> FusionSource:
    ids = np.array(images, dtype=np.int32)
    return FusionSource(name, VocabularyMap(ids, np.where(ids < 0, 255, 0).astype(np.uint8), "exact"))


def kept(piece: FusedPiece, state: int) -> dict:
    is_kept = piece.states.log_probs[state] > -np.inf
    return {
        int(token): pytest.approx(float(np.exp(nats)), rel=1e-5)
        for token, nats in zip(
            piece.states.token_ids[state][is_kept], piece.states.log_probs[state][is_kept], strict=True
        )
    }


# "abcdef": the target reads "ab" (0), "c" (1), "def" (2); the source "a" (5), "b" (6), "c" (7), "def" (8).
TARGET = spans([0, 1, 2], [2, 3, 6])
IMAGES = [-1] * 5 + [3, 4, 1, 2]
"""Of the source's tokens, should it propose them: "a" is the target's 3, "b" its 4."""
SOURCE = said(
    [5, 6, 7, 8],
    [1, 2, 3, 6],
    tops=[{6: 0.9}, {7: 0.6, 5: 0.3}, {8: 0.5, 6: 0.25}, {5: 0.8}],
)


def test_state_i_teaches_token_i_plus_1_worked_by_hand():
    piece = fuse_piece(TARGET, [SOURCE], [source(IMAGES)], FusionSettings(map="exact"))
    # Having read "ab" the target learns what the source says once it has read "a" and "b": that "c" is likely.
    assert kept(piece, 0) == {1: 0.6, 3: 0.3}
    assert kept(piece, 1) == {2: 0.5, 4: 0.25}
    assert kept(piece, 2) == {}
    np.testing.assert_array_equal(piece.states.is_taught, [True, True, False])
    np.testing.assert_array_equal(piece.states.source, [0, 0, UNTAUGHT])
    np.testing.assert_array_equal(piece.token_ids, [0, 1, 2])


def test_where_tokens_are_cut_apart_only_retokenizing_teaches():
    """Before "def" the source is about to say "d", "ef"; a map of whole tokens has nothing to put there."""
    apart = said([5, 6, 7, 9, 10], [1, 2, 3, 4, 6], tops=[{6: 0.9}, {7: 0.6}, {9: 0.7}, {10: 0.4}, {5: 1.0}])
    images = [*IMAGES, 2, -1]  # "d" begins "def"
    whole = fuse_piece(TARGET, [apart], [source(images)], FusionSettings(map="exact"))
    np.testing.assert_array_equal(whole.states.is_taught, [True, False, False])
    first = fuse_piece(TARGET, [apart], [source(images)], FusionSettings(map="retokenize"))
    assert kept(first, 1) == {2: 0.7}
    np.testing.assert_array_equal(first.states.is_taught, [True, True, False])


def test_the_fallback_of_the_published_code_learns_the_token_just_read():
    mute = said([11, 12], [2, 6], tops=[{5: 0.9}, {5: 0.9}])
    images = [*IMAGES, -1, -1, -1, -1]
    ours = fuse_piece(TARGET, [mute], [source(images)], FusionSettings(map="exact"))
    assert not ours.states.is_taught.any()
    theirs = fuse_piece(
        TARGET, [mute], [source(images)], FusionSettings(map="exact", fallback="current-token")
    )
    assert [kept(theirs, state) for state in range(3)] == [{0: 1.0}, {1: 1.0}, {}]


@pytest.mark.parametrize(
    ("target", "other", "taught"),
    [
        # The target writes a BOS and the source none: nothing is said of the first word.
        (
            spans([9, 0, 1, 2], [0, 2, 3, 6]),
            said([0, 1, 2], [2, 3, 6], tops=[{1: 1.0}] * 3),
            [False, True, True, False],
        ),
        # Both write one: they agree from the beginning.
        (
            spans([9, 0, 1, 2], [0, 2, 3, 6]),
            said([9, 0, 1, 2], [0, 2, 3, 6], tops=[{1: 1.0}] * 4),
            [True, True, True, False],
        ),
        # The source writes one, the target none.
        (
            spans([0, 1, 2], [2, 3, 6]),
            said([9, 0, 1, 2], [0, 2, 3, 6], tops=[{1: 1.0}] * 4),
            [True, True, False],
        ),
    ],
)
def test_a_bos_on_one_side_leaves_the_rest_aligned(
    target: TokenSpans, other: TextDistributions, taught: list[bool]
):
    piece = fuse_piece(target, [other], [source(range(10))], FusionSettings(map="exact"))
    np.testing.assert_array_equal(piece.states.is_taught, taught)


@pytest.mark.parametrize("rule", ["min-ce", "avg-ce", "fair-min-ce", "fair-avg-ce"])
@pytest.mark.parametrize("level", ["sequence", "chunk"])
@pytest.mark.parametrize("divergence", ["cross-entropy", "chunk-likelihood"])
@pytest.mark.parametrize(("ids", "ends"), [([], []), ([9], [0]), ([1], [4])])
def test_of_a_text_of_no_or_one_token_nothing_is_learned(
    rule: str, level: str, divergence: str, ids: list[int], ends: list[int]
):
    how = FusionSettings.model_validate({"rule": rule, "level": level, "divergence": divergence})
    one, none = said(ids, ends), said([], [])
    pair = [one, one if ends and ends[-1] else none]
    piece = fuse_piece(spans(ids, ends), pair, [source(range(10)), source(range(10))], how)
    assert not piece.states.is_taught.any()
    assert len(piece.states.is_taught) == len(ids)
    if divergence == "chunk-likelihood":
        assert piece.chunks is not None
        assert len(piece.chunks.start) == 0


def test_a_source_of_a_padded_vocabulary_needs_no_more_of_the_map_than_it_says():
    """The model has 40 rows, its tokenizer ten ids; what is kept is of the ten."""
    images = np.pad(np.arange(10), (0, 30), constant_values=-1)
    other = said([0, 1, 2], [2, 3, 6], tops=[{9: 0.5, 4: 0.2}] * 3)
    piece = fuse_piece(TARGET, [other], [source(images.tolist())], FusionSettings(map="exact"))
    assert kept(piece, 0) == {9: 0.5, 4: 0.2}


# Two sources of "abcdef", both of the target's own tokens; the first knows the second token well, the other the third.
GOOD_THEN_BAD = said([0, 1, 2], [2, 3, 6], [0.9, 0.1], [{1: 0.9}, {3: 0.5}, {}])
BAD_THEN_GOOD = said([0, 1, 2], [2, 3, 6], [0.2, 0.8], [{4: 0.6}, {2: 0.8}, {}])
BOTH = [source(range(10), "one"), source(range(10), "other")]


def test_by_sequence_one_source_is_chosen_by_chunk_each_where_it_is_better():
    # 0.9 x 0.1 is less than 0.2 x 0.8, so by sequence the second has it.
    by_sequence = fuse_piece(TARGET, [GOOD_THEN_BAD, BAD_THEN_GOOD], BOTH, FusionSettings(map="exact"))
    np.testing.assert_array_equal(by_sequence.states.source, [1, 1, UNTAUGHT])
    assert [kept(by_sequence, state) for state in (0, 1)] == [{4: 0.6}, {2: 0.8}]
    by_chunk = fuse_piece(
        TARGET, [GOOD_THEN_BAD, BAD_THEN_GOOD], BOTH, FusionSettings(map="exact", level="chunk")
    )
    np.testing.assert_array_equal(by_chunk.states.source, [0, 1, UNTAUGHT])
    assert [kept(by_chunk, state) for state in (0, 1)] == [{1: 0.9}, {2: 0.8}]


def test_averages_by_chunk_weigh_by_the_cost_of_the_chunk():
    """One byte between the cuts 2 and 3: bits per byte -log2(0.9) and -log2(0.2), so weights as powers 1 / ln 2."""
    how = FusionSettings(map="exact", level="chunk", rule="fair-avg-ce")
    piece = fuse_piece(TARGET, [GOOD_THEN_BAD, BAD_THEN_GOOD], BOTH, how)
    powers = np.array([0.9, 0.2]) ** (1 / np.log(2))
    share = powers / powers.sum()
    assert kept(piece, 0) == {1: 0.9 * share[0], 4: 0.6 * share[1]}
    powers = np.array([0.1, 0.8]) ** (1 / np.log(2) / 3)
    share = powers / powers.sum()
    assert kept(piece, 1) == {2: 0.8 * share[1], 3: 0.5 * share[0]}


def test_fair_rules_do_not_favour_short_tokens():
    """Of the same bytes the fine source pays 4 x ln 2 = 4 bits, the coarse one 3 bits in a single token."""
    target = spans([9, 0], [0, 4])
    fine = said([9, 1, 1, 1, 1], [0, 1, 2, 3, 4], [0.5] * 4, [{5: 1.0}] * 5)
    coarse = said([9, 0], [0, 4], [0.125], [{6: 1.0}] * 2)
    for rule, chosen in (("fair-min-ce", 1), ("min-ce", 0)):
        how = FusionSettings.model_validate({"rule": rule, "map": "retokenize"})
        piece = fuse_piece(target, [fine, coarse], BOTH, how)
        assert piece.states.source[0] == chosen


def test_chunk_likelihoods_are_sums_between_common_cuts():
    """Cuts of both: 2, 3 and 6. The source pays for "c" one token, for "def" two; of "ab" it does not predict all."""
    other = said([5, 6, 7, 8, 9], [1, 2, 3, 4, 6], [0.3, 0.6, 0.5, 0.25])
    piece = fuse_piece(TARGET, [other], [source(range(10))], FusionSettings(divergence="chunk-likelihood"))
    assert piece.chunks is not None
    np.testing.assert_array_equal(piece.chunks.start, [1, 2])
    np.testing.assert_array_equal(piece.chunks.end, [2, 3])
    np.testing.assert_allclose(piece.chunks.log_probs, np.log([0.6, 0.125]), rtol=1e-6)
    assert not piece.states.is_taught.any()
    # With a BOS on both sides the first chunk is predicted whole, by two tokens of the source.
    with_bos = said([3, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 6], [0.1, 0.3, 0.6, 0.5, 0.25])
    target = spans([3, 0, 1, 2], [0, 2, 3, 6])
    piece = fuse_piece(target, [with_bos], [source(range(10))], FusionSettings(divergence="chunk-likelihood"))
    assert piece.chunks is not None
    np.testing.assert_array_equal(piece.chunks.start, [1, 2, 3])
    np.testing.assert_allclose(piece.chunks.log_probs, np.log([0.03, 0.6, 0.125]), rtol=1e-6)


def test_a_chunk_of_several_target_tokens_is_one():
    target, coarse = spans([3, 5, 6, 1], [0, 1, 2, 3]), said([3, 0, 1], [0, 2, 3], [0.4, 0.7])
    piece = fuse_piece(target, [coarse], [source(range(10))], FusionSettings(divergence="chunk-likelihood"))
    assert piece.chunks is not None
    np.testing.assert_array_equal(piece.chunks.start, [1, 3])
    np.testing.assert_array_equal(piece.chunks.end, [3, 4])
    np.testing.assert_allclose(piece.chunks.log_probs, np.log([0.4, 0.7]), rtol=1e-6)


def test_chunk_likelihoods_of_several_sources_are_chosen_or_averaged():
    for level, expected in (("sequence", [0.2, 0.8]), ("chunk", [0.9, 0.8])):
        how = FusionSettings.model_validate({"divergence": "chunk-likelihood", "level": level})
        piece = fuse_piece(TARGET, [GOOD_THEN_BAD, BAD_THEN_GOOD], BOTH, how)
        assert piece.chunks is not None
        np.testing.assert_allclose(np.exp(piece.chunks.log_probs), expected, rtol=1e-5)
    how = FusionSettings(divergence="chunk-likelihood", rule="fair-avg-ce")
    piece = fuse_piece(TARGET, [GOOD_THEN_BAD, BAD_THEN_GOOD], BOTH, how)
    powers = np.array([0.09, 0.16]) ** (1 / np.log(2) / 4)  # over the four bytes that are predicted
    share = powers / powers.sum()
    assert piece.chunks is not None
    expected = [share @ [0.9, 0.2], share @ [0.1, 0.8]]
    np.testing.assert_allclose(np.exp(piece.chunks.log_probs), expected, rtol=1e-5)


def test_a_source_that_does_not_predict_a_chunk_leaves_it_to_the_others():
    """Only the second source has a BOS, and so a probability for "ab"."""
    target = spans([3, 0, 1], [0, 2, 3])
    without, with_bos = said([0, 1], [2, 3], [0.9]), said([3, 0, 1], [0, 2, 3], [0.25, 0.5])
    how = FusionSettings(divergence="chunk-likelihood", level="chunk", rule="fair-avg-ce")
    piece = fuse_piece(target, [without, with_bos], BOTH, how)
    assert piece.chunks is not None
    assert np.exp(piece.chunks.log_probs[0]) == pytest.approx(0.25, rel=1e-5)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), n=st.integers(1, 12), k=st.integers(1, 5), has_bos=st.booleans())
def test_one_tokenizer_on_both_sides_is_the_identity(data: st.DataObject, n: int, k: int, has_bos: bool):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    ends = np.cumsum(rng.integers(1, 9, size=n)).astype(np.int32)
    if has_bos:
        ends = np.concatenate([[0], ends]).astype(np.int32)
    ids = rng.integers(20, size=len(ends)).astype(np.int32)
    probs = -np.sort(-rng.dirichlet(np.ones(k + 1), size=len(ends)), axis=1)[:, :k]
    top_ids = np.stack([rng.permutation(20)[:k] for _ in ends]).astype(np.int32)
    observed = np.log(rng.random(len(ends))).astype(np.float32)
    observed[-1] = np.nan
    top = np.log(probs).astype(np.float32)
    own = TextDistributions(ids, ends, observed, top_ids, top, np.zeros(len(ends), dtype=np.float32))
    for how in (
        {"align": "exact"},
        {"align": "min-edit"},
        {"map": "retokenize"},
        {"level": "chunk"},
        {"rule": "avg-ce"},
    ):
        tokens = [f"token{number}" for number in range(20)]
        same = FusionSource("same", source(range(20)).vocabulary, tokens)
        piece = fuse_piece(TokenSpans(ids, ends), [own], [same], FusionSettings.model_validate(how), tokens)
        last = len(ends) - 1
        np.testing.assert_array_equal(piece.states.is_taught, [True] * last + [False])
        np.testing.assert_array_equal(piece.states.token_ids[:last], top_ids[:last])
        np.testing.assert_allclose(piece.states.log_probs[:last], top[:last], rtol=1e-5, atol=1e-6)
        assert np.all(piece.states.log_probs[last] == -np.inf)

"""Fused targets of real tokenizations, of every pair of families, against a state-by-state search."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer_families import CORPUS, FAMILIES
from transfuse.fuse.fusion_settings import FusionSettings
from transfuse.fuse.source_states import plain_tokens
from transfuse.fuse.targets import FusionSource, fuse_piece
from transfuse.fuse.vocabulary_map import VocabularyMap
from transfuse.io.distribution_cache import TextDistributions
from transfuse.io.token_bytes import token_bytes
from transfuse.io.token_spans import TokenSpans, token_spans

K = 3
FEW = ("byte-level", "byte-level, composing", "sentencepiece", "sentencepiece, space in front", "wordpiece")
ODD = ["", " ", "\n", "a\r\nb", "\u200b", "e\u0301", "ﬁ", "👩‍👩‍👧", "<s>", "\t\x00", "  x", "123", "ש", "¼"]
PIECES = st.lists(st.sampled_from([*ODD, *CORPUS[0].split(), *CORPUS[3].split()]), max_size=8)


@cache
def tokenizer_of(family: str):
    return FAMILIES[family]()


@cache
def tokens_of(family: str) -> list[str]:
    return plain_tokens(tokenizer_of(family))


@cache
def map_of(source: str, target: str) -> VocabularyMap:
    """Any map does: tokens of the same bytes, else a token by its number, some none."""
    own, others = token_bytes(tokenizer_of(source)), token_bytes(tokenizer_of(target))
    numbers = {piece: number for number, piece in reversed(list(enumerate(others))) if piece is not None}
    ids = [numbers.get(piece, n % len(others) if n % 5 else -1) for n, piece in enumerate(own)]  # type: ignore[arg-type]
    return VocabularyMap(np.array(ids, dtype=np.int32), np.zeros(len(ids), dtype=np.uint8), "min-edit")


def said(spans: TokenSpans, n_vocab: int, seed: int) -> TextDistributions:
    rng = np.random.default_rng(seed)
    n = len(spans.token_ids)
    probs = -np.sort(-rng.dirichlet(np.ones(K + 1), size=n), axis=1)[:, :K] if n else np.zeros((0, K))
    top_ids = np.array([rng.permutation(n_vocab)[:K] for _ in range(n)], dtype=np.int32).reshape(n, K)
    observed = np.log(rng.random(n)).astype(np.float32)
    observed[-1:] = np.nan
    return TextDistributions(
        *spans, observed, top_ids, np.log(probs).astype(np.float32), np.zeros(n, dtype=np.float32)
    )


def state_that_has_read(ends: list[int], n_bytes: int) -> int | None:
    """The last state of so many bytes."""
    states = [state for state, end in enumerate(ends) if end == n_bytes]
    return states[-1] if states else None


def expected_state(
    source: TextDistributions, target: TokenSpans, state: int, *, needs_one_to_one: bool
) -> int | None:
    """Which state of the source says what the target is to learn at one of its own."""
    ends, own = source.ends.tolist(), target.ends.tolist()
    if state == len(own) - 1 or own[state + 1] == own[state]:
        return None
    found = state_that_has_read(ends, own[state])
    if found is None or found == len(ends) - 1:
        return None
    if needs_one_to_one:
        is_last_there = state_that_has_read(ends, ends[found + 1]) == found + 1
        is_last_here = state_that_has_read(own, own[state + 1]) == state + 1
        if ends[found + 1] != own[state + 1] or not is_last_there or not is_last_here:
            return None
    return found


@pytest.mark.parametrize(("source", "target"), [*itertools.product(FEW, FEW)])
@settings(deadline=None, max_examples=12)
@given(pieces=PIECES, seed=st.integers(0, 1000), kind=st.sampled_from(["min-edit", "retokenize"]))
def test_states_teach_what_the_source_says_there(
    source: str, target: str, pieces: list[str], seed: int, kind: str
):
    text = " ".join(pieces)
    (own,), (other,) = token_spans(tokenizer_of(target), [text]), token_spans(tokenizer_of(source), [text])
    mapped = map_of(source, target)
    distributions = said(other, len(mapped.target_ids), seed)
    how = FusionSettings.model_validate({"map": kind})
    fused = fuse_piece(own, [distributions], [FusionSource(source, mapped)], how)
    for state in range(len(own.token_ids)):
        expected: dict[int, float] = {}
        found = expected_state(distributions, own, state, needs_one_to_one=kind != "retokenize")
        if found is not None:
            for token, nats in zip(
                distributions.top_ids[found], distributions.top_log_probs[found], strict=True
            ):
                if (image := int(mapped.target_ids[token])) >= 0:
                    expected[image] = expected.get(image, 0.0) + math.exp(nats)
        is_kept = fused.states.log_probs[state] > -np.inf
        kept = dict(
            zip(
                fused.states.token_ids[state][is_kept].tolist(),
                np.exp(fused.states.log_probs[state][is_kept]).tolist(),
                strict=True,
            )
        )
        assert kept.keys() == expected.keys()
        assert all(kept[token] == pytest.approx(expected[token], rel=1e-4) for token in kept)
        assert bool(fused.states.is_taught[state]) == bool(expected)


@pytest.mark.parametrize("target", FEW)
@settings(deadline=None, max_examples=12)
@given(pieces=PIECES, seed=st.integers(0, 1000), rule=st.sampled_from(["fair-min-ce", "fair-avg-ce"]))
def test_chunks_cost_what_their_tokens_cost(target: str, pieces: list[str], seed: int, rule: str):
    """Of one source: what all chunks have together is what it pays between the first and the last of them."""
    text = " ".join(pieces)
    (own,), (other,) = token_spans(tokenizer_of(target), [text]), token_spans(tokenizer_of(FEW[2]), [text])
    distributions = said(other, 50, seed)
    how = FusionSettings.model_validate({"divergence": "chunk-likelihood", "rule": rule, "level": "chunk"})
    chunks = fuse_piece(own, [distributions], [FusionSource("one", map_of(FEW[2], target))], how).chunks
    assert chunks is not None
    ends = other.ends.tolist()
    for start, end, nats in zip(*(part.tolist() for part in chunks), strict=True):
        first, last = int(own.ends[start - 1]), int(own.ends[end - 1])
        assert first < last
        here, there = state_that_has_read(ends, first), state_that_has_read(ends, last)
        assert there is not None
        assert here is not None
        paid = float(distributions.observed_log_probs[here:there].sum(dtype=np.float64))
        assert nats == pytest.approx(paid, rel=1e-4, abs=1e-5)
    assert all(
        before <= after
        for before, after in itertools.pairwise(itertools.chain(*zip(*chunks[:2], strict=True)))
    )
    # Nothing lies between chunks but what neither cuts off: they follow each other where both have a state.
    inside = [state for state in range(1, len(own.token_ids)) if own.ends[state] > own.ends[state - 1]]
    shared = {end for end in own.ends.tolist() if end in ends}
    covered = {token for start, end in zip(*chunks[:2], strict=True) for token in range(start, end)}
    for state in inside:
        before = [end for end in shared if end <= own.ends[state - 1]]
        if before and other.ends[-1] > 0:
            assert state in covered


@pytest.mark.parametrize("rule", ["min-ce", "avg-ce", "fair-min-ce", "fair-avg-ce"])
@settings(deadline=None, max_examples=15)
@given(
    pieces=PIECES,
    seed=st.integers(0, 1000),
    families=st.lists(st.sampled_from(FEW), min_size=1, max_size=4),
    how=st.fixed_dictionaries(
        {
            "level": st.sampled_from(["sequence", "chunk"]),
            "align": st.sampled_from(["exact", "min-edit"]),
            "map": st.sampled_from(["exact", "min-edit", "retokenize"]),
            "fallback": st.sampled_from(["next-token", "current-token"]),
            "renormalises": st.booleans(),
            "duplicates": st.sampled_from(["add", "keep-likeliest"]),
            "n_kept": st.sampled_from([None, 1, 20]),
        }
    ),
)
def test_whatever_is_asked_for_targets_are_distributions(
    rule: str, pieces: list[str], seed: int, families: list[str], how: dict
):
    text, target = " ".join(pieces), FEW[1]
    (own,) = token_spans(tokenizer_of(target), [text])
    sources = [FusionSource(name, map_of(name, target), tokens_of(name)) for name in families]
    distributions = [
        said(token_spans(tokenizer_of(name), [text])[0], len(tokens_of(name)), seed + n)
        for n, name in enumerate(families)
    ]
    asked = FusionSettings.model_validate({"rule": rule, **how})
    fused = fuse_piece(own, distributions, sources, asked, tokens_of(target)).states
    n = len(own.token_ids)
    assert fused.token_ids.shape == fused.log_probs.shape
    assert len(fused.is_taught) == len(fused.source) == len(fused.log_probs) == n
    assert np.all(np.exp(fused.log_probs.astype(np.float64)).sum(axis=1) <= 1 + 1e-4)
    np.testing.assert_array_equal(fused.is_taught, (fused.log_probs > -np.inf).any(axis=1))
    np.testing.assert_array_equal(fused.source >= 0, fused.is_taught)
    assert not fused.is_taught[-1:].any()
    assert np.all(fused.token_ids < len(tokens_of(target)))
    if how["fallback"] == "current-token":
        assert fused.is_taught[:-1].all()
    for ids, nats in zip(fused.token_ids, fused.log_probs, strict=True):
        kept = ids[nats > -np.inf]
        assert len({*kept.tolist()}) == len(kept)

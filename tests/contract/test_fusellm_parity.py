"""Fused targets equal those of a plain reading of FuseLLM (Wan et al. 2024, arXiv:2401.10491), written for this test.

The reference works cell by cell and token by token, in dictionaries and float64, after sections 3.2 and 3.3 and what
the published code is seen to do: token i of the target takes the distribution of the source's token that the cheapest
path lays along it, where that is one token and its nearest target token is token i; else a one-hot of token i.
Where this package differs by choice, the last tests say so.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from tokenizer_families import byte_level, sentencepiece
from transfuse.fuse.fusion_settings import FusionSettings
from transfuse.fuse.source_states import plain_tokens
from transfuse.fuse.targets import FusedPiece, FusionSource, fuse_piece
from transfuse.fuse.vocabulary_map import VocabularyMap, map_vocabulary
from transfuse.io.distribution_cache import TextDistributions
from transfuse.io.token_bytes import token_bytes
from transfuse.io.token_spans import token_spans

K = 40
"""So many that several kept tokens have one image now and then."""
TEXTS = (
    "Spain won the cup for the first time, 1:0.",
    "Which country won the area of the final in 2023?",
    "def width(cup):\n    return 12 * cup",
    "The café owner won. Привет!",
    "a",
)
Sparse = Mapping[int, float]
"""Probabilities by token."""


class Voice(NamedTuple):
    """A source as both sides are given it."""

    texts: list[TextDistributions]
    source: FusionSource
    pieces: list[bytes | None]


# The reference.


def edit_distance(one: str, other: str) -> int:
    table = {(i, 0): i for i in range(len(one) + 1)} | {(0, j): j for j in range(len(other) + 1)}
    for i in range(1, len(one) + 1):
        for j in range(1, len(other) + 1):
            swap = table[i - 1, j - 1] + (one[i - 1] != other[j - 1])
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, swap)
    return table[len(one), len(other)]


def reference_matches(source: Sequence[str], target: Sequence[str]) -> list[list[int]]:
    """The source tokens of each target token, by dynamic programming over whole tokens."""
    cost: dict[tuple[int, int], float] = {}
    for i, one in enumerate(source):
        for j, other in enumerate(target):
            before = [cost.get(cell, math.inf) for cell in ((i - 1, j - 1), (i - 1, j), (i, j - 1))]
            cost[i, j] = edit_distance(one, other) + (min(before) if i or j else 0)
    i, j = len(source) - 1, len(target) - 1
    matches: list[list[int]] = [[] for _ in target]
    while True:
        matches[j].insert(0, i)
        if (i, j) == (0, 0):
            return matches
        i, j = min(
            [(i - 1, j - 1), (i - 1, j), (i, j - 1)],
            key=lambda cell: cost.get(cell, math.inf),
        )


def reference_image(
    piece: bytes | None, images: dict[bytes, int | None], target: Sequence[str]
) -> int | None:
    """The target token of least edit distance; of equal ones that of the lowest id. None for control tokens."""
    if piece is None:
        return None
    if piece not in images:
        text = piece.decode(errors="surrogateescape")
        distances = [edit_distance(text, other) if other is not None else math.inf for other in target]
        images[piece] = distances.index(min(distances))
    return images[piece]


def softmax(log_probs: Mapping[int, float]) -> dict[int, float]:
    total = sum(math.exp(value) for value in log_probs.values())
    return {token: math.exp(value) / total for token, value in log_probs.items()}


def reference_states(
    said: TextDistributions,
    target_ids: Sequence[int],
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    image: Mapping[int, int],
) -> list[Sparse]:
    """What one source says at each token of the target."""
    own: list[int] = said.token_ids.tolist()
    matches = reference_matches(
        [source_tokens[token] for token in own], [target_tokens[token] for token in target_ids]
    )
    states: list[Sparse] = []
    for token, places in zip(target_ids, matches, strict=True):
        # The last source token is followed by nothing, so nothing it says is cached as taught.
        if len(places) != 1 or image.get(own[places[0]]) != token or places[0] == len(own) - 1:
            states.append({token: 1.0})
            continue
        kept: dict[int, float] = {}
        for proposed, value in zip(
            said.top_ids[places[0]].tolist(), said.top_log_probs[places[0]].tolist(), strict=True
        ):
            if proposed in image and value > -math.inf:
                kept[image[proposed]] = max(kept.get(image[proposed], -math.inf), value)
        states.append(softmax(kept) if kept else {token: 1.0})
    return states


def reference_cost(said: TextDistributions) -> float:
    observed = said.observed_log_probs[:-1].tolist()
    return -sum(observed) / len(observed)


def reference_fused(rule: str, costs: Sequence[float], voices: Sequence[Sequence[Sparse]]) -> list[Sparse]:
    if rule == "min-ce":
        return list(voices[costs.index(min(costs))])
    powers = [math.exp(math.exp(-cost)) for cost in costs]
    fused: list[Sparse] = []
    for states in zip(*voices, strict=True):
        mean: dict[int, float] = {}
        for power, state in zip(powers, states, strict=True):
            for token, probability in state.items():
                mean[token] = mean.get(token, 0.0) + power / sum(powers) * probability
        fused.append(mean)
    return fused


# The sources: random models that have tokenizers of their own.


def passed(tokenizer, seed: int) -> list[TextDistributions]:
    """One pass of a tiny random model, its logits sharpened so that sources differ."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3 * seed,  # padded
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = LlamaForCausalLM(config).eval()
    found: list[TextDistributions] = []
    for spans in token_spans(tokenizer, TEXTS):
        ids = torch.from_numpy(spans.token_ids).long()
        with torch.no_grad():
            logits = 12 * model(ids[None]).logits[0, :, : len(tokenizer)]
        log_probs = logits.log_softmax(dim=-1)
        top = log_probs.topk(K, dim=-1)
        observed = np.full(len(ids), np.nan, dtype=np.float32)
        observed[:-1] = log_probs[:-1].gather(1, ids[1:, None])[:, 0].numpy()
        tail = np.log1p(-top.values.exp().sum(dim=-1).clamp(max=1 - 1e-6).numpy())
        found.append(TextDistributions(*spans, observed, top.indices.int().numpy(), top.values.numpy(), tail))
    return found


@pytest.fixture(scope="module")
def target():
    return byte_level(420)


@pytest.fixture(scope="module")
def voices(target, tmp_path_factory) -> list[Voice]:
    folder: Path = tmp_path_factory.mktemp("maps")
    found = []
    for seed, tokenizer in enumerate([target, byte_level(330), sentencepiece()], start=1):
        if tokenizer is target:
            n = len(token_bytes(target))
            mapped = VocabularyMap(np.arange(n, dtype=np.int32), np.zeros(n, dtype=np.uint8), "exact")
        else:
            mapped = map_vocabulary(tokenizer, target, "min-edit", folder=folder)
        source = FusionSource(f"source-{seed}", mapped, plain_tokens(tokenizer))
        found.append(Voice(passed(tokenizer, seed), source, token_bytes(tokenizer)))
    return found


def fused(target, voices: Sequence[Voice], number: int, **how: object) -> FusedPiece:
    paper = {
        "align": "min-edit",
        "map": "min-edit",
        "renormalises": True,
        "duplicates": "keep-likeliest",
        "fallback": "current-token",
        "n_kept": K * len(voices),
    }
    (spans,) = token_spans(target, [TEXTS[number]])
    settings = FusionSettings.model_validate({**paper, **how})
    said, sources = [each.texts[number] for each in voices], [each.source for each in voices]
    return fuse_piece(spans, said, sources, settings, plain_tokens(target))


def dense(piece: FusedPiece, state: int) -> Sparse:
    is_kept = piece.states.log_probs[state] > -np.inf
    return dict(
        zip(
            piece.states.token_ids[state][is_kept].tolist(),
            np.exp(piece.states.log_probs[state][is_kept].astype(np.float64)).tolist(),
            strict=True,
        )
    )


def assert_same(ours: Sparse, theirs: Sparse) -> None:
    assert ours.keys() == theirs.keys()
    assert list(ours.values()) == pytest.approx([theirs[token] for token in ours], rel=2e-5)


def test_the_map_is_that_of_least_edit_distance(target, voices):
    """Control tokens are mapped by role here (the paper leaves them open), all others as the reference maps them."""
    targets = [
        None if piece is None else piece.decode(errors="surrogateescape") for piece in token_bytes(target)
    ]
    images: dict[bytes, int | None] = {}
    for voice in voices[1:]:
        # Every third token: distances cell by cell are slow.
        for token in range(4, len(voice.pieces), 3):
            expected = reference_image(voice.pieces[token], images, targets)  # type: ignore[arg-type]
            if expected is not None:
                assert voice.source.vocabulary.target_ids[token] == expected, voice.pieces[token]


@pytest.mark.parametrize("rule", ["min-ce", "avg-ce"])
@pytest.mark.parametrize("members", [(0, 1, 2), (1, 2), (2,)])
@pytest.mark.parametrize("number", range(len(TEXTS) - 1))
def test_fused_targets_equal_the_reference(rule: str, members: tuple[int, ...], number: int, target, voices):
    chosen = [voices[n] for n in members]
    piece = fused(target, chosen, number, rule=rule)
    ids, own = piece.token_ids.tolist(), plain_tokens(target)
    said = [
        reference_states(
            voice.texts[number],
            ids,
            voice.source.tokens,
            own,
            {n: int(image) for n, image in enumerate(voice.source.vocabulary.target_ids) if image >= 0},
        )
        for voice in chosen
    ]
    expected = reference_fused(rule, [reference_cost(voice.texts[number]) for voice in chosen], said)
    assert len(ids) > 5
    for state in range(len(ids) - 1):
        assert_same(dense(piece, state), expected[state])
    assert dense(piece, len(ids) - 1) == {}  # nothing follows it
    one_hot = sum(state == {token: 1.0} for states in said for token, state in zip(ids, states, strict=True))
    assert 0 < one_hot < len(said) * len(ids)  # both kinds of states were compared


def test_some_kept_tokens_have_one_image(voices):
    """Else it would not show which of them is kept."""
    voice = voices[2]
    images = voice.source.vocabulary.target_ids[voice.texts[0].top_ids]
    assert any(len({*row[row >= 0].tolist()}) < int((row >= 0).sum()) for row in images)


def test_of_equally_costly_sources_the_first_wins(target, voices):
    voice = voices[1]
    piece = fused(target, [voice, voice], 0, rule="min-ce")
    assert set(piece.states.source[:-1].tolist()) == {0}


def test_here_a_fallback_teaches_the_next_token_by_leaving_the_state_to_the_loss_on_it(target, voices):
    """Deliberately different: by default a silent state has no target, and the loss on the text's own next token
    takes all of it; where sources are averaged, a silent one's weight goes to those that speak."""
    chosen = voices[1:]
    published = fused(target, chosen, 0, rule="avg-ce")
    ours = fused(target, chosen, 0, rule="avg-ce", fallback="next-token")
    assert published.states.is_taught[:-1].all()
    apart = [fused(target, [voice], 0, fallback="next-token") for voice in chosen]
    speaks = np.stack([piece.states.is_taught for piece in apart])
    np.testing.assert_array_equal(ours.states.is_taught, speaks.any(axis=0))
    is_alone, is_together = speaks.sum(axis=0) == 1, speaks.all(axis=0)
    assert is_alone.any()
    assert is_together.any()
    for state in np.flatnonzero(is_alone).tolist():
        assert_same(dense(ours, state), dense(apart[int(speaks[:, state].argmax())], state))
    for state in np.flatnonzero(is_together).tolist():
        assert_same(dense(ours, state), dense(published, state))

"""Soft targets in passes: each is with its own target, and takes its share off the token's weight."""

import pytest
import torch

from transfuse.errors import TrainingError
from transfuse.train.batches import (
    TrainingPass,
    TrainingRow,
    packed_order,
    packed_passes,
    padded_order,
    padded_passes,
)
from transfuse.train.soft_targets import ChunkTargets, SoftTargets, learned_chunks, refuse_uneven_targets

BEGINNING = list(range(10, 20))


def targets_of(first_id: int, n_learned: int, kept: int = 2, **settings: float) -> SoftTargets:
    """Tokens `first_id`, `first_id + 1`, ... of falling probability."""
    token_ids = torch.arange(first_id, first_id + n_learned * kept, dtype=torch.int32).reshape(
        n_learned, kept
    )
    return SoftTargets(token_ids, -token_ids.float(), **settings)


# As passes take them: the last by tokens is the second by length.
ROWS = [
    TrainingRow([*BEGINNING, 7, 8, 9, 6], 11, 1, 0.5, targets_of(30, 3, temperature=2.0, hard_weight=0.25)),
    TrainingRow([*BEGINNING, 3, 4], 11),
    TrainingRow([*BEGINNING, 5, 2], 11, soft=targets_of(40, 1)),
]


@pytest.mark.parametrize("way", ["packed", "padded"])
def test_rows_with_and_without_soft_targets_by_hand(way):
    (batch,) = packed_passes(ROWS, 100) if way == "packed" else padded_passes(ROWS, 100, 0)
    # Both ways come to the rows in the order 1, 2, 0.
    assert batch.target_ids.tolist() == [4, 2, 8, 9, 6]
    assert batch.target_weights.tolist() == [1, 0, 0.125, 0.25, 0.25]
    assert batch.soft is not None
    assert batch.soft.targets.tolist() == [1, 2, 3, 4]
    assert batch.soft.token_ids.tolist() == [[40, 41], [30, 31], [32, 33], [34, 35]]
    assert torch.equal(batch.soft.log_probs, -batch.soft.token_ids.float())
    assert batch.soft.temperatures.tolist() == [1, 2, 2, 2]
    assert batch.soft.weights.tolist() == [1, 0.75 * 4 * 0.5, 0.75 * 4, 0.75 * 4]


def test_passes_of_plain_rows_carry_nothing_more():
    plain = [row._replace(soft=None) for row in ROWS]
    assert [batch.soft for batch in [*packed_passes(plain, 20), *padded_passes(plain, 20, 0)]] == [None] * 4


@pytest.mark.parametrize("max_tokens", [15, 30, 1000])
@pytest.mark.parametrize("way", ["packed", "padded"])
def test_targets_come_in_the_order_promised(way, max_tokens):
    rows = [
        TrainingRow([*BEGINNING[: 8 + n % 3], *range(n * 7 % 5, n * 7 % 5 + 2 + n % 4), n // 2], 7 + n % 2)
        for n in range(12)
    ]
    passes: list[TrainingPass]
    if way == "packed":
        passes, order = packed_passes(rows, max_tokens), packed_order(rows)
    else:
        passes, order = padded_passes(rows, max_tokens, 0), padded_order(rows)
    assert sorted(order) == list(range(12))
    assert order != list(range(12))
    expected = [token for n in order for token in rows[n].token_ids[rows[n].n_prompt :]]
    assert [token for batch in passes for token in batch.target_ids.tolist()] == expected


def test_equal_tokens_do_not_make_targets_be_compared():
    # Comparing two rows of equal tokens field by field would ask whether a tensor is true.
    twins = [ROWS[2], ROWS[2]._replace(soft=targets_of(50, 1))]
    (batch,) = packed_passes(twins, 100)
    assert batch.soft is not None
    assert batch.soft.token_ids.tolist() == [[40, 41], [50, 51]]


def test_targets_that_do_not_fit_are_refused():
    refuse_uneven_targets([(row.n_learned, row.soft) for row in ROWS])
    with pytest.raises(
        TrainingError, match="expected token ids of 2 learned positions x 2 kept tokens, got 1 x 2"
    ):
        refuse_uneven_targets([(3, None), (2, targets_of(0, 1))])
    with pytest.raises(TrainingError, match=r"of 1 learned positions x 2 kept tokens, got 1 x 3.*same top_k"):
        refuse_uneven_targets([(1, targets_of(0, 1)), (1, targets_of(0, 1, kept=3))])
    halved = targets_of(0, 2)._replace(log_probs=torch.zeros(1, 2))
    with pytest.raises(TrainingError, match="expected log-probabilities of 2 learned"):
        refuse_uneven_targets([(2, halved)])


# Divergences, positions that nothing teaches, chunks


def test_a_pass_carries_one_divergence_and_tells_whether_temperatures_matter():
    rows = [ROWS[2]._replace(soft=targets_of(40, 1)._replace(divergence="uld"))]
    (batch,) = packed_passes(rows, 100)
    assert batch.soft is not None
    assert (batch.soft.divergence, batch.soft.is_tempered) == ("uld", False)
    (mixed,) = packed_passes(ROWS, 100)
    assert mixed.soft is not None
    assert (mixed.soft.divergence, mixed.soft.is_tempered) == ("forward-kl", True)
    other = targets_of(0, 1)._replace(divergence="reverse-kl")
    with pytest.raises(TrainingError, match="one divergence in all rows, got forward-kl and reverse-kl"):
        refuse_uneven_targets([(1, targets_of(0, 1)), (1, other)])


@pytest.mark.parametrize("way", ["packed", "padded"])
def test_where_nothing_teaches_the_texts_own_token_has_the_whole_weight(way):
    soft = targets_of(30, 3, hard_weight=0.25)._replace(is_taught=torch.tensor([True, False, True]))
    rows = [TrainingRow([*BEGINNING, 7, 8, 9, 6], 11, 1, 0.5, soft)]
    (batch,) = packed_passes(rows, 100) if way == "packed" else padded_passes(rows, 100, 0)
    assert batch.target_weights.tolist() == [0.125, 1, 0.25]
    assert batch.soft is not None
    assert batch.soft.weights.tolist() == [0.375, 0, 0.75]
    with pytest.raises(TrainingError, match="expected is_taught of 2 learned positions, got 3"):
        refuse_uneven_targets([(2, targets_of(30, 2)._replace(is_taught=soft.is_taught))])


def chunks_of(*bounds: tuple[int, int], **settings: float) -> ChunkTargets:
    starts, ends = torch.tensor(bounds, dtype=torch.int32).reshape(-1, 2).unbind(dim=1)
    return ChunkTargets(starts, ends, -torch.arange(1.0, len(bounds) + 1), **settings)


@pytest.mark.parametrize("way", ["packed", "padded"])
def test_chunks_of_a_pass_by_hand(way):
    rows = [
        TrainingRow(
            [*BEGINNING, 7, 8, 9, 6, 1],
            11,
            1,
            0.5,
            chunks_of((0, 2), (3, 4), hard_weight=0.75, temperature=5.0),
        ),
        TrainingRow([*BEGINNING, 3, 4], 11),
        TrainingRow([*BEGINNING, 5, 2], 11, soft=chunks_of((0, 1))),
    ]
    (batch,) = packed_passes(rows, 100) if way == "packed" else padded_passes(rows, 100, 0)
    assert batch.target_ids.tolist() == [4, 2, 8, 9, 6, 1]
    # The third and the last learned token of the longest row: 6 is in no chunk, 1 is in one.
    assert batch.target_weights.tolist() == [1, 0, 0.375, 0.75, 1, 0.75]
    assert batch.soft is None
    assert batch.chunks is not None
    assert batch.chunks.targets.tolist() == [1, 2, 3, 5]
    assert batch.chunks.n_targets.tolist() == [1, 2, 1]
    assert batch.chunks.log_probs.tolist() == [-1, -1, -2]
    assert batch.chunks.temperatures.tolist() == [1, 5, 5]
    assert batch.chunks.weights.tolist() == [1, 0.25 * 0.75, 0.25]  # 0.75: the mean of 0.5 and 1


def test_a_row_without_a_chunk_learns_its_own_tokens():
    (batch,) = packed_passes([TrainingRow([*BEGINNING, 5, 2], 11, soft=chunks_of())], 100)
    assert batch.chunks is None
    assert batch.target_weights.tolist() == [1]


def test_chunks_of_tokens_that_are_not_learned_are_left_out():
    starts, ends = torch.tensor([0, 1, 3, 4, 6]), torch.tensor([1, 3, 4, 4, 8])
    nats = torch.tensor([0.0, -1.0, -2.0, 0.0, float("nan")])
    found = learned_chunks(starts, ends, nats, 2, temperature=7.0, hard_weight=0.5)
    # The second begins before the first learned token, the fourth has no tokens, the last no probability.
    assert (found.starts.tolist(), found.ends.tolist(), found.log_probs.tolist()) == ([1], [2], [-2])
    assert (found.temperature, found.hard_weight) == (7.0, 0.5)


@pytest.mark.parametrize("bounds", [[(0, 2), (1, 3)], [(2, 3), (0, 1)], [(1, 1)], [(-1, 1)], [(3, 5)]])
def test_misplaced_chunks_are_refused(bounds):
    with pytest.raises(TrainingError, match="expected ascending chunks within 4 learned positions"):
        refuse_uneven_targets([(4, chunks_of(*bounds))])


def test_chunks_of_impossible_probability_are_refused():
    certain = chunks_of((0, 1))._replace(log_probs=torch.tensor([0.5]))
    with pytest.raises(TrainingError, match=r"log-probabilities of at most 0, got 0\.5"):
        refuse_uneven_targets([(4, certain)])
    with pytest.raises(TrainingError, match="as many starts as ends and log-probabilities, got 1, 1 and 2"):
        refuse_uneven_targets([(4, chunks_of((0, 1))._replace(log_probs=torch.zeros(2)))])

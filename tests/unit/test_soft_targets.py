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
from transfuse.train.soft_targets import SoftTargets, refuse_uneven_targets

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

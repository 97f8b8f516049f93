"""Passes hold every target of every row once, and a row in a pass sees what it sees alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.train.batches import (
    MIN_SHARED_TOKENS,
    TrainingPass,
    TrainingRow,
    packed_passes,
    padded_passes,
    probe_rows,
    row_lengths,
)
from transfuse.train.steps import plan_epoch

PAD = 99


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=150),
    batch_rows=st.integers(1, 7),
    by_length=st.booleans(),
    seed=st.integers(0, 2**40),
)
def test_an_epoch_holds_every_row_once(lengths, batch_rows, by_length, seed):
    plan = plan_epoch(lengths, batch_rows, by_length=by_length, generator=seeded(seed))
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    assert sorted((len(batch) for batch in plan), reverse=True)[:-1] == [batch_rows] * (len(plan) - 1)
    assert len(plan) == -(-len(lengths) // batch_rows)
    assert plan == plan_epoch(lengths, batch_rows, by_length=by_length, generator=seeded(seed))


def test_epochs_differ():
    plans = [plan_epoch([5] * 40, 4, by_length=False, generator=seeded(n)) for n in (0, 1)]
    assert plans[0] != plans[1]


def test_rows_of_like_length_meet_in_a_batch_and_batches_stay_shuffled():
    lengths = list(range(64))  # one window of 16 batches of 4
    plan = plan_epoch(lengths, 4, by_length=True, generator=seeded())
    assert sorted(map(sorted, plan)) == [[n, n + 1, n + 2, n + 3] for n in range(0, 64, 4)]
    assert plan != sorted(plan)
    shuffled = plan_epoch(lengths, 4, by_length=False, generator=seeded())
    spread = [max(batch) - min(batch) for batch in shuffled]
    assert sum(spread) > 3 * 16 * 2


def test_windows_are_sorted_one_by_one():
    # 32 batches are two windows: sorted as one, the 64 shortest rows of 128 would share 16 batches.
    plan = plan_epoch(list(range(128)), 4, by_length=True, generator=seeded(3))
    spread = [max(batch) - min(batch) for batch in plan]
    assert max(spread) > 3
    assert sum(spread) / len(spread) < 12


def row(*parts: list[int], n_prompt: int) -> TrainingRow:
    return TrainingRow([token for part in parts for token in part], n_prompt)


BEGINNING = list(range(10, 20))
TWO_OF_ONE_BEGINNING = [row(BEGINNING, [1, 2, 3], n_prompt=11), row(BEGINNING, [4, 5], n_prompt=11)]


def test_a_common_beginning_by_hand():
    (packed,) = packed_passes(TWO_OF_ONE_BEGINNING, 100)
    assert packed.input_ids.tolist() == [[*BEGINNING, 1, 2, 3, 4, 5]]
    assert packed.position_ids.tolist() == [[*range(10), 10, 11, 12, 10, 11]]
    assert packed.target_rows.tolist() == [0, 0, 0]
    assert packed.target_positions.tolist() == [10, 11, 13]
    assert packed.target_ids.tolist() == [2, 3, 5]
    seen_by_4 = packed.attention_mask[0, 0, 13].nonzero().flatten().tolist()
    assert seen_by_4 == [*range(10), 13]


def test_rows_without_a_common_beginning_by_hand():
    (packed,) = packed_passes([TrainingRow([7, 8, 9], 1), TrainingRow([5, 6], 1)], 100)
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert packed.position_ids.tolist() == [[0, 1, 0, 1, 2]]
    assert packed.target_positions.tolist() == [0, 2, 3]
    assert packed.target_ids.tolist() == [6, 8, 9]
    assert packed.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


def test_padding_by_hand():
    (padded,) = padded_passes([TrainingRow([7, 8, 9], 1), TrainingRow([5, 6], 1)], 100, PAD)
    assert padded.input_ids.tolist() == [[5, 6, PAD], [7, 8, 9]]
    assert padded.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert padded.position_ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    targets = torch.stack(padded[3:6], dim=1)
    assert targets.tolist() == [[0, 0, 6], [1, 0, 8], [1, 1, 9]]
    assert padded.target_weights.tolist() == [1, 1, 1]


def test_a_questions_tokens_weigh_less_by_hand():
    # Prompt 5; question 6, 7 at weight 0.25; answer 8, 9.
    weighted = TrainingRow([5, 6, 7, 8, 9], 1, 2, 0.25)
    assert weighted.weights == [0.25, 0.25, 1, 1]
    plain = TrainingRow([1, 2], 1)
    (packed,) = packed_passes([weighted, plain], 100)
    assert packed.target_ids.tolist() == [2, 6, 7, 8, 9]
    assert packed.target_weights.tolist() == [1, 0.25, 0.25, 1, 1]
    (padded,) = padded_passes([weighted, plain], 100, PAD)
    assert padded.target_weights.tolist() == [1, 0.25, 0.25, 1, 1]


def n_tokens(passes: list[TrainingPass]) -> int:
    return sum(each.input_ids.numel() for each in passes)


def test_a_beginning_shorter_than_the_least_is_not_shared():
    for n_common in (MIN_SHARED_TOKENS - 1, MIN_SHARED_TOKENS):
        rows = [row(BEGINNING[:n_common], [last, 1], n_prompt=n_common + 1) for last in (1, 2, 3)]
        shared = n_common if n_common >= MIN_SHARED_TOKENS else 0
        assert n_tokens(packed_passes(rows, 100)) == 3 * (n_common + 2) - 2 * shared


def test_a_target_is_never_shared():
    # Equal rows: the last token of the prompt predicts, so each row keeps its own.
    rows = [row(BEGINNING, [1], n_prompt=10)] * 3
    (packed,) = packed_passes(rows, 100)
    assert packed.input_ids.numel() == 9 + 3 * 2
    assert packed.target_ids.tolist() == [1, 1, 1]
    assert len(set(packed.target_positions.tolist())) == 3


def test_the_shortest_prompt_of_a_group_bounds_what_is_shared():
    # Both begin with the same eleven tokens, but the second learns the last of them.
    rows = [row(BEGINNING, [1, 2, 3], n_prompt=12), row(BEGINNING, [1, 4], n_prompt=10)]
    (packed,) = packed_passes(rows, 100)
    assert packed.input_ids.tolist() == [[*BEGINNING[:9], 19, 1, 2, 3, 19, 1, 4]]
    assert packed.target_ids.tolist() == [3, 1, 4]
    assert packed.target_positions.tolist() == [11, 13, 14]


def test_a_group_that_is_split_keeps_its_beginning_in_each_part():
    rows = [row(BEGINNING, [last, 1], n_prompt=11) for last in range(6)]
    passes = packed_passes(rows, 16)
    assert [each.input_ids.numel() for each in passes] == [16, 16]
    assert all(each.input_ids[0, :10].tolist() == BEGINNING for each in passes)


token = st.integers(0, 3)
beginning = st.sampled_from([[], BEGINNING, BEGINNING[:8], BEGINNING[:7], [*BEGINNING, 1, 1]])


@st.composite
def training_row(draw) -> TrainingRow:
    start = draw(beginning)
    token_ids = start + draw(st.lists(token, min_size=2, max_size=10))
    n_prompt = draw(st.integers(1, len(token_ids) - 1) | st.just(max(1, len(start))))
    n_question = draw(st.integers(0, len(token_ids) - n_prompt - 1))
    return TrainingRow(token_ids, n_prompt, n_question, draw(st.sampled_from([0.25, 1.0])))


rows_of_a_batch = st.lists(training_row(), min_size=1, max_size=10)


def targets_of_rows(rows: list[TrainingRow]) -> list[tuple]:
    """What each target of each row is, what it may be predicted from, and its weight."""
    return sorted(
        (tuple(enumerate(each.token_ids[:i])), each.token_ids[i], weight)
        for each in rows
        for i, weight in zip(range(each.n_prompt, len(each.token_ids)), each.weights, strict=True)
    )


def targets_of_passes(passes: list[TrainingPass]) -> list[tuple]:
    """The same, read back from the masks and positions of the passes."""
    found = []
    for batch in passes:
        token_ids, places, mask = (part.tolist() for part in batch[:3])
        for n_row, position, target, weight in zip(*(part.tolist() for part in batch[3:7]), strict=True):
            is_packed = batch.attention_mask.ndim == 4
            visible = mask[0][0][position] if is_packed else mask[n_row][: position + 1]
            seen = [n for n, is_visible in enumerate(visible) if is_visible]
            before = tuple((places[n_row][n], token_ids[n_row][n]) for n in seen)
            found.append((before, target, weight))
    return sorted(found)


@settings(deadline=None, max_examples=80)
@given(rows=rows_of_a_batch, max_tokens=st.sampled_from([1, 16, 24, 40, 1000]))
def test_packed_rows_see_and_predict_what_they_do_alone(rows, max_tokens):
    passes = packed_passes(rows, max_tokens)
    assert targets_of_passes(passes) == targets_of_rows(rows)
    longest = max(len(each.token_ids) for each in rows)
    for batch in passes:
        assert batch.input_ids.shape == batch.position_ids.shape == batch.attention_mask.shape[::3]
        assert batch.input_ids.shape[1] <= max(max_tokens, longest)
        assert not batch.attention_mask.triu(1).any()


@settings(deadline=None, max_examples=60)
@given(rows=rows_of_a_batch, max_tokens=st.sampled_from([1, 16, 24, 40, 1000]))
def test_padded_rows_see_and_predict_what_they_do_alone(rows, max_tokens):
    passes = padded_passes(rows, max_tokens, PAD)
    assert targets_of_passes(passes) == targets_of_rows(rows)
    for batch in passes:
        assert batch.input_ids.numel() <= max_tokens or len(batch.input_ids) == 1
        assert batch.attention_mask.sum() == (batch.input_ids != PAD).sum()
        assert batch.attention_mask.any(dim=0).all()  # no wider than its longest row
    assert sum(len(batch.input_ids) for batch in passes) == len(rows)


@settings(deadline=None, max_examples=60)
@given(rows=rows_of_a_batch)
def test_packing_never_computes_more_tokens_than_the_rows_hold(rows):
    assert n_tokens(packed_passes(rows, 1000)) <= sum(len(each.token_ids) for each in rows)


@pytest.mark.parametrize("max_tokens", [1, 25])
def test_a_row_that_fits_no_pass_has_its_own(max_tokens):
    rows = [TrainingRow(list(range(30)), 3), TrainingRow([1, 2], 1), TrainingRow([3, 2], 1)]
    alone = [
        batch
        for passes in (packed_passes(rows, max_tokens), padded_passes(rows, max_tokens, PAD))
        for batch in passes
        if batch.input_ids.numel() >= 30
    ]
    assert [batch.input_ids.shape for batch in alone] == [(1, 30), (1, 30)]


class Lazy:
    """Rows made when asked for."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths, self.made = lengths, []

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int, /) -> TrainingRow:
        self.made.append(index)
        return TrainingRow([index + 5] * self.lengths[index], 1)


def test_rows_made_when_asked_for_are_measured_without_being_made():
    lazy = Lazy([9, 4, 7])
    assert row_lengths(lazy) == [9, 4, 7]
    assert lazy.made == []
    assert row_lengths([lazy[0], lazy[1]]) == [9, 4]


def test_of_rows_made_when_asked_for_only_the_shortest_are_probed():
    lazy = Lazy([200 - n for n in range(150)])
    found = probe_rows(lazy)
    assert [len(row.token_ids) for row in found] == [51, 52]
    assert sorted(lazy.made) == list(range(86, 150))

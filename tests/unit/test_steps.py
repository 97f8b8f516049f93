"""Every step has its rows, and a training ends with the step that reads the last token of its budget."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from transfuse.train.settings import TrainSettings
from transfuse.train.steps import StepPlan


def plan(lengths: list[int], *, seed: int = 5, by_length: bool = False, **changes: object) -> StepPlan:
    chosen = TrainSettings(**{"batch_rows": 4, "n_epochs": 2, **changes})  # type: ignore[arg-type]
    return StepPlan(lengths, chosen, seed, by_length=by_length)


def read(steps: StepPlan, lengths: list[int]) -> list[int]:
    return [sum(lengths[index] for index in steps.rows(step)) for step in range(steps.n_steps)]


def test_steps_of_epochs_worked_by_hand():
    # 11 rows in batches of 2 are 6 batches, two to a step: 3 steps an epoch.
    steps = plan([3] * 11, batch_rows=2, gradient_accumulation=2, n_epochs=2)
    assert (steps.steps_per_epoch, steps.n_steps) == (3, 6)
    assert [len(steps.rows(step)) for step in range(6)] == [4, 4, 3, 4, 4, 3]
    for epoch in (0, 3):
        assert sorted(index for step in range(3) for index in steps.rows(epoch + step)) == list(range(11))
    assert steps.rows(0) != steps.rows(3)


@pytest.mark.parametrize(
    ("n_tokens", "n_steps"), [(1, 1), (20, 1), (21, 2), (50, 3), (51, 4), (100, 6), (101, 7), (1_020, 61)]
)
def test_a_budget_worked_by_hand(n_tokens, n_steps):
    # 10 rows of 5 tokens, 4 a step: steps read 20, 20 and 10 tokens, an epoch 50.
    assert plan([5] * 10, n_tokens=n_tokens).n_steps == n_steps


@settings(deadline=None, max_examples=80)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    batch_rows=st.integers(1, 7),
    n_joined=st.integers(1, 3),
    by_length=st.booleans(),
    budget=st.integers(1, 3_000),
    seed=st.integers(0, 2**40),
)
def test_a_training_ends_with_the_step_that_reads_its_last_token(
    lengths, batch_rows, n_joined, by_length, budget, seed
):
    changes = {"batch_rows": batch_rows, "gradient_accumulation": n_joined, "seed": seed}
    steps = plan(lengths, by_length=by_length, n_tokens=budget, **changes)
    tokens = read(steps, lengths)
    assert sum(tokens) >= budget > sum(tokens[:-1])
    # Steps are those of a training by epochs, however long, and in whatever order they are asked for.
    by_epochs = plan(lengths, by_length=by_length, n_epochs=steps.n_steps, **changes)
    assert [steps.rows(n) for n in reversed(range(steps.n_steps))] == [
        by_epochs.rows(n) for n in reversed(range(steps.n_steps))
    ]


def test_what_a_training_reads_is_known_beforehand():
    assert TrainSettings(n_epochs=3).read_tokens(50) == 150
    assert TrainSettings(n_epochs=3, n_tokens=70).read_tokens(50) == 70
    with pytest.raises(ValidationError, match="n_tokens"):
        TrainSettings(n_tokens=0)

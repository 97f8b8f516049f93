"""Samples that fit the context, their passes and their losses."""

import math

import pytest
import torch

from transfuse.errors import DataError, TrainingError
from transfuse.train.batches import TrainingRow
from transfuse.transfer.samples import (
    Sample,
    answer_batches,
    answer_labels,
    answer_losses,
    fit_samples,
    refuse_infinite_losses,
    sample_passes,
)


def test_too_long_samples_lose_the_beginning_of_the_prompt_or_are_dropped():
    rows = [
        TrainingRow([1, 2, 3], 2),
        TrainingRow([1, 2, 3, 4, 5, 6], 4),
        TrainingRow([1, 2, 3, 4, 5], 1),
        TrainingRow([1, 2], 2),
        TrainingRow([7, 8], 0),
    ]
    samples, n_cut, dropped = fit_samples(rows, 4, n_vocab=9)
    assert samples == [Sample(1, [1, 2, 3], 2), Sample(2, [3, 4, 5, 6], 2)]
    assert n_cut == 1
    assert [each.what for each in dropped] == ["sample 3", "sample 4", "sample 5"]
    assert "4 tokens; the teacher's context of 4 tokens" in dropped[0].reason
    assert fit_samples(rows[2:3], None, 9).samples[0].token_ids == rows[2].token_ids


def test_an_answer_that_just_fits_keeps_one_token_before_it():
    samples, n_cut, _ = fit_samples([TrainingRow([1, 2, 3, 4, 5, 6], 3)], 4, n_vocab=9)
    assert (samples, n_cut) == ([Sample(1, [3, 4, 5, 6], 1)], 1)


def test_no_samples_and_foreign_tokens_are_refused():
    with pytest.raises(DataError, match="at least one sample with an answer"):
        fit_samples([], 8, n_vocab=9)
    with pytest.raises(DataError, match="sample 1: it has no answer token"):
        fit_samples([TrainingRow([1, 2], 2)], 8, n_vocab=9)
    with pytest.raises(DataError, match="sample 2: token 9 is not in the teacher's vocabulary of 9"):
        fit_samples([TrainingRow([1, 2], 1), TrainingRow([1, 9], 1)], 8, n_vocab=9)


def test_passes_hold_samples_of_like_length_once():
    samples = [Sample(n, list(range(length)), 1) for n, length in enumerate([5, 2, 9, 3, 2], start=1)]
    passes = sample_passes(samples, 6)
    assert [[each.number for each in batch.samples] for batch in passes] == [[2, 5], [4], [1], [3]]
    assert passes[0].lengths == [2, 2]
    (together,) = sample_passes(samples[:2], 100)
    assert together.input_ids.tolist() == [[0, 1, 0, 0, 0], [0, 1, 2, 3, 4]]
    assert together.attention_mask.sum(1).tolist() == [2, 5]


def test_answers_are_batched_by_their_own_length():
    samples = [Sample(n, [0] * 9, 9 - length) for n, length in enumerate([4, 1, 2, 4], start=1)]
    batches = answer_batches(samples, 4)
    assert [[each.number for each in batch] for batch in batches] == [[2, 3], [1], [4]]
    assert answer_labels(batches[0]).tolist() == [[0, -100], [0, 0]]


def test_each_loss_is_the_mean_over_its_own_answer():
    logits = torch.zeros(2, 2, 4, requires_grad=True)
    losses = answer_losses(logits, torch.tensor([[1, 3], [2, -100]]))
    torch.testing.assert_close(losses, torch.full((2,), math.log(4)))
    losses.sum().backward()
    torch.testing.assert_close(logits.grad[0, 0], torch.tensor([1.0, -3.0, 1.0, 1.0]) / 8)
    torch.testing.assert_close(logits.grad[1], torch.tensor([[1.0, 1.0, -3.0, 1.0], [0.0] * 4]) / 4)


def test_an_infinite_loss_names_its_sample():
    samples = [Sample(4, [1, 2], 1), Sample(7, [1, 2], 1)]
    with pytest.raises(TrainingError, match="sample 7: the teacher's loss is nan"):
        refuse_infinite_losses(samples, torch.tensor([1.0, float("nan")]))

"""What is kept of a distribution is the distribution's own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transfuse.tensors.kept_tokens import sampled_tokens, top_tokens


def drawn_logits(n: int, vocab: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(n, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def test_a_row_worked_by_hand():
    logits = torch.tensor([[0.1, 0.2, 0.4, 0.3]]).log() + 5
    kept = top_tokens(logits, torch.tensor([1]), 2, n_known=4)
    assert kept.ids.tolist() == [[2, 3]]
    torch.testing.assert_close(kept.log_probs.exp(), torch.tensor([[0.4, 0.3]]))
    torch.testing.assert_close(kept.tail_log_probs.exp(), torch.tensor([0.3]))
    torch.testing.assert_close(kept.observed_log_probs.exp(), torch.tensor([0.2]))
    # Temperature 1/2 squares probabilities; what was observed keeps its own.
    sharp = top_tokens(logits, torch.tensor([1]), 2, n_known=4, temperature=0.5)
    torch.testing.assert_close(sharp.log_probs.exp(), torch.tensor([[0.16, 0.09]]) / 0.3)
    torch.testing.assert_close(sharp.tail_log_probs.exp(), torch.tensor([0.05 / 0.3]))
    torch.testing.assert_close(sharp.observed_log_probs.exp(), torch.tensor([0.2]))


@given(st.integers(1, 3000), st.integers(1, 12), st.integers(0, 2**20), st.sampled_from([0.5, 3, 30]))
def test_blocks_find_what_sorting_everything_finds(vocab, k, seed, scale):
    k = min(k, vocab)
    n_known = max(k, vocab - 5)
    logits = drawn_logits(3, vocab, seed, scale)
    kept = top_tokens(logits, torch.zeros(3, dtype=torch.long), k, n_known=n_known)
    log_probs = logits.double().log_softmax(dim=1)
    expected = log_probs[:, :n_known].topk(k, dim=1)
    assert kept.ids.tolist() == expected.indices.tolist()
    torch.testing.assert_close(kept.log_probs.double(), expected.values, atol=1e-4, rtol=1e-5)
    rest = log_probs.scatter(1, kept.ids, -torch.inf).logsumexp(dim=1)
    is_told = rest > -80  # below that float32 has no share of 1 left
    torch.testing.assert_close(kept.tail_log_probs.double()[is_told], rest[is_told], atol=1e-4, rtol=1e-5)


def test_a_tiny_tail_is_not_rounded_away():
    logits = torch.zeros(1, 1000)
    logits[0, 7] = 30
    tail = top_tokens(logits, torch.tensor([7]), 1, n_known=1000).tail_log_probs
    torch.testing.assert_close(tail, torch.tensor([float(np.log(999) - 30)]))


def test_padding_of_a_vocabulary_is_never_kept_but_counts_in_the_tail():
    logits = torch.tensor([[1.0, 0.0, 9.0]])
    kept = top_tokens(logits, torch.tensor([0]), 2, n_known=2)
    assert kept.ids.tolist() == [[0, 1]]
    expected = logits.log_softmax(dim=1)
    torch.testing.assert_close(kept.log_probs, expected[:, :2])
    torch.testing.assert_close(kept.tail_log_probs, expected[:, 2])
    drawn = sampled_tokens(logits, torch.tensor([0]), torch.rand(1, 50, dtype=torch.float64), n_known=2)
    assert set(drawn.ids[drawn.log_probs > -torch.inf].tolist()) <= {0, 1}


def test_without_kept_tokens_only_the_observed_one_is_told():
    logits = drawn_logits(4, 300)
    kept = top_tokens(logits, torch.tensor([5, 6, 7, 8]), 0, n_known=300)
    assert kept.ids.shape == kept.log_probs.shape == (4, 0)
    torch.testing.assert_close(
        kept.observed_log_probs, logits.log_softmax(dim=1)[torch.arange(4), torch.arange(5, 9)]
    )
    assert kept.tail_log_probs.tolist() == [0, 0, 0, 0]


def test_draws_worked_by_hand():
    logits = torch.tensor([[0.1, 0.2, 0.4, 0.3]]).log()
    uniforms = torch.tensor([[0.05, 0.5, 0.2, 0.69, 0.999]], dtype=torch.float64)  # bounds .1 .3 .7 1
    kept = sampled_tokens(logits, torch.tensor([3]), uniforms, n_known=4)
    assert kept.ids.tolist() == [[2, 0, 1, 3, 0]]
    torch.testing.assert_close(kept.log_probs.exp(), torch.tensor([[0.4, 0.2, 0.2, 0.2, 0.0]]))
    assert kept.tail_log_probs.tolist() == [-torch.inf]
    torch.testing.assert_close(kept.observed_log_probs.exp(), torch.tensor([0.3]))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_draws_are_unbiased(temperature):
    """The mean estimate of every token is its probability, within four standard errors; top-k's is not."""
    vocab, n, k = 200, 20_000, 10
    logits = drawn_logits(1, vocab, scale=1.5)
    uniforms = torch.from_numpy(np.random.default_rng(0).random((n, k)))
    kept = sampled_tokens(
        logits.expand(n, -1),
        torch.zeros(n, dtype=torch.long),
        uniforms,
        n_known=vocab,
        temperature=temperature,
    )
    probs = (logits[0].double() / temperature).softmax(dim=0)
    estimate = torch.zeros(n, vocab, dtype=torch.float64).scatter_add_(
        1, kept.ids, kept.log_probs.double().exp()
    )
    torch.testing.assert_close(estimate.sum(dim=1), torch.ones(n, dtype=torch.float64))
    standard_error = (probs * (1 - probs) / (n * k)).sqrt()
    assert float(((estimate.mean(dim=0) - probs).abs() / standard_error).max()) < 4
    top = top_tokens(logits, torch.tensor([0]), k, n_known=vocab, temperature=temperature)
    assert float(top.tail_log_probs.exp()) > 0.2


@given(st.integers(1, 500), st.integers(0, 2**20), st.floats(0, 1, exclude_max=True))
def test_a_draw_is_the_token_under_its_number_and_never_an_impossible_one(vocab, seed, uniform):
    logits = drawn_logits(1, vocab, seed)
    logits[0, 1::3] = -torch.inf
    kept = sampled_tokens(
        logits, torch.tensor([0]), torch.tensor([[uniform]], dtype=torch.float64), n_known=vocab
    )
    assert logits[0, kept.ids[0, 0]] > -torch.inf
    bounds = (logits.float() - logits.max()).exp().double().cumsum(dim=1)[0]
    low = bounds[kept.ids[0, 0]] - (logits[0, kept.ids[0, 0]] - logits.max()).exp()
    assert low - 1e-6 <= uniform * bounds[-1] <= bounds[kept.ids[0, 0]] + 1e-6


@pytest.mark.parametrize("k", [0, 3])
def test_nan_is_passed_on(k):
    logits = drawn_logits(2, 300)
    logits[1, 250] = torch.nan
    observed = top_tokens(logits, torch.tensor([0, 0]), k, n_known=300).observed_log_probs
    assert observed.isnan().tolist() == [False, True]

"""Head and loss in chunks: by hand, no gradient where none is wanted, and heads that cannot be reached are named."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from transfuse.tensors.sparse_divergences import DIVERGENCES
from transfuse.train.chunked_head import (
    OutputHead,
    chunked_loss,
    chunked_own_log_probs,
    find_head,
    rows_per_chunk,
)
from transfuse.train.soft_targets import SoftPart
from transfuse.train.target_losses import Targets, every_target, targets_loss

SMALL = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def head_of(n_vocab: int, width: int, *, bias: bool = False, **settings: float) -> OutputHead:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(width, n_vocab, bias=bias)
    with torch.no_grad():
        for weight in linear.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return OutputHead(nn.Identity(), linear, **{"scale": 1.0, "softcap": None, **settings})  # type: ignore[arg-type]


def test_positions_per_chunk_by_hand():
    assert rows_per_chunk(1000, 8000) == 2
    assert rows_per_chunk(1000, 11_999) == 2
    assert rows_per_chunk(1000, 10) == 1  # one at a time at least


def test_a_loss_by_hand():
    head = head_of(2, 1)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    hidden = torch.tensor([[2.0], [3.0], [5.0]], requires_grad=True)
    seen = []

    def first_logits(logits: torch.Tensor, start: int, end: int) -> torch.Tensor:
        seen.append((start, end))
        return logits[:, 0].square().sum()

    loss = chunked_loss(hidden, head, first_logits, dtype=torch.float32, chunk_bytes=16)
    (3 * loss).backward()
    assert seen == [(0, 2), (2, 3)]
    assert loss.item() == 4 + 9 + 25
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[12], [18], [30]]
    assert head.linear.weight.grad is not None
    assert head.linear.weight.grad.tolist() == [[3 * 2 * (4 + 9 + 25)], [0]]


def targets_of(n_targets: int, n_vocab: int, divergence: str) -> Targets:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(n_targets, n_vocab, generator=generator).log_softmax(1).topk(3, dim=1)
    weights = torch.rand(n_targets, generator=generator)
    soft = SoftPart(
        torch.arange(n_targets),
        drawn.indices,
        drawn.values,
        torch.ones(n_targets),
        weights,
        divergence,  # type: ignore[arg-type]
        is_tempered=False,
    )
    return every_target(torch.randint(n_vocab, (n_targets,), generator=generator), 1 - weights, soft)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_a_bent_and_scaled_head_are_the_ordinary_ones(divergence, bias):
    head = head_of(11, 4, bias=bias, scale=0.5, softcap=2.0)
    targets = targets_of(7, 11, divergence)
    ours, theirs = (torch.linspace(-2, 2, 28).reshape(7, 4).requires_grad_() for _ in range(2))
    found = chunked_loss(
        ours,
        head,
        lambda logits, start, end: targets_loss(logits, targets.between(start, end)),
        dtype=torch.float32,
        chunk_bytes=4 * 11 * 3,
    )
    found.backward()
    gradients = [weight.grad for weight in head.linear.parameters()]
    head.linear.zero_grad()
    expected = targets_loss(torch.tanh(head.linear(theirs) * 0.5 / 2) * 2, targets)
    expected.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
    for gradient, weight in zip(gradients, head.linear.parameters(), strict=True):
        torch.testing.assert_close(gradient, weight.grad)


def test_own_log_probs_are_those_of_a_softmax():
    head, hidden = head_of(9, 4), torch.linspace(-1, 1, 20).reshape(5, 4)
    own_ids = torch.tensor([0, 8, 3, 3, 5])
    found = chunked_own_log_probs(hidden, head, own_ids, dtype=torch.float32, chunk_bytes=4 * 9 * 2)
    expected = head.linear(hidden).log_softmax(1)[range(5), own_ids]
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad


def test_soft_targets_of_some_positions_are_spread_over_all():
    soft = SoftPart(
        torch.tensor([2]),
        torch.tensor([[7, 1]]),
        torch.tensor([[-1.0, -2.0]]),
        torch.tensor([3.0]),
        torch.tensor([0.5]),
    )
    spread = every_target(torch.tensor([4, 5, 6]), torch.ones(3), soft)
    assert spread.soft is not None
    assert spread.soft.weights.tolist() == [0, 0, 0.5]
    assert spread.soft.temperatures.tolist() == [1, 1, 3]
    assert spread.soft.log_probs[0].tolist() == [-torch.inf, -torch.inf]
    assert spread.between(2, 3).ids.tolist() == [6]
    logits = torch.linspace(-1, 1, 27).reshape(3, 9)
    parts = sum(targets_loss(logits[n : n + 1], spread.between(n, n + 1)) for n in range(3))
    torch.testing.assert_close(targets_loss(logits, spread), parts)


def test_a_plain_models_head_is_found_with_what_comes_after_it():
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    found = find_head(model)
    assert isinstance(found, OutputHead)
    assert (found.decoder, found.linear) == (model.model, model.lm_head)
    assert (found.scale, found.softcap, found.n_vocab) == (1, None, 20)
    model.config.logits_scaling, model.config.final_logit_softcapping = 4.0, 30.0
    found = find_head(model)
    assert isinstance(found, OutputHead)
    assert (found.scale, found.softcap) == (0.25, 30)


class OtherLinear(nn.Linear):
    """Says nothing of what it does."""


def test_a_head_of_another_kind_is_named():
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    model.lm_head = OtherLinear(8, 20, bias=False)
    assert find_head(model) == "the output head is a OtherLinear, not a plain linear layer"

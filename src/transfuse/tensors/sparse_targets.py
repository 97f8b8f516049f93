"""Distributions kept sparse: some tokens' log-probabilities, and that of all other tokens together."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


class TopLogProbs(NamedTuple):
    """The likeliest tokens of each position, the likeliest first."""

    token_ids: Int[Tensor, "targets kept"]
    """Vocabularies are far smaller than 2**31, so int32 holds them."""
    log_probs: Float[Tensor, "targets kept"]
    """Natural log, float32; what their sum after `exp` lacks of 1 is the tail's."""


def top_log_probs(logits: Float[Tensor, "targets vocab"], k: int, temperature: float = 1.0) -> TopLogProbs:
    """Log-probabilities of the `k` likeliest tokens at each position.

    Args:
        logits: in any precision; the softmax is taken in float32.
        k: at least 1; the whole vocabulary where it has no more tokens than that.
        temperature: above 0; the logits are divided by it, so more than 1 flattens.

    Returns:
        Ids and log-probabilities over the whole vocabulary, not renormalised over the kept tokens.
    """
    log_probs = (logits.float() / temperature).log_softmax(dim=1)
    kept = log_probs.topk(min(k, logits.shape[1]), dim=1)
    return TopLogProbs(kept.indices.int(), kept.values)


class SparseLogProbs(NamedTuple):
    """A model's distribution at each target, as far as sparse targets ask for it."""

    own: Float[Tensor, " targets"]
    """Natural log, of the token that the text has there."""
    kept: Float[Tensor, "targets kept"]
    """Of the kept tokens; minus infinity at pads."""
    rest: Float[Tensor, " targets"]
    """Of all tokens that are not kept, together; minus infinity where every token is."""


def sparse_log_probs(
    logits: Float[Tensor, "targets vocab"],
    own_ids: Int[Tensor, " targets"],
    kept_ids: Int[Tensor, "targets kept"],
    is_kept: Bool[Tensor, "targets kept"],
) -> SparseLogProbs:
    """Log-probabilities of a few tokens and of all others together, in one pass over the vocabulary each way.

    What is not kept is summed from its own logits: 1 minus the kept share would round away. The gradient costs one
    further pass, as much as that of a plain cross-entropy.

    Args:
        logits: finite, in float32 or float64.
        own_ids: the text's own token, kept or not.
        kept_ids: different tokens in each row, pads aside.
        is_kept: false at pads, whose ids mean nothing; a row may have pads alone.

    Returns:
        Natural logs. The gradient goes to the logits.
    """
    return SparseLogProbs(*_SparseLogProbs.apply(logits, own_ids.long(), kept_ids.long(), is_kept))


class _SparseLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, own_ids: Tensor, kept_ids: Tensor, is_kept: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        own_ids = own_ids[:, None]
        others, kept_logits = logits, logits[:, :0]
        if kept_ids.shape[1]:
            # A pad stands for a kept token of its row, where there is one, so that ids never contradict each other.
            first = is_kept.int().argmax(dim=1, keepdim=True)
            kept_ids = torch.where(is_kept, kept_ids, kept_ids.gather(1, first))
            kept_logits = logits.gather(1, kept_ids)
            has_kept = is_kept.any(dim=1, keepdim=True)
            others = logits.scatter(1, kept_ids, kept_logits.masked_fill(has_kept, -torch.inf))
            kept_logits = kept_logits.masked_fill(~is_kept, -torch.inf)
        log_rest = others.logsumexp(dim=1, keepdim=True)
        log_all = torch.logaddexp(kept_logits.logsumexp(dim=1, keepdim=True), log_rest)
        kept, rest = kept_logits - log_all, log_rest - log_all
        ctx.save_for_backward(others, log_rest, kept, rest, own_ids, kept_ids, is_kept)
        return (logits.gather(1, own_ids) - log_all)[:, 0], kept, rest[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[override]
        own_grad, kept_grad, rest_grad = grad_outputs
        others, log_rest, kept, rest, own_ids, kept_ids, is_kept = ctx.saved_tensors
        own_grad, rest_grad = own_grad[:, None], rest_grad[:, None]
        kept_grad = kept_grad.masked_fill(~is_kept, 0)
        # Each log-probability is a logit (or several) minus the logarithm of the sum over all tokens.
        all_grad = own_grad + kept_grad.sum(dim=1, keepdim=True) + rest_grad
        grad = (others - log_rest.masked_fill(log_rest == -torch.inf, 0)).exp_()
        grad *= rest_grad - all_grad * rest.exp()
        grad.scatter_add_(1, kept_ids, kept_grad - all_grad * kept.exp())
        return grad.scatter_add_(1, own_ids, own_grad), None, None, None

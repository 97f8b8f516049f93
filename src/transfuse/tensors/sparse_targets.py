"""A teacher's distributions kept sparse: its likeliest tokens, and how much all others have together."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


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


def sparse_forward_kl(
    token_ids: Int[Tensor, "targets kept"],
    teacher_log_probs: Float[Tensor, "targets kept"],
    student_logits: Float[Tensor, "targets vocab"],
) -> Float[Tensor, " targets"]:
    """KL(teacher || student) over the kept tokens and one further outcome: any other token.

    Lumping tokens together can only hide a difference, so this is at most the KL over the vocabulary; it equals
    that where every token is kept, or where the student spreads the tail among its tokens as the teacher does.

    Args:
        token_ids: different tokens in each row.
        teacher_log_probs: natural log, over the whole vocabulary; minus infinity for what cannot come.
        student_logits: of the same vocabulary, finite.

    Returns:
        Nats at each position; 0 where the two agree, never negative but for rounding. The gradient goes to the
        student's logits.
    """
    kept_ids = token_ids.long()
    kept_logits = student_logits.gather(1, kept_ids)
    log_kept = kept_logits.logsumexp(dim=1)
    probs = teacher_log_probs.exp()
    if kept_ids.shape[1] == student_logits.shape[1]:
        return _cross_entropy_excess(probs, kept_logits - log_kept[:, None]).sum(dim=1)
    # The student's tail is summed from its own logits: 1 minus the kept share would round away.
    log_rest = student_logits.scatter(1, kept_ids, -torch.inf).logsumexp(dim=1)
    log_total = torch.logaddexp(log_kept, log_rest)
    kept = _cross_entropy_excess(probs, kept_logits - log_total[:, None]).sum(dim=1)
    # Rounding can bring the sum of the teacher's kept probabilities to a little above 1.
    tail = (1 - probs.sum(dim=1)).clamp(min=0)
    return kept + _cross_entropy_excess(tail, log_rest - log_total)


def _cross_entropy_excess(
    probs: Float[Tensor, "..."], log_probs: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """`p (log p - log q)`, and 0 where p is 0."""
    return torch.xlogy(probs, probs) - probs * log_probs

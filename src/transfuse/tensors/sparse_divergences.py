"""How far a student is from a teacher of whom only some tokens' probabilities are known, or only those of the text.

A divergence over kept tokens treats all other tokens as one further outcome, the tail. Lumping tokens together can
only hide a difference, so each is at most its value over the whole vocabulary, and equals it where every token is
kept.
"""

import math
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transfuse.tensors.sparse_targets import SparseLogProbs, sparse_log_probs

Divergence = Literal["cross-entropy", "cross-entropy-renormalised", "forward-kl", "reverse-kl", "jsd", "uld"]

TAIL_FLOOR = 1e-6
"""Least tail that `reverse_kl` sees: 1 minus a sum in float32 cannot tell less from 0, whose log has no end."""

LOG_PROB_CEILING = -1e-7
"""Greatest log-probability of a chunk: float32 cannot tell more from certainty, which no other value is near."""


@runtime_checkable
class DivergenceFn(Protocol):
    """Nats at each target, from the teacher's log-probabilities of the kept tokens and the student's of the same."""

    def __call__(
        self, teacher_log_probs: Float[Tensor, "targets kept"], student: SparseLogProbs
    ) -> Float[Tensor, " targets"]: ...


def cross_entropy(
    teacher_log_probs: Float[Tensor, "targets kept"], student: SparseLogProbs
) -> Float[Tensor, " targets"]:
    """`- sum p log q` over the kept tokens; the tail costs nothing.

    Args:
        teacher_log_probs: natural log, over the whole vocabulary; minus infinity at pads.
        student: of the same tokens.

    Returns:
        Nats; not 0 where the two agree, but the entropy of what is kept.

    Source:
        Wan et al. 2024, arXiv:2401.10491, section 3.2.
        Differs: the kept probabilities are taken as they are; see `cross_entropy_renormalised`.
    """
    is_kept = teacher_log_probs > -torch.inf
    return -(teacher_log_probs.exp() * student.kept.masked_fill(~is_kept, 0)).sum(dim=1)


def cross_entropy_renormalised(
    teacher_log_probs: Float[Tensor, "targets kept"], student: SparseLogProbs
) -> Float[Tensor, " targets"]:
    """`- sum p log q` over the kept tokens, whose probabilities are brought to a sum of 1.

    Args:
        teacher_log_probs: natural log; minus infinity at pads. A row of pads costs nothing.
        student: of the same tokens.

    Returns:
        Nats; not 0 where the two agree.

    Source:
        Wan et al. 2024, arXiv:2401.10491: the fused distribution is a softmax over the stored logits.
    """
    log_kept = teacher_log_probs.logsumexp(dim=1, keepdim=True)
    return cross_entropy(teacher_log_probs - log_kept.masked_fill(log_kept == -torch.inf, 0), student)


def forward_kl(
    teacher_log_probs: Float[Tensor, "targets kept"], student: SparseLogProbs
) -> Float[Tensor, " targets"]:
    """KL(teacher || student) over the kept tokens and the tail.

    Args:
        teacher_log_probs: natural log, over the whole vocabulary; minus infinity at pads.
        student: of the same tokens.

    Returns:
        Nats; 0 where the two agree, never negative but for rounding.

    Source:
        Hinton et al. 2015, arXiv:1503.02531, section 2.
        Differs: KL instead of cross-entropy, with a tail; temperature is left to the caller.
    """
    probs, tail = teacher_log_probs.exp(), _tail(teacher_log_probs)
    rest, has_rest = _rest(student)
    excess = _cross_entropy_excess(probs, student.kept.masked_fill(teacher_log_probs == -torch.inf, 0))
    return excess.sum(dim=1) + _cross_entropy_excess(tail * has_rest, rest)


def reverse_kl(
    teacher_log_probs: Float[Tensor, "targets kept"], student: SparseLogProbs
) -> Float[Tensor, " targets"]:
    """KL(student || teacher) over the kept tokens and the tail.

    A teacher that is certain of the kept tokens leaves the student's tail no probability: there the tail counts as
    `TAIL_FLOOR`, so that the divergence stays finite.

    Args:
        teacher_log_probs: natural log, over the whole vocabulary; minus infinity at pads.
        student: of the same tokens.

    Returns:
        Nats; 0 where the two agree, never negative but for rounding and the floor.

    Source:
        Gu et al. 2024, arXiv:2306.08543, section 2.
        Differs: exact over kept tokens and tail instead of sampled.
    """
    is_kept = teacher_log_probs > -torch.inf
    ours = student.kept.masked_fill(~is_kept, 0)
    kept = ours.exp() * (ours - teacher_log_probs.masked_fill(~is_kept, 0)) * is_kept
    rest, has_rest = _rest(student)
    tail = _tail(teacher_log_probs).clamp(min=TAIL_FLOOR).log()
    return kept.sum(dim=1) + rest.exp() * (rest - tail) * has_rest


def jensen_shannon(
    teacher_log_probs: Float[Tensor, "targets kept"], student: SparseLogProbs, beta: float = 0.5
) -> Float[Tensor, " targets"]:
    """How far teacher and student are from what lies between them, over the kept tokens and the tail.

    `beta KL(teacher || m) + (1 - beta) KL(student || m)` with `m = beta teacher + (1 - beta) student`. Divided by
    beta it is the forward KL as beta goes to 0; divided by 1 - beta the reverse KL as beta goes to 1.

    Args:
        teacher_log_probs: natural log, over the whole vocabulary; minus infinity at pads.
        student: of the same tokens.
        beta: between 0 and 1; at 1/2 neither side is preferred.

    Returns:
        Nats, at most the entropy of a coin of probability beta; 0 where the two agree, never negative but for rounding.

    Source:
        Agarwal et al. 2024 (GKD), arXiv:2306.13649, equation 1.
    """
    is_kept = teacher_log_probs > -torch.inf
    ours = student.kept.masked_fill(~is_kept, 0)
    kept = _between(teacher_log_probs.masked_fill(~is_kept, 0), ours, beta) * is_kept
    rest, has_rest = _rest(student)
    tail = _tail(teacher_log_probs) * has_rest
    return kept.sum(dim=1) + _between(tail.log(), rest, beta) * has_rest


def sorted_difference(
    teacher_log_probs: Float[Tensor, "targets kept"], student: SparseLogProbs
) -> Float[Tensor, " targets"]:
    """Sum of |p - q| over probabilities sorted on both sides, whatever tokens they belong to, and the tails.

    Args:
        teacher_log_probs: natural log, likeliest first; minus infinity at pads.
        student: of its own likeliest tokens, likeliest first.

    Returns:
        A number in 0..2, without unit.

    Source:
        Boizard et al. 2024 (ULD), arXiv:2402.12030, equation 5.
        Differs: what neither side keeps is compared as a whole.
    """
    difference = (teacher_log_probs.exp() - student.kept.exp()).abs()
    return difference.sum(dim=1) + (_tail(teacher_log_probs) - student.rest.exp()).abs()


DIVERGENCES: dict[Divergence, DivergenceFn] = {
    "cross-entropy": cross_entropy,
    "cross-entropy-renormalised": cross_entropy_renormalised,
    "forward-kl": forward_kl,
    "reverse-kl": reverse_kl,
    "jsd": jensen_shannon,
    "uld": sorted_difference,
}
"""Divergences over kept tokens, by the name that a recipe gives them."""


def divergence_of(name: Divergence, jsd_beta: float = 0.5) -> DivergenceFn:
    """The divergence of a name; `jsd_beta` is the beta of `jsd`, and without meaning for the others."""
    return partial(jensen_shannon, beta=jsd_beta) if name == "jsd" else DIVERGENCES[name]


def student_log_probs(
    divergence: Divergence,
    token_ids: Int[Tensor, "targets kept"],
    teacher_log_probs: Float[Tensor, "targets kept"],
    own_ids: Int[Tensor, " targets"],
    student_logits: Float[Tensor, "targets vocab"],
) -> tuple[Float[Tensor, "targets compared"], SparseLogProbs]:
    """What a divergence compares at each target.

    Args:
        divergence: `uld` pairs tokens by rank, the others by id.
        token_ids: different tokens in each row, pads aside.
        teacher_log_probs: minus infinity for what cannot come, and at pads, with any id.
        own_ids: the text's own tokens.
        student_logits: finite, in float32 or float64.

    Returns:
        The teacher's log-probabilities in the order compared, and the student's.
    """
    if divergence == "uld":
        n_kept = min(token_ids.shape[1], student_logits.shape[1])
        teacher_log_probs = teacher_log_probs.sort(dim=1, descending=True).values[:, :n_kept]
        token_ids = student_logits.detach().topk(n_kept, dim=1).indices
    is_kept = teacher_log_probs > -torch.inf
    return teacher_log_probs, sparse_log_probs(student_logits, own_ids, token_ids, is_kept)


def sparse_divergence(
    divergence: Divergence,
    token_ids: Int[Tensor, "targets kept"],
    teacher_log_probs: Float[Tensor, "targets kept"],
    student_logits: Float[Tensor, "targets vocab"],
    jsd_beta: float = 0.5,
) -> Float[Tensor, " targets"]:
    """A divergence of `DIVERGENCES` from a student's logits; arguments as in `student_log_probs`."""
    nobody = torch.zeros(len(token_ids), dtype=torch.long, device=student_logits.device)
    teacher_log_probs, student = student_log_probs(
        divergence, token_ids, teacher_log_probs, nobody, student_logits
    )
    return divergence_of(divergence, jsd_beta)(teacher_log_probs, student)


def chunk_divergence(
    source_log_probs: Float[Tensor, " chunks"],
    student_log_probs: Float[Tensor, " chunks"],
    temperatures: Float[Tensor, " chunks"],
) -> Float[Tensor, " chunks"]:
    """KL between two outcomes of each chunk of text: it comes as it stands, or it does not.

    Needs nothing of either model but what it gave the text, so any two tokenizers will do.

    Args:
        source_log_probs: natural log, at most 0: the source's, summed over its own tokens of the chunk.
        student_log_probs: the same of the student.
        temperatures: tau, above 0; both probabilities are raised to the power of 1 / tau.

    Returns:
        tau times the KL, in nats; 0 where the two agree. In the limit of a large tau it is
        `a log(a / b) + b - a` of the two negative log-likelihoods `a` and `b`.

    Source:
        Minixhofer et al. 2025 (ALM), arXiv:2503.20083, section 3.
        Differs: multiplied by tau, without which the loss vanishes as tau grows; chunks are not debiased.
    """
    source, student = (
        log_probs.clamp(max=LOG_PROB_CEILING) / temperatures
        for log_probs in (source_log_probs, student_log_probs)
    )
    comes = source.exp() * (source.clamp(min=torch.finfo(source.dtype).min) - student)
    fails = -torch.expm1(source) * (_log_of_rest(source) - _log_of_rest(student))
    return temperatures * (comes + fails)


def _log_of_rest(log_probs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`log(1 - p)`, exact near 0 and near 1."""
    is_small = log_probs < -0.6931
    # Each branch is given what it bears, so that the other one's gradient is never 0 times infinity.
    small = torch.log1p(-log_probs.masked_fill(~is_small, -1).exp())
    return torch.where(is_small, small, torch.log(-torch.expm1(log_probs.masked_fill(is_small, -0.1))))


def _between(
    teacher: Float[Tensor, "..."], student: Float[Tensor, "..."], beta: float
) -> Float[Tensor, "..."]:
    """`beta p log(p / m) + (1 - beta) q log(q / m)` with `m = beta p + (1 - beta) q`; p may be 0, q not."""
    middle = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    # A teacher that gives 0 has nothing to say there; its log is not to be multiplied by 0.
    theirs = teacher.exp() * (teacher.clamp(min=torch.finfo(teacher.dtype).min) - middle)
    return beta * theirs + (1 - beta) * student.exp() * (student - middle)


def _tail(log_probs: Float[Tensor, "targets kept"]) -> Float[Tensor, " targets"]:
    """Rounding can bring the sum of the kept probabilities to a little above 1."""
    return (1 - log_probs.exp().sum(dim=1)).clamp(min=0)


def _rest(student: SparseLogProbs) -> tuple[Tensor, Tensor]:
    """The student's log-probability of the tail, 0 where every token is kept, and whether there is a tail."""
    has_rest = student.rest > -torch.inf
    return student.rest.masked_fill(~has_rest, 0), has_rest


def _cross_entropy_excess(
    probs: Float[Tensor, "..."], log_probs: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """`p (log p - log q)`, and 0 where p is 0."""
    return torch.xlogy(probs, probs) - probs * log_probs

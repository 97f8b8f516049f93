"""What the targets of a pass cost, given the logits that predict them."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from transfuse.tensors.sparse_divergences import chunk_divergence, divergence_of, student_log_probs
from transfuse.train.soft_targets import ChunkPart, SoftPart


class Targets(NamedTuple):
    """The targets of a pass, or some of them, each with what it learns."""

    ids: Int[Tensor, " targets"]
    weights: Float[Tensor, " targets"]
    soft: SoftPart | None
    """Of every target, in order; pads and no weight where there is nothing to learn."""

    def between(self, start: int, end: int) -> "Targets":
        """Some of them."""
        soft = self.soft
        if soft is not None:
            soft = soft._replace(
                token_ids=soft.token_ids[start:end],
                log_probs=soft.log_probs[start:end],
                temperatures=soft.temperatures[start:end],
                weights=soft.weights[start:end],
            )
        return Targets(self.ids[start:end], self.weights[start:end], soft)


def every_target(
    ids: Int[Tensor, " targets"], weights: Float[Tensor, " targets"], soft: SoftPart | None
) -> Targets:
    """The targets of a pass, its soft targets spread over all of them."""
    if soft is not None and len(soft.targets) < len(ids):
        n_kept = soft.token_ids.shape[1]
        places = soft.targets
        soft = soft._replace(
            token_ids=soft.token_ids.new_zeros(len(ids), n_kept).index_copy_(0, places, soft.token_ids),
            log_probs=soft.log_probs.new_full((len(ids), n_kept), -torch.inf).index_copy_(
                0, places, soft.log_probs
            ),
            temperatures=soft.temperatures.new_ones(len(ids)).index_copy_(0, places, soft.temperatures),
            weights=soft.weights.new_zeros(len(ids)).index_copy_(0, places, soft.weights),
        )
    return Targets(ids, weights, soft)


def targets_loss(logits: Float[Tensor, "targets vocab"], targets: Targets) -> Float[Tensor, ""]:
    """Weighted sum of negative log-likelihoods and of divergences from soft targets, in nats.

    Args:
        logits: float32, of the targets.
        targets: as many.

    Returns:
        A sum, not a mean; chunk targets are not in it, see `chunks_loss`.
    """
    soft = targets.soft
    if soft is None:
        return functional.cross_entropy(logits, targets.ids, reduction="none") @ targets.weights
    divergence = divergence_of(soft.divergence, soft.jsd_beta)
    tempered = logits / soft.temperatures[:, None] if soft.is_tempered else logits
    teacher_log_probs, student = student_log_probs(
        soft.divergence, soft.token_ids, soft.log_probs, targets.ids, tempered
    )
    # The text's own tokens are learned at temperature 1.
    own = (
        -functional.cross_entropy(logits, targets.ids, reduction="none") if soft.is_tempered else student.own
    )
    return divergence(teacher_log_probs, student) @ soft.weights - own @ targets.weights


def chunks_loss(own_log_probs: Float[Tensor, " targets"], chunks: ChunkPart) -> Float[Tensor, ""]:
    """Weighted sum of the divergences of chunks.

    Args:
        own_log_probs: natural log, of every target of the pass.
        chunks: those of the pass.

    Returns:
        Nats, a sum.
    """
    covered = own_log_probs[chunks.targets]
    student = torch.segment_reduce(covered, "sum", lengths=chunks.n_targets)
    return chunk_divergence(chunks.log_probs, student, chunks.temperatures) @ chunks.weights

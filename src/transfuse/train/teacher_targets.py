"""A teacher's distributions at the learned tokens of rows, made once before training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from transfuse.errors import TrainingError
from transfuse.tensors.sparse_targets import top_log_probs
from transfuse.train.batches import (
    TrainingRow,
    packed_order,
    packed_passes,
    padded_order,
    padded_passes,
)
from transfuse.train.objective import AnswerLoss
from transfuse.train.soft_targets import SoftTargets

_SOFTMAX_ELEMENTS = 1 << 24
"""Log-probabilities that exist at once."""


@torch.no_grad()
def teacher_targets(
    objective: AnswerLoss,
    rows: Sequence[TrainingRow],
    *,
    is_packed: bool,
    max_tokens_per_pass: int,
    pad_id: int,
    top_k: int,
    temperature: float,
    hard_weight: float,
    n_vocab: int | None = None,
) -> list[SoftTargets]:
    """The soft targets of each row, from as few passes as they fit.

    Args:
        objective: the teacher, in evaluation mode.
        rows: at least one, as the teacher reads them; the targets are at their learned tokens.
        is_packed: whether rows are laid end to end, their common beginnings computed once; see `why_not_packed`.
        max_tokens_per_pass: tokens of a pass, padding counted.
        pad_id: token that fills up padded passes.
        top_k: tokens kept of each distribution.
        temperature: divides the teacher's logits, and later the student's.
        hard_weight: share of the loss that is on the rows' own tokens.
        n_vocab: logits of the student; a teacher's further ones, which fill up its vocabulary, are left out. None
            keeps all.

    Returns:
        One for each row, in order, on the CPU.

    Raises:
        TrainingError: the teacher's logits are not finite.
    """
    if is_packed:
        passes, order = packed_passes(rows, max_tokens_per_pass), packed_order(rows)
    else:
        passes, order = padded_passes(rows, max_tokens_per_pass, pad_id), padded_order(rows)
    device = next(objective.parameters()).device
    ids: list[Tensor] = []
    nats: list[Tensor] = []
    for batch in passes:
        logits = objective.target_logits(*(part.to(device) for part in batch[:5]))[:, :n_vocab]
        # Of a large vocabulary the softmax of a whole pass would be several times its logits.
        for some in logits.split(max(1, _SOFTMAX_ELEMENTS // logits.shape[1])):
            found = top_log_probs(some, top_k, temperature)
            if found.log_probs.isnan().any():
                raise TrainingError(
                    "teacher: expected finite logits, got NaN; load it in another precision, or check its weights."
                )
            ids.append(found.token_ids.cpu())
            nats.append(found.log_probs.cpu())
    sizes = [rows[n].n_learned for n in order]
    by_row: dict[int, SoftTargets] = {}
    for n, row_ids, row_nats in zip(
        order, torch.cat(ids).split(sizes), torch.cat(nats).split(sizes), strict=True
    ):
        # Cloned: a view would keep, and pickle, the targets of all rows.
        by_row[n] = SoftTargets(row_ids.clone(), row_nats.clone(), temperature, hard_weight)
    return [by_row[n] for n in range(len(rows))]

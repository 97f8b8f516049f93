"""What a teacher says at the learned positions of a row, beside or instead of the row's own tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transfuse.errors import TrainingError


class SoftTargets(NamedTuple):
    """A teacher's likeliest tokens at each learned position of one row."""

    token_ids: Int[Tensor, "learned kept"]
    """int32; the likeliest first."""
    log_probs: Float[Tensor, "learned kept"]
    """Natural log, float32, over the whole vocabulary at `temperature`; what is left of 1 is the tail."""
    temperature: float = 1.0
    """Divides the teacher's logits and the student's. The divergence is multiplied by its square, which keeps the
    size of the gradient (Hinton et al. 2015, section 2)."""
    hard_weight: float = 0.0
    """Share of the loss, in 0..1, that is on the row's own tokens; the rest is on the teacher's distribution."""


class SoftPart(NamedTuple):
    """The soft targets of a forward pass."""

    targets: Int[Tensor, " soft"]
    """Which of the pass's targets they belong to."""
    token_ids: Int[Tensor, "soft kept"]
    log_probs: Float[Tensor, "soft kept"]
    temperatures: Float[Tensor, " soft"]
    weights: Float[Tensor, " soft"]
    """Of the divergences in the loss."""


def soft_part(rows: Sequence[tuple[SoftTargets | None, Sequence[float]]]) -> SoftPart | None:
    """The soft targets of a pass.

    Args:
        rows: each row's soft targets, where it has any, and the weights of its learned tokens. The pass's targets
            are theirs, one row after the other.

    Returns:
        None where no row has soft targets.
    """
    places: list[int] = []
    found: list[SoftTargets] = []
    temperatures: list[float] = []
    weights: list[float] = []
    n_before = 0
    for soft, row_weights in rows:
        if soft is not None:
            found.append(soft)
            places += range(n_before, n_before + len(row_weights))
            temperatures += [soft.temperature] * len(row_weights)
            share = (1 - soft.hard_weight) * soft.temperature**2
            weights += [share * weight for weight in row_weights]
        n_before += len(row_weights)
    if not found:
        return None
    return SoftPart(
        targets=torch.tensor(places),
        token_ids=torch.cat([soft.token_ids for soft in found]).long(),
        log_probs=torch.cat([soft.log_probs for soft in found]),
        temperatures=torch.tensor(temperatures),
        weights=torch.tensor(weights),
    )


def refuse_uneven_targets(rows: Sequence[tuple[int, SoftTargets | None]]) -> None:
    """Check that soft targets fit their rows, and that all keep the same number of tokens.

    Args:
        rows: each row's number of learned tokens, and its soft targets.

    Raises:
        TrainingError: they do not; passes could not be put together.
    """
    found = [(n_learned, soft) for n_learned, soft in rows if soft is not None]
    for n_learned, soft in found:
        expected = (n_learned, found[0][1].log_probs.shape[1])
        for name, part in (("token ids", soft.token_ids), ("log-probabilities", soft.log_probs)):
            if tuple(part.shape) != expected:
                raise TrainingError(
                    f"soft targets: expected {name} of {expected[0]} learned positions x {expected[1]} kept tokens, "
                    f"got {' x '.join(map(str, part.shape))}; make those of all rows with the same top_k."
                )

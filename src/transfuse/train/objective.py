"""The loss of a training pass, and whether a model may be given packed passes at all."""

import inspect
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from transfuse.tensors.sparse_targets import sparse_forward_kl
from transfuse.train.batches import TrainingPass, TrainingRow, packed_passes, padded_passes, probe_rows
from transfuse.train.soft_targets import SoftPart

PACKING_TOLERANCE_NATS = 0.02
"""Greatest difference of mean loss between packed and padded rows that rounding in bfloat16 explains."""


@final
class AnswerLoss(nn.Module):
    """A causal language model with its loss, as one module that data-parallel engines can wrap."""

    def __init__(self, model: nn.Module, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self._compute_dtype = compute_dtype
        base = getattr(model, "get_base_model", lambda: model)()
        self._keeps_logits = "logits_to_keep" in inspect.signature(base.forward).parameters

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"],
        position_ids: Int[Tensor, "batch pos"],
        attention_mask: Bool[Tensor, "batch 1 pos pos"] | Int[Tensor, "batch pos"],
        target_rows: Int[Tensor, " targets"],
        target_positions: Int[Tensor, " targets"],
        target_ids: Int[Tensor, " targets"],
        target_weights: Float[Tensor, " targets"],
        soft: SoftPart | None = None,
    ) -> Float[Tensor, ""]:
        """Weighted sum of the targets' negative log-likelihoods and divergences from soft targets, in nats."""
        logits = self.target_logits(
            input_ids, position_ids, attention_mask, target_rows, target_positions
        ).float()
        loss = nn.functional.cross_entropy(logits, target_ids, reduction="none") @ target_weights
        if soft is None:
            return loss
        tempered = logits[soft.targets] / soft.temperatures[:, None]
        return loss + sparse_forward_kl(soft.token_ids, soft.log_probs, tempered) @ soft.weights

    def target_logits(
        self,
        input_ids: Int[Tensor, "batch pos"],
        position_ids: Int[Tensor, "batch pos"],
        attention_mask: Bool[Tensor, "batch 1 pos pos"] | Int[Tensor, "batch pos"],
        target_rows: Int[Tensor, " targets"],
        target_positions: Int[Tensor, " targets"],
    ) -> Float[Tensor, "targets vocab"]:
        """The logits that predict the targets.

        The output head runs only at positions that predict a target, so no full logits exist.
        """
        columns, inverse = torch.unique(target_positions, return_inverse=True)
        extra = {"logits_to_keep": columns} if self._keeps_logits else {}
        with torch.autocast(
            input_ids.device.type, torch.bfloat16, enabled=self._compute_dtype == torch.bfloat16
        ):
            output = self.model(
                input_ids=input_ids,
                position_ids=position_ids,
                attention_mask=attention_mask,
                use_cache=False,
                **extra,
            )
        return output.logits[target_rows, inverse if self._keeps_logits else target_positions]


def move_pass(batch: TrainingPass, device: torch.device) -> dict[str, Any]:
    """The pass as keyword arguments of `AnswerLoss`, on a device."""
    moved: dict[str, Any] = {
        name: part.to(device, non_blocking=True)
        for name, part in batch._asdict().items()
        if isinstance(part, Tensor)
    }
    if batch.soft is not None:
        moved["soft"] = SoftPart(*(part.to(device, non_blocking=True) for part in batch.soft))
    return moved


def why_not_packed(
    objective: AnswerLoss, rows: Sequence[TrainingRow], pad_id: int, device: torch.device
) -> str:
    """Why rows cannot be packed for a model, tried out on the model itself; empty where they can."""
    base: Any = getattr(objective.model, "get_base_model", lambda: objective.model)()
    window = window_tokens(base)
    longest = max(len(row.token_ids) for row in rows)
    if window is not None and longest > window:
        return f"the longest record has {longest} tokens, the model's sliding window {window}"
    sample = probe_rows(rows)
    difference = packing_difference_nats(objective, sample, pad_id, device) if len(sample) > 1 else 0.0
    if difference <= PACKING_TOLERANCE_NATS:
        return ""
    return f"packed and padded losses of the same records differ by {difference:.3g} nats a token"


def packing_difference_nats(
    objective: AnswerLoss, rows: Sequence[TrainingRow], pad_id: int, device: torch.device
) -> float:
    """How far the mean loss of packed rows is from that of the same rows padded, per target token.

    Args:
        objective: the model; its mode is left as found.
        rows: a few short rows, two or more.
        pad_id: token that fills up.
        device: where the model is.

    Returns:
        Nats per target token; about rounding where the model honours a block-diagonal mask, large where it
        carries state from row to row or ignores the mask, infinite where it refuses such a mask.
    """
    was_training = objective.training
    objective.eval()
    total_weight = sum(sum(row.weights) for row in rows)
    try:
        with torch.no_grad():
            padded, packed = (
                sum(float(objective(**move_pass(batch, device))) for batch in batches)
                for batches in (padded_passes(rows, 1 << 30, pad_id), packed_passes(rows, 1 << 30))
            )
    except (RuntimeError, ValueError, TypeError, IndexError):
        return float("inf")
    finally:
        objective.train(was_training)
    return abs(packed - padded) / total_weight


def window_tokens(model: PreTrainedModel) -> int | None:
    """The model's sliding attention window; packed rows must fit it, since the packed mask has none."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    return window if isinstance(window, int) and getattr(config, "use_sliding_window", True) else None

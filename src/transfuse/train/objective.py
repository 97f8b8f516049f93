"""The loss of a training pass, and whether a model may be given packed passes at all."""

import inspect
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from transfuse.train.batches import (
    Rows,
    TrainingPass,
    TrainingRow,
    packed_passes,
    padded_passes,
    probe_rows,
    row_lengths,
)
from transfuse.train.chunked_head import (
    CHUNK_BYTES,
    OutputHead,
    chunked_loss,
    chunked_own_log_probs,
)
from transfuse.train.soft_targets import ChunkPart, SoftPart
from transfuse.train.target_losses import chunks_loss, every_target, targets_loss

PACKING_TOLERANCE_NATS = 0.02
"""Greatest difference of mean loss between packed and padded rows that rounding in bfloat16 explains."""

HEAD_TOLERANCE = 0.02
"""Greatest difference of logits between a model's own and those of its head in chunks, as a share of the greatest."""


@final
class AnswerLoss(nn.Module):
    """A causal language model with its loss, as one module that data-parallel engines can wrap."""

    def __init__(self, model: nn.Module, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.compute_dtype = compute_dtype
        base = getattr(model, "get_base_model", lambda: model)()
        self.units: list[str] = sorted(getattr(base, "_no_split_modules", None) or [])
        """Class names of the modules that must not be taken apart, such as decoder layers."""
        self._attention: str | None = getattr(base.config, "_attn_implementation", None)
        self._keeps_logits = "logits_to_keep" in inspect.signature(base.forward).parameters
        self._head: OutputHead | None = None
        self._chunk_bytes = CHUNK_BYTES

    def use_chunks(self, head: OutputHead, chunk_bytes: int = CHUNK_BYTES) -> None:
        """From now on run output head and loss on a few targets at a time (see `why_not_chunked`)."""
        self._head, self._chunk_bytes = head, chunk_bytes

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
        chunks: ChunkPart | None = None,
    ) -> Float[Tensor, ""]:
        """Weighted sum of the targets' negative log-likelihoods and divergences from soft targets, in nats."""
        where = (input_ids, position_ids, attention_mask, target_rows, target_positions)
        targets = every_target(target_ids, target_weights, soft)
        if self._head is None:
            logits = self.target_logits(*where).float()
            loss = targets_loss(logits, targets)
            if chunks is None:
                return loss
            own = -nn.functional.cross_entropy(logits, target_ids, reduction="none")
            return loss + chunks_loss(own, chunks)
        head, hidden = self._head, self.target_hidden(*where)
        is_autocast = self.compute_dtype == torch.bfloat16
        dtype = torch.bfloat16 if is_autocast else head.linear.weight.dtype
        settings: dict[str, Any] = {"dtype": dtype, "chunk_bytes": self._chunk_bytes}
        correction: Tensor | float = 0.0
        if chunks is not None:
            # Chunks take several targets each, so their gradient is not known before all targets are: as a first
            # phase it is found at each target, and the second phase weighs the targets' own losses by it.
            own = chunked_own_log_probs(hidden, head, target_ids, **settings)
            slopes, value = _slopes(own, chunks)
            targets = targets._replace(weights=target_weights - slopes)
            correction = value - slopes @ own
        loss = chunked_loss(
            hidden,
            head,
            lambda logits, start, end: targets_loss(logits, targets.between(start, end)),
            **settings,
        )
        return loss + correction

    def target_hidden(
        self,
        input_ids: Int[Tensor, "batch pos"],
        position_ids: Int[Tensor, "batch pos"],
        attention_mask: Bool[Tensor, "batch 1 pos pos"] | Int[Tensor, "batch pos"],
        target_rows: Int[Tensor, " targets"],
        target_positions: Int[Tensor, " targets"],
    ) -> Float[Tensor, "targets hidden"]:
        """What the output head is given where it predicts the targets; only after `use_chunks`."""
        head: Any = self._head
        with self.autocast(input_ids.device):
            output = head.decoder(
                input_ids=input_ids,
                position_ids=position_ids,
                attention_mask=self._understood(attention_mask),
                use_cache=False,
            )
        return output.last_hidden_state[target_rows, target_positions]

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
        with self.autocast(input_ids.device):
            output = self.model(
                input_ids=input_ids,
                position_ids=position_ids,
                attention_mask=self._understood(attention_mask),
                use_cache=False,
                **extra,
            )
        return output.logits[target_rows, inverse if self._keeps_logits else target_positions]

    def _understood(self, attention_mask: Tensor) -> Tensor:
        """A block-diagonal mask as the model's attention takes it: `eager` adds it to its scores."""
        if attention_mask.dtype != torch.bool or self._attention != "eager":
            return attention_mask
        scores = torch.zeros_like(attention_mask, dtype=torch.float32)
        return scores.masked_fill_(~attention_mask, torch.finfo(torch.bfloat16).min)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The precision in which the model computes."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.compute_dtype == torch.bfloat16)


def _slopes(
    own_log_probs: Float[Tensor, " targets"], chunks: ChunkPart
) -> tuple[Float[Tensor, " targets"], Float[Tensor, ""]]:
    """How the chunks' loss changes with each target's log-probability, and that loss."""
    with torch.enable_grad():
        own = own_log_probs.requires_grad_()
        value = chunks_loss(own, chunks)
        (slopes,) = torch.autograd.grad(value, own)
    own.requires_grad_(False)
    return slopes, value.detach()


def move_pass(batch: TrainingPass, device: torch.device) -> dict[str, Any]:
    """The pass as keyword arguments of `AnswerLoss`, on a device."""
    moved: dict[str, Any] = {
        name: part.to(device, non_blocking=True)
        for name, part in batch._asdict().items()
        if isinstance(part, Tensor)
    }
    for name, part in (("soft", batch.soft), ("chunks", batch.chunks)):
        if part is not None:
            moved[name] = part._replace(
                **{
                    key: value.to(device, non_blocking=True)
                    for key, value in part._asdict().items()
                    if isinstance(value, Tensor)
                }
            )
    return moved


def why_not_chunked(
    objective: AnswerLoss, head: OutputHead, rows: Rows, pad_id: int, device: torch.device
) -> str:
    """Why head and loss cannot be run in chunks, tried out on the model itself; empty where they can."""
    whole = AnswerLoss(objective.model, objective.compute_dtype)
    ours = AnswerLoss(objective.model, objective.compute_dtype)
    ours.use_chunks(head)
    was_training = objective.training
    objective.eval()
    (batch,) = padded_passes(probe_rows(rows)[:1], 1 << 30, pad_id)
    where = [part.to(device) for part in batch[:5]]
    try:
        with torch.no_grad():
            expected = whole.target_logits(*where).float()
            hidden = ours.target_hidden(*where).to(expected.dtype)
            with whole.autocast(device):
                found = head.finished(head.linear(hidden.to(head.linear.weight.dtype)))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as err:
        return f"running the decoder alone fails ({_first_line(err)})"
    finally:
        objective.train(was_training)
    if found.shape != expected.shape:
        return f"the head alone gives {found.shape[1]} logits, the model {expected.shape[1]}"
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    if difference <= HEAD_TOLERANCE:
        return ""
    return f"logits of the head alone differ from the model's by {difference:.3g} of the greatest"


def why_not_packed(objective: AnswerLoss, rows: Rows, pad_id: int, device: torch.device) -> str:
    """Why rows cannot be packed for a model, tried out on the model itself; empty where they can."""
    base: Any = getattr(objective.model, "get_base_model", lambda: objective.model)()
    window = window_tokens(base)
    longest = max(row_lengths(rows))
    if window is not None and longest > window:
        return f"the longest record has {longest} tokens, the model's sliding window {window}"
    sample = probe_rows(rows)
    try:
        difference = packing_difference_nats(objective, sample, pad_id, device) if len(sample) > 1 else 0.0
    except (RuntimeError, ValueError, TypeError, IndexError) as err:
        return f"the model refuses packed records ({_first_line(err)})"
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
        carries state from row to row or ignores the mask. What the model raises where it refuses such a mask is
        passed on.
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
    finally:
        objective.train(was_training)
    return abs(packed - padded) / total_weight


def _first_line(err: Exception) -> str:
    """Of an error's message, its type where it has none."""
    return str(err).splitlines()[0] if str(err) else type(err).__name__


def window_tokens(model: PreTrainedModel) -> int | None:
    """The model's sliding attention window; packed rows must fit it, since the packed mask has none."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    return window if isinstance(window, int) and getattr(config, "use_sliding_window", True) else None

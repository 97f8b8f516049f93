"""Output head and loss together, a few positions at a time, so that full logits never exist.

The gradient of a few positions' logits is formed and carried through the head as soon as their loss is known, and the
logits are forgotten; nothing is computed twice. What stays is a gradient of the hidden states, and of the head's
weights where they train.

Source: the idea is that of "cut cross-entropy", Wijmans et al. 2024, arXiv:2411.09009, and of Liger Kernel's fused
linear losses, Hsu et al. 2024, arXiv:2410.10989. Differs: any loss of the logits, in plain torch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK_BYTES = 32 * 2**20
"""Of the float32 logits that exist at a time. The loss takes a few times as much: their exponentials, gradients, ..."""

_VOCABULARY_BLOCK = 8192
"""Rows of the head's gradient that are added at a time where they have to be brought to float32."""

SliceLoss = Callable[[Float[Tensor, "part vocab"], int, int], Float[Tensor, ""]]
"""The loss of float32 logits, a sum, of the positions from the one number up to the other."""


class OutputHead(NamedTuple):
    """How a model's logits come from its decoder's last hidden states."""

    decoder: nn.Module
    linear: nn.Linear
    scale: float
    """Multiplies the logits."""
    softcap: float | None
    """The logits are bent so that none exceeds it."""

    @property
    def n_vocab(self) -> int:
        """Number of logits."""
        return self.linear.out_features

    def finished(self, raw: Float[Tensor, "targets vocab"]) -> Float[Tensor, "targets vocab"]:
        """Logits in float32 from what the linear layer gives."""
        logits = raw.float()
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def find_head(model: nn.Module) -> OutputHead | str:
    """A model's output head; the reason, in words, where it cannot be reached.

    Args:
        model: a causal language model of transformers, or one wrapped by PEFT.

    Returns:
        Head and decoder, which share the model's weights. Whether the model's logits come from them as told is for
        the caller to try (see `AnswerLoss`): a model may do more between.
    """
    if any(getattr(each, "is_prompt_learning", False) for each in getattr(model, "peft_config", {}).values()):
        return "the adapter is a learned prompt"
    base: Any = getattr(model, "get_base_model", lambda: model)()
    decoder, head = getattr(base, "base_model", base), base.get_output_embeddings()
    if decoder is base:
        return f"{type(base).__name__} has no decoder apart from its head"
    if type(head) is not nn.Linear:
        return f"the output head is a {type(head).__name__}, not a plain linear layer"
    if hasattr(head, "_hf_hook") or head.weight.is_meta:
        return "the output head is kept on another device"
    config = base.config.get_text_config()
    # Granite and MiniCPM divide, Cohere and Falcon-H1 multiply.
    scale = float(getattr(config, "logit_scale", None) or 1) * float(
        getattr(config, "lm_head_multiplier", None) or 1
    )
    scale /= float(getattr(config, "logits_scaling", None) or 1)
    return OutputHead(decoder, head, scale, getattr(config, "final_logit_softcapping", None))


def rows_per_chunk(n_vocab: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Positions whose float32 logits take at most `chunk_bytes`, at least one."""
    return max(1, chunk_bytes // (4 * n_vocab))


def chunked_loss(
    hidden: Float[Tensor, "targets hidden"],
    head: OutputHead,
    loss_of: SliceLoss,
    *,
    dtype: torch.dtype,
    chunk_bytes: int = CHUNK_BYTES,
) -> Float[Tensor, ""]:
    """The sum of a loss over all positions; full logits never exist.

    Args:
        hidden: the decoder's last hidden states at the positions that predict something.
        head: the linear layer and what comes after it.
        loss_of: called for some positions after the other; in its sum each stands for itself.
        dtype: in which the linear layer computes. Where that is not its weight's own, one copy of the weight is made.
        chunk_bytes: see `CHUNK_BYTES`.

    Returns:
        The loss; its gradient goes to the hidden states and to the head's weights that train. The weight's gradient
        is added up in float32.
    """
    linear = head.linear
    is_learning = torch.is_grad_enabled() and any(
        part is not None and part.requires_grad for part in (hidden, linear.weight, linear.bias)
    )
    n_rows = rows_per_chunk(head.n_vocab, chunk_bytes)
    return _ChunkedLoss.apply(  # type: ignore[no-any-return]
        hidden, linear.weight, linear.bias, head, loss_of, dtype, n_rows, is_learning
    )


@torch.no_grad()
def chunked_own_log_probs(
    hidden: Float[Tensor, "targets hidden"],
    head: OutputHead,
    own_ids: Tensor,
    *,
    dtype: torch.dtype,
    chunk_bytes: int = CHUNK_BYTES,
) -> Float[Tensor, " targets"]:
    """Log-probability of one token at each position, without a gradient; arguments as in `chunked_loss`."""
    found: list[Tensor] = []

    def collect(logits: Tensor, start: int, end: int) -> Tensor:
        found.append(-functional.cross_entropy(logits, own_ids[start:end], reduction="none"))
        return logits.new_zeros(())

    chunked_loss(hidden, head, collect, dtype=dtype, chunk_bytes=chunk_bytes)
    return torch.cat(found)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: OutputHead,
        loss_of: SliceLoss,
        dtype: torch.dtype,
        n_rows: int,
        is_learning: bool,
    ) -> Tensor:
        matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
        needs_hidden, needs_weight, needs_bias = (
            is_learning and needed for needed in ctx.needs_input_grad[:3]
        )
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        bias_grad = torch.zeros_like(weight[:, 0], dtype=torch.float32) if needs_bias else None
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(hidden), n_rows):
            rows = hidden[start : start + n_rows].to(dtype)
            raw = functional.linear(rows, matrix, offset).requires_grad_(is_learning)
            with torch.set_grad_enabled(is_learning):
                loss = loss_of(head.finished(raw), start, start + len(rows))
            total += loss.detach()
            if not is_learning:
                continue
            (grad,) = torch.autograd.grad(loss, raw)
            del raw, loss
            if hidden_grad is not None:
                hidden_grad[start : start + n_rows] = grad @ matrix
            if weight_grad is not None:
                _add_product(weight_grad, grad, rows)
            if bias_grad is not None:
                bias_grad += grad.sum(dim=0, dtype=torch.float32)
        # Not saved for backward: these are no inputs or outputs, and are handed on without a copy.
        ctx.grads = [hidden_grad, weight_grad, bias_grad]
        ctx.dtypes = [weight.dtype, None if bias is None else bias.dtype]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[override]
        hidden_grad, *others = (None if each is None else each.mul_(grad_outputs[0]) for each in ctx.grads)
        ctx.grads = None
        found = [
            None if each is None else each.to(dtype) for each, dtype in zip(others, ctx.dtypes, strict=True)
        ]
        return hidden_grad, *found, None, None, None, None, None


def _add_product(total: Tensor, grad: Tensor, rows: Tensor) -> None:
    """Add `grad.T @ rows` to a float32 matrix."""
    if grad.dtype == total.dtype:
        total.addmm_(grad.T, rows)
        return
    for first in range(0, len(total), _VOCABULARY_BLOCK):
        block = slice(first, first + _VOCABULARY_BLOCK)
        total[block] += grad[:, block].T @ rows

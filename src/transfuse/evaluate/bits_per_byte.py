"""Bits per byte: how well a model predicts text, comparable across tokenizers.

Counting rules: each text is one item, cut into windows no longer than the context; every token of a window but
its first has a loss, and where the tokenizer writes a beginning-of-sequence token, that one is never predicted.
Only the bytes of predicted tokens are counted. No end-of-sequence token is scored.
"""

import math
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from transfuse.generate.local import context_tokens
from transfuse.io.chat import PromptFormat
from transfuse.io.texts import read_texts
from transfuse.tensors.intervals import cluster_bootstrap
from transfuse.types import Estimate

GENERIC_TEXT = "generic"
"""Name of the text that comes with the package."""

MAX_WINDOW_TOKENS = 1024
_BATCH_TOKENS = 4096


class TextLoss(NamedTuple):
    """What one text cost a model."""

    nll_nats: float
    n_bytes: int
    """UTF-8 bytes of the predicted tokens."""


def load_texts(path: Path | None) -> list[str]:
    """Texts of a JSONL file with rows `{"text"}`; without a path, those that come with the package.

    Args:
        path: the file.

    Returns:
        At least one text, none empty.

    Raises:
        DataError: a row without text, or no row.
    """
    if path is not None:
        return read_texts(path)
    with resources.as_file(resources.files("transfuse.evaluate") / "generic_text.jsonl") as bundled:
        return read_texts(bundled)


def text_losses(
    model: nn.Module,
    prompts: PromptFormat,
    texts: Sequence[str],
    compute_dtype: torch.dtype,
    on_texts: Callable[[int, int], None] | None = None,
) -> list[TextLoss]:
    """Loss of each text under a model.

    Args:
        model: a causal language model in evaluation mode.
        prompts: its tokenizer.
        texts: plain text, no template applied.
        compute_dtype: bfloat16 for autocast, float32 for none.
        on_texts: called with the numbers of windows done and to do.

    Returns:
        One loss a text, in order.
    """
    encoded = [prompts.encode_text(text) for text in texts]
    window_tokens = min(MAX_WINDOW_TOKENS, context_tokens(model) or MAX_WINDOW_TOKENS)
    windows = [(n, ids) for n, token_ids in enumerate(encoded) for ids in _windows(token_ids, window_tokens)]
    nll_nats = np.zeros(len(texts))
    n_bytes = [_predicted_bytes(prompts, token_ids) for token_ids in encoded]
    done = 0
    for batch in _batches(windows):
        losses = _window_losses(model, [ids for _, ids in batch], prompts.pad_id, compute_dtype)
        for (n, _), loss in zip(batch, losses, strict=True):
            nll_nats[n] += loss
        done += len(batch)
        if on_texts:
            on_texts(done, len(windows))
    return [TextLoss(float(nats), int(size)) for nats, size in zip(nll_nats, n_bytes, strict=True)]


def bits_per_byte(losses: Sequence[TextLoss], seed: int) -> Estimate:
    """Total bits over total bytes, with a 95 % interval over texts.

    Args:
        losses: of each text; those without a predicted byte are left out.
        seed: of the bootstrap.

    Returns:
        Bits per byte; n counts texts.

    Source:
        Gao et al. 2020, arXiv:2101.00027, section 3.1.
        Differs: bytes of the predicted tokens only, not those of the first token of a window.
    """
    counted = [loss for loss in losses if loss.n_bytes]
    bits = np.array([loss.nll_nats for loss in counted]) / math.log(2)
    sizes = np.array([loss.n_bytes for loss in counted], dtype=float)
    return cluster_bootstrap(bits, sizes, np.arange(len(counted)), seed)


def _windows(token_ids: list[int], n_tokens: int) -> list[list[int]]:
    """Windows that share one token: the last of one is the first, unpredicted, of the next."""
    starts = range(0, max(1, len(token_ids) - 1), n_tokens - 1)
    return [token_ids[start : start + n_tokens] for start in starts]


def _batches(windows: list[tuple[int, list[int]]]) -> list[list[tuple[int, list[int]]]]:
    batches: list[list[tuple[int, list[int]]]] = []
    for window in sorted(windows, key=lambda each: len(each[1])):
        if not batches or (len(batches[-1]) + 1) * len(window[1]) > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(window)
    return batches


def _predicted_bytes(prompts: PromptFormat, token_ids: list[int]) -> int:
    """Bytes of a text less those of its first token, from the decoded text; windows may cut characters."""
    whole = prompts.tokenizer.decode(token_ids, skip_special_tokens=True)
    first = prompts.tokenizer.decode(token_ids[:1], skip_special_tokens=True)
    return len(str(whole).encode()) - len(str(first).encode())


@torch.no_grad()
def _window_losses(
    model: nn.Module, windows: Sequence[list[int]], pad_id: int, compute_dtype: torch.dtype
) -> list[float]:
    device = next(model.parameters()).device
    length = max(map(len, windows))
    input_ids: Int[Tensor, "batch pos"] = torch.full((len(windows), length), pad_id)
    attention_mask = torch.zeros(len(windows), length, dtype=torch.long)
    for row, ids in enumerate(windows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
    input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=compute_dtype == torch.bfloat16):
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    losses: Float[Tensor, "batch pos"] = torch.stack(
        [
            nn.functional.cross_entropy(row[:-1].float(), ids[1:], reduction="none")
            for row, ids in zip(logits, input_ids, strict=True)
        ]
    )
    return (losses * attention_mask[:, 1:]).sum(dim=1).tolist()

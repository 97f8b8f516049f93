"""Which of the faster ways a model can be trained in: its head in chunks, its rows packed."""

from typing import Any

import torch
from torch import nn

from transfuse.errors import TrainingError
from transfuse.train.batches import Rows, row_lengths
from transfuse.train.chunked_head import CHUNK_BYTES, find_head
from transfuse.train.objective import AnswerLoss, why_not_chunked, why_not_packed
from transfuse.train.settings import TrainSettings


def choose_head(
    objective: AnswerLoss, rows: Rows, settings: TrainSettings, pad_id: int, device: torch.device
) -> list[str]:
    """Run head and loss in chunks where settings and model allow it.

    Args:
        objective: the model with its loss; set to chunks in place.
        rows: to be learned.
        settings: `head` and what a pass holds.
        pad_id: token that fills up padded batches.
        device: where the model is.

    Returns:
        A warning where `auto` falls back.

    Raises:
        TrainingError: chunks were asked for, and the model cannot be taken apart.
    """
    longest = max(row_lengths(rows))
    step_rows = settings.batch_rows * settings.gradient_accumulation
    n_targets = max(longest, min(settings.pass_tokens(device.type), step_rows * longest))
    n_vocab = _n_logits(objective.model)
    if settings.head == "whole" or (settings.head == "auto" and 4 * n_vocab * n_targets <= CHUNK_BYTES):
        return []
    found = find_head(objective.model)
    reason = found if isinstance(found, str) else why_not_chunked(objective, found, rows, pad_id, device)
    if not isinstance(found, str) and not reason:
        objective.use_chunks(found)
        return []
    if settings.head == "chunked":
        raise TrainingError(f"train.head is 'chunked', but {reason}; set it to auto or whole.")
    return [f"Logits of whole passes were held in memory, since {reason}."]


def choose_packing(
    objective: AnswerLoss, rows: Rows, settings: TrainSettings, pad_id: int, device: torch.device
) -> tuple[bool, list[str]]:
    """Whether rows are packed, tried out on the model itself.

    Args:
        objective: the model with its loss.
        rows: to be learned.
        settings: `packing`.
        pad_id: token that fills up padded batches.
        device: where the model is.

    Returns:
        The choice, and a warning where `auto` falls back.

    Raises:
        TrainingError: packing was asked for, and the model cannot do it.
    """
    if settings.packing == "off":
        return False, []
    reason = why_not_packed(objective, rows, pad_id, device)
    if not reason:
        return True, []
    if settings.packing == "on":
        raise TrainingError(f"train.packing is 'on', but {reason}; set it to auto or off.")
    return False, [f"Records were not packed: {reason}."]


def _n_logits(model: nn.Module) -> int:
    base: Any = getattr(model, "get_base_model", lambda: model)()
    return int(base.config.get_text_config().vocab_size)

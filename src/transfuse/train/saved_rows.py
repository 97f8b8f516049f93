"""Rows with their soft targets in one safetensors file, so that a teacher is asked once."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from transfuse.errors import TrainingError
from transfuse.io.files import atomic_file
from transfuse.train.batches import TrainingRow
from transfuse.train.soft_targets import ChunkTargets, SoftTargets, Taught, refuse_uneven_targets
from transfuse.types import Dropped

FORMAT = "transfuse-rows-2"
READABLE = (FORMAT, "transfuse-rows-1")
"""The first had soft targets by forward-kl at every learned position only."""


def save_rows(path: Path, rows: Sequence[TrainingRow], dropped: Sequence[Dropped] = ()) -> None:
    """Write rows, with soft targets or without, whole or not at all.

    Args:
        path: a .safetensors file.
        rows: kept to the bit.
        dropped: what was left out while the rows were made; kept beside them.

    Raises:
        TrainingError: soft targets do not fit their rows or one another, or are of chunks, for which the file has no
            room.
        RunFolderError: the file cannot be written, or the disk is full.
    """
    refuse_uneven_targets([(row.n_learned, row.soft) for row in rows])
    soft = [_plain_targets(row.soft) for row in rows if row.soft is not None]
    tensors = {
        "token_ids": torch.tensor([token for row in rows for token in row.token_ids], dtype=torch.int32),
        "counts": torch.tensor(
            [
                [len(row.token_ids), row.n_prompt, row.n_question, 0 if row.soft is None else row.n_learned]
                for row in rows
            ],
            dtype=torch.int32,
        ).reshape(-1, 4),
        "settings": torch.tensor(
            [
                [
                    row.question_weight,
                    *((0.0, 0.0) if row.soft is None else (row.soft.temperature, row.soft.hard_weight)),
                ]
                for row in rows
            ],
            dtype=torch.float64,
        ).reshape(-1, 3),
    }
    header = {"format": FORMAT, "dropped": json.dumps([asdict(each) for each in dropped])}
    if soft:
        tensors["soft_token_ids"] = torch.cat([each.token_ids for each in soft])
        tensors["soft_log_probs"] = torch.cat([each.log_probs for each in soft])
        header |= {"divergence": soft[0].divergence, "jsd_beta": repr(soft[0].jsd_beta)}
    if any(each.is_taught is not None for each in soft):
        tensors["soft_is_taught"] = torch.cat(
            [
                torch.ones(len(each.log_probs), dtype=torch.bool)
                if each.is_taught is None
                else each.is_taught
                for each in soft
            ]
        )
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def load_rows(path: Path) -> tuple[list[TrainingRow], list[Dropped]]:
    """Rows that `save_rows` wrote, and what was left out while they were made.

    Args:
        path: the file.

    Returns:
        The rows in the order written, and the dropped.

    Raises:
        TrainingError: there is no such file, or it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            header: dict[str, str] = opened.metadata() or {}
            if header.get("format") not in READABLE:
                raise ValueError(f"its format is {header.get('format')!r}")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        dropped = [Dropped(**each) for each in json.loads(header["dropped"])]
        return _rows(tensors, header), dropped
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as err:
        raise TrainingError(
            f"{path}: expected rows as this version writes them ({FORMAT}), got '{err}'; "
            "delete the file to make them afresh."
        ) from err


def _plain_targets(taught: Taught) -> SoftTargets:
    if isinstance(taught, ChunkTargets):
        raise TrainingError(
            "saved rows: expected soft targets of tokens, got those of chunks; keep these in a file of their own."
        )
    return taught


def _rows(tensors: dict[str, Tensor], header: dict[str, str]) -> list[TrainingRow]:
    lengths, n_prompts, n_questions, n_soft = tensors["counts"].long().T.tolist()
    token_ids = tensors["token_ids"].split(lengths)
    nothing = torch.empty(0, 0)
    soft_ids = tensors.get("soft_token_ids", nothing).split(n_soft)
    soft_log_probs = tensors.get("soft_log_probs", nothing).split(n_soft)
    soft_is_taught = tensors["soft_is_taught"].split(n_soft) if "soft_is_taught" in tensors else None
    divergence: Any = header.get("divergence", "forward-kl")
    jsd_beta = float(header.get("jsd_beta", 0.5))
    rows: list[TrainingRow] = []
    for n, (weight, temperature, hard_weight) in enumerate(tensors["settings"].tolist()):
        soft = None
        if n_soft[n]:
            # Cloned: a view would keep, and pickle, the targets of all rows.
            soft = SoftTargets(
                soft_ids[n].clone(),
                soft_log_probs[n].clone(),
                temperature,
                hard_weight,
                divergence,
                None if soft_is_taught is None else soft_is_taught[n].clone(),
                jsd_beta,
            )
        rows.append(TrainingRow(token_ids[n].tolist(), n_prompts[n], n_questions[n], weight, soft))
    return rows

"""Checkpoints of a training run, without pickle: exact to the bit, whole or absent."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from transfuse.errors import TrainingError
from transfuse.io.files import atomic_folder
from transfuse.train.sharding import spread_like, whole


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: Optimizer,
    progress: Mapping[str, Any],
    *,
    is_writer: bool = True,
) -> None:
    """Write the trained weights, the optimizer's state and the progress; an earlier checkpoint is replaced.

    Args:
        folder: the checkpoint's own folder.
        model: weights that need a gradient are written.
        optimizer: its state is written, parameter by parameter.
        progress: JSON values: step, curve, counts.
        is_writer: whether this process writes. Where weights are spread over processes, all of them must call this
            function, since it takes all to gather the whole.

    Raises:
        RunFolderError: the folder cannot be written, or the disk is full; the earlier checkpoint stays.
    """
    weights = {name: whole(weight.detach()).contiguous() for name, weight in _trained(model).items()}
    names = {id(weight): name for name, weight in _trained(model).items()}
    moments: dict[str, Tensor] = {}
    for weight, state in optimizer.state.items():
        for key, value in state.items():
            moments[f"{names[id(weight)]}/{key}"] = whole(torch.as_tensor(value).detach()).contiguous()
    if not is_writer:
        return
    with atomic_folder(folder) as temporary:
        save_file(weights, temporary / "weights.safetensors")
        save_file(moments, temporary / "optimizer.safetensors")
        (temporary / "progress.json").write_text(json.dumps(progress), encoding="utf-8")


def load_checkpoint(folder: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any] | None:
    """Put a checkpoint back.

    Args:
        folder: the checkpoint's own folder.
        model: its trained weights are overwritten.
        optimizer: over the same weights; its state is replaced.

    Returns:
        The progress that was saved; None where there is no checkpoint.

    Raises:
        TrainingError: the checkpoint is damaged or of another model.
    """
    if not (folder / "progress.json").is_file():
        return None
    try:
        weights = load_file(folder / "weights.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
        progress: dict[str, Any] = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        with torch.no_grad():
            for name, weight in _trained(model).items():
                weight.copy_(spread_like(weights[name], weight))
                state = {key: moments[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                optimizer.state[weight] = {
                    key: value if key == "step" else spread_like(value, weight)
                    for key, value in state.items()
                }
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as err:
        raise TrainingError(
            f"{folder}: the checkpoint is damaged or of another model ({err}); delete the folder to start afresh."
        ) from err
    return progress


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

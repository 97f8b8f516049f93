"""Weights spread over processes (FSDP2) while a model trains; before and after it is an ordinary one.

The model itself waits in main memory while a copy of it trains in pieces, and is given the learned weights at the end:
nothing of the engine clings to what the caller holds.
"""

import copy
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from transfuse.errors import TrainingError


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether `accelerate launch --use_fsdp` asks for weights to be spread.

    Args:
        accelerator: made in this process.

    Returns:
        False for one process and for DDP. True on CPUs too, where accelerate itself would ignore what it is asked.

    Raises:
        TrainingError: an engine is asked for that the training loop does not know.
    """
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise TrainingError(
            f"accelerate: expected DDP or FSDP, got {accelerator.distributed_type.value}; launch without it, or with "
            f"--use_fsdp."
        )
    return accelerator.num_processes > 1 and _is_set("ACCELERATE_USE_FSDP")


@torch.no_grad()
def training_copy(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A copy of a model to train in its stead; the model moves to main memory.

    Args:
        model: of every process; the first one's weights count, since accelerate may have the others load none.
        accelerator: with FSDP.

    Returns:
        The copy, in main memory too: sharding brings its layers to the device one by one.
    """
    for weight in [*model.parameters(), *model.buffers()]:
        shared = weight.detach().to(accelerator.device)
        torch.distributed.broadcast(shared, src=0)
        weight.data.copy_(shared)
    return copy.deepcopy(model.cpu())


def shard(objective: nn.Module, units: Collection[str], accelerator: Accelerator) -> None:
    """Spread a model's weights over the processes, in place (FSDP2, whichever version was asked for).

    Args:
        objective: in main memory, equal in every process. Its passes are those that gather the weights.
        units: class names of the modules whose weights are gathered together, such as decoder layers.
        accelerator: with FSDP. Of its settings those on resharding after the forward pass and on offloading to main
            memory count; gradients are averaged in float32.
    """
    asked = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP")
    units = asked.split(",") if asked else units
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    settings: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": _is_set("FSDP_RESHARD_AFTER_FORWARD", "true"),
        "offload_policy": CPUOffloadPolicy() if _is_set("FSDP_OFFLOAD_PARAMS") else OffloadPolicy(),
    }
    for module in [each for each in objective.modules() if type(each).__name__ in units]:
        fully_shard(module, **settings)
    fully_shard(objective, **settings)


@contextmanager
def gathered_at_last(objective: nn.Module, is_last: bool) -> Iterator[None]:
    """A pass after which gradients are exchanged only if it is a step's last."""
    sharded: Any = objective
    sharded.set_requires_gradient_sync(is_last)
    yield


@torch.no_grad()
def give_back(trained: nn.Module, model: nn.Module, device: torch.device) -> None:
    """Put a copy's weights, gathered from all processes, into the model that it was made of.

    Args:
        trained: sharded; every process must call this.
        model: in main memory; moves to `device`.
        device: where the model was before training.
    """
    learned = dict(trained.named_parameters())
    for name, weight in model.named_parameters():
        gathered = whole(learned[name])
        if weight.requires_grad:
            weight.data.copy_(gathered)
    model.to(device)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts that other processes hold, in main memory; itself where it is not spread."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, example: Tensor) -> Tensor:
    """A whole tensor, spread over the processes as another one of its shape is."""
    tensor = tensor.to(example.device)
    if not isinstance(example, DTensor):
        return tensor
    return distribute_tensor(tensor, example.device_mesh, example.placements)


def _is_set(name: str, default: str = "false") -> bool:
    return os.environ.get(name, default).lower() in ("true", "1", "yes")

"""The change that an adapter makes to each linear layer, as a product of two thin matrices."""

import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from transfuse.errors import ModelError
from transfuse.tensors.low_rank import product_svd
from transfuse.train.adapters import ADAPTER
from transfuse.train.starting_factors import Factors
from transfuse.transfer.architecture import Architecture, Module, Role

UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
)
"""Switches of PEFT's LoRA under which the change is not `scaling * B A`, or not all of it."""

_PREFIX = "base_model.model."


CarriedDelta = Factors
"""delta = up @ down, the scaling included."""


def adapter_deltas(folder: Path) -> dict[str, CarriedDelta]:
    """What a PEFT LoRA folder adds to each weight.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        Full module name in the base model to (scaling * B, A), float32. Of an embedding, whose rows are tokens,
        (scaling * A^T, B^T).

    Raises:
        ModelError: no adapter there, pickled or damaged weights, another kind than LoRA, or a variant of LoRA whose
            change is not `scaling * B A`.
    """
    config = _read_config(folder)
    path = folder / "adapter_model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as err:
        raise ModelError(
            f"{path}: expected the adapter's weights as safetensors, got: {err}; save or copy it again."
        ) from err
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?", key)
        if match is None:
            raise ModelError(
                f"{path}: expected only LoRA factors (lora_A, lora_B), found {key!r}; train the adapter on linear "
                "layers alone, without modules_to_save or biases."
            )
        name = match[1].removeprefix(_PREFIX)
        factors.setdefault(name, {})[f"{match[2] or ''}{match[3]}"] = tensor.float()
    return {name: _delta(path, name, parts, config) for name, parts in sorted(factors.items())}


def attach_deltas(model: PreTrainedModel, deltas: Mapping[str, CarriedDelta]) -> PeftModel:
    """Freeze a model and add deltas as plain LoRA: its function is the base's plus the deltas, from the start.

    No frozen branch: what is trained, and saved by `train.adapters.save_adapter`, is the whole delta.

    Args:
        model: changed in place: the named linear layers are wrapped.
        deltas: full module name to delta, at least one; each keeps a rank of its own, at a scaling of 1.

    Returns:
        The wrapped model in evaluation mode, only whose factors train.

    Raises:
        ModelError: no delta, a name that is no linear layer of the model, or another shape.
    """
    modules = dict(model.named_modules())
    for name, delta in deltas.items():
        layer = modules.get(name)
        shape = tuple(layer.weight.shape) if isinstance(layer, nn.Linear) else None
        if shape != (delta.up.shape[0], delta.down.shape[1]):
            raise ModelError(
                f"{name}: expected a linear layer of {type(model).__name__} with a weight of shape "
                f"{(delta.up.shape[0], delta.down.shape[1])}, got {shape or 'none'}; carry the delta onto this model."
            )
    ranks = {name: delta.up.shape[1] for name, delta in deltas.items()}
    if not ranks:
        raise ModelError("expected at least one delta to attach, got none; see what was dropped, and why.")
    patterns = {re.escape(name): rank for name, rank in ranks.items()}
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        rank_pattern=patterns,
        alpha_pattern=patterns,
        target_modules=list(ranks),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # a deprecation between peft and transformers
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        adapted: PeftModel = get_peft_model(model, config)  # type: ignore[assignment]
    for name, delta in deltas.items():
        wrapped: Any = model.get_submodule(name)
        with torch.no_grad():
            wrapped.lora_A[ADAPTER].weight.copy_(delta.down)
            wrapped.lora_B[ADAPTER].weight.copy_(delta.up)
    return adapted.eval()


def random_deltas_of_like_norm(
    deltas: Mapping[str, CarriedDelta], generator: torch.Generator
) -> dict[str, CarriedDelta]:
    """Random deltas of the same shapes, ranks and Frobenius norms: the control of anything carried.

    Args:
        deltas: those to be matched.
        generator: on the CPU.

    Returns:
        Gaussian factors, scaled module by module.
    """
    drawn: dict[str, CarriedDelta] = {}
    for name, delta in deltas.items():
        up = torch.randn(delta.up.shape, generator=generator).to(delta.up)
        down = torch.randn(delta.down.shape, generator=generator).to(delta.down)
        drawn[name] = CarriedDelta(up * (delta_norm(delta) / delta_norm(CarriedDelta(up, down))), down)
    return drawn


def delta_norm(delta: CarriedDelta) -> float:
    """Frobenius norm of up @ down, without forming it."""
    up, down = delta.up.cpu().double(), delta.down.cpu().double()
    return math.sqrt(max(0.0, float(((up.T @ up) * (down @ down.T)).sum())))


def joined_delta(
    architecture: Architecture,
    module: Module,
    pieces: Mapping[Role, CarriedDelta],
    max_rank: int | None,
) -> tuple[CarriedDelta, float]:
    """The delta of a physical module from those of its logical matrices.

    They are stacked: each has columns of its own in `up`, and is zero in the others' rows. Where they read the same
    directions, the true rank is smaller, and the factoring finds it.

    Args:
        architecture: of the model.
        module: which one.
        pieces: by role, at least one of the module's; the rows of others stay unchanged.
        max_rank: greatest rank; None for no limit.

    Returns:
        The delta, float32, and the share of its Frobenius norm that the limit left out.
    """
    total = sum(piece.up.shape[1] for piece in pieces.values())
    limit = max_rank or total
    if len(module.roles) == 1 and total <= limit:
        return next(iter(pieces.values())), 0.0
    blocks, start = {}, 0
    for role, piece in pieces.items():
        rank = piece.up.shape[1]
        blocks[role] = pad(piece.up, (start, total - start - rank))
        start += rank
    stacked = CarriedDelta(
        architecture.join(module, blocks), torch.cat([piece.down for piece in pieces.values()])
    )
    factors = product_svd(stacked.up.double(), stacked.down.double(), min(limit, *map(min, _shapes(stacked))))
    kept = max(1, int((factors.values > 1e-6 * factors.values[0]).sum()))
    root = factors.values[:kept].sqrt()
    joined = CarriedDelta(
        (factors.left[:, :kept] * root).float(), (root[:, None] * factors.right[:kept]).float()
    )
    norm = delta_norm(stacked)
    lost = factors.error / norm if norm else 0.0
    return joined, lost if lost > 1e-6 else 0.0


def _shapes(delta: CarriedDelta) -> tuple[tuple[int, int], tuple[int, int]]:
    return (delta.up.shape[0], delta.up.shape[1]), (delta.down.shape[0], delta.down.shape[1])


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder}: expected an adapter folder, found no adapter_config.json; check the path."
        )
    if not (folder / "adapter_model.safetensors").is_file():
        came = "adapter_model.bin, which is a pickle" if (folder / "adapter_model.bin").is_file() else "none"
        raise ModelError(
            f"{folder}: expected adapter_model.safetensors, found {came}; save it as safetensors."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ModelError(f"{path}: the adapter is damaged ({err}); copy or train it again.") from err
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise ModelError(
            f"{path}: expected an adapter of peft_type LORA, got {kind!r}; train a LoRA adapter."
        )
    present = [switch for switch in UNSUPPORTED if config.get(switch)]
    if present:
        raise ModelError(
            f"{path}: expected plain LoRA, whose change is scaling * B A; {', '.join(present)} is set, which changes "
            "the weights in another way. Train the adapter without it."
        )
    return config


def _delta(path: Path, name: str, parts: Mapping[str, Tensor], config: Mapping[str, Any]) -> CarriedDelta:
    is_embedding = "embedding_A" in parts
    a, b = (parts.get(f"embedding_{side}" if is_embedding else side) for side in "AB")
    if a is None or b is None or len(parts) != 2 or a.shape[0] != b.shape[1]:
        shapes = {side: tuple(part.shape) for side, part in parts.items()}
        raise ModelError(
            f"{path}: {name}: expected one A [rank, in] and one B [out, rank], got {shapes}; save the adapter again."
        )
    rank = a.shape[0]
    set_rank, alpha = (
        _of_pattern(config.get(pattern), name, config.get(default))
        for pattern, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    if set_rank != rank or not isinstance(alpha, int | float):
        raise ModelError(
            f"{path}: {name}: expected rank {set_rank} and a numeric alpha by adapter_config.json, "
            f"got factors of rank {rank} and alpha {alpha!r}; both files must be of one adapter."
        )
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return CarriedDelta(scaling * a.T, b.T) if is_embedding else CarriedDelta(scaling * b, a)


def _of_pattern(patterns: Any, name: str, default: Any) -> Any:
    """A module's own value: of the first pattern that matches the end of its name, as PEFT takes them."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return value
    return default

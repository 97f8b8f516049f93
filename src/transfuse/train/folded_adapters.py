"""An adapter with starting factors becomes one plain PEFT LoRA on the untouched base."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Embedding
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from transfuse.errors import TrainingError
from transfuse.io.files import atomic_folder
from transfuse.tensors.low_rank import LowRank, product_svd
from transfuse.train.adapters import ADAPTER
from transfuse.train.factor_files import peft_weights
from transfuse.train.starting_factors import Factors, learned_delta, lora_layers


@dataclass(frozen=True, slots=True)
class FoldReport:
    """What folding kept."""

    rank: int
    """Rank of the saved adapter, the same in every module."""
    relative_error: float
    """Frobenius norm of what was cut off, over all modules, as a share of the learned differences' own; 0 where
    nothing was."""
    worst_module: str
    """Module with the greatest relative error."""
    relative_errors: dict[str, float]
    """The share cut off, by module."""


def save_folded_adapter(
    model: PeftModel, folder: Path, base_model: str, *, max_rank: int | None = None
) -> FoldReport:
    """Write what a model with starting factors learned as a standard PEFT folder, whole or not at all.

    Each module's B A - B0 A0 is one product of twice the rank; it is written as balanced factors with scaling 1,
    embeddings and output head included.

    Args:
        model: as `attach_starting_factors` made it, trained or not.
        folder: where to write.
        base_model: reference of the untouched base, kept in `adapter_config.json`.
        max_rank: cut down to the strongest directions; none keeps everything, at twice the rank.

    Returns:
        The rank written and what was cut off.

    Raises:
        TrainingError: `max_rank` is below 1, or the factors are not finite.
        RunFolderError: the folder cannot be written, or the disk is full.
    """
    if max_rank is not None and max_rank < 1:
        raise TrainingError(f"max_rank: expected 1 or more, got {max_rank}; leave it out to keep everything.")
    layers = lora_layers(model)
    deltas = {name: learned_delta(layer) for name, layer in layers.items()}
    full_rank = max(delta.up.shape[1] for delta in deltas.values())
    rank = min(full_rank, max_rank or full_rank)
    weights: dict[str, Tensor] = {}
    kept: dict[str, LowRank] = {}
    for name, delta in deltas.items():
        if not all(part.isfinite().all() for part in delta):
            raise TrainingError(
                f"{name}: expected finite factors, got NaN or infinity; train again at a lower learning rate."
            )
        kept[name] = product_svd(delta.up, delta.down, max_rank=rank)
        weights.update(
            peft_weights(name, _balanced(kept[name], rank), is_embedding=isinstance(layers[name], Embedding))
        )
    config = copy.deepcopy(model.peft_config[ADAPTER])
    config.r = config.lora_alpha = rank  # type: ignore[attr-defined] - a LoraConfig
    config.base_model_name_or_path = base_model
    config.inference_mode = True
    with atomic_folder(folder) as temporary:
        save_file(weights, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(temporary))
    return _report(rank, kept)


def _balanced(kept: LowRank, rank: int) -> Factors:
    """Factors of equal norms, filled up with zeros to a rank that is the same in every module."""
    root, missing = kept.values.sqrt(), rank - len(kept.values)
    up = functional.pad(kept.left * root, (0, missing))
    down = functional.pad(root[:, None] * kept.right, (0, 0, 0, missing))
    return Factors(up.float(), down.float())


def _report(rank: int, kept: dict[str, LowRank]) -> FoldReport:
    cut = torch.tensor([each.error for each in kept.values()], dtype=torch.float64)
    norms = torch.stack([each.values.double().norm() for each in kept.values()]).cpu().hypot(cut)
    # A module that learned nothing has nothing that could be cut off.
    shares = torch.where(norms > 0, cut / norms, 0.0).tolist()
    relative_errors = dict(zip(kept, shares, strict=True))
    total = float(norms.norm())
    return FoldReport(
        rank=rank,
        relative_error=float(cut.norm()) / total if total else 0.0,
        worst_module=max(relative_errors, key=relative_errors.__getitem__),
        relative_errors=relative_errors,
    )

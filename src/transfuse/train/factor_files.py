"""Low-rank factors as a PEFT adapter folder."""

from collections.abc import Collection, Mapping
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from transfuse.io.files import atomic_folder
from transfuse.train.starting_factors import Factors


def save_factors(
    factors: Mapping[str, Factors], folder: Path, base_model: str, *, embeddings: Collection[str] = ()
) -> None:
    """Write factors as a standard PEFT folder of scaling 1, whole or not at all.

    Loaded with plain PEFT it adds every module's `up @ down` to the base.

    Args:
        factors: by full module name, all of one rank.
        folder: where to write.
        base_model: reference of the untouched base, kept in `adapter_config.json`.
        embeddings: names of those modules that are embeddings.

    Raises:
        RunFolderError: the folder cannot be written, or the disk is full.
    """
    rank = next(iter(factors.values())).up.shape[1]
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(factors),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        inference_mode=True,
    )
    weights: dict[str, Tensor] = {}
    for name, pair in factors.items():
        weights |= peft_weights(name, pair, is_embedding=name in embeddings)
    with atomic_folder(folder) as temporary:
        save_file(weights, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(temporary))


def peft_weights(name: str, factors: Factors, *, is_embedding: bool) -> dict[str, Tensor]:
    """A module's factors under the names that PEFT's files give them."""
    prefix = f"base_model.model.{name}"
    if is_embedding:  # PEFT keeps these transposed
        return {
            f"{prefix}.lora_embedding_A": factors.up.float().T.contiguous(),
            f"{prefix}.lora_embedding_B": factors.down.float().T.contiguous(),
        }
    return {
        f"{prefix}.lora_A.weight": factors.down.float().contiguous(),
        f"{prefix}.lora_B.weight": factors.up.float().contiguous(),
    }

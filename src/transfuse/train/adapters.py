"""LoRA adapters by PEFT: attach, save, load onto the untouched base model."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from transfuse.errors import ModelError, TrainingError
from transfuse.io.files import atomic_folder
from transfuse.train.settings import LoraSettings

ADAPTER = "default"
"""PEFT's name of the one adapter on a model."""


def attach_lora(model: PreTrainedModel, settings: LoraSettings) -> PeftModel:
    """Freeze a model and add LoRA factors in float32; at the start the function is the model's own.

    Args:
        model: changed in place: its linear layers are wrapped.
        settings: rank, scaling and which modules.

    Returns:
        The wrapped model, only whose factors train.

    Raises:
        TrainingError: none of the named modules is in the model.
    """
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type] - peft divides it; a float is fine
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        task_type="CAUSAL_LM",
    )
    try:
        with _peft_warnings():
            return get_peft_model(model, config)  # type: ignore[return-value]
    except ValueError as err:
        raise TrainingError(f"train.lora.targets: {settings.targets!r} do not fit the model: {err}") from err


def save_adapter(model: PeftModel, folder: Path, base_model: str) -> None:
    """Write a standard PEFT folder, whole or not at all.

    Args:
        model: with one active adapter.
        folder: where to write.
        base_model: reference of the untouched base, kept in `adapter_config.json`.

    Raises:
        TrainingError: the adapter has starting factors.
        RunFolderError: the folder cannot be written, or the disk is full.
    """
    if any(hasattr(module, "frozen_start") for module in model.modules()):
        raise TrainingError(
            f"{folder}: this adapter started at given factors, whose frozen part would be lost; write it with "
            f"save_folded_adapter."
        )
    with atomic_folder(folder) as temporary:
        model.peft_config[ADAPTER].base_model_name_or_path = base_model
        # The base's weights are untouched, embeddings included: nothing but the factors is stored.
        model.save_pretrained(str(temporary), safe_serialization=True, save_embedding_layers=False)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Put a saved adapter onto its base model.

    Args:
        model: the untouched base.
        folder: a PEFT folder with safetensors weights.

    Returns:
        The adapted model, in evaluation mode.

    Raises:
        ModelError: no adapter there, pickled weights, a damaged file, or an adapter of another model.
    """
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not config.is_file():
        raise ModelError(
            f"{folder}: expected an adapter folder, found no adapter_config.json; check the path."
        )
    if not weights.is_file():
        came = "adapter_model.bin, which is a pickle" if (folder / "adapter_model.bin").is_file() else "none"
        raise ModelError(
            f"{folder}: expected adapter_model.safetensors, found {came}; save it as safetensors."
        )
    try:
        if "peft_type" not in json.loads(config.read_text(encoding="utf-8")):
            raise ValueError("adapter_config.json names no peft_type")
        with safe_open(weights, framework="pt") as opened:
            names = list(opened.keys())
    except (ValueError, SafetensorError) as err:
        raise ModelError(f"{folder}: the adapter is damaged ({err}); copy or train it again.") from err
    try:
        with _peft_warnings():
            adapted: PeftModel = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError, KeyError) as err:
        first = str(err).strip().splitlines()
        raise ModelError(
            f"{folder}: the adapter does not fit the model ({first[min(1, len(first) - 1)].strip()}); "
            f"give the base model that it was trained on."
        ) from err
    if not names:
        raise ModelError(f"{folder}: the adapter holds no weights; train it again.")
    return adapted.eval()


def merge_adapter_weights(model: PeftModel) -> PreTrainedModel:
    """Add an adapter to its base's weights, in place.

    Args:
        model: the base with its adapter. Where output head and embeddings share one weight and the adapter changes
            either, they are separated first, and the config says so: one weight cannot hold both differences.

    Returns:
        The base model itself, without adapter layers.
    """
    base: Any = model.get_base_model()
    outer = [base.get_input_embeddings(), base.get_output_embeddings()]
    embedding, head = (getattr(layer, "base_layer", layer) for layer in outer)
    if any(isinstance(layer, LoraLayer) for layer in outer) and head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = False
    return model.merge_and_unload()  # type: ignore[operator, return-value] - forwarded to the tuner


@contextmanager
def _peft_warnings() -> Iterator[None]:
    """Keep back a deprecation that a user can do nothing about, and a warning that `merge_adapter_weights` settles."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`")
        yield

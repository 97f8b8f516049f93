"""Tiny configurations and random models of every known family, and teachers in which a student is hidden."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from transfuse.transfer.architecture import AXES, Architecture, Role

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LARGE = {
    **SMALL,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 12,
}
"""More of everything: four groups of three heads in the place of two groups of two."""

HALF_ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
EXTRAS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama biased": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 4},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True},
    "gemma": {},
    "gemma2": {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 4, "query_pre_attn_scalar": 8, "layer_types": None},
    "phi3": {"rope_parameters": HALF_ROTARY},
    "gpt_neox": {"rope_parameters": HALF_ROTARY},
    "olmo2": {},
    "smollm3": {"tie_word_embeddings": False},
    "granite": {},
}
"""What each needs beside the sizes; a word after the family tells variants apart."""


def tiny_config(variant: str, is_large: bool = False, **settings: Any) -> PreTrainedConfig:
    """A configuration of a family."""
    family = variant.split()[0]
    sizes = dict(LARGE if is_large else SMALL)
    if family == "gpt_neox":  # heads are hidden / n_heads wide, each with keys and values of its own
        sizes |= {"num_attention_heads": 8, "hidden_size": 96} if is_large else {}
        del sizes["head_dim"], sizes["num_key_value_heads"]
    return AutoConfig.for_model(family, **{**sizes, **EXTRAS[variant], **settings})


def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model whose every parameter is drawn, biases and norms too, so that none can be left out unnoticed."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def role_matrices(architecture: Architecture, weights: dict[str, Tensor], layer: int) -> dict[Role, Tensor]:
    """The logical matrices of a layer."""
    found: dict[Role, Tensor] = {}
    for module in architecture.modules:
        found |= architecture.split(module, weights[architecture.module_name(layer, module) + ".weight"])
    return found


def hidden_student(
    student: Architecture, weights: dict[str, Tensor], teacher: Architecture, layers: list[int], seed: int = 0
) -> dict[str, Tensor]:
    """Weights of a teacher in which a student lies at drawn places, zeros (in norms: noise) around it.

    The places of the residual stream, groups, heads, neurons and of dimensions that are not rotated are shuffled.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(n: int, n_kept: int) -> Tensor:
        return torch.randperm(n, generator=generator)[:n_kept]

    def placed(shape: tuple[int, ...], part: Tensor, *places: Tensor) -> Tensor:
        # In vectors noise around the part: a norm's other entries have no reason to be zero.
        whole = torch.zeros(shape) if len(shape) > 1 else torch.randn(shape, generator=generator)
        whole[torch.meshgrid(*places, indexing="ij")] = part
        return whole

    residual = drawn(teacher.hidden, student.hidden)
    tokens = torch.arange(teacher.vocab)
    found = {}
    for module in (teacher.embedding,) if teacher.is_tied else (teacher.embedding, teacher.head):
        name = f"{module.name}.weight"
        found[name] = placed((teacher.vocab, teacher.hidden), weights[name], tokens, residual)
    for norm in teacher.final_norms:
        found[norm.name] = placed((teacher.hidden,), weights[norm.name], residual)
    for layer in range(teacher.n_layers):
        if layer not in layers:
            for module in teacher.modules:
                name = teacher.module_name(layer, module)
                found[f"{name}.weight"] = torch.zeros(teacher.module_shape(module))
                if module.bias:
                    found[f"{name}.bias"] = torch.zeros(teacher.module_shape(module)[0])
            for norm in teacher.norms:
                found[f"{teacher.layers}.{layer}.{norm.name}"] = torch.zeros(teacher.size(norm.axis))
            continue
        places = _places(student, teacher, drawn) | {"residual": residual}
        number = layers.index(layer)
        for module in teacher.modules:
            name, old = teacher.module_name(layer, module), student.module_name(number, module)
            parts, biases = {}, {}
            for role, part in student.split(module, weights[f"{old}.weight"]).items():
                on_rows, on_columns = (places.get((role, axis), places.get(axis)) for axis in AXES[role])
                parts[role] = placed(teacher.shape(role), part, on_rows, on_columns)
                if module.bias:
                    bias = student.split(module, weights[f"{old}.bias"])[role]
                    biases[role] = placed((teacher.shape(role)[0],), bias, on_rows)
            found[f"{name}.weight"] = teacher.join(module, parts)
            if module.bias:
                found[f"{name}.bias"] = teacher.join(module, biases)
        for norm in teacher.norms:
            place = places["residual"] if norm.axis == "residual" else places[(norm.beside, "heads")]
            if norm.axis == "kv":
                place = places[("key", "kv")]
            if norm.axis == "head_dim":
                place = place[: student.head_dim] % teacher.head_dim
            vector = weights[f"{student.layers}.{number}.{norm.name}"]
            found[f"{teacher.layers}.{layer}.{norm.name}"] = placed((teacher.size(norm.axis),), vector, place)
    return found


def _places(student: Architecture, teacher: Architecture, drawn: Any) -> dict[Any, Tensor]:
    """Where a student's neurons and heads lie in a teacher's layer."""
    size, kept_size = teacher.n_heads // teacher.n_kv_heads, student.n_heads // student.n_kv_heads
    half, kept_half, width = teacher.rotary_dim // 2, student.rotary_dim // 2, teacher.head_dim

    def turned_dims() -> Tensor:
        pairs = drawn(half, kept_half).sort().values  # their order is their speed
        passing = 2 * half + drawn(width - 2 * half, student.head_dim - 2 * kept_half)
        return torch.cat([pairs, pairs + half, passing])

    shared = turned_dims() if teacher.has_head_norms else None
    query, key, value, output = [], [], [], []
    for group in drawn(teacher.n_kv_heads, student.n_kv_heads).tolist():
        turned = turned_dims() if shared is None else shared
        plain = drawn(width, student.head_dim)
        key.append(group * width + turned)
        value.append(group * width + plain)
        for head in drawn(size, kept_size).tolist():
            query.append((group * size + head) * width + turned)
            output.append((group * size + head) * width + plain)
    return {
        "neurons": drawn(teacher.n_neurons, student.n_neurons),
        ("query", "heads"): torch.cat(query),
        ("key", "kv"): torch.cat(key),
        ("key", "heads"): torch.cat(key),
        ("value", "kv"): torch.cat(value),
        ("output", "heads"): torch.cat(output),
    }

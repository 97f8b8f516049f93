"""Tiny random students of several families, and factors to start from, as strong as the students' weights."""

from collections.abc import Callable

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from transfuse.train.starting_factors import Factors

RANK = 4
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # wide, so that every token seen matters
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
STUDENTS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=True)),
    "gemma3": lambda: Gemma3ForCausalLM(  # tied, and its embeddings multiply what they look up
        Gemma3TextConfig(
            **GROUPED, head_dim=8, sliding_window=32, layer_types=["sliding_attention", "full_attention"]
        )
    ),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**GROUPED)),  # fused qkv and gate_up
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),  # fused qkv, biases
}
TOKENS = torch.tensor([[3, 17, 41, 5, 5, 0, 63, 28], [9, 60, 2, 33, 1, 12, 7, 50]])


def student(name: str = "llama", seed: int = 0) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return STUDENTS[name]().eval()


def module_names(model: PreTrainedModel) -> list[str]:
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def random_factors(model: PreTrainedModel, rank: int = RANK, seed: int = 1) -> dict[str, Factors]:
    """Of every linear layer and embedding, output head included."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name in module_names(model):
        rows, columns = model.get_submodule(name).weight.shape
        up = torch.randn(rows, rank, generator=generator) * 0.3
        factors[name] = Factors(up, torch.randn(rank, columns, generator=generator) * 0.3)
    return factors


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}

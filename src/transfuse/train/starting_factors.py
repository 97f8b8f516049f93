"""LoRA that starts at given factors while the model keeps its own function: W* = W - B0 A0 + B A.

The base is never changed. Each adapted layer holds a frozen copy (B0, A0) of the factors that its trained ones
(B, A) start from, and adds scaling * ((B - B0) A + B0 (A - A0)) x, the same by algebra. At the start both brackets
are zero to the bit, so the function is the base's own; subtracting two large products from the sum would leave their
rounding errors, and in bfloat16 would round small steps of the factors away.
"""

import difflib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora.layer import Embedding, LoraLayer, LoraVariant
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from transfuse.errors import TrainingError
from transfuse.train.adapters import ADAPTER, attach_lora
from transfuse.train.settings import LoraSettings


class Factors(NamedTuple):
    """A matrix of low rank, up @ down, in the orientation of a module's weight."""

    up: Float[Tensor, "rows rank"]
    """Rows are outputs (of an embedding: tokens)."""
    down: Float[Tensor, "rank columns"]
    """Columns are inputs (of an embedding: the hidden size)."""


@final
class FrozenStart(nn.Module):
    """Where a layer's factors started; never trained, never saved with an adapter."""

    def __init__(self, up: Float[Tensor, "rows rank"], down: Float[Tensor, "rank columns"]) -> None:
        super().__init__()
        # Parameters and not buffers: data-parallel engines send buffers around at every pass.
        self.up = nn.Parameter(up.detach().clone(), requires_grad=False)
        self.down = nn.Parameter(down.detach().clone(), requires_grad=False)


def attach_starting_factors(
    model: PreTrainedModel,
    settings: LoraSettings,
    factors: Mapping[str, Factors],
    *,
    also: Collection[str] = (),
) -> PeftModel:
    """Freeze a model and add LoRA that starts at the given factors; the function is the model's own to the bit.

    The scaling alpha / rank is divided out of both factors alike, so that balanced ones stay balanced. Dropout
    acts on the trained branch alone, and not in embeddings.

    Args:
        model: changed in place: the named modules are wrapped; its weights are not touched.
        settings: rank, scaling and dropout; `targets` is not read.
        factors: by full module name, such as `model.layers.0.self_attn.q_proj`; each of the settings' rank.
        also: further modules, by full name, that get ordinary LoRA, which starts at zero.

    Returns:
        The wrapped model, only whose factors train.

    Raises:
        TrainingError: no factors; no such module; a module that is neither linear nor an embedding; factors
            that do not fit their module or the rank, or are not finite; a kind of quantised layer in which PEFT
            leaves no room for a frozen branch.
    """
    adapted = _attach(model, settings, factors, also)
    for name, layer in lora_layers(adapted).items():
        if name in factors:
            _freeze_start(name, layer)
    return adapted


def lora_layers(model: PeftModel) -> dict[str, LoraLayer]:
    """The adapted layers by the names that their modules have in the base model."""
    named = model.get_base_model().named_modules()
    return {name: layer for name, layer in named if isinstance(layer, LoraLayer)}


def student_module(model: PreTrainedModel, name: str) -> nn.Module:
    """A module by its full name; `TrainingError` where there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError as err:
        likely = difflib.get_close_matches(name, [each for each, _ in model.named_modules()], 1, cutoff=0)
        raise TrainingError(
            f"{name}: expected a module of the student, found none of this name; the nearest is {likely[0]!r}."
        ) from err


@torch.no_grad()
def learned_delta(layer: LoraLayer) -> Factors:
    """What a layer adds to its base weight at present, exactly: B A - B0 A0, scaling included, in float64.

    Args:
        layer: with starting factors, or with ordinary LoRA.

    Returns:
        Factors of twice the rank in the orientation of the weight; of the rank itself for ordinary LoRA.
    """
    up, down = (part.double() for part in _trained_factors(layer))
    start = _start_of(layer)
    if start is not None:
        up_0, down_0 = start.up.double(), start.down.double()
        up, down = torch.cat([up - up_0, up_0], dim=1), torch.cat([down, down - down_0])
    return Factors(layer.scaling[ADAPTER] * up, down)


@final
class _FromStart(LoraVariant):
    """How PEFT runs and merges a layer with starting factors."""

    def supports_lora_conversion(self) -> bool:
        """No: PEFT's conversion reads the trained factors alone."""
        return False

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Nothing: the frozen copies are set after the factors are."""

    @staticmethod
    def forward(module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """The base layer's result and the learned difference."""
        difference = _embedding_difference if isinstance(module, Embedding) else _linear_difference
        return result + difference(module, x)

    @staticmethod
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """A weight with the learned difference added."""
        return orig_weight + _matrix(module).to(orig_weight)

    @staticmethod
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        """Add the learned difference to a weight."""
        orig_weight.data += _matrix(module).to(orig_weight)

    @staticmethod
    def unmerge(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """A weight with the learned difference taken off."""
        return orig_weight - _matrix(module).to(orig_weight)


def _linear_difference(layer: Any, x: Tensor) -> Tensor:
    down, up, start = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.frozen_start
    dropout = layer.lora_dropout[ADAPTER]
    if layer.training and isinstance(dropout, nn.Dropout):
        inner = functional.linear(dropout(x), down)
        inner = torch.cat([inner, inner - functional.linear(x, start.down)], dim=-1)
    else:
        inner = functional.linear(x, torch.cat([down, down - start.down]))
    return functional.linear(inner, layer.scaling[ADAPTER] * torch.cat([up - start.up, start.up], dim=1))


def _embedding_difference(layer: Any, token_ids: Tensor) -> Tensor:
    up, down = _trained_factors(layer)
    start, base = layer.frozen_start, layer.get_base_layer()

    def rows(table: Tensor) -> Tensor:
        # As PEFT has it: the padding token's row gets no gradient.
        return functional.embedding(token_ids, table, padding_idx=base.padding_idx)

    # Rows are picked before they are subtracted: a batch names few of the vocabulary's tokens.
    rows_0 = rows(start.up)
    inner = torch.cat([rows(up) - rows_0, rows_0], dim=-1)
    added = inner @ (layer.scaling[ADAPTER] * torch.cat([down, down - start.down]))
    scale = getattr(base, "embed_scale", None)  # Gemma's embeddings multiply what they look up
    return added if scale is None else added * torch.as_tensor(scale).to(added)


def _trained_factors(layer: LoraLayer) -> Factors:
    if ADAPTER in layer.lora_embedding_A:  # PEFT keeps an embedding's factors transposed
        return Factors(layer.lora_embedding_A[ADAPTER].T, layer.lora_embedding_B[ADAPTER].T)
    up, down = layer.lora_B[ADAPTER].weight, layer.lora_A[ADAPTER].weight
    return Factors(up, down)  # type: ignore[arg-type] - submodules are typed as tensors or modules


def _start_of(layer: LoraLayer) -> FrozenStart | None:
    return getattr(layer, "frozen_start", None)


def _matrix(layer: LoraLayer) -> Float[Tensor, "rows columns"]:
    delta = learned_delta(layer)
    return delta.up @ delta.down


@torch.no_grad()
def _attach(
    model: PreTrainedModel, settings: LoraSettings, factors: Mapping[str, Factors], also: Collection[str]
) -> PeftModel:
    if not factors:
        raise TrainingError("expected starting factors of at least one module, got none; extract some first.")
    for name, pair in factors.items():
        _refuse_misfit(name, pair, _shape_of(model, name), settings.rank)
    for name in also:
        _shape_of(model, name)
    targets = sorted({*factors, *also})
    adapted = attach_lora(model, settings.model_copy(update={"targets": targets}))
    for name, layer in lora_layers(adapted).items():
        if name in factors:
            divisor = layer.scaling[ADAPTER] ** 0.5
            for weight, given in zip(_trained_factors(layer), factors[name], strict=True):
                weight.copy_(given / divisor)
    return adapted


def _freeze_start(name: str, layer: Any) -> None:
    if "lora_variant" not in type(layer).forward.__code__.co_names:
        raise TrainingError(
            f"{name}: expected a layer that PEFT can run with a frozen branch, got {type(layer).__name__}; "
            f"load the student without quantisation, or quantised by bitsandbytes, GPTQ, HQQ or torchao."
        )
    layer.frozen_start = FrozenStart(*_trained_factors(layer))
    layer.lora_variant[ADAPTER] = _FromStart()


def _shape_of(model: PreTrainedModel, name: str) -> tuple[int, int]:
    """Rows and columns of a module's weight, also where it is packed."""
    module: Any = student_module(model, name)
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.out_features), int(module.in_features)
    raise TrainingError(
        f"{name}: expected a linear layer or an embedding, got {type(module).__name__}; leave it out."
    )


def _refuse_misfit(name: str, factors: Factors, shape: tuple[int, int], rank: int) -> None:
    up, down = tuple(factors.up.shape), tuple(factors.down.shape)
    if (up[0], down[1]) != shape:
        raise TrainingError(
            f"{name}: factors are of {(up[0], down[1])}, student weight is {shape}; "
            f"choose a block of the student's size first."
        )
    if up[1] != rank or down[0] != rank:
        raise TrainingError(
            f"{name}: factors have rank {up[1]} and {down[0]}, train.lora.rank is {rank}; "
            f"extract factors of that rank, or set train.lora.rank to theirs."
        )
    if not all(part.isfinite().all() for part in factors):
        raise TrainingError(
            f"{name}: expected finite factors, got NaN or infinity; check the teacher's weights."
        )

"""Sensitivity of a teacher's weights: the sum over samples of |weight x gradient of that sample's loss|.

The absolute value stands inside the sum, so gradients of a batch do not do: the gradient of each sample is formed on
its own, from a matrix's input and the gradient at its output. As |W * G| = |W| * |G|, what is accumulated is |G|.

Source: Zhong et al. 2024, arXiv:2310.11451, section 3. Differs: matrices only (linear layers of the decoder layers,
embedding, head); norms and biases, a tiny share of a layer's sum, are not scored.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from transfuse.errors import ModelError, TrainingError
from transfuse.transfer.absolute_gradients import add_absolute_gradients
from transfuse.transfer.samples import FittedSamples, Sample
from transfuse.types import Dropped


class ModelNames(NamedTuple):
    """Where a model keeps what is scored."""

    layers: str
    """The list of decoder layers: `model.layers`."""
    embedding: str
    """`model.embed_tokens`."""
    head: str
    """`lm_head`."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Prefixes of parameter names in memory, and what stands in checkpoint files in their place."""


class LayerScores(NamedTuple):
    """One layer's weights and their sensitivity."""

    layer: int | None
    """From 0; None for embedding and head, one entry (the embedding's) where they are one matrix."""
    weights: dict[str, Tensor]
    """By module name within the layer (`self_attn.q_proj`); of embedding and head, the full name."""
    scores: dict[str, Tensor]
    """Same names and shapes, float32."""


OnLayer = Callable[[LayerScores], None]
"""Given each layer, the top one first, then embedding and head together; what it keeps is its own affair."""

OnProgress = Callable[[int, int, str], None]
"""Number done, number in all, and what is counted."""


class SensitivitySummary(NamedTuple):
    """What an engine did."""

    n_samples: int
    """That gave a loss."""
    n_tokens: int
    n_answer_tokens: int
    n_cut: int
    """Samples that lost the beginning of their prompt to fit the context."""
    dropped: list[Dropped]
    losses: list[float]
    """Mean nats over the answer's tokens, of each sample kept, in the order given."""
    bytes_read: int
    """Of weights, from disk, in this call; 0 where the model was in memory."""
    seconds: float
    """Of this call."""


def summary_of(
    fitted: FittedSamples, losses: Mapping[int, float], *, bytes_read: int, seconds: float
) -> SensitivitySummary:
    """The summary of samples with their losses by sample number."""
    return SensitivitySummary(
        n_samples=len(fitted.samples),
        n_tokens=sum(len(sample.token_ids) for sample in fitted.samples),
        n_answer_tokens=sum(sample.n_answer for sample in fitted.samples),
        n_cut=fitted.n_cut,
        dropped=fitted.dropped,
        losses=[losses[sample.number] for sample in fitted.samples],
        bytes_read=bytes_read,
        seconds=seconds,
    )


def submodule(model: nn.Module, name: str, kind: type[nn.Module]) -> Any:
    """A part of a model by name; a ModelError where there is none of that kind."""
    try:
        found = model.get_submodule(name)
    except AttributeError:
        found = None
    if not isinstance(found, kind):
        raise ModelError(
            f"{type(model).__name__}: expected a {kind.__name__} named {name!r}, got "
            f"{'none' if found is None else type(found).__name__}; this architecture is not known."
        )
    return found


def layer_linears(layer: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside a decoder layer, by name within it."""
    return {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}


def refuse_unscored_matrices(model: PreTrainedModel, names: ModelNames) -> None:
    """Refuse a model with matrices that no engine scores, rather than leave them out silently.

    Args:
        model: a causal language model; its weights may be on the meta device.
        names: where the scored parts are.

    Raises:
        ModelError: a parameter of two or more dimensions is neither a linear layer's weight within the layers nor
            embedding nor head, or a weight is quantised.
    """
    layers = submodule(model, names.layers, nn.ModuleList)
    scored = {f"{names.embedding}.weight", f"{names.head}.weight"}
    for n_layer, layer in enumerate(layers):
        scored |= {f"{names.layers}.{n_layer}.{name}.weight" for name in layer_linears(layer)}
    config: Any = model.config
    has_other_inputs = config.get_text_config() is not config  # pictures: their part takes none in the loss
    for name, weight in model.named_parameters(remove_duplicate=False):
        if has_other_inputs and name not in scored and not name.startswith(f"{names.layers}."):
            continue
        if name in scored and not weight.is_floating_point():
            raise ModelError(
                f"{name}: expected floating-point weights, got {weight.dtype}; dequantise first."
            )
        if weight.dim() > 1 and name not in scored:
            raise ModelError(
                f"{name}: expected only linear layers, embedding and head to have matrices, got one of shape "
                f"{tuple(weight.shape)}; sensitivity of this architecture is not known."
            )


def refuse_infinite(name: str, samples: Sequence[Sample], culprit: int | None) -> None:
    """Raise a TrainingError that names parameter and sample, where a sample was found to be at fault."""
    if culprit is not None:
        raise TrainingError(
            f"{name}.weight: the gradient of sample {samples[culprit].number} is NaN or infinite; "
            "compute in float32, or leave that sample out."
        )


@final
class GradientSums:
    """Adds up |gradient| of linear layers, sample by sample, while a backward pass runs through them."""

    def __init__(self, linears: Mapping[str, nn.Linear], prefix: str) -> None:
        self._linears = linears
        self._prefix = prefix
        self.totals = {
            name: torch.zeros(linear.weight.shape, dtype=torch.float32, device=linear.weight.device)
            for name, linear in linears.items()
        }

    @contextmanager
    def watching(self, samples: Sequence[Sample]) -> Iterator[None]:
        """While in the block, a forward and a backward pass of these samples add to the totals.

        Args:
            samples: rows of the pass, padded on the right.

        Yields:
            Nothing.
        """
        met: set[str] = set()
        handles = [
            linear.register_forward_hook(partial(self._forward, name, samples, met))
            for name, linear in self._linears.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def scores(self, name: str) -> Tensor:
        """|weight| x total, in the total's own memory; the total is given up."""
        return self.totals.pop(name).mul_(self._linears[name].weight.abs())

    def _forward(
        self,
        name: str,
        samples: Sequence[Sample],
        met: set[str],
        _: nn.Module,
        args: tuple[Any, ...],
        output: Tensor,
    ) -> None:
        given: Tensor = args[0].detach()
        if name in met or given.dim() != 3 or len(given) != len(samples):
            raise ModelError(
                f"{self._prefix}{name}: expected one use in a pass, on {len(samples)} rows, got "
                f"{'a second one' if name in met else f'input of shape {tuple(given.shape)}'}; "
                "sensitivity of this architecture is not known."
            )
        met.add(name)
        output.register_hook(partial(self._backward, name, samples, given))

    def _backward(self, name: str, samples: Sequence[Sample], given: Tensor, gradient: Tensor) -> None:
        lengths = [len(sample.token_ids) for sample in samples]
        gradient = gradient.contiguous()
        culprit = add_absolute_gradients(
            self.totals[name],
            [row[:length] for row, length in zip(gradient, lengths, strict=True)],
            [row[:length] for row, length in zip(given, lengths, strict=True)],
        )
        refuse_infinite(self._prefix + name, samples, culprit)

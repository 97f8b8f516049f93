"""A model of which at most one layer is in memory: its own code runs, over weights that come and go.

Whatever a model does between embedding and first layer, around its layers (masks, positions) and after the last one
(norm, capped logits) is done by its own forward pass, with the layers replaced by recorders or by given values.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from transfuse.errors import ModelError
from transfuse.io.quiet import quiet
from transfuse.transfer.blocked_linear import blocked_linear
from transfuse.transfer.embedding_rows import SampleRows, rows_per_sample
from transfuse.transfer.layer_weights import WeightFiles
from transfuse.transfer.samples import SamplePass
from transfuse.transfer.sensitivity import ModelNames, refuse_unscored_matrices, submodule

_COMPARED_ROWS = 64


class LayerCall(NamedTuple):
    """What a model hands a layer beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Embedded(NamedTuple):
    """A pass as it enters the layers."""

    first_input: Float[Tensor, "batch pos hidden"]
    calls: list[LayerCall]
    """Of every layer."""
    rows: SampleRows


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration in a model folder; a ModelError where there is none of a known model."""
    try:
        with quiet():
            config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as err:
        raise ModelError(
            f"{folder}: expected the config.json of a causal language model, got: {err}"
        ) from err
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{folder}: expected floating-point weights, got quantised ones; give the model as it was before."
        )
    return config


@final
class StreamedTeacher:
    """A model on disk, run layer by layer."""

    def __init__(
        self,
        config: PreTrainedConfig,
        weights: WeightFiles,
        names: ModelNames,
        *,
        dtype: torch.dtype,
        attention: str | None,
        device: torch.device,
    ) -> None:
        """Build the model without its weights, and read the few that are neither in layers nor a vocabulary's.

        Args:
            config: of the model.
            weights: its files.
            names: where its layers, embedding and head are.
            dtype: type to compute in.
            attention: transformers' name of an attention implementation; None leaves it to transformers.
            device: where to compute.

        Raises:
            ModelError: the model is not one, or its files do not fit it.
        """
        self.weights, self.names = weights, names
        self._dtype, self._device = dtype, device
        self.model = _skeleton(config, dtype, attention, weights.folder)
        refuse_unscored_matrices(self.model, names)
        self.layers: nn.ModuleList = submodule(self.model, names.layers, nn.ModuleList)
        self.embedding: nn.Embedding = submodule(self.model, names.embedding, nn.Embedding)
        self.head: nn.Linear = submodule(self.model, names.head, nn.Linear)
        self.is_tied = self._tied()
        self._empty = [dict(layer.state_dict()) for layer in self.layers]
        self._resident: int | None = None
        self._load_small()

    @property
    def head_weight(self) -> str:
        """The parameter that the head multiplies with."""
        own = f"{self.names.head}.weight"
        return f"{self.names.embedding}.weight" if self.is_tied and not self.weights.has(own) else own

    @property
    def embedding_weight(self) -> str:
        """The parameter that tokens are looked up in."""
        own = f"{self.names.embedding}.weight"
        return f"{self.names.head}.weight" if self.is_tied and not self.weights.has(own) else own

    def layer(self, number: int) -> nn.Module:
        """A layer with its weights, read unless it is the one in memory; the one there before is let go."""
        layer = self.layers[number]
        if self._resident != number:
            self.let_go()
            prefix = f"{self.names.layers}.{number}."
            names = {prefix + name: name for name in self._empty[number]}
            found = self.weights.read(names, self._dtype, self._device)
            self._assign(layer, {names[name]: weight for name, weight in found.items()}, prefix)
            self._resident = number
        return layer

    def let_go(self) -> None:
        """Free the layer in memory."""
        if self._resident is not None:
            self.layers[self._resident].load_state_dict(self._empty[self._resident], assign=True)
            self._resident = None

    def run_layer(
        self, number: int, hidden: Float[Tensor, "batch pos hidden"], call: LayerCall
    ) -> Float[Tensor, "batch pos hidden"]:
        """The output of a layer that `layer` has put in memory."""
        output = self.layers[number](hidden, *call.args, **call.kwargs)
        return output[0] if isinstance(output, tuple) else output

    def embedded(self, batch: SamplePass, table: Tensor | None = None) -> Embedded:
        """A pass up to the first layer.

        Args:
            batch: the samples.
            table: the whole embedding, where it is at hand; None reads the rows needed.

        Returns:
            What enters the first layer, with a gradient to each sample's own embedding rows where gradients are on.
        """
        calls: list[LayerCall] = []
        entered: list[Tensor] = []

        def record(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            entered.append(hidden)
            calls.append(LayerCall(args, kwargs))
            return hidden

        def rows_of(ids: Tensor) -> Tensor:
            if table is not None:
                return table[ids.to(table.device)].to(self._dtype)
            return self.weights.rows(self.embedding_weight, ids, self._dtype).to(self._device)

        replaced: dict[nn.Module, Callable[..., Any]] = dict.fromkeys(self.layers, record)
        replaced[self.head] = lambda hidden: hidden[..., :1]
        with rows_per_sample(self.embedding, batch, rows_of) as rows, _replaced_forwards(replaced):
            self.model(
                input_ids=batch.input_ids.to(self._device),
                attention_mask=batch.attention_mask.to(self._device),
                position_ids=batch.position_ids.to(self._device),
                use_cache=False,
            )
        if len(calls) != len(self.layers):
            raise ModelError(
                f"{type(self.model).__name__}: expected each of {len(self.layers)} layers to run once in a forward "
                f"pass, {len(calls)} did; it cannot be streamed, use the engine 'memory'."
            )
        return Embedded(entered[0], calls, rows)

    def logits(
        self,
        states: Float[Tensor, "batch pos hidden"],
        head_weight: Float[Tensor, "vocab hidden"],
        seen: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "batch pos vocab"]:
        """What the model makes of the last layer's output: norm, head, and whatever comes after.

        Args:
            states: outputs of the last layer, of any positions: nothing here looks at neighbours.
            head_weight: as stored; it is converted block by block.
            seen: given the head's input and output, gives what stands for its output.

        Returns:
            The logits, with a gradient to `states` or to what `seen` gave.
        """

        def head(hidden: Tensor) -> Tensor:
            output = blocked_linear(hidden, head_weight)
            if self.head.bias is not None:
                output = output + self.head.bias
            return output if seen is None else seen(hidden, output)

        replaced: dict[nn.Module, Callable[..., Any]] = {
            layer: lambda hidden, *_, **__: hidden for layer in self.layers
        }
        replaced[self.layers[-1]] = lambda *_, **__: states
        replaced[self.head] = head
        with _replaced_forwards(replaced):
            return self.model(inputs_embeds=states.detach(), use_cache=False).logits

    def _tied(self) -> bool:
        """Whether head and embedding are one matrix: as configured, unless the files hold two different ones."""
        names = [f"{self.names.head}.weight", f"{self.names.embedding}.weight"]
        if self.model.all_tied_weights_keys.get(names[0]) != names[1]:
            return False
        if not all(map(self.weights.has, names)):
            return True
        some = torch.arange(min(_COMPARED_ROWS, self.embedding.num_embeddings))
        head, embedding = (self.weights.rows(name, some, torch.float32) for name in names)
        return torch.equal(head, embedding)

    def _load_small(self) -> None:
        """Read what lies beside layers, embedding and head: norms, biases."""
        root = self.names.layers.rpartition(".")[0] + "."
        matrices = {f"{self.names.embedding}.weight", f"{self.names.head}.weight"}
        for owner, module in self.model.named_modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(self._device)
            is_beside = owner.startswith(root) and not owner.startswith(f"{self.names.layers}.")
            if not is_beside and owner != self.names.head:
                continue
            own = {name: f"{owner}.{name}" for name, _ in module.named_parameters(recurse=False)}
            wanted = {name: full for name, full in own.items() if full not in matrices}
            found = self.weights.read(wanted.values(), self._dtype, self._device)
            for name, full in wanted.items():
                if found[full].shape != module._parameters[name].shape:  # type: ignore[union-attr]
                    raise _misfit(full, found[full], module._parameters[name])
                setattr(module, name, nn.Parameter(found[full], requires_grad=False))

    def _assign(self, layer: nn.Module, found: dict[str, Tensor], prefix: str) -> None:
        expected = layer.state_dict()
        for name, weight in found.items():
            if weight.shape != expected[name].shape:
                raise _misfit(prefix + name, weight, expected[name])
        layer.load_state_dict(found, assign=True)


def _skeleton(
    config: PreTrainedConfig, dtype: torch.dtype, attention: str | None, folder: Path
) -> PreTrainedModel:
    """The model without memory for its weights; its buffers are real."""
    options = {} if attention is None else {"attn_implementation": attention}
    try:
        with quiet(), no_init_weights(), init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, **options)
    except (ValueError, KeyError, TypeError, ImportError) as err:
        raise ModelError(f"{folder}: expected a causal language model, got: {err}") from err
    return model.requires_grad_(False).eval()


def _misfit(name: str, found: Tensor, expected: Any) -> ModelError:
    return ModelError(
        f"{name}: the configuration says {tuple(expected.shape)}, the weight file {tuple(found.shape)}; "
        "configuration and weights are of different models: copy the folder again."
    )


@contextmanager
def _replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """While in the block, modules do something else."""
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward

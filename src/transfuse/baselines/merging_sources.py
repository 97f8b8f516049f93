"""The models that are merged, as folders of tensors, and whether they are of one kind."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from transfuse.errors import ModelError
from transfuse.io.configs import load_config, weights_folder
from transfuse.io.models import load_model, load_tokenizer, save_model
from transfuse.io.references import resolve_model, weight_files

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_PACKED = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "F4"})
_SAME_SETTINGS = (
    "model_type",
    "architectures",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
)
"""What decides how weights are used; most of it can differ between tensors of the same shapes."""


@dataclass(frozen=True, slots=True)
class MergeSource:
    """One model as tensors on disk."""

    reference: str
    """As the user wrote it."""
    folder: Path
    config: PreTrainedConfig
    files: dict[str, Path]
    """Where each tensor lies."""
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, str]
    """As safetensors names them: `F32`, `BF16`."""

    def is_float(self, name: str) -> bool:
        """Whether a tensor is made of real numbers, which can be averaged."""
        return self.types[name] in _FLOATS


def open_source(reference: str, scratch: Path) -> MergeSource:
    """A model's tensors; a .gguf file or a bundled model is first written out as a folder of float32.

    Args:
        reference: a model reference.
        scratch: a temporary folder for what has to be written out.

    Returns:
        The source; only headers of files were read.

    Raises:
        ModelError: there is no such model, it is incomplete, or its weights are packed.
    """
    if resolve_model(reference).kind in ("gguf", "bundled"):
        loaded = load_model(reference, precision="float32", device="cpu")
        folder = scratch / f"source-{len(list(scratch.iterdir()))}"
        save_model(loaded.model, loaded.tokenizer, folder)
    else:
        folder = weights_folder(reference)
    config = load_config(str(folder))
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, str] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a file, no mapping
                part = file.get_slice(name)
                files[name], shapes[name], types[name] = path, tuple(part.get_shape()), part.get_dtype()
    packed = next((name for name, kind in types.items() if kind in _PACKED), None)
    if getattr(config, "quantization_config", None) is not None or packed is not None:
        raise ModelError(
            f"model {reference!r}: its weights are quantised, and packed numbers have no mean; use the model that it "
            "was quantised from."
        )
    return MergeSource(reference, folder, config, files, shapes, types)


def common_tensors(sources: Sequence[MergeSource]) -> list[str]:
    """Names of the tensors to merge, in the first model's order.

    Args:
        sources: two or more.

    Returns:
        Those that every model has. A tied head that only some wrote out beside the embeddings is left out.

    Raises:
        ModelError: the models differ in architecture, tensors or shapes.
    """
    first = sources[0]
    for other in sources[1:]:
        _refuse_other_settings(first, other)
        _refuse_other_tensors(first, other)
        for name in first.shapes:
            if name in other.shapes and first.shapes[name] != other.shapes[name]:
                raise ModelError(
                    f"{name}: {first.reference!r} has {first.shapes[name]}, {other.reference!r} has "
                    f"{other.shapes[name]}; expected models of one architecture and vocabulary."
                )
    return [name for name in first.shapes if all(name in other.shapes for other in sources)]


def common_tokenizer(sources: Sequence[MergeSource]) -> PreTrainedTokenizerBase:
    """The first model's tokenizer, if no id stands for another token in another model.

    Args:
        sources: one or more.

    Returns:
        The tokenizer; ids that others have beyond its own are not in it.

    Raises:
        ModelError: the vocabularies differ.
    """
    tokenizer = load_tokenizer(str(sources[0].folder))
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    for other in sources[1:]:
        others = {number: token for token, number in load_tokenizer(str(other.folder)).get_vocab().items()}
        different = sorted(number for number in tokens.keys() & others if tokens[number] != others[number])
        if different:
            number = different[0]
            raise ModelError(
                f"vocabularies of {sources[0].reference!r} and {other.reference!r} differ in {len(different)} ids: "
                f"{number} is {tokens[number]!r} in one, {others[number]!r} in the other; models of different "
                "tokenizers are fused by training (transfuse fuse), not merged."
            )
    return tokenizer


class TensorReader:
    """Reads single tensors of a source; a context manager, files stay open while it lasts."""

    def __init__(self, source: MergeSource) -> None:
        self._source = source
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str) -> torch.Tensor:
        """A tensor, float32 where it is made of real numbers."""
        path = self._source.files[name]
        if path not in self._open:
            self._open[path] = self._stack.enter_context(safe_open(path, framework="pt"))
        tensor: torch.Tensor = self._open[path].get_tensor(name)
        return tensor.float() if self._source.is_float(name) else tensor


def _refuse_other_settings(first: MergeSource, other: MergeSource) -> None:
    for key in _SAME_SETTINGS:
        values = [getattr(source.config, key, None) for source in (first, other)]
        if values[0] != values[1]:
            raise ModelError(
                f"{key}: {first.reference!r} has {json.dumps(values[0])}, {other.reference!r} has "
                f"{json.dumps(values[1])}; expected models of one architecture."
            )


def _refuse_other_tensors(first: MergeSource, other: MergeSource) -> None:
    for has, lacks in ((first, other), (other, first)):
        missing = [name for name in has.shapes if name not in lacks.shapes]
        are_tied = all(getattr(source.config, "tie_word_embeddings", False) for source in (first, other))
        if missing and not (are_tied and missing == ["lm_head.weight"]):
            untied = (
                " (one ties its head to its embeddings, the other does not)"
                if "lm_head.weight" in missing
                else ""
            )
            raise ModelError(
                f"{missing[0]}: {has.reference!r} has {has.shapes[missing[0]]}, {lacks.reference!r} has no such tensor"
                f"{untied}; expected models of one architecture."
            )

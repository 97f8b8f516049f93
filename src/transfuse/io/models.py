"""Loading causal language models and their tokenizers from a model reference."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants, get_session
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.peft_utils import find_adapter_config_file

from transfuse.errors import ModelError
from transfuse.io.bundled import bundled_path
from transfuse.io.files import atomic_folder
from transfuse.io.gguf_files import gguf_setting, lean_gguf_reading, read_gguf
from transfuse.io.precision import Precision, resolve_device, resolve_precision
from transfuse.io.quiet import quiet
from transfuse.io.references import ModelSource, check_model_folder, resolve_model

LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, SafetensorError)
"""What transformers raises on an unusable model."""

DIGIT_SPLITTING_PRE_TOKENIZERS = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}
)
"""GGUF pre-tokenizers that cut numbers into single digits before the GPT-2 split."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A causal language model that is ready to compute."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: ModelSource
    precision: torch.dtype
    """The compute type; trainable weights are kept in float32 all the same."""
    device: torch.device

    @property
    def base_name(self) -> str:
        """What an adapter's configuration names as its base: a Hub id, or a path that holds anywhere on the machine."""
        return self.source.hub_id or str(
            self.source.path.resolve() if self.source.path else self.source.reference
        )


def load_tokenizer(reference: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Args:
        reference: a Hub id, a folder, a .gguf file or a bundled name.
        trust_remote_code: whether Python code that comes with the model may run.

    Returns:
        The tokenizer, no token added.

    Raises:
        ModelError: the reference leads to no tokenizer.
    """
    source = resolve_model(reference)
    if source.kind == "folder" and source.path is not None:
        check_model_folder(source.path, needs_weights=False)
    with quiet("gguf", "numpy"), explained_loading(source):
        return _tokenizer_of(source, trust_remote_code=trust_remote_code)


def load_model(
    reference: str,
    *,
    precision: Precision = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    trainable: bool = False,
) -> LoadedModel:
    """A causal language model in evaluation mode, and its tokenizer.

    Args:
        reference: a Hub id, a folder, a .gguf file (dequantised) or a bundled name.
        precision: the compute type; `auto` is bfloat16 where the hardware has it natively.
        device: None picks CUDA, then MPS, then the CPU.
        trust_remote_code: whether Python code that comes with the model may run.
        trainable: true keeps float32 weights that take gradients (run them under autocast in the compute
            type); false keeps frozen weights in the compute type.

    Returns:
        The model on its device; it trains, saves and reloads like any transformers model.

    Raises:
        ModelError: the reference leads to no causal language model that can be loaded.
    """
    source = resolve_model(reference)
    on_device = resolve_device(device)
    compute_dtype = resolve_precision(precision, on_device)
    weight_dtype = torch.float32 if trainable else compute_dtype
    if source.kind == "folder" and source.path is not None:
        check_model_folder(source.path)
    with quiet("gguf", "numpy"), explained_loading(source):
        tokenizer = _tokenizer_of(source, trust_remote_code=trust_remote_code)
        if source.kind in ("gguf", "bundled"):
            model = _gguf_model(_gguf_path(source), weight_dtype)
        else:
            model = _safetensors_model(source, weight_dtype, trust_remote_code=trust_remote_code)
        model.to(on_device)  # pyright: ignore[reportArgumentType] - decorated in transformers
    _name_source(model, source)
    model.requires_grad_(trainable)
    return LoadedModel(model.eval(), tokenizer, source, compute_dtype, on_device)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write an ordinary model folder, whole or not at all.

    Args:
        model: its weights, in the type they have.
        tokenizer: written beside it.
        folder: where to write; an earlier one is replaced.

    Raises:
        RunFolderError: the folder cannot be written, or the disk is full.
    """
    with atomic_folder(folder) as temporary, quiet("gguf", "numpy"):
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _tokenizer_of(source: ModelSource, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    if source.kind in ("gguf", "bundled"):
        return _gguf_tokenizer(_gguf_path(source))
    return AutoTokenizer.from_pretrained(
        _location(source), trust_remote_code=trust_remote_code, local_files_only=_is_local_only(source)
    )


def _gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    reader = read_gguf(path)
    # Not AutoTokenizer: it parses the whole file once more only to choose the class.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path.parent), gguf_file=path.name)
    if gguf_setting(reader, "tokenizer.ggml.pre") in DIGIT_SPLITTING_PRE_TOKENIZERS:
        # transformers leaves these at GPT-2's split, which merges differently around numbers ("a  1").
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    context_tokens = gguf_setting(reader, f"{gguf_setting(reader, 'general.architecture')}.context_length")
    if context_tokens:
        tokenizer.model_max_length = int(context_tokens)
    return tokenizer


def _gguf_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    read_gguf(path)
    options: dict[str, Any] = {"gguf_file": path.name, "dtype": dtype, "output_loading_info": True}
    if hasattr(transformers, "GgufConfig"):  # some architectures would otherwise stay packed, and frozen
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    # transformers draws its dequantising bar with tqdm itself, whatever the verbosity.
    with lean_gguf_reading(), contextlib.redirect_stderr(io.StringIO()):
        loaded: Any = AutoModelForCausalLM.from_pretrained(str(path.parent), **options)
    model, info = loaded
    _refuse_gaps(str(path), info)
    return _as_ordinary(model)


def _as_ordinary(model: PreTrainedModel) -> PreTrainedModel:
    """Drop the marks of quantisation that transformers leaves on a dequantised model and refuses to save."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    for name in ("quantization_config", "_is_quantized", "_model_name_or_path"):
        if name in vars(model.config):
            delattr(model.config, name)
    return model


def _safetensors_model(
    source: ModelSource, dtype: torch.dtype, *, trust_remote_code: bool
) -> PreTrainedModel:
    location = _location(source)
    places: dict[str, Any] = {"local_files_only": _is_local_only(source)}
    if source.kind == "hub" and find_adapter_config_file(location, **places) is not None:
        raise ModelError(
            f"model {location!r}: this is an adapter; give it as --adapter, and its base as --model."
        )
    config = AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code, **places)
    _refuse_other_kinds(location, config)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        location,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        **places,
    )
    model, info = loaded
    _refuse_gaps(location, info)
    return model


def _refuse_other_kinds(location: str, config: PreTrainedConfig) -> None:
    named = list(config.architectures or [])
    has_own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if config.is_encoder_decoder or (named and not has_own_code and known.isdisjoint(named)):
        raise ModelError(
            f"model {location!r}: expected a causal language model, "
            f"got {', '.join(named) or config.model_type}; choose one whose architecture ends in ForCausalLM."
        )


def _refuse_gaps(location: str, info: dict[str, Any]) -> None:
    missing = sorted(str(name) for name in info.get("missing_keys", ()))
    if missing:
        raise ModelError(
            f"model {location!r}: {len(missing)} weights are missing, such as {missing[0]}; "
            "they would be random. Use a complete copy of a causal language model."
        )


def _name_source(model: PreTrainedModel, source: ModelSource) -> None:
    # peft writes this name into adapters as their base model; a cache path would mean nothing elsewhere.
    if source.kind == "bundled" and source.hub_id is not None:
        model.name_or_path = model.config.name_or_path = source.hub_id
    elif source.kind == "gguf":
        model.name_or_path = model.config.name_or_path = str(source.path)


def _gguf_path(source: ModelSource) -> Path:
    if source.kind == "bundled":
        return bundled_path(source.reference)
    assert source.path is not None  # noqa: S101 - resolve_model gives every file its path
    return source.path


def _location(source: ModelSource) -> str:
    return str(source.path) if source.path is not None else str(source.hub_id)


def _is_local_only(source: ModelSource) -> bool:
    """Asked first, and briefly: without a network every file would be retried for half a minute."""
    if source.kind != "hub":
        return True
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # the session's own error classes differ from one HTTP library to the next
        return True
    return False


@contextlib.contextmanager
def explained_loading(source: ModelSource) -> Iterator[None]:
    """Turn what transformers raises into an error that says what to do."""
    try:
        yield
    except ModelError:
        raise
    except LOADING_ERRORS as err:
        raise ModelError(f"model {source.reference!r}: {_reason(source, err)}") from err


def _reason(source: ModelSource, err: BaseException) -> str:
    causes = list(_causes(err))
    detail = next((line for line in str(err).splitlines() if line.strip()), type(err).__name__).strip()
    if "trust_remote_code" in str(err):
        return (
            "it needs Python code of its own; give --trust-remote-code if you have read and trust that code."
        )
    if source.kind != "hub":
        return f"cannot be loaded: {detail}"
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return "access is gated; accept its conditions on its Hub page, then log in with `hf auth login`."
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return (
            "the Hub knows no such model, or it is private; check the name, or log in with `hf auth login`."
        )
    if any(isinstance(cause, LocalEntryNotFoundError | ConnectionError | TimeoutError) for cause in causes):
        return (
            "the Hub cannot be reached and the model is not in its local cache; check the connection, "
            "or use a local folder, a .gguf file or the bundled 'smollm2-135m'."
        )
    return f"cannot be loaded from the Hub: {detail}"


def _causes(err: BaseException | None) -> Iterator[BaseException]:
    while err is not None:
        yield err
        err = err.__cause__ or err.__context__

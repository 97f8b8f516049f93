"""What tells one model's weights, or one tokenizer, from another's, without reading gigabytes."""

import hashlib
import json
from pathlib import Path
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from transfuse.errors import ModelError
from transfuse.io.files import file_sha256
from transfuse.io.references import resolve_model, weight_files

_KNOWN: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, str]] = WeakKeyDictionary()
"""Number of tokens and digest: reading half a million merges takes seconds."""


def model_fingerprint(reference: str) -> str:
    """A digest of where a model's weights lie, their sizes and times; of a Hub model, its name.

    Args:
        reference: a model reference.

    Returns:
        A hex digest that changes when a local model's files are replaced.

    Raises:
        ModelError: the reference means no model.
    """
    source = resolve_model(reference)
    parts = [source.kind, source.hub_id or ""]
    if source.path is not None:
        files = weight_files(source.path) if source.path.is_dir() else [source.path]
        for file in sorted(map(Path, files)):
            if file.is_file():
                status = file.stat()
                parts += [file.name, str(status.st_size), str(status.st_mtime_ns)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def adapter_fingerprint(folder: Path) -> str:
    """A digest of what an adapter's files hold, the same wherever they lie.

    Args:
        folder: a PEFT adapter folder.

    Returns:
        A hex digest over `adapter_config.json` and the weights; model cards and the like are no part of it.

    Raises:
        DataError: a file cannot be read.
        ModelError: there is no adapter.
    """
    config = folder / "adapter_config.json"
    weights = sorted(folder.glob("*.safetensors"))
    if not config.is_file() or not weights:
        raise ModelError(
            f"{folder}: expected an adapter folder with adapter_config.json and safetensors weights, found "
            f"{'no weights' if config.is_file() else 'none'}; check the path."
        )
    parts = [f"{file.name} {file_sha256(file)}" for file in (config, *weights)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of how a tokenizer turns text into ids: equal for equal tokenizers, wherever they were loaded from.

    Args:
        tokenizer: fast ones are digested whole (model, normaliser, pre-tokenizer, added tokens); of a slow one its
            class, vocabulary and special tokens.

    Returns:
        A hex digest.
    """
    known = _KNOWN.get(tokenizer)
    if known is not None and known[0] == len(tokenizer):
        return known[1]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        # Left behind by calls that pad or cut, and no part of how text is read.
        content.pop("padding", None)
        content.pop("truncation", None)
    else:
        content = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    told = [content, sorted((str(key), str(value)) for key, value in tokenizer.special_tokens_map.items())]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    _KNOWN[tokenizer] = (len(tokenizer), digest)
    return digest

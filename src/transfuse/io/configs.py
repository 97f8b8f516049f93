"""A model's configuration and the folder of its weights, without loading the weights."""

from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import AutoConfig, PreTrainedConfig

from transfuse.errors import ModelError
from transfuse.io.bundled import bundled_path
from transfuse.io.gguf_files import lean_gguf_reading, read_gguf
from transfuse.io.models import LOADING_ERRORS, explained_loading
from transfuse.io.quiet import quiet
from transfuse.io.references import check_model_folder, resolve_model


def load_config(reference: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model; a folder that holds nothing but `config.json` is enough.

    Args:
        reference: a model reference.
        trust_remote_code: whether Python code that comes with the model may run.

    Returns:
        The configuration, of a composite model that of its text part.

    Raises:
        ModelError: there is none.
    """
    source = resolve_model(reference)
    with quiet("gguf", "numpy"), explained_loading(source):
        if source.kind in ("gguf", "bundled"):
            path = bundled_path(reference) if source.kind == "bundled" else source.path
            assert path is not None  # noqa: S101 - resolve_model gives every file its path
            read_gguf(path)
            with lean_gguf_reading():
                config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
        else:
            location = str(source.path or source.hub_id)
            config = AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code)
    return config.get_text_config()


def weights_folder(reference: str) -> Path:
    """The folder that holds a model's safetensors files, for reading them piece by piece.

    Args:
        reference: a folder, or a Hub id, whose files are fetched where they are not in the cache.

    Returns:
        The folder, checked.

    Raises:
        ModelError: a single file, or no complete safetensors folder.
    """
    source = resolve_model(reference)
    if source.kind in ("gguf", "bundled"):
        raise ModelError(
            f"model {reference!r}: expected a folder of safetensors files to read layer by layer, got a GGUF file; use "
            "the engine 'memory', or save the model as a folder first."
        )
    folder = source.path
    if folder is None:
        try:
            folder = Path(
                snapshot_download(
                    str(source.hub_id), allow_patterns=["*.safetensors", "*.json", "tokenizer*"]
                )
            )
        except LOADING_ERRORS as err:
            raise ModelError(f"model {reference!r}: its files cannot be fetched: {err}") from err
    check_model_folder(folder)
    return folder

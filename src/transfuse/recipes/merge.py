"""Fold an adapter into its base model."""

from pathlib import Path

from transfuse.errors import RunFolderError
from transfuse.io.models import load_model, save_model
from transfuse.train.adapters import load_adapter, merge_adapter_weights


def merge_adapter(
    model: str, adapter: Path, out: Path, *, overwrite: bool = False, trust_remote_code: bool = False
) -> None:
    """Write an ordinary model folder: base weights plus scaling * B @ A, in float32.

    Embeddings that are tied to the head are untied where the adapter changes either of them.

    Args:
        model: reference of the untouched base.
        adapter: a PEFT folder.
        out: the model folder to write, whole or not at all.
        overwrite: whether a model folder that is there may be replaced.
        trust_remote_code: whether Python code that comes with the model may run.

    Raises:
        ModelError: the model or the adapter cannot be loaded, or they do not fit.
        RunFolderError: `out` is there already, or cannot be written.
    """
    is_there = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if is_there and not overwrite:
        raise RunFolderError(f"{out}: is there already; choose another --out, or give --overwrite.")
    if is_there and not (out / "config.json").is_file():
        raise RunFolderError(f"{out}: is no model folder, so it is not replaced; choose another --out.")
    if is_there and any(out.resolve() == Path(each).expanduser().resolve() for each in (model, adapter)):
        raise RunFolderError(f"{out}: is the base model itself; choose another --out.")
    loaded = load_model(model, precision="float32", trust_remote_code=trust_remote_code)
    merged = merge_adapter_weights(load_adapter(loaded.model, adapter))
    save_model(merged, loaded.tokenizer, out)

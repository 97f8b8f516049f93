"""Fold an adapter into its base model, or merge several models of one architecture."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transfuse.baselines.merging import merge_models
from transfuse.baselines.merging_settings import MERGE_METHODS, WITHOUT_BASE
from transfuse.errors import RecipeError, RunFolderError
from transfuse.io.models import load_model, save_model
from transfuse.recipes.merge_card import write_folded_card, write_merged_card
from transfuse.recipes.progress import Display
from transfuse.recipes.schema import make_settings
from transfuse.train.adapters import load_adapter, merge_adapter_weights


def merge_adapter(
    model: str,
    adapter: Path,
    out: Path,
    *,
    command: str,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Write an ordinary model folder: base weights plus scaling * B @ A, in float32.

    Embeddings that are tied to the head are untied where the adapter changes either of them.

    Args:
        model: reference of the untouched base.
        adapter: a PEFT folder.
        out: the model folder to write, whole or not at all.
        command: as typed, for the model card.
        overwrite: whether a model folder that is there may be replaced.
        trust_remote_code: whether Python code that comes with the model may run.

    Raises:
        ModelError: the model or the adapter cannot be loaded, or they do not fit.
        RunFolderError: `out` is there already, or cannot be written.
    """
    _check_out(out, [model, str(adapter)], "the base model itself", overwrite=overwrite)
    loaded = load_model(model, precision="float32", trust_remote_code=trust_remote_code)
    merged = merge_adapter_weights(load_adapter(loaded.model, adapter))
    save_model(merged, loaded.tokenizer, out)
    write_folded_card(model, adapter, out, command)


def merge_several(
    models: Sequence[str],
    method: str,
    out: Path,
    *,
    command: str,
    base: str | None = None,
    weights: Sequence[float] = (),
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Write an ordinary model folder with the merged weights of several models.

    Args:
        models: references, two or more.
        method: a name in `MERGE_METHODS`.
        out: the model folder to write, whole or not at all.
        command: as typed, for the model card.
        base: what the models started from.
        weights: of each model; none counts all alike.
        overrides: `key=value` of the method's settings.
        overwrite: whether a model folder that is there may be replaced.

    Raises:
        RecipeError: no such method, or settings that it does not have.
        ModelError: a model cannot be read, or the models do not fit together.
        RunFolderError: `out` is there already, or cannot be written.
    """
    if method not in MERGE_METHODS:
        near = get_close_matches(method, MERGE_METHODS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RecipeError(f"--method {method!r}: expected one of {', '.join(MERGE_METHODS)}.{hint}")
    if base is not None and method in WITHOUT_BASE:
        raise RecipeError(f"--base: {method} does not ask what the models started from; leave it out.")
    kind = MERGE_METHODS[method]
    if weights and "weights" not in kind.model_fields:
        raise RecipeError(f"--weight: {method} finds itself what each model counts; leave it out.")
    tree: dict[str, Any] = {"weights": list(weights)} if weights else {}
    settings = make_settings(kind, tree, overrides, where=f"merge by {method}")
    _check_out(out, [*models, *([base] if base else [])], "one of the models", overwrite=overwrite)
    with Display().bar("Merging") as advance:
        merge_models(models, settings, out, base=base, on_tensor=lambda done, n, _: advance(done, n, ""))
    write_merged_card(models, settings, out, base=base, command=command)


def _check_out(out: Path, models: Sequence[str], what_they_are: str, *, overwrite: bool) -> None:
    is_there = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if is_there and not overwrite:
        raise RunFolderError(f"{out}: is there already; choose another --out, or give --overwrite.")
    if is_there and not (out / "config.json").is_file():
        raise RunFolderError(f"{out}: is no model folder, so it is not replaced; choose another --out.")
    if is_there and any(out.resolve() == Path(each).expanduser().resolve() for each in models):
        raise RunFolderError(f"{out}: is {what_they_are}; choose another --out.")

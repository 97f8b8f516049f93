"""What a model reference means, and whether a model folder is complete; nothing is loaded here."""

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from transfuse.errors import ModelError
from transfuse.io.bundled import BUNDLED, bundled_location

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from."""

    reference: str
    """As the user wrote it."""
    kind: Literal["bundled", "gguf", "folder", "hub"]
    path: Path | None = None
    """The file or folder; for a bundled model where it lies once fetched; None on the hub."""
    hub_id: str | None = None
    """The Hub id, or a bundled model's upstream one."""


def resolve_model(reference: str) -> ModelSource:
    """What a model reference means: a .gguf file, a folder, a bundled name or a Hub id, in this order.

    Args:
        reference: as the user wrote it; `~` is the home folder.

    Returns:
        The source; nothing is read, fetched or checked yet.

    Raises:
        ModelError: it is none of them.
    """
    path = Path(reference).expanduser()
    if reference and path.is_file():
        if path.suffix.lower() == ".gguf":
            return ModelSource(reference, "gguf", path=path)
        raise ModelError(
            f"model {reference!r}: expected a folder or a .gguf file, got a file of another kind."
        )
    if reference and path.is_dir():
        return ModelSource(reference, "folder", path=path)
    if reference in BUNDLED:
        return ModelSource(
            reference, "bundled", path=bundled_location(reference), hub_id=BUNDLED[reference].upstream_name
        )
    if reference.startswith((".", "/", "~")) or reference.lower().endswith(".gguf"):
        raise ModelError(f"model {reference!r}: there is no such file or folder ({path.absolute()}).")
    if HUB_ID.fullmatch(reference):
        return ModelSource(reference, "hub", hub_id=reference)
    near = difflib.get_close_matches(reference, BUNDLED, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ModelError(
        f"model {reference!r}: expected a bundled name ({', '.join(BUNDLED)}), a folder, a .gguf file "
        f"or a Hub id such as 'owner/name'.{hint}"
    )


def check_model_folder(folder: Path, *, needs_weights: bool = True) -> None:
    """Refuse a folder that `load_model` could not load, before anything heavy starts.

    Args:
        folder: an existing folder.
        needs_weights: false where only the tokenizer is wanted.

    Raises:
        ModelError: it holds an adapter, or lacks a configuration, safetensors weights or a tokenizer.
    """
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder}: this is an adapter, not a model; give it as --adapter, and its base model as --model"
            f"{_adapter_base(folder)}."
        )
    if not (folder / "config.json").is_file():
        files = sorted(folder.glob("*.gguf"))
        hint = (
            f"; give the file itself: {files[0]}" if files else "; give a folder written by save_pretrained"
        )
        raise ModelError(f"{folder}: expected a model folder with config.json, found none{hint}.")
    if needs_weights:
        _check_weights(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{folder}: expected tokenizer files (such as tokenizer.json), found none; copy the ones of the "
            "model it was made from into the folder."
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a model folder names, present or not."""
    index = folder / WEIGHTS_INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [path for path in (folder / WEIGHTS,) if path.is_file()]
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ModelError(f"{index}: expected an index of weight files, got {err!r}; copy it again.") from err


def _check_weights(folder: Path) -> None:
    shards = weight_files(folder)
    if not shards:
        pickled = sorted(folder.glob("pytorch_model*.bin"))
        if pickled:
            raise ModelError(
                f"{folder}: {pickled[0].name} is pickled and could run code; expected safetensors. If you "
                "trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
            )
        raise ModelError(
            f"{folder}: expected weights in {WEIGHTS} or {WEIGHTS_INDEX}, found neither; "
            "copy the model again, or write it with save_pretrained."
        )
    for shard in shards:
        if not shard.is_file():
            raise ModelError(
                f"{folder}: {WEIGHTS_INDEX} names {shard.name}, which is missing; copy it again."
            )
        try:
            with safe_open(shard, framework="numpy"):
                pass
        except (SafetensorError, OSError) as err:
            raise ModelError(
                f"{shard}: the weights are damaged or cut short ({err}); copy the file again."
            ) from err


def _adapter_base(folder: Path) -> str:
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" (it was trained on {base!r})" if base else ""

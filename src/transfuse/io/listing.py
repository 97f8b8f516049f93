"""Which models can be loaded from here, and what they are; nothing is loaded, torch is not needed."""

import json
import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CachedRepoInfo, scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from transfuse.errors import ModelError
from transfuse.io.bundled import BUNDLED, BundledModel, bundled_location
from transfuse.io.gguf_files import gguf_setting, n_gguf_parameters, read_gguf
from transfuse.io.references import check_model_folder, resolve_model, weight_files

UNKNOWN = "unknown"
FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
MAX_HEADER_BYTES = 100_000_000
"""The safetensors format allows no longer header."""


@dataclass(frozen=True, slots=True)
class ModelListing:
    """One model that can be loaded, as `transfuse models` shows it."""

    reference: str
    """What to give wherever a model is taken."""
    origin: Literal["bundled", "hub cache", "folder", "gguf"]
    is_fetched: bool
    """Whether it can be loaded without a network."""
    n_bytes: int
    """Size on disk; for a bundled model that is not fetched, its size once it is."""
    n_parameters: int | None
    """None where the weights do not tell."""
    architecture: str
    tokenizer: str
    licence: str
    comes_from: str
    """Package and upstream model, Hub page or path."""
    card: str = ""
    """What the model is, where known."""


def list_models() -> list[ModelListing]:
    """Every model that can be loaded by name: the bundled ones, then those in the local Hub cache."""
    return [_bundled_listing(model) for model in BUNDLED.values()] + _cached_listings()


def describe_model(reference: str) -> ModelListing:
    """What a model is, read from its configuration and the headers of its weights.

    Args:
        reference: a bundled name, a folder, a .gguf file, or a Hub id in the local cache.

    Returns:
        Its listing.

    Raises:
        ModelError: it is none of these, or incomplete.
    """
    source = resolve_model(reference)
    if source.kind == "bundled":
        return _bundled_listing(BUNDLED[reference])
    if source.kind == "gguf" and source.path is not None:
        return _gguf_listing(reference, source.path)
    if source.kind == "folder" and source.path is not None:
        check_model_folder(source.path)
        return _folder_listing(reference, source.path)
    for listing in _cached_listings():
        if listing.reference == reference:
            return listing
    raise ModelError(f"model {reference!r} is not in the local Hub cache; it is fetched when first loaded.")


def _bundled_listing(model: BundledModel) -> ModelListing:
    path = bundled_location(model.name)
    is_here = path.is_file()
    return ModelListing(
        reference=model.name,
        origin="bundled",
        is_fetched=is_here,
        n_bytes=path.stat().st_size if is_here else model.n_bytes,
        n_parameters=model.n_parameters,
        architecture=model.architecture,
        tokenizer=model.tokenizer,
        licence=model.licence,
        comes_from=f"{model.requirement} on the Python package index, from {model.upstream_name}",
        card=model.card,
    )


def _gguf_listing(reference: str, path: Path) -> ModelListing:
    reader = read_gguf(path)
    tokens = reader.fields.get("tokenizer.ggml.tokens")
    kind = gguf_setting(reader, "tokenizer.ggml.model") or UNKNOWN
    return ModelListing(
        reference=reference,
        origin="gguf",
        is_fetched=True,
        n_bytes=path.stat().st_size,
        n_parameters=n_gguf_parameters(reader),
        architecture=str(gguf_setting(reader, "general.architecture")),
        tokenizer=f"{kind}, {len(tokens.data)} tokens" if tokens is not None else str(kind),
        licence=str(gguf_setting(reader, "general.license") or UNKNOWN),
        comes_from=str(path),
        card=str(gguf_setting(reader, "general.name") or ""),
    )


def _folder_listing(reference: str, folder: Path) -> ModelListing:
    config = _json_object(folder / "config.json")
    files = weight_files(folder)
    return ModelListing(
        reference=reference,
        origin="folder",
        is_fetched=True,
        n_bytes=sum(path.stat().st_size for path in files),
        n_parameters=_n_parameters(files),
        architecture=", ".join(config.get("architectures") or []) or str(config.get("model_type", UNKNOWN)),
        tokenizer=_tokenizer_kind(folder),
        licence=_licence(folder),
        comes_from=str(folder),
    )


def _cached_listings() -> list[ModelListing]:
    try:
        repos = scan_cache_dir().repos
    except (CacheNotFound, ValueError, OSError):
        return []
    found = [_cached_listing(repo) for repo in repos if repo.repo_type == "model"]
    return sorted(
        (listing for listing in found if listing is not None), key=lambda listing: listing.reference
    )


def _cached_listing(repo: CachedRepoInfo) -> ModelListing | None:
    revisions = sorted(repo.revisions, key=lambda revision: ("main" in revision.refs, revision.last_modified))
    for revision in reversed(revisions):
        folder = Path(revision.snapshot_path)
        try:
            check_model_folder(folder)
            listing = _folder_listing(repo.repo_id, folder)
        except (ModelError, OSError):
            continue
        return ModelListing(
            reference=repo.repo_id,
            origin="hub cache",
            is_fetched=True,
            n_bytes=listing.n_bytes,
            n_parameters=listing.n_parameters,
            architecture=listing.architecture,
            tokenizer=listing.tokenizer,
            licence=listing.licence,
            comes_from=f"{repo.repo_id} on the Hub, revision {revision.commit_hash[:12]}",
        )
    return None


def _n_parameters(files: list[Path]) -> int | None:
    try:
        return sum(_n_parameters_in(path) for path in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None


def _n_parameters_in(path: Path) -> int:
    # The format: eight bytes of length, then that much JSON naming each tensor's shape.
    with path.open("rb") as file:
        (n_bytes,) = struct.unpack("<Q", file.read(8))
        if n_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {n_bytes} bytes")
        header = json.loads(file.read(n_bytes))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _tokenizer_kind(folder: Path) -> str:
    model = _json_object(folder / "tokenizer.json").get("model")
    if not isinstance(model, dict):
        return str(_json_object(folder / "tokenizer_config.json").get("tokenizer_class", UNKNOWN))
    vocabulary = model.get("vocab")
    n_tokens = f", {len(vocabulary)} tokens" if isinstance(vocabulary, dict | list) else ""
    return f"{model.get('type') or UNKNOWN}{n_tokens}"


def _licence(folder: Path) -> str:
    try:
        matter = FRONT_MATTER.match((folder / "README.md").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return UNKNOWN
    named = re.search(r"^license:[ \t]*(\S.*?)[ \t]*$", matter.group(1), re.MULTILINE) if matter else None
    return named.group(1).strip("'\"") if named else UNKNOWN


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

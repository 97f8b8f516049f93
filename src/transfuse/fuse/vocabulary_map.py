"""Which token of a target vocabulary stands for each token of a source vocabulary; cached on disk."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from transfuse.fuse.token_images import MapKind, token_images
from transfuse.io.bundled import cache_folder
from transfuse.io.files import atomic_file
from transfuse.io.fingerprint import tokenizer_fingerprint
from transfuse.io.token_bytes import token_bytes
from transfuse.tensors.nearest_strings import OnStrings

MAP_VERSION = 1
"""Counted up when the same tokenizers give another map."""

UNMAPPED_DISTANCE = 255
MAX_DISTANCE = 254
"""A larger distance is stored as this one."""

_ROLES = ("pad_token_id", "eos_token_id", "bos_token_id")  # an id of several roles has the last one's image


class VocabularyMap(NamedTuple):
    """The image of every source token."""

    target_ids: Int[np.ndarray, " source_vocab"]
    """int32; -1 where a source token has none."""
    distances: UInt8[np.ndarray, " source_vocab"]
    """Edit distance in characters between a token and its image; 255 where there is none."""
    kind: MapKind


class MapSummary(NamedTuple):
    """What a person should know of a map before trusting it."""

    n_source: int
    """Source tokens that stand for text."""
    n_exact: int
    n_unmapped: int
    n_by_distance: Mapping[int, int]
    """Tokens at each distance above 0."""
    n_digits: int
    """Source tokens of digits only, with or without a space before them."""
    n_digits_exact: int
    exact_share: float
    """Of the target's text tokens, those that are the image of an equal one."""
    reached_share: float
    """Of the target's text tokens, those that are an image at all."""
    examples: tuple[tuple[str, str, int], ...]
    """Source token, its image and their distance, of tokens that are not equal, evenly spread over the ids; pieces of
    characters are written as `\\xe2`."""


def map_vocabulary(
    source: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase,
    kind: MapKind,
    *,
    n_source_rows: int | None = None,
    folder: Path | None = None,
    n_threads: int | None = None,
    on_strings: OnStrings | None = None,
) -> VocabularyMap:
    """The image of each source token, from the cache where it is there.

    Special tokens are mapped by role: beginning, end and padding to the target's own, others to nothing.

    Args:
        source: its ids are mapped.
        target: to its ids.
        kind: how tokens are matched whose bytes the target does not have.
        n_source_rows: rows of the source model's output, where they are not the tokenizer's ids (padded
            vocabularies); rows without a token have no image.
        folder: where maps are cached; None is `vocabulary-maps` in the user's cache folder.
        n_threads: cores for the edit distances; None takes all.
        on_strings: told how many distinct strings have their edit distance, and of how many.

    Returns:
        A row for each source token.

    Raises:
        ModelError: a tokenizer has no fast backend.
        RunFolderError: the cache cannot be written.
    """
    told = [MAP_VERSION, kind, tokenizer_fingerprint(source), tokenizer_fingerprint(target)]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    path = (folder if folder is not None else cache_folder() / "vocabulary-maps") / f"{key}.safetensors"
    mapped = _read(path, key, kind)
    if mapped is None:
        images = token_images(
            token_bytes(source),
            target,
            kind,
            n_threads=n_threads or os.cpu_count() or 1,
            on_strings=on_strings,
        )
        distances = np.where(images.ids < 0, UNMAPPED_DISTANCE, images.distances.clip(max=MAX_DISTANCE))
        mapped = VocabularyMap(images.ids, distances.astype(np.uint8), kind)
        _map_roles(mapped, source, target)
        _write(path, key, mapped)
    return mapped if n_source_rows is None else _with_rows(mapped, n_source_rows)


def map_summary(
    mapped: VocabularyMap,
    source_tokens: Sequence[bytes | None],
    target_tokens: Sequence[bytes | None],
    n_examples: int = 12,
) -> MapSummary:
    """Counts and examples of a map; special tokens are left out.

    Args:
        mapped: of any kind.
        source_tokens: `token_bytes` of the source.
        target_tokens: of the target.
        n_examples: at most so many.

    Returns:
        Figures to print, and to decide by.
    """
    is_text = np.zeros(len(mapped.target_ids), dtype=bool)
    is_text[: len(source_tokens)] = [token is not None for token in source_tokens][: len(is_text)]
    is_exact = is_text & (mapped.distances == 0)
    is_near = is_text & (mapped.target_ids >= 0) & ~is_exact
    counted = Counter(mapped.distances[is_near].tolist())
    digits = [i for i in np.flatnonzero(is_text).tolist() if (source_tokens[i] or b"").strip(b" ").isdigit()]
    n_targets = max(1, sum(token is not None for token in target_tokens))
    near = np.flatnonzero(is_near)
    shown = near[np.linspace(0, len(near) - 1, min(n_examples, len(near))).astype(int)] if len(near) else near
    return MapSummary(
        n_source=int(is_text.sum()),
        n_exact=int(is_exact.sum()),
        n_unmapped=int((is_text & (mapped.target_ids < 0)).sum()),
        n_by_distance=dict(sorted(counted.items())),
        n_digits=len(digits),
        n_digits_exact=int(is_exact[digits].sum()),
        exact_share=len(np.unique(mapped.target_ids[is_exact])) / n_targets,
        reached_share=len(np.unique(mapped.target_ids[is_exact | is_near])) / n_targets,
        examples=tuple(
            (
                _shown(source_tokens[i]),
                _shown(target_tokens[mapped.target_ids[i]]),
                int(mapped.distances[i]),
            )
            for i in shown.tolist()
        ),
    )


def _shown(token: bytes | None) -> str:
    """Text that any file and terminal takes; pieces of characters as `\\xe2`."""
    return (token or b"").decode("utf-8", "backslashreplace")


def _map_roles(
    mapped: VocabularyMap, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase
) -> None:
    for role in _ROLES:
        index, image = getattr(source, role), getattr(target, role)
        if index is not None and image is not None:
            mapped.target_ids[index], mapped.distances[index] = image, 0


def _with_rows(mapped: VocabularyMap, n_rows: int) -> VocabularyMap:
    n_more = max(0, n_rows - len(mapped.target_ids))
    return VocabularyMap(
        np.pad(mapped.target_ids, (0, n_more), constant_values=-1)[:n_rows],
        np.pad(mapped.distances, (0, n_more), constant_values=UNMAPPED_DISTANCE)[:n_rows],
        mapped.kind,
    )


def _digest(key: str, target_ids: np.ndarray, distances: np.ndarray) -> str:
    return hashlib.sha256(key.encode() + target_ids.tobytes() + distances.tobytes()).hexdigest()


def _write(path: Path, key: str, mapped: VocabularyMap) -> None:
    arrays = {"target_ids": mapped.target_ids, "distances": mapped.distances}
    with atomic_file(path) as temporary:
        save_file(arrays, temporary, {"sha256": _digest(key, **arrays)})


def _read(path: Path, key: str, kind: MapKind) -> VocabularyMap | None:
    """The cached map; None where there is none that is whole."""
    try:
        with safe_open(path, framework="numpy") as file:
            told = file.metadata() or {}
            ids, distances = file.get_tensor("target_ids"), file.get_tensor("distances")
    except (OSError, SafetensorError):
        return None
    if told.get("sha256") != _digest(key, ids, distances):
        return None
    return VocabularyMap(ids, distances, kind)

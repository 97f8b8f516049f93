"""Vocabulary maps and coverage of each pair, shown before any model passes over a text."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from transfuse.evaluate.bits_per_byte import load_texts
from transfuse.fuse.coverage import PairCoverage, pair_coverage
from transfuse.fuse.pieces import cut_texts
from transfuse.fuse.source_states import align_by_edits, plain_tokens
from transfuse.fuse.vocabulary_map import (
    UNMAPPED_DISTANCE,
    VocabularyMap,
    map_summary,
    map_vocabulary,
)
from transfuse.io.configs import load_config
from transfuse.io.files import write_json
from transfuse.io.fingerprint import tokenizer_fingerprint
from transfuse.io.run_folder import RunFolder
from transfuse.io.token_bytes import token_bytes
from transfuse.io.token_spans import token_spans
from transfuse.recipes.fuse_pieces import TARGET, DomainPieces, Tokenizers, load_tokenizers, piece_limit
from transfuse.recipes.fuse_schema import FuseRecipe, short_name
from transfuse.recipes.inject_model import without_note
from transfuse.recipes.progress import Display

CHECK_VERSION = 2


@dataclass(frozen=True, eq=False)
class Pairs:
    """Target and each source."""

    told: list[dict[str, Any]]
    """For the report, one a source."""
    maps: Mapping[str, VocabularyMap]
    """By the source's name; `target` is mapped to itself."""


def check_pairs(
    recipe: FuseRecipe, run: RunFolder, display: Display, pieces: DomainPieces, tokenizers: Tokenizers
) -> Pairs:
    """Map vocabularies and measure coverage; stop where a source could teach too little.

    Args:
        recipe: says how to map and align.
        run: the run folder; coverage has a stage of its own, maps are cached by tokenizer.
        display: where coverage is shown.
        pieces: of which some are looked at.
        tokenizers: of the models.

    Returns:
        Coverage and maps.

    Raises:
        DataError: a source covers less than `fusion.min_coverage`.
    """
    key = {
        "pieces": pieces.key,
        "target": tokenizer_fingerprint(tokenizers.target),
        "sources": {name: tokenizer_fingerprint(each) for name, each in tokenizers.sources.items()},
        "map": recipe.fusion.map,
        "align": recipe.fusion.align,
        "n": recipe.fusion.n_coverage_pieces,
    }
    maps, seconds = _source_maps(recipe, tokenizers, display)
    maps[TARGET] = _map(recipe, tokenizers, TARGET, display)
    with run.stage("coverage", key, version=CHECK_VERSION) as stage:
        path = stage.folder / "pairs.json"
        if not stage.is_done:
            write_json(path, _told(recipe, pieces.texts, tokenizers, maps, seconds))
        told: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    for pair in told:
        coverage = PairCoverage(**pair["coverage"])
        display.say(
            f"{pair['source']}: teaches {_percent(coverage.taught_share)} of the target's tokens "
            f"({_percent(coverage.digit_share)} of those with digits); {pair['vocabulary']['n_exact']:,} of "
            f"{pair['vocabulary']['n_source']:,} source tokens are in the target's vocabulary."
        )
    for pair in told:
        PairCoverage(**pair["coverage"]).check(recipe.fusion.min_coverage)
    return Pairs(told, maps)


def pairs_of(recipe: FuseRecipe) -> list[dict[str, Any]]:
    """What `transfuse fuse check` tells: no weights are loaded, and nothing is written but cached maps.

    Args:
        recipe: names target, sources and texts.

    Returns:
        One entry a source: coverage, vocabulary and seconds.

    Raises:
        TransfuseError: a tokenizer cannot be loaded, or a file is malformed.
    """
    display = Display()
    tokenizers = load_tokenizers(recipe)
    texts = [text for path in recipe.texts.values() for text in load_texts(path)]
    pieces = [piece.text for piece in cut_texts(texts, tokenizers.all, piece_limit(recipe))]
    maps, seconds = _source_maps(recipe, tokenizers, display)
    return _told(recipe, pieces, tokenizers, maps, seconds)


def _source_maps(
    recipe: FuseRecipe, tokenizers: Tokenizers, display: Display
) -> tuple[dict[str, VocabularyMap], dict[str, float]]:
    """The map of every source, and the seconds that it took."""
    maps: dict[str, VocabularyMap] = {}
    seconds: dict[str, float] = {}
    for name in tokenizers.sources:
        started = time.monotonic()
        maps[name] = _map(recipe, tokenizers, name, display)
        seconds[name] = time.monotonic() - started
    return maps, seconds


def _map(recipe: FuseRecipe, tokenizers: Tokenizers, name: str, display: Display) -> VocabularyMap:
    """From one vocabulary to the target's: its own is mapped to itself, control tokens and all."""
    kind = recipe.fusion.map
    source = tokenizers.target if name == TARGET else tokenizers.sources[name]
    if tokenizer_fingerprint(source) == tokenizer_fingerprint(tokenizers.target):
        n_ids = len(token_bytes(source))
        mapped = VocabularyMap(np.arange(n_ids, dtype=np.int32), np.zeros(n_ids, dtype=np.uint8), kind)
    else:
        with display.bar(f"vocabulary of {name}") as advance:
            mapped = map_vocabulary(source, tokenizers.target, kind, on_strings=without_note(advance))
    # Tokens added to a tokenizer (for padding, say) may have no row in its model.
    config = load_config(recipe.target, trust_remote_code=recipe.trust_remote_code).get_text_config()
    is_known = mapped.target_ids < config.vocab_size
    return VocabularyMap(
        np.where(is_known, mapped.target_ids, -1),
        np.where(is_known, mapped.distances, UNMAPPED_DISTANCE),
        mapped.kind,
    )


def _told(
    recipe: FuseRecipe,
    texts: Sequence[str],
    tokenizers: Tokenizers,
    maps: Mapping[str, VocabularyMap],
    seconds: Mapping[str, float],
) -> list[dict[str, Any]]:
    chosen = (
        np.linspace(0, len(texts) - 1, min(len(texts), recipe.fusion.n_coverage_pieces)).round().astype(int)
    )
    sample = [texts[int(n)] for n in np.unique(chosen)]
    target = token_spans(tokenizers.target, sample)
    target_tokens = plain_tokens(tokenizers.target) if recipe.fusion.align == "min-edit" else []
    told: list[dict[str, Any]] = []
    for name, tokenizer in tokenizers.sources.items():
        source = token_spans(tokenizer, sample)
        started = time.monotonic()
        taught = None
        if recipe.fusion.align == "min-edit":
            tokens = plain_tokens(tokenizer), target_tokens
            taught = [
                align_by_edits(one, other, *tokens, maps[name]).is_taught
                if len(one.token_ids) and len(other.token_ids)
                else np.zeros(len(other.token_ids), dtype=bool)
                for one, other in zip(source, target, strict=True)
            ]
        coverage = pair_coverage(
            sample,
            source,
            target,
            source_name=name,
            target_name=short_name(recipe.target) or recipe.target,
            needs_one_to_one=recipe.fusion.map != "retokenize",
            taught=taught,
        )
        elapsed = time.monotonic() - started
        told.append(
            {
                "source": name,
                "coverage": coverage.to_json(),
                "vocabulary": _vocabulary(maps[name], tokenizer, tokenizers.target),
                "map_seconds": seconds[name],
                "align_seconds": elapsed,
            }
        )
    return told


def _vocabulary(
    mapped: VocabularyMap, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase
) -> dict[str, Any]:
    summary = map_summary(mapped, token_bytes(source), token_bytes(target))
    return {
        "n_source": summary.n_source,
        "n_exact": summary.n_exact,
        "n_mapped": sum(summary.n_by_distance.values()),
        "n_unmapped": summary.n_unmapped,
        "overlap": summary.n_exact / summary.n_source if summary.n_source else None,
        "by_distance": {str(distance): n for distance, n in summary.n_by_distance.items()},
        "examples": [
            {"source": _writable(one), "target": _writable(other), "distance": distance}
            for one, other, distance in summary.examples
        ],
    }


def _writable(text: str) -> str:
    """Text that JSON can hold: bytes that are no character of their own are spelled out."""
    return text.encode(errors="backslashreplace").decode()


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"

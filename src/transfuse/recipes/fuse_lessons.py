"""What the trained models of a fusion run learn: distributions of the sources, aligned and fused with the target's."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfuse.errors import CacheError
from transfuse.fuse.distributions import write_distributions
from transfuse.fuse.fusion_settings import FusionSettings
from transfuse.fuse.source_states import plain_tokens
from transfuse.fuse.target_files import TargetRows, write_plain_targets, write_targets
from transfuse.fuse.targets import FusedPiece, FusionSource, fuse_piece
from transfuse.fuse.vocabulary_map import VocabularyMap
from transfuse.io.distribution_cache import DistributionCache, refuse_other_texts, verify
from transfuse.io.files import write_json
from transfuse.io.fingerprint import model_fingerprint, tokenizer_fingerprint
from transfuse.io.models import load_model
from transfuse.io.run_folder import RunFolder
from transfuse.io.token_bytes import token_bytes
from transfuse.io.token_spans import token_spans
from transfuse.recipes.fuse_pieces import TARGET, DomainPieces, Tokenizers
from transfuse.recipes.fuse_schema import FuseRecipe
from transfuse.recipes.inject_model import without_note
from transfuse.recipes.progress import Display

CACHE_VERSION, TARGETS_VERSION = 1, 1

ONLY = "only-"
"""Begins the name of a lesson that control `distilled` learns."""

WITHOUT_EFFECT = frozenset({"min_coverage", "n_coverage_pieces"})
"""Fusion settings that change no target."""

_PIECES_A_BATCH = 128
_EXACT_BITS = 32
"""Of a cache's log-probabilities; targets of such a one are not rounded either."""


@dataclass(frozen=True, eq=False)
class CachedSource:
    """One source with its distributions."""

    name: str
    cache: DistributionCache
    key: str
    seconds: float
    """Of the pass that wrote the cache."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """Fused targets of one set of sources."""

    name: str
    sources: list[str]
    folder: Path
    key: str
    seconds: float

    def rows(self) -> TargetRows:
        """Training rows, read from disk when they are asked for."""
        return TargetRows(self.folder)


def cache_sources(
    recipe: FuseRecipe, run: RunFolder, display: Display, pieces: DomainPieces, tokenizers: Tokenizers
) -> dict[str, CachedSource]:
    """The distributions of every source, and of the target where it takes part, over the pieces.

    Args:
        recipe: names the models.
        run: the run folder; each model has a stage, and its cache is continued at the first missing shard.
        display: progress.
        pieces: to pass.
        tokenizers: of the models.

    Returns:
        The caches by name.

    Raises:
        ModelError: a model cannot be loaded, or its logits are not finite.
        CacheError: a cache that was given is of other texts or of another tokenizer.
    """
    references = dict(zip(recipe.names, recipe.sources, strict=True))
    if recipe.fusion.with_target:
        references = {TARGET: recipe.target, **references}
    found: dict[str, CachedSource] = {}
    for name, reference in references.items():
        if name in recipe.caches:
            cache = DistributionCache.open(recipe.caches[name])
            refuse_other_texts(cache, pieces.texts, "the pieces of this run")
            found[name] = CachedSource(name, cache, cache.header.model_dump_json(), 0.0)
        else:
            found[name] = _passed(recipe, run, display, pieces, name, reference)
    return found


def check_caches(recipe: FuseRecipe, tokenizers: Tokenizers) -> None:
    """Look at the caches that were given, before anything is made.

    Args:
        recipe: names them.
        tokenizers: of the models.

    Raises:
        CacheError: one is missing, unfinished, cut short, of another tokenizer, or keeps too little.
    """
    for name, folder in recipe.caches.items():
        header = DistributionCache.open(folder).header
        tokenizer = tokenizers.target if name == TARGET else tokenizers.sources[name]
        if header.tokenizer_fingerprint != tokenizer_fingerprint(tokenizer):
            raise CacheError(
                f"{folder}: expected the distributions of source {name!r}, got those of a model with another tokenizer "
                f"({header.model}); give the cache that belongs to it, or leave it out of `caches`."
            )
        if header.k == 0 and recipe.fusion.divergence != "chunk-likelihood":
            raise CacheError(
                f"{folder}: keeps no tokens (k = 0), but divergence {recipe.fusion.divergence} learns them; make it "
                "with --set k=10, or give --loss chunk-likelihood."
            )


def _passed(
    recipe: FuseRecipe, run: RunFolder, display: Display, pieces: DomainPieces, name: str, reference: str
) -> CachedSource:
    key = {
        "model": model_fingerprint(reference),
        "pieces": pieces.key,
        "precision": recipe.precision,
        "settings": recipe.distributions.model_dump(mode="json"),
        "seed": recipe.seed if recipe.distributions.selection == "sampled" else None,
    }
    with run.stage(f"distributions/{name}", key, version=CACHE_VERSION) as stage:
        folder = stage.folder / "cache"
        if not stage.is_done:
            loaded = load_model(
                reference, precision=recipe.precision, trust_remote_code=recipe.trust_remote_code
            )
            with display.bar(f"distributions, {name}") as advance:
                write_distributions(
                    loaded,
                    pieces.texts,
                    folder,
                    recipe.distributions,
                    seed=recipe.seed,
                    rebuild=True,
                    on_tokens=without_note(advance),
                )
    with _own(stage.folder):
        return CachedSource(name, DistributionCache.open(folder), stage.key, run.stages[-1].seconds)


@contextmanager
def _own(folder: Path) -> Iterator[None]:
    """Say how a damaged cache of the run itself is made anew."""
    try:
        yield
    except CacheError as err:
        raise CacheError(
            f"{err}\nThis cache is the run's own: delete {folder} and run the same command again."
        ) from err


def make_lesson(
    recipe: FuseRecipe,
    run: RunFolder,
    display: Display,
    pieces: DomainPieces,
    tokenizers: Tokenizers,
    caches: Sequence[CachedSource],
    maps: Mapping[str, VocabularyMap],
    name: str,
) -> Lesson:
    """Fuse some of the sources.

    Args:
        recipe: says how.
        run: the run folder; the lesson has a stage of its own.
        display: progress.
        pieces: of text.
        tokenizers: of the models.
        caches: distributions of the sources that take part, the target among them or not.
        maps: from each one's vocabulary to the target's.
        name: of the lesson.

    Returns:
        Where the targets lie.

    Raises:
        CacheError: a cache is not the one that was written.
        RunFolderError: the disk is full.
    """
    settings = {k: v for k, v in recipe.fusion.model_dump(mode="json").items() if k not in WITHOUT_EFFECT}
    key = {
        "sources": {each.name: each.key for each in caches},
        "target": tokenizer_fingerprint(tokenizers.target),
        "settings": settings,
    }
    with run.stage(f"targets/{name}", key, version=TARGETS_VERSION) as stage:
        folder = stage.folder / "targets"
        if not stage.is_done:
            sources = [
                _fusion_source(each.name, maps[each.name], tokenizers, recipe.fusion) for each in caches
            ]
            for each in caches:
                if each.name in recipe.caches:
                    verify(each.cache)
                else:
                    with _own(each.cache.folder.parent):
                        verify(each.cache)
            started = time.monotonic()
            n_kept = recipe.fusion.n_kept or max(each.cache.header.k for each in caches)
            with display.bar(f"fusing, {name}") as advance:
                fused = _fused(pieces, tokenizers, caches, sources, recipe.fusion, without_note(advance))
                write_targets(
                    folder,
                    fused,
                    recipe.fusion,
                    n_vocab=len(token_bytes(tokenizers.target)),
                    n_kept=max(1, n_kept),
                    is_exact=any(each.cache.header.value_bits == _EXACT_BITS for each in caches),
                )
            write_json(stage.folder / "targets.json", {"seconds": time.monotonic() - started})
    return Lesson(name, [each.name for each in caches], folder, stage.key, run.stages[-1].seconds)


def plain_lesson(run: RunFolder, pieces: DomainPieces, tokenizers: Tokenizers) -> Lesson:
    """The same pieces without any source, to be learned as they are.

    Args:
        run: the run folder; the lesson has a stage of its own.
        pieces: of text.
        tokenizers: the target's is used.

    Returns:
        Where the tokens lie.

    Raises:
        RunFolderError: the disk is full.
    """
    key = {"pieces": pieces.key, "target": tokenizer_fingerprint(tokenizers.target)}
    with run.stage("targets/plain", key, version=TARGETS_VERSION) as stage:
        folder = stage.folder / "targets"
        if not stage.is_done:
            batches = (
                pieces.texts[start : start + _PIECES_A_BATCH]
                for start in range(0, len(pieces.texts), _PIECES_A_BATCH)
            )
            spans = (each for batch in batches for each in token_spans(tokenizers.target, batch))
            write_plain_targets(folder, (each.token_ids for each in spans))
    return Lesson("plain", [], folder, stage.key, run.stages[-1].seconds)


def _fusion_source(
    name: str, vocabulary: VocabularyMap, tokenizers: Tokenizers, settings: FusionSettings
) -> FusionSource:
    if settings.align == "exact":
        return FusionSource(name, vocabulary)
    tokenizer = tokenizers.target if name == TARGET else tokenizers.sources[name]
    return FusionSource(name, vocabulary, plain_tokens(tokenizer))


def _fused(
    pieces: DomainPieces,
    tokenizers: Tokenizers,
    caches: Sequence[CachedSource],
    sources: Sequence[FusionSource],
    settings: FusionSettings,
    on_pieces: Any,
) -> Iterator[FusedPiece]:
    target_tokens = plain_tokens(tokenizers.target) if settings.align == "min-edit" else ()
    for start in range(0, len(pieces.texts), _PIECES_A_BATCH):
        batch = pieces.texts[start : start + _PIECES_A_BATCH]
        for n, target in enumerate(token_spans(tokenizers.target, batch)):
            said = [each.cache.text(start + n) for each in caches]
            yield fuse_piece(target, said, sources, settings, target_tokens)
        on_pieces(start + len(batch), len(pieces.texts))

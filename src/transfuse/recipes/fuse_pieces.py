"""The texts of a fusion run, cut into pieces that every model reads whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from transfuse.errors import RecipeError
from transfuse.evaluate.bits_per_byte import load_texts
from transfuse.fuse.pieces import cut_texts
from transfuse.io.configs import load_config
from transfuse.io.files import file_sha256
from transfuse.io.fingerprint import tokenizer_fingerprint
from transfuse.io.jsonl import read_jsonl, write_jsonl
from transfuse.io.models import load_tokenizer
from transfuse.io.run_folder import RunFolder, key_digest
from transfuse.io.token_spans import token_spans
from transfuse.recipes.fuse_schema import FuseRecipe
from transfuse.recipes.inject_model import without_note
from transfuse.recipes.progress import Display

PIECES_VERSION = 1
TARGET = "target"
"""Name of the target among the sources."""

MAX_EVAL_TOKENS = 1024
"""Longest eval piece: one window of bits per byte, so that every model reads it in one go."""


@dataclass(frozen=True, eq=False)
class Tokenizers:
    """Those of target and sources."""

    target: PreTrainedTokenizerBase
    sources: dict[str, PreTrainedTokenizerBase]
    """By the source's short name."""

    @property
    def all(self) -> list[PreTrainedTokenizerBase]:
        """Each that differs, once."""
        return list(
            {tokenizer_fingerprint(each): each for each in (self.target, *self.sources.values())}.values()
        )


@dataclass(frozen=True)
class DomainPieces:
    """Pieces of the texts of several domains, one domain after the other."""

    texts: list[str]
    domains: list[str]
    """Of each piece."""
    sources: list[int]
    """Which text of its domain each piece is of."""
    key: str
    """Changes with the pieces."""

    def of(self, domain: str) -> list[int]:
        """Numbers of a domain's pieces."""
        return [n for n, each in enumerate(self.domains) if each == domain]

    @property
    def names(self) -> list[str]:
        """The domains, in order."""
        return list(dict.fromkeys(self.domains))


def load_tokenizers(recipe: FuseRecipe) -> Tokenizers:
    """Tokenizers of target and sources.

    Args:
        recipe: names the models.

    Returns:
        One each; no weights are loaded.

    Raises:
        ModelError: a model has none that can be loaded, or one written in Python.
    """
    trust = recipe.trust_remote_code
    found = Tokenizers(
        load_tokenizer(recipe.target, trust_remote_code=trust),
        {
            name: load_tokenizer(reference, trust_remote_code=trust)
            for name, reference in zip(recipe.names, recipe.sources, strict=True)
        },
    )
    for tokenizer in found.all:
        token_spans(tokenizer, [""])  # refuses one that cannot say what its tokens cover
    return found


def piece_limit(recipe: FuseRecipe) -> int:
    """Longest piece that every model reads whole.

    Args:
        recipe: names the models, and what is allowed.

    Returns:
        Tokens, of whichever model cuts finest.

    Raises:
        RecipeError: a context too short for anything.
        ModelError: a model has no configuration.
    """
    limits = {"max_length_tokens": recipe.max_length_tokens}
    for reference in dict.fromkeys([recipe.target, *recipe.sources]):
        config = load_config(reference, trust_remote_code=recipe.trust_remote_code).get_text_config()
        context = getattr(config, "max_position_embeddings", None)
        if isinstance(context, int) and context > 0:
            limits[f"the context of {reference}"] = context
    name, least = min(limits.items(), key=lambda item: item[1])
    if least < 8:
        raise RecipeError(
            f"pieces: expected room for at least 8 tokens, got {least} ({name}); choose another model."
        )
    return least


def training_pieces(
    recipe: FuseRecipe, run: RunFolder, display: Display, tokenizers: Tokenizers
) -> DomainPieces:
    """The pieces to learn, drawn evenly from all where the recipe wants fewer.

    Args:
        recipe: names the texts.
        run: the run folder.
        display: progress.
        tokenizers: of all models.

    Returns:
        The pieces, written as `pieces/pieces.jsonl`.

    Raises:
        DataError: a file is malformed.
    """
    return _pieces(
        recipe,
        run,
        display,
        tokenizers,
        "pieces",
        dict(recipe.texts),
        piece_limit(recipe),
        n_pieces=recipe.n_pieces,
    )


def eval_pieces(
    recipe: FuseRecipe, run: RunFolder, display: Display, tokenizers: Tokenizers
) -> DomainPieces | None:
    """The pieces that measure; None where the recipe names no eval texts."""
    if not recipe.evaluate.texts:
        return None
    return _pieces(
        recipe,
        run,
        display,
        tokenizers,
        "eval-pieces",
        recipe.evaluate.texts,
        min(MAX_EVAL_TOKENS, piece_limit(recipe)),
        n_texts=recipe.evaluate.n_texts,
    )


def _pieces(
    recipe: FuseRecipe,
    run: RunFolder,
    display: Display,
    tokenizers: Tokenizers,
    stage_name: str,
    files: dict[str, Path | None],
    limit: int,
    *,
    n_texts: int | None = None,
    n_pieces: int | None = None,
) -> DomainPieces:
    key = {
        "files": {name: file_sha256(path) if path else None for name, path in files.items()},
        "tokenizers": sorted(tokenizer_fingerprint(each) for each in tokenizers.all),
        "limit": limit,
        "n_texts": n_texts,
        "n_pieces": n_pieces,
        "seed": recipe.seed if n_pieces else None,
    }
    path = run.path / stage_name / "pieces.jsonl"
    with run.stage(stage_name, key, version=PIECES_VERSION, outputs=[path]) as stage:
        if not stage.is_done:
            rows: list[dict[str, object]] = []
            for domain, file in files.items():
                with display.bar(f"cutting {domain}") as advance:
                    pieces = cut_texts(
                        load_texts(file)[:n_texts], tokenizers.all, limit, without_note(advance)
                    )
                rows += [{"text": p.text, "domain": domain, "source": p.source} for p in pieces]
            write_jsonl(path, _drawn(rows, n_pieces, recipe.seed))
        loaded = [line.value for line in read_jsonl(path)]
    return DomainPieces(
        [str(row["text"]) for row in loaded],
        [str(row["domain"]) for row in loaded],
        [int(row["source"]) for row in loaded],
        key_digest({"pieces": stage.key}),
    )


def _drawn(rows: Sequence[dict[str, object]], n_pieces: int | None, seed: int) -> list[dict[str, object]]:
    """So many of the rows, in their order, each as likely as any other."""
    if n_pieces is None or n_pieces >= len(rows):
        return list(rows)
    chosen = np.random.default_rng(seed).choice(len(rows), size=n_pieces, replace=False)
    return [rows[n] for n in sorted(chosen.tolist())]

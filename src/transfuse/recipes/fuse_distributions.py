"""`transfuse fuse distributions`: one model passes over texts, and what it says is kept in a folder."""

from collections.abc import Sequence
from pathlib import Path

from transfuse.errors import ModelError
from transfuse.fuse.distributions import write_distributions
from transfuse.fuse.pieces import cut_texts
from transfuse.fuse.settings import DistributionSettings
from transfuse.generate.local import context_tokens
from transfuse.io.configs import load_config
from transfuse.io.distribution_cache import DistributionCache
from transfuse.io.models import LoadedModel, load_model, load_tokenizer
from transfuse.io.precision import Precision
from transfuse.io.texts import read_texts
from transfuse.recipes.inject_model import without_note
from transfuse.recipes.progress import Display

MIN_PIECE_TOKENS = 8


def run_distributions(
    source: str,
    text_files: Sequence[Path],
    out: Path,
    settings: DistributionSettings,
    *,
    max_length_tokens: int = 2048,
    also: Sequence[str] = (),
    precision: Precision = "auto",
    seed: int = 17,
    rebuild: bool = False,
    trust_remote_code: bool = False,
    display: Display | None = None,
) -> str:
    """Read texts, cut them into pieces, pass the model over them, and write its cache.

    Args:
        source: reference of the model.
        text_files: JSONL with rows `{"text"}`, one after the other.
        out: the cache to write; an unfinished one of the same model, texts and settings is gone on with.
        settings: what is kept.
        max_length_tokens: longest piece; shorter where a model's context is.
        also: references of further models that are to read the same pieces, so that caches of several models over
            the same files, each with the others named, hold the same texts.
        precision: the compute type.
        seed: of draws.
        rebuild: whether another cache that is there may be replaced, and damaged shards written anew.
        trust_remote_code: whether Python code that comes with a model may run.
        display: where progress is shown.

    Returns:
        What was written, in words.

    Raises:
        DataError: a file is malformed.
        ModelError: a model cannot be loaded, or gives NaN.
        CacheError: another cache is there, or a damaged one.
        RunFolderError: the folder cannot be written, or the disk is full.
    """
    display = display or Display()
    texts = [text for path in text_files for text in read_texts(path)]
    loaded = load_model(source, precision=precision, trust_remote_code=trust_remote_code)
    tokenizers = [
        loaded.tokenizer,
        *(load_tokenizer(each, trust_remote_code=trust_remote_code) for each in also),
    ]
    limit = _piece_limit(loaded, also, max_length_tokens, trust_remote_code=trust_remote_code)
    with display.bar("cutting texts") as advance:
        pieces = [piece.text for piece in cut_texts(texts, tokenizers, limit, without_note(advance))]
    with display.bar("distributions (tokens)") as advance:
        cache = write_distributions(
            loaded,
            pieces,
            out,
            settings,
            seed=seed,
            rebuild=rebuild,
            on_tokens=without_note(advance),
        )
    return written_text(cache, len(texts))


def written_text(cache: DistributionCache, n_texts: int) -> str:
    """What was written, in words.

    Args:
        cache: the finished one.
        n_texts: that its pieces were cut from.

    Returns:
        One or two lines.
    """
    header = cache.header
    n_shards = len(header.shards)
    files = f"{n_shards:,} shard{'' if n_shards == 1 else 's'}"
    size = f"{cache.bytes_per_token:.1f} bytes a token in {files}"
    lines = [
        f"{cache.folder}: {header.n_tokens:,} tokens of {header.n_texts:,} pieces of {n_texts:,} texts; {size}."
    ]
    if header.n_texts != n_texts and header.texts_sha256 is None:
        lines.append(
            "Texts were cut. Other caches fit this one if they are made with the same files and models (--with) and "
            "the same longest piece; --set keep_texts=true keeps the pieces."
        )
    return "\n".join(lines)


def _piece_limit(
    loaded: LoadedModel, also: Sequence[str], max_length_tokens: int, *, trust_remote_code: bool
) -> int:
    """Longest piece in tokens: what was asked for, and what every model's context holds."""
    limits = {"the longest piece asked for": max_length_tokens}
    own = context_tokens(loaded.model)
    if own is not None:
        limits[f"the context of {loaded.source.reference}"] = own
    for reference in also:
        config = load_config(reference, trust_remote_code=trust_remote_code)
        context = getattr(config, "max_position_embeddings", None)
        if isinstance(context, int) and context > 0:
            limits[f"the context of {reference}"] = context
    name, least = min(limits.items(), key=lambda item: item[1])
    if least < MIN_PIECE_TOKENS:
        raise ModelError(
            f"pieces: expected room for at least {MIN_PIECE_TOKENS} tokens, got {least} ({name}); choose another."
        )
    return least

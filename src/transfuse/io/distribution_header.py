"""What a cache of distributions says of itself: whose they are, of which texts, and in which files they lie."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from transfuse.errors import CacheError
from transfuse.io.files import file_sha256
from transfuse.tensors.packed_records import RecordLayout
from transfuse.types import StrictModel

FORMAT = 1
HEADER_FILE = "header.json"
PLAN_FILE = "plan.json"
TEXTS_FILE = "texts.jsonl"

DIGEST_BYTES = 32
"""Of the SHA-256 of a text."""
_COUNT_BYTES = 4

Selection = Literal["top-k", "sampled"]
ShardState = Literal["whole", "missing", "truncated", "altered"]


class CachePlan(StrictModel):
    """What makes a cache this one and no other; written before the first shard."""

    format: int = FORMAT
    model: str
    """The reference it was loaded from; it may lie elsewhere now."""
    model_fingerprint: str
    tokenizer_fingerprint: str
    precision: str
    """The type the model computed in."""
    n_logits: PositiveInt
    """Outputs of the model; more than `n_vocab` where its vocabulary is padded."""
    n_vocab: PositiveInt
    """Ids of the tokenizer that the model knows; only these are kept."""
    k: NonNegativeInt
    selection: Selection
    temperature: PositiveFloat
    """Of kept tokens and tail; the observed token's log-probability is always that of temperature 1."""
    seed: int | None
    """Of the draws; none where nothing is drawn."""
    value_bits: PositiveInt
    shard_tokens: PositiveInt
    n_texts: NonNegativeInt
    n_tokens: NonNegativeInt
    text_digest: str
    """SHA-256 of the SHA-256s of the texts, in order."""

    @property
    def layout(self) -> RecordLayout:
        """Of the records."""
        return RecordLayout(self.n_vocab, self.k, self.value_bits, self.selection == "sampled")


class ShardInfo(StrictModel):
    """One file of records, with tables of its texts behind them."""

    file: str
    n_texts: PositiveInt
    n_tokens: NonNegativeInt
    n_long: NonNegativeInt
    """Tokens whose length does not fit their records."""
    n_bytes: NonNegativeInt
    sha256: str

    def expected_bytes(self, layout: RecordLayout) -> int:
        """What the counts add up to: records, texts' digests and token counts, rows and lengths of long tokens."""
        tables = self.n_texts * (DIGEST_BYTES + _COUNT_BYTES) + 2 * self.n_long * _COUNT_BYTES
        return self.n_tokens * layout.record_bytes + tables


class Codec(StrictModel):
    """The fields of a record, for readers without this package; see `tensors/packed_records.py`."""

    record_bytes: PositiveInt
    field_bits: list[PositiveInt]
    """In order, from the least significant bit: id, length, observed, tail unless it is known, k ids, k values."""


class CacheHeader(CachePlan):
    """The plan and what came of it; written last, so its presence means that the cache is complete."""

    codec: Codec
    shards: list[ShardInfo]
    texts_sha256: str | None
    """Of the copy of the texts, where one is kept."""


def codec_of(layout: RecordLayout) -> Codec:
    """A layout as the header states it."""
    return Codec(record_bytes=layout.record_bytes, field_bits=list(layout.widths))


def text_sha256(text: str) -> bytes:
    """SHA-256 of a text's UTF-8."""
    return hashlib.sha256(text.encode()).digest()


def texts_digest(digests: Sequence[bytes]) -> str:
    """One digest, as hex, of the digests of texts in order."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def shard_name(number: int) -> str:
    """File of a shard, numbered from 0."""
    return f"shard-{number:05d}.bin"


def read_header(folder: Path) -> CacheHeader:
    """What a finished cache says of itself; its shards are not looked at.

    Args:
        folder: the cache.

    Returns:
        The contents of its header.

    Raises:
        CacheError: no cache is there, it is unfinished, of another format, or its header is damaged.
    """
    path = folder / HEADER_FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as err:
        if (folder / PLAN_FILE).is_file():
            n_done = len(list(folder.glob("shard-*.json")))
            raise CacheError(
                f"{folder}: the cache is unfinished (shards done: {n_done}); run the command that began it again, "
                f"and it goes on."
            ) from err
        got = (
            f"a folder without {HEADER_FILE}"
            if folder.is_dir()
            else "a file"
            if folder.exists()
            else "nothing"
        )
        raise CacheError(
            f"{folder}: expected a cache of distributions, found {got}; make one with "
            f"`transfuse fuse distributions --source MODEL --text FILE --out {folder}`."
        ) from err
    except (OSError, ValueError) as err:
        raise CacheError(f"{path}: cannot be read ({err}); {again()}") from err
    return _checked(path, tree)


def _checked(path: Path, tree: Any) -> CacheHeader:
    found = tree.get("format") if isinstance(tree, dict) else None
    if isinstance(tree, dict) and found != FORMAT:
        raise CacheError(
            f"{path}: expected format {FORMAT}, found {found!r}; use the version of transfuse that wrote it, "
            f"or {again()}"
        )
    try:
        header = CacheHeader.model_validate(tree)
        layout = header.layout
    except ValidationError as err:
        first = err.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "contents"
        raise CacheError(f"{path}: {name}: {first['msg']}; {again()}") from err
    except ValueError as err:
        raise CacheError(f"{path}: {err}; {again()}") from err
    sums = (sum(shard.n_texts for shard in header.shards), sum(shard.n_tokens for shard in header.shards))
    sizes_agree = all(shard.n_bytes == shard.expected_bytes(layout) for shard in header.shards)
    if header.codec != codec_of(layout) or sums != (header.n_texts, header.n_tokens) or not sizes_agree:
        raise CacheError(f"{path}: its numbers contradict each other, so it was altered; {again()}")
    return header


def read_json_model(path: Path, kind: type[CachePlan] | type[ShardInfo]) -> Any:
    """A plan or a shard's mark, or None where there is none that can be read."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def differences(there: CachePlan, now: CachePlan) -> Iterator[str]:
    """What tells two caches apart, a line each; where a model lies makes no difference.

    Args:
        there: of the cache.
        now: of what is wanted.

    Yields:
        `name: value there, value now`.
    """
    names = {
        "model_fingerprint": f"model: {there.model!r} there, {now.model!r} now (or its files have changed)",
        "tokenizer_fingerprint": "tokenizer: another one there",
        "text_digest": f"texts: others there ({there.n_texts:,} there, {now.n_texts:,} now)",
    }
    # Counts follow from the texts and the tokenizer, and would only repeat what those lines say.
    passed_over = {"model", "n_texts", "n_tokens"}
    for name in CachePlan.model_fields:
        before, after = getattr(there, name), getattr(now, name)
        if before != after and name not in passed_over:
            yield names.get(name, f"{name}: {before!r} there, {after!r} now")


def shard_state(folder: Path, shard: ShardInfo, *, verify: bool) -> ShardState:
    """Whether a shard is as it was written.

    Args:
        folder: of the cache.
        shard: what is expected.
        verify: compare the checksum too, which reads the file; else only its size.

    Returns:
        One word.
    """
    path = folder / shard.file
    try:
        n_bytes = path.stat().st_size
    except OSError:
        return "missing"
    if n_bytes != shard.n_bytes:
        return "truncated" if n_bytes < shard.n_bytes else "altered"
    return "altered" if verify and file_sha256(path) != shard.sha256 else "whole"


def again() -> str:
    """What to do about a damaged cache."""
    return "copy it again, or give --rebuild where it is made: damaged shards are then written anew."

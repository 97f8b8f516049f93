"""What the knowledge index takes and gives: settings, passages, hits, and what an index says of itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from transfuse.types import StrictModel

SearchMode = Literal["hybrid", "dense", "lexical"]
"""By meaning and by words together, by meaning (embeddings), or by words (BM25)."""

Reranker = Callable[[str, Sequence[str]], list[float]]
"""Scores of texts for a query, greater is better; such as a cross-encoder."""

Rerank = Reranker | Literal["exact"] | None
"""How the best hits are scored again: by a cross-encoder, exactly with the full-precision vectors, or not at all."""


class PassageSettings(StrictModel):
    """How documents are cut into passages."""

    max_tokens: Annotated[int, Field(ge=16)] = 128
    """Longest passage, its headings included, in tokens of the embedding model."""
    overlap_tokens: NonNegativeInt = 32
    """What a passage repeats of the one before it, in whole sentences, at most."""
    headings: bool = True
    """Whether the heading path is embedded and searched together with the text."""

    @model_validator(mode="after")
    def _passages_go_on(self) -> "PassageSettings":
        if self.overlap_tokens * 2 > self.max_tokens:
            raise ValueError(
                f"overlap_tokens is {self.overlap_tokens}; expected at most half of max_tokens ({self.max_tokens})"
            )
        return self


class HnswSettings(StrictModel):
    """The graph that finds near vectors (Malkov and Yashunin 2016, arXiv:1603.09320)."""

    connectivity: Annotated[int, Field(ge=2, le=256)] = 32
    """Links of a node (M)."""
    expansion_add: Annotated[int, Field(ge=8, le=4096)] = 128
    """Candidates weighed when a node is added (efConstruction)."""
    dtype: Literal["f32", "f16", "i8"] = "f16"
    """Precision of the vectors in the graph; those for exact scores are kept in float32 beside it."""
    exact_below: NonNegativeInt = 5000
    """With fewer passages than this every one is compared, which is then faster, and no graph is built."""


class LexicalSettings(StrictModel):
    """Okapi BM25 over words."""

    k1: Annotated[float, Field(gt=0)] = 1.5
    b: Annotated[float, Field(ge=0, le=1)] = 0.75
    stemmer: str | None = "english"
    """Snowball stemmer that words are reduced by; none keeps them whole."""


class IndexSettings(StrictModel):
    """What an index is built with; it keeps them for what is added later."""

    embedder: str = "minilm-l6-v2"
    """A sentence-transformers folder, a Hub id, or the packaged `minilm-l6-v2`."""
    passages: PassageSettings = PassageSettings()
    hnsw: HnswSettings = HnswSettings()
    lexical: LexicalSettings = LexicalSettings()


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a document's section, short enough to be embedded whole."""

    id: str
    """Digest of document, headings and text, and the number of earlier passages that share them: stays what it is as
    long as these do."""
    document: str
    """`Document.name`."""
    heading_path: tuple[str, ...]
    text: str
    span: tuple[int, int]
    """Start and end character offsets in `Document.text`."""
    page: int | None = None
    """Page (from 1) on which it begins, where the format has pages."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that a search found."""

    passage: Passage
    score: float
    """Greater is better. Cosine similarity (dense), BM25 (lexical), the sum of reciprocal ranks (hybrid), or what
    the reranker says; comparable within one search only."""


class IndexInfo(StrictModel):
    """What an index says of itself, as `index.json` holds it."""

    format: Literal[1] = 1
    id: str
    """The folder's name when it was built."""
    created: str
    updated: str
    """UTC times, ISO 8601."""
    settings: IndexSettings
    embedder_identity: str
    """Digest of the embedding model's files; queries must be embedded by the same model."""
    n_dimensions: PositiveInt
    metric: Literal["cosine"] = "cosine"
    index_type: Literal["exact", "hnsw"]
    n_documents: NonNegativeInt
    n_passages: NonNegativeInt
    generation: str
    """Folder, inside the index, of the files below."""
    files: dict[str, str]
    """SHA-256 of each file, by its path inside the generation's folder."""
    n_bytes: NonNegativeInt
    """Size of these files together."""

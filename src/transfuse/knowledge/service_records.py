"""What the service takes and gives, as its OpenAPI description shows it."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveInt

from transfuse.knowledge.catalogue import INDEX_ID, ServedIndex
from transfuse.knowledge.records import Hit, SearchMode
from transfuse.knowledge.vectors import DEFAULT_LEVEL, LEVELS
from transfuse.types import StrictModel

MAX_TOP_N = 100
MAX_QUERY_CHARACTERS = 8192
_MAX_DIMENSIONS = 65_536
_TEXT = r"^[^\x00]*[^\x00-\x20\x7f-\xa0\u1680\u2000-\u200f\u2028-\u202f\u205f-\u2060\u3000\ufeff][^\x00]*$"
"""At least one visible character and no NUL; spelt out, because `\\S` means other things in other languages."""

IndexId = Annotated[str, Field(pattern=INDEX_ID, description="An index, as `GET /indexes` lists them.")]


def _whole(value: object) -> object:
    """10.0 as 10: JSON knows one kind of number, and some languages write every one with a point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


TopN = Annotated[int, Field(ge=1, le=MAX_TOP_N), BeforeValidator(_whole)]
Level = Annotated[int, Field(ge=0, le=len(LEVELS) - 1), BeforeValidator(_whole)]


class Request(StrictModel):
    """Base of every request: types are taken as they are, and a field that is not known is refused.

    A misspelt `topN` that was passed over would give ten hits without a word.
    """

    model_config = ConfigDict(strict=True)


class SearchRequest(Request):
    """A search by text."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"query": "When does the last ferry leave?", "top_n": 5, "contract_id": "handbook"}]
        }
    )

    query: Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARACTERS, pattern=_TEXT)]
    """What is searched for, in plain words."""
    top_n: TopN = 10
    """How many passages to give at most."""
    contract_id: IndexId | None = None
    """The index to search; may be left out where exactly one is served."""
    rerank: bool | None = True
    """Whether the candidates are scored again: by the service's cross-encoder, or where it has none exactly, with
    the full-precision vectors (which mode `lexical` has no use for). Null stands for the default."""
    mode: SearchMode = "hybrid"
    """By meaning and by words together, by meaning, or by words."""
    level: Level = DEFAULT_LEVEL
    """Effort of the search by meaning, from 0 (fastest) to 4 (finds the most); without effect in small indexes, in
    which every passage is compared."""
    model: Annotated[str, Field(max_length=256)] | None = None
    """Without effect, for clients that name an embedding model: a query is always embedded by the index's own."""
    field: None = None
    """Null, for clients that send it: passages have no fields of their own to search in."""


class QueryRequest(Request):
    """A search by vector."""

    vector: Annotated[
        list[float],
        Field(
            min_length=1,
            max_length=_MAX_DIMENSIONS,
            json_schema_extra={"contains": {"not": {"const": 0}}},
        ),
    ]
    """As many finite numbers as the index has dimensions, not all zero, from the index's own embedding model; of any
    length: only its direction counts."""
    top_n: TopN = 10
    """How many passages to give at most."""
    contract_id: IndexId | None = None
    """The index to search; may be left out where exactly one is served."""
    level: Level = DEFAULT_LEVEL
    """Effort, from 0 (fastest) to 4 (finds the most)."""
    rerank: bool = True
    """Whether scores are exact cosines, from the full-precision vectors; else they are as precise as the graph."""


class Metadata(StrictModel):
    """Where a passage stands, and what it says."""

    document: str
    """Name of the document."""
    heading_path: list[str]
    """Headings above the passage, the document's title first."""
    page: PositiveInt | None
    """Page on which it begins, where the document has pages."""
    text: str
    """The passage itself."""
    span: tuple[NonNegativeInt, NonNegativeInt]
    """Start and end character offsets in the document's text."""


class FoundPassage(StrictModel):
    """A passage that was found."""

    id: str
    """Stays what it is as long as document, headings and text do."""
    score: float
    """Greater is better; comparable within one reply only."""
    metadata: Metadata

    @classmethod
    def of(cls, hit: Hit) -> "FoundPassage":
        """The same hit, as the service gives it."""
        passage = hit.passage
        metadata = Metadata(
            document=passage.document,
            heading_path=list(passage.heading_path),
            page=passage.page,
            text=passage.text,
            span=passage.span,
        )
        return cls(id=passage.id, score=hit.score, metadata=metadata)


class SearchReply(StrictModel):
    """Passages, best first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "success": True,
                    "code": 200,
                    "data": [
                        {
                            "id": "3f9c2a7be1d04c58",
                            "score": 0.8124,
                            "metadata": {
                                "document": "handbook.pdf",
                                "heading_path": ["Orvessa", "Sailings"],
                                "page": 4,
                                "text": "The last ferry leaves at a quarter past nine.",
                                "span": [10412, 10457],
                            },
                        }
                    ],
                }
            ]
        }
    )

    success: Literal[True] = True
    code: Literal[200] = 200
    data: list[FoundPassage]


class IndexCard(StrictModel):
    """What an index is."""

    id: str
    """What requests name as `contract_id`."""
    n_passages: NonNegativeInt
    """Number of entries."""
    n_documents: NonNegativeInt
    embedder: str
    """The embedding model's name; of a local folder its last part only."""
    embedder_identity: str
    """Digest of the embedding model's files."""
    n_dimensions: PositiveInt
    metric: str
    index_type: Literal["exact", "hnsw"]
    created: str
    updated: str
    """UTC times, ISO 8601."""
    n_bytes: NonNegativeInt
    searches_text: bool
    """Whether text can be searched by meaning; else by words (mode `lexical`) and by vector only."""

    @classmethod
    def of(cls, served: ServedIndex) -> "IndexCard":
        """The card of an index that is served."""
        info = served.index.info
        embedder = info.settings.embedder.rstrip("/\\")
        is_path = embedder.startswith(("/", "~", ".")) or "\\" in embedder or embedder.count("/") > 1
        return cls(
            id=served.id,
            embedder=embedder.replace("\\", "/").rpartition("/")[2] if is_path else embedder,
            embedder_identity=info.embedder_identity,
            n_passages=info.n_passages,
            n_documents=info.n_documents,
            n_dimensions=info.n_dimensions,
            metric=info.metric,
            index_type=info.index_type,
            created=info.created,
            updated=info.updated,
            n_bytes=info.n_bytes,
            searches_text=served.embedder is not None,
        )


class IndexesReply(StrictModel):
    """All indexes, sorted by id."""

    success: Literal[True] = True
    code: Literal[200] = 200
    data: list[IndexCard]


class IndexReply(StrictModel):
    """One index."""

    success: Literal[True] = True
    code: Literal[200] = 200
    data: IndexCard


class Health(StrictModel):
    """How the service is."""

    status: Literal["ok", "degraded"]
    """Degraded: it answers, but something that should be served is not, or not in full."""
    version: str
    n_indexes: NonNegativeInt
    needs_key: bool
    """Whether requests must carry the header `x-api-key`."""
    problems: list[str]
    """What is wrong, in words; details are in the service's log."""


class ErrorReply(StrictModel):
    """Why a request was not answered."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"success": False, "code": 422, "error": "top_n: Input should be less than or equal to 100"}
            ]
        }
    )

    success: Literal[False] = False
    code: Annotated[int, Field(ge=400, le=599)]
    """The HTTP status."""
    error: str

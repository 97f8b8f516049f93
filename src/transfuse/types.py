"""What crosses the walls between rooms: small frozen records, no behaviour."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

IGNORE_INDEX = -100
"""Label of a token that gives no loss, as in transformers."""

IS_MODEL_REFERENCE = "model reference"
ModelReference = Annotated[str, IS_MODEL_REFERENCE]
"""A Hub id, a folder, a .gguf file or a bundled name; in a recipe relative to its folder where it is a path."""

Basis = Literal["fact", "token"]
Split = Literal["train", "eval"]
PairKind = Literal["direct", "reverse", "two-facts", "unknown"]
"""What a question asks for: the fact's answer; its subject, the answer being given; something that takes two facts;
something near the fact that the document does not say."""


@dataclass(frozen=True, slots=True)
class Document:
    """One file as text."""

    name: str
    """Path relative to the given folder, or the file name."""
    text: str
    """Markdown (headings as `#` lines); for .md and .txt exactly the file's text."""
    format: Literal["md", "txt", "html", "pdf", "docx"]
    page_starts: tuple[int, ...] = ()
    """Character offset in `text` at which each page begins; empty where the format has no pages."""


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a document under one heading, cleaned."""

    document: str
    """`Document.name`."""
    heading_path: tuple[str, ...]
    """Headings from the document's title down to this section's own; empty where there is none."""
    text: str
    """Cleaned text without the heading."""
    span: tuple[int, int]
    """Start and end character offsets in `Document.text`, heading excluded."""
    page: int | None = None
    """Page (from 1) on which the section begins."""

    @property
    def title(self) -> str:
        """The section's own heading, or the document's name where it has none."""
        return self.heading_path[-1] if self.heading_path else self.document


@dataclass(frozen=True, slots=True)
class Dropped:
    """Something left out, and why; every filter returns these beside what it keeps."""

    kind: str
    """What sort of thing: `section`, `document`, `table`, `pair`, `fact`, `record`."""
    what: str
    """The thing itself, short enough to read in a list."""
    reason: str
    """Why, in words a user understands."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One atomic, self-contained statement."""

    id: str
    section: str
    fact: str
    span: tuple[int, int] | None = None
    """Start and end character offsets in `Document.text` of what states it."""
    paraphrases: tuple[str, ...] = ()
    """The same statement in other words."""


@dataclass(frozen=True, slots=True)
class QAPair:
    """A question with its short gold answer."""

    id: str
    """Position in its file, as `q` and the line number."""
    basis: Basis
    source: str
    """The fact's id (basis `fact`) or the section's title (basis `token`)."""
    split: Split
    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    kind: PairKind = "direct"
    also: tuple[str, ...] = ()
    """Ids of further facts that the answer takes (kind `two-facts`)."""


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


@dataclass(frozen=True, slots=True)
class TaskItem:
    """One sample of a task: a conversation and the answer that it is to end with."""

    id: str
    messages: tuple[Turn, ...]
    """The turns before the answer; none where the answer is a plain text that is learned whole."""
    answer: str
    """The gold answer, or the plain text."""
    aliases: tuple[str, ...] = ()
    """Further right answers."""
    group: str = ""
    """What the item belongs to: its category, or its data set."""

    @property
    def question(self) -> str:
        """The last turn before the answer; empty for a plain text."""
        return self.messages[-1].content if self.messages else ""


class Estimate(NamedTuple):
    """A mean with its 95 % interval."""

    value: float | None
    """None where nothing could be scored."""
    low: float | None
    high: float | None
    n: int
    """Number of scored items."""


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """One question, the answer a model gave, and its scores."""

    item: str
    """`QAPair.id`."""
    source: str
    question: str
    gold: str
    answer: str
    scores: dict[str, float] = field(default_factory=dict)
    """Metric name to value in 0..1; empty where the item could not be scored."""
    reason: str = ""
    """Why the item could not be scored."""


class StrictModel(BaseModel):
    """Base of every settings class: unknown keys are refused, values never change after checking."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

"""The recipe of an evaluation: one system on everything that is asked of it, perhaps beside a second one."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from transfuse.baselines.rag_settings import RagSettings
from transfuse.evaluate.benchmark_settings import BenchmarkSettings
from transfuse.evaluate.judging_settings import JudgeSettings
from transfuse.io.precision import Precision
from transfuse.text.task_answers import AnswerKind
from transfuse.types import ModelReference, Split, StrictModel

Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^/\\\s.][^/\\\n\r\t]*$")]
"""Of a set of items: it stands in metrics behind a slash, and in the names of folders."""

UNANSWERABLE = "unanswerable"
"""Name of the questions that nothing answers, in metrics."""

DEFAULT_PASSAGES = 3
"""Passages before each question where nothing chooses their number."""


class QuestionSettings(StrictModel):
    """One set of knowledge questions."""

    qa: Path
    """JSONL of questions and answers, as for `inject`; plain rows `{"question", "answer"}` will do."""
    split: Split | None = "eval"
    """Of rows that name a split, those of this one; none asks all."""
    facts: Path | None = None
    """JSONL of facts, needed only to find the right section for `section_context`."""
    n_items: PositiveInt | None = None
    """Questions, the first; none means all."""
    max_new_tokens: PositiveInt = 64
    """An answer that has not ended by then is cut."""


class UnanswerableSettings(StrictModel):
    """Questions that nothing answers: a model should decline them."""

    file: Path
    """JSONL of rows with a `question`, such as the pairs of kind `unknown` that `inject` writes."""
    n_items: PositiveInt | None = None
    """Questions, the first; none means all."""
    max_new_tokens: PositiveInt = 64
    """An answer that has not ended by then is cut."""


class SampleSettings(StrictModel):
    """One file of chat samples, as `transfer` takes them."""

    file: Path
    """JSONL of conversations that end with their answer."""
    answers: Literal["auto"] | AnswerKind = "auto"
    """How answers are compared: their final number, their letter, or as text; `auto` sees by the gold answers."""
    generate: bool = True
    """Let the model answer; off measures the gold answers' bits per byte only, which takes far less time."""
    n_items: PositiveInt | None = None
    """Samples, the first; none means all."""
    max_new_tokens: PositiveInt = 256
    """An answer that has not ended by then is cut."""


class CoverageFiles(StrictModel):
    """Which facts a file of questions carries; says something of the file, not of the model."""

    facts: Path
    """JSONL of facts."""
    qa: Path
    """JSONL of questions and answers."""
    split: Split | None = "train"
    """Of rows that name a split, those of this one; none takes all."""
    embedder: ModelReference | None = "minilm-l6-v2"
    """Embedding model; none compares words only."""


class RetrievalSettings(RagSettings):
    """Passages that a search finds, put before each knowledge question."""

    documents: Path
    """A file or a folder, searched."""
    tuning: Path | None = None
    """Questions and answers whose training questions choose the number of passages among `candidates`; none gives
    `k`, or 3 where that is none as well."""

    @property
    def n_passages(self) -> int | None:
        """How many passages are given; None where it is to be chosen."""
        return self.k if self.k is not None or self.tuning is not None else DEFAULT_PASSAGES


class SectionContextSettings(StrictModel):
    """The section that holds the answer, put before each knowledge question: what a perfect search would give."""

    documents: Path
    """A file or a folder; questions whose section is not in it are not asked."""


class SystemSettings(StrictModel):
    """What is evaluated: a model with whatever belongs to it."""

    model: ModelReference
    """Model reference: a Hub id, a folder, a .gguf file or a bundled name."""
    adapter: Path | None = None
    """A PEFT adapter to put onto the model."""
    ensemble: list[ModelReference] = []
    """Further models whose probabilities are averaged with the model's. With the same vocabulary they are asked
    everything; with others only bits per byte of texts can be measured."""
    retrieval: RetrievalSettings | None = None
    section_context: SectionContextSettings | None = None

    @model_validator(mode="after")
    def _one_context(self) -> "SystemSettings":
        if self.retrieval is not None and self.section_context is not None:
            raise ValueError(
                "retrieval and section_context both put a text before each question; choose one of them"
            )
        return self

    @property
    def system(self) -> "SystemSettings":
        """These settings alone."""
        return SystemSettings.model_validate(
            {name: getattr(self, name) for name in SystemSettings.model_fields}
        )


class EvalRecipe(SystemSettings):
    """Measure a model, perhaps with an adapter, further models or a search, on everything that is named."""

    kind: Literal["eval"] = "eval"
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Of everything that is drawn; a run without one is refused."""
    precision: Precision = "auto"
    trust_remote_code: bool = False
    """Whether Python code that comes with a model may run."""
    against: SystemSettings | None = None
    """A second system, measured on the same items; the report compares the two pair by pair."""
    benchmarks: dict[Name, BenchmarkSettings] = {}
    """Benchmarks by name; `transfuse eval --list` shows those that come with the package."""
    questions: dict[Name, QuestionSettings] = {}
    """Sets of knowledge questions, by a name of your own."""
    unanswerable: UnanswerableSettings | None = None
    samples: dict[Name, SampleSettings] = {}
    """Chat samples, by a name of your own."""
    texts: dict[Name, Path | None] = {}
    """Texts for bits per byte, by name: JSONL of `{"text"}`; none means those that come with the package."""
    n_texts: PositiveInt | None = None
    """Texts of each file, the first; none means all."""
    coverage: CoverageFiles | None = None
    judge: JudgeSettings | None = None
    """A judge model that says which of two replies to an instruction is better: the model's, or that of `against`
    (where there is none, the one in the file)."""
    latency_n: NonNegativeInt = 8
    """Items that are asked once more, one at a time, to see how long an answer takes; 0 leaves it out."""
    max_batch_rows: PositiveInt = 64
    """Items that a benchmark puts through the model at once."""
    cache: bool = True
    """Keep replies and results in the user's cache, for other runs that ask the same of the same model."""
    n_shown: NonNegativeInt = 300
    """Items of each set that the report shows with prompt and reply."""

    @property
    def systems(self) -> dict[str, SystemSettings]:
        """What is measured, by the row's name."""
        return {"model": self.system} | ({"against": self.against} if self.against is not None else {})

    @model_validator(mode="after")
    def _measures_something(self) -> "EvalRecipe":
        named = (self.benchmarks, self.questions, self.samples, self.texts)
        if not any((*named, self.unanswerable, self.coverage, self.judge)):
            raise ValueError(
                "nothing to measure; name benchmarks (--tasks), questions (--qa), samples (--samples) or texts (--text)"
            )
        names = [name for group in named for name in group]
        twice = next((name for name in names if names.count(name) > 1 or name == UNANSWERABLE), None)
        if twice is not None:
            raise ValueError(
                f"{twice!r} names two sets, whose metrics could not be told apart; rename one of them"
            )
        return self

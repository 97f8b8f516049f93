"""The recipe of a comparison: one student, what it is to learn, the ways to try, and what is measured of each."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from transfuse.baselines.rag_settings import RagSettings
from transfuse.evaluate.judging_settings import JudgeSettings
from transfuse.generate.settings import GeneratorSettings
from transfuse.io.precision import Precision
from transfuse.recipes.eval_schema import BenchmarkSettings, Name, SampleSettings, UnanswerableSettings
from transfuse.types import ModelReference, StrictModel

BudgetKind = Literal["as-set", "equal-tokens", "tuned-best", "tuned-at-equal-tokens"]
"""How long rows train and at which learning rate: as their recipes say; all on so many tokens, at their own rate; each
at the best of the rates tried, as long as its recipe says; or both."""

WITH_TOKENS: frozenset[BudgetKind] = frozenset({"equal-tokens", "tuned-at-equal-tokens"})
WITH_TUNING: frozenset[BudgetKind] = frozenset({"tuned-best", "tuned-at-equal-tokens"})

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._ -]*")


class Budget(StrictModel):
    """How much each trained row may train, and whether its learning rate is searched."""

    kinds: list[BudgetKind] = []
    """Every trained row is there once for each; none means `equal-tokens` where `training_tokens` is set, else
    `as-set`."""
    training_tokens: PositiveInt | None = None
    """Tokens that every trained row reads, padding not counted."""
    learning_rates: Annotated[list[PositiveFloat], Field(min_length=1)] = [3e-4, 1e-3, 3e-3]
    """Tried by each trained row with the first seed, where it is tuned; the best on development items is taken."""
    development_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Share of training samples and texts that no row trains on where rates are tuned, to choose them on."""

    @property
    def tables(self) -> list[BudgetKind]:
        """The kinds asked for, each once."""
        own: list[BudgetKind] = ["equal-tokens"] if self.training_tokens else ["as-set"]
        return list(dict.fromkeys(self.kinds or own))

    @model_validator(mode="after")
    def _tokens_belong_to_a_kind(self) -> "Budget":
        counted = WITH_TOKENS & set(self.tables)
        if counted and self.training_tokens is None:
            raise ValueError(f"kind {sorted(counted)[0]} needs training_tokens; set how many")
        if self.training_tokens is not None and not counted:
            raise ValueError("training_tokens is set, but no kind uses it; add equal-tokens to kinds")
        return self


class Knowledge(StrictModel):
    """What is to be learned: documents, a task, texts, or several of them."""

    documents: Path | None = None
    """A file or a folder, for the document route."""
    include: list[str] = []
    """Patterns of sections to use; none means all."""
    exclude: list[str] = []
    """Patterns of sections to leave out."""
    facts: Path | None = None
    """JSONL of facts; none has the generator write them."""
    qa: Path | None = None
    """JSONL of questions and answers; none has the generator write them."""
    generator: GeneratorSettings | None = None
    """Who writes facts and questions that are not given."""
    kept_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of the facts that no row trains on: the control for answer style."""
    teacher: ModelReference | None = None
    """Model reference of a larger model, for transfer and distillation."""
    task: Path | None = None
    """JSONL of seed samples for transfer; none takes the training file."""
    train_file: Path | None = None
    """JSONL of training samples of a task."""
    task_adapter: Path | None = None
    """The teacher's task adapter, for delta transport."""
    texts: dict[str, Path] = {}
    """Texts to learn by name of the domain, for fusion and plain training on texts."""
    sources: list[ModelReference] = []
    """Model references of the models to fuse, to average or to merge."""

    @model_validator(mode="after")
    def _questions_have_a_source(self) -> "Knowledge":
        if self.documents is None:
            given = [name for name in ("facts", "qa", "generator") if getattr(self, name) is not None]
            if given:
                raise ValueError(
                    f"{given[0]} is given without documents; name the documents that it is about"
                )
            return self
        if self.qa is not None and self.facts is None:
            raise ValueError("qa is given without facts, which its rows name; give both files")
        if self.qa is None and self.generator is None:
            raise ValueError("expected facts and qa files, or a generator that writes them")
        return self


class CompareRow(StrictModel):
    """One row of the table: how the student learns, and what it is given when it is asked."""

    route: str
    """How it learns; `docs/compare.md` lists the routes."""
    set: dict[str, Any] = {}
    """Keys of the route's own recipe, dotted or nested, as `transfuse run --set` takes them."""
    retrieval: bool | RagSettings = False
    """Whether passages of the documents stand before each question; settings in place of `true` say how."""
    model: ModelReference | None = None
    """Of route `given`: the model to be measured; none means the student."""
    adapter: Path | None = None
    """Of route `given`: a PEFT folder to put onto the model."""
    members: list[ModelReference] = []
    """Of routes `ensemble` and `merge`: model references; none means `knowledge.sources`."""


class CompareEvaluate(StrictModel):
    """What is measured of every row."""

    benchmarks: dict[Name, BenchmarkSettings] = {}
    """Benchmarks by name, as in recipes of kind `eval`."""
    samples: dict[Name, SampleSettings] = {}
    """Chat samples by name, as in recipes of kind `eval`."""
    texts: dict[Name, Path | None] = {}
    """Texts for bits per byte, by name; none means those that come with the package."""
    n_texts: PositiveInt | None = None
    """Texts of each file, the first; none means all."""
    unanswerable: UnanswerableSettings | None = None
    """Questions that nothing answers, as in recipes of kind `eval`."""
    judge: JudgeSettings | None = None
    """A judge model that compares each row's replies to instructions with those in their file."""
    direct: bool = True
    """Ask one training question of each trained fact, word for word."""
    reworded: bool = True
    """Ask the eval questions of the trained facts, whose wording no row has seen."""
    kept_out: bool = True
    """Ask the eval questions of the facts that no row trains on."""
    n_questions: PositiveInt | None = None
    """Of each set of questions, drawn with the seed; none means all."""
    max_new_tokens: PositiveInt = 64
    """Longest answer to a question."""
    latency_n: NonNegativeInt = 8
    """Single answers timed one at a time; 0 leaves it out."""
    learned: list[str] = []
    """Names of benchmarks, samples or texts that count as new knowledge, beside the questions about the documents, the
    samples of a task that is trained, and the texts that are; all others tell of general ability."""
    main_metric: str | None = None
    """What rows are ranked by, such as `f1/reworded`; none takes that, or the first of what is measured."""


class CompareRecipe(StrictModel):
    """Put every way to get knowledge into a student side by side, on the same items."""

    kind: Literal["compare"] = "compare"
    student: ModelReference
    """Model reference of the model to change; its own files stay untouched."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Of everything that is drawn; a run without one is refused."""
    n_seeds: PositiveInt = 1
    """Trainings of every trained row, with seeds counted up from `seed`; the same facts are kept out of all."""
    precision: Precision = "auto"
    trust_remote_code: bool = False
    """Whether Python code that comes with a model may run."""
    budget: Budget = Budget()
    knowledge: Knowledge = Knowledge()
    evaluate: CompareEvaluate = CompareEvaluate()
    rows: Annotated[dict[str, CompareRow], Field(min_length=1)]
    """The table's rows by name, in order; the first is what the others are held against."""

    @field_validator("rows")
    @classmethod
    def _names_are_names(cls, rows: dict[str, CompareRow]) -> dict[str, CompareRow]:
        for name in rows:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} is no name for a row; use letters, digits, blanks and any of + . _ -, a letter or digit "
                    "first"
                )
        return rows

    @model_validator(mode="after")
    def _measures_something(self) -> "CompareRecipe":
        asked = self.evaluate
        has_questions = self.knowledge.documents is not None and (
            asked.direct or asked.reworded or asked.kept_out
        )
        if not (has_questions or asked.benchmarks or asked.samples or asked.texts or asked.unanswerable):
            raise ValueError(
                "evaluate: nothing would be measured; name benchmarks, samples or texts, or documents with "
                "questions in knowledge"
            )
        return self

"""`report.json` of a finished run folder, read and checked.

Fields that a kind of run does not write stay empty, and fields of a later version are kept: a report written
by another version can still be read.
"""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from transfuse.errors import RunFolderError
from transfuse.report.compare_parts import Compare
from transfuse.report.eval_parts import Eval, SystemCosts
from transfuse.report.fuse_parts import Fuse
from transfuse.report.parts import CurvePoint, MetricValue, ReportPart
from transfuse.report.transfer_parts import Arm, Comparison, Transfer

REPORT_FILE = "report.json"


class Row(ReportPart):
    """One line of the result table: a model, or a model on one group of questions."""

    name: str
    metrics: dict[str, MetricValue] = Field(default_factory=dict)


class Stage(ReportPart):
    """One stage of the run."""

    name: str
    seconds: float
    reused: bool = False
    """True where an earlier run had already done the same work."""


class Training(ReportPart):
    """What was trained, on how much, and how the loss went."""

    method: str | None = None
    n_records: int | None = None
    n_tokens: int | None = None
    seconds: float | None = None
    tokens_per_s: float | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    curve: list[CurvePoint] = Field(default_factory=list)


class Item(ReportPart):
    """One question with the answers of each model."""

    question: str
    gold: str
    aliases: list[str] = Field(default_factory=list)
    answers: dict[str, str] = Field(default_factory=dict)
    """Model name to its answer."""
    scores: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Model name to metric name to value in 0..1; empty where the answer could not be scored."""
    reason: dict[str, str] = Field(default_factory=dict)
    """Model name to why its answer could not be scored."""


class FactResult(ReportPart):
    """One fact and the questions asked about it."""

    id: str
    section: str
    fact: str
    kept_out: bool = False
    """True where the fact was left out of training, as a control."""
    n_train_questions: int | None = None
    fate: str | None = None
    """Whether its questions could be written: covered, short, skipped or failed; None where they were given."""
    fate_reason: str = ""
    known: bool | None = None
    """Whether the untouched model answered its probe; None where it was not asked."""
    n_by_answer: int | None = None
    """Training pairs that carry it, by the answer standing in it."""
    n_by_similarity: int | None = None
    """Training pairs that carry it, by embedding similarity; None where none was measured."""
    items: list[Item] = Field(default_factory=list)


class SectionSummary(ReportPart):
    """One section of the documents and what was found in it."""

    document: str
    title: str
    page: int | None = None
    n_facts: int = 0
    n_characters: int = 0


class DroppedThing(ReportPart):
    """Something left out, and why."""

    kind: str
    what: str
    reason: str


class AskedCounts(ReportPart):
    """What one writing stage asked of its generator."""

    n_asked: int = 0
    n_cached: int = 0
    """Answered from the cache, at no cost."""
    n_sent: int = 0
    n_failed: int = 0
    n_prompt_tokens: int = 0
    n_reply_tokens: int = 0


class SentenceWithoutFact(ReportPart):
    """A sentence of the documents that gave no fact."""

    section: str
    text: str
    reason: str


class Writing(ReportPart):
    """How a generator turned the documents into facts and questions."""

    generator: str
    stages: dict[str, AskedCounts] = Field(default_factory=dict)
    cost: float | None = None
    """At the prices given."""
    n_sentences: int = 0
    sentences_without_fact: list[SentenceWithoutFact] = Field(default_factory=list)
    fates: dict[str, int] = Field(default_factory=dict)
    """How many facts (basis `token`: sections) came to each fate."""
    n_pairs: int = 0
    """Pairs that passed every check and are used."""
    n_surplus_pairs: int = 0
    """Pairs that passed as well, beyond what the scale asks for."""
    n_dropped_pairs: int = 0
    """Pairs that failed a check."""
    drop_reasons: dict[str, int] = Field(default_factory=dict)


class Coverage(ReportPart):
    """Which facts the training pairs carry."""

    n_facts: int = 0
    n_by_answer: int = 0
    """Facts that at least one pair carries, by the answer standing in the fact."""
    n_by_similarity: int | None = None
    embedder: str | None = None
    note: str = ""
    """Why there is no similarity, where there is none."""


class TriedK(ReportPart):
    """One number of passages, tried on training questions."""

    k: int
    f1: MetricValue = MetricValue()
    recall: MetricValue = MetricValue()
    """Share of the questions whose passages contain the gold answer."""


class Rag(ReportPart):
    """How the passages were found that stand before the questions of some rows."""

    k: int
    """How many stand before each question."""
    embedder: str | None = None
    """None where words alone were searched for."""
    mode: str | None = None
    rerank: str | None = None
    """What scored the best hits again: a model, or `exact` vectors."""
    n_passages: int | None = None
    passage_tokens: int | None = None
    """Greatest length of a passage."""
    n_tuning_questions: int = 0
    tuning: list[TriedK] = Field(default_factory=list)
    """Every number of passages that was tried; empty where the number was given."""
    recall: MetricValue = MetricValue()
    """Share of the eval questions whose passages contain the gold answer."""
    recall_kept_out: MetricValue = MetricValue()
    """The same of the facts that were kept out of training."""
    n_shortened: int = 0
    """Eval questions before which fewer passages stand than were to."""


class Result(ReportPart):
    """What the run made, and how to load it."""

    path: str
    kind: str
    base_model: str | None = None
    load: str | None = None
    """Python code."""


class Report(ReportPart):
    """The whole report of one run."""

    kind: str
    model: str
    seed: int
    rows: list[Row]
    stages: list[Stage] = Field(default_factory=list)
    title: str | None = None
    created: str | None = None
    """ISO 8601 time."""
    version: str | None = None
    """Version of Transfuse that made the run."""
    hardware: str | None = None
    command: str | None = None
    training: Training | None = None
    writing: Writing | None = None
    """None where facts and questions were given as files."""
    coverage: Coverage | None = None
    rag: Rag | None = None
    """None where no passages were searched for."""
    transfer: Transfer | None = None
    """None but for transfer runs; those that only extract write this part alone."""
    fuse: Fuse | None = None
    """None but for fuse runs."""
    compare: Compare | None = None
    """None but for comparisons."""
    eval: Eval | None = None
    """None but for evaluations."""
    costs: dict[str, SystemCosts] = Field(default_factory=dict)
    """Of evaluations: what each row took."""
    arms: list[Arm] = Field(default_factory=list)
    comparisons: list[Comparison] = Field(default_factory=list)
    facts: list[FactResult] = Field(default_factory=list)
    sections: list[SectionSummary] = Field(default_factory=list)
    dropped: list[DroppedThing] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    result: Result | None = None

    @model_validator(mode="before")
    @classmethod
    def _extraction_has_no_rows(cls, content: Any) -> Any:
        is_transfer = isinstance(content, dict) and content.get("kind") == "transfer"
        return {"rows": [], **content} if is_transfer else content


def read_report(run: Path) -> Report:
    """The report of a finished run.

    Args:
        run: folder of the run.

    Returns:
        The report; parts that this kind of run does not write are empty.

    Raises:
        RunFolderError: there is no such folder, the run is not finished, or `report.json` is malformed.
    """
    path = run / REPORT_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as err:
        raise RunFolderError(_why_absent(run)) from err
    except (OSError, UnicodeDecodeError) as err:
        raise RunFolderError(f"{path}: cannot be read: {err}; {_REMEDY}") from err
    try:
        return Report.model_validate_json(text)
    except ValidationError as err:
        raise RunFolderError(f"{path}: not a report: {_first_fault(err)}; {_REMEDY}") from err


_REMEDY = "delete the file and run the same command again to write it anew; finished stages are reused."


def _why_absent(run: Path) -> str:
    """Why a folder has no report, and what to do."""
    if not run.exists():
        return f"{run}: expected the folder of a finished run, found nothing; check the path."
    if not run.is_dir():
        return f"{run}: expected the folder of a finished run, found a file; give the folder that holds it."
    return (
        f"{run}: holds no {REPORT_FILE}: the run is not finished, or this is not a run folder; "
        "run the same command again to resume it."
    )


def _first_fault(err: ValidationError) -> str:
    """The first thing that is wrong, with its path in the file."""
    fault = err.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}" if where else fault["msg"]

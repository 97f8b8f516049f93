"""The parts of `report.json` that comparisons write."""

from typing import Any, Literal

from pydantic import Field

from transfuse.report.parts import MetricValue, ReportPart

MetricGroup = Literal["knowledge", "general", "refusals"]


class RowCosts(ReportPart):
    """What a row took, means over its seeds; None where nothing was trained, or nothing is known."""

    training_tokens: float | None = None
    training_s: float | None = None
    """Of the whole training job: reading a teacher or sources, training, saving."""
    training_memory_bytes: float | None = None
    disk_bytes: float | None = None
    """Of the training job's folder."""
    measuring_s: float | None = None
    measuring_memory_bytes: float | None = None
    size_added_bytes: float | None = None
    """What has to be there at inference beside the student: adapter, index, further models."""
    latency_s: float | None = None
    """Of one answer alone, the median."""


class TriedRate(ReportPart):
    """One learning rate of a row's search."""

    learning_rate: float
    value: float | None = None
    metric: str = ""
    reason: str = ""


class ComparedRow(ReportPart):
    """One row: how it came to be, and what it took."""

    name: str
    route: str
    meaning: str = ""
    retrieval: bool = False
    budget: str | None = None
    state: Literal["done", "failed"] = "done"
    reason: str = ""
    """Why it failed."""
    seeds: list[int] = Field(default_factory=list)
    learning_rate: float | None = None
    tried: list[TriedRate] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)
    costs: RowCosts = RowCosts()


class ComparedPair(ReportPart):
    """Two rows by the main metric, over the items that both have."""

    first: str
    second: str
    difference: MetricValue = MetricValue()
    """First minus second."""
    p: float | None = None
    p_holm: float | None = None
    """Adjusted for all pairs."""
    holds: bool = False


class Compare(ReportPart):
    """What was compared, and how."""

    main_metric: str | None = None
    reference: str | None = None
    """The row that the others are held against."""
    best: str | None = None
    """The row with the best value of the main metric."""
    n_seeds: int = 1
    budget: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, MetricGroup] = Field(default_factory=dict)
    """What each metric tells of."""
    questions: dict[str, int] = Field(default_factory=dict)
    """Questions about the documents, by set."""
    development: str | None = None
    rows: list[ComparedRow] = Field(default_factory=list)
    pairs: list[ComparedPair] = Field(default_factory=list)

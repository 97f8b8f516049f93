"""The parts of `report.json` that evaluations write."""

from typing import Any

from pydantic import Field

from transfuse.report.parts import MetricValue, ReportPart


class SystemCosts(ReportPart):
    """What a system took."""

    seconds: float | None = None
    """Of measuring, without loading."""
    latency_s: float | None = None
    """Median time of a single greedy answer; the search for passages is part of it."""
    n_reply_tokens: list[int] | None = None
    """Of those answers."""
    peak_memory_bytes: int | None = None
    size_added_bytes: int | None = None
    """On disk, beyond the model itself: adapter, index, further models."""


class AskedItem(ReportPart):
    """One item, with the reply of every system."""

    item: str
    question: str
    """As it was put to the model, or what was asked last."""
    gold: str = ""
    contexts: dict[str, str] = Field(default_factory=dict)
    """What stood before it, by row."""
    answers: dict[str, str] = Field(default_factory=dict)
    """By row."""
    scores: dict[str, dict[str, float]] = Field(default_factory=dict)
    """By row, then by metric."""
    reason: dict[str, str] = Field(default_factory=dict)
    """Why a reply could not be scored, by row."""


class AskedSet(ReportPart):
    """One set of items, the first of which are shown."""

    name: str
    group: str
    """`questions`, `unanswerable`, `samples` or `benchmarks`."""
    n_items: int = 0
    seconds: dict[str, float] = Field(default_factory=dict)
    """Of measuring, by row."""
    notes: list[str] = Field(default_factory=list)
    items: list[AskedItem] = Field(default_factory=list)


class JudgeSummary(ReportPart):
    """How a judge came to its win rate."""

    judge: str
    instructions: str
    against: str = ""
    n_items: int = 0
    n_scored: int = 0
    n_won: int = 0
    n_tied: int = 0
    n_lost: int = 0
    agreement: MetricValue = MetricValue()
    """Share of items on which both orders name the same winner."""
    first_share: MetricValue = MetricValue()
    """Share of verdicts that name the reply shown first."""


class Eval(ReportPart):
    """What was asked of which systems."""

    systems: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings by row."""
    sets: list[AskedSet] = Field(default_factory=list)
    harness: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Figures of lm-eval itself, by row and benchmark."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of lm-eval and of each task."""
    judge: JudgeSummary | None = None

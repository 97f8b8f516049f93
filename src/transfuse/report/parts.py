"""The parts of `report.json` that every kind of run shares."""

from pydantic import BaseModel, ConfigDict


class ReportPart(BaseModel):
    """A part of the report; unknown fields are kept."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)


class MetricValue(ReportPart):
    """A mean with its 95 % interval; all None where nothing could be scored."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    """Number of scored items."""


class CurvePoint(ReportPart):
    """One logged training step."""

    step: int
    loss: float
    learning_rate: float | None = None

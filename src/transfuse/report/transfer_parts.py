"""The parts of `report.json` that transfer runs write."""

from typing import Literal

from pydantic import Field

from transfuse.report.parts import CurvePoint, MetricValue, ReportPart

Verdict = Literal["better", "worse", "no difference shown"]


class LayerSummary(ReportPart):
    """The teacher's layers by sensitivity, and those that were chosen."""

    scores: list[float] = Field(default_factory=list)
    """Summed sensitivity of each teacher layer."""
    chosen: list[int] = Field(default_factory=list)
    """The teacher layer of each student layer, in order."""


class ModuleScores(ReportPart):
    """Sensitivity of one sort of matrix, layer by layer."""

    name: str
    """The role: `query`, `gate` and so on."""
    scores: list[float] = Field(default_factory=list)
    """One for each teacher layer; a single one for embedding and head."""


class BlockSummary(ReportPart):
    """The part of a teacher's matrix that a student's matrix begins with."""

    student: str
    """Module of the student."""
    role: str
    teacher: str
    """Module of the teacher."""
    teacher_shape: tuple[int, int]
    student_shape: tuple[int, int]
    first_row: int | None = None
    """None where the cut is no contiguous block."""
    first_column: int | None = None
    score_share: float | None = None
    """Share of the matrix's sensitivity that lies inside, in 0..1."""
    energy: float | None = None
    """Share of the block's squared norm that the low rank keeps, in 0..1."""

    @property
    def area_share(self) -> float:
        """Share of the matrix's entries inside: the share of sensitivity that chance would give."""
        n_rows, n_columns = self.teacher_shape
        n_entries = n_rows * n_columns
        return self.student_shape[0] * self.student_shape[1] / n_entries if n_entries else 0.0


class LeftOut(ReportPart):
    """A part of the student that takes nothing from the teacher, and why."""

    what: str
    reason: str


class Transfer(ReportPart):
    """What was taken out of the teacher, and how."""

    teacher: str
    student: str
    method: str = "parametric"
    engine: str | None = None
    """`memory` or `stream`."""
    reduce: str | None = None
    """How each matrix was cut to the student's shape."""
    layer_choice: str | list[int] | None = None
    rank: int | None = None
    """Of the initial factors; None where whole blocks were taken."""
    n_seeds_samples: int | None = None
    """Samples that the sensitivity was summed over."""
    n_sample_tokens: int | None = None
    n_answer_tokens: int | None = None
    """Those of them that gave a loss."""
    seconds: float | None = None
    bytes_read: int | None = None
    """From the teacher's files."""
    peak_gib: float | None = None
    layers: LayerSummary | None = None
    modules: list[ModuleScores] = Field(default_factory=list)
    blocks: list[BlockSummary] = Field(default_factory=list)
    left_out: list[LeftOut] = Field(default_factory=list)


class TriedRate(ReportPart):
    """One learning rate of an arm's sweep."""

    learning_rate: float
    seed: int | None = None
    development_bits_per_byte: float | None = None
    """None where training did not come to an end."""


class ArmRun(ReportPart):
    """One training of an arm."""

    seed: int
    seconds: float | None = None
    final_loss: float | None = None
    curve: list[CurvePoint] = Field(default_factory=list)
    metrics: dict[str, MetricValue] = Field(default_factory=dict)


class Arm(ReportPart):
    """A method or control, trained with several seeds on the same budget."""

    name: str
    learning_rate: float | None = None
    """The one its sweep chose."""
    seeds: list[int] = Field(default_factory=list)
    tried: list[TriedRate] = Field(default_factory=list)
    runs: list[ArmRun] = Field(default_factory=list)
    n_tokens: int | None = None
    """Trained on in one run."""


class Comparison(ReportPart):
    """The method against one control, by one metric."""

    metric: str
    method: str
    against: str
    difference: MetricValue = MetricValue()
    """The method's value minus the other's."""
    is_better_lower: bool = False
    verdict: Verdict = "no difference shown"

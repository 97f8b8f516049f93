"""What a training run did, step by step and together."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StepLog:
    """What one optimizer step did."""

    step: int
    epoch: float
    loss: float
    """Nats per learned token, weighted; of soft targets the divergence from the teacher."""
    learning_rate: float
    grad_norm: float
    tokens: int
    """Tokens of the step's rows, padding not counted."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training run stands; given to `on_step`."""

    log: StepLog
    n_steps: int
    tokens_per_s: float
    seconds_left: float


@dataclass
class TrainingSummary:
    """What a training run did."""

    n_rows: int
    n_steps: int
    is_packed: bool
    n_tokens: int = 0
    """Tokens trained on, over all epochs, padding not counted."""
    seconds: float = 0.0
    """Time in steps, interruptions not counted."""
    curve: list[StepLog] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        """Tokens trained on per second of training."""
        return self.n_tokens / self.seconds if self.seconds else 0.0

"""Steps of a training run on a progress bar."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from transfuse.recipes.progress import Advance, time_text
from transfuse.train.summary import Progress, TrainingSummary


def show_steps(advance: Advance) -> Callable[[Progress], None]:
    """What the training loop calls after each step: loss, rate and time left go to the bar."""

    def on_step(progress: Progress) -> None:
        rate = f"loss {progress.log.loss:.3f}, {progress.tokens_per_s:.0f} tokens/s"
        advance(progress.log.step, progress.n_steps, f"{rate}, {time_text(progress.seconds_left)} left")

    return on_step


def training_json(summary: TrainingSummary) -> dict[str, Any]:
    """What a stage's `run.json` keeps of one training."""
    return {
        "n_records": summary.n_rows,
        "n_tokens": summary.n_tokens,
        "seconds": round(summary.seconds, 2),
        "tokens_per_s": round(summary.tokens_per_s, 1),
        "is_packed": summary.is_packed,
        "final_loss": summary.curve[-1].loss if summary.curve else None,
        "curve": [asdict(log) for log in summary.curve],
        "warnings": summary.warnings,
    }

"""Steps of a training run on a progress bar."""

from collections.abc import Callable

from transfuse.recipes.progress import Advance, time_text
from transfuse.train.loop import Progress


def show_steps(advance: Advance) -> Callable[[Progress], None]:
    """What the training loop calls after each step: loss, rate and time left go to the bar."""

    def on_step(progress: Progress) -> None:
        rate = f"loss {progress.log.loss:.3f}, {progress.tokens_per_s:.0f} tokens/s"
        advance(progress.log.step, progress.n_steps, f"{rate}, {time_text(progress.seconds_left)} left")

    return on_step

"""How a benchmark is run; nothing heavy is imported here."""

from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from transfuse.types import StrictModel

FEWSHOT_SEED = 1234
"""lm-eval's own: the examples before a question are then those that its command line draws."""


class BenchmarkSettings(StrictModel):
    """One benchmark: what is asked of a model, and where its items come from."""

    n_shot: NonNegativeInt | None = None
    """Worked examples before each question; None means as many as the task's own definition says."""
    n_items: PositiveInt | None = None
    """Items at most, the first ones; of a group of tasks in turn from each, so that all of them are asked."""
    data: Path | None = None
    """File or folder with the items; without it they are fetched from the hub."""
    chat: bool = False
    """Whether prompts are put through the model's chat template, the examples as turns of their own."""
    max_new_tokens: PositiveInt | None = None
    """Where a reply is cut; None means where the task's own definition says."""
    fewshot_seed: NonNegativeInt = FEWSHOT_SEED
    """Draws the examples where a task draws them at random."""
    runs_code: bool = False
    """Whether tasks may be asked that execute what the model writes."""

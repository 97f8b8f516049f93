"""Benchmarks of lm-evaluation-harness, asked of a system on our scoring engine."""

from pathlib import Path

from transfuse.evaluate.benchmark_settings import BenchmarkSettings
from transfuse.evaluate.request_store import RequestStore, default_store_path
from transfuse.recipes.eval_outcome import Outcome, ShownItem
from transfuse.recipes.eval_schema import EvalRecipe
from transfuse.recipes.eval_system import System
from transfuse.recipes.progress import Display


def ask_benchmark(
    recipe: EvalRecipe, system: System, name: str, settings: BenchmarkSettings, folder: Path, display: Display
) -> Outcome:
    """One benchmark; what was answered is kept request by request.

    Args:
        recipe: names the seed and the limits.
        system: that is asked.
        name: of the benchmark.
        settings: of the benchmark.
        folder: of the stage.
        display: progress.

    Returns:
        Per-item scores, what was asked and answered, and lm-eval's own figures as `more["harness"]`.
    """
    from transfuse.evaluate.harness import run_benchmarks
    from transfuse.evaluate.harness_model import TransfuseLM

    asked = system.load()
    path = default_store_path(system.identity) if recipe.cache else folder / "requests.sqlite"
    with RequestStore(path) as store, display.bar(f"{name}, {system.row}") as advance:
        lm = TransfuseLM(
            asked.model,
            asked.tokenizer,
            compute_dtype=asked.precision,
            identity=system.identity,
            max_batch_rows=recipe.max_batch_rows,
            store=store,
            on_requests=lambda done, n_all: advance(done, n_all, ""),
        )
        found = run_benchmarks(lm, {name: settings}, seed=recipe.seed)
        notes = [*found.plans[name].notes, *lm.notes]  # pyright: ignore[reportAttributeAccessIssue] - ours
    items = [
        ShownItem(each.item, each.prompt, each.reply, each.gold, dict(each.scores)) for each in found.answers
    ]
    plan = found.plans[name]._asdict()
    more = {"harness": found.harness, "versions": found.versions, "plan": plan}
    return Outcome(found.scores, items, list(dict.fromkeys(notes)), more=more)

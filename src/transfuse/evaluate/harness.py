"""Benchmarks run by lm-eval over the hub's data or the user's own, and turned into per-item scores."""

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

from transfuse.evaluate.benchmark_settings import BenchmarkSettings
from transfuse.evaluate.harness_opening import harness_seeds, quiet_harness
from transfuse.evaluate.harness_scores import BenchmarkAnswer, answers, item_scores
from transfuse.evaluate.harness_tasks import OpenedBenchmark, open_benchmark
from transfuse.evaluate.scores import ItemScore

if TYPE_CHECKING:
    from lm_eval.api.model import LM


class BenchmarkPlan(NamedTuple):
    """What a benchmark comes to, known before a model is loaded."""

    n_items: int
    n_shot: int
    """Worked examples before a question; of a group whose tasks differ, the most."""
    tasks: list[str]
    """lm-eval's names."""
    notes: list[str]
    """What was done that is not plain from the settings."""


class BenchmarkOutcome(NamedTuple):
    """What a model did on some benchmarks."""

    scores: list[ItemScore]
    answers: list[BenchmarkAnswer]
    harness: dict[str, dict[str, dict[str, Any]]]
    """lm-eval's own figures: benchmark, then its tasks and groups, then `metric,filter`."""
    versions: dict[str, str]
    """Of lm-eval, and of each task's definition."""
    plans: dict[str, BenchmarkPlan]


def check_benchmarks(benchmarks: Mapping[str, BenchmarkSettings]) -> dict[str, BenchmarkPlan]:
    """Open every benchmark without a model, so that what is missing is known before one is loaded.

    Args:
        benchmarks: settings by name; see `open_benchmark`.

    Returns:
        What each comes to.
    """
    return {name: _plan(open_benchmark(name, settings)) for name, settings in benchmarks.items()}


def run_benchmarks(
    lm: "LM",
    benchmarks: Mapping[str, BenchmarkSettings],
    *,
    seed: int,
    on_benchmark: Callable[[str, int], None] = lambda name, n_items: None,
) -> BenchmarkOutcome:
    """Ask a model every item of some benchmarks, by lm-eval's own prompts, filters and scores.

    Args:
        lm: any model of lm-eval.
        benchmarks: settings by name; see `open_benchmark`.
        seed: of replies that a task samples; most are greedy.
        on_benchmark: called with the name and number of items of each, before it is asked.

    Returns:
        Scores, answers and lm-eval's own figures.
    """
    outcome = BenchmarkOutcome([], [], {}, {"lm_eval": metadata.version("lm_eval")}, {})
    for name, settings in benchmarks.items():
        opened = open_benchmark(name, settings)
        on_benchmark(name, opened.n_items)
        results = _asked(lm, opened, seed)
        scores, lost = item_scores(name, opened.task, opened.tasks, opened.groups, results["samples"])
        given = answers(name, opened.tasks, results["samples"])
        plan = _plan(opened)
        outcome.scores.extend(scores)
        outcome.answers.extend(given)
        outcome.harness[name] = {task: _figures(found) for task, found in results["results"].items()}
        outcome.versions.update({task: str(version) for task, version in results["versions"].items()})
        outcome.plans[name] = plan._replace(notes=[*plan.notes, *_cut_prompts(lm, opened, given), *lost])
    return outcome


def _plan(opened: OpenedBenchmark) -> BenchmarkPlan:
    return BenchmarkPlan(opened.n_items, max(opened.n_shot.values()), list(opened.tasks), opened.notes)


def _asked(lm: "LM", opened: OpenedBenchmark, seed: int) -> Any:
    from lm_eval.evaluator import evaluate

    chat = opened.settings.chat
    with quiet_harness(), harness_seeds(seed):
        return evaluate(
            lm,
            {"tasks": opened.tasks, "groups": opened.groups},
            samples=opened.picked,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            confirm_run_unsafe_code=opened.settings.runs_code,
        )


def _cut_prompts(lm: "LM", opened: OpenedBenchmark, given: Sequence[BenchmarkAnswer]) -> list[str]:
    """A note where prompts are longer than the model reads: lm-eval cuts their beginning without a word."""
    n_read, encode = getattr(lm, "max_length", None), getattr(lm, "tok_encode", None)
    if n_read is None or encode is None:
        return []
    n_cut = 0
    for answer in given:
        config = opened.tasks[answer.item.rpartition("/")[0]].config
        is_written = config.output_type == "generate_until"
        written = (config.generation_kwargs or {}).get("max_gen_toks", getattr(lm, "max_gen_toks", 0))
        room = n_read - (int(written) if is_written else 0)
        is_long = len(answer.prompt.encode()) > room  # a token is a byte at least
        n_cut += (
            config.output_type != "loglikelihood_rolling" and is_long and len(encode(answer.prompt)) > room
        )
    if not n_cut:
        return []
    return [f"{n_cut} of {len(given)} prompts are longer than the model reads; their beginning was cut off"]


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """lm-eval's figures without the errors that were not asked for, and without what is text."""
    return {
        key: value
        for key, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "_stderr" not in key
    }

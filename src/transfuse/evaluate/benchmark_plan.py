"""What a benchmark asks, from its first items: the requests that lm-eval makes of them, without a model."""

from typing import Any, NamedTuple

from transfuse.evaluate.benchmark_settings import BenchmarkSettings
from transfuse.evaluate.harness_opening import harness_seeds, quiet_harness
from transfuse.evaluate.harness_tasks import open_benchmark

DEFAULT_NEW_TOKENS = 256
"""lm-eval's own, where a task names none."""


class SampledRequests(NamedTuple):
    """Requests of a benchmark's first items."""

    n_items: int
    """Of the benchmark."""
    n_sampled: int
    """Items whose requests these are."""
    texts: list[str]
    """What is read for each request; of a choice among options, one request an option."""
    n_written: int
    """Tokens that the model may write in all of them."""


def sampled_requests(name: str, settings: BenchmarkSettings, n_sampled: int) -> SampledRequests:
    """The requests of a benchmark's first items.

    Args:
        name: of the benchmark.
        settings: how it is run; a chat template is left out.
        n_sampled: items to look at, about; of a group at least one of each task.

    Returns:
        Requests as lm-eval makes them.
    """
    opened = open_benchmark(name, settings)
    each = max(1, n_sampled // len(opened.tasks))
    texts: list[str] = []
    n_written, n_found = 0, 0
    with quiet_harness(), harness_seeds(0):
        for task_name, task in opened.tasks.items():
            picked = opened.picked[task_name] if opened.picked else list(range(len(task.eval_docs)))
            task.build_all_requests(samples=picked[:each])
            n_found += len(picked[:each])
            for request in task.instances:
                read, written = _request(request)
                texts.append(read)
                n_written += written
    return SampledRequests(opened.n_items, n_found, texts, n_written)


def _request(request: Any) -> tuple[str, int]:
    """What is read, and how many tokens may be written."""
    first, *rest = request.args
    if request.request_type == "generate_until":
        settings = rest[0] if rest and isinstance(rest[0], dict) else {}
        return str(first), int(settings.get("max_gen_toks", DEFAULT_NEW_TOKENS))
    return "".join(map(str, (first, *rest))), 0

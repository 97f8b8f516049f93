"""What lm-eval says of each sample, as per-item scores under the names of our reports.

`METRIC/BENCHMARK`, and `METRIC/BENCHMARK:FILTER` where a task scores a reply in several ways (GSM8K's `strict-match`
and `flexible-extract`). A group that lm-eval averages is one metric over the items of all its tasks; of other groups
and of tags each task has its own.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from transfuse.evaluate.scores import ItemScore

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task

METRIC_NAMES = {"acc": "accuracy", "acc_norm": "accuracy_norm", "acc_bytes": "accuracy_bytes"}
"""Our names of lm-eval's metrics, where they differ. `accuracy_norm` divides the log-likelihood of an option by its
characters, `accuracy_bytes` by its bytes."""


class BenchmarkAnswer(NamedTuple):
    """One item: what was asked, what came back, and what it is worth."""

    benchmark: str
    """As the user named it."""
    item: str
    """As in `ItemScore.item`."""
    prompt: str
    reply: str
    """What was generated, or the likeliest option; of a fixed continuation, that one where it was the likeliest."""
    gold: str
    scores: dict[str, float]
    """Metric to value, without the benchmark's name."""


def item_scores(
    name: str,
    task: str,
    tasks: Mapping[str, "Task"],
    groups: Mapping[str, "Group"],
    samples: Mapping[str, Any],
) -> tuple[list[ItemScore], list[str]]:
    """Per-item scores of one benchmark.

    Args:
        name: as the user gave it.
        task: as lm-eval calls it.
        tasks: that were asked.
        groups: above them.
        samples: of each task, as lm-eval logs them.

    Returns:
        The scores, and a note for each metric that is no mean over items and stands in lm-eval's own results alone.
    """
    scores: list[ItemScore] = []
    lost: dict[str, None] = {}
    for unit in _units(task, tasks, groups):
        label = name if unit.name == task else name.replace(task, unit.name) if task in name else unit.name
        for leaf in unit.tasks:
            n_filters = len({sample["filter"] for sample in samples[leaf]})
            for sample in samples[leaf]:
                for metric in sample["metrics"]:
                    if not unit.holds(metric, sample["filter"]):
                        continue
                    ratio = _ratio(metric, sample[metric], tasks[leaf])
                    suffix = f":{sample['filter']}" if n_filters > 1 else ""
                    if ratio is None:
                        lost[f"{metric}/{label}{suffix} is no mean over items: see lm-eval's own results"] = (
                            None
                        )
                        continue
                    weight = 1.0 if unit.by_size else 1 / len(samples[leaf]) * n_filters
                    full_name = f"{ratio.metric}/{label}{suffix}"
                    item = _item(leaf, sample)
                    scores.append(
                        ItemScore(full_name, item, item, ratio.above * weight, ratio.below * weight)
                    )
    return scores, list(lost)


def answers(
    name: str, tasks: Mapping[str, "Task"], samples: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[BenchmarkAnswer]:
    """Prompt, reply and gold answer of every item.

    Args:
        name: of the benchmark.
        tasks: that were asked.
        samples: of each task, as lm-eval logs them.

    Returns:
        One an item, in lm-eval's order.
    """
    found: dict[str, BenchmarkAnswer] = {}
    for leaf, task in tasks.items():
        n_filters = len({sample["filter"] for sample in samples[leaf]})
        for sample in samples[leaf]:
            item = _item(leaf, sample)
            if item not in found:
                found[item] = BenchmarkAnswer(
                    name, item, _prompt(sample), _reply(task, sample), _gold(task, sample), {}
                )
            suffix = f":{sample['filter']}" if n_filters > 1 else ""
            for metric in sample["metrics"]:
                ratio = _ratio(metric, sample[metric], task)
                if ratio is not None and ratio.below:
                    found[item].scores[f"{ratio.metric}{suffix}"] = ratio.above / ratio.below
    return list(found.values())


class _Unit(NamedTuple):
    """Tasks whose items make one metric together."""

    name: str
    tasks: list[str]
    holds: Callable[[str, str], bool]
    """Whether a metric and a filter are averaged."""
    by_size: bool = True
    """Whether items count alike, else tasks do."""


def _units(task: str, tasks: Mapping[str, "Task"], groups: Mapping[str, "Group"]) -> Iterator[_Unit]:
    if task in groups:
        yield from _group_units(groups[task])
        return
    for leaf in tasks:
        yield _Unit(leaf, [leaf], lambda metric, chosen: True)


def _group_units(group: "Group") -> Iterator[_Unit]:
    from lm_eval.api.group import Group

    if group.aggregate_metric_list:
        leaves = [task.task_name for task in group.get_all_tasks()]
        for averaged in group.aggregate_metric_list:

            def holds(metric: str, chosen: str, averaged: Any = averaged) -> bool:
                return metric == averaged.metric and (
                    not averaged.filter_list or chosen in averaged.filter_list
                )

            yield _Unit(group.name, leaves, holds, averaged.weight_by_size)
        return
    for child in group:
        if isinstance(child, Group):
            yield from _group_units(child)
        else:
            yield _Unit(child.task_name, [child.task_name], lambda metric, chosen: True)


class _Ratio(NamedTuple):
    metric: str
    above: float
    below: float


def _ratio(metric: str, value: Any, task: "Task") -> _Ratio | None:
    """A sample's part of a metric that is a ratio of sums; None where it is no such metric."""
    if metric in _RATIOS:
        return _RATIOS[metric](value)
    aggregate = getattr((task.aggregation() or {}).get(metric), "__name__", "mean")
    if aggregate not in ("mean", "nanmean") or isinstance(value, list | tuple | dict | str) or value is None:
        return None
    number = float(value)
    return None if math.isnan(number) else _Ratio(METRIC_NAMES.get(metric, metric), number, 1.0)


_RATIOS: dict[str, Callable[[Any], _Ratio]] = {
    "perplexity": lambda value: _Ratio("nll_nats", -float(value), 1.0),
    "word_perplexity": lambda value: _Ratio("nll_nats_per_word", -float(value[0]), float(value[1])),
    "byte_perplexity": lambda value: _Ratio("nll_nats_per_byte", -float(value[0]), float(value[1])),
    "bits_per_byte": lambda value: _Ratio("bits_per_byte", -float(value[0]) / math.log(2), float(value[1])),
}
"""Metrics of lm-eval that are an exponential, or a ratio, of sums: as the ratio itself. exp(nll_nats) is its
perplexity."""


def _item(leaf: str, sample: Mapping[str, Any]) -> str:
    return f"{leaf}/{sample['doc_id']}"


def _prompt(sample: Mapping[str, Any]) -> str:
    return str(sample["arguments"][0][0])


def _reply(task: "Task", sample: Mapping[str, Any]) -> str:
    kind, arguments = task.config.output_type, sample["arguments"]
    first = sample["resps"][0][0]
    if kind == "multiple_choice":
        likelihoods = [float(response[0][0]) for response in sample["resps"]]
        best = likelihoods.index(max(likelihoods))
        asked = arguments[best]
        return str(asked[0] if len({each[1] for each in arguments}) == 1 else asked[1]).strip()
    if kind == "loglikelihood":
        return str(arguments[0][1]).strip() if first[1] else ""
    return str(first)


def _gold(task: "Task", sample: Mapping[str, Any]) -> str:
    target = sample["target"]
    choices = task.config.doc_to_choice
    if choices is not None and isinstance(target, int) and not isinstance(target, str):
        options = task.doc_to_choice(sample["doc"])  # pyright: ignore[reportAttributeAccessIssue]
        return str(options[target]) if 0 <= target < len(options) else str(target)
    return str(target)

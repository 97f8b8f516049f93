"""What an evaluation found, in words, and how its figures are grouped."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transfuse.report.eval_parts import AskedItem
from transfuse.report.load import Report
from transfuse.report.transfer_parts import Comparison
from transfuse.report.wording import METRIC_LABELS, NOTHING, metric_label, metric_meaning, metric_names

GROUP_LABELS = {
    "questions": "knowledge questions",
    "unanswerable": "questions without an answer",
    "samples": "chat samples",
    "benchmarks": "benchmark",
    "texts": "texts",
    "judge": "judged instructions",
    "coverage": "facts that a file carries",
}
_MOST_NAMED = 4


class FigureGroup(NamedTuple):
    """The metrics of one set of items."""

    name: str
    label: str
    """What sort of set it is; empty where that is not known."""
    metrics: list[str]


def figure_groups(report: Report) -> list[FigureGroup]:
    """Every metric of a report under the set that it is measured on.

    Args:
        report: of an evaluation.

    Returns:
        Sets in the order in which they were measured; a metric that names no set stands under its own name.
    """
    groups = {each.name: each.group for each in report.eval.sets} if report.eval else {}
    by_set: dict[str, list[str]] = {}
    for metric in metric_names(report):
        by_set.setdefault(set_name(metric), []).append(metric)
    return [FigureGroup(name, _label(name, metrics, groups), metrics) for name, metrics in by_set.items()]


def set_name(metric: str) -> str:
    """What a metric is measured on: `gsm8k` of `exact_match/gsm8k:strict-match`."""
    stem, _, part = metric.partition("/")
    return "facts" if stem == "fact_coverage" else part.partition(":")[0] or stem


def figure_label(metric: str) -> str:
    """A metric's name without its set: `Exact match, strict-match`."""
    stem, _, part = metric.partition("/")
    label = METRIC_LABELS.get(stem, stem.replace("_", " "))
    detail = part.replace("_", " ") if stem == "fact_coverage" else part.partition(":")[2]
    return f"{label}, {detail}" if detail else label


def n_items(report: Report, metric: str) -> str:
    """How many items a metric was measured on, of the first row that has it."""
    counts = [row.metrics[metric].n for row in report.rows if metric in row.metrics]
    n = next((each for each in counts if each is not None), None)
    return NOTHING if n is None else f"{n:,}"


def comparison_of(report: Report, metric: str) -> Comparison | None:
    """The first system against the second by a metric; None where there is no second."""
    return next((each for each in report.comparisons if each.metric == metric), None)


def meanings(report: Report) -> list[tuple[str, str]]:
    """Label and meaning of every sort of metric that a report has."""
    stems = dict.fromkeys(metric.partition("/")[0] for metric in metric_names(report))
    return [(metric_label(stem), told) for stem in stems if (told := metric_meaning(stem, "eval"))]


def item_mark(item: AskedItem, row: str) -> str:
    """`right`, `wrong` or `unscored`: by the first score that is a plain yes or no."""
    scores = item.scores.get(row, {})
    if "wrong_answers" in scores:
        return "wrong" if scores["wrong_answers"] else "right"
    order = ("contains", "accuracy", "exact_match")
    known = [score for name in order for metric, score in scores.items() if metric.partition(":")[0] == name]
    if not known:
        return "unscored"
    best = known[0] if "contains" in scores else max(known)
    return "right" if best >= 1 else "wrong"


def eval_verdict(report: Report) -> str:
    """What an evaluation found, in up to three sentences.

    Args:
        report: any report.

    Returns:
        Against a second system, by which metrics the first is better, worse, or not shown to differ; without one,
        nothing: the figures speak for themselves.
    """
    if not report.comparisons:
        return ""
    first = report.comparisons[0]
    told: dict[str, list[str]] = {"better": [], "worse": [], "no difference shown": []}
    for comparison in report.comparisons:
        told[comparison.verdict].append(metric_label(comparison.metric))
    sentences: list[str] = []
    for outcome in ("better", "worse"):
        if told[outcome]:
            lead = "It is" if sentences else f"Pair by pair, {first.method} is"
            than = "" if sentences else f" than {first.against}"
            sentences.append(f"{lead} {outcome}{than} by {_listed(told[outcome])}.")
    if told["no difference shown"]:
        lead = "No difference is shown by" if sentences else "Pair by pair no difference is shown by"
        sentences.append(f"{lead} {_listed(told['no difference shown'])}.")
    return " ".join(sentences)


def system_text(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """A system's settings as names and values, those that are set."""
    shown: list[tuple[str, str]] = [("model", str(settings.get("model", "")))]
    if settings.get("adapter"):
        shown.append(("adapter", str(settings["adapter"])))
    if settings.get("ensemble"):
        shown.append(("averaged with", ", ".join(map(str, settings["ensemble"]))))
    for name, label in (("retrieval", "passages from"), ("section_context", "right section from")):
        part = settings.get(name)
        if isinstance(part, dict):
            shown.append((label, str(part.get("documents", ""))))
    return shown


def _label(name: str, metrics: Sequence[str], groups: dict[str, str]) -> str:
    stems = {metric.partition("/")[0] for metric in metrics}
    if name in groups:
        return GROUP_LABELS.get(groups[name], groups[name])
    if stems == {"fact_coverage"}:
        return GROUP_LABELS["coverage"]
    if stems & {"win_rate", "win_rate_length_controlled"}:
        return GROUP_LABELS["judge"]
    return GROUP_LABELS["texts"] if stems == {"bits_per_byte"} else ""


def _listed(labels: Sequence[str]) -> str:
    lowered = [
        label if label[:2].isupper() or label[1:2].isdigit() else label[0].lower() + label[1:]
        for label in labels
    ]
    if len(lowered) > _MOST_NAMED:
        return f"{', '.join(lowered[:_MOST_NAMED])} and {len(lowered) - _MOST_NAMED} more"
    return lowered[0] if len(lowered) == 1 else f"{', '.join(lowered[:-1])} and {lowered[-1]}"

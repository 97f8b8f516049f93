"""What a comparison's table shows of its metrics, and what it found, in words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transfuse.report.compare_parts import ComparedPair, ComparedRow, MetricGroup
from transfuse.report.load import Report
from transfuse.report.transfer_parts import Comparison
from transfuse.report.wording import (
    NOTHING,
    bytes_text,
    difference_text,
    duration_text,
    metric_label,
    value_text,
)

GROUP_LABELS: dict[MetricGroup, str] = {
    "knowledge": "New knowledge",
    "general": "General ability",
    "refusals": "What cannot be answered",
}
SET_MEANINGS = {
    "direct": "questions in the very words of training",
    "reworded": "questions about trained facts in words that no row has seen",
    "kept-out": "questions about facts that no row was trained on: the control for answer style",
    "unanswerable": "questions that nothing answers, and that a model should decline",
}
PREFERRED = ("f1", "accuracy", "exact_match", "rouge_l", "win_rate", "wrong_answers")
"""Of the scores of one set of items, the first of these stands in the table; bits per byte stands beside it."""
_BITS = "bits_per_byte"


def shown_metrics(report: Report) -> list[str]:
    """The metrics of the main table: one score of each set of items, and bits per byte; knowledge first.

    Args:
        report: of a comparison.

    Returns:
        Metrics in the order of the columns; all others stand in the table of everything.
    """
    groups = report.compare.metrics if report.compare else {}
    by_set: dict[str, list[str]] = {}
    for metric in groups:
        by_set.setdefault(_item_set(metric), []).append(metric)
    shown: set[str] = set()
    for metrics in by_set.values():
        scores = [metric for metric in metrics if _stem(metric) != _BITS]
        ranked = sorted(scores, key=lambda metric: _rank(_stem(metric)))
        shown |= {*ranked[:1], *(metric for metric in metrics if _stem(metric) == _BITS)}
    main = report.compare.main_metric if report.compare else None
    shown |= {main} if main else set()
    order = list(GROUP_LABELS)
    return sorted((m for m in groups if m in shown), key=lambda m: order.index(groups[m]))


def column_groups(report: Report, metrics: Sequence[str]) -> list[tuple[str, int]]:
    """Headings over the columns, and how many columns each spans."""
    groups = report.compare.metrics if report.compare else {}
    found: list[tuple[str, int]] = []
    for metric in metrics:
        label = GROUP_LABELS[groups[metric]]
        if found and found[-1][0] == label:
            found[-1] = (label, found[-1][1] + 1)
        else:
            found.append((label, 1))
    return found


def told_of(report: Report, name: str) -> ComparedRow | None:
    """How a row of the table came to be."""
    return next((row for row in (report.compare.rows if report.compare else []) if row.name == name), None)


def settings_text(settings: Mapping[str, Any]) -> str:
    """What a row sets, on one line."""
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def against(report: Report, row: str, metric: str, reference: str | None = None) -> Comparison | None:
    """A row against the reference by one metric; None where that was not compared."""
    other = reference or (report.compare.reference if report.compare else None)
    return next(
        (c for c in report.comparisons if (c.method, c.against, c.metric) == (row, other, metric)), None
    )


def mark(comparison: Comparison | None) -> str:
    """`better` or `worse` where a difference is shown among all rows; else empty."""
    if comparison is None or not getattr(comparison, "holds", False):
        return ""
    return comparison.verdict if comparison.verdict != "no difference shown" else ""


def pair_of(report: Report, first: str, second: str) -> tuple[ComparedPair, int] | None:
    """Two rows by the main metric, and 1 or -1: the sign that makes the difference first minus second."""
    for pair in report.compare.pairs if report.compare else []:
        if (pair.first, pair.second) == (first, second):
            return pair, 1
        if (pair.first, pair.second) == (second, first):
            return pair, -1
    return None


def pair_text(report: Report, first: str, second: str) -> str:
    """The difference of two rows by the main metric, without its interval."""
    found, metric = pair_of(report, first, second), report.compare.main_metric if report.compare else None
    if found is None or metric is None or found[0].difference.value is None:
        return NOTHING
    pair, sign = found
    value = sign * (pair.difference.value or 0.0)
    return difference_text(
        metric, pair.difference.model_copy(update={"value": value, "low": None, "high": None})
    )


def p_text(p: float | None) -> str:
    """A p value: `0.03`, `< 0.001`."""
    if p is None or not math.isfinite(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def count_text(value: float | None) -> str:
    """A number of tokens."""
    return NOTHING if value is None else f"{round(value):,}"


def size_or_nothing(value: float | None) -> str:
    """Bytes, or a dash."""
    return NOTHING if value is None else bytes_text(round(value))


def time_or_nothing(value: float | None) -> str:
    """Seconds, or a dash."""
    if value is None:
        return NOTHING
    return f"{1000 * value:.0f} ms" if value < 1 else duration_text(value)


def compare_verdict(report: Report) -> str:
    """What a comparison showed, in up to four sentences.

    Args:
        report: any report.

    Returns:
        Which row is best by the main metric and which of the others it is shown to beat; what that costs in general
        ability; how many rows failed. Empty where nothing was compared.
    """
    part = report.compare
    if part is None or part.main_metric is None or part.best is None:
        return ""
    metric, best = part.main_metric, part.best
    values = {row.name: row.metrics[metric] for row in report.rows if metric in row.metrics}
    sentences = [f"{best} is best by {_lower(metric_label(metric))}: {value_text(metric, values[best])}"]
    if part.reference is not None and part.reference != best and part.reference in values:
        sentences[0] += f", where {part.reference} has {value_text(metric, values[part.reference])}"
    others = [name for name in values if name != best]
    if others and all(each.value == values[best].value for each in values.values()):
        sentences[0] = (
            f"All rows have the same {_lower(metric_label(metric))}: {value_text(metric, values[best])}"
        )
    pairs = {name: pair_of(report, best, name) for name in others}
    unclear = [name for name, pair in pairs.items() if pair is None or not pair[0].holds]
    if others and not unclear:
        sentences.append("It is shown to be better than every other row")
    elif unclear and len(unclear) < len(others):
        sentences.append(f"It is shown to be better than every other row but {_listed(unclear)}")
    elif unclear:
        sentences.append("No other row is shown to be worse")
    sentences.append(_general(report, best))
    n_failed = sum(row.state == "failed" for row in part.rows)
    if n_failed:
        sentences.append(f"{n_failed} of {len(part.rows)} rows failed")
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def _general(report: Report, row: str) -> str:
    """What a row lost or gained in general ability against the reference."""
    part = report.compare
    if part is None or part.reference in (None, row):
        return ""
    told: dict[str, list[str]] = {"worse": [], "better": []}
    suspected: list[str] = []
    general = [metric for metric in shown_metrics(report) if part.metrics[metric] == "general"]
    for metric in general:
        comparison = against(report, row, metric)
        if comparison is None:
            continue
        change = f"{_lower(metric_label(metric))} ({difference_text(metric, comparison.difference)})"
        if outcome := mark(comparison):
            told[outcome].append(change)
        elif comparison.verdict == "worse":
            suspected.append(change)
    if not general:
        return ""
    parts = [f"{outcome} in {_listed(names)}" for outcome, names in told.items() if names]
    shown = (
        f"In general ability it is {' and '.join(parts)}"
        if parts
        else "No change of general ability is shown"
    )
    if not suspected:
        return shown
    # A loss that only the number of comparisons hides is no reason to feel safe.
    return f"{shown}; before the correction for several rows it is worse in {_listed(suspected)}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _lower(label: str) -> str:
    return label if label[:2].isupper() or label[1:2].isdigit() else label[0].lower() + label[1:]


def _stem(metric: str) -> str:
    return metric.partition("/")[0].partition(",")[0]


def _item_set(metric: str) -> str:
    return metric.partition("/")[2]


def _rank(stem: str) -> int:
    return PREFERRED.index(stem) if stem in PREFERRED else len(PREFERRED)

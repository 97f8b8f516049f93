"""How numbers, metrics and rows are written for people; the table, the plots and the page share it."""

import math
from datetime import UTC, datetime

from transfuse.report.load import MetricValue, Report

NOTHING = "–"
"""Stands where there is no value."""

METRIC_LABELS = {
    "exact_match": "Exact match",
    "f1": "F1",
    "contains": "Contains gold",
    "gold_recall": "Gold recall",
    "judge": "Judge",
    "accuracy": "Accuracy",
    "bits_per_byte": "Bits per byte",
}

METRIC_MEANINGS = {
    "exact_match": "the answer is the gold answer, apart from case, punctuation and articles",
    "f1": "words shared by answer and gold answer, as the harmonic mean of precision and recall",
    "contains": "the gold answer, or one of its aliases, stands somewhere in the answer",
    "gold_recall": "share of the gold answer's words that stand in the answer",
    "judge": "share of answers that a judging model called right",
    "accuracy": "share of tasks solved",
    "bits_per_byte": "cost of encoding a text that has nothing to do with the documents; lower is better, "
    "and a rise means that the model lost something in general",
}

ROW_MEANINGS = {
    "base": "the model as it was",
    "adapter": "the same model with the adapter",
    "model": "the same model, all its weights fine-tuned",
    "base/kept-out": "the model as it was, on facts that no training record mentions",
    "adapter/kept-out": "with the adapter, on those same facts: a control, to stay near the base model",
    "model/kept-out": "fine-tuned, on those same facts: a control, to stay near the base model",
    "base/known": "the model as it was, on facts that its answers to the probe showed it to know",
    "base/new": "the model as it was, on the other facts",
    "adapter/known": "with the adapter, on facts that were known before",
    "adapter/new": "with the adapter, on facts that were new",
    "model/known": "fine-tuned, on facts that were known before",
    "model/new": "fine-tuned, on facts that were new",
    "oracle": "the model as it was, with the right section of the document in its context",
    "rag": "the model as it was, with the passages in its context that a search found for the question",
    "adapter+rag": "with the adapter and those same passages",
    "model+rag": "fine-tuned, with those same passages",
    "rag/kept-out": "the model as it was, with passages, on facts that no training record mentions: the search "
    "finds these as well",
    "adapter+rag/kept-out": "with the adapter and those same passages, on those same facts",
    "model+rag/kept-out": "fine-tuned, with those same passages, on those same facts",
}

SEARCH_MODES = {
    "hybrid": "by meaning and by words, both rankings merged",
    "dense": "by meaning",
    "lexical": "by words (BM25)",
}

FATE_MEANINGS = {
    "covered": "as many verified questions as asked for, and one to measure with",
    "short": "some verified questions, but fewer than asked for",
    "skipped": "the generator gave a reason to ask nothing about it",
    "failed": "no verified question; the reason stands with the fact",
}

_SHARE_METRICS = frozenset({"exact_match", "f1", "contains", "gold_recall", "judge", "accuracy"})


def is_share(metric: str) -> bool:
    """Whether a metric is a share in 0..1, written in per cent."""
    return metric.partition("/")[0] in _SHARE_METRICS


def metric_label(metric: str) -> str:
    """A metric's name for people, with its text or task in brackets: `Bits per byte (generic)`."""
    stem, _, part = metric.partition("/")
    label = METRIC_LABELS.get(stem, stem.replace("_", " "))
    return f"{label} ({part})" if part else label


def metric_names(report: Report) -> list[str]:
    """Every metric of any row, in the order in which they first come."""
    return list(dict.fromkeys(metric for row in report.rows for metric in row.metrics))


def value_text(metric: str, estimate: MetricValue | None) -> str:
    """A mean as text: `93.3 %` for shares, `1.023` for all else."""
    if estimate is None or estimate.value is None:
        return NOTHING
    return f"{100 * estimate.value:.1f} %" if is_share(metric) else f"{estimate.value:.3f}"


def interval_text(metric: str, estimate: MetricValue | None) -> str:
    """A 95 % interval as text, in the unit of the mean: `88.1–97.0`; empty where there is none."""
    if estimate is None or estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    if is_share(metric):
        return f"{100 * estimate.low:.1f}–{100 * estimate.high:.1f}"
    return f"{estimate.low:.3f}–{estimate.high:.3f}"


def n_items_text(metrics: dict[str, MetricValue]) -> str:
    """How many questions a row scored: one number, or the smallest and largest where metrics differ."""
    counts = sorted({e.n for metric, e in metrics.items() if is_share(metric) and e.n is not None})
    if not counts:
        return NOTHING
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def duration_text(seconds: float) -> str:
    """A time span as text: `0.2 s`, `2 min 10 s`, `1 h 05 min`."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def time_text(created: str) -> str:
    """An ISO 8601 time as `2026-11-21 12:00 UTC`; anything else as it came."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    if moment.tzinfo is None:
        return f"{moment:%Y-%m-%d %H:%M}"
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"

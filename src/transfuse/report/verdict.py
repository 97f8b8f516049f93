"""What the run achieved, in plain words: one verdict for the whole, one outcome for each fact."""

import math
from typing import Literal

from transfuse.report.load import FactResult, MetricValue, Report

COUNTING_METRICS = ("contains", "exact_match")
"""Yes-or-no metrics that decide whether an answer counts as right; the first one present is taken.

`contains` comes first because exact match counts a right answer in a full sentence, as untrained models give
it, as wrong.
"""

COUNTING_RULES = {
    "contains": "An answer counts when the gold answer, or one of its aliases, stands in it.",
    "exact_match": "An answer counts when it is the gold answer, or one of its aliases.",
}

Outcome = Literal["learned", "partly", "not-learned", "knew", "forgotten", "kept-out", "not-scored"]

OUTCOME_LABELS: dict[Outcome, str] = {
    "learned": "learned",
    "partly": "partly learned",
    "not-learned": "not learned",
    "knew": "knew before",
    "forgotten": "forgotten",
    "kept-out": "kept out",
    "not-scored": "not scored",
}

OUTCOME_MEANINGS: dict[Outcome, str] = {
    "learned": "all questions right after training, not all before",
    "partly": "more questions right after training than before, but not all",
    "not-learned": "no more questions right after training than before",
    "knew": "all questions right before and after",
    "forgotten": "fewer questions right after training than before",
    "kept-out": "left out of training on purpose, as a control",
    "not-scored": "no question asks about it, or no answer could be scored",
}


AFTER_ROWS = ("adapter", "model")
"""Names of the row after training: with a LoRA adapter, or with all weights fine-tuned."""


def after_row(report: Report) -> str:
    """Name of this report's row after training."""
    names = {row.name for row in report.rows}
    return next((name for name in AFTER_ROWS if name in names), AFTER_ROWS[0])


def is_right(scores: dict[str, float]) -> bool | None:
    """Whether an answer counts as right; None where it could not be scored."""
    metric = next((name for name in COUNTING_METRICS if name in scores), None)
    return None if metric is None else scores[metric] >= 1


def fact_outcome(fact: FactResult, after_name: str = AFTER_ROWS[0]) -> Outcome:
    """What became of a fact, over those of its questions that could be scored both before and after."""
    if fact.kept_out:
        return "kept-out"
    marks = [(is_right(i.scores.get("base", {})), is_right(i.scores.get(after_name, {}))) for i in fact.items]
    scored = [(before, after) for before, after in marks if before is not None and after is not None]
    if not scored:
        return "not-scored"
    n_before = sum(before for before, _ in scored)
    n_after = sum(after for _, after in scored)
    if n_after < n_before:
        return "forgotten"
    if n_before == len(scored):
        return "knew"
    if n_after == len(scored):
        return "learned"
    return "partly" if n_after > n_before else "not-learned"


def counting_metric(report: Report) -> str | None:
    """The metric by which the verdict counts answers, or None where no row has one."""
    present = {metric for row in report.rows for metric in row.metrics}
    return next((metric for metric in COUNTING_METRICS if metric in present), None)


def verdict(report: Report) -> str:
    """The result in plain words, built from the rows.

    Args:
        report: any report.

    Returns:
        Up to one sentence each on the questions, on retrieved passages, on the facts kept out of training, on
        passages for these, and on each other text; empty where the report has no row before and after.
    """
    rows = {row.name: row.metrics for row in report.rows}
    metric = counting_metric(report)
    sentences: list[str] = []
    after_name = after_row(report)
    if metric and "base" in rows and after_name in rows:
        sentences.append(_learned(rows["base"].get(metric), rows[after_name].get(metric)))
    if metric and "rag" in rows:
        trained = rows.get(f"{after_name}+rag", {}).get(metric)
        sentences.append(
            _with_passages("With passages that a search found", rows["rag"].get(metric), trained)
        )
    if metric and f"{after_name}/kept-out" in rows:
        before = rows.get("base/kept-out", {}).get(metric)
        sentences.append(_kept_out(before, rows[f"{after_name}/kept-out"].get(metric)))
    if metric and "rag/kept-out" in rows:
        trained = rows.get(f"{after_name}+rag/kept-out", {}).get(metric)
        sentences.append(_with_passages("With passages for these", rows["rag/kept-out"].get(metric), trained))
    for name in rows.get("base", {}):
        if name.partition("/")[0] == "bits_per_byte":
            sentences.append(_text_cost(name, rows["base"][name], rows.get(after_name, {}).get(name)))
    return " ".join(sentence for sentence in sentences if sentence)


def _count(estimate: MetricValue | None) -> tuple[int, int] | None:
    """How many of how many were right; None where nothing was scored."""
    if estimate is None or estimate.value is None or not estimate.n or not math.isfinite(estimate.value):
        return None
    return round(estimate.value * estimate.n), estimate.n


def _questions(n: int) -> str:
    """A number of questions, singular or plural."""
    return f"{n} question" if n == 1 else f"{n} questions"


def _learned(before: MetricValue | None, after: MetricValue | None) -> str:
    """The sentence on the facts that were trained on."""
    counts = _count(before), _count(after)
    match counts:
        case (int(a), int(n)), (int(b), int(m)):
            return (
                f"The base model answered {a} of {_questions(n)}; after training {b} of {m}, "
                "in wordings it never saw in training."
            )
        case None, (int(b), int(m)):
            return (
                f"After training the model answered {b} of {_questions(m)}, in wordings it never saw in "
                "training; the base model's answers could not be scored."
            )
        case (int(a), int(n)), None:
            return f"The base model answered {a} of {_questions(n)}; its answers after training could not be scored."
        case _:
            return "No answer could be scored."


def _kept_out(before: MetricValue | None, after: MetricValue | None) -> str:
    """The sentence on the facts that were kept out of training; empty where there were none."""
    now, then = _count(after), _count(before)
    if now is None:
        return ""
    sentence = f"Facts kept out of training: {now[0]} of {now[1]}"
    return f"{sentence} (base model: {then[0]} of {then[1]})." if then else f"{sentence}."


def _with_passages(lead: str, untouched: MetricValue | None, trained: MetricValue | None) -> str:
    """The sentence on retrieval instead of training, and on both together; empty where nothing was scored."""
    alone, both = _count(untouched), _count(trained)
    if alone is None:
        return ""
    sentence = f"{lead}, the base model answered {alone[0]} of {alone[1]}"
    return f"{sentence}, the trained one {both[0]} of {both[1]}." if both else f"{sentence}."


def _text_cost(metric: str, before: MetricValue, after: MetricValue | None) -> str:
    """The sentence on what another text costs; empty where it was not measured on both sides."""
    if before.value is None or after is None or after.value is None:
        return ""
    text = metric.partition("/")[2]
    subject = f"{text[0].upper()}{text[1:]} text" if text else "Other text"
    old, new = f"{before.value:.2f}", f"{after.value:.2f}"
    if old == new:
        return f"{subject} costs {new} bits per byte, as before."
    return f"{subject} costs {old} → {new} bits per byte."

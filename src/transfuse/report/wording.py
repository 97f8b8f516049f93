"""How numbers, metrics and rows are written for people; the table, the plots and the page share it."""

import math
import re
import unicodedata
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
    "rouge_l": "ROUGE-L",
    "bits_per_byte": "Bits per byte",
    "accuracy_norm": "Accuracy, by characters",
    "accuracy_bytes": "Accuracy, by bytes",
    "wrong_answers": "Wrong answers",
    "win_rate": "Win rate",
    "win_rate_length_controlled": "Win rate, same length",
    "fact_coverage": "Facts carried",
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

TRANSFER_ROW_MEANINGS = {
    "student": "the student as it was",
    "teacher": "the teacher as it was",
    "parametric": "the student, its adapter started from parameters of the teacher",
    "lora": "the student with plain LoRA: the usual start, nothing from the teacher",
    "pissa": "control: the adapter started from the student's own strongest directions",
    "random-block": "control: the adapter started from teacher blocks drawn at random",
    "norm-matched-random": "control: the adapter started at random, with the norms that the extracted factors have",
    "online-distillation": "the student taught to match the teacher's distributions while it trains",
    "offline-distillation": "the student trained on answers that the teacher wrote",
    "delta-transport": "the student, its adapter started from the teacher's task adapter, carried over by maps "
    "between the two models' activations",
}

TRANSFER_METRIC_MEANINGS = {
    "bits_per_byte/answers": "cost of encoding the gold answers, given their questions; lower is better",
    "bits_per_byte": "cost of encoding another text; lower is better, and a rise means that something was lost in "
    "general",
    "exact_match": "share of answers that are the gold answer, apart from case and punctuation",
    "rouge_l": "longest common run of words, in order, of answer and gold answer, as the harmonic mean of precision "
    "and recall",
    "accuracy": "share of tasks solved",
}

FUSE_ROW_MEANINGS = {
    "target": "the target as it was",
    "source": "the source {} as it was",
    "clm": "the target trained on the same texts without any source: the control that matters",
    "fused": "the target trained on the same texts, taught by all sources together",
    "distilled": "the target trained on the same texts, taught by {} alone",
    "pairwise": "the target fused with each source apart, the results merged by {}",
    "ensemble": "the sources' probabilities averaged over aligned chunks; nothing is trained",
    "merged": "the weights of the sources of one architecture merged by {}; nothing is trained",
}
"""By the row's name up to the slash; `{}` is the rest."""

FUSE_METRIC_MEANINGS = {
    "bits_per_byte/average": "the mean over the texts; lower is better",
    "bits_per_byte": "cost of encoding texts of this sort; lower is better, and models with different tokenizers can "
    "be compared",
    "accuracy": TRANSFER_METRIC_MEANINGS["accuracy"],
    "exact_match": TRANSFER_METRIC_MEANINGS["exact_match"],
    "rouge_l": TRANSFER_METRIC_MEANINGS["rouge_l"],
}

EVAL_METRIC_MEANINGS = {
    **METRIC_MEANINGS,
    "bits_per_byte": "cost of encoding the texts, or the gold answers after their questions; lower is better, and "
    "models with different tokenizers can be compared",
    "accuracy": "share of items solved: the right option found likeliest, or the right final number given",
    "accuracy_norm": "the same, each option's log-likelihood divided by its characters",
    "accuracy_bytes": "the same, each option's log-likelihood divided by its bytes",
    "exact_match": "share of answers that are the gold answer, as the set or benchmark compares them",
    "rouge_l": TRANSFER_METRIC_MEANINGS["rouge_l"],
    "wrong_answers": "share of questions without an answer that were answered instead of declined; lower is better",
    "win_rate": "share of instructions on which the judge preferred the model's reply, ties counted half",
    "win_rate_length_controlled": "the same, as if both replies had been of one length",
    "fact_coverage": "share of the facts that the questions of a file carry; says nothing of the model",
}

_METRIC_MEANINGS = {
    "transfer": TRANSFER_METRIC_MEANINGS,
    "fuse": FUSE_METRIC_MEANINGS,
    "eval": EVAL_METRIC_MEANINGS,
}

AVERAGE_BITS = "bits_per_byte/average"
"""Mean over the texts; it stands after them."""

ARM_NAMES = {
    "parametric": "parametric transfer",
    "lora": "plain LoRA",
    "pissa": "PiSSA of the student",
    "random-block": "a random teacher block",
    "norm-matched-random": "a random start of the same norm",
    "online-distillation": "online distillation",
    "offline-distillation": "offline distillation",
    "delta-transport": "delta transport",
    "fused": "fusion",
    "clm": "CLM",
    "target": "the target as it was",
    "source": "the source {}",
    "distilled": "distillation from {} alone",
    "pairwise": "pairwise fusion merged by {}",
    "ensemble": "the ensemble",
    "merged": "weights merged by {}",
}
"""Methods and controls as they stand in a sentence; `{}` is what follows the slash."""

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

MOST_MORE_PLACES = 4
"""Digits more than usual that a difference may take."""

_SHARE_METRICS = frozenset(METRIC_LABELS) - {"bits_per_byte"}


def is_share(metric: str) -> bool:
    """Whether a metric is a share in 0..1, written in per cent."""
    return metric.partition("/")[0] in _SHARE_METRICS


def metric_label(metric: str) -> str:
    """A metric's name for people, with its text or task in brackets: `Bits per byte (generic)`."""
    stem, _, part = metric.partition("/")
    label = METRIC_LABELS.get(stem, stem.replace("_", " "))
    return f"{label} ({part})" if part else label


def metric_names(report: Report) -> list[str]:
    """Every metric of any row, in the order in which they first come; the average of texts after all others."""
    names = dict.fromkeys(metric for row in report.rows for metric in row.metrics)
    return sorted(names, key=lambda metric: metric == AVERAGE_BITS)


def row_meaning(row: str) -> str:
    """What a row of the result table is; empty for an unknown one."""
    stem, _, part = row.partition("/")
    named = FUSE_ROW_MEANINGS.get(stem, "")
    fusion = named.replace("{}", part) if bool(part) == ("{}" in named) else ""
    return ROW_MEANINGS.get(row) or TRANSFER_ROW_MEANINGS.get(row) or fusion


def metric_meaning(metric: str, kind: str) -> str:
    """What a metric says in a run of this kind; empty for an unknown one."""
    meanings = _METRIC_MEANINGS.get(kind, METRIC_MEANINGS)
    return meanings.get(metric) or meanings.get(metric.partition("/")[0], "")


def arm_name(arm: str) -> str:
    """A method or control as it stands in a sentence."""
    stem, _, part = arm.partition("/")
    name = ARM_NAMES.get(stem, "")
    return name.replace("{}", part) if name and bool(part) == ("{}" in name) else arm


def visible_text(text: str, most: int = 80) -> str:
    """Text of any origin on one line, with nothing in it that a reader cannot see or that changes what stands near.

    Args:
        text: anything, as a token or a stretch of a document.
        most: characters shown; a longer text is cut.

    Returns:
        Control, format, private and unassigned characters, and spaces other than the plain one, as escapes
        (`\\n`, `\\u202e`); spaces at the ends and several in a row as `␣`.
    """
    cut, rest = text[:most], text[most:]
    shown = re.sub(r"^ +| +$| {2,}", lambda spaces: "␣" * len(spaces[0]), cut)
    shown = "".join(each.encode("unicode_escape").decode() if _is_hidden(each) else each for each in shown)
    if unicodedata.category(shown[:1] or "a").startswith("M"):
        shown = f"◌{shown}"  # a mark would sit on what stands before it
    return f"{shown}…" if rest else shown


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


def difference_text(metric: str, difference: MetricValue) -> str:
    """A difference with its interval: `−0.003 [−0.010, 0.004]`, or `+2.3 points [−1.0, 5.6]` of shares."""
    if difference.value is None:
        return NOTHING
    is_points = is_share(metric)
    unit, places, name = (100, 1, " points") if is_points else (1, 3, "")
    given = [difference.value, difference.low, difference.high]
    known = [unit * each for each in given if each is not None]
    if len(known) == len(given) and (all(each > 0 for each in known) or all(each < 0 for each in known)):
        nearest = min(map(abs, known))  # an interval that leaves out zero must not seem to touch it
        places += next((more for more in range(MOST_MORE_PLACES) if round(nearest, places + more)), 0)
    value, *ends = (
        None if each is None else round(unit * each, places) + 0.0  # no minus before a zero
        for each in given
    )
    text = f"{value:+.{places}f}{name}"
    if None not in ends:
        text += f" [{', '.join(f'{end:.{places}f}' for end in ends)}]"
    return text.replace("-", "−")


def percent_text(share: float | None) -> str:
    """A share in 0..1 as `41.3 %`."""
    return NOTHING if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def bytes_text(n_bytes: int) -> str:
    """A number of bytes as `12 KiB`, `3.4 MiB`, `130 GiB`."""
    size, units = float(n_bytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.3g} {units[0]}"


def n_items_text(metrics: dict[str, MetricValue]) -> str:
    """How many questions a row scored: one number, or the smallest and largest where metrics differ."""
    asked = {
        metric: e for metric, e in metrics.items() if is_share(metric) or metric == "bits_per_byte/answers"
    }
    counts = sorted({e.n for e in asked.values() if e.n is not None})
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


def _is_hidden(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] == "C" or (category[0] == "Z" and character != " ")

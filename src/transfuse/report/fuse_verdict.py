"""What a fuse run showed, in plain words: whether fusion beats training on the same texts alone, and where."""

import math
from collections.abc import Sequence

from transfuse.report import wording
from transfuse.report.load import Report
from transfuse.report.transfer_parts import Comparison, Verdict

CONTROL = "clm"
"""The control that matters: the same texts and tokens, no source."""
_CONTROL_NAME = "CLM, the same training on the same texts without any source"
_BITS = "bits_per_byte"
_OUTCOMES: dict[Verdict, str] = {
    "better": "beats",
    "worse": "is worse than",
    "no difference shown": "does not beat",
}
_PLACES: dict[Verdict, str] = {
    "better": "better on",
    "worse": "worse on",
    "no difference shown": "no difference shown on",
}
_MOST_INTERVALS = 6
"""Texts that are told with their intervals; those of more are left to the table."""


def fuse_verdict(report: Report) -> str:
    """The result of a fuse run in plain words.

    Args:
        report: any report.

    Returns:
        Up to four sentences: fusion against CLM, the same text by text, against all else, and what was measured
        without a comparison. Where nothing was compared, what was measured; without that, what was aligned.
    """
    own = [
        c
        for c in report.comparisons
        if c.method == fused_method(report)
        and c.metric.partition("/")[0] == _BITS
        and _is_number(c.difference.value)
    ]
    if not own:
        return _measured(report) or _aligned(report)
    against_control = [c for c in own if c.against == CONTROL]
    headline = _headline(against_control)
    texts = [c for c in against_control if c is not headline and c.metric != wording.AVERAGE_BITS]
    sentences = [
        _against_control(report, headline, texts) if against_control else _without_control(report),
        _by_text(texts) if headline else "",
        _against_others([c for c in own if c.against != CONTROL]),
        _not_compared(report, own),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def fused_method(report: Report) -> str:
    """The row that the run is about: `fused`, where it is there."""
    methods = [c.method for c in report.comparisons]
    return "fused" if "fused" in methods or not methods else methods[0]


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _headline(comparisons: Sequence[Comparison]) -> Comparison | None:
    """The average, or the only text; None where texts stand without an average."""
    average = next((c for c in comparisons if c.metric == wording.AVERAGE_BITS), None)
    return average or (comparisons[0] if len(comparisons) == 1 else None)


def _measure(metric: str) -> str:
    if metric == wording.AVERAGE_BITS:
        return "bits per byte on average"
    part = metric.partition("/")[2]
    return f"bits per byte of {part}" if part else "bits per byte"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _against_control(report: Report, headline: Comparison | None, texts: Sequence[Comparison]) -> str:
    """Fusion against CLM by the average, or over all texts where there is none."""
    method = _upper(wording.arm_name(fused_method(report)))
    if headline is None:
        same = _OUTCOMES[texts[0].verdict] if len({c.verdict for c in texts}) == 1 else ""
        lead = f"{method} {same} {_CONTROL_NAME}" if same else f"{method} against {_CONTROL_NAME}"
        return f"{lead}: {_places(texts)}{_counts(report, texts[0])}."
    numbers = wording.difference_text(headline.metric, headline.difference)
    return (
        f"{method} {_OUTCOMES[headline.verdict]} {_CONTROL_NAME}: {_measure(headline.metric)} {numbers}"
        f"{_counts(report, headline)}."
    )


def _without_control(report: Report) -> str:
    method = wording.arm_name(fused_method(report))
    return f"CLM, the same training without any source, was not compared, so this does not say whether {method} helps."


def _counts(report: Report, comparison: Comparison) -> str:
    arm = next((arm for arm in report.arms if arm.name == comparison.method), None)
    counts = [(len(arm.seeds or arm.runs) if arm else 0, "seed"), (comparison.difference.n or 0, "text")]
    return "".join(f", {n:,} {thing}{'s' * (n != 1)}" for n, thing in counts if n)


def _by_text(texts: Sequence[Comparison]) -> str:
    """The same comparison on each text; empty where there is none."""
    return f"Text by text: {_places(texts)}." if texts else ""


def _places(texts: Sequence[Comparison]) -> str:
    """`better on wiki (−0.012 [−0.020, −0.004]); no difference shown on code (…)`."""
    parts: list[str] = []
    for outcome, lead in _PLACES.items():
        group = [c for c in texts if c.verdict == outcome]
        told = [
            f"{c.metric.partition('/')[2] or 'the text'} ({wording.difference_text(c.metric, c.difference)})"
            if len(texts) <= _MOST_INTERVALS
            else c.metric.partition("/")[2]
            for c in group
        ]
        if told:
            parts.append(f"{lead} {_listed(told)}")
    return "; ".join(parts)


def _against_others(others: Sequence[Comparison]) -> str:
    """All else by the average (or by the first metric that was compared), grouped by what was found."""
    metrics = [c.metric for c in others]
    metric = wording.AVERAGE_BITS if wording.AVERAGE_BITS in metrics else next(iter(metrics), "")
    parts: list[str] = []
    leads: dict[Verdict, str] = {
        "better": "it beats",
        "worse": "it is worse than",
        "no difference shown": "no difference is shown from",
    }
    for outcome, lead in leads.items():
        told = [wording.arm_name(c.against) for c in others if c.metric == metric and c.verdict == outcome]
        if told:
            parts.append(f"{lead} {_listed(told)}")
    lead = "On average" if metric == wording.AVERAGE_BITS else f"By {_measure(metric)}"
    return f"{lead} {'; '.join(parts)}." if parts else ""


def _values(report: Report, without: frozenset[str] = frozenset()) -> tuple[str, str]:
    """The metric that most rows have, and their values by it: `target 1.020, fused 0.981`."""
    rows = {row.name: row.metrics for row in report.rows if row.name not in without}
    present = [
        metric
        for metrics in rows.values()
        for metric, estimate in metrics.items()
        if metric.partition("/")[0] == _BITS and _is_number(estimate.value)
    ]
    if not present:
        return "", ""
    metric = wording.AVERAGE_BITS if wording.AVERAGE_BITS in present else max(present, key=present.count)
    told = [
        f"{name} {wording.value_text(metric, metrics[metric])}"
        for name, metrics in rows.items()
        if metric in metrics and _is_number(metrics[metric].value)
    ]
    return metric, ", ".join(told)


def _not_compared(report: Report, own: Sequence[Comparison]) -> str:
    """Rows that nothing was compared with: their plain values; empty where there is none."""
    compared = frozenset({c.against for c in own} | {c.method for c in own})
    metric, told = _values(report, compared)
    return f"Not compared, {_measure(metric)}: {told}." if told else ""


def _measured(report: Report) -> str:
    metric, told = _values(report)
    if not told:
        return ""
    return f"{_upper(_measure(metric))}: {told}. Nothing was compared, so this does not say where a gain comes from."


def _aligned(report: Report) -> str:
    """How much each source can teach, where nothing was trained or measured."""
    shares = [
        (pair.source, pair.coverage.taught_share) for pair in (report.fuse.pairs if report.fuse else [])
    ]
    told = [f"{name} {wording.percent_text(share)}" for name, share in shares if share is not None]
    if not told:
        return ""
    return f"Share of the target's tokens that a source can teach: {', '.join(told)}. Nothing was measured."


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)

"""What a transfer run showed, in plain words: whether the method beats its controls, and by how much."""

from collections.abc import Sequence
from statistics import fmean

from transfuse.report import wording
from transfuse.report.load import Report
from transfuse.report.transfer_parts import Comparison, Transfer

DECIDING_METRIC = "bits_per_byte/answers"
"""The metric that the verdict goes by where it was measured; else the first one compared."""
FIRST_CONTROL = "lora"
_OUTCOMES = {"better": "beats", "worse": "is worse than", "no difference shown": "does not beat"}


def transfer_verdict(report: Report) -> str:
    """The result of a transfer run in plain words.

    Args:
        report: any report.

    Returns:
        Up to three sentences: the method against plain LoRA, against the other controls, and by other measures.
        Without comparisons, what was measured; without measurements, what was extracted.
    """
    metric, deciding = _deciding(report)
    if not deciding:
        return _measured(report) or _extracted(report.transfer)
    first = next((c for c in deciding if c.against == FIRST_CONTROL), deciding[0])
    others = [c for c in deciding if c is not first]
    rest = [c for c in report.comparisons if c.method == first.method and c.metric != metric]
    sentences = [_against(report, first), _also_against(others), _other_measures(rest)]
    return " ".join(sentence for sentence in sentences if sentence)


def main_method(report: Report) -> str:
    """The arm that the run is about."""
    if report.comparisons:
        return report.comparisons[0].method
    return report.transfer.method if report.transfer else "parametric"


def _deciding(report: Report) -> tuple[str, list[Comparison]]:
    """The metric that decides, and the main method's comparisons by it."""
    own = [
        c for c in report.comparisons if c.method == main_method(report) and c.difference.value is not None
    ]
    metrics = [c.metric for c in own]
    metric = DECIDING_METRIC if DECIDING_METRIC in metrics else next(iter(metrics), DECIDING_METRIC)
    return metric, [c for c in own if c.metric == metric]


def _measure(metric: str) -> str:
    """A metric as it stands in a sentence."""
    return "bits per byte of answers" if metric == DECIDING_METRIC else wording.metric_label(metric)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _against(report: Report, comparison: Comparison) -> str:
    arm = next((arm for arm in report.arms if arm.name == comparison.method), None)
    counts = [(len(arm.seeds or arm.runs) if arm else 0, "seed"), (comparison.difference.n or 0, "answer")]
    told = [f"{n:,} {thing}{'s' * (n != 1)}" for n, thing in counts if n]
    numbers = wording.difference_text(comparison.metric, comparison.difference)
    return (
        f"{_upper(wording.arm_name(comparison.method))} {_OUTCOMES[comparison.verdict]} "
        f"{wording.arm_name(comparison.against)}: {', '.join([f'{_measure(comparison.metric)} {numbers}', *told])}."
    )


def _also_against(comparisons: Sequence[Comparison]) -> str:
    """The same measure against the other controls, grouped by what was found."""
    parts = {
        "it beats": [c.against for c in comparisons if c.verdict == "better"],
        "it is worse than": [c.against for c in comparisons if c.verdict == "worse"],
        "no difference is shown from": [c.against for c in comparisons if c.verdict == "no difference shown"],
    }
    told = [f"{lead} {_listed([wording.arm_name(a) for a in arms])}" for lead, arms in parts.items() if arms]
    return f"By the same measure {'; '.join(told)}." if told else ""


def _other_measures(comparisons: Sequence[Comparison]) -> str:
    """The remaining measures against plain LoRA, counted."""
    found = [c.verdict for c in comparisons if c.against == FIRST_CONTROL and c.difference.value is not None]
    if not found:
        return ""
    lead = (
        f"By {len(found)} other measure{'s' * (len(found) != 1)} against {wording.arm_name(FIRST_CONTROL)}: "
    )
    counts = {verdict: found.count(verdict) for verdict in _OUTCOMES if verdict in found}
    if len(counts) == 1:
        return f"{lead}{found[0]}{' in all of them' * (len(found) != 1)}."
    return lead + ", ".join(f"{verdict} in {count}" for verdict, count in counts.items()) + "."


def _measured(report: Report) -> str:
    """What student and arms measure where nothing was compared; empty where neither was measured."""
    rows = {row.name: row.metrics for row in report.rows}
    metric = next(
        (m for m in [DECIDING_METRIC, *wording.metric_names(report)] if m in rows.get("student", {})), ""
    )
    values = {
        name: wording.value_text(metric, metrics[metric])
        for name, metrics in rows.items()
        if metric in metrics and metrics[metric].value is not None
    }
    if not values:
        return ""
    told = ", ".join(f"{name} {value}" for name, value in values.items())
    return f"{_upper(_measure(metric))}: {told}. No control was compared, so this does not say where a gain comes from."


def _extracted(transfer: Transfer | None) -> str:
    """What was taken out of the teacher; empty where there are no blocks."""
    if transfer is None or not transfer.blocks:
        return ""
    text = (
        f"{len(transfer.blocks):,} block{'s' * (len(transfer.blocks) != 1)} of {transfer.teacher} "
        f"{'were' if len(transfer.blocks) != 1 else 'was'} cut to the shapes of {transfer.student}"
    )
    scored = [b for b in transfer.blocks if b.score_share is not None]
    if scored:
        share, area = fmean(b.score_share or 0.0 for b in scored), fmean(b.area_share for b in scored)
        text += (
            f"; on average a block holds {wording.percent_text(share)} of its matrix's sensitivity in "
            f"{wording.percent_text(area)} of its entries"
        )
    energies = [b.energy for b in transfer.blocks if b.energy is not None]
    if energies:
        text += (
            f", and rank {transfer.rank} keeps {wording.percent_text(fmean(energies))} of its squared norm"
        )
    return f"{text}. Nothing was trained."


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)

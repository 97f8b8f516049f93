"""One self-contained HTML page from a run folder's `report.json`."""

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from transfuse.errors import RunFolderError
from transfuse.report import compare_wording, eval_wording, wording
from transfuse.report.arm_plots import REFERENCE, curves_chart, forest_chart, sweep_chart
from transfuse.report.compare_plots import cost_chart, trade_off_chart
from transfuse.report.eval_tables import latency_text
from transfuse.report.fuse_plots import chosen_chart, coverage_chart, texts_chart
from transfuse.report.fuse_verdict import CONTROL, fuse_verdict, fused_method
from transfuse.report.fuse_wording import fusion_settings
from transfuse.report.load import DroppedThing, FactResult, Report, read_report
from transfuse.report.plots import metrics_chart, questions_per_fact_plot, training_chart, tuning_chart
from transfuse.report.transfer_plots import blocks_chart, sensitivity_chart, shares_chart
from transfuse.report.transfer_verdict import main_method, transfer_verdict
from transfuse.report.verdict import (
    AFTER_ROWS,
    COUNTING_RULES,
    OUTCOME_LABELS,
    OUTCOME_MEANINGS,
    Outcome,
    after_row,
    counting_metric,
    fact_outcome,
    is_right,
    verdict,
)

PAGE_FILE = "report.html"
_HERE = Path(__file__).parent
_VERDICTS = {
    "transfer": transfer_verdict,
    "fuse": fuse_verdict,
    "compare": compare_wording.compare_verdict,
    "eval": eval_wording.eval_verdict,
}
"""Of kinds other than inject."""
_ANSWER_LABELS = {
    "base": "Before",
    **dict.fromkeys(AFTER_ROWS, "After"),
    "oracle": "Before, section in context",
    "rag": "Before, passages in context",
    **{f"{name}+rag": "After, passages in context" for name in AFTER_ROWS},
}


def write_page(run: Path) -> Path:
    """Make `report.html` in a finished run folder, replacing an earlier one in a single step.

    Args:
        run: folder of the run, holding `report.json`.

    Returns:
        Path of the page.

    Raises:
        RunFolderError: the run is not finished, its report is malformed, or the page cannot be written.
    """
    html = page_html(read_report(run))
    path = run / PAGE_FILE
    temporary = run / f".{PAGE_FILE}.{os.getpid()}.tmp"
    try:
        temporary.write_text(html, encoding="utf-8", errors="replace")
        temporary.replace(path)
    except OSError as err:
        raise RunFolderError(f"{path}: cannot be written: {err}; free space or check permissions.") from err
    finally:
        temporary.unlink(missing_ok=True)
    return path


def page_html(report: Report) -> str:
    """The page as text; everything that comes from the report is escaped."""
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    charts = _charts(report)
    curve = report.training.curve if report.training and not charts["curves"] else []
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            report=report,
            verdict=_VERDICTS.get(report.kind, verdict)(report),
            counting_rule=COUNTING_RULES.get(counting_metric(report) or "", ""),
            metrics=wording.metric_names(report),
            has_questions=report.kind != "fuse"
            or any(wording.n_items_text(r.metrics) != wording.NOTHING for r in report.rows),
            # The charts are made here, with every text in them escaped by matplotlib.
            metrics_chart=Markup(_metrics_chart(report)),  # noqa: S704
            training_chart=Markup(training_chart(curve)),  # noqa: S704
            tuning_chart=Markup(tuning_chart(report.rag.tuning if report.rag else [])),  # noqa: S704
            coverage_chart=Markup(_coverage_chart(report)),  # noqa: S704
            charts=charts,
            left_out=_left_out(report),
            uncovered=[fact for fact in report.facts if fact.n_by_answer == 0 and not fact.kept_out],
            sections=_facts_by_section(report),
            outcomes=_outcome_counts(report),
            answer_columns=_answer_columns(report),
            style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704
            script=Markup(script),  # noqa: S704
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _environment() -> Environment:
    """The template's environment: escapes all values, refuses unknown names."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=select_autoescape(enabled_extensions=("html", "jinja"), default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        wording=wording,
        compare=compare_wording,
        evaluation=eval_wording,
        latency_text=latency_text,
        is_right=is_right,
        score_text=score_text,
        setting_text=setting_text,
        visible=wording.visible_text,
        fusion_settings=fusion_settings,
        outcome_labels=OUTCOME_LABELS,
        outcome_meanings=OUTCOME_MEANINGS,
    )
    return environment


def score_text(scores: dict[str, float]) -> str:
    """An answer's scores on one line: `Exact match 0 · F1 0.40`."""
    return " · ".join(f"{wording.metric_label(name)} {_short(value)}" for name, value in scores.items())


def setting_text(value: Any) -> str:
    """A training setting for people: lists with commas, yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(setting_text(part) for part in value)
    return wording.NOTHING if value is None else str(value)


def _short(value: float) -> str:
    """A score with two decimals, or none where it is whole."""
    return str(int(value)) if float(value).is_integer() else f"{value:.2f}"


def _facts_by_section(report: Report) -> list[tuple[str, list[tuple[FactResult, Outcome]]]]:
    """Facts with their outcomes under their sections, both in the order in which they first come."""
    groups: dict[str, list[tuple[FactResult, Outcome]]] = {}
    for fact in report.facts:
        groups.setdefault(fact.section, []).append((fact, fact_outcome(fact, after_row(report))))
    return list(groups.items())


def _outcome_counts(report: Report) -> dict[Outcome, int]:
    """How many facts came to each outcome, in a fixed order, without those that none came to."""
    found = [fact_outcome(fact, after_row(report)) for fact in report.facts]
    return {outcome: found.count(outcome) for outcome in OUTCOME_LABELS if outcome in found}


def _coverage_chart(report: Report) -> str:
    """Training questions per fact; empty where none were counted."""
    trained = [fact for fact in report.facts if fact.n_by_answer is not None and not fact.kept_out]
    by_answer = [fact.n_by_answer or 0 for fact in trained]
    by_similarity = [fact.n_by_similarity for fact in trained if fact.n_by_similarity is not None]
    return questions_per_fact_plot(by_answer, by_similarity if len(by_similarity) == len(trained) else None)


def _metrics_chart(report: Report) -> str:
    """Every metric of every row; empty where a kind has charts of its own."""
    has_own = report.compare is not None or report.eval is not None
    return "" if has_own else metrics_chart(report, _charted(report))


def _charted(report: Report) -> list[str]:
    """Metrics of the general chart: all but those that the chart of texts shows."""
    names = wording.metric_names(report)
    return [name for name in names if report.kind != "fuse" or name.partition("/")[0] != "bits_per_byte"]


def _charts(report: Report) -> dict[str, Markup]:
    """The charts of arms, extraction and fusion by name, every text in them escaped by matplotlib."""
    transfer, fuse, is_fuse = report.transfer, report.fuse, report.kind == "fuse"
    method, control = (fused_method(report), CONTROL) if is_fuse else (main_method(report), REFERENCE)
    charts = {
        "forest": forest_chart(report.comparisons) if report.compare is None else "",
        "curves": curves_chart(report.arms, method, control),
        "sweep": sweep_chart(report.arms, method, control),
        "sensitivity": sensitivity_chart(transfer.layers, transfer.modules) if transfer else "",
        "blocks": blocks_chart(transfer.blocks) if transfer else "",
        "shares": shares_chart(transfer.blocks) if transfer else "",
        "texts": texts_chart(report) if is_fuse else "",
        "pairs": coverage_chart(fuse.pairs) if fuse else "",
        "chosen": chosen_chart(fuse.chosen) if fuse else "",
        "tradeoff": trade_off_chart(report),
        "cost": cost_chart(report),
    }
    return {name: Markup(svg) for name, svg in charts.items()}  # noqa: S704


def _left_out(report: Report) -> list[DroppedThing]:
    """Everything left out; a transfer names the student's parts that take nothing first."""
    parts = report.transfer.left_out if report.transfer else []
    return [
        DroppedThing(kind="module", what=part.what, reason=part.reason) for part in parts
    ] + report.dropped


def _answer_columns(report: Report) -> dict[str, str]:
    """Heading of each model's answers, before and after first."""
    present = dict.fromkeys(name for fact in report.facts for item in fact.items for name in item.answers)
    ordered = [name for name in _ANSWER_LABELS if name in present]
    ordered += [name for name in present if name not in _ANSWER_LABELS]
    return {name: _ANSWER_LABELS.get(name, name) for name in ordered}

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from transfuse.report import read_report, report_tables, write_page
from transfuse.report.compare_plots import cost_chart, trade_off_chart
from transfuse.report.compare_wording import compare_verdict, p_text, pair_text, shown_metrics
from transfuse.report.load import Report

EVIL = "a<script>alert(1)</script>"


def value(mean: float, half: float = 0.1) -> dict[str, Any]:
    return {"value": mean, "low": mean - half, "high": mean + half, "n": 50}


def against(metric: str, row: str, difference: float, *, holds: bool, lower: bool = False) -> dict[str, Any]:
    outcome = "worse" if (difference > 0) == lower else "better"
    return {
        "metric": metric,
        "method": row,
        "against": "base",
        "difference": value(difference, 0.05),
        "is_better_lower": lower,
        "verdict": outcome if holds else "no difference shown",
        "p": 0.001,
        "p_holm": 0.002,
        "holds": holds,
    }


def row(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "route": "inject", "meaning": "questions, trained", **more}


@pytest.fixture
def content() -> dict[str, Any]:
    """A base, a row that learns and forgets, and one that failed."""
    costs = {"training_tokens": 12000.0, "training_s": 90.0, "size_added_bytes": 2**20, "latency_s": 0.25}
    metrics = {"exact_match/reworded": "knowledge", "f1/reworded": "knowledge"}
    metrics |= {"bits_per_byte/generic": "general", "wrong_answers/unanswerable": "refusals"}
    return {
        "kind": "compare",
        "model": "small",
        "seed": 17,
        "rows": [
            {
                "name": "base",
                "metrics": {
                    "exact_match/reworded": value(0.1),
                    "f1/reworded": value(0.2),
                    "bits_per_byte/generic": value(1.0),
                    "wrong_answers/unanswerable": value(0.5),
                },
            },
            {
                "name": "inject",
                "metrics": {"f1/reworded": value(0.8), "bits_per_byte/generic": value(1.2)},
            },
            {"name": EVIL, "metrics": {}},
        ],
        "comparisons": [
            against("f1/reworded", "inject", 0.6, holds=True),
            against("bits_per_byte/generic", "inject", 0.2, holds=True, lower=True),
        ],
        "compare": {
            "main_metric": "f1/reworded",
            "reference": "base",
            "best": "inject",
            "metrics": metrics,
            "questions": {"reworded": 50},
            "rows": [
                row("base", route="base"),
                row("inject", seeds=[17], costs=costs, settings={"scale": 10}),
                row(EVIL, state="failed", reason=f"ended by SIGKILL {EVIL}"),
            ],
            "pairs": [
                {
                    "first": "base",
                    "second": "inject",
                    "difference": value(-0.6),
                    "p": 0.0001,
                    "p_holm": 0.0003,
                    "holds": True,
                }
            ],
        },
    }


def report_of(content: dict[str, Any]) -> Report:
    return Report.model_validate(content)


def test_the_verdict_says_what_is_best_what_it_costs_and_what_failed(content: dict[str, Any]):
    assert compare_verdict(report_of(content)) == (
        "inject is best by F1 (reworded): 80.0 %, where base has 20.0 %. It is shown to be better than every other "
        "row. In general ability it is worse in bits per byte (generic) (+0.200 [0.150, 0.250]). 1 of 3 rows failed."
    )


def test_no_difference_is_not_told_as_one(content: dict[str, Any]):
    content["compare"]["pairs"][0]["holds"] = False
    content["comparisons"] = []
    text = compare_verdict(report_of(content))
    assert "No other row is shown to be worse." in text
    assert "No change of general ability is shown." in text


def test_a_loss_that_only_the_number_of_rows_hides_is_told_as_such(content: dict[str, Any]):
    for comparison in content["comparisons"]:
        comparison["holds"] = False
    assert (
        "No change of general ability is shown; before the correction for several rows it is worse in bits per byte "
        "(generic) (+0.200 [0.150, 0.250])." in compare_verdict(report_of(content))
    )


def test_rows_that_are_all_alike_have_no_best(content: dict[str, Any]):
    content["rows"][1]["metrics"]["f1/reworded"] = value(0.2)
    assert compare_verdict(report_of(content)).startswith("All rows have the same F1 (reworded): 20.0 %.")


def test_one_score_of_each_set_stands_in_the_table_knowledge_first(content: dict[str, Any]):
    shown = shown_metrics(report_of(content))
    assert shown == ["f1/reworded", "bits_per_byte/generic", "wrong_answers/unanswerable"]
    content["compare"]["main_metric"] = "exact_match/reworded"
    assert "exact_match/reworded" in shown_metrics(report_of(content))


def test_a_pair_reads_either_way(content: dict[str, Any]):
    report = report_of(content)
    assert pair_text(report, "base", "inject") == "−60.0 points"
    assert pair_text(report, "inject", "base") == "+60.0 points"
    assert pair_text(report, "inject", EVIL) == "–"
    assert [p_text(p) for p in (0.0004, 0.0321, 0.5, None)] == ["< 0.001", "0.032", "0.50", "–"]


def test_the_page_stands_alone_and_escapes_what_it_is_given(content: dict[str, Any], tmp_path: Path):
    (tmp_path / "report.json").write_text(json.dumps(content))
    page = write_page(tmp_path).read_text(encoding="utf-8")
    assert EVIL not in page
    assert "a&lt;script&gt;" in page
    assert "failed: ended by SIGKILL" in page
    assert "<svg" in page  # gained against lost
    assert "▲" in page
    assert "▼" in page


def test_tables_of_a_terminal(content: dict[str, Any], tmp_path: Path):
    (tmp_path / "report.json").write_text(json.dumps(content))
    console = Console(width=80, record=True, file=io.StringIO())
    for table in report_tables(read_report(tmp_path)):
        console.print(table)
    text = console.export_text()
    assert "80.0 % ▲" in text
    assert "1.200 ▼" in text
    assert "12,000" in text
    assert "ended by SIGKILL" in text


def test_charts_need_something_to_draw(content: dict[str, Any]):
    assert trade_off_chart(report_of(content)).startswith("<svg")
    assert cost_chart(report_of(content)) == ""  # a single row that trains
    content["comparisons"] = []
    assert trade_off_chart(report_of(content)) == ""
    content["compare"] = None
    assert trade_off_chart(report_of(content)) == cost_chart(report_of(content)) == ""

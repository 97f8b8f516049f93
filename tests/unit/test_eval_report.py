"""Words, tables and page of an evaluation's report."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from transfuse.report import read_report, report_tables, write_page
from transfuse.report.eval_parts import AskedItem
from transfuse.report.eval_wording import eval_verdict, figure_groups, figure_label, item_mark, set_name
from transfuse.report.load import Report


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 20}


def compared(metric: str, value: float, verdict: str) -> dict[str, Any]:
    return {
        "metric": metric,
        "method": "model",
        "against": "against",
        "difference": estimate(value),
        "is_better_lower": metric.startswith(("bits", "wrong")),
        "verdict": verdict,
    }


METRICS = {
    "f1/reworded": 0.5,
    "exact_match/gsm8k:strict-match": 0.2,
    "wrong_answers/unanswerable": 0.7,
    "bits_per_byte/wiki": 0.9,
}


def report_tree(*, second: bool = True) -> dict[str, Any]:
    rows = [
        {"name": name, "metrics": {m: estimate(v) for m, v in METRICS.items()}}
        for name in ("model", "against")
    ]
    item = {
        "item": "q1",
        "question": "<b>Who?</b>",
        "gold": "Ann",
        "contexts": {"model": "It was <i>Ann</i>."},
        "answers": {"model": "<script>x</script>", "against": ""},
        "scores": {"model": {"f1": 0.0, "contains": 0.0}, "against": {}},
        "reason": {"against": "no room"},
    }
    return {
        "kind": "eval",
        "model": "m",
        "seed": 1,
        "rows": rows if second else rows[:1],
        "comparisons": [
            compared("f1/reworded", 0.2, "better"),
            compared("wrong_answers/unanswerable", 0.3, "worse"),
            compared("bits_per_byte/wiki", 0.0, "no difference shown"),
        ]
        if second
        else [],
        "costs": {
            "model": {"seconds": 3.0, "latency_s": 0.25, "peak_memory_bytes": 2**30, "size_added_bytes": 0}
        },
        "eval": {
            "systems": {"model": {"model": "m", "adapter": "a&b"}},
            "sets": [{"name": "reworded", "group": "questions", "n_items": 9, "items": [item]}],
            "harness": {"model": {"gsm8k": {"gsm8k": {"exact_match,strict-match": 0.2}}}},
            "versions": {"lm_eval": "0.4.13"},
        },
    }


def read(tmp_path: Path, tree: dict[str, Any]) -> Report:
    (tmp_path / "report.json").write_text(json.dumps(tree))
    return read_report(tmp_path)


def test_a_verdict_names_what_is_better_worse_and_open(tmp_path: Path) -> None:
    assert eval_verdict(read(tmp_path, report_tree())) == (
        "Pair by pair, model is better than against by F1 (reworded). It is worse by wrong answers (unanswerable). "
        "No difference is shown by bits per byte (wiki)."
    )
    assert eval_verdict(read(tmp_path, report_tree(second=False))) == ""


def test_figures_stand_under_their_sets(tmp_path: Path) -> None:
    groups = figure_groups(read(tmp_path, report_tree()))
    assert [(each.name, each.label) for each in groups] == [
        ("reworded", "knowledge questions"),
        ("gsm8k", ""),
        ("unanswerable", ""),
        ("wiki", "texts"),
    ]
    assert figure_label("exact_match/gsm8k:strict-match") == "Exact match, strict-match"
    assert figure_label("fact_coverage/by_answer") == "Facts carried, by answer"
    assert set_name("fact_coverage/by_answer") == "facts"


@pytest.mark.parametrize(
    ("scores", "mark"),
    [
        ({"exact_match": 0.0, "contains": 1.0}, "right"),
        ({"exact_match:strict-match": 0.0, "exact_match:flexible-extract": 1.0}, "right"),
        ({"accuracy": 0.0}, "wrong"),
        ({"wrong_answers": 1.0}, "wrong"),
        ({"wrong_answers": 0.0}, "right"),
        ({"rouge_l": 0.4}, "unscored"),
        ({}, "unscored"),
    ],
)
def test_marks(scores: dict[str, float], mark: str) -> None:
    assert item_mark(AskedItem(item="a", question="q", scores={"model": scores}), "model") == mark


def test_tables_fit_80_columns(tmp_path: Path) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    for table in report_tables(read(tmp_path, report_tree())):
        console.print(table)
    text = console.export_text()
    for shown in ("reworded, knowledge questions", "50.0 %", "+20.0 points", "250 ms", "1 GiB"):
        assert shown in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_page_escapes_everything(tmp_path: Path) -> None:
    read(tmp_path, report_tree())
    page = write_page(tmp_path).read_text()
    for shown in (
        "&lt;b&gt;Who?",
        "&lt;script&gt;x",
        "a&amp;b",
        "Not scored: no room",
        "What stood before it (model)",
    ):
        assert shown in page
    for raw in ("<b>Who?", "<script>x", "<i>Ann"):
        assert raw not in page
    assert "exact_match,strict-match" in page

"""What a fuse run's report says: verdict, tables, charts and page."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from test_report import HOSTILE, Elements

from transfuse.errors import RunFolderError
from transfuse.report import Pair, Report, coverage_table, read_report, report_tables
from transfuse.report.arm_plots import curves_chart, forest_chart
from transfuse.report.fuse_parts import ChosenShares, Fuse, VocabularyOverlap
from transfuse.report.fuse_plots import chosen_chart, coverage_chart, texts_chart
from transfuse.report.fuse_verdict import fuse_verdict
from transfuse.report.fuse_wording import fusion_settings
from transfuse.report.load import MetricValue
from transfuse.report.page import page_html
from transfuse.report.transfer_parts import Arm, Comparison
from transfuse.report.wording import arm_name, difference_text, metric_names, row_meaning, visible_text

AVERAGE = "bits_per_byte/average"
UNSEEN = "\u202eevil\x1b[31m\x00\u200b\u2028"
"""Turns the line round, colours a terminal, ends a string, and so on."""


def compared(
    against: str, value: float, metric: str = AVERAGE, reach: float = 0.003, method: str = "fused"
) -> dict[str, Any]:
    """A comparison of bits per byte; the verdict follows from the interval."""
    low, high = value - reach, value + reach
    return {
        "metric": metric,
        "method": method,
        "against": against,
        "difference": {"value": value, "low": low, "high": high, "n": 300},
        "is_better_lower": True,
        "verdict": "no difference shown" if low <= 0 <= high else "better" if value < 0 else "worse",
    }


def row(name: str, wiki: float, code: float) -> dict[str, Any]:
    """A row whose average stands before the texts: it belongs after them."""
    values = {AVERAGE: (wiki + code) / 2, "bits_per_byte/wiki": wiki, "bits_per_byte/code": code}
    return {
        "name": name,
        "metrics": {m: {"value": v, "low": v - 0.03, "high": v + 0.03, "n": 90} for m, v in values.items()},
    }


def arm(name: str) -> dict[str, Any]:
    curve = [{"step": step, "loss": 3.0 / step} for step in (1, 2, 3, 4)]
    runs = [{"seed": seed, "seconds": 61.0, "final_loss": 0.75, "curve": curve} for seed in (17, 18, 19)]
    return {
        "name": name,
        "learning_rate": 2e-4,
        "seeds": [17, 18, 19],
        "tried": [],
        "runs": runs,
        "n_tokens": 4321,
    }


def pair(source: str, **coverage: Any) -> dict[str, Any]:
    return {
        "source": source,
        "coverage": {
            "one_to_one_share": 0.813,
            "taught_share": 0.871,
            "byte_share": 0.842,
            "digit_share": 0.402,
            "longest_chunk_tokens": 37,
            "longest_chunk_text": f"{HOSTILE[:60]}\n{UNSEEN}" + 300 * "x",
            **coverage,
        },
        "vocabulary": {
            "n_source": 1000,
            "n_exact": 157,
            "n_mapped": 841,
            "n_unmapped": 2,
            "overlap": 0.157,
            "by_distance": {1: 800, 2: 41},
            "examples": [
                {"source": " the", "target": "the", "distance": 1},
                {"source": HOSTILE, "target": UNSEEN, "distance": 9},
                {"source": "<unused0>", "target": None, "distance": None},
            ],
        },
        "map_seconds": 41.2,
        "align_seconds": 1.3,
    }


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """A whole fuse run, hostile text wherever a model or a file can put it."""
    names = ["target", "source/gemma", f"source/{HOSTILE}", "clm", "fused", "distilled/gemma", "ensemble"]
    sources = [
        {
            "name": name,
            "reference": f"models/{name}",
            "n_vocab": 49152,
            "n_tokens": 1_048_576,
            "seconds": 61.0,
            "tokens_per_s": 2100.4,
            "n_bytes": 3 * 2**30,
            "bytes_per_token": 37.94,
            "bits_per_byte": {"wiki": 0.95, HOSTILE: None},
        }
        for name in ("gemma", HOSTILE)
    ]
    return {
        "kind": "fuse",
        "model": "smol",
        "seed": 17,
        "rows": [row(name, 1.02 - i / 100, 0.75) for i, name in enumerate(names)]
        + [row("merged/ties", 4.0, 5.0)],
        "arms": [arm("fused"), arm("clm"), arm("distilled/gemma")],
        "comparisons": [
            compared("clm", -0.01, "bits_per_byte/wiki"),
            compared("clm", 0.001, "bits_per_byte/code"),
            compared("clm", -0.006),
            compared("target", -0.05),
            compared("distilled/gemma", 0.001),
            compared("ensemble", 0.02),
        ],
        "training": {"method": "fused", "curve": arm("fused")["runs"][0]["curve"]},
        "dropped": [{"kind": "text", "what": "line 7", "reason": "is empty"}],
        "fuse": {
            "target": f"smol {HOSTILE}",
            "sources": sources,
            "rule": "fair-min-ce",
            "level": "chunk",
            "align": "exact",
            "map": "min-edit",
            "fallback": "next-token",
            "divergence": "cross-entropy",
            "clm_weight": 0.9,
            "temperature": 1.0,
            "top_k": 10,
            "selection": "top-k",
            "n_texts": 1200,
            "n_pieces": 1873,
            "n_target_tokens": 1_048_576,
            "pairs": [pair("gemma"), pair(HOSTILE, digit_share=None)],
            "chosen": [
                {"text": "wiki", "n_tokens": 900, "shares": {"gemma": 0.5, HOSTILE: 0.25}, "untaught": 0.25},
                {"text": HOSTILE, "n_tokens": 100, "shares": {"gemma": 0.0625}, "untaught": None},
            ],
            "targets": {"seconds": 3.4, "us_per_token": 3.24},
        },
    }


def report(content: dict[str, Any], **changes: Any) -> Report:
    return Report.model_validate({**content, **changes})


@pytest.fixture(scope="module")
def html(content: dict[str, Any]) -> str:
    return page_html(report(content))


# Reading


def test_a_fuse_report_is_read_from_its_file(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "report.json").write_text(json.dumps(content))
    fuse = read_report(tmp_path).fuse
    assert fuse is not None
    assert fuse.pairs[0].vocabulary.by_distance == {"1": 800, "2": 41}
    assert fuse.chosen[1].untaught_share == 1 - 0.0625  # what the shares leave
    assert fuse.chosen[0].untaught_share == 0.25


def test_a_fault_of_a_pair_is_named_with_its_place(tmp_path: Path, content: dict[str, Any]) -> None:
    wrong = content["fuse"] | {"pairs": [pair("gemma", taught_share="most")]}
    (tmp_path / "report.json").write_text(json.dumps(content | {"fuse": wrong}))
    with pytest.raises(RunFolderError, match=r"fuse\.pairs\.0\.coverage\.taught_share"):
        read_report(tmp_path)


def test_distances_counted_in_python_are_read_as_those_of_a_file() -> None:
    assert VocabularyOverlap.model_validate({"by_distance": {1: 5}}) == VocabularyOverlap.model_validate_json(
        '{"by_distance": {"1": 5}}'
    )


# Wording


def test_rows_and_arms_with_a_slash_are_named_by_both_parts() -> None:
    assert row_meaning("source/gemma") == "the source gemma as it was"
    assert row_meaning("distilled/a{}b/c") == "the target trained on the same texts, taught by a{}b/c alone"
    assert row_meaning("clm").endswith("the control that matters")
    assert row_meaning("source") == row_meaning("clm/gemma") == ""
    assert row_meaning("lora").startswith("the student with plain LoRA")
    assert [arm_name(name) for name in ("fused", "merged/ties", "merged", "clm/x", "lora")] == [
        "fusion",
        "weights merged by ties",
        "merged",
        "clm/x",
        "plain LoRA",
    ]


def test_the_average_is_the_last_metric(content: dict[str, Any]) -> None:
    assert metric_names(report(content)) == ["bits_per_byte/wiki", "bits_per_byte/code", AVERAGE]


def test_an_interval_that_leaves_out_zero_does_not_seem_to_touch_it() -> None:
    near = MetricValue(value=-0.0033, low=-0.0063, high=-0.0003)
    assert difference_text(AVERAGE, near) == "−0.0033 [−0.0063, −0.0003]"
    assert (
        difference_text(AVERAGE, MetricValue(value=-0.003, low=-0.006, high=0.0003))
        == "−0.003 [−0.006, 0.000]"
    )
    assert difference_text("accuracy/x", MetricValue(value=0.02, low=0.0002, high=0.04)) == (
        "+2.00 points [0.02, 4.00]"
    )
    assert difference_text(AVERAGE, MetricValue(value=0.0, low=0.0, high=0.0)) == "+0.000 [0.000, 0.000]"


def test_what_cannot_be_seen_is_written_out() -> None:
    assert visible_text(" the") == "␣the"
    assert visible_text("a b  c ") == "a b␣␣c␣"
    assert visible_text("\n\t\x00") == "\\n\\t\\x00"
    assert visible_text(f"{UNSEEN}\ud800") == "\\u202eevil\\x1b[31m\\x00\\u200b\\u2028\\ud800"
    assert visible_text("\u0301e\xa0\u3000") == "◌\u0301e\\xa0\\u3000"
    assert visible_text("שלום") == "שלום"
    assert visible_text("abcdef", 3) == "abc…"
    assert visible_text("abc", 3) == "abc"
    assert visible_text("") == ""


@given(st.text(st.characters()))
def test_shown_text_is_one_printable_line(text: str) -> None:
    shown = visible_text(text)
    assert shown.isprintable()
    assert shown == shown.strip()


def test_settings_are_told_in_order_and_only_those_that_are_known(content: dict[str, Any]) -> None:
    settings = fusion_settings(Fuse.model_validate(content["fuse"]))
    assert [label for label, _, _ in settings] == [
        "Rule",
        "Level",
        "Token alignment",
        "Vocabulary map",
        "Fallback",
        "Divergence",
        "Loss",
        "Temperature",
        "Kept probabilities",
        "Texts",
        "Making the targets",
    ]
    values = {label: value for label, value, _ in settings}
    assert values["Loss"] == "0.9 × next-token loss + 0.1 × fusion"
    assert values["Texts"] == "1,200 texts, 1,873 pieces, 1,048,576 tokens of the target"
    assert values["Making the targets"] == "3.4 s, 3.2 µs a token"
    assert fusion_settings(Fuse(target="x", rule="new-rule")) == [("Rule", "new-rule", "")]


# Verdict


def test_the_verdict_sets_fusion_against_clm_then_text_by_text_then_all_else(content: dict[str, Any]) -> None:
    assert fuse_verdict(report(content)) == (
        "Fusion beats CLM, the same training on the same texts without any source: bits per byte on average −0.006 "
        "[−0.009, −0.003], 3 seeds, 300 texts. Text by text: better on wiki (−0.010 [−0.013, −0.007]); no difference "
        "shown on code (+0.001 [−0.002, 0.004]). On average it beats the target as it was; it is worse than the "
        "ensemble; no difference is shown from distillation from gemma alone. Not compared, bits per byte on "
        f"average: source/gemma 0.880, source/{HOSTILE} 0.875, merged/ties 4.500."
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [(-0.02, "beats"), (0.001, "does not beat"), (0.02, "is worse than")],
)
def test_the_verdict_says_plainly_when_fusion_does_not_beat_clm(value: float, words: str) -> None:
    bare = {"kind": "fuse", "model": "m", "seed": 1, "rows": []}
    told = fuse_verdict(report(bare, comparisons=[compared("clm", value)]))
    assert told.startswith(f"Fusion {words} CLM, the same training")
    assert told.endswith(", 300 texts.")


def test_the_verdict_without_an_average_goes_text_by_text() -> None:
    bare = {"kind": "fuse", "model": "m", "seed": 1, "rows": []}
    wiki, code = (f"bits_per_byte/{text}" for text in ("wiki", "code"))
    both = [compared("clm", -0.01, wiki), compared("clm", -0.02, code)]
    assert fuse_verdict(report(bare, comparisons=both)).endswith(
        "beats CLM, the same training on the same texts without any source: better on wiki (−0.010 [−0.013, −0.007]) "
        "and code (−0.020 [−0.023, −0.017]), 300 texts."
    )
    split = [both[0], compared("clm", 0.02, code)]
    assert fuse_verdict(report(bare, comparisons=split)).startswith("Fusion against CLM, ")
    assert ": bits per byte of wiki −0.010 [" in fuse_verdict(report(bare, comparisons=both[:1]))


def test_without_clm_the_verdict_does_not_say_that_fusion_helps(content: dict[str, Any]) -> None:
    told = fuse_verdict(report(content, comparisons=[compared("target", -0.05)]))
    assert told.startswith(
        "CLM, the same training without any source, was not compared, so this does not say"
    )
    assert "On average it beats the target as it was." in told
    assert "Fusion beats" not in told


def test_without_comparisons_the_verdict_is_what_was_measured(content: dict[str, Any]) -> None:
    rows = [
        row("target", 1.0, 0.8),
        row("fused", 0.9, 0.7),
        {"name": "clm", "metrics": {AVERAGE: {"value": None}}},
    ]
    assert fuse_verdict(report(content, comparisons=[], rows=rows)) == (
        "Bits per byte on average: target 0.900, fused 0.800. Nothing was compared, so this does not say where a "
        "gain comes from."
    )
    assert fuse_verdict(report(content, comparisons=[], rows=[])) == (
        f"Share of the target's tokens that a source can teach: gemma 87.1 %, {HOSTILE} 87.1 %. Nothing was measured."
    )
    assert fuse_verdict(report(content, comparisons=[], rows=[], fuse=None)) == ""


# Tables


def printed(*tables: Table) -> list[str]:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    for table in tables:
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_terminal_shows_texts_comparisons_and_coverage(content: dict[str, Any]) -> None:
    read = report(content, rows=[row("target", 1.02, 0.75), row("fused", 0.98, 0.75)])
    printed_lines = printed(*report_tables(read))
    lines = [line.split() for line in printed_lines]
    assert ["wiki", "code", "average"] in lines
    assert ["fused", "0.980", "0.750", "0.865"] in lines
    assert ["target", "−0.050", "[−0.053,", "−0.047]", "better"] in lines
    assert ["gemma", "81.3", "%", "87.1", "%", "40.2", "%", "37", "15.7", "%", "2", "42.5"] in lines
    assert max(map(len, printed_lines)) <= 80


def test_comparisons_stand_together_by_metric(content: dict[str, Any]) -> None:
    mixed = [
        compared(control, 0.1, metric)
        for control in ("clm", "target")
        for metric in ("bits_per_byte/wiki", AVERAGE)
    ]
    lines = printed(*report_tables(report(content, comparisons=mixed, rows=[])))
    assert sum(line.startswith("Bits per byte (wiki)") for line in lines) == 1


def test_many_texts_are_cut_into_tables_that_fit(content: dict[str, Any]) -> None:
    metrics = {f"bits_per_byte/text-{i}": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9} for i in range(7)}
    rows = [{"name": "distilled/gemma-3-270m", "metrics": metrics}]
    lines = printed(*report_tables(report(content, rows=rows, comparisons=[], fuse=None)))
    assert max(map(len, lines)) <= 80
    assert [line.count("0.400–0.600") for line in lines if "–" in line] == [4, 3]


def test_other_metrics_of_a_fuse_run_have_a_table_of_their_own(content: dict[str, Any]) -> None:
    rows = [row("target", 1.0, 0.8)]
    rows[0]["metrics"]["accuracy/mmlu"] = {"value": 0.25, "low": 0.2, "high": 0.3, "n": 77}
    lines = [line.split() for line in printed(*report_tables(report(content, rows=rows)))]
    assert ["target", "25.0", "%", "77"] in lines
    assert ["target", "1.000", "0.800", "0.900"] in lines


def test_names_that_are_markup_or_control_codes_reach_no_terminal(content: dict[str, Any]) -> None:
    name = "[/bold][link=x]y\x1b[31m"
    rows = [{"name": f"source/{name}", "metrics": {f"bits_per_byte/{name}": {"value": 0.5}}}]
    against = [compared(name, 0.1, f"bits_per_byte/{name}")]
    pairs = [pair(name)]
    read = report(content, rows=rows, comparisons=against, fuse={"target": "t", "pairs": pairs})
    text = "".join(printed(*report_tables(read), coverage_table([Pair.model_validate(pairs[0])])))
    assert "\x1b" not in text
    assert text.count("[/bold]") >= 5


def test_a_pair_of_which_little_is_known_has_dashes() -> None:
    lines = [line.split() for line in printed(coverage_table([Pair(source="gemma")]))]
    assert ["gemma", *7 * ["–"]] in lines


# Charts


def test_every_text_has_a_panel_with_every_row(content: dict[str, Any]) -> None:
    svg = texts_chart(report(content))
    for title in ("wiki", "code", "average", "distilled/gemma"):
        assert f">{title}</text>" in svg
    assert (
        svg.count(">4.00</text>") == svg.count(">5.00</text>") == svg.count(">4.50</text>") == 1
    )  # at the edge
    assert "<script" not in svg
    assert texts_chart(report(content, rows=[])) == ""


def test_target_clm_and_fused_are_drawn_where_they_are_however_far_off(content: dict[str, Any]) -> None:
    rows = [row("source/a", 0.9, 0.9), row("source/b", 0.9, 0.9), row("ensemble", 0.9, 0.9)]
    far = texts_chart(report(content, rows=[*rows, row("fused", 3.0, 3.0)]))
    assert ">3.00</text>" not in far.replace("tick", "")
    assert ">3.00</text>" in texts_chart(report(content, rows=[*rows, row("merged/ties", 3.0, 3.0)]))


def test_texts_in_other_scripts_are_drawn_without_a_warning(content: dict[str, Any]) -> None:
    rows = [{"name": "fused", "metrics": {"bits_per_byte/百科": {"value": 1.0}}}]
    assert "百科" in texts_chart(report(content, rows=rows))


def test_bars_show_who_taught_and_what_nobody_taught() -> None:
    chosen = [ChosenShares(text="wiki", shares={"gemma": 0.5, "qwen": 0.25}, untaught=0.25)]
    svg = chosen_chart(chosen)
    assert [f">{text}</text>" in svg for text in ("50 %", "25 %", "gemma", "qwen", "no source")] == 5 * [True]
    assert ">no source</text>" not in chosen_chart(
        [ChosenShares(text="wiki", shares={"a": 1.0}, untaught=0.0)]
    )
    assert chosen_chart([]) == ""
    assert chosen_chart([ChosenShares(text="a<b" + 80 * "x", shares={UNSEEN: 1.0})]).count("a&lt;b") == 1


def test_coverage_shows_three_shares_a_pair_and_says_what_was_not_measured(content: dict[str, Any]) -> None:
    pairs = [Pair.model_validate(each) for each in content["fuse"]["pairs"]]
    svg = coverage_chart(pairs)
    assert svg.count(">81.3 %</text>") == svg.count(">87.1 %</text>") == 2
    assert svg.count(">40.2 %</text>") == svg.count(">not measured</text>") == 1
    assert coverage_chart([Pair(source="x")]) == coverage_chart([]) == ""


def test_losses_with_soft_targets_are_not_set_against_clms() -> None:
    arms = [Arm.model_validate(arm(name)) for name in ("fused", "clm", "distilled/gemma")]
    svg = curves_chart(arms, "fused", "clm")
    assert ">distilled/gemma</text>" in svg
    assert "that of" not in svg
    assert "that of clm" in curves_chart([*arms, Arm.model_validate(arm("other"))], "fused", "clm")


def test_one_difference_far_beyond_the_others_does_not_flatten_the_forest() -> None:
    def drawn(far: float) -> str:
        found = [compared("clm", -0.01), compared("target", -0.05), compared("ensemble", 0.02)]
        return forest_chart(
            [Comparison.model_validate(each) for each in [*found, compared("merged/ties", far)]]
        )

    assert ">−1.07</text>" in drawn(-1.07)
    assert drawn(-1.07) == drawn(-1.072)  # both at the edge
    assert forest_chart([Comparison.model_validate(compared("clm", 0.0))])


# Page


def test_the_page_escapes_every_name_and_token(html: str) -> None:
    page = Elements(html)
    assert page.open == []
    assert page.named("script") == page.named("img") == []
    assert "<script>alert" not in html
    assert not {"\u202e", "\x1b", "\x00", "\u2028"} & set(html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert page.text.count(HOSTILE[:40]) >= 10


def test_the_page_of_a_whole_run_shows_each_part_in_order(html: str) -> None:
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", html) == [
        "Results",
        "Against each control",
        "How each arm trained",
        "Training",
        "Fusion",
        "Alignment",
        "Chosen sources",
        "What was left out",
        "The run",
    ]
    text = " ".join(Elements(html.replace("</t", " </t")).text.split())  # cells apart
    for said in (
        "Fusion beats CLM",
        "the control that matters",
        "the source gemma as it was",
        "models with different tokenizers can be compared",
        "fair-min-ce: the source with the fewest bits per byte teaches",
        "gemma 49,152 1,048,576 0.950 – 3 GiB 37.9 1 min 01 s 2,100",
        "gemma 81.3 % 87.1 % 84.2 % 40.2 % 15.7 %157 of 1,000 841 2",
        "has 37 tokens of the target: <script>alert(1)",
        "800 tokens at 1, 41 at 2.",
        "Mapping the vocabulary: 41.2 s, aligning the texts: 1.3 s.",
        "␣the the 1",
        "<unused0> – –",
        "wiki 900 50.0 % 25.0 % 25.0 %",
        "is empty",
    ):
        assert said in text, said
    assert "Questions" not in text
    assert "Every learning rate tried" not in text
    links = {link["href"] for link in Elements(html).named("a")}
    assert {"#controls", "#arms", "#fusion", "#alignment", "#chosen"} <= links
    assert links <= {f"#{a['id']}" for _, a in Elements(html).elements if "id" in a}


def test_the_page_of_a_run_of_which_little_is_known() -> None:
    bare = {"kind": "fuse", "model": "m", "seed": 1, "rows": []}
    html = page_html(
        report(bare, fuse={"target": "t", "sources": [{"name": "a"}], "pairs": [{"source": "a"}]})
    )
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", html) == ["Fusion", "Alignment", "The run"]
    assert "None" not in Elements(html).text
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page_html(report(bare))) == ["The run"]

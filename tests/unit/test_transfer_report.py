"""What a transfer run's report says: verdict, tables, charts and page."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_report import HOSTILE, Elements

from transfuse.errors import RunFolderError
from transfuse.report import Report, read_report, report_tables
from transfuse.report.arm_plots import arm_colours, curves_chart, forest_chart, sweep_chart
from transfuse.report.load import MetricValue
from transfuse.report.page import page_html
from transfuse.report.transfer_parts import Arm, BlockSummary, Comparison, LayerSummary, ModuleScores
from transfuse.report.transfer_plots import blocks_chart, sensitivity_chart, shares_chart
from transfuse.report.transfer_verdict import transfer_verdict
from transfuse.report.wording import bytes_text, difference_text, metric_label, n_items_text

ANSWERS = "bits_per_byte/answers"


def compared(against: str, value: float, reach: float = 0.007, metric: str = ANSWERS) -> dict[str, Any]:
    """The method against one control; the verdict follows from the interval."""
    is_lower = metric.startswith("bits")
    low, high = value - reach, value + reach
    verdict = "no difference shown" if low <= 0 <= high else "better" if (value < 0) == is_lower else "worse"
    return {
        "metric": metric,
        "method": "parametric",
        "against": against,
        "difference": {"value": value, "low": low, "high": high, "n": 200},
        "is_better_lower": is_lower,
        "verdict": verdict,
    }


def row(name: str, bits: float, accuracy: float) -> dict[str, Any]:
    return {
        "name": name,
        "metrics": {
            ANSWERS: {"value": bits, "low": bits - 0.01, "high": bits + 0.01, "n": 200},
            "accuracy/mmlu": {"value": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1, "n": 90},
        },
    }


def arm(name: str, start: float, rate: float = 1e-3) -> dict[str, Any]:
    """An arm of two seeds, four steps, and a sweep of two rates of which the first is the better."""
    runs = [
        {
            "seed": seed,
            "seconds": 61.0,
            "final_loss": start / 4,
            "curve": [
                {"step": s, "loss": start / s + 0.1 * (seed - 17), "learning_rate": rate}
                for s in (1, 2, 3, 4)
            ],
        }
        for seed in (17, 19)
    ]
    tried = [
        {"learning_rate": rate, "seed": 17, "development_bits_per_byte": 1.1},
        {"learning_rate": 3 * rate, "seed": 17, "development_bits_per_byte": 1.2},
        {"learning_rate": 9 * rate, "seed": 17, "development_bits_per_byte": None},
    ]
    return {
        "name": name,
        "learning_rate": rate,
        "seeds": [17, 19],
        "tried": tried,
        "runs": runs,
        "n_tokens": 4321,
    }


def block(layer: int, role: str = "query", first: int | None = 2, module: str = "q_proj") -> dict[str, Any]:
    return {
        "student": f"model.layers.{layer}.{module}",
        "role": role,
        "teacher": f"model.layers.{2 * layer}.{module}",
        "teacher_shape": [8, 10],
        "student_shape": [4, 5],
        "first_row": first,
        "first_column": first,
        "score_share": 0.4,
        "energy": 0.5,
    }


@pytest.fixture(scope="module")
def extraction() -> dict[str, Any]:
    """What `transfer extract` writes, hostile text wherever a file or a model can put it."""
    return {
        "kind": "transfer",
        "model": "student",
        "seed": 17,
        "transfer": {
            "teacher": f"teacher {HOSTILE}",
            "student": "student",
            "method": "parametric",
            "engine": "stream",
            "reduce": "submatrix",
            "layer_choice": [0, 2],
            "rank": 16,
            "n_seeds_samples": 32,
            "n_sample_tokens": 2048,
            "n_answer_tokens": 700,
            "seconds": 61.0,
            "bytes_read": 3 * 2**30,
            "peak_gib": 1.25,
            "layers": {"scores": [3.0, 1.0, 2.0], "chosen": [0, 2]},
            "modules": [
                {"name": "query", "scores": [3.0, 1.0, 1.0]},
                {"name": "down", "scores": [0.0, 0.0, 1.0]},
                {"name": "embedding", "scores": [9.0]},
            ],
            "blocks": [block(0), block(1), block(0, "embedding", None, HOSTILE)],
            "left_out": [{"what": HOSTILE, "reason": "tied"}],
        },
    }


@pytest.fixture(scope="module")
def content(extraction: dict[str, Any]) -> dict[str, Any]:
    """A whole transfer run."""
    arms = [arm("parametric", 2.0), arm("lora", 2.2), arm("online-distillation", 0.5), arm(HOSTILE, 2.1)]
    return extraction | {
        "rows": [row("student", 1.9, 0.25), row("parametric", 1.102, 0.3), row("lora", 1.105, 0.31)],
        "arms": arms,
        "comparisons": [
            compared("lora", -0.003),
            compared("pissa", -0.02),
            compared(HOSTILE, 0.05),
            compared("lora", 0.023, 0.033, "accuracy/mmlu"),
        ],
        "training": {"method": "lora", "curve": arms[0]["runs"][0]["curve"]},
        "dropped": [{"kind": "record", "what": "line 7", "reason": "too long"}],
    }


def report(content: dict[str, Any], **changes: Any) -> Report:
    return Report.model_validate({**content, **changes})


@pytest.fixture(scope="module")
def html(content: dict[str, Any]) -> str:
    return page_html(report(content))


# Reading


def test_an_extraction_has_no_rows_but_other_runs_must(tmp_path: Path, extraction: dict[str, Any]) -> None:
    (tmp_path / "report.json").write_text(json.dumps(extraction))
    read = read_report(tmp_path)
    assert read.rows == []
    assert read.transfer is not None
    assert read.transfer.blocks[0].area_share == 20 / 80
    (tmp_path / "report.json").write_text(json.dumps(extraction | {"kind": "inject"}))
    with pytest.raises(RunFolderError, match="rows: Field required"):
        read_report(tmp_path)


def test_a_verdict_that_is_none_is_named(tmp_path: Path, content: dict[str, Any]) -> None:
    wrong = content | {"comparisons": [compared("lora", 0.1) | {"verdict": "won"}]}
    (tmp_path / "report.json").write_text(json.dumps(wrong))
    with pytest.raises(RunFolderError, match=r"comparisons\.0\.verdict"):
        read_report(tmp_path)


# Wording


def test_differences_have_a_sign_and_shares_are_points() -> None:
    small = MetricValue(value=-0.003, low=-0.0101, high=0.004)
    assert difference_text(ANSWERS, small) == "−0.003 [−0.010, 0.004]"
    assert difference_text("rouge_l/x", MetricValue(value=0.023, low=-0.0001, high=0.06)) == (
        "+2.3 points [0.0, 6.0]"
    )
    assert difference_text(ANSWERS, MetricValue(value=-1e-5)) == "+0.000"
    assert difference_text(ANSWERS, MetricValue()) == "–"


def test_labels_sizes_and_counts_of_a_transfer() -> None:
    assert metric_label("rouge_l/super-ni") == "ROUGE-L (super-ni)"
    assert [bytes_text(n) for n in (12, 2048, 3 * 2**30, 5 * 2**50)] == [
        "12 bytes",
        "2 KiB",
        "3 GiB",
        "5.12e+03 TiB",
    ]
    assert n_items_text({ANSWERS: MetricValue(n=200), "bits_per_byte/generic": MetricValue(n=40)}) == "200"


# Verdict


def test_the_verdict_says_whether_the_method_beats_lora_and_then_the_others(content: dict[str, Any]) -> None:
    others = [*content["comparisons"], compared("random-block", -0.1), compared("norm-matched-random", 0.001)]
    assert transfer_verdict(report(content, comparisons=others)) == (
        "Parametric transfer does not beat plain LoRA: bits per byte of answers −0.003 [−0.010, 0.004], 2 seeds, "
        "200 answers. By the same measure it beats PiSSA of the student and a random teacher block; it is worse than "
        f"{HOSTILE}; no difference is shown from a random start of the same norm. By 1 other measure against plain "
        "LoRA: no difference shown."
    )


@pytest.mark.parametrize(
    ("value", "words"), [(-0.02, "beats plain LoRA"), (0.02, "is worse than plain LoRA")]
)
def test_the_verdict_of_a_difference(content: dict[str, Any], value: float, words: str) -> None:
    told = transfer_verdict(report(content, comparisons=[compared("lora", value)], arms=[]))
    assert told.startswith(f"Parametric transfer {words}: ")
    assert told.endswith("], 200 answers.")


def test_the_verdict_without_answers_goes_by_the_first_measure_and_without_controls_claims_nothing(
    content: dict[str, Any],
) -> None:
    by_accuracy = [compared("pissa", 0.1, 0.01, "accuracy/mmlu")]
    assert transfer_verdict(report(content, comparisons=by_accuracy)).startswith(
        "Parametric transfer beats PiSSA of the student: Accuracy (mmlu) +10.0 points [9.0, 11.0]"
    )
    assert transfer_verdict(report(content, comparisons=[])) == (
        "Bits per byte of answers: student 1.900, parametric 1.102, lora 1.105. No control was compared, so this "
        "does not say where a gain comes from."
    )


def test_the_verdict_of_an_extraction_sets_sensitivity_against_chance(extraction: dict[str, Any]) -> None:
    assert transfer_verdict(report(extraction)) == (
        f"3 blocks of teacher {HOSTILE} were cut to the shapes of student; on average a block holds 40.0 % of its "
        "matrix's sensitivity in 25.0 % of its entries, and rank 16 keeps 50.0 % of its squared norm. Nothing was "
        "trained."
    )
    assert transfer_verdict(report({"kind": "transfer", "model": "m", "seed": 1})) == ""


# Tables


def printed(content: dict[str, Any]) -> list[str]:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    for table in report_tables(report(content)):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_terminal_shows_results_and_comparisons(content: dict[str, Any]) -> None:
    lines = [line.split() for line in printed(content)]
    assert ["parametric", "1.102", "30.0", "%", "90–200"] in lines
    assert ["lora", "−0.003", "[−0.010,", "0.004]", "no", "difference", "shown"] in lines
    assert ["pissa", "−0.020", "[−0.027,", "−0.013]", "better"] in lines


def test_many_metrics_are_cut_into_tables_that_fit_80_columns(content: dict[str, Any]) -> None:
    metrics = {f"exact_match/task-{i}": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9} for i in range(7)}
    rows = [{"name": "norm-matched-random", "metrics": metrics}]
    lines = printed(content | {"rows": rows, "comparisons": []})
    assert max(map(len, lines)) <= 80
    assert [sum("40.0–60.0" in part for part in line.split()) for line in lines if "–" in line] == [4, 3]


def test_the_terminal_shows_an_extraction_by_role(extraction: dict[str, Any]) -> None:
    lines = [line.split() for line in printed(extraction)]
    assert ["query", "2", "4×5", "8×10", "40.0", "%", "25.0", "%", "50.0", "%"] in lines


# Charts


def test_sensitivity_shows_each_roles_share_and_leaves_out_what_has_no_layers(
    content: dict[str, Any],
) -> None:
    layers = LayerSummary(scores=[3.0, 1.0, 2.0], chosen=[0, 2])
    modules = [
        ModuleScores(name="query", scores=[3.0, 1.0, 1.0]),
        ModuleScores(name="embedding", scores=[9.0]),
    ]
    modules.append(ModuleScores(name="down", scores=[0.0, 0.0, float("nan")]))
    svg = sensitivity_chart(layers, modules)
    assert "100 %" in svg  # of query; down has none
    assert "embedding" not in svg
    assert svg == sensitivity_chart(layers, modules)
    assert svg != sensitivity_chart(layers.model_copy(update={"chosen": [0, 1]}), modules)
    assert sensitivity_chart(None, []) == sensitivity_chart(LayerSummary(scores=[0.0, 0.0]), []) == ""


def test_blocks_are_drawn_where_they_are_contiguous() -> None:
    shown = [BlockSummary.model_validate(block(i)) for i in range(3)]
    scattered = BlockSummary.model_validate(block(0, "embedding", None))
    svg = blocks_chart([*shown, scattered])
    assert "query" in svg
    assert "embedding" not in svg
    assert blocks_chart([scattered]) == ""
    assert "embedding" in shares_chart([*shown, scattered])
    bare = scattered.model_copy(update={"score_share": None, "energy": None})
    assert shares_chart([bare]) == ""


def test_curves_name_every_arm_and_set_only_like_losses_against_loras() -> None:
    arms = [Arm.model_validate(arm(name, 2.0)) for name in ("parametric", "lora", "online-distillation")]
    svg = curves_chart(arms, "parametric")
    for name in ("parametric", "lora", "online-distillation"):
        assert f">{name}</text>" in svg
    assert "that of lora" in svg
    assert "that of lora" not in curves_chart(arms[1:], "lora")
    assert curves_chart([Arm(name="x")], "x") == ""
    colours = arm_colours([Arm(name=str(i)) for i in range(8)], "3")
    assert len({*colours.values()}) == 9  # the eight, and plain LoRA's grey


def test_one_rate_gone_astray_does_not_flatten_the_sweep() -> None:
    def swept(worst: float) -> str:
        tried = [(1e-4, 1.2), (1e-3, 1.1), (1e-2, worst)]
        parts = [{"learning_rate": rate, "development_bits_per_byte": value} for rate, value in tried]
        return sweep_chart([Arm.model_validate({"name": "lora", "tried": parts})], "lora")

    assert swept(50.0) == swept(60.0)  # both at the edge
    assert swept(1.25) != swept(50.0)
    assert sweep_chart([Arm(name="lora")], "lora") == ""


def test_the_forest_has_a_panel_a_metric_and_says_which_side_is_better() -> None:
    comparisons = [
        Comparison.model_validate(compared("lora", -0.1)),
        Comparison.model_validate(compared("lora", 0.1, 0.01, "accuracy/mmlu")),
    ]
    svg = forest_chart(comparisons)
    assert svg.count(">lora</text>") == 2
    assert "← better for the method" in svg
    assert "points; better for the method →" in svg
    assert "a&lt;b" in forest_chart([comparisons[0].model_copy(update={"against": "a<b" + 80 * "x"})])
    assert forest_chart([comparisons[0].model_copy(update={"difference": MetricValue()})]) == ""


# Page


def test_the_page_escapes_every_name(html: str) -> None:
    page = Elements(html)
    assert page.open == []
    assert page.named("script") == page.named("img") == []
    assert "<script>alert" not in html
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert page.text.count(HOSTILE) >= 5


def test_the_page_of_a_whole_run_shows_each_part_in_order(html: str) -> None:
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", html)
    assert headings == [
        "Results",
        "Against each control",
        "How each arm trained",
        "Training",
        "What was taken out of the teacher",
        "Chosen blocks",
        "What was left out",
        "The run",
    ]
    text = " ".join(Elements(html).text.split())
    for said in (
        "Parametric transfer does not beat plain LoRA",
        "the student with plain LoRA: the usual start",
        "4 comparisons stand here",
        "did not finish",
        "32 of 2,048 tokens together, 700 of them in answers",
        "streamed from disk, layer by layer",
        "1 min 01 s",
        "3 GiB",
        "Teacher layers in the order of the student's: 0, 2.",
        "scattered",
        "cost of encoding the gold answers",
        "line 7",
    ):
        assert said in text, said
    links = {link["href"] for link in Elements(html).named("a")}
    assert {"#controls", "#arms", "#extraction", "#blocks", "#left-out"} <= links
    assert links <= {f"#{a['id']}" for _, a in Elements(html).elements if "id" in a}


def test_the_page_of_an_extraction_alone(extraction: dict[str, Any]) -> None:
    html = page_html(report(extraction))
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", html)
    assert headings == ["What was taken out of the teacher", "Chosen blocks", "What was left out", "The run"]
    assert "Nothing was trained." in html
    assert "None" not in Elements(html).text

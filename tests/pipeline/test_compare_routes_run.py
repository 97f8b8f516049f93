"""Every route of `transfuse compare` once, each job in a process of its own: a task, texts, and a document alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from faulty_endpoint import FaultyEndpoint
from fusion_data import SENTENCES, write_texts
from strong_endpoint import StrongModel
from transfuse.train.saved_rows import load_rows

pytestmark = pytest.mark.usefixtures("own_maps")

BUDGET = 600
TRAIN = {"batch_rows": 4, "learning_rate": 0.01}


@pytest.fixture
def compare(transfuse: Callable, tmp_path: Path, read_report: Callable) -> Callable[[dict[str, Any]], Any]:
    """`compare(tree)`: the report of a comparison of which every row must succeed, and its folder."""

    def run(tree: dict[str, Any]) -> tuple[dict[str, Any], Path]:
        recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
        common = {"kind": "compare", "seed": 17, "precision": "float32"}
        recipe.write_text(yaml.safe_dump({**common, **tree}, sort_keys=False), encoding="utf-8")
        done = transfuse("compare", recipe, "--out", out)
        assert done.code == 0, done.err
        report = read_report(out)
        failed = {row["name"]: row["reason"] for row in report["compare"]["rows"] if row["state"] != "done"}
        assert not failed
        return report, out

    return run


def metric_of(report: dict[str, Any], metric: str) -> dict[str, float]:
    return {row["name"]: row["metrics"][metric]["value"] for row in report["rows"]}


def test_a_task_by_every_route_on_equal_tokens(
    compare: Callable, make_model_folder: Callable, tmp_path: Path
):
    shape = {"num_hidden_layers": 4, "hidden_size": 48, "intermediate_size": 96}
    teacher = make_model_folder("teacher", seed=1, num_attention_heads=6, num_key_value_heads=3, **shape)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"How many isles has group {n}?"},
                {"role": "assistant", "content": f"It has {n % 5} and 2. So the answer is {n % 5 + 2}."},
            ]
        }
        for n in range(30)
    ]
    files = {}
    for name, part in {"train": rows[:24], "test": rows[24:]}.items():
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    routes = ("lora", "transfer", "online-distillation")
    asked: list[str] = []

    def answer(body: dict[str, Any]) -> str:
        asked.append(body["messages"][-1]["content"])
        return "It has 1 and 2. So the answer is 3."

    with FaultyEndpoint(answer, models=["strong"]) as endpoint:
        writer = {"train": TRAIN, "distillation.generator": {"reference": f"openai:strong@{endpoint.url}"}}
        report, out = compare(
            {
                "student": str(make_model_folder("student")),
                "budget": {"training_tokens": BUDGET},
                "knowledge": {"teacher": str(teacher), "train_file": str(files["train"])},
                "evaluate": {
                    "samples": {"isles": {"file": str(files["test"]), "generate": False}},
                    "latency_n": 0,
                },
                "rows": {
                    "base": {"route": "base"},
                    **{route: {"route": route, "set": {"train": TRAIN}} for route in routes},
                    "offline-distillation": {"route": "offline-distillation", "set": writer},
                },
            }
        )
    bits = metric_of(report, "bits_per_byte/isles")
    assert len(set(bits.values())) == 5
    assert bits["lora"] < bits["base"]
    tokens = {row["name"]: row["costs"]["training_tokens"] for row in report["compare"]["rows"]}
    assert tokens.pop("base") is None
    assert all(n >= BUDGET for n in tokens.values())
    assert tokens["lora"] == tokens["transfer"] == tokens["online-distillation"]
    # Teachers were asked about the samples that were read, and no others.
    (taught,) = out.glob("jobs/online-distillation*/run/rows-online/rows.safetensors")
    assert len(asked) == len(set(asked)) == len(load_rows(taught)[0]) < 24


def test_texts_learned_fused_averaged_and_merged(
    compare: Callable, make_model_folder: Callable, tmp_path: Path
):
    base = {"chat_template": None, "vocab_size": 270}
    target, first, second = (make_model_folder(f"model-{n}", seed=n, **base) for n in range(3))
    texts = [f"{SENTENCES[n % 3]} {SENTENCES[(n + 1) % 3]} Goal {n}." for n in range(9)]
    wiki = write_texts(tmp_path / "wiki.jsonl", texts[:6])
    held = write_texts(tmp_path / "wiki.eval.jsonl", texts[6:])
    learning = {"train": TRAIN}
    report, _ = compare(
        {
            "student": str(target),
            "knowledge": {"texts": {"wiki": str(wiki)}, "sources": [str(first), str(second)]},
            "evaluate": {"texts": {"wiki": str(held)}, "latency_n": 0},
            "rows": {
                "base": {"route": "base"},
                "clm": {"route": "clm", "set": learning},
                "fuse": {"route": "fuse", "set": learning},
                "ensemble": {"route": "ensemble"},
                "average": {"route": "merge"},
                "ties": {"route": "merge", "set": {"method": "ties", "density": 0.5}},
            },
        }
    )
    bits = metric_of(report, "bits_per_byte/wiki")
    assert len(set(bits.values())) == 6
    assert max(bits["clm"], bits["fuse"]) < bits["base"]
    added = {row["name"]: row["costs"]["size_added_bytes"] for row in report["compare"]["rows"]}
    assert added["ensemble"] > 0 == added["average"] == added["ties"]


def test_a_document_alone_whose_facts_and_questions_a_generator_writes(
    compare: Callable, isles: Any, chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))
    inject = {"train": {**TRAIN, "n_epochs": 1}}
    asked: list[int] = []
    with FaultyEndpoint(
        StrongModel.of_folder(isles.folder), lambda number, body: asked.append(number), models=["strong"]
    ) as endpoint:
        report, out = compare(
            {
                "student": str(chat_folder),
                "knowledge": {
                    "documents": str(isles.document),
                    "generator": {"reference": f"openai:strong@{endpoint.url}"},
                },
                "evaluate": {"max_new_tokens": 4, "latency_n": 0},
                "rows": {
                    "base": {"route": "base"},
                    "one": {"route": "inject", "set": {**inject, "scale": 1}},
                    "two": {"route": "inject", "set": {**inject, "scale": 2}},
                },
            }
        )
    assert asked
    jobs = [json.loads(path.read_text())["label"] for path in out.glob("jobs/*/job.json")]
    assert jobs.count("facts and questions") == 1  # written once, for both rows
    assert report["compare"]["questions"]["reworded"] > 0
    tokens = {row["name"]: row["costs"]["training_tokens"] for row in report["compare"]["rows"]}
    assert tokens["one"] < tokens["two"]

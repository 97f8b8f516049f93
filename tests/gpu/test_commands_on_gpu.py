"""Fusion and evaluation on an accelerator give the figures of the CPU, by the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fusion_data import SENTENCES, write_texts
from own_process import report_of, transfuse

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
PRECISION = ("--set", "precision=float32")
CLOSE = 2e-3
"""Relative; sums in another order grow apart over the steps of a training."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken from an earlier run, of the other device or any."""
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))


def on_both(tmp_path: Path, *words: object) -> tuple[dict, dict]:
    """The reports of a command with the accelerator and without."""
    for name, hidden in (("gpu", False), ("cpu", True)):
        transfuse(*words, *PRECISION, "--out", tmp_path / name, without_gpu=hidden)
    return report_of(tmp_path / "gpu"), report_of(tmp_path / "cpu")


def metrics_of(report: dict) -> dict[tuple[str, str], float]:
    return {
        (row["name"], metric): each["value"]
        for row in report["rows"]
        for metric, each in row["metrics"].items()
    }


@pytest.mark.parametrize("loss", ["cross-entropy", "chunk-likelihood"])
def test_the_fuse_command_gives_the_cpus_figures(
    tmp_path: Path, make_model_folder: Callable, loss: str
) -> None:
    target = make_model_folder("target", chat_template=None)
    source = make_model_folder("fine", chat_template=None, vocab_size=270, seed=1)
    texts = [f"{SENTENCES[n % 3]} {SENTENCES[(n + 1) % 3]} Goal {n}." for n in range(9)]
    learned = write_texts(tmp_path / "wiki.jsonl", texts[:6])
    held = write_texts(tmp_path / "eval.jsonl", texts[6:])
    files = ("--target", target, "--source", source, "--text", f"wiki={learned}", "--eval", f"wiki={held}")
    settings = ("--loss", loss, "--set", "train.batch_rows=2", "--set", "train.learning_rate=0.003")
    ours, theirs = on_both(tmp_path, "fuse", *files, *settings)
    expected = metrics_of(theirs)
    assert {row for row, _ in expected} >= {"target", "fused", "clm"}
    assert metrics_of(ours) == pytest.approx(expected, rel=CLOSE)
    assert ours["fuse"]["chosen"] == theirs["fuse"]["chosen"]


def test_the_eval_command_gives_the_cpus_figures(tmp_path: Path, make_model_folder: Callable) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"How many isles has group {n}?"},
                {"role": "assistant", "content": f"So the answer is {n % 5}."},
            ]
        }
        for n in range(8)
    ]
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    questions = tmp_path / "qa.jsonl"
    questions.write_text('{"question": "Which country won?", "answer": "Spain"}\n', encoding="utf-8")
    texts = write_texts(tmp_path / "texts.jsonl", list(SENTENCES))
    ours, theirs = on_both(
        tmp_path,
        *("eval", "--model", make_model_folder("asked"), "--against", make_model_folder("other", seed=1)),
        *("--qa", f"cup={questions}", "--samples", f"isles={samples}", "--text", f"small={texts}"),
        *("--set", "samples.isles.max_new_tokens=8", "--set", "latency_n=2"),
    )
    expected = metrics_of(theirs)
    assert {"f1/cup", "accuracy/isles", "bits_per_byte/isles", "bits_per_byte/small"} <= {
        m for _, m in expected
    }
    assert metrics_of(ours) == pytest.approx(expected, rel=1e-4)

"""The texts of the index benchmarks: overlapping windows over real texts, and real questions to search them with."""

import ast
import pydoc_data.topics
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transfuse.io.jsonl import read_jsonl

WINDOW_WORDS, STRIDE_WORDS = 24, 8


def windows(data: Path, n: int, seed: int = 17) -> list[str]:
    """`n` distinct windows of 24 words, one every 8 words, in a seeded random order.

    They run over the texts below `data` (documents, tasks, wiki, code and mathematics) and over the standard
    library's documentation, as the running Python has it: docstrings and the topics of `help()`.
    """
    found: dict[str, None] = {}
    for text in [*_texts_of_data(data), *_texts_of_standard_library()]:
        words = text.split()
        for start in range(0, max(len(words) - WINDOW_WORDS, 0) + 1, STRIDE_WORDS):
            found[" ".join(words[start : start + WINDOW_WORDS])] = None
    found.pop("", None)
    chosen = list(found)
    random.Random(seed).shuffle(chosen)  # noqa: S311 - an order, no secret
    if len(chosen) < n:
        raise SystemExit(f"{data}: only {len(chosen)} distinct windows, expected {n}; give less with --n.")
    return chosen[:n]


def questions(data: Path, n: int, seed: int = 17) -> list[str]:
    """`n` distinct questions about the documents and of the tasks, in a seeded random order."""
    found: dict[str, None] = {}
    for path in sorted(data.glob("injection/*/qa.jsonl")):
        rows = [line.value for line in read_jsonl(path)]
        found |= dict.fromkeys(row["question"] for row in rows if row["split"] == "eval")
    for path in (data / "tasks/gsm8k/test.jsonl", data / "tasks/mmlu/test_rest.jsonl"):
        found |= dict.fromkeys(_question(line.value) for line in read_jsonl(path))
    found.pop("", None)
    chosen = list(found)
    random.Random(seed).shuffle(chosen)  # noqa: S311 - an order, no secret
    return chosen[:n]


def _question(row: dict[str, Any]) -> str:
    text = row["question"] if "question" in row else row["messages"][0]["content"]
    return " ".join(text.split()[:60])


def _texts_of_data(data: Path) -> Iterator[str]:
    for path in sorted(data.glob("injection/*/document.md")):
        yield path.read_text(encoding="utf-8")
    for path in sorted(data.glob("text/*.jsonl")):
        yield from (line.value["text"] for line in read_jsonl(path))
    for path in sorted(data.glob("tasks/*/*_1000.jsonl")):
        for line in read_jsonl(path):
            yield " ".join(message["content"] for message in line.value["messages"])


def _texts_of_standard_library() -> Iterator[str]:
    for name in sorted(pydoc_data.topics.topics):
        yield pydoc_data.topics.topics[name]
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.rglob("*.py")):
        if {"site-packages", "test", "tests", "idle_test"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""

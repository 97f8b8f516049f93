"""Files of questions: those of inject, and plain ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from transfuse.errors import DataError
from transfuse.recipes.eval_questions import load_questions, load_unanswerable


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(split: str = "eval", **more: Any) -> dict[str, Any]:
    return {"basis": "fact", "fact": "f1", "split": split, "question": "Q?", "answer": "A", **more}


def test_questions_of_a_split(tmp_path: Path) -> None:
    file = written(tmp_path / "qa.jsonl", pair("train"), pair(), pair(question="R?"))
    assert [each.id for each in load_questions(file, split="eval")] == ["q2", "q3"]
    assert [each.id for each in load_questions(file, split=None)] == ["q1", "q2", "q3"]
    assert [each.id for each in load_questions(file, split="eval", n_items=1)] == ["q2"]


def test_plain_rows(tmp_path: Path) -> None:
    file = written(
        tmp_path / "qa.jsonl",
        {"question": "Q?", "answer": "A", "aliases": ["B"], "group": "g"},
        {"id": 7, "question": "R?", "answer": "C"},
    )
    first, second = load_questions(file, split="eval")
    assert (first.id, first.source, first.answer, first.aliases) == ("q1", "g", "A", ("B",))
    assert (second.id, second.source) == ("7", "7")


def test_unanswerable_questions(tmp_path: Path) -> None:
    plain = written(
        tmp_path / "plain.jsonl", {"question": "Q?"}, {"question": "R?", "answer": "I don't know."}
    )
    assert [each.question for each in load_unanswerable(plain)] == ["Q?", "R?"]
    ours = written(tmp_path / "qa.jsonl", pair(), pair(question="U?", kind="unknown"))
    assert [each.question for each in load_unanswerable(ours)] == ["U?"]
    assert [each.question for each in load_unanswerable(written(tmp_path / "all.jsonl", pair()))] == ["Q?"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the file holds none"),
        ([{"question": "Q?"}], r"qa.jsonl:1: 'answer': expected a text"),
        ([{"answer": "A"}], r"qa.jsonl:1: 'question': expected a text"),
        ([{"question": "Q?", "answer": "A", "aliases": "B"}], r"'aliases': expected a list"),
        ([{"id": "x", "question": "Q?", "answer": "A"}] * 2, "the id 'x' stands twice"),
        ([pair("train")], "expected questions of split 'eval', all 1 are of another"),
    ],
)
def test_faults_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_questions(written(tmp_path / "qa.jsonl", *rows), split="eval")

"""Samples of a task: four forms of row, and one clear error for every fault."""

import json
from pathlib import Path

import pytest

from transfuse.errors import DataError
from transfuse.io.task_files import load_tasks
from transfuse.types import TaskItem, Turn

ASKED = {"role": "user", "content": "2 + 2?"}
TOLD = {"role": "assistant", "content": "So the answer is 4."}


def written(folder: Path, *rows: object) -> Path:
    path = folder / "seed.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def test_each_form_of_row_becomes_an_item(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    path = written(
        tmp_path,
        {"dataset": "gsm", "id": "gsm_7", "messages": [system, ASKED, TOLD]},
        {"question": "3 + 3?", "answer": "#### 6", "aliases": ["six"], "category": "sums", "dataset": "own"},
        {"prompt": "Roses are", "completion": "red", "id": 12},
        {"text": "Größe – 東京"},
    )
    assert load_tasks(path) == [
        TaskItem(
            "gsm_7",
            (Turn("system", "Be brief."), Turn("user", "2 + 2?")),
            "So the answer is 4.",
            group="gsm",
        ),
        TaskItem("line 2", (Turn("user", "3 + 3?"),), "#### 6", ("six",), "sums"),
        TaskItem("12", (Turn("user", "Roses are"),), "red"),
        TaskItem("line 4", (), "Größe – 東京"),
    ]
    assert [item.question for item in load_tasks(path)] == ["2 + 2?", "3 + 3?", "Roses are", ""]


def test_questions_are_worded_as_another_file_words_them(tmp_path):
    path = written(tmp_path, {"question": "{x} + 1?", "answer": "2"}, {"prompt": "p", "completion": "c"})
    question, prompt = load_tasks(path, "Question: {question}")
    assert question.question == "Question: {x} + 1?"
    assert prompt.question == "p"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (
            {"messages": [ASKED]},
            "the assistant's answer as the last turn, got the user's: a file without answers",
        ),
        ({"messages": [TOLD]}, "a turn before the answer"),
        ({"messages": []}, r'expected a list of {"role", "content"}, got \[\]'),
        ({"messages": ["hi", TOLD]}, r"turn 1: expected {\"role\", \"content\"}, got 'hi'"),
        (
            {"messages": [{"role": "tool", "content": "x"}, TOLD]},
            "turn 1: 'role': expected system, user, assistant",
        ),
        ({"messages": [{"role": ["user"], "content": "x"}, TOLD]}, "turn 1: 'role': expected system"),
        (
            {"messages": [ASKED, {**TOLD, "content": " \n"}]},
            r"turn 2: 'content': expected a text that is not empty",
        ),
        (
            {"messages": [{"role": "user", "content": [{"text": "x"}]}, TOLD]},
            "turn 1: 'content': expected a text",
        ),
        ({"question": "Why?"}, r"expected 'answer' beside 'question'.*a file without answers"),
        ({"question": "Why?", "answer": None}, "'answer': expected a text that is not empty, got None"),
        ({"prompt": "Why?", "answer": "x"}, "expected 'completion' beside 'prompt'"),
        ({"text": ""}, "'text': expected a text that is not empty, got ''"),
        ({"texts": "x"}, r"expected a row as .*, got the keys \['texts'\]"),
        ({"text": "x", "id": True}, "'id': expected a text or a number, got True"),
        ({"text": "x", "aliases": "y"}, "'aliases': expected a list, got 'y'"),
        ({"text": "x", "aliases": [3]}, "'aliases': expected a text"),
    ],
)
def test_a_faulty_row_is_named_with_file_and_line(tmp_path, row, fault):
    path = written(tmp_path, {"text": "fine"}, row)
    with pytest.raises(DataError, match=rf"seed\.jsonl:2: .*{fault}") as caught:
        load_tasks(path)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_an_id_that_stands_twice_is_refused_with_both_lines(tmp_path):
    path = written(tmp_path, {"text": "a", "id": 1}, {"text": "b", "id": 2}, {"text": "c", "id": "1"})
    with pytest.raises(DataError, match=r"jsonl:3: 'id': .* got '1', which stands in .*jsonl:1 as well"):
        load_tasks(path)


def test_a_file_without_rows_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(DataError, match="the file holds none"):
        load_tasks(written(tmp_path))
    (tmp_path / "latin.jsonl").write_bytes('{"text": "Größe"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl:1: expected UTF-8 text, got byte 0xf6"):
        load_tasks(tmp_path / "latin.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text"')
    with pytest.raises(DataError, match=r"broken\.jsonl:2: expected one JSON object"):
        load_tasks(tmp_path / "broken.jsonl")

"""Samples of a task in a JSONL file: conversations, questions, prompts or plain texts, each with its answer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transfuse.errors import DataError
from transfuse.io.jsonl import JsonLine, read_jsonl
from transfuse.types import TaskItem, Turn

ROLES = ("system", "user", "assistant")

QUESTION = "{question}"
"""What the user's turn says where a row holds a question; `{question}` stands for it."""

_GROUPS = ("category", "dataset")
"""Fields that say what a row belongs to, the finer one first."""

_FORMS = '{"messages"}, {"question", "answer"}, {"prompt", "completion"} or {"text"}'


def load_tasks(path: Path, question_form: str = QUESTION) -> list[TaskItem]:
    """Samples of a task, for sensitivity, training or evaluation.

    Args:
        path: JSONL of rows `{"messages": [{"role", "content"}, ...]}` that end with the assistant's answer,
            `{"question", "answer"}`, `{"prompt", "completion"}`, or `{"text"}`, which is learned whole. Each may
            have an "id", "aliases" (further right answers), and a "category" or "dataset".
        question_form: the user's turn of `{"question", "answer"}` rows; `{question}` stands for the question, so
            that rows of one file can be asked as another file words them.

    Returns:
        At least one item, in the file's order, every id once. A row without an id has its line as one.

    Raises:
        DataError: no such file, not UTF-8 JSONL, or a row that is none of these or lacks an answer (file and line
            are named).
    """
    items: list[TaskItem] = []
    lines: dict[str, str] = {}
    for line in read_jsonl(path):
        item = _item(line, question_form)
        earlier = lines.setdefault(item.id, line.where)
        if earlier != line.where:
            raise DataError(
                f"{line.where}: 'id': expected one of its own, got {item.id!r}, which stands in {earlier} as well; "
                f"change one of them, or leave ids out."
            )
        items.append(item)
    if not items:
        raise DataError(f"{path}: expected samples, one a line as {_FORMS}; the file holds none.")
    return items


def _item(line: JsonLine, question_form: str) -> TaskItem:
    row = line.value
    form = next((name for name in _READERS if name in row), None)
    if form is None:
        raise DataError(
            f"{line.where}: expected a row as {_FORMS}, got the keys {sorted(row)}; rename or delete them."
        )
    *messages, answer = _READERS[form](line)
    if form == "question":
        messages = [Turn("user", question_form.replace("{question}", turn.content)) for turn in messages]
    return TaskItem(
        id=_id(line),
        messages=tuple(messages),
        answer=answer.content,
        aliases=_aliases(line),
        group=next((str(row[name]) for name in _GROUPS if row.get(name)), ""),
    )


def _conversation(line: JsonLine) -> list[Turn]:
    turns = line.value["messages"]
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f'{line.where}: "messages": expected a list of {{"role", "content"}}, got {_shown(turns)}; mend the line.'
        )
    read = [_turn(turn, f'{line.where}: "messages", turn {n}') for n, turn in enumerate(turns, start=1)]
    if read[-1].role != "assistant":
        raise DataError(
            f"{line.where}: \"messages\": expected the assistant's answer as the last turn, got the {read[-1].role}'s: "
            f"a file without answers has nothing to learn from; add the answer, or delete the line."
        )
    if len(read) < 2:
        raise DataError(
            f'{line.where}: "messages": expected a turn before the answer, got the answer alone; add the question, '
            f'or give the answer as {{"text"}} to have it learned whole.'
        )
    return read


def _turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise DataError(f'{where}: expected {{"role", "content"}}, got {_shown(turn)}; mend the line.')
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise DataError(f"{where}: 'role': expected {', '.join(ROLES)}, got {_shown(role)}; mend the line.")
    return Turn(role, _text(content, f"{where}: 'content'"))


def _pair(question: str, answer: str) -> Callable[[JsonLine], list[Turn]]:
    """A reader of rows whose two fields have these names."""

    def read(line: JsonLine) -> list[Turn]:
        if answer not in line.value:
            raise DataError(
                f"{line.where}: expected '{answer}' beside '{question}', got the keys {sorted(line.value)}: "
                f"a file without answers has nothing to learn from; add the answer, or delete the line."
            )
        asked, told = (_text(line.value[name], f"{line.where}: '{name}'") for name in (question, answer))
        return [Turn("user", asked), Turn("assistant", told)]

    return read


def _plain_text(line: JsonLine) -> list[Turn]:
    return [Turn("assistant", _text(line.value["text"], f"{line.where}: 'text'"))]


_READERS: dict[str, Callable[[JsonLine], list[Turn]]] = {
    "messages": _conversation,
    "question": _pair("question", "answer"),
    "prompt": _pair("prompt", "completion"),
    "text": _plain_text,
}
"""How a row is read, by the field that tells its form; the answer comes last."""


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: expected a text that is not empty, got {_shown(value)}; mend the line.")
    return value


def _id(line: JsonLine) -> str:
    given = line.value.get("id")
    if given is None:
        return f"line {line.number}"
    if isinstance(given, bool) or not isinstance(given, str | int) or not str(given).strip():
        raise DataError(
            f"{line.where}: 'id': expected a text or a number, got {_shown(given)}; mend the line."
        )
    return str(given)


def _aliases(line: JsonLine) -> tuple[str, ...]:
    given = line.value.get("aliases", [])
    if not isinstance(given, list):
        raise DataError(f"{line.where}: 'aliases': expected a list, got {_shown(given)}; mend the line.")
    return tuple(_text(each, f"{line.where}: 'aliases'") for each in given)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"

"""Reads what a model was to write as JSON, from whatever it wrote instead. Never raises, never evaluates."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from transfuse.text.loose_json import find_values, whole_characters

_THINKING = re.compile(r"\A\s*<(think|thinking|thought|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_END_OF_THINKING = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_FENCE_LINE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
_LIST_ITEM = re.compile(
    r"^[ \t]{0,3}(?:[-*+•–][ \t]+|\(?\d{1,3}[.):][ \t]+|\[\d{1,3}\][ \t]*)(?=\S)(.*(?:\n[ \t]{2,}\S.*)*)",
    re.MULTILINE,
)
_ASKED_AND_ANSWERED = re.compile(r"(.+?[?？])[\s*_]*(?:[-–—:>]+\s*)?(?=\w|[^\w\s])(.+)", re.DOTALL)
_EMPHASIS = re.compile(r"(?<!\w)(\*\*|__)(?=\S)([^\n]{1,300}?)(?<=\S)\1(?!\w)")


def read_json(text: str) -> Any | None:
    """The JSON value in a reply: the reply itself, or what stands in a fence or amid prose.

    Trailing commas, missing commas, unescaped quotation marks and a broken end are mended; of a
    broken end only whole items are kept. Several objects one after another come as a list;
    otherwise the longest value counts.

    Args:
        text: the reply.

    Returns:
        The value, or None where the reply holds none.
    """
    text = _without_thinking(text)
    try:
        return _mended(json.loads(text, parse_constant=lambda _: None))
    except (ValueError, RecursionError):
        found = find_values(text)
    objects = [each.value for each in found if isinstance(each.value, dict)]
    if len(objects) > 1:
        return objects
    return max(found, key=lambda each: each.end - each.start).value if found else None


def read_items(text: str, key: str, fields: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The items of a reply that was to read `{key: [{field: text, ...}, ...]}`.

    Read as well: a bare array, one object a line, other names for `key`, and, where there is no
    JSON, `Q: ... A: ...` and other lines that begin with a field's name, and bulleted or
    numbered lists (for one field, or for a question with its answer).

    Args:
        text: the reply.
        key: name of the list.
        fields: what every item must have; further members of an item are kept as they are.

    Returns:
        The items, each field a text that is not empty; and in words what could not be read,
        empty where everything could.
    """
    text = _without_thinking(text)
    if not text:
        return [], ["the reply is empty"]
    items, problems, is_json = _json_items(text, key, fields)
    if items or is_json:
        return items, problems
    listed = _labelled_items(text, fields) or _list_items(text, fields)
    if listed:
        return listed, []
    return [], problems or [f"the reply holds neither JSON with '{key}' nor a list: {_short(text)}"]


def _without_thinking(text: str) -> str:
    """The reply after the model's thinking; empty where it never stopped thinking."""
    text = _THINKING.sub("", text).strip()
    ends = list(_END_OF_THINKING.finditer(text))
    if ends and not text.startswith(("{", "[")):  # some chat templates open the thinking themselves
        text = text[ends[-1].end() :].strip()
    return text


# JSON


def _json_items(text: str, key: str, fields: Sequence[str]) -> tuple[list[dict[str, Any]], list[str], bool]:
    """Items and problems, and whether the reply is of the asked form, be its list empty."""
    items: list[dict[str, Any]] = []
    problems: list[str] = []
    found = find_values(text)
    members = [member for each in found for member in _members(each.value, key, fields)]
    if found and not found[-1].is_whole:
        if members and members[-1] is found[-1].value:
            members.pop()
        problems.append("the reply breaks off; its whole items are kept")
    for member in members:
        item = _item(member, fields)
        if item is not None:
            items.append(item)
        elif not isinstance(member, int | float):
            wanted = " and ".join(f"'{field}'" for field in fields)
            problems.append(f"an item lacks {wanted}: {_short(member)}")
    if n_unread := sum(each.n_unread for each in found):
        problems.append(f"parts of the reply are no JSON ({n_unread}) and were passed over")
    is_json = any(_is_of_form(each.value, key) for each in found)
    return items, problems, is_json


def _is_of_form(value: Any, key: str) -> bool:
    return value == [] or (isinstance(value, dict) and _named(value, key) is not None)


def _members(value: Any, key: str, fields: Sequence[str]) -> Iterator[Any]:
    """What may be items in a value."""
    if isinstance(value, dict):
        inner = _named(value, key)
        if inner is None and not any(_named(value, field) is not None for field in fields):
            lists = [member for member in value.values() if isinstance(member, list | dict)]
            inner = lists[0] if len(lists) == 1 else None
        if inner is None or inner == value:
            yield value
        elif isinstance(inner, list | dict):
            yield from _members(inner, key, fields)
        else:
            yield inner
    elif isinstance(value, list):
        for member in value:
            if isinstance(member, dict):
                yield from _members(member, key, fields)
            else:
                yield member
    else:
        yield value


def _item(member: Any, fields: Sequence[str]) -> dict[str, Any] | None:
    """The member with every field as a text, or None where one is missing."""
    if isinstance(member, str) and len(fields) == 1:
        member = {fields[0]: member}
    elif isinstance(member, list) and len(member) == len(fields) > 1:
        member = dict(zip(fields, member, strict=True))
    if not isinstance(member, dict):
        return None
    rest = {name: value for name, value in member.items() if name.strip().casefold() not in fields}
    texts: dict[str, Any] = {}
    for field in fields:
        value = _named(member, field)
        if value is None:  # {"q": ..., "a": ...}
            value = rest.pop(field[0], None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            return None
        texts[field] = value.strip()
    return texts | rest


def _named(members: dict[str, Any], name: str) -> Any | None:
    """The member of that name, upper and lower case alike."""
    return next((value for key, value in members.items() if key.strip().casefold() == name), None)


def _mended(value: Any) -> Any:
    """The value with every text fit to be written as UTF-8."""
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, list):
        return [_mended(member) for member in value]
    if isinstance(value, dict):
        return {whole_characters(name): _mended(member) for name, member in value.items()}
    return value


# lists


def _labelled_items(text: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    """Lines such as `Q: ...`, `Question 3: ...`, `**Answer:** ...`; a text goes on to the next label."""
    plain = _EMPHASIS.sub(r"\2", _FENCE_LINE.sub("", text))
    names = [f"{field}|{field[0]}" if len(fields) > 1 else field for field in fields]
    label = re.compile(
        rf"(?:^[ \t]*(?:[-*+•#]+[ \t]*|\(?\d{{1,3}}[.):][ \t]*)*|(?<=[?.!])[ \t]+)"
        rf"({'|'.join(names)})[ \t]*\d{{0,3}}[ \t]*[:：][ \t]*",
        re.MULTILINE | re.IGNORECASE,
    )
    items: list[dict[str, Any]] = []
    open_item: dict[str, Any] = {}
    # Each piece is the text after a label; a blank line ends the last answer.
    pieces = label.split(plain)[1:]
    for name, piece in zip(pieces[::2], pieces[1::2], strict=True):
        field = next(each for each in fields if each[0] == name[0].lower())
        if field == fields[0]:
            open_item = {}
        piece_text = " ".join(re.split(r"\n[ \t]*\n", piece.strip(), maxsplit=1)[0].split())
        if piece_text and field not in open_item:
            open_item[field] = piece_text
            if len(open_item) == len(fields):
                items.append(open_item)
    return items


def _list_items(text: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    found = [" ".join(item[1].split()) for item in _LIST_ITEM.finditer(_FENCE_LINE.sub("", text))]
    texts = [_EMPHASIS.sub(r"\2", item) for item in found if item]
    if len(fields) == 1:
        return [{fields[0]: item} for item in texts]
    if tuple(fields) != ("question", "answer"):
        return []
    pairs = [_ASKED_AND_ANSWERED.fullmatch(item) for item in texts]
    return [{"question": pair[1].strip(), "answer": pair[2].strip()} for pair in pairs if pair]


def _short(value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    shown = " ".join(shown.split())
    return repr(shown if len(shown) <= 80 else shown[:79] + "…")

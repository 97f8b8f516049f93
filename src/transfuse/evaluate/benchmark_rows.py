"""Rows of a benchmark: brought into the form in which it is published, and checked field by field."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from transfuse.errors import DataError
from transfuse.evaluate.benchmark_table import BENCHMARKS, FieldKind
from transfuse.text.task_answers import choice_letter, final_number


class Row(NamedTuple):
    """One row of a file."""

    value: dict[str, Any]
    where: str
    """`file:line`, for error messages."""


class _Kind(NamedTuple):
    wording: str
    """What a field of this kind is, for error messages."""
    read: Callable[[Any], Any]
    """The value as the hub holds it; raises ValueError, TypeError or KeyError on another kind of value."""


def published_row(task: str, row: Row) -> Row:
    """A row as its benchmark is published, whatever form it came in.

    Args:
        task: one of `BENCHMARKS`.
        row: as published, or a chat sample (`messages`) where that says as much.

    Returns:
        The fields that the task reads, and the subject where there is one.

    Raises:
        DataError: a field is missing or of another kind, or a chat sample cannot be converted (the line is named).
    """
    benchmark = BENCHMARKS[task]
    convert = _conversion(task, row)
    value = _converted(task, row, convert) if convert else row.value
    missing = [name for name in benchmark.fields if name not in value]
    if missing:
        raise DataError(
            f"{row.where}: {task}: expected the fields {', '.join(benchmark.fields)} of {benchmark.hub}, got no "
            f"{', '.join(map(repr, missing))} but {', '.join(map(repr, value)) or 'nothing'}; rename or add them."
        )
    kept = {name: _field(name, kind, value[name], row.where) for name, kind in benchmark.fields.items()}
    subject = benchmark.subject
    if subject and value.get(subject, value.get("category")) is not None:
        kept[subject] = str(value.get(subject, value.get("category")))
    return Row(kept, row.where)


def is_conversion(task: str, row: Row) -> bool:
    """Whether a row is not as published and has to be converted."""
    return _conversion(task, row) is not None


def _conversion(task: str, row: Row) -> "_Conversion | None":
    if all(name in row.value for name in BENCHMARKS[task].fields):
        return None
    return next((convert for mark, convert in _CONVERSIONS.get(task, {}).items() if mark in row.value), None)


def _field(name: str, kind: FieldKind, value: Any, where: str) -> Any:
    try:
        return FIELD_KINDS[kind].read(value)
    except (ValueError, TypeError, KeyError) as err:
        raise DataError(
            f"{where}: '{name}': expected {FIELD_KINDS[kind].wording}, got {_shown(value)}; mend the line."
        ) from err


def _converted(task: str, row: Row, convert: "_Conversion") -> Mapping[str, Any]:
    try:
        return convert(row.value)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as err:
        reason = f"{err.args[0]!r} is missing" if isinstance(err, KeyError) else str(err)
        raise DataError(
            f"{row.where}: {task}: expected a row with {', '.join(BENCHMARKS[task].fields)} or a chat sample that "
            f"says as much, got one with {', '.join(map(repr, row.value)) or 'nothing'}: {reason}; mend the line."
        ) from err


def _asked_and_answered(value: Mapping[str, Any]) -> tuple[str, str]:
    """Question and answer of a chat sample."""
    turns = [(turn["role"], turn["content"]) for turn in value["messages"]]
    if [role for role, _ in turns] != ["user", "assistant"]:
        raise ValueError(
            f"expected one turn of the user and the assistant's answer, got {[role for role, _ in turns]}"
        )
    if not all(isinstance(content, str) and content.strip() for _, content in turns):
        raise ValueError("a turn is empty")
    return turns[0][1], turns[1][1]


_MMLU_HEAD = re.compile(
    r"The following are multiple choice questions \(with answers\) about (?P<subject>[^\n]+?)\.\s*\n+"
)


def _mmlu_row(value: Mapping[str, Any]) -> dict[str, Any]:
    asked, answered = _asked_and_answered(value)
    head = _MMLU_HEAD.match(asked)
    rest = (asked[head.end() :] if head else asked).removesuffix("\nAnswer:")
    choices: list[str] = []
    for letter in "DCBA":
        rest, mark, choice = rest.rpartition(f"\n{letter}. ")
        if not mark:
            raise ValueError(f'the question has no line "{letter}. ..."')
        choices.insert(0, choice)
    letter = choice_letter(answered)
    if letter not in tuple("ABCD"):
        raise ValueError(f"the answer {answered[:40]!r} names none of the options A to D")
    subject = value.get("category") or (head["subject"].strip().replace(" ", "_") if head else None)
    return {"question": rest, "choices": choices, "answer": "ABCD".index(letter), "subject": subject}


_GSM8K_HEAD = re.compile(r"(?:Answer the following question\.\s*)?(?:Question:\s*)?")
_GSM8K_TAIL = re.compile(r"\s*(?:So )?[Tt]he (?:final )?answer is:? [^\n.]*\.?\s*$")


def _gsm8k_row(value: Mapping[str, Any]) -> dict[str, Any]:
    asked, answered = _asked_and_answered(value)
    number = final_number(answered)
    if number is None:
        raise ValueError(f"the answer {answered[-60:]!r} holds no number")
    if number.denominator != 1:
        raise ValueError(f"the answer {number} is no whole number, as all of the benchmark's are")
    head = _GSM8K_HEAD.match(asked)
    reasoning = _GSM8K_TAIL.sub("", answered.removeprefix("Answer:").strip())
    question = asked[head.end() if head else 0 :].removesuffix("Answer:").strip()
    return {"question": question, "answer": f"{reasoning}\n#### {number}"}


def _super_ni_row(value: Mapping[str, Any]) -> dict[str, Any]:
    if "messages" in value:
        asked, answered = _asked_and_answered(value)
        return {"prompt": asked, "references": [answered, *value.get("aliases", [])]}
    definition, inputs, targets = (value[name] for name in ("definition", "inputs", "targets"))
    if isinstance(definition, list):
        definition = " ".join(definition)
    prompt = f"Definition: {definition}\n\nNow complete the following example -\nInput: {inputs}\nOutput:"
    return {"prompt": prompt, "references": targets if isinstance(targets, list) else [targets]}


def _boolq_row(value: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of the first release call the label `answer`."""
    return {"passage": value["passage"], "question": value["question"], "label": value["answer"]}


_Conversion = Callable[[Mapping[str, Any]], dict[str, Any]]

_CONVERSIONS: dict[str, dict[str, _Conversion]] = {
    "mmlu": {"messages": _mmlu_row},
    "gsm8k": {"messages": _gsm8k_row},
    "super_ni": {"messages": _super_ni_row, "definition": _super_ni_row},
    "boolq": {"answer": _boolq_row},
}
"""How rows in another form, told by a field, become published ones, where they say as much."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, str) or len(value) == 0:
        raise ValueError("no list of texts")
    return [_text(each) for each in value]


def _references(value: Any) -> list[str]:
    texts = _texts(value)
    if not all(text.strip() for text in texts):
        raise ValueError("an empty text")
    return texts


def _options(value: Any) -> dict[str, list[str]]:
    options = {"text": _texts(value["text"]), "label": _texts(value["label"])}
    if len(options["text"]) != len(options["label"]):
        raise ValueError("as many labels as texts")
    return options


def _choice(value: Any) -> int:
    if value in tuple("ABCD"):
        return "ABCD".index(value)
    if isinstance(value, bool) or value not in range(4):
        raise ValueError("no option")
    return int(value)


def _truth(value: Any) -> int:
    if value not in (0, 1):  # true and false among them
        raise ValueError("neither true nor false")
    return int(value)


def _label(value: Any) -> str:
    if isinstance(value, bool) or str(value) not in tuple("0123"):
        raise ValueError("no number of an ending")
    return str(value)


def _aliases(value: Any) -> dict[str, list[str]]:
    return {"aliases": _texts(value["aliases"])}


FIELD_KINDS: dict[FieldKind, _Kind] = {
    "text": _Kind("a text", _text),
    "texts": _Kind("a list of texts", _texts),
    "references": _Kind("a list of right answers, none empty", _references),
    "options": _Kind('options as {"text": [...], "label": [...]}', _options),
    "choice": _Kind("the right option as 0 to 3 or A to D", _choice),
    "truth": _Kind("0 or 1, false or true", _truth),
    "label": _Kind("the right ending as 0 to 3", _label),
    "aliases": _Kind('right answers as {"aliases": [...]}', _aliases),
}
"""What the fields of published rows hold."""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"

"""JSON lines: read with the line named in every error, written whole or not at all."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transfuse.errors import DataError
from transfuse.io.files import atomic_file


class JsonLine(NamedTuple):
    """One object of a JSONL file."""

    value: dict[str, Any]
    number: int
    """Line number, from 1."""
    where: str
    """`file:line`, for error messages."""


def read_jsonl(path: Path) -> Iterator[JsonLine]:
    """Each object of a JSONL file; blank lines are passed over.

    Args:
        path: a UTF-8 file with one JSON object a line.

    Yields:
        The object with its line number.

    Raises:
        DataError: no such file, not UTF-8, or a line that is no JSON object (the line is named).
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as err:
        raise DataError(f"{path}: expected a JSONL file, got '{err.strerror}'; check the path.") from err
    except UnicodeDecodeError as err:
        number = err.object[: err.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{number}: expected UTF-8 text, got byte {err.object[err.start]:#04x} at offset {err.start}; "
            f"convert it first, for instance with `iconv -f latin1 -t utf-8`."
        ) from err
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as err:
            raise DataError(
                f"{where}: expected one JSON object a line, got broken JSON ({err.msg} at column {err.colno}): "
                f"{line.strip()[:80]!r}; mend or delete the line."
            ) from err
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected a JSON object, got {type(value).__name__}; mend the line.")
        _refuse_half_characters(line, value, where)
        yield JsonLine(value, number, where)


def _refuse_half_characters(line: str, value: dict[str, Any], where: str) -> None:
    """JSON can escape half of a character (`\\ud83d` alone), which no tokenizer and no file takes."""
    if "\\u" not in line:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as err:
        raise DataError(
            f"{where}: expected whole characters, got half of one (\\u{ord(err.object[err.start]):04x}); "
            f"mend the line."
        ) from err


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

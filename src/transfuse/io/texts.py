"""Plain texts in a JSONL file."""

from pathlib import Path

from transfuse.errors import DataError
from transfuse.io.jsonl import read_jsonl


def read_texts(path: Path) -> list[str]:
    """Texts of a JSONL file with rows `{"text"}`.

    Args:
        path: the file.

    Returns:
        At least one text, none empty.

    Raises:
        DataError: a row without text, or no row.
    """
    texts: list[str] = []
    for line in read_jsonl(path):
        text = line.value.get("text")
        if not isinstance(text, str) or not text.strip():
            raise DataError(
                f"{line.where}: 'text': expected a text that is not empty, got {text!r}; mend the line."
            )
        texts.append(text)
    if not texts:
        raise DataError(f'{path}: expected texts, one {{"text"}} a line; the file holds none.')
    return texts

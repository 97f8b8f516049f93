"""Questions that an evaluation asks: files of `inject`, or plain rows of question and answer."""

from collections.abc import Sequence
from pathlib import Path

from transfuse.errors import DataError
from transfuse.inject.knowledge import load_pairs
from transfuse.io.jsonl import JsonLine, read_jsonl
from transfuse.types import QAPair, Split

NO_ANSWER = "unanswerable"
"""Stands for the gold answer of questions that have none."""


def load_questions(path: Path, *, split: Split | None, n_items: int | None = None) -> list[QAPair]:
    """Questions with their gold answers.

    Args:
        path: JSONL as for `inject` (rows with a `basis`), or of rows `{"question", "answer"}`, perhaps with an "id",
            "aliases" (further right answers) and a "group" (questions that stand or fall together).
        split: of rows that name one, those of this split; None takes all. Plain rows have none.
        n_items: the first so many; None takes all.

    Returns:
        At least one pair, every id once.

    Raises:
        DataError: a row is malformed, or none is left.
    """
    first = next(iter(read_jsonl(path)), None)
    if first is not None and "basis" in first.value:
        pairs = load_pairs(path, None)
        kept = [pair for pair in pairs if split is None or pair.split == split]
        if not kept:
            raise DataError(
                f"{path}: expected questions of split {split!r}, all {len(pairs)} are of another; choose a split "
                f"(split: train), or `null` for all."
            )
        return kept[:n_items]
    return _distinct([_plain(line, needs_answer=True) for line in read_jsonl(path)], path)[:n_items]


def load_unanswerable(path: Path, n_items: int | None = None) -> list[QAPair]:
    """Questions that nothing answers.

    Args:
        path: JSONL of rows with a `question`; of files as for `inject`, the pairs of kind `unknown`, if any.
        n_items: the first so many; None takes all.

    Returns:
        At least one; whatever they give as an answer is not compared with.

    Raises:
        DataError: a row is malformed, or there is none.
    """
    first = next(iter(read_jsonl(path)), None)
    if first is not None and "basis" in first.value:
        pairs = load_pairs(path, None)
        return ([pair for pair in pairs if pair.kind == "unknown"] or pairs)[:n_items]
    return _distinct([_plain(line, needs_answer=False) for line in read_jsonl(path)], path)[:n_items]


def _plain(line: JsonLine, *, needs_answer: bool) -> QAPair:
    question, answer = (
        line.value.get("question"),
        line.value.get("answer", None if needs_answer else NO_ANSWER),
    )
    for name, value in (("question", question), ("answer", answer)):
        if not isinstance(value, str) or not value.strip():
            raise DataError(
                f"{line.where}: '{name}': expected a text that is not empty, got {value!r}; mend the line."
            )
    aliases = line.value.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(each, str) and each.strip() for each in aliases):
        raise DataError(f"{line.where}: 'aliases': expected a list of texts, got {aliases!r}; mend the line.")
    name = str(line.value.get("id", f"q{line.number}"))
    return QAPair(
        id=name,
        basis="fact",
        source=str(line.value.get("group", name)),
        split="eval",
        question=str(question).strip(),
        answer=str(answer).strip(),
        aliases=tuple(aliases),
    )


def _distinct(pairs: Sequence[QAPair], path: Path) -> list[QAPair]:
    if not pairs:
        raise DataError(
            f'{path}: expected questions, one a line as {{"question", "answer"}}; the file holds none.'
        )
    seen: set[str] = set()
    for pair in pairs:
        if pair.id in seen:
            raise DataError(f"{path}: the id {pair.id!r} stands twice; change one of them, or leave ids out.")
        seen.add(pair.id)
    return list(pairs)

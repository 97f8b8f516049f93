"""Instructions that systems are given, and the replies that come with them."""

from collections.abc import Sequence
from typing import NamedTuple

from transfuse.errors import DataError
from transfuse.evaluate.judging_settings import JudgeSettings
from transfuse.generate.protocol import Reply, Request
from transfuse.io.jsonl import JsonLine, read_jsonl


class Instruction(NamedTuple):
    """Something that systems are asked to do."""

    id: str
    text: str
    """What the user says, the input included."""
    reference: str | None
    """The reply that comes with it."""


def load_instructions(settings: JudgeSettings) -> list[Instruction]:
    """The instructions that a judge's settings name.

    Args:
        settings: name the file and how many of it.

    Returns:
        At least one, in the file's order, every id once; a row without an id has its line as one.

    Raises:
        DataError: no such file, or a row without an instruction (file and line are named).
    """
    found: dict[str, Instruction] = {}
    for line in read_jsonl(settings.instructions):
        each = _instruction(line)
        if each.id in found:
            raise DataError(f"{line.where}: 'id': {each.id!r} stands twice; change one, or leave ids out.")
        found[each.id] = each
    if not found:
        raise DataError(
            f'{settings.instructions}: expected instructions, one a line as {{"instruction"}}; the file holds none.'
        )
    return list(found.values())[: settings.n_items]


def instruction_requests(instructions: Sequence[Instruction], settings: JudgeSettings) -> list[Request]:
    """What each system is asked, greedily."""
    limit = settings.max_new_tokens
    return [Request(each.text, max_new_tokens=limit, is_one_line=False) for each in instructions]


def reference_replies(instructions: Sequence[Instruction], settings: JudgeSettings) -> list[Reply]:
    """The replies that come with the instructions, as a second system's.

    Args:
        instructions: to compare on.
        settings: name the file, for the error.

    Returns:
        One each, in order.

    Raises:
        DataError: one has none.
    """
    bare = next((each for each in instructions if each.reference is None), None)
    if bare is not None:
        raise DataError(
            f"{settings.instructions}: {bare.id} has no 'output' or 'reference' to compare with; add it to every "
            f"line, or name a second system (--against)."
        )
    return [Reply(each.reference or "") for each in instructions]


def _instruction(line: JsonLine) -> Instruction:
    row = line.value
    text, given = row.get("instruction"), row.get("input") or ""
    if not isinstance(text, str) or not text.strip() or not isinstance(given, str):
        raise DataError(
            f"{line.where}: expected a text as 'instruction' (and perhaps 'input'), got the keys {sorted(row)}; "
            f"mend the line."
        )
    reference = row.get("reference", row.get("output"))
    if reference is not None and not isinstance(reference, str):
        raise DataError(f"{line.where}: 'output': expected a text, got {reference!r}; mend the line.")
    name = str(row["id"]) if row.get("id") is not None else f"line {line.number}"
    return Instruction(name, f"{text}\n\n{given}" if given.strip() else text, reference)

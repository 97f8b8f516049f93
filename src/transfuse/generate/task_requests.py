"""Samples of a task as requests, and which replies can be used."""

from collections.abc import Sequence

from transfuse.generate.protocol import Reply, Request
from transfuse.types import TaskItem


def task_requests(
    items: Sequence[TaskItem],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    is_one_line: bool | None = None,
) -> list[Request]:
    """One request a sample: its conversation, without its answer.

    Args:
        items: conversations; a plain text, which has no turn before its answer, cannot be asked.
        max_new_tokens: longest reply.
        temperature: 0 decodes greedily.
        seed: of sampling; each item draws from a seed of its own.
        is_one_line: whether replies end at their first line break; None means where no answer of the items has one.

    Returns:
        The requests, in order.

    Raises:
        ValueError: an item has no turn before its answer.
    """
    if any(not item.messages for item in items):
        raise ValueError("expected conversations, got a plain text, which asks nothing")
    if is_one_line is None:
        is_one_line = not any("\n" in item.answer.strip() for item in items)
    return [
        Request(
            "",
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed + n if temperature else 0,
            is_one_line=is_one_line,
            messages=item.messages,
        )
        for n, item in enumerate(items)
    ]


def why_unusable(reply: Reply, max_new_tokens: int) -> str:
    """Why a reply cannot stand as an answer to learn from; empty where it can."""
    if reply.error:
        return reply.error
    if reply.is_cut:
        return f"the teacher's answer did not end within {max_new_tokens} tokens"
    return "" if reply.text.strip() else "the teacher's answer is empty"

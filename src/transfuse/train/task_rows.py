"""Samples of a task as rows of tokens, the loss on their answers."""

from collections.abc import Sequence

from transfuse.io.chat import PromptFormat
from transfuse.train.batches import TrainingRow
from transfuse.types import Dropped, TaskItem


def task_row(item: TaskItem, prompts: PromptFormat) -> TrainingRow:
    """One sample as tokens, in the model's own form.

    Args:
        item: a conversation with its answer, which is learned including the token that ends it; or a plain text, of
            which every token but the first is learned.
        prompts: the model's prompt format.

    Returns:
        The row, of any length. A plain text may be too short for anything to be learned of it.

    Raises:
        ModelError: the chat template cannot render the conversation.
    """
    if not item.messages:
        return TrainingRow(prompts.encode_text(item.answer, ends=True), 1)
    turns = [turn._asdict() for turn in item.messages]
    prompt_ids, answer_ids = prompts.encode_chat([*turns, {"role": "assistant", "content": item.answer}])
    return TrainingRow(prompt_ids + answer_ids, len(prompt_ids))


def task_rows(
    items: Sequence[TaskItem], prompts: PromptFormat, max_length_tokens: int | None
) -> tuple[list[TrainingRow], list[Dropped]]:
    """Training rows of samples, in their order.

    Args:
        items: see `task_row`.
        prompts: the model's prompt format.
        max_length_tokens: longer samples are dropped; None keeps all.

    Returns:
        The rows, and the samples of which none was made.

    Raises:
        ModelError: the chat template cannot render a conversation.
    """
    rows: list[TrainingRow] = []
    dropped: list[Dropped] = []
    for item in items:
        row = task_row(item, prompts)
        reason = why_unlearnable(row, max_length_tokens)
        if reason:
            dropped.append(Dropped("record", item.id, reason))
        else:
            rows.append(row)
    return rows, dropped


def why_unlearnable(row: TrainingRow, max_length_tokens: int | None) -> str:
    """Why a row cannot be used; empty where it can."""
    if row.n_learned < 1:
        return f"{len(row.token_ids)} token, which leaves nothing to predict"
    if max_length_tokens is not None and len(row.token_ids) > max_length_tokens:
        return f"{len(row.token_ids)} tokens, more than {max_length_tokens}"
    return ""

"""What gold answers cost a model: the loss of each, and the choice among options that it finds likeliest."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transfuse.generate.local import context_tokens
from transfuse.io.chat import PromptFormat
from transfuse.text.task_answers import choice_letter, option_letters
from transfuse.train.batches import TrainingRow, padded_order, padded_passes
from transfuse.train.objective import AnswerLoss
from transfuse.train.task_rows import task_row, why_unlearnable
from transfuse.types import AnswerRecord, TaskItem

MAX_TOKENS_PER_PASS = 1024
"""Rows x longest row; the logits of a pass take at most this many times the vocabulary."""

OnItems = Callable[[int, int], None]
"""Called with the numbers of items done and to do."""


class ItemLoss(NamedTuple):
    """What the gold answer of one item cost a model."""

    item: str
    """`TaskItem.id`."""
    nll_nats: float = 0.0
    """Of the answer given its prompt, without the token that ends it."""
    n_bytes: int = 0
    """UTF-8 bytes of the answer; of a plain text, those of its predicted tokens."""
    n_tokens: int = 0
    reason: str = ""
    """Why the item could not be measured; then the numbers are 0."""


def answer_losses(
    model: nn.Module,
    prompts: PromptFormat,
    items: Sequence[TaskItem],
    compute_dtype: torch.dtype,
    on_items: OnItems = lambda n_done, n_all: None,
) -> list[ItemLoss]:
    """What each gold answer costs a model, given its prompt.

    Args:
        model: a causal language model in evaluation mode.
        prompts: its prompt format.
        items: conversations with their answers, or plain texts.
        compute_dtype: bfloat16 for autocast, float32 for none.
        on_items: called with the numbers of items done and to do.

    Returns:
        One loss an item, in order; one that does not fit the model's context carries its reason.
    """
    rows, found = _rows(items, prompts, context_tokens(model))
    for logits_of in _learned_logits(model, rows, prompts.pad_id, compute_dtype):
        found |= {n: _loss(items[n], rows[n], logits, prompts) for n, logits in logits_of.items()}
        on_items(len(found), len(items))
    return [found[n] for n in range(len(items))]


def answer_losses_and_choices(
    model: nn.Module,
    prompts: PromptFormat,
    items: Sequence[TaskItem],
    compute_dtype: torch.dtype,
    on_items: OnItems = lambda n_done, n_all: None,
) -> tuple[list[ItemLoss], list[AnswerRecord]]:
    """`answer_losses` and `answer_choices` from one reading of the prompts."""
    limit = context_tokens(model)
    rows, losses = _rows(items, prompts, limit)
    chosen: dict[int, AnswerRecord] = {}
    for n, loss in losses.items():
        chosen[n] = _unscored(items[n], loss.reason)
    choices: dict[int, _Choice] = {}
    for n, row in rows.items():
        choice = _choice(items[n], prompts, row)
        if isinstance(choice, str):
            chosen[n] = _unscored(items[n], choice)
        else:
            choices[n] = choice
    for logits_of in _learned_logits(model, rows, prompts.pad_id, compute_dtype):
        for n, logits in logits_of.items():
            losses[n] = _loss(items[n], rows[n], logits, prompts)
            if n in choices:
                chosen[n] = _scored(items[n], choices[n], logits)
        on_items(len(losses), len(items))
    return [losses[n] for n in range(len(items))], [chosen[n] for n in range(len(items))]


def answer_choices(
    model: nn.Module,
    prompts: PromptFormat,
    items: Sequence[TaskItem],
    compute_dtype: torch.dtype,
    on_items: OnItems = lambda n_done, n_all: None,
) -> list[AnswerRecord]:
    """Which option's letter a model finds likeliest where the gold answer names its own; nothing is generated.

    Args:
        model: a causal language model in evaluation mode.
        prompts: its prompt format.
        items: with options as lines such as "B. Paris" in the last turn before the answer. What stands before the
            letter in the gold answer ("The answer is: ") is read before the choice.
        compute_dtype: bfloat16 for autocast, float32 for none.
        on_items: called with the numbers of items done and to do.

    Returns:
        One record an item, in order, with the letter as answer and its `accuracy`; one that cannot be scored carries
        its reason and no scores.
    """
    return answer_losses_and_choices(model, prompts, items, compute_dtype, on_items)[1]


def _rows(
    items: Sequence[TaskItem], prompts: PromptFormat, limit: int | None
) -> tuple[dict[int, TrainingRow], dict[int, ItemLoss]]:
    """Rows without the token that closes an answer, which has no bytes, by index; and items that make none."""
    rows: dict[int, TrainingRow] = {}
    lost: dict[int, ItemLoss] = {}
    for n, item in enumerate(items):
        row = task_row(item, prompts)
        if row.token_ids[-1] in (prompts.end_id, prompts.tokenizer.eos_token_id):
            row = row._replace(token_ids=row.token_ids[:-1])
        reason = why_unlearnable(row, limit)
        if reason:
            lost[n] = ItemLoss(item.id, reason=reason)
        else:
            rows[n] = row
    return rows, lost


def _learned_logits(
    model: nn.Module, rows: Mapping[int, TrainingRow], pad_id: int, compute_dtype: torch.dtype
) -> Iterator[dict[int, Float[Tensor, "learned vocab"]]]:
    """The logits that predict each row's learned tokens, pass by pass."""
    objective = AnswerLoss(model, compute_dtype)
    device = next(model.parameters()).device
    indices, held = list(rows), list(rows.values())
    order = iter(padded_order(held))
    for batch in padded_passes(held, MAX_TOKENS_PER_PASS, pad_id):
        members = [indices[place] for place in islice(order, len(batch.input_ids))]
        with torch.no_grad():
            logits = objective.target_logits(*(part.to(device) for part in batch[:5])).float()
        yield dict(zip(members, logits.split([rows[n].n_learned for n in members]), strict=True))


def _loss(
    item: TaskItem, row: TrainingRow, logits: Float[Tensor, "learned vocab"], prompts: PromptFormat
) -> ItemLoss:
    learned = torch.tensor(row.token_ids[row.n_prompt :], device=logits.device)
    nats = nn.functional.cross_entropy(logits, learned, reduction="none").double().sum()
    return ItemLoss(item.id, float(nats), _answer_bytes(item, row, prompts), row.n_learned)


class _Choice(NamedTuple):
    """Where in an answer its option is named."""

    place: int
    """Which of the learned tokens."""
    token_of: dict[str, int]
    """The token of each option's letter there."""


def _choice(item: TaskItem, prompts: PromptFormat, row: TrainingRow) -> _Choice | str:
    """Where the item's row names its option, or why there is no choice to make."""
    letters = option_letters(item.question)
    if len(letters) < 2:
        return 'the prompt holds no options, lines such as "A. ..." and "B. ..."'
    gold = choice_letter(item.answer)
    named = re.search(rf"(?<![^\W_]){gold}(?![^\W_])", item.answer) if gold in letters else None
    if gold is None or named is None:
        return f"the gold answer {item.answer[:80]!r} names none of the options {', '.join(letters)}"
    before = item.answer[: named.start()]
    variants = [task_row(replace(item, answer=before + letter), prompts).token_ids for letter in letters]
    place = next((n for n, ids in enumerate(zip(*variants, strict=False)) if len(set(ids)) > 1), 0)
    token_of = {letter: ids[place] for letter, ids in zip(letters, variants, strict=True)}
    are_apart = len(set(token_of.values())) == len(letters) and len({*map(len, variants)}) == 1
    if not are_apart or place < row.n_prompt:
        return "the tokenizer writes the options' letters with several tokens"
    if row.token_ids[: place + 1] != [*variants[0][:place], token_of[gold]]:
        return "the tokenizer joins the option's letter with what stands behind it"
    return _Choice(place - row.n_prompt, token_of)


def _scored(item: TaskItem, choice: _Choice, logits: Float[Tensor, "learned vocab"]) -> AnswerRecord:
    logit_of = {letter: float(logits[choice.place, token]) for letter, token in choice.token_of.items()}
    picked = max(logit_of, key=lambda letter: logit_of[letter])  # the first of equals
    scores = {"accuracy": float(picked == choice_letter(item.answer))}
    return AnswerRecord(item.id, item.group, item.question, item.answer, picked, scores)


def _unscored(item: TaskItem, reason: str) -> AnswerRecord:
    return AnswerRecord(item.id, item.group, item.question, item.answer, "", reason=reason)


def _answer_bytes(item: TaskItem, row: TrainingRow, prompts: PromptFormat) -> int:
    if item.messages:
        return len(item.answer.strip().encode())
    first = prompts.tokenizer.decode(row.token_ids[: row.n_prompt], skip_special_tokens=True)
    # A first token that is half a character decodes to a sign of three bytes.
    return max(1, len(item.answer.encode()) - len(str(first).encode()))

"""Prompt distillation: the model with a section before it teaches itself to answer without it.

The teacher is the model as it is, with the section in its context; it has to be asked before adapters are attached.
What it says at each token of an answer becomes the soft targets of the row on which the student, the same model with
an adapter, is trained without the section.

Source: Kujanpää et al. 2024, arXiv:2412.14964. Differs: the teacher's distributions are kept as their likeliest
tokens and a tail, made once before training; answers are greedy unless a temperature is set.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn

from transfuse.generate.protocol import Generator, Request
from transfuse.generate.task_requests import why_unusable
from transfuse.io.chat import PromptFormat
from transfuse.train.batches import TrainingRow
from transfuse.train.objective import AnswerLoss, why_not_packed
from transfuse.train.soft_targets import SoftTargets
from transfuse.train.teacher_targets import teacher_targets
from transfuse.types import Dropped, QAPair, StrictModel

MAX_TOKENS_PER_PASS = 2048
"""Attention in a packed pass grows with the square of its length; a section is computed once in each."""


class DistillationSettings(StrictModel):
    """How the model's answers with a section become targets for its answers without it."""

    top_k: PositiveInt = 128
    """Tokens kept of each of the teacher's distributions; the others count together."""
    temperature: PositiveFloat = 1.0
    """Divides the teacher's logits and the student's; 1 matches the distributions that answers are drawn from."""
    answers: Literal["teacher", "file"] = "teacher"
    """Whose answers the teacher's distributions are read along: its own, given the section, or those in the file."""
    answer_temperature: NonNegativeFloat = 0.0
    """At which the teacher's own answers are drawn; 0 decodes greedily."""
    hard_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the loss that is on the answer's own tokens; 0 learns the teacher's distributions only."""


class _Lesson(NamedTuple):
    """One pair as both read it; the learned tokens are the same."""

    context: str
    teacher: TrainingRow
    student: TrainingRow


def teacher_answers(
    pairs: Sequence[QAPair],
    contexts: Mapping[str, str],
    settings: DistillationSettings,
    generator: Generator,
    *,
    max_new_tokens: int,
    seed: int,
    on_answers: Callable[[int, int], None] = lambda n_done, n_all: None,
) -> tuple[dict[str, str], list[Dropped]]:
    """The answers along which the teacher's distributions are read.

    Args:
        pairs: what is asked.
        contexts: the section's text by `QAPair.id`; pairs without one are left to `teacher_rows`.
        settings: whose answers; with those of the file nothing is asked.
        generator: the model without an adapter.
        max_new_tokens: longest answer.
        seed: of sampling; each pair draws from a seed of its own.
        on_answers: called with the numbers of answers there and to come.

    Returns:
        Answers by `QAPair.id`, and the pairs that the teacher failed to answer.

    Raises:
        GenerationError: no question can be answered.
    """
    if settings.answers == "file":
        return {pair.id: pair.answer for pair in pairs}, []
    asked = [pair for pair in pairs if pair.id in contexts]
    requests = [
        Request(
            pair.question,
            context=contexts[pair.id],
            max_new_tokens=max_new_tokens,
            temperature=settings.answer_temperature,
            seed=seed + n if settings.answer_temperature else 0,
        )
        for n, pair in enumerate(asked)
    ]
    n_done = 0

    def count(_index: int, _reply: object) -> None:
        nonlocal n_done
        n_done += 1
        on_answers(n_done, len(asked))

    answers: dict[str, str] = {}
    dropped: list[Dropped] = []
    for pair, reply in zip(asked, generator.generate(requests, count), strict=True):
        reason = why_unusable(reply, max_new_tokens)
        if reason:
            dropped.append(Dropped("pair", pair.question[:80], reason))
        else:
            answers[pair.id] = reply.text.strip()
    return answers, dropped


def teacher_rows(
    model: nn.Module,
    prompts: PromptFormat,
    pairs: Sequence[QAPair],
    contexts: Mapping[str, str],
    answers: Mapping[str, str],
    settings: DistillationSettings,
    *,
    compute_dtype: torch.dtype,
    max_length_tokens: int | None,
    on_rows: Callable[[int, int], None] = lambda n_done, n_all: None,
) -> tuple[list[TrainingRow], list[Dropped]]:
    """Rows without the section, whose soft targets are the model's own distributions with the section before it.

    A section is computed once for all questions about it that fit a pass, where the model can be given packed rows.

    Args:
        model: a causal language model without adapter; its mode is left as found.
        prompts: its own prompt format.
        pairs: training pairs.
        contexts: the section's text by `QAPair.id`.
        answers: what the teacher's distributions are read along, by `QAPair.id`; see `teacher_answers`. Pairs
            that are not in it were dropped before.
        settings: how many tokens are kept, and how the student learns them.
        compute_dtype: bfloat16 for autocast, float32 for none.
        max_length_tokens: the model's context length; pairs that are longer with their section are dropped. None
            keeps all.
        on_rows: called with the numbers of rows made and to make.

    Returns:
        Rows in the order of `pairs`, and the pairs of which none could be made.
    """
    lessons, dropped = _lessons(prompts, pairs, contexts, answers, max_length_tokens)
    if not lessons:
        return [], dropped
    device = next(model.parameters()).device
    was_training = model.training
    objective = AnswerLoss(model, compute_dtype).eval()
    is_packed = not why_not_packed(objective, [lesson.teacher for lesson in lessons], prompts.pad_id, device)
    members: dict[str, list[int]] = {}
    for n, lesson in enumerate(lessons):
        members.setdefault(lesson.context, []).append(n)
    soft: dict[int, SoftTargets] = {}
    # Section by section: among rows of several sections only the template's beginning would be shared.
    for indices in members.values():
        targets = teacher_targets(
            objective,
            [lessons[index].teacher for index in indices],
            is_packed=is_packed,
            max_tokens_per_pass=MAX_TOKENS_PER_PASS,
            pad_id=prompts.pad_id,
            top_k=settings.top_k,
            temperature=settings.temperature,
            hard_weight=settings.hard_weight,
        )
        soft |= dict(zip(indices, targets, strict=True))
        on_rows(len(soft), len(lessons))
    objective.train(was_training)
    return [lesson.student._replace(soft=soft[n]) for n, lesson in enumerate(lessons)], dropped


def _lessons(
    prompts: PromptFormat,
    pairs: Sequence[QAPair],
    contexts: Mapping[str, str],
    answers: Mapping[str, str],
    max_length_tokens: int | None,
) -> tuple[list[_Lesson], list[Dropped]]:
    lessons: list[_Lesson] = []
    dropped: list[Dropped] = []
    for pair in pairs:
        context = contexts.get(pair.id)
        if context is None:
            dropped.append(Dropped("pair", pair.question[:80], f"there is no section of {pair.source!r}"))
            continue
        if pair.id not in answers:
            continue
        read_ids, answer_ids = prompts.encode_pair(pair.question, answers[pair.id], context=context)
        prompt_ids, same_ids = prompts.encode_pair(pair.question, answers[pair.id])
        n_tokens = len(read_ids) + len(answer_ids)
        if answer_ids != same_ids:
            reason = "the answer has other tokens behind the section than without it"
            dropped.append(Dropped("pair", pair.question[:80], reason))
        elif max_length_tokens is not None and n_tokens > max_length_tokens:
            reason = f"{n_tokens} tokens with its section, more than {max_length_tokens}"
            dropped.append(Dropped("pair", pair.question[:80], reason))
        else:
            teacher = TrainingRow(read_ids + answer_ids, len(read_ids))
            lessons.append(_Lesson(context, teacher, TrainingRow(prompt_ids + answer_ids, len(prompt_ids))))
    return lessons, dropped

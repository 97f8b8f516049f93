"""The two older ways from a larger teacher to a smaller student, to compare parametric transfer with.

Online, the student learns the teacher's distributions at the answers' tokens; offline, it learns answers that the
teacher has written.

Source: Hinton et al. 2015, arXiv:1503.02531 (distributions); Kim and Rush 2016, arXiv:1606.07947 (written answers).
Differs: teacher and rows stay as they are while the student trains, so the teacher's distributions are made once,
before the first step, and kept as their likeliest tokens and a tail.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from transfuse.baselines.distillation_settings import DistillSettings
from transfuse.errors import ModelError
from transfuse.generate.local import context_tokens
from transfuse.generate.protocol import Generator, Reply
from transfuse.generate.task_requests import task_requests, why_unusable
from transfuse.train.batches import TrainingRow, padded_order
from transfuse.train.objective import AnswerLoss, why_not_packed
from transfuse.train.teacher_targets import teacher_targets
from transfuse.types import Dropped, TaskItem

MAX_TOKENS_PER_PASS = 1024
"""Of the teacher; the logits of a pass take this many times its vocabulary."""

_ROWS_PER_CHUNK = 32
"""Rows of like length that are read before progress is told."""


def share_vocabulary(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> bool:
    """Whether each token id means the same to both models."""
    return teacher.get_vocab() == student.get_vocab()


def refuse_other_vocabulary(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Check that each token id means the same to both models.

    Args:
        teacher: its tokenizer.
        student: its tokenizer.

    Raises:
        ModelError: it does not, so that no distribution of the teacher could be matched token by token.
    """
    if share_vocabulary(teacher, student):
        return
    theirs, own = teacher.get_vocab(), student.get_vocab()
    strangers = sorted(set(own.items()) ^ set(theirs.items()), key=lambda token: (token[1], token[0]))
    token = strangers[0][0]
    ids = [str(vocabulary.get(token, "not there")) for vocabulary in (theirs, own)]
    raise ModelError(
        f"online-distillation: expected one vocabulary, got {len(theirs)} tokens of the teacher and {len(own)} of the "
        f"student, {len(set(own.items()) & set(theirs.items()))} of them the same (id of {token!r}: teacher {ids[0]}, "
        f"student {ids[1]}). Set distillation.other_vocabulary to align, or choose --method offline-distillation, "
        f"which carries text, or delta-transport, or `transfuse fuse`, which takes several teachers."
    )


def online_rows(
    teacher: nn.Module,
    rows: Sequence[TrainingRow],
    settings: DistillSettings,
    *,
    pad_id: int,
    compute_dtype: torch.dtype,
    n_vocab: int | None = None,
    on_rows: Callable[[int, int], None] = lambda n_done, n_all: None,
) -> tuple[list[TrainingRow], list[Dropped]]:
    """The student's rows with the teacher's distributions as soft targets at every learned token.

    Args:
        teacher: a causal language model with the student's vocabulary (see `refuse_other_vocabulary`); its mode is
            left as found.
        rows: as the student reads and learns them.
        settings: how many tokens are kept, and how the student learns them.
        pad_id: token that fills up padded batches.
        compute_dtype: bfloat16 for autocast, float32 for none.
        n_vocab: number of the student's logits; a teacher's further ones, which fill up its vocabulary, are left out.
        on_rows: called with the numbers of rows done and to do.

    Returns:
        The rows in order, and those dropped since they are longer than the teacher's context.

    Raises:
        TrainingError: the teacher's logits are not finite.
    """
    limit = context_tokens(teacher)
    fitting = [row for row in rows if limit is None or len(row.token_ids) <= limit]
    dropped = [
        Dropped(
            "record", f"row {n}", f"{len(row.token_ids)} tokens, more than the teacher's context of {limit}"
        )
        for n, row in enumerate(rows, start=1)
        if limit is not None and len(row.token_ids) > limit
    ]
    if not fitting:
        return [], dropped
    device = next(teacher.parameters()).device
    was_training = teacher.training
    objective = AnswerLoss(teacher, compute_dtype).eval()
    plain = [row._replace(soft=None) for row in fitting]
    is_packed = not why_not_packed(objective, plain, pad_id, device)
    order = padded_order(plain)
    taught: dict[int, TrainingRow] = {}
    for start in range(0, len(order), _ROWS_PER_CHUNK):
        chunk = order[start : start + _ROWS_PER_CHUNK]
        targets = teacher_targets(
            objective,
            [plain[n] for n in chunk],
            is_packed=is_packed,
            max_tokens_per_pass=MAX_TOKENS_PER_PASS,
            pad_id=pad_id,
            top_k=settings.top_k,
            temperature=settings.temperature,
            hard_weight=settings.hard_weight,
            n_vocab=n_vocab,
        )
        for n, soft in zip(chunk, targets, strict=True):
            soft = soft._replace(divergence=settings.divergence, jsd_beta=settings.jsd_beta)
            taught[n] = plain[n]._replace(soft=soft)
        on_rows(len(taught), len(plain))
    objective.train(was_training)
    return [taught[n] for n in range(len(plain))], dropped


def offline_items(
    items: Sequence[TaskItem],
    generator: Generator,
    settings: DistillSettings,
    *,
    seed: int,
    is_one_line: bool | None = None,
    on_replies: Callable[[int, int], None] = lambda n_done, n_all: None,
) -> tuple[list[TaskItem], list[Dropped]]:
    """The same prompts with answers that the teacher writes.

    Args:
        items: training samples; their own answers are not shown.
        generator: the teacher.
        settings: how answers are drawn, and how long they may be.
        seed: of sampling; each item draws from a seed of its own.
        is_one_line: whether an answer ends at its first line break; None means where no gold answer has one.
        on_replies: called with the numbers of answers there and to come.

    Returns:
        Items in order with the teacher's answers, and those that it failed to answer or that ask nothing.

    Raises:
        GenerationError: nothing can be answered.
    """
    dropped = [
        Dropped("record", item.id, "a plain text, to which a teacher has no answer to write")
        for item in items
        if not item.messages
    ]
    asked = [item for item in items if item.messages]
    n_done = 0

    def count(_index: int, _reply: Reply) -> None:
        nonlocal n_done
        n_done += 1
        on_replies(n_done, len(asked))

    requests = task_requests(
        asked,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.answer_temperature,
        seed=seed,
        is_one_line=is_one_line,
    )
    answered: list[TaskItem] = []
    for item, reply in zip(asked, generator.generate(requests, count), strict=True):
        reason = why_unusable(reply, settings.max_new_tokens)
        if reason:
            dropped.append(Dropped("record", item.id, reason))
        else:
            answered.append(replace(item, answer=reply.text.strip(), aliases=()))
    return answered, dropped

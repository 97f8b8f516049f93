"""Online distillation from a teacher that cuts text into other tokens than the student.

Each reads a conversation in its own form, so the prompts need not be alike; the answers are the same text, and are
aligned by bytes. What the teacher says goes to the student's state that has read as much of the answer, its tokens
exchanged for those that stand for them in the student's vocabulary. The token that closes an answer stands for the
student's own, whatever it is called, so that the student learns where to end as well.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from transfuse.baselines.distillation import online_rows
from transfuse.baselines.distillation_settings import DistillSettings
from transfuse.errors import ModelError
from transfuse.fuse.position_logits import n_logits
from transfuse.fuse.source_states import align_exactly, source_states
from transfuse.fuse.vocabulary_map import VocabularyMap, map_vocabulary
from transfuse.generate.local import context_tokens
from transfuse.io.chat import PromptFormat, prompt_format
from transfuse.io.distribution_cache import TextDistributions
from transfuse.io.models import LoadedModel
from transfuse.io.token_bytes import token_bytes
from transfuse.io.token_spans import TokenSpans
from transfuse.train.batches import TrainingRow
from transfuse.train.soft_targets import SoftTargets
from transfuse.train.task_rows import task_row, why_unlearnable
from transfuse.types import Dropped, TaskItem


def aligned_rows(
    teacher: LoadedModel,
    items: Sequence[TaskItem],
    prompts: PromptFormat,
    settings: DistillSettings,
    *,
    max_length_tokens: int | None,
    on_rows: Callable[[int, int], None] = lambda n_done, n_all: None,
) -> tuple[list[TrainingRow], list[Dropped]]:
    """The student's rows with what a teacher of another vocabulary says at their learned tokens.

    Args:
        teacher: the loaded teacher.
        items: samples; those too long for the student are left out, as `task_rows` reports them.
        prompts: the student's prompt format.
        settings: what is kept of a distribution, and how it is mapped and learned.
        max_length_tokens: of the student's rows.
        on_rows: called with the numbers of rows done and to do.

    Returns:
        The rows in order, and what the teacher cannot read. A row of which nothing can be aligned learns its own
        tokens.

    Raises:
        ModelError: a tokenizer does not tell its tokens' bytes, or too little can be taught.
        TrainingError: the teacher's logits are not finite.
    """
    theirs_format = prompt_format(teacher.tokenizer, teacher.model.generation_config)
    limit = context_tokens(teacher.model)
    readable: list[tuple[TaskItem, TrainingRow, TrainingRow]] = []
    dropped: list[Dropped] = []
    for item in items:
        own, theirs = task_row(item, prompts), task_row(item, theirs_format)
        if why_unlearnable(own, max_length_tokens):
            continue
        reason = why_unlearnable(theirs, limit)
        if reason:
            dropped.append(Dropped("record", item.id, f"as the teacher reads it: {reason}"))
        else:
            readable.append((item, own, theirs))
    vocabulary = _with_end(
        map_vocabulary(
            teacher.tokenizer, prompts.tokenizer, settings.map, n_source_rows=n_logits(teacher.model)
        ),
        theirs_format.end_id,
        prompts.end_id,
    )
    taught, _ = online_rows(
        teacher.model,
        [theirs for _, _, theirs in readable],
        settings,
        pad_id=theirs_format.pad_id,
        compute_dtype=teacher.precision,
        on_rows=on_rows,
    )
    own_pieces, their_pieces = token_bytes(prompts.tokenizer), token_bytes(teacher.tokenizer)
    rows = [
        own._replace(
            soft=carried_targets(
                theirs,
                answer_spans(theirs, item, their_pieces, theirs_format.end_id),
                answer_spans(own, item, own_pieces, prompts.end_id),
                vocabulary,
            )
        )
        for (item, own, _), theirs in zip(readable, taught, strict=True)
    ]
    share = taught_share(rows)
    if rows and share < settings.min_coverage:
        raise ModelError(
            f"online-distillation: the teacher's tokenizer and the student's cut the answers alike at {share:.1%} of "
            f"the learned tokens, expected at least {settings.min_coverage:.0%}. Set distillation.min_coverage lower, "
            f"distillation.map to retokenize, or choose --method offline-distillation, which carries text."
        )
    return rows, dropped


def taught_share(rows: Sequence[TrainingRow]) -> float:
    """Of all learned tokens, those at which a teacher says something."""
    n_taught = sum(
        row.n_learned if row.soft.is_taught is None else int(row.soft.is_taught.sum())
        for row in rows
        if isinstance(row.soft, SoftTargets)
    )
    return n_taught / max(1, sum(row.n_learned for row in rows))


def answer_spans(
    row: TrainingRow, item: TaskItem, pieces: Sequence[bytes | None], end_id: int
) -> TokenSpans | None:
    """The learned tokens of a row, after the last token before them, and the bytes of the answer each has read.

    Args:
        row: as one model reads the sample.
        item: the sample.
        pieces: the bytes of each token of the model's vocabulary.
        end_id: the token that closes an answer; it counts as one byte after the text.

    Returns:
        Tokens and ends; bytes that a template puts around the answer count for nothing. None where the tokens do not
        spell the answer, as those of a tokenizer that rewrites text.
    """
    spelled = [(pieces[token] or b"") if token < len(pieces) else b"" for token in row.token_ids]
    read = np.cumsum([len(piece) for piece in spelled])
    answer = item.answer.strip().encode()
    start = b"".join(spelled).find(answer, int(read[row.n_prompt - 1]) if item.messages else 0)
    if start < 0 or not answer:
        return None
    ends = (read - start).clip(0, len(answer))
    if row.token_ids[-1] == end_id:
        ends[-1] += 1
    own = slice(row.n_prompt - 1, None)
    return TokenSpans(np.array(row.token_ids[own], dtype=np.int32), ends[own].astype(np.int32))


def carried_targets(
    teacher: TrainingRow,
    teacher_spans: TokenSpans | None,
    student_spans: TokenSpans | None,
    vocabulary: VocabularyMap,
) -> SoftTargets | None:
    """The teacher's targets at its own learned tokens as targets at the student's.

    Args:
        teacher: its row, with soft targets in its own vocabulary.
        teacher_spans: see `answer_spans`.
        student_spans: of the student's row of the same sample.
        vocabulary: from the teacher's tokens to the student's.

    Returns:
        None where the two rows cannot be compared.
    """
    soft = teacher.soft
    if teacher_spans is None or student_spans is None or not isinstance(soft, SoftTargets):
        return None
    if teacher_spans.ends[-1] != student_spans.ends[-1]:
        return None  # one of them has no token that closes the answer
    nothing = np.full(len(teacher_spans.ends), np.nan, dtype=np.float32)
    said = TextDistributions(
        teacher_spans.token_ids,
        teacher_spans.ends,
        nothing,
        # The last state predicts nothing.
        np.pad(soft.token_ids.numpy(), ((0, 1), (0, 0))),
        np.pad(soft.log_probs.numpy(), ((0, 1), (0, 0)), constant_values=-np.inf),
        nothing,
    )
    aligned = align_exactly(said, student_spans, needs_one_to_one=vocabulary.kind != "retokenize")
    states = source_states(said, aligned, vocabulary, renormalises=False)
    return soft._replace(
        token_ids=torch.from_numpy(states.token_ids[:-1].copy()),
        log_probs=torch.from_numpy(states.log_probs[:-1].copy()),
        is_taught=torch.from_numpy(states.is_taught[:-1].copy()),
    )


def _with_end(vocabulary: VocabularyMap, teacher_end: int, student_end: int) -> VocabularyMap:
    """The map with the token that closes the teacher's answers standing for the one that closes the student's."""
    ids, distances = vocabulary.target_ids.copy(), vocabulary.distances.copy()
    ids[teacher_end], distances[teacher_end] = student_end, 0
    return VocabularyMap(ids, distances, vocabulary.kind)

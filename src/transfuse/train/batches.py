"""Training rows become forward passes: packed without padding, or padded among rows of like length."""

import heapq
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transfuse.train.soft_targets import ChunkPart, SoftPart, Taught, chunk_part, hard_shares, soft_part

MIN_SHARED_TOKENS = 8
"""Rows that begin with at least this many equal tokens share their computation."""

_PROBED_ROWS = 64
"""Rows to look through for the probes, where each has to be made."""


class TrainingRow(NamedTuple):
    """One record as tokens; the loss is on `token_ids[n_prompt:]`."""

    token_ids: list[int]
    n_prompt: int
    """Tokens that are read but not learned; at least 1, since the first token has nothing to predict it."""
    n_question: int = 0
    """How many of the learned tokens, the first ones, belong to the question."""
    question_weight: float = 1.0
    """Weight of their loss; an answer's token weighs 1."""
    soft: Taught | None = None
    """What a teacher says at each learned position, or of chunks of them; none learns the tokens alone."""

    @property
    def n_learned(self) -> int:
        """Number of learned tokens."""
        return len(self.token_ids) - self.n_prompt

    @property
    def weights(self) -> list[float]:
        """Weight of each learned token's loss."""
        return [self.question_weight] * self.n_question + [1.0] * (self.n_learned - self.n_question)

    @property
    def hard_weights(self) -> list[float]:
        """Weight of each learned token as its own target, the teacher's share taken off."""
        shares = hard_shares(self.soft, self.n_learned)
        return [share * weight for share, weight in zip(shares, self.weights, strict=True)]


@runtime_checkable
class LazyRows(Protocol):
    """Rows that are made when they are asked for, say from a file; their lengths are known beforehand."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TrainingRow: ...


Rows = Sequence[TrainingRow] | LazyRows


class TrainingPass(NamedTuple):
    """One forward pass; the logits at (target_rows, target_positions) predict `target_ids`."""

    input_ids: Int[Tensor, "batch pos"]
    position_ids: Int[Tensor, "batch pos"]
    attention_mask: Bool[Tensor, "batch 1 pos pos"] | Int[Tensor, "batch pos"]
    target_rows: Int[Tensor, " targets"]
    target_positions: Int[Tensor, " targets"]
    target_ids: Int[Tensor, " targets"]
    target_weights: Float[Tensor, " targets"]
    soft: SoftPart | None = None
    """None where no row of the pass has soft targets."""
    chunks: ChunkPart | None = None
    """None where no row of the pass has chunk targets."""


class _Group(NamedTuple):
    """Rows that begin with the same `n_shared` tokens."""

    n_shared: int
    rows: list[TrainingRow]

    @property
    def n_tokens(self) -> int:
        return self.n_shared + sum(len(row.token_ids) - self.n_shared for row in self.rows)


def row_lengths(rows: Rows) -> Sequence[int]:
    """Tokens of each row, without making rows that are made when asked for."""
    return rows.lengths if isinstance(rows, LazyRows) else [len(row.token_ids) for row in rows]


def padded_passes(rows: Sequence[TrainingRow], max_tokens: int, pad_id: int) -> list[TrainingPass]:
    """The rows of one batch as right-padded passes of at most `max_tokens`, padding counted.

    Args:
        rows: at least one; a row longer than `max_tokens` has a pass of its own.
        max_tokens: rows x longest row of a pass.
        pad_id: token that fills up; never attended to.

    Returns:
        Passes that hold every row once, with their targets in `padded_order`.
    """
    ranked = [rows[index] for index in padded_order(rows)]
    passes: list[TrainingPass] = []
    start = 0
    for end in range(1, len(ranked) + 1):
        is_last = end == len(ranked)
        if is_last or (end + 1 - start) * len(ranked[end].token_ids) > max_tokens:
            passes.append(_padded(ranked[start:end], pad_id))
            start = end
    return passes


def packed_passes(rows: Sequence[TrainingRow], max_tokens: int) -> list[TrainingPass]:
    """The rows of one batch laid end to end in passes of at most `max_tokens`, common beginnings held once.

    Every row sees its common beginning and itself, at the positions it has alone, so the loss and its gradient
    equal those of the rows one by one.

    Args:
        rows: at least one; a row longer than `max_tokens` has a pass of its own.
        max_tokens: tokens of a pass.

    Returns:
        Passes of batch size 1 that hold every row once, with their targets in `packed_order`.
    """
    passes: list[TrainingPass] = []
    pending: list[_Group] = []
    for group in _groups(rows):
        for part in _split(group, max_tokens):
            if pending and sum(held.n_tokens for held in pending) + part.n_tokens > max_tokens:
                passes.append(_packed(pending))
                pending = []
            pending.append(part)
    return [*passes, _packed(pending)]


def padded_order(rows: Sequence[TrainingRow]) -> list[int]:
    """Indices of rows in the order in which `padded_passes` takes them: by length."""
    return sorted(range(len(rows)), key=lambda index: len(rows[index].token_ids))


def packed_order(rows: Sequence[TrainingRow]) -> list[int]:
    """Indices of rows in the order in which `packed_passes` takes them: by their tokens."""
    return sorted(range(len(rows)), key=lambda index: rows[index].token_ids)


def probe_rows(rows: Rows) -> list[TrainingRow]:
    """A few short rows on which to try packing: two that share a beginning, where any do, and two more.

    Of rows that are made when asked for, only the 64 shortest are looked at.
    """
    known: Sequence[TrainingRow]
    if not isinstance(rows, LazyRows):
        known = rows
    else:
        lengths = rows.lengths
        known = [rows[n] for n in heapq.nsmallest(_PROBED_ROWS, range(len(rows)), key=lambda n: lengths[n])]
    by_length = sorted(known, key=lambda row: len(row.token_ids))
    shared = [group for group in _groups(known) if group.n_shared]
    shortest = min(shared, key=lambda group: len(group.rows[0].token_ids), default=_Group(0, []))
    return [*shortest.rows[:2], *by_length[:2]]


def _groups(rows: Sequence[TrainingRow]) -> list[_Group]:
    """Rows in lexicographic order, cut where neighbours begin differently."""
    ranked = [rows[index] for index in packed_order(rows)]
    groups: list[_Group] = []
    members, shared = [ranked[0]], ranked[0].n_prompt - 1
    for before, row in pairwise(ranked):
        common = min(_n_common(before.token_ids, row.token_ids), row.n_prompt - 1, shared)
        if common >= MIN_SHARED_TOKENS:
            members.append(row)
            shared = common
        else:
            groups.append(_Group(shared if len(members) > 1 else 0, members))
            members, shared = [row], row.n_prompt - 1
    return [*groups, _Group(shared if len(members) > 1 else 0, members)]


def _n_common(left: Sequence[int], right: Sequence[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )


def _split(group: _Group, max_tokens: int) -> list[_Group]:
    parts: list[_Group] = [_Group(group.n_shared, [])]
    for row in group.rows:
        own = len(row.token_ids) - group.n_shared
        if parts[-1].rows and parts[-1].n_tokens + own > max_tokens:
            parts.append(_Group(group.n_shared, []))
        parts[-1].rows.append(row)
    return parts


def _packed(groups: Sequence[_Group]) -> TrainingPass:
    token_ids: list[int] = []
    positions: list[int] = []
    row_of: list[int] = []
    group_of_shared: list[int] = []  # the group a token is a common beginning of, or -1
    group_of: list[int] = []
    targets: list[tuple[int, int, float]] = []
    n_rows = 0
    for n_group, group in enumerate(groups):
        pieces = [(group.rows[0].token_ids[: group.n_shared], 0, True)] if group.n_shared else []
        pieces += [(row.token_ids[group.n_shared :], group.n_shared, False) for row in group.rows]
        rows = iter(group.rows)
        for ids, first, is_shared in pieces:
            if not is_shared:
                row = next(rows)
                learned = range(row.n_prompt - group.n_shared, len(ids))
                targets += [
                    (len(token_ids) + i - 1, ids[i], weight)
                    for i, weight in zip(learned, row.hard_weights, strict=True)
                ]
            token_ids += ids
            positions += range(first, first + len(ids))
            row_of += [n_rows] * len(ids)
            group_of += [n_group] * len(ids)
            group_of_shared += [n_group if is_shared else -1] * len(ids)
            n_rows += 1
    taught = [(row.soft, row.weights) for group in groups for row in group.rows]
    return _pass_of(token_ids, positions, targets, _visible(row_of, group_of, group_of_shared), taught)


def _visible(row_of: list[int], group_of: list[int], group_of_shared: list[int]) -> Bool[Tensor, "pos pos"]:
    rows, groups, shared = (torch.tensor(ids) for ids in (row_of, group_of, group_of_shared))
    sees = (rows[:, None] == rows[None, :]) | (groups[:, None] == shared[None, :])
    return sees & torch.ones_like(sees).tril()


def _pass_of(
    token_ids: list[int],
    positions: list[int],
    targets: list[tuple[int, int, float]],
    visible: Bool[Tensor, "pos pos"],
    taught: Sequence[tuple[Taught | None, Sequence[float]]],
) -> TrainingPass:
    where, what, weights = zip(*targets, strict=True)
    return TrainingPass(
        input_ids=torch.tensor([token_ids]),
        position_ids=torch.tensor([positions]),
        attention_mask=visible[None, None],
        target_rows=torch.zeros(len(targets), dtype=torch.long),
        target_positions=torch.tensor(where),
        target_ids=torch.tensor(what),
        target_weights=torch.tensor(weights),
        soft=soft_part(taught),
        chunks=chunk_part(taught),
    )


def _padded(rows: Sequence[TrainingRow], pad_id: int) -> TrainingPass:
    length = max(len(row.token_ids) for row in rows)
    taught = [(row.soft, row.weights) for row in rows]
    input_ids = torch.full((len(rows), length), pad_id)
    attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
    targets: list[tuple[int, int, int]] = []
    weights: list[float] = []
    for n_row, row in enumerate(rows):
        n_tokens = len(row.token_ids)
        input_ids[n_row, :n_tokens] = torch.tensor(row.token_ids)
        attention_mask[n_row, :n_tokens] = 1
        targets += [(n_row, i - 1, row.token_ids[i]) for i in range(row.n_prompt, n_tokens)]
        weights += row.hard_weights
    target_rows, target_positions, target_ids = torch.tensor(targets).unbind(dim=1)
    return TrainingPass(
        input_ids=input_ids,
        position_ids=torch.arange(length).expand(len(rows), length),
        attention_mask=attention_mask,
        target_rows=target_rows,
        target_positions=target_positions,
        target_ids=target_ids,
        target_weights=torch.tensor(weights),
        soft=soft_part(taught),
        chunks=chunk_part(taught),
    )

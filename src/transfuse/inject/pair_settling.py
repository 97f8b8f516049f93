"""From drafts to the sheet: which pairs train, which measure, and what became of each source.

Sets nest: at a greater scale every source keeps the pairs of the smaller ones, whichever of them were written in one
run. For that a question that two sources have goes to the one that takes it at the smaller scale, and at each scale a
source only has the pairs that a run at that scale would have written.
"""

from collections.abc import Mapping, Sequence

from transfuse.errors import GenerationError
from transfuse.inject.ledger import SURPLUS, Fate, PairSheet, SourceFate, counted_reasons
from transfuse.inject.pair_checks import likeness
from transfuse.inject.pair_drafts import Accepted, Draft
from transfuse.types import Basis, Dropped, QAPair, Split

_BASES: Mapping[str, Basis] = {"fact": "fact", "section": "token"}


def eval_pairs(draft: Draft, taken: Mapping[str, str]) -> list[Accepted]:
    """The preferred pairs to measure with, up to the target; `taken` holds the keys of others' questions."""
    picked: list[Accepted] = []
    for pair in draft.eval_choices:
        if _size(picked) >= draft.eval_target:
            break
        if pair.key not in taken:
            picked.append(pair)
    return picked


def trainable_pairs(draft: Draft, evals: Sequence[Accepted], eval_distance: float) -> list[Accepted]:
    """The accepted pairs, in order, that measure nothing and whose wording is not near one that does."""
    measuring = {pair.key for pair in evals}
    return [
        pair
        for pair in draft.accepted
        if pair.key not in measuring and not _is_near(pair, evals, eval_distance)
    ]


def is_full(draft: Draft, eval_distance: float) -> bool:
    """Whether the draft has what its scale asks for."""
    evals = eval_pairs(draft, {})
    train = trainable_pairs(draft, evals, eval_distance)
    return _size(evals) >= draft.eval_target and _size(train) >= draft.scale * draft.unit


def settled(drafts: Sequence[Draft], eval_distance: float, stopped: GenerationError | None) -> PairSheet:
    """The sheet of all drafts: no question stands in it twice, be it of two sources or two splits.

    Args:
        drafts: in the order of their sources.
        eval_distance: likeness of wording from which a training question is too near to an eval question.
        stopped: why no further request could succeed.

    Returns:
        Pairs by source, then in order of acceptance; a fate for every draft.
    """
    owners: dict[str, str] = {}
    evals: list[list[Accepted]] = []
    for draft in drafts:
        evals.append(eval_pairs(draft, owners))
        owners.update({pair.key: f"an eval question of {draft.id}" for pair in evals[-1]})
    trains = _shared_out(drafts, evals, owners, eval_distance)
    sheet = PairSheet([], [], [], stopped)
    for draft, measuring, training in zip(drafts, evals, trains, strict=True):
        dropped = [*draft.dropped, *_left_over(draft, measuring, training, owners, eval_distance)]
        splits: dict[str, Split] = {pair.key: "eval" for pair in measuring}
        splits |= {pair.key: "train" for pair in training}
        for pair in draft.accepted:
            if split := splits.get(pair.key):
                number = f"q{len(sheet.pairs) + 1}"
                basis = _BASES[draft.kind]
                sheet.pairs.append(QAPair(number, basis, draft.id, split, pair.question, pair.answer))
        sheet.dropped.extend(
            Dropped("pair", f"{draft.id}: {question}", reason) for question, reason in dropped
        )
        sheet.dropped.extend(
            Dropped("reply", f"{draft.id}: round {number}", fault) for number, fault in draft.faults
        )
        sheet.fates.append(_fate(draft, measuring, training, [reason for _, reason in dropped]))
    return sheet


def _shared_out(
    drafts: Sequence[Draft], evals: Sequence[Sequence[Accepted]], owners: dict[str, str], eval_distance: float
) -> list[list[Accepted]]:
    """Training pairs of each draft, given out scale by scale; `owners` learns whose each question is."""
    pools = [
        trainable_pairs(draft, measuring, eval_distance)
        for draft, measuring in zip(drafts, evals, strict=True)
    ]
    reaches = [_rounds(draft, eval_distance) for draft in drafts]
    kept: list[list[Accepted]] = [[] for _ in drafts]
    next_ones = [0] * len(drafts)
    for scale in range(1, max((draft.scale for draft in drafts), default=0) + 1):
        for index, draft in enumerate(drafts):
            pool, reach = pools[index], reaches[index]
            while scale <= draft.scale and _size(kept[index]) < scale * draft.unit:
                if next_ones[index] == len(pool) or pool[next_ones[index]].round > reach[scale - 1]:
                    break
                pair = pool[next_ones[index]]
                next_ones[index] += 1
                if pair.key not in owners:
                    owners[pair.key] = f"a question of {draft.id}"
                    kept[index].append(pair)
    return kept


def _rounds(draft: Draft, eval_distance: float) -> list[int]:
    """For each scale from 1, the last round that a run at that scale asks for."""
    evals = eval_pairs(draft, {})
    train = trainable_pairs(draft, evals, eval_distance)
    last = max((pair.round for pair in draft.accepted), default=0)
    last_of_evals = max((pair.round for pair in evals), default=0)
    reaches: list[int] = []
    size = 0
    for pair in train:
        size += pair.size
        while len(reaches) < draft.scale and size >= (len(reaches) + 1) * draft.unit:
            reaches.append(max(pair.round, last_of_evals))
    return reaches + [last] * (draft.scale - len(reaches))


def _left_over(
    draft: Draft,
    evals: Sequence[Accepted],
    train: Sequence[Accepted],
    owners: Mapping[str, str],
    eval_distance: float,
) -> list[tuple[str, str]]:
    """Accepted pairs that are in neither split, with the reason."""
    used = {pair.key for pair in (*evals, *train)}
    left: list[tuple[str, str]] = []
    for pair in draft.accepted:
        if pair.key in used:
            continue
        if _is_near(pair, evals, eval_distance):
            reason = "too near to an eval question"
        elif pair.key in owners:
            reason = f"is another source's question: {owners[pair.key]}"
        else:
            reason = SURPLUS
        left.append((pair.question, reason))
    return left


def _fate(
    draft: Draft, evals: Sequence[Accepted], train: Sequence[Accepted], reasons: Sequence[str]
) -> SourceFate:
    target = draft.scale * draft.unit
    fate: Fate = "short"
    if _size(train) >= target and _size(evals) >= draft.eval_target:
        fate = "covered"
    elif not draft.accepted and draft.skip_reason:
        fate = "skipped"
    elif not train and not evals:
        fate = "failed"
    reason = ""
    if fate == "skipped":
        reason = draft.skip_reason
    elif fate != "covered":
        faults = [fault for _, fault in draft.faults]
        told = [reason for reason in reasons if reason != SURPLUS]
        parts = [_shortfall(draft, evals, train), draft.ending, counted_reasons([*told, *faults])]
        reason = "; ".join(part for part in parts if part)
    return SourceFate(draft.kind, draft.id, fate, reason, len(train), len(evals), len(reasons))


def _shortfall(draft: Draft, evals: Sequence[Accepted], train: Sequence[Accepted]) -> str:
    if not train and not evals:
        return "no pair"
    if draft.kind == "fact":
        return (
            f"{_size(train)} of {draft.scale} training questions and "
            f"{_size(evals)} of {draft.eval_target} eval questions"
        )
    return (
        f"training pairs of {_size(train) / draft.unit:.1f} x its tokens instead of {draft.scale} x, "
        f"eval pairs of {_size(evals) / draft.unit:.1f} x instead of 1 x"
    )


def _is_near(pair: Accepted, evals: Sequence[Accepted], eval_distance: float) -> bool:
    return any(likeness(pair.key, other.key) >= eval_distance for other in evals)


def _size(pairs: Sequence[Accepted]) -> int:
    return sum(pair.size for pair in pairs)

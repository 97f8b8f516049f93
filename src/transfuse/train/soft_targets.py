"""What a teacher says at the learned positions of a row, beside or instead of the row's own tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transfuse.errors import TrainingError
from transfuse.tensors.sparse_divergences import Divergence


class SoftTargets(NamedTuple):
    """A teacher's likeliest tokens at each learned position of one row."""

    token_ids: Int[Tensor, "learned kept"]
    """int32; the likeliest first, different ones in each row. Any id may stand at a pad."""
    log_probs: Float[Tensor, "learned kept"]
    """Natural log, float32, over the whole vocabulary at `temperature`; minus infinity at pads. What is left of 1 is
    the tail."""
    temperature: float = 1.0
    """Divides the teacher's logits and the student's. The divergence is multiplied by its square, which keeps the
    size of the gradient (Hinton et al. 2015, section 2)."""
    hard_weight: float = 0.0
    """Share of the loss, in 0..1, that is on the row's own tokens; the rest is on the teacher's distribution."""
    divergence: Divergence = "forward-kl"
    """By which the student is held to the teacher; the same in all rows of a training."""
    is_taught: Bool[Tensor, " learned"] | None = None
    """False where the teacher says nothing: there the whole loss is on the row's own token. None is true everywhere."""
    jsd_beta: float = 0.5
    """Of divergence `jsd`; the same in all rows."""


class ChunkTargets(NamedTuple):
    """What a source gives chunks of a row's text, whatever tokens it cuts them into; learned positions count from 0."""

    starts: Int[Tensor, " chunks"]
    """First learned position of each chunk; chunks ascend and do not overlap."""
    ends: Int[Tensor, " chunks"]
    """One after its last. A position in no chunk has its whole loss on the row's own token."""
    log_probs: Float[Tensor, " chunks"]
    """Natural log, float32, at most 0: the source's log-probability of the chunk's text."""
    temperature: float = 1.0
    """See `chunk_divergence`."""
    hard_weight: float = 0.0
    """Share of the loss, in 0..1, that is on the row's own tokens; the rest is on the chunks, each weighing as much
    as one token."""


class SoftPart(NamedTuple):
    """The soft targets of a forward pass."""

    targets: Int[Tensor, " soft"]
    """Which of the pass's targets they belong to, ascending."""
    token_ids: Int[Tensor, "soft kept"]
    log_probs: Float[Tensor, "soft kept"]
    temperatures: Float[Tensor, " soft"]
    weights: Float[Tensor, " soft"]
    """Of the divergences in the loss."""
    divergence: Divergence = "forward-kl"
    is_tempered: bool = True
    """Whether any temperature is other than 1."""
    jsd_beta: float = 0.5


class ChunkPart(NamedTuple):
    """The chunk targets of a forward pass."""

    targets: Int[Tensor, " covered"]
    """The pass's targets that lie in a chunk, one chunk after the other."""
    n_targets: Int[Tensor, " chunks"]
    """How many of them each chunk has."""
    log_probs: Float[Tensor, " chunks"]
    temperatures: Float[Tensor, " chunks"]
    weights: Float[Tensor, " chunks"]


Taught = SoftTargets | ChunkTargets


def learned_chunks(
    starts: Int[Tensor, " all"],
    ends: Int[Tensor, " all"],
    log_probs: Float[Tensor, " all"],
    n_prompt: int,
    *,
    temperature: float,
    hard_weight: float,
) -> ChunkTargets:
    """Chunk targets of a row from chunks of its tokens.

    Args:
        starts: the first token of each chunk, counted from the row's beginning; ascending.
        ends: one after its last token; chunks do not overlap.
        log_probs: the source's, summed over its tokens of the chunk. NaN where it was not asked.
        n_prompt: the row's first tokens, which are not learned.
        temperature: see `chunk_divergence`.
        hard_weight: see `ChunkTargets`.

    Returns:
        The chunks all of whose tokens are learned, but those without tokens or of no known probability.
    """
    is_kept = (starts >= n_prompt) & (ends > starts) & ~log_probs.isnan()
    starts, ends = (bounds[is_kept].int() - n_prompt for bounds in (starts, ends))
    return ChunkTargets(starts, ends, log_probs[is_kept].float().clamp(max=0), temperature, hard_weight)


def hard_shares(taught: Taught | None, n_learned: int) -> list[float]:
    """The share of each learned token's loss that is on the token itself."""
    if taught is None:
        return [1.0] * n_learned
    if isinstance(taught, ChunkTargets):
        shares = torch.ones(n_learned, dtype=torch.float64)
        shares[_covered(taught)] = taught.hard_weight
        return shares.tolist()
    if taught.is_taught is None:
        return [taught.hard_weight] * n_learned
    return [taught.hard_weight if is_taught else 1.0 for is_taught in taught.is_taught.tolist()]


def soft_part(rows: Sequence[tuple[Taught | None, Sequence[float]]]) -> SoftPart | None:
    """The soft targets of a pass.

    Args:
        rows: each row's soft targets, where it has any, and the weights of its learned tokens. The pass's targets
            are theirs, one row after the other.

    Returns:
        None where no row has soft targets.
    """
    places: list[int] = []
    found: list[SoftTargets] = []
    temperatures: list[float] = []
    weights: list[float] = []
    n_before = 0
    for soft, row_weights in rows:
        if isinstance(soft, SoftTargets):
            found.append(soft)
            places += range(n_before, n_before + len(row_weights))
            temperatures += [soft.temperature] * len(row_weights)
            share = (1 - soft.hard_weight) * soft.temperature**2
            if soft.is_taught is None:
                weights += [share * weight for weight in row_weights]
            else:
                taught = soft.is_taught.tolist()
                weights += [share * weight * on for weight, on in zip(row_weights, taught, strict=True)]
        n_before += len(row_weights)
    if not found:
        return None
    return SoftPart(
        targets=torch.tensor(places),
        token_ids=torch.cat([soft.token_ids for soft in found]).long(),
        log_probs=torch.cat([soft.log_probs for soft in found]),
        temperatures=torch.tensor(temperatures),
        weights=torch.tensor(weights),
        divergence=found[0].divergence,
        is_tempered=any(soft.temperature != 1 for soft in found),
        jsd_beta=found[0].jsd_beta,
    )


def chunk_part(rows: Sequence[tuple[Taught | None, Sequence[float]]]) -> ChunkPart | None:
    """The chunk targets of a pass; arguments as in `soft_part`, None where no row has any chunk."""
    targets: list[Tensor] = []
    found: list[ChunkTargets] = []
    weights: list[Tensor] = []
    n_before = 0
    for chunks, row_weights in rows:
        if isinstance(chunks, ChunkTargets) and len(chunks.starts):
            covered, n_tokens = _covered(chunks), (chunks.ends - chunks.starts).long()
            targets.append(covered + n_before)
            found.append(chunks)
            mean = torch.segment_reduce(torch.tensor(row_weights)[covered], "mean", lengths=n_tokens)
            weights.append((1 - chunks.hard_weight) * mean)
        n_before += len(row_weights)
    if not found:
        return None
    return ChunkPart(
        targets=torch.cat(targets),
        n_targets=torch.cat([chunks.ends - chunks.starts for chunks in found]).long(),
        log_probs=torch.cat([chunks.log_probs for chunks in found]),
        temperatures=torch.cat([torch.full((len(chunks.starts),), chunks.temperature) for chunks in found]),
        weights=torch.cat(weights),
    )


def refuse_uneven_targets(rows: Sequence[tuple[int, Taught | None]]) -> None:
    """Check that targets fit their rows, that all keep the same number of tokens, and use the same divergence.

    Args:
        rows: each row's number of learned tokens, and its soft or chunk targets.

    Raises:
        TrainingError: they do not; passes could not be put together.
    """
    first: SoftTargets | None = None
    for n_learned, taught in rows:
        if isinstance(taught, ChunkTargets):
            _refuse_misplaced(taught, n_learned)
        elif taught is not None:
            first = first or taught
            _refuse_uneven(taught, first, n_learned)


def _refuse_uneven(soft: SoftTargets, first: SoftTargets, n_learned: int) -> None:
    expected = (n_learned, first.log_probs.shape[1])
    for name, part in (("token ids", soft.token_ids), ("log-probabilities", soft.log_probs)):
        if tuple(part.shape) != expected:
            raise TrainingError(
                f"soft targets: expected {name} of {expected[0]} learned positions x {expected[1]} kept tokens, "
                f"got {' x '.join(map(str, part.shape))}; make those of all rows with the same top_k."
            )
    if soft.is_taught is not None and tuple(soft.is_taught.shape) != (n_learned,):
        raise TrainingError(
            f"soft targets: expected is_taught of {n_learned} learned positions, got {len(soft.is_taught)}."
        )
    if soft.divergence != first.divergence:
        raise TrainingError(
            f"soft targets: expected one divergence in all rows, got {first.divergence} and {soft.divergence}; "
            f"train with one of them."
        )
    if soft.jsd_beta != first.jsd_beta:
        raise TrainingError(
            f"soft targets: expected one jsd_beta in all rows, got {first.jsd_beta} and {soft.jsd_beta}."
        )


def _refuse_misplaced(chunks: ChunkTargets, n_learned: int) -> None:
    starts, ends = chunks.starts.long(), chunks.ends.long()
    borders = torch.stack([starts, ends], dim=1).flatten() if len(starts) == len(ends) else starts[:0]
    if not len(starts) == len(ends) == len(chunks.log_probs):
        raise TrainingError(
            f"chunk targets: expected as many starts as ends and log-probabilities, got {len(starts)}, {len(ends)} "
            f"and {len(chunks.log_probs)}."
        )
    if len(starts) and not (
        (starts < ends).all()
        and (borders.diff() >= 0).all()
        and int(starts[0]) >= 0
        and int(ends[-1]) <= n_learned
    ):
        raise TrainingError(
            f"chunk targets: expected ascending chunks within {n_learned} learned positions, got "
            f"{list(zip(starts.tolist(), ends.tolist(), strict=True))[:8]}; count positions from the first learned "
            f"token (see learned_chunks)."
        )
    if not (chunks.log_probs <= 0).all():
        raise TrainingError(
            f"chunk targets: expected log-probabilities of at most 0, got {float(chunks.log_probs.max()):g}."
        )


def _covered(chunks: ChunkTargets) -> Int[Tensor, " covered"]:
    """The learned positions that lie in a chunk."""
    starts, n_tokens = chunks.starts.long(), (chunks.ends - chunks.starts).long()
    before = n_tokens.cumsum(0) - n_tokens
    return torch.arange(int(n_tokens.sum())) + (starts - before).repeat_interleave(n_tokens)

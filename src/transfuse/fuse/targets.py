"""What the target is to learn of one piece of text: every source aligned, mapped and fused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from transfuse.fuse.fusion_settings import FusionSettings
from transfuse.fuse.source_states import Aligned, align_by_edits, align_exactly, source_states
from transfuse.fuse.vocabulary_map import VocabularyMap
from transfuse.io.distribution_cache import TextDistributions
from transfuse.io.token_spans import TokenSpans
from transfuse.tensors.fusion_rules import (
    RULES,
    FusedStates,
    IntervalCosts,
    MappedStates,
    choose_least,
    common_ends,
    costs_of,
    interval_costs,
    keep_chosen,
    mixed,
)


@dataclass(frozen=True, eq=False)
class FusionSource:
    """One source as fusion sees it."""

    name: str
    vocabulary: VocabularyMap
    tokens: Sequence[str] = ()
    """Its vocabulary as text, for alignment by edits."""


class ChunkTargets(NamedTuple):
    """What the sources say of whole chunks of a piece."""

    start: Int[np.ndarray, " chunks"]
    """First token of the target in each; at least 1, since token 0 is predicted by nothing."""
    end: Int[np.ndarray, " chunks"]
    """One past the last."""
    log_probs: Float[np.ndarray, " chunks"]
    """Natural log of the fused probability of the chunk's bytes."""


class FusedPiece(NamedTuple):
    """One piece of text with what is learned of it."""

    token_ids: Int[np.ndarray, " tokens"]
    states: FusedStates
    """One entry a token; the last one, which predicts nothing, teaches nothing."""
    chunks: ChunkTargets | None
    """Where chunks are learned."""


def fuse_piece(
    target: TokenSpans,
    distributions: Sequence[TextDistributions],
    sources: Sequence[FusionSource],
    settings: FusionSettings,
    target_tokens: Sequence[str] = (),
) -> FusedPiece:
    """Align, map and fuse what the sources say of one piece.

    Args:
        target: the piece as the target reads it.
        distributions: of each source, of the same piece.
        sources: in the same order.
        settings: how.
        target_tokens: the target's vocabulary as text, for alignment by edits.

    Returns:
        What the target is to learn.

    Source:
        Wan et al. 2024, arXiv:2401.10491, section 3.3. Differs: by default states are aligned by bytes, costs
        are compared per byte, and a state that no source teaches learns the next token, not the one just read.
    """
    n_states = len(target.token_ids)
    cuts, costs = _costs(target, distributions, settings)
    rule = RULES[settings.rule]
    weights = rule.weigh(costs, settings.weight_temperature) if rule.weigh else None
    choice = choose_least(costs)
    chunks = None
    if settings.divergence == "chunk-likelihood":
        chunks = _chunk_targets(target, distributions, choice, weights, cuts)
        states = _silent(n_states)
    else:
        n_kept = settings.n_kept or max(each.top_ids.shape[1] for each in distributions)
        mapped = [
            _states_of(target, each, source, settings, target_tokens)
            for each, source in zip(distributions, sources, strict=True)
        ]
        # The interval that the next token begins in; a piece is one interval where sequences are compared.
        interval = np.clip(np.searchsorted(cuts, target.ends, side="right") - 1, 0, costs.shape[1] - 1)
        if weights is None:
            states = keep_chosen(mapped, choice[interval], n_kept)
        else:
            states = mixed(mapped, weights[:, interval], n_kept)
    return FusedPiece(target.token_ids, states, chunks)


def _costs(
    target: TokenSpans, distributions: Sequence[TextDistributions], settings: FusionSettings
) -> tuple[Int[np.ndarray, " cuts"], Float[np.ndarray, "sources intervals"]]:
    """Cuts between which sources are compared, and what each interval costs each source."""
    is_per_byte = RULES[settings.rule].is_per_byte
    if settings.level == "chunk":
        cuts = common_ends([target.ends, *(each.ends for each in distributions)])
        if len(cuts) > 1:
            intervals = [interval_costs(each.ends, each.observed_log_probs, cuts) for each in distributions]
            return cuts, costs_of(intervals, cuts, is_per_byte=is_per_byte)
    costs = [_whole_cost(each, is_per_byte=is_per_byte) for each in distributions]
    return np.array([0, max(1, int(target.ends[-1]) if len(target.ends) else 1)]), np.array(costs)[:, None]


def _whole_cost(source: TextDistributions, *, is_per_byte: bool) -> float:
    """Bits per predicted byte, or nats per predicted token, of a piece; NaN where nothing is predicted."""
    if len(source.ends) < 2:
        return float("nan")
    cuts = np.array([source.ends[0], source.ends[-1]], dtype=np.int64)
    nats = -float(np.nansum(source.observed_log_probs[:-1], dtype=np.float64))
    found = IntervalCosts(np.array([nats]), np.array([len(source.ends) - 1]))
    return float(costs_of([found], cuts, is_per_byte=is_per_byte)[0, 0])


def _states_of(
    target: TokenSpans,
    distributions: TextDistributions,
    source: FusionSource,
    settings: FusionSettings,
    target_tokens: Sequence[str],
) -> MappedStates:
    aligned: Aligned
    if settings.align == "min-edit" and len(target.token_ids) and len(distributions.token_ids):
        aligned = align_by_edits(distributions, target, source.tokens, target_tokens, source.vocabulary)
    else:
        aligned = align_exactly(distributions, target, needs_one_to_one=settings.map != "retokenize")
    states = source_states(
        distributions,
        aligned,
        source.vocabulary,
        renormalises=settings.renormalises,
        duplicates=settings.duplicates,
    )
    if settings.fallback == "current-token":
        return _filled(states, target.token_ids)
    return states


def _filled(states: MappedStates, token_ids: Int[np.ndarray, " states"]) -> MappedStates:
    """States that are not taught learn the token just read: the published code's mistake, for parity."""
    ids, log_probs = states.token_ids.copy(), states.log_probs.copy()
    silent = ~states.is_taught
    ids[silent], log_probs[silent] = 0, -np.inf
    ids[silent, 0], log_probs[silent, 0] = token_ids[silent], 0.0
    is_taught = np.ones_like(states.is_taught)
    is_taught[-1:] = False
    return MappedStates(ids, log_probs, is_taught)


def _silent(n_states: int) -> FusedStates:
    return FusedStates(
        np.zeros((n_states, 1), dtype=np.int32),
        np.full((n_states, 1), -np.inf, dtype=np.float32),
        np.zeros(n_states, dtype=bool),
        np.full(n_states, -1),
    )


def _chunk_targets(
    target: TokenSpans,
    distributions: Sequence[TextDistributions],
    choice: Int[np.ndarray, " intervals"],
    weights: Float[np.ndarray, "sources intervals"] | None,
    cuts: Int[np.ndarray, " cuts"],
) -> ChunkTargets:
    """The fused probability of each chunk between bytes that target and sources cut at."""
    bounds = common_ends([target.ends, *(each.ends for each in distributions)])
    nats = np.stack(
        [interval_costs(each.ends, each.observed_log_probs, bounds).nats for each in distributions]
    )
    interval = np.clip(np.searchsorted(cuts, bounds[:-1], side="right") - 1, 0, len(choice) - 1)
    if weights is None:
        log_probs = -nats[choice[interval], np.arange(len(interval))]
    else:
        share = np.where(np.isnan(nats), 0.0, weights[:, interval])
        with np.errstate(divide="ignore", invalid="ignore"):
            log_probs = np.log((share * np.exp(-np.nan_to_num(nats))).sum(axis=0) / share.sum(axis=0))
    state = np.searchsorted(target.ends, bounds, side="right")
    start, end = state[:-1], state[1:]
    is_kept = (start >= 1) & (end > start) & np.isfinite(log_probs)
    return ChunkTargets(start[is_kept], end[is_kept], log_probs[is_kept].astype(np.float32))

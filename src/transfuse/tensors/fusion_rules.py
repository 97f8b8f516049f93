"""How the distributions of several sources become one at the states of a target.

A state stands for the tokens read so far and predicts the next one (see `token_alignment`). Every source here has been
aligned to the target's states and mapped to its vocabulary already.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float, Int

from transfuse.tensors.mapped_distributions import map_distributions

FusionRule = Literal["min-ce", "avg-ce", "fair-min-ce", "fair-avg-ce"]

UNTAUGHT = -1
"""In place of a source, where none says anything."""


class MappedStates(NamedTuple):
    """What one source says at the target's states."""

    token_ids: Int[np.ndarray, "states kept"]
    """Of the target's vocabulary, the likeliest first; no token twice, but for pads."""
    log_probs: Float[np.ndarray, "states kept"]
    """Natural log, over the source's whole vocabulary; minus infinity pads."""
    is_taught: Bool[np.ndarray, " states"]
    """Where it says anything."""


class FusedStates(NamedTuple):
    """What the target is to learn at its states."""

    token_ids: Int[np.ndarray, "states kept"]
    log_probs: Float[np.ndarray, "states kept"]
    """Minus infinity pads; all of them where nothing is taught."""
    is_taught: Bool[np.ndarray, " states"]
    source: Int[np.ndarray, " states"]
    """The source that was chosen, or that counts most; `UNTAUGHT` where none teaches."""


class IntervalCosts(NamedTuple):
    """What the bytes between two cuts cost a source."""

    nats: Float[np.ndarray, " intervals"]
    """NaN where the source does not predict all of an interval, as the first token without a BOS."""
    n_tokens: Int[np.ndarray, " intervals"]


def common_ends(ends: Sequence[Int[np.ndarray, " _"]]) -> Int[np.ndarray, " cuts"]:
    """Bytes that every tokenization of a text cuts at, rising; 0 is one always, the text's end as well.

    Args:
        ends: of each source's states, never falling.

    Returns:
        Cuts; a single one where the text is empty.
    """
    cuts = np.unique(np.append(ends[0], 0))
    for others in ends[1:]:
        cuts = cuts[np.isin(cuts, others) | (cuts == 0)]
    return cuts.astype(np.int64)


def interval_costs(
    ends: Int[np.ndarray, " states"],
    observed_log_probs: Float[np.ndarray, " states"],
    cuts: Int[np.ndarray, " cuts"],
) -> IntervalCosts:
    """What the text between cuts cost a source.

    Args:
        ends: bytes that each state has read.
        observed_log_probs: at each state that of the token that came next; NaN at the last.
        cuts: bytes that the source cuts at (0 stands for the state before the first token of text), rising.

    Returns:
        One entry for each pair of neighbouring cuts.
    """
    state = np.searchsorted(ends, cuts, side="right") - 1
    so_far = np.concatenate([[0.0], np.cumsum(np.nan_to_num(observed_log_probs.astype(np.float64)))])
    # The token behind state s is predicted at s, so those between two states are the sum over [first, last).
    nats = so_far[np.maximum(state[:-1], 0)] - so_far[np.maximum(state[1:], 0)]
    return IntervalCosts(np.where(state[:-1] >= 0, nats, np.nan), np.diff(state))


def choose_least(costs: Float[np.ndarray, "sources intervals"]) -> Int[np.ndarray, " intervals"]:
    """The source of least cost in each interval; the first of several, and one without a cost never."""
    return np.where(np.isnan(costs), np.inf, costs).argmin(axis=0)


def reward_weights(
    costs: Float[np.ndarray, "sources intervals"], temperature: float
) -> Float[np.ndarray, "sources intervals"]:
    """Softmax of `exp(-cost) / temperature` over the sources.

    Args:
        costs: nats per token; a source without a cost (NaN) weighs as one of infinite cost.
        temperature: above 0; less than 1 favours the best source more.

    Returns:
        Weights that sum to 1 in each interval.

    Source:
        AvgCE of Wan et al. 2024, arXiv:2401.10491, section 3.3, which names a weighted average and no formula; this is
        that of the published code.
    """
    return _softmax(np.exp(-np.where(np.isnan(costs), np.inf, costs)) / temperature)


def evidence_weights(
    costs: Float[np.ndarray, "sources intervals"], temperature: float
) -> Float[np.ndarray, "sources intervals"]:
    """Softmax of `-cost / temperature` over the sources.

    Args:
        costs: bits per byte; a source without a cost (NaN) weighs nothing, unless none has one.
        temperature: above 0; less than 1 favours the best source more.

    Returns:
        Weights that sum to 1 in each interval.
    """
    nowhere = np.isnan(costs).all(axis=0)
    known = np.where(nowhere, 0.0, np.where(np.isnan(costs), np.inf, costs))
    return _softmax((known.min(axis=0) - known) / temperature)


def keep_chosen(
    sources: Sequence[MappedStates], choice: Int[np.ndarray, " states"], n_kept: int
) -> FusedStates:
    """At each state what the chosen source says; nothing is taught where it says nothing.

    Args:
        sources: aligned and mapped.
        choice: which one, at each state.
        n_kept: tokens kept of each distribution.

    Returns:
        The fused states.
    """
    token_ids, log_probs = _stacked(sources, n_kept)
    taught = np.stack([each.is_taught for each in sources])
    states = np.arange(len(choice))
    is_taught = taught[choice, states]
    return FusedStates(
        np.where(is_taught[:, None], token_ids[choice, states], 0),
        np.where(is_taught[:, None], log_probs[choice, states], -np.inf),
        is_taught,
        np.where(is_taught, choice, UNTAUGHT),
    )


def mixed(
    sources: Sequence[MappedStates],
    weights: Float[np.ndarray, "sources states"],
    n_kept: int,
) -> FusedStates:
    """At each state the weighted mean of what the sources say, the weights of silent ones dealt out to the others.

    Args:
        sources: aligned and mapped.
        weights: of each source at each state, not negative.
        n_kept: likeliest tokens kept of the mean; a token that a source did not keep counts as 0 there, which is at
            most what that source's tail holds.

    Returns:
        The fused states.
    """
    taught = np.stack([each.is_taught for each in sources])
    share = np.where(taught, weights, 0.0)
    total = share.sum(axis=0)
    is_taught = total > 0
    share = share / np.where(is_taught, total, 1.0)
    with np.errstate(divide="ignore"):
        log_share = np.log(share)
    token_ids = np.concatenate([each.token_ids for each in sources], axis=1)
    log_probs = np.concatenate(
        [each.log_probs + log_share[n][:, None] for n, each in enumerate(sources)], axis=1
    ).astype(np.float32)
    themselves = np.arange(int(token_ids.max(initial=0)) + 1, dtype=np.int32)
    merged = map_distributions(token_ids, log_probs, themselves)
    return FusedStates(
        merged.ids[:, :n_kept],
        merged.log_probs[:, :n_kept],
        is_taught,
        np.where(is_taught, share.argmax(axis=0), UNTAUGHT),
    )


@final
class Rule(NamedTuple):
    """A fusion rule: the unit in which sources are compared, and what is made of the costs."""

    is_per_byte: bool
    """Bits per byte, which is fair to every tokenizer; else nats per token of the source's own."""
    weigh: (
        Callable[[Float[np.ndarray, "sources intervals"], float], Float[np.ndarray, "sources intervals"]]
        | None
    )
    """Weights from costs and a temperature; None keeps the source of least cost."""


RULES: Mapping[FusionRule, Rule] = {
    "min-ce": Rule(False, None),
    "avg-ce": Rule(False, reward_weights),
    "fair-min-ce": Rule(True, None),
    "fair-avg-ce": Rule(True, evidence_weights),
}


def costs_of(
    intervals: Sequence[IntervalCosts], cuts: Int[np.ndarray, " cuts"], *, is_per_byte: bool
) -> Float[np.ndarray, "sources intervals"]:
    """Cost of each source in each interval: bits per byte, or nats per token."""
    if is_per_byte:
        n_bytes = np.diff(cuts)
        return np.stack([each.nats for each in intervals]) / np.log(2) / np.where(n_bytes > 0, n_bytes, 1)
    return np.stack([each.nats / np.where(each.n_tokens > 0, each.n_tokens, 1) for each in intervals])


def _stacked(
    sources: Sequence[MappedStates], n_kept: int
) -> tuple[Int[np.ndarray, "sources states kept"], Float[np.ndarray, "sources states kept"]]:
    """All sources with the same number of kept tokens."""
    n_states = len(sources[0].is_taught)
    token_ids = np.zeros((len(sources), n_states, n_kept), dtype=np.int32)
    log_probs = np.full((len(sources), n_states, n_kept), -np.inf, dtype=np.float32)
    for n, each in enumerate(sources):
        width = min(n_kept, each.token_ids.shape[1])
        token_ids[n, :, :width] = each.token_ids[:, :width]
        log_probs[n, :, :width] = each.log_probs[:, :width]
    return token_ids, log_probs


def _softmax(values: Float[np.ndarray, "sources intervals"]) -> Float[np.ndarray, "sources intervals"]:
    powers = np.exp(values - values.max(axis=0))
    return powers / powers.sum(axis=0)

"""An ensemble of models whatever their tokenizers: probabilities averaged over the spans that all of them cut cleanly.

A *state* is "tokens 0..i have been read"; `ends[i]` says how many bytes of the text those are. Between two byte
positions at which every source has a state, each source gives the bytes in between one probability, the product over
its tokens, and those can be averaged.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from transfuse.tensors.intervals import cluster_bootstrap
from transfuse.types import Estimate


class SourceStates(NamedTuple):
    """One source's reading of a text."""

    ends: Int[np.ndarray, " states"]
    """Bytes read at each state; never falling."""
    observed_log_probs: Float[np.ndarray, " states"]
    """Natural log of the chance of token i + 1 after tokens 0..i; the last state's is not read."""


class EnsembleLoss(NamedTuple):
    """What one text cost the ensemble, and each source on the same bytes."""

    nll_nats: float
    source_nll_nats: Float[np.ndarray, " sources"]
    n_bytes: int
    """Bytes that every source predicts whole."""
    n_chunks: int
    """Spans into which the sources cut them together."""


class EnsembleEstimates(NamedTuple):
    """Bits per byte over the same bytes."""

    ensemble: Estimate
    sources: list[Estimate]


def ensemble_loss(
    sources: Sequence[SourceStates], weights: Float[np.ndarray, " sources"] | None = None
) -> EnsembleLoss:
    """Loss of one text when the sources' probabilities are averaged chunk by chunk.

    A source without a BOS token does not predict its first token, so no source is asked for the bytes before the first
    state that all have. Of states that have read the same bytes the last one counts: a token of no bytes belongs to the
    chunk that it closes.

    Args:
        sources: readings of the same text.
        weights: what each source counts, with a positive sum; None counts all alike.

    Returns:
        Nats of the ensemble and of each source over the bytes of the common chunks; 0 bytes where the text has no
        chunk. With equal tokenizers chunks are tokens; one source alone gives its own loss.

    Raises:
        ValueError: no source, readings of different lengths, ends that fall, NaN, or weights that do not fit.

    Source:
        Wan et al. 2024 (FuseLLM), arXiv:2401.10491, section 4.6 (ensemble as the weighted average of the models'
        output distributions).
        Differs: over common chunks instead of tokens. A chunk's probability is that of the source's own way to cut
        it, a lower bound of that of its bytes.
    """
    shares = _shares(len(sources), weights)
    n_bytes = {int(source.ends[-1]) for source in sources if len(source.ends)}
    if len(n_bytes) > 1:
        raise ValueError(f"expected readings of one text, got texts of {sorted(n_bytes)} bytes")
    common = _common_ends(sources)
    if len(common) < 2:
        return EnsembleLoss(0.0, np.zeros(len(sources)), 0, 0)
    chunk_log_probs = np.stack([_chunk_log_probs(source, common) for source in sources])
    with np.errstate(divide="ignore"):
        weighted = chunk_log_probs + np.log(shares)[:, None]
    return EnsembleLoss(
        nll_nats=float(-np.logaddexp.reduce(weighted, axis=0).sum()) + 0.0,
        source_nll_nats=-chunk_log_probs.sum(axis=1) + 0.0,
        n_bytes=int(common[-1] - common[0]),
        n_chunks=len(common) - 1,
    )


def ensemble_bits_per_byte(losses: Sequence[EnsembleLoss], seed: int) -> EnsembleEstimates:
    """Total bits over total bytes, of the ensemble and of each source, with 95 % intervals over texts.

    Args:
        losses: of each text, with the same sources; those without a counted byte are left out.
        seed: of the bootstrap; all estimates see the same resamples.

    Returns:
        Bits per byte; n counts texts.
    """
    counted = [loss for loss in losses if loss.n_bytes]
    sizes = np.array([loss.n_bytes for loss in counted], dtype=float)
    texts = np.arange(len(counted))
    n_sources = len(losses[0].source_nll_nats) if losses else 0

    def estimate(nats: list[float]) -> Estimate:
        return cluster_bootstrap(np.array(nats) / math.log(2), sizes, texts, seed)

    return EnsembleEstimates(
        estimate([loss.nll_nats for loss in counted]),
        [estimate([float(loss.source_nll_nats[n]) for loss in counted]) for n in range(n_sources)],
    )


def _shares(n_sources: int, weights: Float[np.ndarray, " sources"] | None) -> Float[np.ndarray, " sources"]:
    if n_sources == 0:
        raise ValueError("expected one source or more, got none")
    if weights is None:
        return np.full(n_sources, 1 / n_sources)
    if len(weights) != n_sources or np.any(weights < 0) or not 0 < weights.sum() < np.inf:
        raise ValueError(
            f"expected {n_sources} weights, none negative and not all 0, got {np.asarray(weights).tolist()}"
        )
    return weights / weights.sum()


def _common_ends(sources: Sequence[SourceStates]) -> Int[np.ndarray, " common"]:
    """Byte positions at which every source has a state, rising."""
    for number, source in enumerate(sources):
        if len(source.ends) != len(source.observed_log_probs):
            raise ValueError(
                f"source {number}: expected a log-probability for each of {len(source.ends)} states, "
                f"got {len(source.observed_log_probs)}"
            )
        if np.any(np.diff(source.ends) < 0):
            raise ValueError(f"source {number}: expected ends that never fall")
        if np.isnan(source.observed_log_probs[:-1]).any():
            raise ValueError(
                f"source {number}: expected log-probabilities of all states but the last, got NaN"
            )
    common = np.unique(sources[0].ends)
    for source in sources[1:]:
        common = np.intersect1d(common, source.ends)
    return common


def _chunk_log_probs(
    source: SourceStates, common: Int[np.ndarray, " common"]
) -> Float[np.ndarray, " chunks"]:
    """Sum of the log-probabilities of the tokens between neighbouring positions."""
    states = np.searchsorted(source.ends, common, side="right") - 1
    observed = source.observed_log_probs[: states[-1]].astype(np.float64)
    return np.add.reduceat(observed, states[:-1])

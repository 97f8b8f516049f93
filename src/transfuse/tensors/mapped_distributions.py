"""Kept distributions of one vocabulary, said in the tokens of another."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

Duplicates = Literal["add", "keep-likeliest"]
"""What becomes of source tokens with one image: their probabilities are added, or the likeliest's alone is kept."""

_NOWHERE = np.iinfo(np.int32).max


class MappedDistributions(NamedTuple):
    """For each state the likeliest target tokens, likeliest first."""

    ids: Int[np.ndarray, "states k"]
    """int32; 0 where there is no further token."""
    log_probs: Float[np.ndarray, "states k"]
    """float32, natural log; -inf where there is no further token."""
    lost_log_probs: Float[np.ndarray, " states"]
    """float32, log of the kept probability that no target token got: it belongs to the tail."""


def map_distributions(
    top_ids: Int[np.ndarray, "states k"],
    top_log_probs: Float[np.ndarray, "states k"],
    target_ids: Int[np.ndarray, " source_vocab"],
    duplicates: Duplicates = "add",
) -> MappedDistributions:
    """The same distributions over the images of their tokens.

    Args:
        top_ids: source tokens, likeliest first; where the log-prob is -inf any id.
        top_log_probs: their natural log-probs, -inf pads.
        target_ids: the image of each source token, negative where it has none.
        duplicates: `keep-likeliest` is what FuseLLM's released code does; the others' probability is lost there.

    Returns:
        As many tokens a state as were given, each target token once; of equally likely ones the lowest id first.

    Raises:
        ValueError: a source token is not in the map.
    """
    is_given = top_log_probs > -np.inf
    given_ids = np.where(is_given, top_ids, 0)
    n_known = len(target_ids)
    if given_ids.size and not 0 <= given_ids.min() <= given_ids.max() < n_known:
        raise ValueError(
            f"a distribution holds token {given_ids.max()}, the map has images of {n_known} tokens; "
            "give the map as many rows as the source model has."
        )
    images = target_ids[given_ids].astype(np.int32) if n_known else np.full(top_ids.shape, -1, np.int32)
    is_mapped = is_given & (images >= 0)
    log_probs = top_log_probs.astype(np.float32)
    is_lost = is_given & ~is_mapped

    order = np.argsort(np.where(is_mapped, images, _NOWHERE), axis=1, kind="stable")
    ids = np.take_along_axis(np.where(is_mapped, images, _NOWHERE), order, axis=1)
    sorted_log_probs = np.take_along_axis(np.where(is_mapped, log_probs, -np.inf), order, axis=1)
    is_first = np.ones(ids.shape, dtype=bool)
    is_first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = np.flatnonzero(is_first)
    merged = np.full(ids.size, -np.inf, dtype=np.float32)
    if duplicates == "add" and len(starts):
        merged[starts] = np.minimum(np.logaddexp.reduceat(sorted_log_probs.reshape(-1), starts), 0)
    elif len(starts):
        merged[starts] = sorted_log_probs.reshape(-1)[starts]
        is_dropped = np.zeros(ids.shape, dtype=bool)
        np.put_along_axis(is_dropped, order, ~is_first & (ids != _NOWHERE), axis=1)
        is_lost |= is_dropped

    merged = merged.reshape(ids.shape)
    ranks = np.argsort(-merged, axis=1, kind="stable")
    merged = np.take_along_axis(merged, ranks, axis=1)
    ids = np.where(merged > -np.inf, np.take_along_axis(ids, ranks, axis=1), 0)
    lost = np.logaddexp.reduce(np.where(is_lost, log_probs, -np.inf), axis=1, initial=-np.inf)
    return MappedDistributions(ids.astype(np.int32), merged, lost.astype(np.float32))

"""What is kept of full distributions: the likeliest tokens, or draws, and the share of all others."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BLOCK = 64
"""Neighbouring tokens that are looked at together."""


class KeptTokens(NamedTuple):
    """A distribution at each position, most of it left out."""

    observed_log_probs: Float[Tensor, " pos"]
    """Of the tokens that came, at temperature 1."""
    ids: Int[Tensor, "pos k"]
    """The likeliest first."""
    log_probs: Float[Tensor, "pos k"]
    tail_log_probs: Float[Tensor, " pos"]
    """Of all tokens that are not kept, together."""


def top_tokens(
    logits: Float[Tensor, "pos vocab"],
    observed_ids: Int[Tensor, " pos"],
    k: int,
    *,
    n_known: int,
    temperature: float = 1.0,
    may_overwrite: bool = False,
) -> KeptTokens:
    """The `k` likeliest tokens of each position.

    Args:
        logits: in any precision; the softmax, over all of them, is taken in float32.
        observed_ids: what came.
        k: from 0, at most `n_known`.
        n_known: only ids below it are kept; the share of others is part of the tail.
        temperature: divides the logits for kept tokens and tail.
        may_overwrite: whether float32 logits may be used up, which saves a copy of them.

    Returns:
        Natural logs. The tail is summed from its own tokens, not from what the kept ones lack of 1, which would
        round away.
    """
    values = _own(logits, may_overwrite)
    highest = values.amax(dim=1, keepdim=True)
    ids = _likeliest(values[:, :n_known], k) if k else observed_ids.new_empty(len(values), 0)
    values.sub_(highest)
    observed, kept = values.gather(1, observed_ids[:, None])[:, 0], values.gather(1, ids) / temperature
    plain_total = values.exp().sum(dim=1) if temperature != 1 else None
    others = values.div_(temperature).exp_().scatter_(1, ids, 0).sum(dim=1)
    total = others + kept.exp().sum(dim=1)
    return KeptTokens(
        observed - (total if plain_total is None else plain_total).log(),
        ids,
        kept - total.log()[:, None],
        others.log() - total.log(),
    )


def sampled_tokens(
    logits: Float[Tensor, "pos vocab"],
    observed_ids: Int[Tensor, " pos"],
    uniforms: Float[Tensor, "pos k"],
    *,
    n_known: int,
    temperature: float = 1.0,
    may_overwrite: bool = False,
) -> KeptTokens:
    """Tokens drawn from each position's distribution, with replacement: an unbiased estimate of all of it.

    Args:
        logits: in any precision; the softmax is taken in float32, its cumulated sum in float64.
        observed_ids: what came.
        uniforms: one for each draw, float64, in [0, 1).
        n_known: only ids below it are drawn, from what the distribution is among them.
        temperature: divides the logits that are drawn from.
        may_overwrite: whether float32 logits may be used up, which saves a copy of them.

    Returns:
        Each drawn token once, the most often drawn first, with log(count / k); unused places have id 0 and minus
        infinity. Nothing is left for a tail.

    Source:
        Anshumann et al. 2025, arXiv:2503.16870 (random sampling distillation).
        Differs: the proposal is the distribution itself, so all weights are equal.
    """
    values = _own(logits, may_overwrite)
    values.sub_(values.amax(dim=1, keepdim=True))
    observed = values.gather(1, observed_ids[:, None])[:, 0]
    if temperature == 1:
        shares = values.exp_()
        total = shares.sum(dim=1)
    else:
        total = values.exp().sum(dim=1)
        shares = values.div_(temperature).exp_()
    observed_log_probs = observed - total.log()
    shares = shares[:, :n_known]
    drawn = _drawn(shares, uniforms)
    ids, counts = _counted(drawn)
    log_shares = (counts / drawn.shape[1]).log()
    return KeptTokens(observed_log_probs, ids, log_shares, torch.full_like(observed_log_probs, -torch.inf))


def _own(logits: Float[Tensor, "pos vocab"], may_overwrite: bool) -> Float[Tensor, "pos vocab"]:
    """In float32, and free to be changed."""
    values = logits.float()
    return values.clone() if values is logits and not may_overwrite else values


def _likeliest(values: Float[Tensor, "pos vocab"], k: int) -> Int[Tensor, "pos k"]:
    """Ids of the k greatest values. Every one of them lies in one of the k blocks of greatest maximum."""
    n_blocks = values.shape[1] // _BLOCK
    if n_blocks < 4 * k:
        return values.topk(k, dim=1).indices
    blocks = (
        values[:, : n_blocks * _BLOCK].unflatten(1, (n_blocks, _BLOCK)).amax(dim=2).topk(k, dim=1).indices
    )
    within = torch.arange(_BLOCK, device=values.device)
    rest = torch.arange(n_blocks * _BLOCK, values.shape[1], device=values.device)
    columns = torch.cat(
        [(blocks[:, :, None] * _BLOCK + within).flatten(1), rest.expand(len(values), -1)], dim=1
    )
    places = values.gather(1, columns).topk(k, dim=1).indices
    return columns.gather(1, places)


def _drawn(shares: Float[Tensor, "pos vocab"], uniforms: Float[Tensor, "pos k"]) -> Int[Tensor, "pos k"]:
    """The token under each uniform number: first its block, then its place within."""
    n = shares.shape[1]
    padded = torch.nn.functional.pad(shares, (0, -n % _BLOCK)) if n % _BLOCK else shares
    wide = padded.unflatten(1, (-1, _BLOCK))
    bounds = wide.sum(dim=2).to(uniforms.dtype).cumsum(dim=1)
    total = bounds[:, -1:]
    # Below the total even after rounding, so that a block with some share is found.
    targets = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    blocks = torch.searchsorted(bounds, targets, right=True)
    targets = targets - torch.where(blocks > 0, bounds.gather(1, (blocks - 1).clamp(min=0)), 0.0)
    inner = wide[torch.arange(len(shares), device=shares.device)[:, None], blocks]
    places = (inner.cumsum(dim=2, dtype=uniforms.dtype) <= targets[:, :, None]).sum(dim=2)
    last = _BLOCK - 1 - (inner > 0).flip(2).int().argmax(dim=2)
    return blocks * _BLOCK + torch.minimum(places, last)


def _counted(drawn: Int[Tensor, "pos k"]) -> tuple[Int[Tensor, "pos k"], Int[Tensor, "pos k"]]:
    """Each row's different ids, the most frequent first (of equal ones the lowest), and how often they stand there."""
    ordered = drawn.sort(dim=1).values
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    run = is_first.cumsum(dim=1) - 1
    counts = torch.zeros_like(ordered).scatter_add_(1, run, torch.ones_like(ordered))
    ids = torch.zeros_like(ordered).scatter_(1, run, ordered)
    order = counts.sort(dim=1, descending=True, stable=True).indices
    return ids.gather(1, order), counts.gather(1, order)

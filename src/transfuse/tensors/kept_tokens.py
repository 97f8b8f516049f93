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
) -> KeptTokens:
    """The `k` likeliest tokens of each position.

    Args:
        logits: in any precision; the softmax, over all of them, is taken in float32.
        observed_ids: what came.
        k: from 0, at most `n_known`.
        n_known: only ids below it are kept; the share of others is part of the tail.
        temperature: divides the logits for kept tokens and tail.

    Returns:
        Natural logs. The tail is summed from its own tokens, not from what the kept ones lack of 1, which would
        round away.
    """
    values = logits.float()
    highest = values.amax(dim=1, keepdim=True)
    observed = (values.gather(1, observed_ids[:, None]) - highest)[:, 0]
    if k == 0:
        total = (values - highest).exp_().sum(dim=1)
        nothing = values.new_empty(len(values), 0)
        return KeptTokens(observed - total.log(), nothing.long(), nothing, torch.zeros_like(total))
    ids = _likeliest(values[:, :n_known], k)
    kept = (values.gather(1, ids) - highest) / temperature
    others = (values - highest).div_(temperature).exp_().scatter_(1, ids, 0).sum(dim=1)
    total = others + kept.exp().sum(dim=1)
    plain_total = total if temperature == 1 else (values - highest).exp_().sum(dim=1)
    return KeptTokens(
        observed - plain_total.log(),
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
) -> KeptTokens:
    """Tokens drawn from each position's distribution, with replacement: an unbiased estimate of all of it.

    Args:
        logits: in any precision; the softmax is taken in float32, sums over it in float64.
        observed_ids: what came.
        uniforms: one for each draw, float64, in [0, 1).
        n_known: only ids below it are drawn, from what the distribution is among them.
        temperature: divides the logits that are drawn from.

    Returns:
        Each drawn token once, the most often drawn first, with log(count / k); unused places have id 0 and minus
        infinity. Nothing is left for a tail.

    Source:
        Anshumann et al. 2025, arXiv:2503.16870 (random sampling distillation).
        Differs: the proposal is the distribution itself, so all weights are equal.
    """
    values = logits.float()
    highest = values.amax(dim=1, keepdim=True)
    shares = (values - highest).exp_()
    observed_log_probs = (values.gather(1, observed_ids[:, None]) - highest)[:, 0] - shares.sum(dim=1).log()
    if temperature != 1 or n_known < values.shape[1]:
        known = values[:, :n_known]
        shares = ((known - known.amax(dim=1, keepdim=True)) / temperature).exp_()
    drawn = _drawn(shares, uniforms)
    ids, counts = _counted(drawn)
    log_shares = (counts / drawn.shape[1]).log()
    return KeptTokens(observed_log_probs, ids, log_shares, torch.full_like(observed_log_probs, -torch.inf))


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
    wide = torch.nn.functional.pad(shares, (0, -n % _BLOCK)).unflatten(1, (-1, _BLOCK))
    bounds = wide.sum(dim=2, dtype=uniforms.dtype).cumsum(dim=1)
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

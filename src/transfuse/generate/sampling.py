"""Sampling in which a row's tokens depend on its own request and logits alone, whatever stands beside it."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from transfuse.generate.protocol import Request
from transfuse.generate.recorded import request_key

N_LIKELIEST = 512
"""Tokens among which the smallest kept one is looked for first; sorting the whole vocabulary is slow."""


@final
class RowSampler(LogitsProcessor):
    """Picks the next token of each sampled row, and leaves greedy rows as they are.

    A pick is handed on as the only finite score of its row, so that greedy decoding takes it.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        """One random stream a row.

        Args:
            requests: one a row; those of temperature 0 are greedy.
        """
        self._rows = [row for row, each in enumerate(requests) if each.temperature > 0]
        sampled = [requests[row] for row in self._rows]
        self._temperatures = torch.tensor([each.temperature for each in sampled])
        self._top_ps = torch.tensor([each.top_p for each in sampled])
        # From the whole request: with the seed alone, all requests of a run would draw the same numbers.
        self._streams = [torch.Generator().manual_seed(int(request_key(each)[:15], 16)) for each in sampled]

    @property
    def is_needed(self) -> bool:
        """Whether any row is sampled."""
        return bool(self._rows)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - LongTensor is no class one can make
        self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        device = scores.device
        uniform = torch.cat([torch.rand(1, generator=stream) for stream in self._streams]).to(device)
        picked = sample_tokens(
            scores[self._rows], self._temperatures.to(device), self._top_ps.to(device), uniform
        )
        decided = torch.full_like(scores[self._rows], -torch.inf).scatter_(1, picked[:, None], 0.0)
        scores = scores.clone()
        scores[self._rows] = decided
        return scores


def sample_tokens(
    logits: Float[Tensor, "row vocab"],
    temperatures: Float[Tensor, " row"],
    top_ps: Float[Tensor, " row"],
    uniform: Float[Tensor, " row"],
) -> Int[Tensor, " row"]:
    """One token a row, from the likeliest tokens that together hold `top_p` of the probability.

    Args:
        logits: of the next token.
        temperatures: above 0.
        top_ps: above 0; 1 keeps every token. Tokens as likely as the last one kept are kept as well.
        uniform: from [0, 1); where it falls in the kept tokens' probability, laid end to end in the order of
            their ids, decides. (In the order of likelihood, rounding could swap two tokens.)

    Returns:
        Token ids.
    """
    logits = logits.float()
    scaled = (logits - logits.amax(1, keepdim=True)) / temperatures[:, None]
    probs = scaled.softmax(1)
    kept = torch.where(probs >= _least_kept(probs, top_ps)[:, None], probs, 0.0)
    ends = kept.cumsum(1)
    total = ends[:, -1:]
    # Rounding must not reach the end, behind which nothing is.
    aim = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(ends, aim, right=True).squeeze(1)


def _least_kept(probs: Float[Tensor, "row vocab"], top_ps: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """The smallest probability that is kept; 0 where all are."""
    n_looked_at = min(N_LIKELIEST, probs.shape[1])
    least = torch.zeros_like(top_ps)
    is_open = top_ps < 1
    while bool(is_open.any()):
        ordered = probs[is_open].topk(n_looked_at, dim=1).values
        ends = ordered.cumsum(1)
        n_before = (ends < top_ps[is_open][:, None]).sum(1)
        is_found = (n_before < n_looked_at) | (n_looked_at == probs.shape[1])
        found = ordered.gather(1, n_before.clamp(max=n_looked_at - 1)[:, None]).squeeze(1)
        least[is_open] = torch.where(is_found, found, least[is_open])
        is_open[is_open.clone()] = ~is_found
        n_looked_at = probs.shape[1]
    return least

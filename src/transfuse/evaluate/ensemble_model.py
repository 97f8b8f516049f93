"""Models of one vocabulary as one model: the mean of their next-token probabilities."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from transfuse.errors import ModelError


class EnsembleOutput(NamedTuple):
    """What a causal language model's `forward` gives, as far as it is read."""

    logits: Float[Tensor, "batch pos vocab"]
    """Natural log of the averaged probabilities, in float32."""
    past_key_values: tuple[Any, ...] | None = None
    """Of each member."""


@final
class EnsembleModel(nn.Module):
    """A causal language model whose logits are the log of its members' averaged probabilities.

    Asked by `forward` and by `generate` (greedily; scores may be changed by processors), like a model of transformers.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        """Take models of one vocabulary together.

        Args:
            members: at least one, in evaluation mode, perhaps with adapters, all on one device. Where one has more
                logits than another, to fill up its matrix, those that all have count.

        Raises:
            ModelError: there is none.
        """
        if not members:
            raise ModelError("ensemble: expected at least one model, got none.")
        super().__init__()
        self.members = nn.ModuleList(members)
        self.config: Any = min((each.config for each in members), key=_context)
        """Of the member with the shortest context."""
        self.generation_config: Any = members[0].generation_config
        self.device: torch.device = next(self.parameters()).device
        self.eval()

    def get_output_embeddings(self) -> nn.Module:
        """That of the member with the most logits."""
        heads: list[Any] = [each.get_output_embeddings() for each in self._members]
        return max(heads, key=lambda head: head.weight.shape[0])

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "batch pos"] | None = None,
        past_key_values: tuple[Any, ...] | None = None,
        use_cache: bool = False,
        logits_to_keep: int | Tensor = 0,
        **more: Any,
    ) -> EnsembleOutput:
        """The log of the averaged probabilities; arguments as of any causal language model of transformers."""
        given = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "use_cache": use_cache,
            **more,
        }
        pasts = past_key_values or (None,) * len(self.members)
        outputs = [
            member(input_ids=input_ids, past_key_values=past, logits_to_keep=logits_to_keep, **given)
            for member, past in zip(self._members, pasts, strict=True)
        ]
        logits = averaged([each.logits for each in outputs])
        return EnsembleOutput(logits, tuple(each.past_key_values for each in outputs) if use_cache else None)

    @torch.no_grad()
    def generate(
        self,
        *,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"],
        max_new_tokens: int,
        eos_token_id: int | Sequence[int],
        pad_token_id: int,
        logits_processor: Sequence[Callable[[Tensor, Tensor], Tensor]] = (),
        stopping_criteria: Sequence[Callable[..., Tensor]] = (),
        **without_meaning: Any,
    ) -> Int[Tensor, "batch longer"]:
        """Greedy continuations of prompts that are padded on the left.

        Args:
            input_ids: the prompts.
            attention_mask: 0 on padding.
            max_new_tokens: longest continuation.
            eos_token_id: tokens that end a row.
            pad_token_id: fills up rows that have ended.
            logits_processor: change the scores of the next token.
            stopping_criteria: called with tokens and scores; true for rows that end.
            **without_meaning: settings of sampling and beams, which greedy decoding has no use for.

        Returns:
            Prompts with their continuations.
        """
        ends = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id))
        ends = ends.to(input_ids.device)
        tokens, given, past = input_ids, input_ids, None
        is_open = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for _ in range(max_new_tokens):
            positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -given.shape[1] :]
            output = self(
                given,
                attention_mask=attention_mask,
                position_ids=positions,
                past_key_values=past,
                use_cache=True,
                logits_to_keep=1,
            )
            past, scores = output.past_key_values, output.logits[:, -1]
            for process in logits_processor:
                scores = process(tokens, scores)
            chosen = torch.where(is_open, scores.argmax(dim=-1), pad_token_id)
            tokens = torch.cat([tokens, chosen[:, None]], dim=1)
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(tokens), 1)], dim=1)
            given = chosen[:, None]
            is_open &= ~torch.isin(chosen, ends)
            for stops in stopping_criteria:
                is_open &= ~stops(tokens, scores)
            if not bool(is_open.any()):
                break
        return tokens

    @property
    def _members(self) -> list[Any]:
        return list(self.members)


def averaged(logits: Sequence[Float[Tensor, "batch pos _"]]) -> Float[Tensor, "batch pos vocab"]:
    """The natural log of the mean of several models' next-token probabilities.

    Args:
        logits: of each model; those beyond the smallest number of tokens are left out before the softmax.

    Returns:
        Log-probabilities in float32.
    """
    n_vocab = min(each.shape[-1] for each in logits)
    log_probs = torch.stack([each[..., :n_vocab].float().log_softmax(dim=-1) for each in logits])
    return log_probs.logsumexp(dim=0) - math.log(len(logits))


def _context(config: Any) -> float:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return float(limit) if isinstance(limit, int) and limit > 0 else math.inf

"""Greedy replies of a model on this machine, in batches of like length."""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from transfuse.generate.protocol import OnReplies, Reply, Request
from transfuse.io.chat import PromptFormat

MAX_BATCH_TOKENS = 8192
"""Rows x longest prompt (and reply) of one batch."""

MAX_BATCH_ROWS = 64


@final
class LocalGenerator:
    """A causal language model of transformers, perhaps with an adapter, that answers in its own format."""

    def __init__(self, model: nn.Module, prompts: PromptFormat, compute_dtype: torch.dtype) -> None:
        self._model, self._prompts, self._compute_dtype = model, prompts, compute_dtype
        self._device = next(model.parameters()).device
        self._ends_line = _newline_tokens(prompts.tokenizer, _n_logits(model)).to(self._device)

    def generate(self, requests: Sequence[Request], on_replies: OnReplies | None = None) -> list[Reply]:
        """One greedy reply for each request; a prompt that leaves no room for a reply carries an error."""
        prompts = [self._prompts.encode_question(each.question, context=each.context) for each in requests]
        limit = context_tokens(self._model)
        replies: dict[int, Reply] = {}
        fitting: list[int] = []
        for index, prompt in enumerate(prompts):
            if limit is not None and len(prompt) + requests[index].max_new_tokens > limit:
                replies[index] = Reply(
                    "", error=f"prompt of {len(prompt)} tokens leaves no room in a context of {limit}"
                )
            else:
                fitting.append(index)
        for batch in _batches(fitting, prompts, requests):
            answers = self._answers([prompts[i] for i in batch], requests[batch[0]].max_new_tokens)
            replies.update(zip(batch, answers, strict=True))
            if on_replies:
                on_replies(len(replies), len(requests))
        return [replies[index] for index in range(len(requests))]

    @torch.no_grad()
    def _answers(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Reply]:
        length = max(map(len, prompts))
        input_ids = torch.full((len(prompts), length), self._prompts.pad_id)
        attention_mask = torch.zeros(len(prompts), length, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            input_ids[row, length - len(prompt) :] = torch.tensor(prompt)
            attention_mask[row, length - len(prompt) :] = 1
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._compute_dtype == torch.bfloat16):
            output: Tensor = self._model.generate(  # type: ignore[operator]
                input_ids=input_ids.to(self._device),
                attention_mask=attention_mask.to(self._device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                # A model's own sampling settings would only be warned about.
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                num_beams=1,
                eos_token_id=list(self._prompts.stop_ids),
                pad_token_id=self._prompts.pad_id,
                stopping_criteria=StoppingCriteriaList([_AtNewline(self._ends_line)]),
            )
        return [self._reply(row[length:].tolist()) for row in output]

    def _reply(self, token_ids: Sequence[int]) -> Reply:
        ends = [
            i
            for i, token in enumerate(token_ids)
            if token in self._prompts.stop_ids or self._ends_line[token]
        ]
        kept = token_ids[: ends[0] + 1] if ends else token_ids
        text = str(self._prompts.tokenizer.decode(list(kept), skip_special_tokens=True))
        return Reply(text.split("\n")[0].strip(), is_cut=not ends)


@final
class _AtNewline(StoppingCriteria):
    """Ends a row at the first token that holds a line break."""

    def __init__(self, ends_line: Bool[Tensor, " vocab"]) -> None:
        self._ends_line = ends_line

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - BoolTensor is no class one can make
        self, input_ids: Int[Tensor, "batch pos"], scores: Any, **kwargs: Any
    ) -> Bool[Tensor, " batch"]:
        return self._ends_line[input_ids[:, -1]]


def _batches(
    indices: Sequence[int], prompts: Sequence[Sequence[int]], requests: Sequence[Request]
) -> list[list[int]]:
    """Indices by reply limit and prompt length, cut where the limit changes or a batch would grow too large."""
    batches: list[list[int]] = []
    for index in sorted(indices, key=lambda i: (requests[i].max_new_tokens, len(prompts[i]))):
        width = len(prompts[index]) + requests[index].max_new_tokens
        if (
            not batches
            or requests[batches[-1][0]].max_new_tokens != requests[index].max_new_tokens
            or len(batches[-1]) >= MAX_BATCH_ROWS
            or (len(batches[-1]) + 1) * width > MAX_BATCH_TOKENS
        ):
            batches.append([])
        batches[-1].append(index)
    return batches


def _newline_tokens(tokenizer: PreTrainedTokenizerBase, n_logits: int) -> Bool[Tensor, " vocab"]:
    """Which token ids hold a line break."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    ends = torch.zeros(max(n_logits, len(texts)), dtype=torch.bool)
    ends[: len(texts)] = torch.tensor(["\n" in text for text in texts])
    return ends


def _n_logits(model: nn.Module) -> int:
    return model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]


def context_tokens(model: nn.Module) -> int | None:
    """The model's context length, where its configuration names one."""
    config: Any = model.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None

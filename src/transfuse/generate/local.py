"""Replies of a model on this machine, in batches of like length."""

import threading
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import (
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from transfuse.errors import GenerationError
from transfuse.generate.protocol import OnReply, Reply, Request
from transfuse.generate.reply_opening import JsonEnd, reply_opening
from transfuse.generate.sampling import RowSampler
from transfuse.io.chat import PromptFormat

MAX_BATCH_TOKENS = 8192
"""Rows x longest prompt (and reply) of one batch."""

MAX_BATCH_ROWS = 64


@final
class LocalGenerator:
    """A causal language model of transformers, perhaps with an adapter, that answers in its own format."""

    def __init__(
        self, model: nn.Module, prompts: PromptFormat, compute_dtype: torch.dtype, *, identity: str = "local"
    ) -> None:
        self._model, self._prompts, self._compute_dtype = model, prompts, compute_dtype
        self._device = next(model.parameters()).device
        self._ends_line = _newline_tokens(prompts.tokenizer, _n_logits(model)).to(self._device)
        # A base model ends its answers with a line break, which a reply of many lines goes on after.
        self._end_ids = [token for token in prompts.stop_ids if not self._ends_line[token]]
        self._identity = identity
        self._stopped = threading.Event()

    @property
    def identity(self) -> str:
        """What the caller says of the model."""
        return self._identity

    def stop(self) -> None:
        """End the `generate` at work in another thread at its next token; it raises GenerationError."""
        self._stopped.set()

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """One reply for each request; a prompt that leaves no room for a reply carries an error.

        Args:
            requests: greedy ones and sampled ones may stand side by side; none changes another's reply.
            on_reply: called with index and reply, batch by batch.

        Returns:
            The replies, in order.

        Raises:
            GenerationError: `stop` was called meanwhile.
        """
        self._stopped.clear()
        prompts = [self._prompt(each) for each in requests]
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
        _tell(replies, on_reply)
        for batch in _batches(fitting, prompts, requests):
            answers = self._answers([prompts[i] for i in batch], [requests[i] for i in batch])
            arrived = dict(zip(batch, answers, strict=True))
            replies |= arrived
            _tell(arrived, on_reply)
        return [replies[index] for index in range(len(requests))]

    def _prompt(self, request: Request) -> list[int]:
        """The prompt, and what the reply is to begin with."""
        if request.messages:
            prompt = self._prompts.encode_messages([turn._asdict() for turn in request.messages])
        else:
            prompt = self._prompts.encode_question(
                request.question, context=request.context, system=request.system
            )
        return prompt + self._piece_ids(_opening(request))

    def _piece_ids(self, text: str) -> list[int]:
        return list(self._prompts.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    @torch.no_grad()
    def _answers(self, prompts: Sequence[Sequence[int]], requests: Sequence[Request]) -> list[Reply]:
        length = max(map(len, prompts))
        input_ids = torch.full((len(prompts), length), self._prompts.pad_id)
        attention_mask = torch.zeros(len(prompts), length, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            input_ids[row, length - len(prompt) :] = torch.tensor(prompt)
            attention_mask[row, length - len(prompt) :] = 1
        is_one_line = torch.tensor([each.is_one_line for each in requests], device=self._device)
        sampler = RowSampler(requests)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._compute_dtype == torch.bfloat16):
            output: Tensor = self._model.generate(  # type: ignore[operator]
                input_ids=input_ids.to(self._device),
                attention_mask=attention_mask.to(self._device),
                max_new_tokens=requests[0].max_new_tokens,
                do_sample=False,
                # A model's own sampling settings would only be warned about.
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                num_beams=1,
                eos_token_id=self._end_ids,
                pad_token_id=self._prompts.pad_id,
                logits_processor=LogitsProcessorList([sampler] if sampler.is_needed else []),
                stopping_criteria=StoppingCriteriaList(
                    [
                        _AtNewline(self._ends_line, is_one_line),
                        _AtJsonEnd(self._prompts.tokenizer, requests),
                        _OnRequest(self._stopped),
                    ]
                ),
            )
        if self._stopped.is_set():
            raise GenerationError("the model was stopped before its replies were complete; run again.")
        return [
            self._reply(row[length:].tolist(), each, len(prompt))
            for row, each, prompt in zip(output, requests, prompts, strict=True)
        ]

    def _reply(self, token_ids: Sequence[int], request: Request, n_prompt_tokens: int) -> Reply:
        tokenizer, opening = self._prompts.tokenizer, _opening(request)
        end = JsonEnd(opening) if request.schema is not None else None
        n_kept, is_ended = len(token_ids), False
        for place, token in enumerate(token_ids):
            is_ended = (
                token in self._end_ids
                or bool(request.is_one_line and self._ends_line[token])
                or (end is not None and end.read(_piece(tokenizer, token)))
            )
            if is_ended:
                n_kept = place + 1
                break
        text = opening + str(tokenizer.decode(list(token_ids[:n_kept]), skip_special_tokens=True))
        text = text.split("\n")[0] if request.is_one_line else text
        return Reply(
            text.strip(), is_cut=not is_ended, n_prompt_tokens=n_prompt_tokens, n_reply_tokens=n_kept
        )


def _opening(request: Request) -> str:
    return "" if request.schema is None else reply_opening(request.schema)


def _piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token's text; half a character comes as a sign that JSON gives no meaning to."""
    return str(tokenizer.decode([token], skip_special_tokens=True))


@final
class _AtNewline(StoppingCriteria):
    """Ends a one-line row at the first token that holds a line break."""

    def __init__(self, ends_line: Bool[Tensor, " vocab"], is_one_line: Bool[Tensor, " batch"]) -> None:
        self._ends_line, self._is_one_line = ends_line, is_one_line

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - BoolTensor is no class one can make
        self, input_ids: Int[Tensor, "batch pos"], scores: Any, **kwargs: Any
    ) -> Bool[Tensor, " batch"]:
        return self._ends_line[input_ids[:, -1]] & self._is_one_line


@final
class _AtJsonEnd(StoppingCriteria):
    """Ends a row whose request has a schema once its JSON is closed: what follows is never read."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request]) -> None:
        self._tokenizer = tokenizer
        self._ends = {
            row: JsonEnd(_opening(each)) for row, each in enumerate(requests) if each.schema is not None
        }

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - BoolTensor is no class one can make
        self, input_ids: Int[Tensor, "batch pos"], scores: Any, **kwargs: Any
    ) -> Bool[Tensor, " batch"]:
        closed = torch.zeros(len(input_ids), dtype=torch.bool)
        for row, end in self._ends.items():
            closed[row] = end.read(_piece(self._tokenizer, int(input_ids[row, -1])))
        return closed.to(input_ids.device)


@final
class _OnRequest(StoppingCriteria):
    """Ends every row once somebody says so."""

    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - BoolTensor is no class one can make
        self, input_ids: Int[Tensor, "batch pos"], scores: Any, **kwargs: Any
    ) -> Bool[Tensor, " batch"]:
        return torch.full((len(input_ids),), self._stopped.is_set(), device=input_ids.device)


def _tell(replies: dict[int, Reply], on_reply: OnReply | None) -> None:
    if on_reply:
        for index, reply in replies.items():
            on_reply(index, reply)


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

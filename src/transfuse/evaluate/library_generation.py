"""Answers by transformers' own generation loop, for settings that plain greedy search does not know."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from transfuse.errors import DataError
from transfuse.evaluate.greedy import GreedyRequest, OnAnswers, StopStrings
from transfuse.evaluate.likelihoods import BatchLimits
from transfuse.evaluate.scoring_model import ScoringModel

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "bad_words_ids": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "sequence_bias": (None,),
    "guidance_scale": (None, 1.0),
    "exponential_decay_length_penalty": (None,),
    "watermarking_config": (None,),
}
"""Settings that change greedy answers, and with which values they do not."""

_IGNORED = frozenset({"do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p"})
"""Settings that mean nothing where nothing is drawn."""


def why_not_greedy(model: nn.Module, settings: Mapping[str, Any]) -> str:
    """Why an answer cannot come from plain greedy search with a repetition penalty; empty where it can.

    Args:
        model: whose own generation settings count too.
        settings: of the request.

    Returns:
        A clause.
    """
    if settings.get("do_sample"):
        return "the task draws its answers"
    own = {**_model_settings(model), **{key: value for key, value in settings.items() if key not in _IGNORED}}
    unusual = sorted(key for key, value in own.items() if value not in _NEUTRAL.get(key, ()))
    return f"it is asked for {', '.join(unusual)}" if unusual else ""


def _model_settings(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "generation_config", None)
    return {key: getattr(config, key, None) for key in _NEUTRAL}


def continue_by_library(
    engine: ScoringModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Mapping[int, GreedyRequest],
    settings: Mapping[str, Any],
    limits: BatchLimits,
    on_answers: OnAnswers,
) -> None:
    """Answer requests of equal settings.

    Args:
        engine: its model has a `generate`.
        tokenizer: decodes answers to look for stop strings.
        requests: by number.
        settings: passed to `generate`.
        limits: of one batch.
        on_answers: called batch by batch with the new tokens, by number.

    Raises:
        DataError: the model has no `generate`.
    """
    model: Any = engine.model
    if not hasattr(model, "generate"):
        raise DataError(
            f"generation_kwargs: {dict(settings)}: {type(model).__name__} answers greedily only; "
            "set do_sample: false, and leave the other settings out."
        )
    extra = dict(settings)
    if not extra.get("do_sample"):
        extra = {key: value for key, value in extra.items() if key not in _IGNORED} | {"do_sample": False}
    pending = sorted(requests, key=lambda n: (requests[n].max_new_tokens, -len(requests[n].prompt_ids)))
    while pending:
        first = requests[pending[0]]
        width = len(first.prompt_ids) + first.max_new_tokens
        size = max(1, min(limits.max_rows, limits.max_tokens // width))
        same = [n for n in pending if requests[n].max_new_tokens == first.max_new_tokens]
        batch, rest = same[:size], set(same[:size])
        pending = [n for n in pending if n not in rest]
        on_answers(_batch(engine, tokenizer, [requests[n] for n in batch], batch, extra))


@torch.no_grad()
def _batch(
    engine: ScoringModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[GreedyRequest],
    numbers: Sequence[int],
    settings: Mapping[str, Any],
) -> dict[int, list[int]]:
    length = max(len(each.prompt_ids) for each in requests)
    pad_id: Any = tokenizer.pad_token_id
    input_ids = torch.full((len(requests), length), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for n, each in enumerate(requests):
        input_ids[n, length - len(each.prompt_ids) :] = torch.tensor(each.prompt_ids)
        attention_mask[n, length - len(each.prompt_ids) :] = 1
    ends = _AtStop(length, [StopStrings(tokenizer, each.stop) for each in requests])
    model: Any = engine.model
    with engine.autocast():
        output: Tensor = model.generate(
            input_ids=input_ids.to(engine.device),
            attention_mask=attention_mask.to(engine.device),
            max_new_tokens=requests[0].max_new_tokens,
            stopping_criteria=StoppingCriteriaList([ends]),
            pad_token_id=pad_id,
            **settings,
        )
    return {
        n: row[length : ends.end_of(place)].tolist()
        for place, (n, row) in enumerate(zip(numbers, output, strict=True))
    }


@final
class _AtStop(StoppingCriteria):
    """Ends a row at its stop string."""

    def __init__(self, n_prompt: int, stops: Sequence[StopStrings]) -> None:
        self._n_prompt, self._stops = n_prompt, stops
        self._ends: dict[int, int] = {}

    def end_of(self, row: int) -> int | None:
        """Where a row's answer ends; None at its last token."""
        return self._ends.get(row)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - BoolTensor is no class one can make
        self, input_ids: Int[Tensor, "batch pos"], scores: Any, **kwargs: Any
    ) -> Bool[Tensor, " batch"]:
        for row, stop in enumerate(self._stops):
            if row not in self._ends and stop.is_met(input_ids[row, self._n_prompt :].tolist()):
                self._ends[row] = input_ids.shape[1]
        met = [row in self._ends for row in range(len(input_ids))]
        return torch.tensor(met, device=input_ids.device)

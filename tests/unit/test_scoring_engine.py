"""Shortcuts of the scoring engine against plain passes, and what they save; models that do not bear them."""

import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tiny_families import random_model, tiny_config
from transfuse.errors import DataError, MissingExtraError
from transfuse.evaluate import harness_model
from transfuse.evaluate.greedy import Greedy, GreedyRequest, StopStrings, generate_greedily
from transfuse.evaluate.likelihoods import BatchLimits, Continuation, Likelihood, log_likelihoods
from transfuse.evaluate.scoring_model import ScoringModel
from transfuse.evaluate.tried_model import TriedModel

MODEL = random_model(tiny_config("llama", max_position_embeddings=512))
SHARED = [3 + n % 40 for n in range(150)]


@torch.no_grad()
def plainly(model: nn.Module, request: Continuation) -> Likelihood:
    log_probs = model(torch.tensor([request.input_ids])).logits[0, -len(request.target_ids) :].log_softmax(-1)
    own = log_probs[range(len(request.target_ids)), request.target_ids]
    return Likelihood(float(own.sum()), log_probs.argmax(-1).tolist() == request.target_ids)


def continuation(context: list[int], own: list[int]) -> Continuation:
    return Continuation([*context, *own][:-1], own)


def assert_plain(found: list[Likelihood], requests: list[Continuation], model: nn.Module = MODEL) -> None:
    expected = [plainly(model, request) for request in requests]
    assert [each.log_prob for each in found] == pytest.approx([each.log_prob for each in expected], abs=1e-4)
    assert [each.is_greedy for each in found] == [each.is_greedy for each in expected]


TOKENS = st.lists(st.integers(3, 9), min_size=1, max_size=6)


@given(
    asked=st.lists(st.tuples(st.booleans(), TOKENS, TOKENS), min_size=1, max_size=12),
    limits=st.builds(BatchLimits, st.integers(1, 5), st.integers(1, 300)),
)
@settings(deadline=None, max_examples=8)
def test_any_requests_are_scored_as_one_by_one(asked, limits):
    requests = [continuation((SHARED if is_long else []) + context, own) for is_long, context, own in asked]
    heard: dict[int, Likelihood] = {}
    found = log_likelihoods(TriedModel(ScoringModel(MODEL, torch.float32)), requests, limits, heard.update)
    assert_plain(found, requests)
    assert [heard[n] for n in range(len(requests))] == found


def n_tokens_read(tried: TriedModel, requests: list[Continuation]) -> int:
    tried.splits_head([3])
    read = 0

    def count(module: nn.Module, arguments: Any, given: dict[str, Any]) -> None:
        nonlocal read
        read += given["input_ids"].numel()

    log_likelihoods(tried, requests)  # trials are over afterwards
    with MODEL.model.register_forward_pre_hook(count, with_kwargs=True):
        found = log_likelihoods(tried, requests)
    assert_plain(found, requests)
    return read


def test_shared_beginnings_contexts_and_inputs_are_read_once():
    tried = TriedModel(ScoringModel(MODEL, torch.float32))
    letters = [
        continuation([*SHARED, 5, number], [letter]) for number in range(6) for letter in range(10, 14)
    ]
    # 151 shared tokens once; six questions of one token that differs
    assert n_tokens_read(tried, letters) == 151 + 6 * 1
    endings = [continuation(list(range(3, 23)), [30 + n, 31, 32]) for n in range(4)]
    assert n_tokens_read(tried, endings) == 20 + 4 * 2
    assert tried.notes == []


def test_the_likeliest_continuation_is_told():
    best = int(plain_next([4, 5, 6]))
    found = log_likelihoods(
        TriedModel(ScoringModel(MODEL, torch.float32)),
        [Continuation([4, 5, 6], [best]), Continuation([4, 5, 6], [best - 1])],
    )
    assert [each.is_greedy for each in found] == [True, False]
    assert log_likelihoods(TriedModel(ScoringModel(MODEL, torch.float32)), []) == []


@torch.no_grad()
def plain_next(ids: list[int]) -> torch.Tensor:
    return MODEL(torch.tensor([ids])).logits[0, -1].argmax()


def plain_answer(request: GreedyRequest, end_ids: frozenset[int]) -> list[int]:
    new: list[int] = []
    while len(new) < request.max_new_tokens and not end_ids.intersection(new):
        new.append(int(plain_next(request.prompt_ids + new)))
    return new


@given(
    asked=st.lists(st.tuples(st.booleans(), TOKENS, st.integers(1, 9)), min_size=1, max_size=9),
    limits=st.builds(BatchLimits, st.integers(1, 4), st.integers(1, 800)),
    is_growing=st.booleans(),
)
@settings(deadline=None, max_examples=8)
def test_any_prompts_are_continued_as_one_by_one(make_tokenizer, asked, limits, is_growing):
    requests = [
        GreedyRequest((SHARED if is_long else []) + prompt, (), n_new) for is_long, prompt, n_new in asked
    ]
    ends = frozenset({plain_answer(requests[0]._replace(max_new_tokens=3), frozenset())[-1]})
    tried = TriedModel(ScoringModel(MODEL if is_growing else _Forgetful(), torch.float32))
    heard: dict[int, list[int]] = {}
    found = generate_greedily(tried, make_tokenizer(), requests, Greedy(ends), limits, heard.update)
    assert found == [plain_answer(request, ends) for request in requests]
    assert [heard[n] for n in range(len(requests))] == found
    assert tried.grows([3], 9) == is_growing


class _Forgetful(nn.Module):
    """Takes no notice of what was read before."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.config = MODEL, MODEL.config

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        return self.inner(input_ids=input_ids)


def test_a_model_with_other_numbers_behind_a_beginning_is_run_plainly():
    tried = TriedModel(ScoringModel(_Forgetful(), torch.float32))
    requests = [continuation([*SHARED, number], [7]) for number in range(8)]
    assert_plain(log_likelihoods(tried, requests), requests)
    head, stem = tried.notes
    assert head.startswith("the output head runs at every position: ")
    assert stem.startswith(
        "common beginnings are read with every row: in a trial log-probabilities differ by 0."
    )


def test_stop_strings_are_seen_over_token_borders(make_tokenizer):
    tokenizer = make_tokenizer()
    ids = tokenizer.encode("It was played in Sydney, on 20 August.", add_special_tokens=False)
    stops = StopStrings(tokenizer, ["dney, o", ""])
    first = next(n for n in range(len(ids)) if stops.is_met(ids[: n + 1]))
    assert "dney, o" in tokenizer.decode(ids[: first + 1])
    assert "dney, o" not in tokenizer.decode(ids[:first])
    assert not StopStrings(tokenizer, []).is_met(ids)


def test_requests_that_cannot_be_scored_are_refused(make_tokenizer):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    ours = harness_model.TransfuseLM(
        MODEL, make_tokenizer(), compute_dtype=torch.float32, identity="", max_length=8
    )
    asked: Any = [Instance("loglikelihood", {}, ("The", ""), 0)]
    with pytest.raises(DataError, match="1 tokens of context and 0 to score; expected at least one of each"):
        ours.loglikelihood(asked, disable_tqdm=True)
    asked = [Instance("generate_until", {}, ("", {"max_gen_toks": 2}), 0)]
    with pytest.raises(DataError, match="a prompt has no tokens, so that nothing can be continued"):
        ours.generate_until(asked)
    asked = [Instance("generate_until", {}, ("The", {"max_gen_toks": 8}), 0)]
    with pytest.raises(
        DataError, match="8 new tokens leave no room for a prompt in the model's context of 8"
    ):
        ours.generate_until(asked)


def test_without_lm_eval_the_extra_is_named(make_tokenizer, monkeypatch):
    monkeypatch.setattr(harness_model, "_made", [])
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'transfuse\[benchmarks\]'"):
        harness_model.TransfuseLM(MODEL, make_tokenizer(), compute_dtype=torch.float32, identity="")

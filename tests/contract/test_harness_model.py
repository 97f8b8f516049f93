"""Our engine under lm-evaluation-harness gives the scores of the harness's own `hf` model."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_families import random_model, tiny_config

from transfuse.evaluate.harness_model import TransfuseLM
from transfuse.evaluate.request_store import RequestStore

pytest.importorskip("lm_eval")

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt_neox", "olmo2", "granite"]
WINDOWED = {"mistral": 24, "gemma2": 24, "gemma3_text": 24}

SHOTS = (
    "Question: Which country won the cup? Answer: Spain won the cup.\n\n"
    "Question: Where was the final played? Answer: The final was played in Sydney.\n\n"
)
QUESTIONS = ["Which team scored one goal?", "Who lifted the trophy?", "When was the final played?", "Why?"]
ENDINGS = [" Spain", " The captain lifted the trophy.", " The captain", " in August, the first half"]


def instance(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pair_of(make_tokenizer) -> Callable:
    """`pair_of(family)`: the harness's model and ours around one random model."""
    made: dict[str, Any] = {}

    def make(family: str, **settings: Any) -> tuple[Any, Any]:
        key = f"{family} {settings}"
        if key not in made:
            logging.getLogger("lm_eval").setLevel(logging.ERROR)
            from lm_eval.models.huggingface import HFLM

            tokenizer = make_tokenizer()
            window = {"sliding_window": WINDOWED[family]} if family in WINDOWED else {}
            sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "eos_token_id": 1}
            config = tiny_config(family, **{**sizes, **window, **settings})
            model = random_model(config)
            theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=96)
            ours = TransfuseLM(
                model, tokenizer, compute_dtype=torch.float32, identity=key, max_batch_rows=5, max_length=96
            )
            made[key] = theirs, ours
        return made[key]

    return make


def assert_equal_scores(theirs: Any, ours: Any, requests: list[Any]) -> None:
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    found = ours.loglikelihood(requests, disable_tqdm=True)
    assert [one for one, _ in found] == pytest.approx([one for one, _ in expected], abs=1e-4)
    assert [best for _, best in found] == [best for _, best in expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_likelihoods_are_the_harness_ones(pair_of, family):
    theirs, ours = pair_of(family)
    contexts = [f"{SHOTS}Question: {question} Answer:" for question in QUESTIONS]
    requests = [instance("loglikelihood", context, end) for context in contexts for end in ENDINGS]
    requests += [
        instance("loglikelihood", context, f" {letter}") for context in contexts for letter in "ABCD"
    ]
    requests += [instance("loglikelihood", QUESTIONS[0], end) for end in ENDINGS]
    requests += [instance("loglikelihood", "", "The final"), instance("loglikelihood", "Sydney ", "won")]
    assert_equal_scores(theirs, ours, requests)
    assert ours.notes == []
    assert (ours.engine.keeps_stems, ours.engine.reads_trees, ours.engine.grows) == (True, True, True)

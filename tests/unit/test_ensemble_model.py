"""Models of one vocabulary asked as one: averaged probabilities, greedy replies, the house's own measures."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from transfuse.errors import ModelError
from transfuse.evaluate.bits_per_byte import text_losses
from transfuse.evaluate.ensemble_model import EnsembleModel, averaged
from transfuse.evaluate.task_losses import answer_losses
from transfuse.generate.local import LocalGenerator
from transfuse.generate.protocol import Request
from transfuse.io.chat import prompt_format
from transfuse.io.models import LoadedModel, load_model
from transfuse.types import TaskItem, Turn


@pytest.fixture(scope="module")
def members(make_model_folder: Callable[..., Any]) -> list[LoadedModel]:
    return [
        load_model(str(make_model_folder(f"member-{seed}", seed=seed)), precision="float32")
        for seed in (1, 2)
    ]


def test_the_mean_of_probabilities() -> None:
    logits = [torch.log(torch.tensor([[[0.9, 0.1]]])), torch.log(torch.tensor([[[0.3, 0.7]]]))]
    torch.testing.assert_close(averaged(logits).exp(), torch.tensor([[[0.6, 0.4]]]))


def test_logits_that_only_fill_up_do_not_count() -> None:
    logits = [torch.zeros(1, 1, 2), torch.tensor([[[0.0, 0.0, 50.0]]])]
    torch.testing.assert_close(averaged(logits).exp(), torch.full((1, 1, 2), 0.5))


def test_no_member_is_refused() -> None:
    with pytest.raises(ModelError, match="expected at least one model"):
        EnsembleModel([])


def test_one_member_answers_as_itself(members: list[LoadedModel]) -> None:
    loaded = members[0]
    prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
    requests = [
        Request(text, max_new_tokens=12, is_one_line=False)
        for text in ("Who won?", "Where was the final played?")
    ]
    own, alone = (
        LocalGenerator(model, prompts, loaded.precision).generate(requests)
        for model in (loaded.model, EnsembleModel([loaded.model]))
    )
    assert [each.text for each in own] == [each.text for each in alone]
    assert [each.n_reply_tokens for each in own] == [each.n_reply_tokens for each in alone]


def test_replies_are_greedy_without_a_cache(members: list[LoadedModel]) -> None:
    ensemble = EnsembleModel([each.model for each in members])
    prompt = torch.tensor([[5, 6, 7, 8]])
    made = ensemble.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=6,
        eos_token_id=-1,
        pad_token_id=0,
    )
    tokens = prompt
    for _ in range(6):
        with torch.no_grad():
            logits = averaged([each.model(input_ids=tokens).logits for each in members])
        tokens = torch.cat([tokens, logits[:, -1:].argmax(dim=-1)], dim=1)
    assert made.tolist() == tokens.tolist()


def test_padding_changes_nothing(members: list[LoadedModel]) -> None:
    ensemble = EnsembleModel([each.model for each in members])
    ids = torch.tensor([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    settings: dict[str, Any] = {"max_new_tokens": 5, "eos_token_id": -1, "pad_token_id": 0}
    both = ensemble.generate(input_ids=ids, attention_mask=mask, **settings)
    alone = ensemble.generate(input_ids=ids[:1, 2:], attention_mask=mask[:1, 2:], **settings)
    assert both[0, 5:].tolist() == alone[0, 3:].tolist()


def test_rows_end_at_their_end_token(members: list[LoadedModel]) -> None:
    ensemble = EnsembleModel([each.model for each in members])
    prompt = torch.tensor([[5, 6, 7], [9, 3, 11]])
    settings: dict[str, Any] = {
        "attention_mask": torch.ones_like(prompt),
        "max_new_tokens": 4,
        "pad_token_id": 2,
    }
    free = ensemble.generate(input_ids=prompt, eos_token_id=-1, **settings)
    first = int(free[0, 3])
    ended = ensemble.generate(input_ids=prompt, eos_token_id=[first], **settings)
    assert ended[0, 3] == first
    assert set(ended[0, 4:].tolist()) <= {2}


def test_texts_and_answers_are_measured(members: list[LoadedModel]) -> None:
    loaded = members[0]
    prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
    ensemble = EnsembleModel([each.model for each in members])
    items = [TaskItem("a", (Turn("user", "Who won the cup?"),), "Spain won the cup.")]
    texts = ["The final was played in Sydney.", "The team scored."]
    twin = EnsembleModel([loaded.model, loaded.model])
    for measure in (
        lambda model: text_losses(model, prompts, texts, torch.float32)[0].nll_nats,
        lambda model: answer_losses(model, prompts, items, torch.float32)[0].nll_nats,
    ):
        assert measure(twin) == pytest.approx(measure(loaded.model), rel=1e-5)
        one, two, both = measure(members[0].model), measure(members[1].model), measure(ensemble)
        assert min(one, two) - 1e-3 <= both <= max(one, two)

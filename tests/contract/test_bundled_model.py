"""The bundled real model loads, answers, and goes through plain transformers unchanged."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from transfuse.io.bundled import BUNDLED, is_fetched
from transfuse.io.chat import PromptFormat, prompt_format
from transfuse.io.models import LoadedModel, load_model

NAME = "smollm2-135m"

pytestmark = [
    pytest.mark.bundled,
    pytest.mark.skipif(not is_fetched(NAME), reason=f"not fetched; run `transfuse models get {NAME}`"),
]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(NAME, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def chat(loaded: LoadedModel) -> PromptFormat:
    return prompt_format(loaded.tokenizer, loaded.model.generation_config)


def test_the_table_tells_the_truth(loaded):
    assert loaded.model.num_parameters() == BUNDLED[NAME].n_parameters
    assert type(loaded.model).__name__ == BUNDLED[NAME].architecture
    assert len(loaded.tokenizer) == 49152
    assert loaded.model.config.name_or_path == BUNDLED[NAME].upstream_name


def test_the_tokenizer_is_the_upstream_one(loaded, chat):
    tokenizer = loaded.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert chat.bos_ids == ()
    assert (chat.end_id, chat.stop_ids, chat.pad_id) == (2, (2,), 2)
    assert tokenizer.encode("in  1999, 3rd") == [254, 256, 33, 41, 41, 41, 28, 216, 35, 7212]
    text = "24 °C – 東京,\n\n\tthe 3rd  time in 1,234 days"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_prompts_are_those_of_apply_chat_template(chat):
    turns = [{"role": "user", "content": "Who wrote Hamlet?"}]
    expected = chat.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    prompt_ids, answer_ids = chat.encode_pair("Who wrote Hamlet?", "William Shakespeare")
    whole = chat.tokenizer.apply_chat_template(
        [*turns, {"role": "assistant", "content": "William Shakespeare"}], return_dict=False
    )
    assert chat.encode_question("Who wrote Hamlet?") == prompt_ids == expected
    assert chat.tokenizer.decode(expected).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named"
    )
    assert [*prompt_ids, *answer_ids, *chat.tokenizer.encode("\n")] == whole


def test_it_answers(loaded, chat):
    prompt = torch.tensor([chat.encode_question("What is the capital of France?")])
    reply = loaded.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=16,
        do_sample=False,
        eos_token_id=list(chat.stop_ids),
        pad_token_id=chat.pad_id,
    )[0, prompt.shape[1] :]
    assert "Paris" in chat.tokenizer.decode(reply)
    assert reply[-1] == chat.end_id


def test_saved_it_reloads_in_plain_transformers_with_equal_logits(loaded, chat, tmp_path):
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    token_ids = torch.tensor([chat.encode_question("Where is the Eiffel Tower, built in 1889?")])
    with torch.no_grad():
        torch.testing.assert_close(plain(token_ids).logits, loaded.model(token_ids).logits, rtol=0, atol=0)
    text = "in  1999, the 3rd  time"
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text) == loaded.tokenizer.encode(text)

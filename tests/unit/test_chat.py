"""Prompts are what the chat template gives, token for token; base models are asked plainly."""

import pytest
from transformers import GenerationConfig

from transfuse.errors import ModelError
from transfuse.io.chat import PromptFormat, prompt_format

QUESTION = "Which country won the cup in 2023?"
LLAMA3_LIKE = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] | trim + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
THINKS_FIRST = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant><think>\n' }}{% endif %}"
)
ENDS_NOTHING = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def template_ids(tokenizer, turns, **options) -> list[int]:
    return tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False, **options)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


@pytest.fixture(scope="module")
def chat(make_tokenizer) -> PromptFormat:
    return prompt_format(make_tokenizer())


@pytest.fixture(scope="module")
def base(make_tokenizer) -> PromptFormat:
    return prompt_format(make_tokenizer(None))


def test_a_chat_question_is_what_the_template_gives(chat):
    expected = template_ids(chat.tokenizer, [user(QUESTION)], add_generation_prompt=True)
    assert chat.is_chat
    assert chat.encode_question(QUESTION) == expected
    assert "You are a tiny model." in chat.tokenizer.decode(expected)


@pytest.mark.parametrize("answer", ["Spain", "  Spain ", "Spain\nand Sweden", "", "\n", "24 °C – 東京"])
def test_a_chat_pair_is_the_templates_own_conversation(chat, answer):
    prompt_ids, answer_ids = chat.encode_pair(QUESTION, answer)
    whole = template_ids(chat.tokenizer, [user(QUESTION), {"role": "assistant", "content": answer}])
    n = len(prompt_ids) + len(answer_ids)
    assert prompt_ids == chat.encode_question(QUESTION)
    assert prompt_ids + answer_ids == whole[:n]
    assert chat.tokenizer.decode(whole[n:]) == "\n"
    assert answer_ids[-1] == chat.end_id == chat.tokenizer.eos_token_id


def test_a_template_that_writes_bos_gets_one_and_trims_as_it_likes(make_tokenizer):
    format_ = prompt_format(make_tokenizer(LLAMA3_LIKE))
    prompt_ids, answer_ids = format_.encode_pair(f"  {QUESTION}  ", " Spain ")
    whole = template_ids(
        format_.tokenizer, [user(f"  {QUESTION}  "), {"role": "assistant", "content": " Spain "}]
    )
    assert prompt_ids.count(format_.tokenizer.bos_token_id) == 1
    assert prompt_ids + answer_ids == whole


def test_where_the_template_drops_what_opens_the_answer_the_answer_follows_the_prompt(make_tokenizer):
    format_ = prompt_format(make_tokenizer(THINKS_FIRST))
    prompt_ids, answer_ids = format_.encode_pair(QUESTION, "Spain")
    assert format_.tokenizer.decode(prompt_ids).endswith("<assistant><think>\n")
    assert format_.tokenizer.decode(answer_ids) == "Spain<|im_end|>"


def test_a_template_without_an_end_of_turn_gets_the_end_of_sequence(make_tokenizer):
    format_ = prompt_format(make_tokenizer(ENDS_NOTHING))
    _, answer_ids = format_.encode_pair(QUESTION, "Spain")
    assert answer_ids[-1] == format_.tokenizer.eos_token_id


def test_a_base_model_is_asked_plainly_after_one_bos(base):
    prompt_ids, answer_ids = base.encode_pair(QUESTION, "Spain")
    assert not base.is_chat
    assert base.tokenizer.decode(prompt_ids) == f"<s>Question: {QUESTION}\nAnswer:"
    assert base.tokenizer.decode(answer_ids) == " Spain\n</s>"
    assert prompt_ids == base.encode_question(QUESTION)


@pytest.mark.parametrize("name", ["chat", "base"])
def test_context_comes_before_the_question(name, request):
    format_ = request.getfixturevalue(name)
    prompt_ids = format_.encode_question(QUESTION, context="Spain won.")
    text = format_.tokenizer.decode(prompt_ids)
    assert text.index("Context:\nSpain won.\n\n") < text.index(QUESTION)
    assert format_.encode_pair(QUESTION, "Spain", context="Spain won.")[0] == prompt_ids


NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
SILENT_SYSTEM = NO_SYSTEM.replace("{{ raise_exception('System role not supported') }}", "").replace(
    "for m in messages", "for m in messages if m['role'] != 'system'"
)


def test_the_systems_turn_is_the_templates_own(chat):
    turns = [{"role": "system", "content": "Be brief."}, user(QUESTION)]
    expected = template_ids(chat.tokenizer, turns, add_generation_prompt=True)
    assert chat.encode_question(QUESTION, system="Be brief.") == expected
    assert "You are a tiny model." not in chat.tokenizer.decode(expected)


@pytest.mark.parametrize("template", [NO_SYSTEM, SILENT_SYSTEM])
def test_a_template_without_a_systems_turn_has_it_before_the_question(template, make_tokenizer):
    format_ = prompt_format(make_tokenizer(template))
    asked = [user("Be brief.\n\nContext:\nSpain won.\n\nAnswer the question from the context above.\nWho?")]
    expected = template_ids(format_.tokenizer, asked, add_generation_prompt=True)
    assert format_.encode_question("Who?", context="Spain won.", system="Be brief.\n") == expected


def test_a_base_model_reads_the_system_text_first(base):
    text = base.tokenizer.decode(base.encode_question("Who?", system="Be brief."))
    assert text == "<s>Be brief.\n\nQuestion: Who?\nAnswer:"


def test_text_has_bos_where_the_tokenizer_adds_it_and_eos_on_request(chat, base):
    bos, eos = base.tokenizer.bos_token_id, base.tokenizer.eos_token_id
    assert base.encode_text("The cup.") == base.tokenizer("The cup.")["input_ids"]
    assert base.encode_text("The cup.")[0] == bos
    assert base.encode_text("The cup.", ends=True)[-1] == eos
    assert chat.encode_text("The cup.") == chat.tokenizer("The cup.", add_special_tokens=False)["input_ids"]


def test_generation_stops_at_every_end(chat, base, make_tokenizer):
    assert chat.stop_ids == (chat.tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    newline = base.tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert set(base.stop_ids) == {base.tokenizer.eos_token_id, *newline}
    configured = prompt_format(make_tokenizer(), GenerationConfig(eos_token_id=[1, 7]))
    assert configured.stop_ids == (1, 7)


def test_padding_falls_back_on_eos_and_adds_no_token(make_tokenizer):
    tokenizer = make_tokenizer()
    n_tokens = len(tokenizer)
    assert tokenizer.pad_token_id is None
    assert prompt_format(tokenizer).pad_id == tokenizer.eos_token_id
    assert len(tokenizer) == n_tokens
    assert tokenizer.pad_token_id is None


def test_a_broken_template_and_a_missing_end_are_explained(make_tokenizer):
    with pytest.raises(ModelError, match=r"chat template.*only one turn"):
        prompt_format(make_tokenizer("{{ raise_exception('only one turn') }}"))
    endless = make_tokenizer(None)
    endless.eos_token = None
    with pytest.raises(ModelError, match="end-of-sequence"):
        prompt_format(endless)

"""Batched replies of a local model equal those of a plain greedy loop, one prompt at a time."""

import dataclasses

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from transfuse.generate import local
from transfuse.generate.local import LocalGenerator
from transfuse.generate.protocol import Reply, Request
from transfuse.io.chat import PromptFormat, prompt_format

QUESTIONS = [
    "Which country won the cup in 2023?",
    "Where?",
    "The team scored one goal in the first half, and then?",
    "Who lifted the trophy?",
    "Größe – 東京?",
    "W",
]


@pytest.fixture(scope="module", params=["chat", "base"])
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind, make_model_folder):
    # A wide initialisation makes the replies depend on every token of the prompt.
    folder = make_model_folder(
        f"wide-{kind}", **({} if kind == "chat" else {"chat_template": None}), initializer_range=0.4
    )
    return LlamaForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def prompts(kind, make_tokenizer) -> PromptFormat:
    return prompt_format(make_tokenizer() if kind == "chat" else make_tokenizer(None))


def generator(model, prompts: PromptFormat) -> LocalGenerator:
    return LocalGenerator(model, prompts, torch.float32)


@torch.no_grad()
def one_by_one(model, prompts: PromptFormat, request: Request) -> Reply:
    """The likeliest token, again and again, without cache, padding or company."""
    prompt_ids = prompts.encode_question(request.question, context=request.context)
    new_ids: list[int] = []
    is_cut = True
    while is_cut and len(new_ids) < request.max_new_tokens:
        new_ids.append(int(model(torch.tensor([prompt_ids + new_ids])).logits[0, -1].argmax()))
        is_cut = new_ids[-1] not in prompts.stop_ids and "\n" not in prompts.tokenizer.decode(new_ids[-1:])
    text = prompts.tokenizer.decode(new_ids, skip_special_tokens=True)
    return Reply(text.split("\n")[0].strip(), is_cut)


def requests(max_new_tokens: int = 10) -> list[Request]:
    plain = [Request(question, None, max_new_tokens) for question in QUESTIONS]
    return [*plain, Request("Where?", "The final was played in Sydney.", max_new_tokens)]


def test_batched_replies_equal_those_one_by_one_in_order(model, prompts):
    expected = [one_by_one(model, prompts, request) for request in requests()]
    assert len({reply.text for reply in expected}) > 4
    assert generator(model, prompts).generate(requests()) == expected


@pytest.mark.parametrize("limit", ["MAX_BATCH_ROWS", "MAX_BATCH_TOKENS"])
def test_batches_do_not_change_replies(model, prompts, monkeypatch, limit):
    together = generator(model, prompts).generate(requests())
    monkeypatch.setattr(local, limit, 2 if limit == "MAX_BATCH_ROWS" else 1)
    calls = []
    apart = generator(model, prompts).generate(requests(), lambda *done: calls.append(done))
    assert apart == together
    sizes = [2, 4, 6, 7] if limit == "MAX_BATCH_ROWS" else list(range(1, 8))
    assert calls == [(n_done, 7) for n_done in sizes]


def test_each_request_has_its_own_limit(model, prompts):
    mixed = [Request(question, None, n) for n, question in zip([1, 12, 2, 9, 3, 5], QUESTIONS, strict=True)]
    assert generator(model, prompts).generate(mixed) == [one_by_one(model, prompts, each) for each in mixed]


def test_replies_are_greedy_whatever_the_models_settings(model, prompts, monkeypatch):
    expected = [one_by_one(model, prompts, request) for request in requests()]
    wild = GenerationConfig(
        do_sample=True,
        temperature=2.0,
        top_p=0.5,
        top_k=3,
        repetition_penalty=3.0,
        no_repeat_ngram_size=1,
        num_beams=3,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    monkeypatch.setattr(model, "generation_config", wild)
    assert generator(model, prompts).generate(requests()) == expected


def test_what_fills_up_an_ended_reply_is_not_read(model, prompts):
    (letter,) = prompts.tokenizer("x", add_special_tokens=False)["input_ids"]
    ends_at_once = prompts.tokenizer.eos_token_id

    def end_first_row(module, inputs, output):
        output[0, -1, ends_at_once] = 1e6
        return output

    plain = [Request(question, None, 6) for question in QUESTIONS]
    by_length = sorted(plain, key=lambda each: len(prompts.encode_question(each.question)))
    handle = model.lm_head.register_forward_hook(end_first_row)
    try:
        replies = generator(model, dataclasses.replace(prompts, pad_id=letter)).generate(by_length)
    finally:
        handle.remove()
    assert replies[0] == Reply("", is_cut=False)
    assert replies[1:] == [one_by_one(model, prompts, each) for each in by_length[1:]]


def stopping_at(model, prompts: PromptFormat, token: int) -> Reply:
    """The reply of a model that wants nothing but one token."""
    bias = torch.zeros(model.config.vocab_size)
    bias[token] = 1e6
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: output + bias)
    try:
        (reply,) = generator(model, prompts).generate([Request("Where?", None, 5)])
    finally:
        handle.remove()
    return reply


def test_a_reply_ends_at_every_end_token(model, prompts):
    for token in prompts.stop_ids:
        assert stopping_at(model, prompts, token) == Reply("", is_cut=False)


def test_a_reply_ends_at_a_line_break(model, prompts):
    (newline,) = prompts.tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert stopping_at(model, prompts, newline) == Reply("", is_cut=False)


def test_a_reply_that_does_not_end_is_cut(model, prompts):
    (letter,) = prompts.tokenizer("x", add_special_tokens=False)["input_ids"]
    assert stopping_at(model, prompts, letter) == Reply("xxxxx", is_cut=True)


def test_a_token_with_a_line_break_inside_ends_the_reply(model, make_tokenizer):
    tokenizer = make_tokenizer(None)
    tokenizer.add_tokens([".\n\nNext"])
    assert len(tokenizer) <= model.config.vocab_size + 1
    prompts = prompt_format(tokenizer)
    words = local._newline_tokens(tokenizer, model.config.vocab_size)
    assert words[len(tokenizer) - 1]
    reply = generator(model, prompts)._reply([5, len(tokenizer) - 1, 7])
    assert reply == Reply(str(tokenizer.decode([5])).strip() + ".", is_cut=False)


def test_a_prompt_that_is_too_long_carries_its_error_and_costs_the_others_nothing(model, prompts):
    context = "The final was played in Sydney. " * 40
    asked = [Request("Where?", None, 8), Request("Where?", context, 8), Request(QUESTIONS[0], None, 8)]
    n_tokens = len(prompts.encode_question("Where?", context=context))
    first, too_long, last = generator(model, prompts).generate(asked)
    assert too_long == Reply("", error=f"prompt of {n_tokens} tokens leaves no room in a context of 256")
    assert first == one_by_one(model, prompts, asked[0])
    assert last == one_by_one(model, prompts, asked[2])


def test_a_prompt_and_reply_may_fill_the_context_exactly(model, prompts):
    room = 256 - len(prompts.encode_question("Where?"))
    fits, does_not = generator(model, prompts).generate(
        [Request("Where?", None, room), Request("Where?", None, room + 1)]
    )
    assert not fits.error
    assert does_not.error


def test_nothing_asked_nothing_said(model, prompts):
    assert generator(model, prompts).generate([]) == []


def test_more_embeddings_than_tokens(make_model_folder, make_tokenizer):
    folder = make_model_folder("padded-vocabulary", vocab_size=300)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    model.resize_token_embeddings(320, mean_resizing=False)
    prompts = prompt_format(make_tokenizer())
    with torch.no_grad():
        model.lm_head.weight[310:] *= 100  # ids without a token are likely
    (reply,) = generator(model, prompts).generate([Request("Where?", None, 4)])
    assert dataclasses.asdict(reply).keys() == {"text", "is_cut", "error"}

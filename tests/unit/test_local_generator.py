"""Batched replies of a local model equal those of a plain greedy loop, one prompt at a time."""

import dataclasses

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from transfuse.errors import GenerationError
from transfuse.generate import local
from transfuse.generate.local import LocalGenerator
from transfuse.generate.protocol import Generator, Reply, Request
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


on_one_kind = pytest.mark.parametrize("kind", ["chat"], indirect=True, scope="module")
"""Where the form of the prompt has no say."""


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
    prompt_ids = prompts.encode_question(request.question, context=request.context, system=request.system)
    new_ids: list[int] = []
    is_cut = True
    while is_cut and len(new_ids) < request.max_new_tokens:
        new_ids.append(int(model(torch.tensor([prompt_ids + new_ids])).logits[0, -1].argmax()))
        is_cut = new_ids[-1] not in prompts.stop_ids and "\n" not in prompts.tokenizer.decode(new_ids[-1:])
    text = prompts.tokenizer.decode(new_ids, skip_special_tokens=True)
    return Reply(
        text.split("\n")[0].strip(), is_cut, n_prompt_tokens=len(prompt_ids), n_reply_tokens=len(new_ids)
    )


def requests(max_new_tokens: int = 10) -> list[Request]:
    plain = [Request(question, None, max_new_tokens) for question in QUESTIONS]
    return [*plain, Request("Where?", "The final was played in Sydney.", max_new_tokens)]


def test_batched_replies_equal_those_one_by_one_in_order(model, prompts):
    expected = [one_by_one(model, prompts, request) for request in requests()]
    assert len({reply.text for reply in expected}) > 4
    assert generator(model, prompts).generate(requests()) == expected


@on_one_kind
@pytest.mark.parametrize("limit", ["MAX_BATCH_ROWS", "MAX_BATCH_TOKENS"])
def test_batches_do_not_change_replies(model, prompts, monkeypatch, limit):
    together = generator(model, prompts).generate(requests(6))
    monkeypatch.setattr(local, limit, 2 if limit == "MAX_BATCH_ROWS" else 1)
    told = {}
    apart = generator(model, prompts).generate(requests(6), told.__setitem__)
    assert apart == together
    assert told == dict(enumerate(together))


@on_one_kind
def test_each_request_has_its_own_limit(model, prompts):
    mixed = [Request(question, None, n) for n, question in zip([1, 12, 2, 9, 3, 5], QUESTIONS, strict=True)]
    assert generator(model, prompts).generate(mixed) == [one_by_one(model, prompts, each) for each in mixed]


@on_one_kind
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


@on_one_kind
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
    assert (replies[0].text, replies[0].is_cut, replies[0].n_reply_tokens) == ("", False, 1)
    assert replies[1:] == [one_by_one(model, prompts, each) for each in by_length[1:]]


def stopping_at(model, prompts: PromptFormat, token: int, **more) -> tuple[str, bool]:
    """Text and cut of a model that wants nothing but one token."""
    bias = torch.zeros(model.config.vocab_size)
    bias[token] = 1e6
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: output + bias)
    try:
        (reply,) = generator(model, prompts).generate([Request("Where?", None, 5, **more)])
    finally:
        handle.remove()
    return reply.text, reply.is_cut


def test_a_reply_ends_at_every_end_token(model, prompts):
    for token in prompts.stop_ids:
        assert stopping_at(model, prompts, token) == ("", False)


def test_a_reply_ends_at_a_line_break_unless_many_lines_are_asked_for(model, prompts):
    (newline,) = prompts.tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert stopping_at(model, prompts, newline) == ("", False)
    assert stopping_at(model, prompts, newline, is_one_line=False) == ("", True)
    assert stopping_at(model, prompts, prompts.end_id, is_one_line=False) == ("", False)


def test_a_reply_that_does_not_end_is_cut(model, prompts):
    (letter,) = prompts.tokenizer("x", add_special_tokens=False)["input_ids"]
    assert stopping_at(model, prompts, letter) == ("xxxxx", True)


def test_a_token_with_a_line_break_inside_ends_the_reply(model, make_tokenizer):
    tokenizer = make_tokenizer(None)
    tokenizer.add_tokens([".\n\nNext"])
    assert len(tokenizer) <= model.config.vocab_size + 1
    prompts = prompt_format(tokenizer)
    words = local._newline_tokens(tokenizer, model.config.vocab_size)
    assert words[len(tokenizer) - 1]
    token_ids = [5, len(tokenizer) - 1, 7]
    reply = generator(model, prompts)._reply(token_ids, Request("?"), 3)
    assert reply == Reply(str(tokenizer.decode([5])).strip() + ".", n_prompt_tokens=3, n_reply_tokens=2)
    lines = generator(model, prompts)._reply(token_ids, Request("?", is_one_line=False), 3)
    assert lines == Reply(str(tokenizer.decode(token_ids)).strip(), True, "", 3, 3)


@on_one_kind
def test_a_prompt_that_is_too_long_carries_its_error_and_costs_the_others_nothing(model, prompts):
    context = "The final was played in Sydney. " * 40
    asked = [Request("Where?", None, 8), Request("Where?", context, 8), Request(QUESTIONS[0], None, 8)]
    n_tokens = len(prompts.encode_question("Where?", context=context))
    first, too_long, last = generator(model, prompts).generate(asked)
    assert too_long == Reply("", error=f"prompt of {n_tokens} tokens leaves no room in a context of 256")
    assert first == one_by_one(model, prompts, asked[0])
    assert last == one_by_one(model, prompts, asked[2])


@on_one_kind
def test_a_prompt_and_reply_may_fill_the_context_exactly(model, prompts):
    lengths = [
        len(prompts.encode_question("Where?", context="The final was played. " * n)) for n in range(1, 40)
    ]
    n_said = sum(length < 256 for length in lengths)
    context, room = "The final was played. " * n_said, 256 - lengths[n_said - 1]
    fits, does_not = generator(model, prompts).generate(
        [Request("Where?", context, room), Request("Where?", context, room + 1)]
    )
    assert not fits.error
    assert does_not.error


@on_one_kind
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
    assert not reply.error


@on_one_kind
def test_the_identity_is_what_the_caller_says(model, prompts):
    assert generator(model, prompts).identity == "local"
    named = LocalGenerator(model, prompts, torch.float32, identity="local:abc:float32")
    assert named.identity == "local:abc:float32"
    assert isinstance(named, Generator)


def test_the_systems_turn_changes_the_reply(model, prompts):
    told = Request("Where?", None, 10, system="Say a town.")
    assert generator(model, prompts).generate([told]) == [one_by_one(model, prompts, told)]
    assert one_by_one(model, prompts, told) != one_by_one(
        model, prompts, dataclasses.replace(told, system=None)
    )


def sampled() -> list[Request]:
    return [
        Request(question, None, 6, temperature=1.5, top_p=top_p, seed=seed, is_one_line=False)
        for question in QUESTIONS[:2]
        for top_p in (1.0, 0.8)
        for seed in (1, 2)
    ]


@on_one_kind
def test_a_sampled_reply_does_not_depend_on_its_batch(model, prompts, monkeypatch):
    alone = [generator(model, prompts).generate([request])[0] for request in sampled()]
    assert len({reply.text for reply in alone}) == 8
    mixed = [*requests(8)[:3], *sampled()]
    assert generator(model, prompts).generate(mixed)[3:] == alone
    monkeypatch.setattr(local, "MAX_BATCH_ROWS", 5)
    assert generator(model, prompts).generate(mixed[::-1])[:8] == alone[::-1]


@on_one_kind
def test_greedy_rows_stay_greedy_beside_sampled_ones(model, prompts):
    expected = [one_by_one(model, prompts, request) for request in requests()]
    assert generator(model, prompts).generate([*requests(), *sampled()])[:7] == expected


@on_one_kind
def test_a_little_temperature_or_a_narrow_share_is_greedy(model, prompts):
    plain, *_ = requests()
    (expected,) = generator(model, prompts).generate([plain])
    for narrow in ({"temperature": 1e-30}, {"temperature": 1.0, "top_p": 1e-6}):
        assert generator(model, prompts).generate([dataclasses.replace(plain, **narrow)]) == [expected]


@on_one_kind
def test_it_can_be_stopped_from_another_thread(model, prompts):
    asked = generator(model, prompts)
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: asked.stop())
    try:
        with pytest.raises(GenerationError, match="stopped before its replies were complete"):
            asked.generate(requests(100)[:1])
    finally:
        handle.remove()
    assert not asked.generate([requests()[0]])[0].error


SCHEMA = '{"type": "object", "properties": {"facts": {"type": "array"}}, "required": ["facts"]}'


def test_a_reply_with_a_schema_begins_in_its_form(model, prompts):
    asked = Request("Where?", max_new_tokens=6, is_one_line=False, schema=SCHEMA)
    (reply,) = generator(model, prompts).generate([asked])
    assert reply.text.startswith('{"facts": [')
    assert reply.n_reply_tokens <= 6


def test_a_reply_with_a_schema_ends_where_its_json_does(model, prompts):
    pieces = [prompts.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ('"a"', "]}", " so")]
    asked = Request("?", is_one_line=False, schema=SCHEMA)
    reply = generator(model, prompts)._reply([token for piece in pieces for token in piece], asked, 3)
    assert (reply.text, reply.is_cut) == ('{"facts": ["a"]}', False)
    cut = generator(model, prompts)._reply(pieces[0], asked, 3)
    assert (cut.text, cut.is_cut) == ('{"facts": ["a"', True)

"""Samples as requests of whole conversations, which read exactly what training reads before an answer."""

import dataclasses
import json

import pytest
import torch
from transformers import LlamaForCausalLM

from transfuse.generate.local import LocalGenerator
from transfuse.generate.protocol import Reply, Request, request_parts
from transfuse.generate.recorded import RecordedGenerator, record_replies, request_key
from transfuse.generate.reply_cache import reply_key
from transfuse.generate.task_requests import task_requests, why_unusable
from transfuse.io.chat import prompt_format
from transfuse.train.task_rows import task_row
from transfuse.types import TaskItem, Turn

SYSTEM, ASKED = Turn("system", "Be brief."), Turn("user", "Which country won the cup?")
ITEMS = [
    TaskItem("a", (ASKED,), "Spain"),
    TaskItem("b", (SYSTEM, ASKED, Turn("assistant", "Spain"), Turn("user", "When?")), "in 2023"),
]


def test_each_item_is_asked_with_a_seed_of_its_own():
    drawn = task_requests(ITEMS, max_new_tokens=9, temperature=0.7, seed=4)
    assert [(each.messages, each.seed, each.temperature) for each in drawn] == [
        (ITEMS[0].messages, 4, 0.7),
        (ITEMS[1].messages, 5, 0.7),
    ]
    greedy = task_requests(ITEMS, max_new_tokens=9, seed=4)
    assert {(each.seed, each.max_new_tokens) for each in greedy} == {(0, 9)}


def test_replies_are_one_line_where_all_answers_are():
    of_lines = [*ITEMS, dataclasses.replace(ITEMS[0], answer="Spain\nin 2023")]
    assert [each.is_one_line for each in task_requests(ITEMS, max_new_tokens=9)] == [True, True]
    assert {each.is_one_line for each in task_requests(of_lines, max_new_tokens=9)} == {False}
    assert task_requests(of_lines, max_new_tokens=9, is_one_line=True)[0].is_one_line


def test_a_plain_text_cannot_be_asked():
    with pytest.raises(ValueError, match="a plain text, which asks nothing"):
        task_requests([TaskItem("t", (), "text")], max_new_tokens=9)


def test_replies_that_nothing_can_be_learned_from_say_why():
    replies = [Reply("4"), Reply("4 and", is_cut=True), Reply(" "), Reply("", error="no room")]
    assert [why_unusable(reply, 9) for reply in replies] == [
        "",
        "the teacher's answer did not end within 9 tokens",
        "the teacher's answer is empty",
        "no room",
    ]


def test_a_conversation_has_a_key_of_its_own_and_requests_without_one_keep_theirs():
    assert "messages" not in request_parts(Request("Who won?"))
    # As it was before requests could hold conversations: replies that were paid for are found again.
    assert request_key(Request("Who won?")).startswith("1b40a2761901")
    requests = [Request(""), *task_requests(ITEMS, max_new_tokens=64, is_one_line=True)]
    assert (
        len({request_key(each) for each in requests})
        == len({reply_key(each, "me") for each in requests})
        == 3
    )


def test_a_recorded_conversation_is_found_again(tmp_path):
    class Scripted:
        identity = "scripted"

        def generate(self, requests, on_reply=None):
            return [Reply(each.messages[-1].content) for each in requests]

    requests = task_requests(ITEMS, max_new_tokens=9)
    path = tmp_path / "replies.jsonl"
    record_replies(Scripted(), requests, path)
    assert [each.text for each in RecordedGenerator(path).generate(requests)] == [ASKED.content, "When?"]
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert row["messages"] == [["user", ASKED.content]]


def test_an_endpoint_is_sent_the_turns_as_they_are():
    from transfuse.generate.endpoint import _messages

    request = task_requests(ITEMS, max_new_tokens=9)[1]
    assert _messages(request) == [{"role": turn.role, "content": turn.content} for turn in ITEMS[1].messages]


@pytest.mark.parametrize("kind", ["chat", "base"])
def test_a_local_model_reads_what_training_reads_before_the_answer(kind, make_model_folder, make_tokenizer):
    template = {} if kind == "chat" else {"chat_template": None}
    model = LlamaForCausalLM.from_pretrained(
        make_model_folder(f"asked-{kind}", **template, initializer_range=0.4)
    ).eval()
    prompts = prompt_format(make_tokenizer(**template))
    replies = LocalGenerator(model, prompts, torch.float32).generate(task_requests(ITEMS, max_new_tokens=5))
    for item, reply in zip(ITEMS, replies, strict=True):
        row = task_row(item, prompts)
        ids = row.token_ids[: row.n_prompt]
        assert prompts.encode_messages([turn._asdict() for turn in item.messages]) == ids
        assert reply.n_prompt_tokens == len(ids)
        if kind == "chat":
            turns = [turn._asdict() for turn in item.messages]
            assert (
                ids == prompts.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
            )
        with torch.no_grad():
            for _ in range(reply.n_reply_tokens):
                ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
        said = prompts.tokenizer.decode(ids[row.n_prompt :], skip_special_tokens=True)
        assert reply.text == said.split("\n")[0].strip()

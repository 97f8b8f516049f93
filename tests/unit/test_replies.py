import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transfuse.text.replies import read_items, read_json

FACTS = '{"facts": [{"fact": "a", "sentences": [1]}, {"fact": "b", "sentences": [2]}]}'
A, B = {"fact": "a", "sentences": [1]}, {"fact": "b", "sentences": [2]}


@pytest.mark.parametrize(
    "reply",
    [
        FACTS,
        f"```json\n{FACTS}\n```",
        f"Sure, from [1] and [2]: {FACTS} I hope this [helps].",
        '[{"fact": "a", "sentences": [1]}, {"fact": "b", "sentences": [2]}]',
        '{"fact": "a", "sentences": [1]}\n{"fact": "b", "sentences": [2]}',
        '```\n{"facts": [{"fact": "a", "sentences": [1]}]}\n```\n```\n{"facts": [{"fact": "b", "sentences": [2]}]}```',
        '{"Statements": [{"Fact": " a ", "sentences": [1]}, {"fact": "b", "sentences": [2]},]}',
        f'<think>Perhaps {{"facts": ["no"]}}?</think>\n{FACTS}',
        f'the template opened it {{"facts": ["no"]}} </think> {FACTS}',
    ],
)
def test_items_are_read_from_every_wrapping(reply: str) -> None:
    assert read_items(reply, "facts", ("fact",)) == ([A, B], [])


def test_a_cut_reply_keeps_whole_items_and_says_so() -> None:
    cut = ["the reply breaks off; its whole items are kept"]
    assert read_items(FACTS[:-12], "facts", ("fact",)) == ([A], cut)
    lines = '{"fact": "a", "sentences": [1]}\n{"fact": "b", "sentences": [2'
    assert read_items(lines, "facts", ("fact",)) == ([A], cut)


@pytest.mark.parametrize(
    "reply",
    [
        "Q: Who won? A: Spain\nQ: Where?\nA: In\nSydney\n\nBye!",
        "**Question 1:** Who won?\n**Answer 1:** Spain\n\n**Question 2:** Where?\n**Answer 2:** In Sydney",
        "1. Who won? Spain\n2. Where? - In Sydney",
        '{"pairs": [{"q": "Who won?", "a": "Spain"}, {"question": "Where?", "answer": "In Sydney"}]}',
        '[["Who won?", "Spain"], ["Where?", "In Sydney"]]',
    ],
)
def test_questions_are_read_with_their_answers(reply: str) -> None:
    pairs = [{"question": "Who won?", "answer": "Spain"}, {"question": "Where?", "answer": "In Sydney"}]
    assert read_items(reply, "pairs", ("question", "answer")) == (pairs, [])


@pytest.mark.parametrize(
    "reply", ["1. a\n2) **b**", "Here:\n- a\n\n- b", "[1] a\n[2] b", "Fact 1: a\nFact 2: b", '["a", "b"]']
)
def test_one_field_is_read_from_lists(reply: str) -> None:
    assert read_items(reply, "facts", ("fact",)) == ([{"fact": "a"}, {"fact": "b"}], [])


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (" \n", "the reply is empty"),
        ("<think>never done", "the reply is empty"),
        ("Sorry, no.", "the reply holds neither JSON with 'facts' nor a list: 'Sorry, no.'"),
        ('{"facts": [{"fact": " "}]}', "an item lacks 'fact': '{\"fact\": \" \"}'"),
    ],
)
def test_nothing_readable_is_said_in_words(reply: str, problem: str) -> None:
    assert read_items(reply, "facts", ("fact",)) == ([], [problem])


def test_an_empty_list_is_an_answer() -> None:
    assert read_items('{"facts": []}', "facts", ("fact",)) == ([], [])


def test_numbers_become_text_and_other_members_stay() -> None:
    reply = '{"pairs": [{"question": "How many?", "answer": 38, "aliases": ["x"]}]}'
    assert read_items(reply, "pairs", ("question", "answer"))[0] == [
        {"question": "How many?", "answer": "38", "aliases": ["x"]}
    ]


def test_json_value_is_the_reply_the_longest_or_all_objects() -> None:
    assert read_json('"yes"') == "yes"
    assert read_json('See [1]: {"a": 1,}') == {"a": 1}
    assert read_json('{"a": 1}\n{"a": 2}') == [{"a": 1}, {"a": 2}]
    assert read_json('{"verdict": "no", "why": "bec') == {"verdict": "no"}
    assert read_json("no braces") is None


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from(list('{}[]",:\\u \n-1aQ?.')), max_size=80) | st.text(max_size=40))
@example("1" * 5000)
@example("[" * 3000 + "]" * 3000)
@example('{"facts": ' * 3000)
def test_any_reply_gives_texts_that_can_be_written(reply: str) -> None:
    read_json(reply)
    for fields in (("fact",), ("question", "answer")):
        items, _ = read_items(reply, "facts", fields)
        for item in items:
            assert all(item[field] == item[field].strip() != "" for field in fields)
            json.dumps(item).encode()

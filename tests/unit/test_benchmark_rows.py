"""Rows of benchmarks: published ones pass, chat samples become them, others are refused with their line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfuse.errors import DataError
from transfuse.evaluate.benchmark_rows import FIELD_KINDS, Row, is_conversion, published_row
from transfuse.evaluate.benchmark_table import (
    BENCHMARKS,
    benchmark_name,
    main_metric,
    published_form,
)


def chat(question: str, answer: str, **fields: object) -> Row:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Row({"messages": messages, **fields}, "asked.jsonl:3")


MMLU = (
    "The following are multiple choice questions (with answers) about world religions.\n\n"
    "Which of these\nis a book?\nA. The Torah\nB. Lent\nC. The Hajj, a\njourney\nD. D. Zen\nAnswer:"
)


def test_mmlu_of_a_chat_sample():
    row = published_row("mmlu", chat(MMLU, "The answer is: C"))
    assert row == (
        {
            "question": "Which of these\nis a book?",
            "choices": ["The Torah", "Lent", "The Hajj, a\njourney", "D. Zen"],
            "answer": 2,
            "subject": "world_religions",
        },
        "asked.jsonl:3",
    )
    named = published_row("mmlu", chat(MMLU, "A", category="virology"))
    assert (named.value["answer"], named.value["subject"]) == (0, "virology")


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).map(
    lambda text: text.replace(". ", ".")  # an option's mark within a text cannot be told from an option's
)


@given(TEXTS, st.lists(TEXTS, min_size=4, max_size=4), st.integers(0, 3))
def test_mmlu_comes_back_from_its_prompt(question, choices, answer):
    lines = [
        question,
        *(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True)),
        "Answer:",
    ]
    head = "The following are multiple choice questions (with answers) about college physics.\n\n"
    row = published_row("mmlu", chat(head + "\n".join(lines), f"The answer is: {'ABCD'[answer]}"))
    assert row.value == {
        "question": question,
        "choices": choices,
        "answer": answer,
        "subject": "college_physics",
    }


def test_gsm8k_of_a_chat_sample():
    row = published_row(
        "gsm8k",
        chat(
            "Answer the following question.\n\nQuestion: What is 3 x 400?",
            "Answer: Three times four is 12. Hundreds are meant. So the answer is 1,200.",
        ),
    )
    assert row.value == {
        "question": "What is 3 x 400?",
        "answer": "Three times four is 12. Hundreds are meant.\n#### 1200",
    }


def test_super_ni_of_a_chat_sample_and_of_the_hub():
    assert published_row("super_ni", chat("Name it.", "a cup", aliases=["cup"])).value == {
        "prompt": "Name it.",
        "references": ["a cup", "cup"],
    }
    hub = Row({"definition": "Say it.", "inputs": "x", "targets": "y", "task_name": "t"}, "f:1")
    assert published_row("super_ni", hub).value == {
        "prompt": "Definition: Say it.\n\nNow complete the following example -\nInput: x\nOutput:",
        "references": ["y"],
    }


def test_published_rows_keep_what_the_task_reads():
    given = {"question": "q", "choices": ["a", "b", "c", "d"], "answer": "B", "category": "virology", "x": 1}
    row = Row(given, "f:1")
    assert not is_conversion("mmlu", row)
    kept = published_row("mmlu", row).value
    assert kept == {
        "question": "q",
        "choices": ["a", "b", "c", "d"],
        "answer": 1,
        "subject": "virology",
    }
    boolq = Row({"passage": "p", "question": "q", "answer": True}, "f:1")
    assert published_row("boolq", boolq).value == {"passage": "p", "question": "q", "label": 1}


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (
            "arc_easy",
            Row({"question": "q"}, "f:7"),
            r"f:7: arc_easy: .* got no 'choices', 'answerKey' but 'question'",
        ),
        ("mmlu", chat("Which?\nA. x\nB. y\nC. z\nAnswer:", "A"), r'asked.jsonl:3: mmlu: .*no line "D. ..."'),
        ("mmlu", chat(MMLU, "none of them"), "names none of the options A to D"),
        ("mmlu", Row({"messages": [{"role": "user"}]}, "f:2"), "f:2: mmlu: .*'content' is missing"),
        ("gsm8k", chat("Question: q", "So the answer is unknown."), "holds no number"),
        ("gsm8k", chat("Question: q", "So the answer is 1.5."), "the answer 3/2 is no whole number"),
        (
            "super_ni",
            Row({"prompt": "p", "references": [" "]}, "f:4"),
            "f:4: 'references': expected a list of right",
        ),
        ("super_ni", Row({"definition": "p"}, "f:4"), "f:4: super_ni: .*'inputs' is missing"),
        (
            "mmlu",
            Row({"question": "q", "choices": ["a"] * 4, "answer": 4, "subject": "s"}, "f:9"),
            "f:9: 'answer': expected the right option as 0 to 3 or A to D, got 4",
        ),
        (
            "openbookqa",
            Row({"question_stem": "q", "choices": {"text": ["a"], "label": []}, "answerKey": "A"}, "f:1"),
            "'choices': expected options as",
        ),
    ],
)
def test_other_rows_are_refused(task, row, message):
    with pytest.raises(DataError, match=message):
        published_row(task, row)


@pytest.mark.parametrize(
    ("kind", "good", "read", "bad"),
    [
        ("text", "", "", 3),
        ("texts", ("a", "b"), ["a", "b"], "ab"),
        ("options", {"text": ["a"], "label": ["A"]}, {"text": ["a"], "label": ["A"]}, ["a"]),
        ("choice", "D", 3, True),
        ("truth", True, 1, "yes"),
        ("label", 2, "2", 4),
        ("aliases", {"aliases": ["a"], "value": "a"}, {"aliases": ["a"]}, {"aliases": []}),
        ("references", ["a"], ["a"], ["a", ""]),
    ],
)
def test_kinds_of_fields(kind, good, read, bad):
    assert FIELD_KINDS[kind].read(good) == read
    with pytest.raises((ValueError, TypeError, KeyError)):
        FIELD_KINDS[kind].read(bad)


def test_every_kind_is_tried_and_known():
    used = {kind for benchmark in BENCHMARKS.values() for kind in benchmark.fields.values()}
    assert used == set(FIELD_KINDS)


def test_names():
    assert benchmark_name("gsm8k-8shot") == ("gsm8k", 8)
    assert benchmark_name("super-ni") == ("super_ni", None)
    assert benchmark_name("arc-easy-25shot") == ("arc_easy", 25)
    assert main_metric("gsm8k-0shot") == "exact_match/gsm8k-0shot:flexible-extract"
    assert main_metric("mmlu") == "accuracy/mmlu"
    assert main_metric("winogrande") is None
    assert published_form("aps/super_glue", "boolq") == "boolq"
    assert published_form("aps/super_glue", "rte") is None
    assert published_form("cais/mmlu", "anatomy") == "mmlu"

"""Scores of replies: final numbers as values, letters as stated, words in order."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.text.task_answers import (
    ANSWER_KINDS,
    TASK_METRICS,
    answer_kind,
    choice_letter,
    final_number,
    option_letters,
    rouge_l,
    score_reply,
    task_words,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("So the answer is 10.", 10),
        ("He had 3 cats.\n#### 1,234", 1234),
        ("$18", 18),
        ("it costs \\$1,200.50 in all", "1200.5"),
        ("-3", -3),
        ("x = −3.50", "-3.5"),
        ("-$5", -5),
        ("5-3", 3),
        ("between 10-20", 20),
        ("1/2", "1/2"),
        ("it takes 1 1/2 cups", "3/2"),
        ("\\boxed{\\frac{3}{4}}", "3/4"),
        ("on 5/12/2020", 2020),
        ("50%.", 50),
        (".5", "0.5"),
        ("**42**", 42),
        ("60 is 15*4=60 cats, no dogs", 60),
        ("The answer is 5 + 6 = 11 apples for 3 boys.", 11),
        ("The answer is 7. That took 3 steps.", 7),
        ("The answer is 8? No, the answer is 9 (not 10)", 9),
        ("The answer is near. 4 and 5", 5),
        ("The answer is 0. 7", 0),
        ("Answer: 75/3=25 cats", 25),
        ("3kg of CO2", 3),
        ("1e3", 1000),
        ("1e999999999", 1),
        ("9" * 5000, None),
        ("3/0", 0),
        ("none", None),
        ("", None),
    ],
)
def test_the_number_that_a_reply_comes_to(text, value):
    assert final_number(text) == (None if value is None else Fraction(value))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("A.", "A"),
        ("(B)", "B"),
        ("B) Paris", "B"),
        ("**C**", "C"),
        ("\\boxed{C}", "C"),
        ("b", "B"),
        ("(c).", "C"),
        ("Answer: C", "C"),
        ("Answer:\nB", "B"),
        ("The answer is D", "D"),
        ("The answer is: D", "D"),
        ("So the correct option is (C), as A is wrong", "C"),
        ("The answer is A because of B", "A"),
        ("C\nbecause", "C"),
        ("F - fine", "F"),
        ("I think B", "B"),
        ("It cannot be (D)", "D"),
        ("Both (B) and (C)", None),
        ("The answer is B or C", None),
        ("A dog", None),
        ("I do not know", None),
        ("The answer is a dog", None),
        ("The answer is A dog", None),
        ("Answer: Because", None),
        ("Vitamin C", None),
        ("", None),
    ],
)
def test_the_option_that_a_reply_chooses(text, letter):
    assert choice_letter(text) == letter


def test_options_of_a_prompt_are_lines_from_a_on():
    assert option_letters("Which?\nI. one\nII. two\nA. I only\nB. II only\nC. both\nAnswer:") == [
        "A",
        "B",
        "C",
    ]
    assert option_letters("Which?\n(A) yes\n (B) no") == ["A", "B"]
    assert option_letters("Which?\nB. yes\nC. A. no") == []


def test_words_of_any_script():
    assert task_words("Don't pay 1,000.5 % — THE end.") == ["dont", "pay", "1000.5", "%", "the", "end"]
    assert task_words("A.") == ["a"]  # an article by itself is an answer
    assert task_words("लड़की गई") == ["लड़की", "गई"]
    assert task_words("東京 2020") == ["東", "京", "2020"]
    assert task_words("+ -") == ["+", "-"]
    assert task_words(" \n") == []


def test_rouge_l_by_hand():
    # The longest common subsequence of "a b c d" and "a c e" is "a c": 2 / 4 and 2 / 3.
    assert rouge_l(list("abcd"), list("ace")) == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert rouge_l(list("ab"), list("ba")) == pytest.approx(0.5)
    assert rouge_l([], list("ab")) == 0
    assert rouge_l([], []) == 0


@pytest.mark.parametrize(
    ("reply", "golds", "kind", "scores"),
    [
        ("so 1,234.0 dollars", ["#### 1234"], "number", {"accuracy": 1}),
        ("So the answer is 12.", ["So the answer is 10."], "number", {"accuracy": 0}),
        ("no idea", ["#### 0"], "number", {"accuracy": 0}),
        ("a half: 1/2", ["#### 3", "0.5"], "number", {"accuracy": 1}),
        ("(D)", ["The answer is: D"], "choice", {"accuracy": 1}),
        ("either", ["D"], "choice", {"accuracy": 0}),
        ("The cat sat!", ["the CAT sat"], "text", {"exact_match": 1, "rouge_l": 1, "f1": 1}),
        ("sat the cat", ["the cat sat"], "text", {"exact_match": 0, "rouge_l": 2 / 3, "f1": 1}),
        ("no", ["yes", "No."], "text", {"exact_match": 1, "rouge_l": 1, "f1": 1}),
        ("", ["yes"], "text", {"exact_match": 0, "rouge_l": 0, "f1": 0}),
    ],
)
def test_replies_are_scored_by_kind(reply, golds, kind, scores):
    assert score_reply(reply, golds, kind) == pytest.approx(scores)
    assert tuple(scores) == TASK_METRICS[kind]


@pytest.mark.parametrize(
    ("gold", "kind", "reason"),
    [
        ("many", "number", "'many' holds no number"),
        ("E or so", "choice", "names no option"),
        (" ", "text", "empty"),
    ],
)
def test_a_gold_answer_of_another_kind_is_unscorable(gold, kind, reason):
    with pytest.raises(ValueError, match=reason):
        score_reply("1", [gold, "1"], kind)


@pytest.mark.parametrize(
    ("golds", "kind"),
    [
        (["A", "d.", "(C)", "J"], "choice"),
        (["So the answer is: C", "Answer: A", "The correct option is D"], "choice"),
        (["Answer: A dozen. So the answer is 12.", "9-4=5\n#### 5"], "number"),
        (["12", "$1,000", "-3.5%", "1/2"], "number"),
        (["yes", "no"], "text"),
        (["12 cats", "3 dogs"], "text"),
        (["A", "12"], "text"),
        (["#### 1"] * 19 + ["who knows"], "number"),
        (["#### 1"] * 18 + ["who knows"], "text"),
        ([], "text"),
    ],
)
def test_the_kind_of_answers_is_that_of_nearly_all(golds, kind):
    assert answer_kind(golds) == kind


@settings(max_examples=50, deadline=None)
@given(value=st.integers(-(10**9), 10**9), reply=st.text(max_size=30))
def test_any_number_is_read_back_and_any_text_is_scored(value, reply):
    assert final_number(f"Then 3 of 4. So the answer is {value:,}.") == value
    for kind, gold in {"number": "#### 1", "choice": "A", "text": "a b"}.items():
        assert all(0 <= each <= 1 for each in ANSWER_KINDS[kind](reply, [gold]).values())
    if task_words(reply):
        assert set(score_reply(reply, [reply], "text").values()) == {1.0}

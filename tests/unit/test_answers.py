"""Answers are compared as word lists: `38-35` is not `3835`, and `12` is not in `2012`."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.text.answers import (
    ANSWER_METRICS,
    answer_words,
    contains,
    exact_match,
    gold_recall,
    score_answer,
    token_f1,
)
from transfuse.text.wording import question_key


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  Answer, is: a Cup!", ["answer", "is", "cup"]),
        ("67,827 people", ["67827", "people"]),
        ("1,234,567", ["1234567"]),
        ("1,23", ["1", "23"]),  # no thousands separator
        ("12,3456", ["12", "3456"]),
        ("38-35", ["38", "35"]),
        ("38–35", ["38", "35"]),
        ("3.5 % of 1.5", ["3.5", "%", "of", "1.5"]),
        ("2.", ["2"]),
        ("Queen's players’ cup", ["queens", "players", "cup"]),
        ("don't", ["dont"]),
        ("snake_case", ["snake", "case"]),
        ("ＦＩＦＡ ２０２３", ["fifa", "2023"]),  # full width
        ("ﬁnal Straße", ["final", "strasse"]),
        ("Ana\u0301lisis", ["an\u00e1lisis"]),
        ("東京 2020", ["東京", "2020"]),
        ("a an the", []),
        ("…—!", []),
        ("", []),
    ],
)
def test_normalised_words(text, words):
    assert answer_words(text) == words


def test_a_vowel_sign_is_part_of_its_word():
    # day, alms, poor: their letters proper are the same, their vowels are combining marks
    assert len({tuple(answer_words(word)) for word in ("दिन", "दान", "दीन")}) == 3


def test_f1_by_hand():
    # Given 4 words, gold 3, shared 2: precision 1/2, recall 2/3, F1 = 2 * (1/3) / (7/6) = 4/7.
    assert token_f1(["spain", "won", "in", "sydney"], ["spain", "in", "2023"]) == pytest.approx(4 / 7)
    assert gold_recall(["spain", "won", "in", "sydney"], ["spain", "in", "2023"]) == pytest.approx(2 / 3)


def test_f1_counts_a_repeated_word_as_often_as_gold_has_it():
    assert token_f1(["go", "go", "go"], ["go", "stop"]) == pytest.approx(2 * 1 / 5)
    assert gold_recall(["go", "go", "go"], ["go", "stop"]) == pytest.approx(1 / 2)


def scores(answer: str, *golds: str) -> dict[str, float]:
    return score_answer(answer, golds)


def test_a_year_does_not_contain_a_number():
    assert scores("in 2012", "12")["contains"] == 0
    assert scores("on 12 May", "12")["contains"] == 1


def test_a_score_is_not_a_number():
    assert scores("38-35", "3835")["exact_match"] == 0
    assert scores("38–35", "38-35")["exact_match"] == 1
    assert scores("15", "1.5")["exact_match"] == 0


def test_thousands_separators_do_not_matter():
    assert scores("67,827", "67827") == dict.fromkeys(ANSWER_METRICS, 1.0)


def test_contains_wants_order_and_no_gap():
    assert contains(["won", "by", "spain"], ["by", "spain"]) == 1
    assert contains(["spain", "by"], ["by", "spain"]) == 0
    assert contains(["by", "all", "spain"], ["by", "spain"]) == 0
    assert contains(["by"], ["by", "spain"]) == 0


def test_a_long_answer_contains_but_does_not_match():
    got = scores("It was Spain, in Sydney.", "Spain")
    assert got == pytest.approx({"exact_match": 0, "f1": 2 / 6, "gold_recall": 1, "contains": 1})


def test_each_metric_takes_its_best_gold():
    got = scores("La Roja", "Spain", "La Roja", "...")  # an alias without a word is passed over
    assert got == dict.fromkeys(ANSWER_METRICS, 1.0)


def test_an_empty_answer_scores_zero():
    assert scores("", "Spain") == dict.fromkeys(ANSWER_METRICS, 0.0)
    assert scores("the", "Spain") == dict.fromkeys(ANSWER_METRICS, 0.0)


@pytest.mark.parametrize("golds", [["the"], ["-", "Spain"], [""]])
def test_a_gold_answer_without_words_cannot_be_scored(golds):
    with pytest.raises(ValueError, match="holds no word"):
        score_answer("Spain", golds)


words = st.lists(st.sampled_from(["spain", "won", "2012", "12", "cup"]), max_size=6)


@given(given_words=words, gold=words.filter(bool))
def test_metrics_agree_with_one_another(given_words, gold):
    values = {name: metric(given_words, gold) for name, metric in ANSWER_METRICS.items()}
    assert all(0 <= value <= 1 for value in values.values())
    assert values["exact_match"] <= values["contains"] <= values["gold_recall"]
    assert values["exact_match"] <= values["f1"]
    assert {metric(gold, gold) for metric in (exact_match, token_f1, gold_recall, contains)} == {1.0}


@given(st.text(alphabet=st.characters(max_codepoint=127)))
@settings(max_examples=100, deadline=None)
def test_plain_text_takes_the_same_way_as_any_other(text):
    # One letter beyond ASCII sends the whole text down the general way.
    assert [*answer_words(text), "é"] == answer_words(text + " é")
    assert f"{question_key(text)} é".strip() == question_key(text + " é")

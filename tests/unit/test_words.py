"""Words that texts are searched by: what a query and a text write differently must meet."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.text.words import search_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Night-Ferry, to Tessmar!", "the night ferry to tessmar"),
        ("Canada's team didn’t; O’Neill’s did", "canada team didn t o neill did"),
        ("1,000.5 and 67,827 but 1,23", "1000.5 and 67827 but 1 23"),
        ("won 38-35 (v2.0.1, .5, 3.14.)", "won 38 35 v2.0.1 5 3.14"),
        ("C++, g++ and C++17, C# but #3, no#3", "c++ g++ and c++ 17 c# but 3 no 3"),
        ("max_tokens=128", "max tokens 128"),
        ("Straße STRASSE ﬁne Ｆｕｌｌ m²", "strasse strasse fine full m2"),
        ("e\u0301te\u0301 = été", "été été"),
        ("co\u00adoperate \u200bzero", "cooperate zero"),
        ("हिन्दी में", "हिन्दी में"),
        ("می\u200cخواهم ١٢٣", "میخواهم 123"),
        ("東京タワー。愛", "東京 京タ タワ ワー 愛"),
        ("iPhone15手机 第3.5章", "iphone15 手机 第 3.5 章"),
        ("ไทย ๑๒", "ไท ทย 12"),
        ("한국어를", "한국 국어 어를"),
        ("\u0301 ++ # ... \ud800", ""),
        ("", ""),
    ],
)
def test_words_worked_by_hand(text, words):
    assert search_words(text) == words.split()


def test_a_very_long_word_is_found_by_its_parts():
    assert search_words("x" * 130) == ["x" * 64, "x" * 64, "xx"]
    assert [len(word) for word in search_words("é" * 130)] == [64, 64, 2]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_words_are_short_hold_no_space_and_depend_on_neither_case_nor_form(text):
    words = search_words(text)
    assert all(0 < len(word) <= 64 and not any(map(str.isspace, word)) for word in words)
    assert search_words(text.casefold()) == words
    assert search_words(f" {text}\n") == words


@pytest.mark.parametrize("sign", ["+", "#", "1.", "1,000", "a.", "c++", "'s", "漢", "\u0301", "é"])
def test_no_repeated_sign_makes_it_slow(sign):
    started = time.process_time()
    search_words(sign * 60_000)
    assert time.process_time() - started < 2  # a quadratic search would take minutes

"""Ids as the model reads them, ends in bytes: every family, worked by hand; what is refused."""

import gc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from tokenizer_families import FAMILIES, byte_level, sentencepiece, unigram, wordpiece
from transfuse.errors import DataError, ModelError
from transfuse.io import token_spans as module
from transfuse.io.chat import prompt_format
from transfuse.io.token_spans import token_spans

TEXTS = [
    "The cup was won in 2023, for the 1st time.",
    "def area(w, h):\n\treturn w * h\r\n\r\n\r\n",
    "東京都は日本の首都である。",
    "e\u0301te\u0301 naïve \u1112\u1161\u11ab x",
    "👩‍👩‍👧 👍🏽 x",
    "שלום עולם, مرحبا!",
    "\x00\x01a\x7f  \u00a0\u3000b \u2028",
    "ﬁne ㎢ … ½, ｶﾞ",
    "      indented   \n    by far   ",
    "a <|im_end|>b <|im_end|> c</s>",
    "▁x <0x41> ##s Ġa",
    "",
    " ",
]


@pytest.fixture(scope="module", params=list(FAMILIES))
def tokenizer(request):
    return FAMILIES[request.param]()


def ends_by_token(tokenizer, text: str) -> list[tuple[str, int]]:
    (spans,) = token_spans(tokenizer, [text])
    return list(
        zip(tokenizer.convert_ids_to_tokens(spans.token_ids.tolist()), spans.ends.tolist(), strict=True)
    )


def check(tokenizer, text: str, spans) -> None:
    assert spans.token_ids.dtype == spans.ends.dtype == np.int32
    assert spans.token_ids.tolist() == prompt_format(tokenizer).encode_text(text)
    assert len(spans.ends) == len(spans.token_ids)
    assert (np.diff(spans.ends) >= 0).all()
    n_bos = len(prompt_format(tokenizer).bos_ids)
    assert not spans.ends[:n_bos].any()
    if len(spans.ends) > n_bos:
        assert spans.ends[-1] == len(text.encode())


def test_ids_are_those_of_encode_text_and_ends_tile_the_bytes(tokenizer):
    for text, spans in zip(TEXTS, token_spans(tokenizer, TEXTS), strict=True):
        check(tokenizer, text, spans)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(st.sampled_from([*TEXTS, *"ae \n1,.", "\u0301", "ﬁ", "東", "<s>"]), max_size=6).map("".join)
)
def test_the_same_over_made_up_texts(tokenizer, text):
    check(tokenizer, text, token_spans(tokenizer, [text])[0])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=12))
def test_the_same_over_any_unicode(tokenizer, text):
    check(tokenizer, text, token_spans(tokenizer, [text])[0])


@settings(max_examples=80, deadline=None)
@given(text=st.text(max_size=20).filter(lambda text: "<" not in text))
def test_tokens_of_a_byte_level_model_hold_the_bytes_they_decode_to(text):
    tokenizer = BYTE_LEVEL
    (spans,) = token_spans(tokenizer, [text])
    data = text.encode()
    for start, end, token_id in zip([0, *spans.ends], spans.ends, spans.token_ids, strict=False):
        decoded = tokenizer.decode([int(token_id)])
        assert decoded == data[start:end].decode(errors="replace")


BYTE_LEVEL = byte_level()


def test_a_byte_level_token_may_end_within_a_character():
    assert ends_by_token(byte_level(), " naïve")[:2] == [("ĠnaÃ", 4), ("¯ve", 7)]
    assert ends_by_token(byte_level(270), "東") == [("æ", 1), ("Ŀ", 2), ("±", 3)]


def test_byte_tokens_are_one_byte_each_and_bos_none():
    tokenizer = sentencepiece()
    assert ends_by_token(tokenizer, "東 a") == [
        ("<s>", 0),
        ("<0xE6>", 1),
        ("<0x9D>", 2),
        ("<0xB1>", 3),
        ("▁", 4),
        ("a", 5),
    ]


def test_a_space_put_in_front_is_no_byte_of_the_text():
    llama = sentencepiece(adds_space=True)
    assert ends_by_token(llama, "he") == [("<s>", 0), ("▁he", 2)]
    assert ends_by_token(llama, "  he") == [("<s>", 0), ("▁", 0), ("▁", 1), ("▁he", 4)]
    assert ends_by_token(llama, "東")[:3] == [("<s>", 0), ("▁", 0), ("<0xE6>", 1)]
    # After a special token a new stretch begins, and gets its own space.
    assert ends_by_token(llama, "he</s>he")[2:] == [("</s>", 6), ("▁he", 8)]
    assert ends_by_token(llama, "he</s> he")[2:] == [("</s>", 6), ("▁", 6), ("▁he", 9)]
    roberta = byte_level(adds_space=True)
    assert ends_by_token(roberta, "The cup")[:1] == [("ĠThe", 3)]
    assert ends_by_token(roberta, "東 a")[:2] == [("ĠæĿ", 2), ("±", 3)]


def test_special_tokens_written_in_a_text_cover_their_own_bytes():
    tokenizer = byte_level()
    assert ends_by_token(tokenizer, "é<|im_end|>e") == [("Ã©", 2), ("<|im_end|>", 12), ("e", 13)]
    assert prompt_format(tokenizer).encode_text("<|im_end|>") == [
        tokenizer.convert_tokens_to_ids("<|im_end|>")
    ]


def test_wordpiece_gives_white_space_to_the_token_after_it_and_the_last_to_the_last():
    tokenizer = wordpiece()
    assert ends_by_token(tokenizer, "  The CUP ,  \n") == [("the", 5), ("cup", 9), (",", 14)]
    # An accent that is dropped goes with its letter.
    assert ends_by_token(tokenizer, "cafe\u0301, the")[:2] == [("cafe", 6), (",", 7)]
    assert ends_by_token(tokenizer, "the 語 cup")[:3] == [("the", 3), ("<unk>", 7), ("cup", 11)]


def test_a_character_that_becomes_several_tokens_belongs_to_the_first():
    tokenizer = unigram()
    assert ends_by_token(tokenizer, "ﬁ")[-1][1] == 3
    ends = dict(ends_by_token(tokenizer, "ﬁne"))
    assert ends == {"▁f": 4, "in": 4, "e": 5}  # "in" reaches on to the n


def test_composed_letters_cover_all_that_they_are_made_of():
    ends = ends_by_token(byte_level(composes=True), "e\u0301te\u0301 x")
    assert ends == [("Ã©tÃ©", 7), ("Ġ", 8), ("x", 9)]
    # Three jamo become one syllable of three tokens: all end behind it, and the next begins there.
    ends = ends_by_token(byte_level(composes=True), "\u1112\u1161\u11ab x")
    assert [end for _, end in ends] == [9, 9, 9, 10, 11]


def test_offsets_without_white_space_do_not_mislead():
    tokenizer = byte_level(composes=True, trims_offsets=True)
    assert ends_by_token(tokenizer, "e\u0301  \n x") == [
        ("Ã©", 3),
        ("ĠĠ", 5),
        ("Ċ", 6),
        ("Ġ", 7),
        ("x", 8),
    ]


def test_nothing_kept_leaves_bos_or_nothing():
    assert ends_by_token(wordpiece(), " \n ") == []
    assert ends_by_token(sentencepiece(), "") == [("<s>", 0)]
    assert token_spans(byte_level(), []) == []


def test_texts_do_not_depend_on_company(monkeypatch):
    tokenizer = unigram()
    together = token_spans(tokenizer, TEXTS)
    monkeypatch.setattr(module, "_BATCH_TEXTS", 3)
    for one, other in zip(together, token_spans(tokenizer, TEXTS), strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_array_equal(one.ends, other.ends)


def test_tokens_added_later_are_known_and_a_tokenizer_is_let_go():
    tokenizer = byte_level()
    before = [end for _, end in ends_by_token(tokenizer, "a <tool> b")]
    assert all(end - start == 1 for start, end in pairwise(before))
    tokenizer.add_tokens(["<tool>"])
    assert ends_by_token(tokenizer, "a <tool> b")[2] == ("<tool>", 8)
    assert tokenizer in module._SPELLINGS
    n_known = len(module._SPELLINGS)
    del tokenizer
    gc.collect()
    assert len(module._SPELLINGS) < n_known


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(ModelError, match=r"ByT5Tokenizer of .*: expected a fast tokenizer.*tokenizer\.json"):
        token_spans(ByT5Tokenizer(), ["a"])


def test_half_a_surrogate_pair_is_refused_by_number():
    with pytest.raises(DataError, match=r"text 1: expected valid Unicode.*at character 2"):
        token_spans(byte_level(), ["fine", "so\ud83d"])

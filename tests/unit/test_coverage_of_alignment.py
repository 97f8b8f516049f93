"""How well two tokenizations fit: a text worked by hand, texts summed, what is refused."""

import json

import numpy as np
import pytest

from tokenizer_families import FAMILIES, byte_level, wordpiece
from transfuse.errors import DataError
from transfuse.fuse.coverage import PairCoverage, pair_coverage
from transfuse.io.token_spans import TokenSpans, token_spans

TEXT = "The cup of 2023 is on"  # 21 bytes
SOURCE = ["The", " cup", " of", " 2023", " is", " o", "n"]
TARGET = ["", "The", " c", "up", " of", " 20", "23", " is", " on"]


def spans(pieces: list[str]) -> TokenSpans:
    ends = np.cumsum([len(piece.encode()) for piece in pieces]).astype(np.int32)
    return TokenSpans(np.arange(len(pieces), dtype=np.int32), ends)


def coverage(texts: list[str], source: list[TokenSpans], target: list[TokenSpans], **options) -> PairCoverage:
    return pair_coverage(texts, source, target, source_name="big", target_name="small", **options)


def test_worked_by_hand():
    found = coverage([TEXT], [spans(SOURCE)], [spans(TARGET)])
    assert (found.n_texts, found.n_bytes, found.n_target_tokens) == (1, 21, 8)
    # " of" and " is" are one token each, read behind the same bytes; "The" has no state of the source in front.
    assert found.one_to_one_share == found.taught_share == 2 / 8
    assert found.byte_share == 6 / 21
    assert (found.n_digit_tokens, found.digit_share) == (2, 0.0)
    # The | cup | of | 2023 | is | on, of which The, of and is are one to one.
    assert (found.n_chunks, found.chunk_share) == (6, 3 / 6)
    assert (found.longest_chunk_tokens, found.longest_chunk_source_tokens) == (2, 1)
    assert (found.longest_chunk_text, found.longest_chunk_bytes) == (" cup", 4)
    assert json.loads(json.dumps(found.to_json()))["taught_share"] == 0.25


def test_a_map_that_takes_tokens_apart_teaches_wherever_both_have_read_the_same():
    found = coverage([TEXT], [spans(SOURCE)], [spans(TARGET)], needs_one_to_one=False)
    # " c", " of", " 20", " is" and " on".
    assert found.taught_share == 5 / 8
    assert found.one_to_one_share == 2 / 8
    assert found.digit_share == 1 / 2


def test_texts_are_summed_and_order_does_not_matter():
    texts = [TEXT, "12 ab", TEXT]
    source = [spans(SOURCE), spans(["12", " ab"]), spans(SOURCE)]
    target = [spans(TARGET), spans(["12", " ab"]), spans(TARGET)]
    found = coverage(texts, source, target)
    assert found.n_target_tokens == 8 + 1 + 8
    assert found.taught_share == (2 + 1 + 2) / 17
    assert found.n_digit_tokens == 4  # the first token of a text is predicted by no state
    assert found.chunk_share == (3 + 2 + 3) / (6 + 2 + 6)
    assert found == coverage(texts[::-1], source[::-1], target[::-1])


def test_a_tokenizer_beside_itself_is_taught_everything():
    tokenizer = byte_level()
    texts = ["The cup was won in 2023.", "東京都 é", "", "1"]
    read = token_spans(tokenizer, texts)
    found = coverage(texts, read, read)
    assert found.one_to_one_share == found.taught_share == found.chunk_share == found.digit_share == 1.0
    assert found.longest_chunk_tokens == found.longest_chunk_source_tokens == 1


def test_digits_that_one_side_cuts_apart_are_seen():
    texts = ["The cup was won in 2023, 12345 times."]
    whole, apart = byte_level(), byte_level(splits_digits=True)
    found = coverage(texts, token_spans(whole, texts), token_spans(apart, texts))
    assert found.digit_share is not None
    assert found.taught_share is not None
    assert found.digit_share < found.taught_share / 2


@pytest.mark.parametrize("name", list(FAMILIES))
def test_all_families_against_wordpiece_have_shares_in_range(name):
    texts = ["The cup was won in 2023, ﬁne.  ", "", " ", "e\u0301 東京 👩‍👩‍👧"]
    one, other = token_spans(FAMILIES[name](), texts), token_spans(wordpiece(), texts)
    for found in (coverage(texts, one, other), coverage(texts, other, one)):
        shares = [found.one_to_one_share, found.taught_share, found.byte_share, found.chunk_share]
        assert all(share is not None and 0 <= share <= 1 for share in shares)


def test_nothing_to_share_is_none():
    found = coverage([], [], [])
    assert (found.taught_share, found.byte_share, found.digit_share, found.chunk_share) == (None,) * 4
    with pytest.raises(DataError, match="no text has two tokens of the target; give longer texts"):
        found.check(0.0)


def test_too_little_coverage_stops_with_names_share_and_advice():
    found = coverage([TEXT], [spans(SOURCE)], [spans(TARGET)])
    found.check(0.25)
    with pytest.raises(
        DataError,
        match=r"source 'big' and target 'small': .*25\.0% of the target's 8 tokens; expected at least 30\.0%.*"
        "'retokenize'",
    ):
        found.check(0.3)


def test_other_texts_are_refused():
    with pytest.raises(DataError, match=r"got 1 texts, 1 for the source and 0 for the target"):
        coverage([TEXT], [spans(SOURCE)], [])
    with pytest.raises(DataError, match=r"text 1 has 2 bytes, but its tokens by 'small' cover 21"):
        coverage([TEXT, "no"], [spans(SOURCE), spans(["no"])], [spans(TARGET), spans(TARGET)])


def test_a_long_chunk_is_shown_in_part():
    text = "東" * 300
    found = coverage([text], [spans([text])], [spans(list(text))])
    assert found.longest_chunk_text == "東" * 200
    assert found.longest_chunk_bytes == 900


def test_another_alignment_says_itself_what_is_taught():
    source, target = (
        TokenSpans(np.array([1, 2], np.int32), np.array([1, 4], np.int32)),
        TokenSpans(np.array([5, 6, 7], np.int32), np.array([1, 2, 4], np.int32)),
    )
    given = pair_coverage(["a12b"], [source], [target], source_name="s", target_name="t")
    assert (given.taught_share, given.n_target_tokens) == (0.0, 2)
    told = pair_coverage(
        ["a12b"],
        [source],
        [target],
        source_name="s",
        target_name="t",
        taught=[np.array([True, False, False])],
    )
    assert (told.taught_share, told.one_to_one_share, told.digit_share) == (0.5, 0.0, 0.5)

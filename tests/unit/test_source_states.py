"""What one source says at a target's states."""

import numpy as np
import pytest

from tokenizer_families import byte_level, sentencepiece, wordpiece
from transfuse.fuse.source_states import (
    Aligned,
    align_by_edits,
    align_exactly,
    plain_tokens,
    source_states,
)
from transfuse.fuse.vocabulary_map import VocabularyMap
from transfuse.io.distribution_cache import TextDistributions
from transfuse.io.token_spans import TokenSpans


def said(ids: list[int], ends: list[int], top_ids: list[list[int]], probs: list[list[float]]):
    with np.errstate(divide="ignore"):
        top = np.log(np.array(probs, dtype=np.float32))
    n = len(ids)
    return TextDistributions(
        np.array(ids, dtype=np.int32),
        np.array(ends, dtype=np.int32),
        np.append(np.full(n - 1, -1.0), np.nan).astype(np.float32),
        np.array(top_ids, dtype=np.int32),
        top,
        np.zeros(n, dtype=np.float32),
    )


def as_map(images: list[int]) -> VocabularyMap:
    return VocabularyMap(np.array(images, dtype=np.int32), np.zeros(len(images), dtype=np.uint8), "exact")


def target(ids: list[int], ends: list[int]) -> TokenSpans:
    return TokenSpans(np.array(ids, dtype=np.int32), np.array(ends, dtype=np.int32))


@pytest.mark.parametrize("make", [byte_level, sentencepiece, wordpiece])
def test_tokens_of_every_family_are_compared_without_blanks_and_marks(make):
    tokenizer = make()
    plain = plain_tokens(tokenizer)
    (ids,) = tokenizer(["won the cup"], add_special_tokens=False)["input_ids"]
    assert "".join(plain[token] for token in ids) == "wonthecup"
    assert plain[tokenizer.convert_tokens_to_ids("<s>")] == "<s>"
    assert len(plain) >= len(tokenizer)


def test_bytes_that_are_no_character_stay_apart():
    tokenizer = byte_level()
    plain = plain_tokens(tokenizer)
    ids = tokenizer("👍", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    assert len({plain[token] for token in ids}) == len(ids)


def test_states_that_have_read_the_same_bytes():
    other = said([0] * 4, [1, 2, 3, 6], [[0]] * 4, [[1.0]] * 4)
    # State 0 has read 2 bytes, as the source's state 1; both read one byte then. State 1: four bytes against three.
    found = align_exactly(other, target([0, 1, 2, 3], [2, 3, 4, 6]), needs_one_to_one=True)
    np.testing.assert_array_equal(found.is_taught, [True, False, False, False])
    assert found.source_state[0] == 1
    found = align_exactly(other, target([0, 1, 2, 3], [2, 3, 4, 6]), needs_one_to_one=False)
    np.testing.assert_array_equal(found.is_taught, [True, True, False, False])
    np.testing.assert_array_equal(found.source_state[:2], [1, 2])


def test_the_sources_last_state_teaches_nothing_even_before_tokens_without_bytes():
    """The target ends with a token of no bytes: what the source says after the text is not known."""
    other = said([0, 1], [2, 3], [[0]] * 2, [[1.0]] * 2)
    found = align_exactly(other, target([0, 1, 2], [2, 3, 3]), needs_one_to_one=False)
    assert not found.is_taught[1:].any()


def test_by_edits_a_state_is_taught_where_its_own_token_stands_for_one_of_the_source():
    words, own = ["The", "cup", "final", "won"], ["The", "c", "up", "final", "won"]
    other = said([0, 1, 2, 3], [3, 7, 13, 17], [[0]] * 4, [[1.0]] * 4)
    # "c" and "up" each lie along "cup" alone, which is mapped to "up"; so only "up" is taught there.
    found = align_by_edits(
        other, target([0, 1, 2, 3, 4], [3, 5, 7, 13, 17]), words, own, as_map([0, 2, 3, 4])
    )
    np.testing.assert_array_equal(found.is_taught, [True, False, True, True, False])
    np.testing.assert_array_equal(found.source_state[found.is_taught], [0, 1, 2])


def test_what_is_kept_is_mapped_added_up_and_scaled_where_asked():
    other = said([0, 1], [1, 2], [[0, 1, 2], [0, 1, 2]], [[0.4, 0.2, 0.2]] * 2)
    everywhere = Aligned(np.array([0, 0]), np.array([True, False]))
    mapped = as_map([7, 8, 7])
    plain = source_states(other, everywhere, mapped, renormalises=False)
    np.testing.assert_array_equal(plain.token_ids[0, :2], [7, 8])
    np.testing.assert_allclose(np.exp(plain.log_probs[0]), [0.6, 0.2, 0], rtol=1e-6)
    np.testing.assert_array_equal(plain.is_taught, [True, False])
    assert np.all(plain.log_probs[1] == -np.inf)
    scaled = source_states(other, everywhere, mapped, renormalises=True)
    np.testing.assert_allclose(np.exp(scaled.log_probs[0]), [0.75, 0.25, 0], rtol=1e-6)
    likeliest = source_states(other, everywhere, mapped, renormalises=True, duplicates="keep-likeliest")
    np.testing.assert_allclose(np.exp(likeliest.log_probs[0]), [2 / 3, 1 / 3, 0], rtol=1e-6)


def test_a_state_of_which_no_kept_token_has_a_counterpart_is_not_taught():
    other = said([0, 1], [1, 2], [[3], [0]], [[0.9], [0.9]])
    found = source_states(
        other, Aligned(np.array([0, 1]), np.array([True, True])), as_map([5, 6, 7, -1]), renormalises=True
    )
    np.testing.assert_array_equal(found.is_taught, [False, True])
    assert np.all(found.log_probs[0] == -np.inf)


def test_a_source_that_keeps_nothing_of_a_text_says_nothing():
    ids, numbers = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
    none = TextDistributions(ids, ids, numbers, ids.reshape(0, 3), numbers.reshape(0, 3), numbers)
    aligned = align_exactly(none, target([0, 1], [2, 3]), needs_one_to_one=True)
    found = source_states(none, aligned, as_map([0]), renormalises=True)
    np.testing.assert_array_equal(found.is_taught, [False, False])
    assert found.log_probs.shape == (2, 3)

"""The dynamic programming alignment equals a plain one, ties too."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.tensors.min_edit_alignment import min_edit_alignment

TOKENS = st.lists(st.sampled_from(["a", "b", "ab", "ba", "", "aab", "bb"]), min_size=1, max_size=14)


def edit_distance(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for character in one:
        diagonal, row[0] = row[0], row[0] + 1
        for place, against in enumerate(other, start=1):
            diagonal, row[place] = (
                row[place],
                min(row[place] + 1, row[place - 1] + 1, diagonal + (character != against)),
            )
    return row[-1]


def matches_cell_by_cell(source: list[str], target: list[str]) -> list[list[int]]:
    """The source tokens of each target token, as arXiv:2401.10491's code finds them: one cell after the other.

    On the way back equal costs are decided for the diagonal, then for the source's token before.
    """
    cost: dict[tuple[int, int], float] = {}
    for i, one in enumerate(source):
        for j, other in enumerate(target):
            before = [cost.get(cell, float("inf")) for cell in ((i - 1, j), (i, j - 1), (i - 1, j - 1))]
            cost[i, j] = edit_distance(one, other) + (min(before) if (i, j) != (0, 0) else 0)
    i, j = len(source) - 1, len(target) - 1
    matches: list[list[int]] = [[] for _ in target]
    while True:
        matches[j].insert(0, i)
        if (i, j) == (0, 0):
            return matches
        ways = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        i, j = min(ways, key=lambda cell: cost.get(cell, float("inf")))  # the first of equal ones


def as_lists(source: list[str], target: list[str]) -> list[list[int]]:
    found = min_edit_alignment(source, target)
    return [list(range(*span)) for span in zip(*found, strict=True)]


def test_worked_by_hand():
    # "The|cup|final" against "The|c|up|final": "cup" costs 2 beside "c" and 1 beside "up".
    source, target = ["The", "cup", "final"], ["The", "c", "up", "final"]
    assert as_lists(source, target) == [[0], [1], [1], [2]]
    assert min_edit_alignment(source, target).is_single.tolist() == [True] * 4
    assert as_lists(target, source) == [[0], [1, 2], [3]]
    assert min_edit_alignment(target, source).is_single.tolist() == [True, False, True]


def test_of_equal_ways_both_sides_go_before_the_source_and_the_source_before_the_target():
    assert as_lists(["a", "a", "a"], ["a", "a"]) == [[0, 1], [2]]
    assert as_lists(["a", "a"], ["a", "a", "a"]) == [[0], [0], [1]]
    assert as_lists(["a", "b"], ["a", "b"]) == [[0], [1]]


@settings(max_examples=150, deadline=None)
@given(TOKENS, TOKENS)
def test_equal_to_one_cell_after_the_other(source, target):
    assert as_lists(source, target) == matches_cell_by_cell(source, target)


@settings(max_examples=100, deadline=None)
@given(TOKENS, TOKENS)
def test_every_token_of_both_sides_is_matched_in_order(source, target):
    found = min_edit_alignment(source, target)
    assert found.source_start[0] == 0
    assert found.source_end[-1] == len(source)
    assert (found.source_end > found.source_start).all()
    # From one target token to the next: the same source token again, or the one after it.
    assert np.isin(found.source_start[1:] - found.source_end[:-1], [-1, 0]).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abc", max_size=3), min_size=1, max_size=12, unique=True))
def test_equal_sequences_of_different_tokens_match_one_by_one(tokens):
    assert as_lists(tokens, tokens) == [[place] for place in range(len(tokens))]


@pytest.mark.parametrize(("source", "target"), [([], ["a"]), (["a"], [])])
def test_a_side_without_tokens_is_refused(source, target):
    with pytest.raises(
        ValueError, match=f"at least one token on each side, got {len(source)} and {len(target)}"
    ):
        min_edit_alignment(source, target)

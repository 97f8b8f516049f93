"""Nearest strings are those of comparing all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from transfuse.tensors.nearest_strings import nearest_strings


def all_pairs(sources: list[str], targets: list[str]) -> tuple[list[int], list[int]]:
    """Place of the first target of least distance, and the distance."""
    tables = [[Levenshtein.distance(source, target) for target in targets] for source in sources]
    return [row.index(min(row)) for row in tables], [min(row) for row in tables]


def test_worked_by_hand() -> None:
    targets = ["sitting", " the", "the", "cat", "the"]
    sources = ["kitten", "the", "then", "xyzw", "cat", ""]
    found = nearest_strings(sources, targets)
    # "xyzw" has nothing of any target: 4 for " the", "the" and "cat", of which " the" is the first.
    assert found.places.tolist() == [0, 2, 2, 1, 3, 2]
    assert found.distances.tolist() == [3, 0, 1, 4, 0, 3]


@settings(max_examples=200, deadline=None)
@given(
    sources=st.lists(st.text("abcé \udc80漢", max_size=7), max_size=20),
    targets=st.lists(st.text("abdé \udc81字", max_size=7), min_size=1, max_size=20),
    n_threads=st.sampled_from([1, 2]),
)
def test_equal_to_all_pairs(sources: list[str], targets: list[str], n_threads: int) -> None:
    found = nearest_strings(sources, targets, n_threads=n_threads)
    assert (found.places.tolist(), found.distances.tolist()) == all_pairs(sources, targets)


def test_equal_to_all_pairs_where_most_targets_have_common_characters_only() -> None:
    rng = np.random.default_rng(0)

    def words(n: int, letters: str) -> list[str]:
        return ["".join(rng.choice(list(letters), rng.integers(1, 9))) for _ in range(n)]

    targets = [*words(2000, "abcdefgh "), "dé", "é", "ж d"]  # characters that 1 target in 1000 has are rare
    targets = [targets[place] for place in rng.permutation(len(targets))]
    sources = words(150, "abcdefghij ") + words(60, "жéabcщ") + words(30, "щъыж")
    found = nearest_strings(sources, targets)
    assert (found.places.tolist(), found.distances.tolist()) == all_pairs(sources, targets)
    assert len(set(found.distances.tolist())) > 4


def test_long_strings_do_not_overflow() -> None:
    found = nearest_strings(["a" * 700, "b" * 300], ["a" * 400, "c"])
    assert found.places.tolist() == [0, 1]
    assert found.distances.tolist() == [300, 300]


def test_progress_ends_at_all_and_never_goes_back() -> None:
    told: list[tuple[int, int]] = []
    nearest_strings(
        ["ab", "abc", "xyz", "ab", "é"],
        ["ab", "zy", "é!"],
        on_strings=lambda n_done, n_all: told.append((n_done, n_all)),
    )
    assert told[0] == (1, 4)  # an equal one needs no search; equal sources count once
    assert told[-1] == (4, 4)
    assert told == sorted(told)


def test_no_target_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one target string, got none"):
        nearest_strings(["a"], [])

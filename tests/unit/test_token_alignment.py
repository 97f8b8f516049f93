"""Alignment by byte ends: worked by hand, against all pairs, and over cuts that hypothesis makes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.tensors.token_alignment import Chunks, align_chunks, align_states


def ends(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


@st.composite
def two_cuts(draw):
    """Ends of two tokenizations of one text, tokens of no bytes among them; one side may have none at all."""
    n_bytes = draw(st.integers(1, 12))
    sides = []
    for _ in range(2):
        cuts = draw(st.lists(st.integers(0, n_bytes), max_size=16))
        sides.append(ends(*sorted([*cuts, n_bytes])))
    kept_nothing = draw(st.sampled_from([None, None, None, 0, 1]))
    if kept_nothing is not None:
        sides[kept_nothing] = ends(*[0] * draw(st.integers(0, 2)))
    return tuple(sides)


def last_of(values: list[int], n_bytes: int) -> int | None:
    """The last state that has read so many bytes."""
    return max((state for state, end in enumerate(values) if end == n_bytes), default=None)


def states_one_by_one(source: list[int], target: list[int]) -> tuple[list[int], list[bool]]:
    found, single = [], []
    for state, end in enumerate(target):
        match = last_of(source, end)
        is_comparable = match is not None and last_of(target, end) == state
        found.append(match if is_comparable else -1)
        single.append(
            is_comparable
            and state + 1 < len(target)
            and match + 1 < len(source)
            and target[state + 1] == source[match + 1]
            and last_of(target, target[state + 1]) == state + 1
            and last_of(source, source[match + 1]) == match + 1
        )
    return found, single


def rows(chunks: Chunks) -> list[tuple[int, ...]]:
    return list(zip(*(side.tolist() for side in chunks), strict=True))


def test_states_worked_by_hand():
    # |in|ter|est|ing| against <bos>|int|er|esting|: both cut behind "inter" and at the end.
    states = align_states(ends(2, 5, 8, 11), ends(0, 3, 5, 11))
    assert states.source_state.tolist() == [-1, -1, 1, 3]
    assert states.is_one_to_one.tolist() == [False] * 4
    # |The| cup| was| against <bos>|The| c|up| was|
    states = align_states(ends(3, 7, 11), ends(0, 3, 5, 7, 11))
    assert states.source_state.tolist() == [-1, 0, -1, 1, 2]
    assert states.is_one_to_one.tolist() == [False, False, False, True, False]


def test_chunks_worked_by_hand():
    assert rows(align_chunks(ends(2, 5, 8, 11), ends(0, 3, 5, 11))) == [
        (0, 0, 0, 1),
        (0, 2, 1, 3),
        (2, 4, 3, 4),
    ]
    chunks = align_chunks(ends(3, 7, 11), ends(0, 3, 5, 7, 11))
    assert rows(chunks) == [(0, 0, 0, 1), (0, 1, 1, 2), (1, 2, 2, 4), (2, 3, 4, 5)]
    assert chunks.is_one_to_one.tolist() == [False, True, False, True]


def test_with_bos_on_both_sides_the_first_word_is_taught():
    states = align_states(ends(0, 3, 7), ends(0, 3, 7))
    assert states.source_state.tolist() == [0, 1, 2]
    assert states.is_one_to_one.tolist() == [True, True, False]
    # Two tokens in front of the text: the second one has read all there is before it.
    states = align_states(ends(0, 0, 3), ends(0, 3))
    assert states.source_state.tolist() == [1, 2]
    assert states.is_one_to_one.tolist() == [True, False]
    assert rows(align_chunks(ends(0, 0, 3), ends(0, 3))) == [(0, 2, 0, 1), (2, 3, 1, 2)]


def test_a_character_written_as_several_tokens_is_never_one_to_one():
    # Target: "ﬁ" became "f" and "i", both ending behind it. The state of "f" is comparable to none.
    source, target = ends(1, 4, 5), ends(1, 4, 4, 5)
    states = align_states(source, target)
    assert states.source_state.tolist() == [0, -1, 1, 2]
    assert states.is_one_to_one.tolist() == [False, False, True, False]
    assert rows(align_chunks(source, target)) == [(0, 1, 0, 1), (1, 2, 1, 3), (2, 3, 3, 4)]
    assert align_states(target, source).source_state.tolist() == [0, 2, 3]


def test_a_side_that_kept_nothing_makes_one_chunk():
    assert rows(align_chunks(ends(), ends(2, 5))) == [(0, 0, 0, 2)]
    assert rows(align_chunks(ends(0), ends(0, 2, 5))) == [(0, 1, 0, 1), (1, 1, 1, 3)]
    assert rows(align_chunks(ends(0), ends())) == [(0, 1, 0, 0)]
    assert rows(align_chunks(ends(), ends())) == []
    assert align_states(ends(), ends(2, 5)).source_state.tolist() == [-1, -1]
    assert len(align_states(ends(2, 5), ends()).source_state) == 0


@settings(max_examples=150, deadline=None)
@given(two_cuts())
def test_states_equal_those_found_one_by_one(cuts):
    source, target = cuts
    states = align_states(source, target)
    found, single = states_one_by_one(source.tolist(), target.tolist())
    assert states.source_state.tolist() == found
    assert states.is_one_to_one.tolist() == single


@settings(max_examples=150, deadline=None)
@given(two_cuts())
def test_chunks_tile_both_sides_cut_cleanly_and_cannot_be_shorter(cuts):
    source, target = cuts
    chunks = align_chunks(source, target)
    for start, end, side in (
        (chunks.source_start, chunks.source_end, source),
        (chunks.target_start, chunks.target_end, target),
    ):
        assert [*start, len(side)] == [0, *end] or not len(start)
    assert ((chunks.source_end > chunks.source_start) | (chunks.target_end > chunks.target_start)).all()
    borders = [
        (
            source[chunk[1] - 1] if chunk[1] else 0,
            target[chunk[3] - 1] if chunk[3] else 0,
        )
        for chunk in rows(chunks)
    ]
    if all(len(side) and side[-1] for side in cuts):
        assert all(one == other for one, other in borders)
        common = set(source.tolist()) & set(target.tolist())
        leading = {0} if 0 in {*source.tolist(), *target.tolist()} else set()
        assert [one for one, _ in borders] == sorted(common | leading)


@settings(max_examples=200, deadline=None)
@given(two_cuts())
def test_a_state_teaches_where_the_chunk_behind_it_is_one_to_one(cuts):
    source, target = cuts
    states, chunks = align_states(source, target), align_chunks(source, target)
    behind = chunks.target_start[chunks.is_one_to_one] - 1
    # The first token has no state in front of it, and a chunk of tokens without bytes teaches nothing.
    taught = [state for state in behind if state >= 0 and states.source_state[state] >= 0]
    assert np.flatnonzero(states.is_one_to_one).tolist() == taught


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 5), max_size=20), st.booleans())
def test_one_tokenizer_on_both_sides_gives_the_identity(lengths, has_bos):
    both = np.cumsum([*([0] if has_bos else []), *lengths]).astype(np.int32)
    states, chunks = align_states(both, both), align_chunks(both, both)
    assert states.source_state.tolist() == list(range(len(both)))
    assert states.is_one_to_one.tolist() == [True] * (len(both) - 1) + [False] * (len(both) > 0)
    assert chunks.is_one_to_one.all()
    assert len(chunks.source_start) == len(both)


@settings(max_examples=100, deadline=None)
@given(two_cuts())
def test_sides_can_be_exchanged(cuts):
    source, target = cuts
    forward, back = align_chunks(source, target), align_chunks(target, source)
    assert rows(Chunks(*forward[2:], *forward[:2])) == rows(back)


@pytest.mark.parametrize("align", [align_states, align_chunks])
def test_ends_that_fall_and_other_texts_are_refused(align):
    with pytest.raises(ValueError, match=r"expected target ends that .* never fall"):
        align(ends(1, 4), ends(3, 1, 4))
    with pytest.raises(ValueError, match="got 4 bytes in the source and 5 in the target; tokenize the same"):
        align(ends(1, 4), ends(1, 5))

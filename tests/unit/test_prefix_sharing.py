"""Common beginnings are found, and rows laid into trees see themselves alone."""

from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.evaluate.prefix_sharing import (
    STEM_COST_TOKENS,
    Stem,
    common_length,
    plan_stems,
    plan_trees,
    visible_tokens,
)

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=8)


def test_one_question_with_three_endings_is_one_tree():
    rows = [[7, 1, 2, 3], [7, 1, 2, 4, 5], [7, 1, 6]]
    (tree,) = plan_trees(rows, Stem(1, [0, 1, 2]))
    assert tree.token_ids == [1, 2, 3, 4, 5, 6]
    assert tree.depths == [0, 1, 2, 2, 3, 1]
    assert tree.last_descendants == [5, 4, 2, 4, 4, 5]
    assert tree.paths == [[0, 1, 2], [0, 1, 3, 4], [0, 5]]
    assert not tree.is_single
    sees = visible_tokens([tree], 1)[0, 0].int().tolist()
    assert sees == [
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0],
        [1, 1, 1, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 1],
    ]


def test_rows_that_share_little_stay_apart_and_long_trees_are_cut():
    rows = [[1, 2, 3, 4, 5, 6, 7, 8], [1, 9, 9, 9, 9, 9, 9, 9]]
    assert [tree.rows for tree in plan_trees(rows, Stem(0, [0, 1]))] == [[0], [1]]
    alike = [[1, 2, 3, n] for n in range(6)]
    assert [len(tree.rows) for tree in plan_trees(alike, Stem(0, list(range(6))), max_tokens=6)] == [3, 3]
    apart = plan_trees(alike, Stem(0, list(range(6))), may_branch={0, 1, 4})
    assert [tree.rows for tree in apart if not tree.is_single] == [[0, 1]]


@given(rows=ROWS, n_filled=st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_each_row_of_a_tree_sees_its_own_tokens_in_order(rows, n_filled):
    order = sorted(range(len(rows)), key=lambda n: rows[n])
    trees = plan_trees(rows, Stem(0, order))
    assert sorted(row for tree in trees for row in tree.rows) == list(range(len(rows)))
    sees = visible_tokens(trees, n_filled)
    for n_tree, tree in enumerate(trees):
        for row, path in zip(tree.rows, tree.paths, strict=True):
            assert [tree.token_ids[place] for place in path] == rows[row]
            assert [tree.depths[place] for place in path] == list(range(len(path)))
            for n, place in enumerate(path):
                seen = sees[n_tree, 0, place].nonzero().flatten().tolist()
                assert seen == [*range(n_filled), *(n_filled + other for other in path[: n + 1])]


def test_the_examples_of_each_subject_become_a_stem():
    rows = [[subject] * 100 + [number, 1] for subject in (8, 9) for number in range(5)] + [[7, 7]]
    stems = plan_stems(rows, [len(row) - 1 for row in rows])
    assert [stem.n_shared for stem in stems] == [100, 100, 0]
    assert [sorted(stem.rows) for stem in stems] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10]]


def test_a_beginning_of_all_is_taken_where_those_of_parts_save_less():
    rows = [[1] * 200 + [subject] * 10 + [number, 1] for subject in (8, 9) for number in range(5)]
    (stem,) = plan_stems(rows, [len(row) - 1 for row in rows])
    assert (stem.n_shared, len(stem.rows)) == (200, 10)


def test_nothing_is_kept_for_few_tokens_for_kin_or_beyond_what_is_scored():
    rows = [[1] * 60 + [n] for n in range(2)]
    assert plan_stems(rows, [60, 60]) == [Stem(0, [0, 1])]
    rows = [[1] * 300 + [n] for n in range(2)]
    assert plan_stems(rows, [300, 300])[0].n_shared == 300
    assert plan_stems(rows, [300, 300], families=[0, 0]) == [Stem(0, [0, 1])]
    assert plan_stems(rows, [250, 300])[0].n_shared == 250
    assert plan_stems(rows, [250 - STEM_COST_TOKENS, 5]) == [Stem(0, [0, 1])]


@given(rows=ROWS)
@settings(deadline=None, max_examples=60)
def test_every_row_has_one_stem_that_it_begins_with(rows):
    longer = [[5] * 120 + row for row in rows]
    stems = plan_stems(longer, [len(row) - 1 for row in longer])
    assert sorted(row for stem in stems for row in stem.rows) == list(range(len(rows)))
    for stem in stems:
        assert all(common_length(longer[stem.rows[0]], longer[row]) >= stem.n_shared for row in stem.rows)
        assert all(stem.n_shared < len(longer[row]) for row in stem.rows)

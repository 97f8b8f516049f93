"""What is kept of a matrix: blocks, rows and columns by score, and the controls that look at no score."""

import pytest
import torch

from transfuse.tensors.sub_matrices import REDUCTIONS, Block, Cut, Reduction, cut, heaviest_block

SCORES = torch.tensor(
    [
        [8.0, 0, 0, 1],
        [0, 2, 3, 0],
        [0, 4, 2, 5],
    ]
)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def kept_of(
    name: Reduction, n_rows: int, n_columns: int, generator: torch.Generator
) -> tuple[list[int], list[int]]:
    rows, columns = REDUCTIONS[name](SCORES, n_rows, n_columns, generator)
    return rows.tolist(), columns.tolist()


def test_the_heaviest_block_by_hand():
    assert heaviest_block(SCORES, 2, 2) == Block(1, 1, 11.0)
    assert heaviest_block(SCORES, 1, 3) == Block(2, 1, 11.0)
    assert heaviest_block(SCORES, 3, 4) == Block(0, 0, 25.0)
    assert heaviest_block(SCORES, 2, 1) == Block(0, 0, 8.0)


def test_of_equal_blocks_the_upper_then_the_left_one():
    assert heaviest_block(torch.full((5, 6), 0.1), 3, 2)[:2] == (0, 0)
    scores = torch.zeros(4, 4)
    scores[1, 3] = scores[2, 1] = 1
    assert heaviest_block(scores, 1, 1)[:2] == (1, 3)


def test_each_reduction_by_hand(generator):
    assert kept_of("submatrix", 2, 2, generator) == ([1, 2], [1, 2])
    assert kept_of("rows-columns", 2, 3, generator) == ([0, 2], [0, 1, 3])  # sums 9 5 11, and 8 6 5 6
    assert kept_of("leading", 2, 3, generator) == ([0, 1], [0, 1, 2])


def test_of_equal_rows_and_columns_the_first_are_kept(generator):
    rows, columns = REDUCTIONS["rows-columns"](torch.full((400, 50), 0.1), 7, 9, generator)
    assert (rows.tolist(), columns.tolist()) == (list(range(7)), list(range(9)))


@pytest.mark.parametrize("name", ["random", "random-block"])
def test_draws_depend_on_the_seed_alone_and_reach_every_place(name):
    scores = torch.zeros(4, 5)
    draws = [
        tuple(map(tuple, (axis.tolist() for axis in REDUCTIONS[name](scores, 3, 4, seeded(n)))))
        for n in [*range(200), *range(200)]
    ]
    assert draws[:200] == draws[200:]
    assert all(list(axis) == sorted(set(axis)) for draw in draws for axis in draw)
    assert len(set(draws)) == {"random": 4 * 5, "random-block": 2 * 2}[name]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("rows", "is_view"), [([1, 2], True), ([0, 2], False)])
def test_contiguous_parts_are_views(rows, is_view):
    part = cut(SCORES, Cut(torch.tensor(rows), torch.tensor([1, 2, 3])))
    assert part.tolist() == [SCORES.tolist()[row][1:] for row in rows]
    assert (part.untyped_storage().data_ptr() == SCORES.untyped_storage().data_ptr()) == is_view


@pytest.mark.parametrize("name", sorted(REDUCTIONS))
def test_a_block_larger_than_the_matrix_is_refused(name, generator):
    for n_rows, n_columns in ((4, 1), (1, 5), (0, 1)):
        message = f"^expected a block that lies in a matrix of 3 x 4, got {n_rows} x {n_columns}$"
        with pytest.raises(ValueError, match=message):
            REDUCTIONS[name](SCORES, n_rows, n_columns, generator)


@pytest.mark.parametrize("name", ["submatrix", "rows-columns"])
def test_scores_that_are_not_finite_are_refused(name, generator):
    scores = SCORES.clone()
    scores[1, 2] = float("nan")
    with pytest.raises(
        ValueError, match=r"^expected finite scores in a matrix of 3 x 4, got nan in row 1, column 2$"
    ):
        REDUCTIONS[name](scores, 2, 2, generator)


def test_scores_of_another_dtype_are_refused():
    with pytest.raises(ValueError, match=r"^expected float32 scores, got torch.float64 \(3 x 4\)$"):
        heaviest_block(SCORES.double(), 2, 2)

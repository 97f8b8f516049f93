"""Which part of a matrix to keep: its heaviest contiguous block, its heaviest rows and columns, and the controls."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transfuse.tensors.window_sums import highest_window, refuse_non_finite

Reduction = Literal["submatrix", "rows-columns", "random", "random-block", "leading"]

_N_ROWS_AT_ONCE = 256


class Block(NamedTuple):
    """Where a contiguous block begins, and what it sums to."""

    first_row: int
    first_column: int
    score: float
    """The sum, rounded a little; the choice of the block is exact."""


class Cut(NamedTuple):
    """The rows and columns that are kept, int64, each in ascending order."""

    rows: Int[Tensor, " kept_rows"]
    columns: Int[Tensor, " kept_columns"]


Reduce = Callable[[Float[Tensor, "rows columns"], int, int, torch.Generator], Cut]


def heaviest_block(scores: Float[Tensor, "rows columns"], n_rows: int, n_columns: int) -> Block:
    """The contiguous block of a given size whose scores sum to the most, as if added up without any rounding.

    Args:
        scores: finite float32, in practice not negative, though any will do.
        n_rows: at most those of `scores`.
        n_columns: at most those of `scores`.

    Returns:
        The block; of equal ones that of the lowest first row, then of the lowest first column.

    Raises:
        ValueError: the block is empty or larger than the matrix, or the scores are no finite float32 matrix.

    Source:
        Zhong et al. 2024, arXiv:2310.11451, section 3.2.
        Differs: the published code reads the sum of every block one by one.
    """
    _refuse_misfit(scores, n_rows, n_columns)
    return Block(*highest_window(scores, n_rows, n_columns))


def submatrix(
    scores: Float[Tensor, "rows columns"], n_rows: int, n_columns: int, generator: torch.Generator
) -> Cut:
    """The heaviest contiguous block; nothing is drawn."""
    row, column, _ = heaviest_block(scores, n_rows, n_columns)
    return Cut(torch.arange(row, row + n_rows), torch.arange(column, column + n_columns))


def heaviest_rows_columns(
    scores: Float[Tensor, "rows columns"], n_rows: int, n_columns: int, generator: torch.Generator
) -> Cut:
    """Rows and columns of the greatest sums over the whole matrix, the lower of equal ones; nothing is drawn."""
    _refuse_misfit(scores, n_rows, n_columns)
    row_sums, column_sums = [], scores.new_zeros(scores.shape[1], dtype=torch.float64)
    for part in scores.split(_N_ROWS_AT_ONCE):
        exact = part.double()
        row_sums.append(exact.sum(1))
        column_sums += exact.sum(0)
    if not column_sums.isfinite().all():
        refuse_non_finite(scores)
    return Cut(_greatest(torch.cat(row_sums), n_rows), _greatest(column_sums, n_columns))


def random_rows_columns(
    scores: Float[Tensor, "rows columns"], n_rows: int, n_columns: int, generator: torch.Generator
) -> Cut:
    """Rows and columns drawn without regard to the scores, any as likely as any other."""
    _refuse_misfit(scores, n_rows, n_columns)
    rows, columns = (torch.randperm(length, generator=generator) for length in scores.shape)
    return Cut(rows[:n_rows].sort().values, columns[:n_columns].sort().values)


def random_block(
    scores: Float[Tensor, "rows columns"], n_rows: int, n_columns: int, generator: torch.Generator
) -> Cut:
    """A contiguous block drawn without regard to the scores, any place as likely as any other."""
    _refuse_misfit(scores, n_rows, n_columns)
    height, width = scores.shape
    row = int(torch.randint(height - n_rows + 1, (), generator=generator))
    column = int(torch.randint(width - n_columns + 1, (), generator=generator))
    return Cut(torch.arange(row, row + n_rows), torch.arange(column, column + n_columns))


def leading(
    scores: Float[Tensor, "rows columns"], n_rows: int, n_columns: int, generator: torch.Generator
) -> Cut:
    """The first rows and columns; nothing is drawn."""
    _refuse_misfit(scores, n_rows, n_columns)
    return Cut(torch.arange(n_rows), torch.arange(n_columns))


REDUCTIONS: dict[Reduction, Reduce] = {
    "submatrix": submatrix,
    "rows-columns": heaviest_rows_columns,
    "random": random_rows_columns,
    "random-block": random_block,
    "leading": leading,
}


def cut(matrix: Tensor, kept: Cut) -> Tensor:
    """The kept rows and columns of a matrix: a view of it where both are contiguous, and else a copy.

    Args:
        matrix: of any dtype, on any device.
        kept: within its rows and columns.

    Returns:
        A matrix of as many rows and columns as are kept.
    """
    for axis, places in enumerate(kept):
        first, n_kept = int(places[0]), len(places)
        if int(places[-1]) - first + 1 == n_kept:
            matrix = matrix.narrow(axis, first, n_kept)
        else:
            matrix = matrix.index_select(axis, places.to(matrix.device))
    return matrix


def _greatest(sums: Float[Tensor, " places"], n_kept: int) -> Int[Tensor, " kept"]:
    order = sums.cpu().argsort(descending=True, stable=True)
    return order[:n_kept].sort().values


def _refuse_misfit(scores: Tensor, n_rows: int, n_columns: int) -> None:
    shape = " x ".join(str(length) for length in scores.shape)
    if scores.ndim != 2:
        raise ValueError(f"expected a matrix of scores, got {scores.ndim} dimensions ({shape})")
    if scores.dtype != torch.float32:
        raise ValueError(f"expected float32 scores, got {scores.dtype} ({shape})")
    if not (1 <= n_rows <= scores.shape[0] and 1 <= n_columns <= scores.shape[1]):
        raise ValueError(f"expected a block that lies in a matrix of {shape}, got {n_rows} x {n_columns}")

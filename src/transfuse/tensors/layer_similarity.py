"""Which layers of two models compute alike."""

import torch
from jaxtyping import Float
from torch import Tensor


def linear_cka(left: Float[Tensor, "pos left"], right: Float[Tensor, "pos right"]) -> float:
    """Similarity of two spaces at the same positions, whatever their width, rotation and scale.

    Args:
        left: one row a position.
        right: the same positions.

    Returns:
        0 (nothing in common) to 1 (equal up to rotation and scale); 0 where one of them does not vary.

    Source:
        Kornblith et al. 2019, arXiv:1905.00414, section 3.
    """
    left, right = left - left.mean(dim=0), right - right.mean(dim=0)
    own = (left.T @ left).norm() * (right.T @ right).norm()
    return float((left.T @ right).norm() ** 2 / own) if own > 0 else 0.0


def monotone_assignment(similarity: Float[Tensor, "rows columns"]) -> list[int]:
    """The column of each row, of greatest summed similarity among assignments that keep the order.

    Args:
        similarity: at least one row and one column.

    Returns:
        Ascending columns, all different where there are at least as many columns as rows; the first of equally
        good ones. With fewer columns a column may serve several rows that follow one another.
    """
    n_rows, n_columns = similarity.shape
    step = 1 if n_columns >= n_rows else 0
    scores: list[list[float]] = similarity.tolist()
    best: list[list[float]] = [scores[0]]
    for row in range(1, n_rows):
        reach = [max(best[-1][: column + 1 - step], default=-torch.inf) for column in range(n_columns)]
        best.append([score + before for score, before in zip(scores[row], reach, strict=True)])
    columns: list[int] = []
    end = n_columns
    for row in reversed(range(n_rows)):
        column = max(range(end), key=best[row].__getitem__)
        columns.append(column)
        end = column + 1 - step
    return columns[::-1]

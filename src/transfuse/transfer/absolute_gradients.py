"""The sum of |weight gradient| over samples, without ever holding the gradient of a whole matrix."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_TILE_NUMBERS = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Numbers of a tile: on a CPU it stays in cache between its product, its absolute value and its addition."""
_TILE_COLUMNS = 512


class GradientRows(NamedTuple):
    """A gradient that only some rows of a matrix have."""

    rows: Int[Tensor, " known"]
    """Ascending, each once."""
    values: Float[Tensor, "known columns"]


def add_absolute_gradients(
    total: Float[Tensor, "rows columns"],
    output_gradients: Sequence[Float[Tensor, "_ rows"]],
    inputs: Sequence[Float[Tensor, "_ columns"]],
    more: Sequence[GradientRows] = (),
) -> int | None:
    """Add every sample's |output_gradient^T input| to a total.

    Args:
        total: float32; written to, also where the result is not finite.
        output_gradients: of each sample, at the matrix's output.
        inputs: of each sample, what the matrix was applied to.
        more: of each sample, a further part of its gradient, added before the absolute value is taken (a matrix
            that is used twice); nothing where there is none.

    Returns:
        Index of the first sample found to give NaN or an infinite number; None where all are finite.
    """
    n_columns = min(total.shape[1], _TILE_COLUMNS) if total.device.type == "cpu" else total.shape[1]
    n_rows = max(1, _TILE_NUMBERS.get(total.device.type, 1 << 22) // n_columns)
    buffer = torch.empty(min(n_rows, total.shape[0]) * n_columns, dtype=inputs[0].dtype, device=total.device)
    for top in range(0, total.shape[0], n_rows):
        parts = [_within(each, top, top + n_rows) for each in more]
        for left in range(0, total.shape[1], n_columns):
            tile = total[top : top + n_rows, left : left + n_columns]
            product = buffer[: tile.numel()].view(tile.shape)

            def gradient(
                index: int,
                rows: slice = slice(top, top + n_rows),
                columns: slice = slice(left, left + n_columns),
                out: Tensor = product,
                parts: list[GradientRows] = parts,
            ) -> Tensor:
                torch.mm(output_gradients[index][:, rows].T, inputs[index][:, columns], out=out)
                if parts:
                    out.index_add_(0, parts[index].rows, parts[index].values[:, columns].to(out.dtype))
                return out

            for index in range(len(inputs)):
                tile += gradient(index).abs_()
            if not bool(torch.isfinite(tile.max())):
                finite = (bool(torch.isfinite(gradient(index)).all()) for index in range(len(inputs)))
                return next((index for index, fine in enumerate(finite) if not fine), len(inputs) - 1)
    return None


def _within(each: GradientRows, first: int, end: int) -> GradientRows:
    """The part of given rows, counted from `first`."""
    bounds = torch.tensor([first, end], dtype=each.rows.dtype, device=each.rows.device)
    start, stop = torch.searchsorted(each.rows, bounds).tolist()
    return GradientRows(each.rows[start:stop] - first, each.values[start:stop])

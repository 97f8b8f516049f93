"""Which of a matrix's windows has the greatest sum, where no rounding may decide: in float64, and else in digits."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_ROUNDING = 2.0**-53
_SLACK = 1.01
"""For the rounding of the bound itself."""


class Part(NamedTuple):
    """A part of the matrix that windows win as they move on, or lose."""

    scores: Float[Tensor, "rows columns"]
    sign: int


class Strips(NamedTuple):
    """What the steps are made of: two strips to be added up along each axis, and four corners."""

    rightwards: tuple[Part, Part]
    downwards: tuple[Part, Part]
    corners: tuple[Part, Part, Part, Part]


def strips(scores: Float[Tensor, "rows columns"], n_rows: int, n_columns: int) -> Strips:
    """What windows win and lose as they move over a matrix."""
    n_down, n_right = scores.shape[0] - n_rows, scores.shape[1] - n_columns
    first, above, below = scores[:n_rows], scores[:n_down], scores[n_rows:]
    return Strips(
        (Part(first[:, n_columns:], 1), Part(first[:, :n_right], -1)),
        (Part(below[:, :n_columns], 1), Part(above[:, :n_columns], -1)),
        (
            Part(above[:, :n_right], 1),
            Part(above[:, n_columns:], -1),
            Part(below[:, :n_right], -1),
            Part(below[:, n_columns:], 1),
        ),
    )


def first_highest(scores: Float[Tensor, "rows columns"], n_rows: int, n_columns: int) -> int:
    """The first of the windows whose sum is the highest, as if added up without any rounding.

    Args:
        scores: finite.
        n_rows: of a window.
        n_columns: of a window.

    Returns:
        Its place, row by row.
    """
    parts = [part for each in strips(scores, n_rows, n_columns) for part, _ in each if part.numel()]
    greatest = max(float(part.abs().amax()) for part in parts)
    n_scores = sum(part.numel() for part in parts)
    (gains,) = _window_gains(scores, n_rows, n_columns, lambda part: [part.double()])
    # No number goes through more additions than there are rows and columns, along the strips and along the windows.
    error = _SLACK * 2 * sum(scores.shape) * _ROUNDING * greatest * n_scores
    if math.isfinite(error) and int((gains >= gains.max() - 2 * error).sum()) == 1:
        return int(gains.argmax())
    # Digits are so small that float64 adds all of a matrix without rounding.
    n_bits, exponent = 51 - n_scores.bit_length(), math.frexp(greatest)[1]
    digits = _window_gains(
        scores, n_rows, n_columns, lambda part: _digits(part.double() * 2.0 ** (n_bits - exponent), n_bits)
    )
    return _first_greatest(digits, n_bits)


def _window_gains(
    scores: Float[Tensor, "rows columns"],
    n_rows: int,
    n_columns: int,
    pieces: Callable[[Float[Tensor, "rows columns"]], Iterable[Float64[Tensor, "rows columns"]]],
) -> list[Float64[Tensor, " windows"]]:
    """Sums of windows less that of the first, row by row, of each of the pieces into which numbers are taken apart."""
    n_down, n_right = scores.shape[0] - n_rows, scores.shape[1] - n_columns
    rightwards, downwards, corners = strips(scores, n_rows, n_columns)
    further = slice(1, None)
    gains: list[Float64[Tensor, "down right"]] = []
    for axis, place, moved in (
        (0, (0, further), rightwards),
        (1, (further, 0), downwards),
        (None, (further, further), corners),
    ):
        for part, sign in moved:
            for rank, piece in enumerate(pieces(part)):
                if rank == len(gains):
                    gains.append(scores.new_zeros(n_down + 1, n_right + 1, dtype=torch.float64))
                gains[rank][place] += sign * (piece if axis is None else piece.sum(axis))
    return [piece.cumsum(1).cumsum(0).flatten() for piece in gains]


def _digits(rest: Float64[Tensor, "rows columns"], n_bits: int) -> Iterator[Float64[Tensor, "rows columns"]]:
    """Numbers below 2**n_bits in base 2**n_bits, with their signs, the whole ones first."""
    while rest.any():
        digits = rest.trunc()
        yield digits
        rest = (rest - digits) * 2.0**n_bits


def _first_greatest(gains: list[Float64[Tensor, " windows"]], n_bits: int) -> int:
    """The first of the greatest numbers of several digits; 0 where there are no digits, all being 0.

    Sums of digits are whole numbers, may be negative, and may be beyond the base.
    """
    for higher, lower in zip(gains[-2::-1], gains[:0:-1], strict=True):
        carried = (lower * 2.0**-n_bits).floor()
        higher += carried
        lower -= carried * 2.0**n_bits
    best = torch.arange(len(gains[0]) if gains else 1)
    for digits in gains:
        best = best.to(digits.device)
        best = best[digits[best] == digits[best].max()]
    return int(best[0])

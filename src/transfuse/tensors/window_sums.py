"""The window of greatest sum in a matrix: exact, in a few times what adding the matrix up takes.

Moving a window by one row changes its sum by the row that enters less the row that leaves, and so for columns.
The sums of all windows, less that of the first, are therefore running sums, along both axes, of a matrix of steps:

    steps[0, j] = column that enters less column that leaves, over the first window's rows
    steps[i, 0] = row that enters less row that leaves, over the first window's columns
    steps[i, j] = what the corners of the window win and lose

What lies in every window is read once, for the sum alone. First the steps are added up fast, partly in float32, with a
bound of what rounding can have done; then the windows that this bound cannot tell from the best are compared without
any rounding.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_N_ADDENDS = (16, 32)
"""Numbers that are added in float32, down columns and along rows, before a sum goes on in float64."""
_N_CORNER_ROUNDINGS = 3
_ROUNDING, _ROUNDING_DOUBLE = 2.0**-24, 2.0**-53
_SLACK = 1.01
"""For the rounding of the bounds themselves."""
_OVERFLOW = 2.0**127
"""Where sizes sum to less, no sum in float32 overflows."""
_N_ROWS_A_PEAK, _N_ROWS_AT_ONCE = 16, 256


class _Part(NamedTuple):
    """A part of the matrix that windows win as they move on, or lose."""

    scores: Float[Tensor, "rows columns"]
    sign: int


class _Strips(NamedTuple):
    """What the steps are made of: two strips to be added up along each axis, and four corners."""

    rightwards: tuple[_Part, _Part]
    downwards: tuple[_Part, _Part]
    corners: tuple[_Part, _Part, _Part, _Part]


class _Peaks(NamedTuple):
    """Sums of windows, rounded.

    Line 0 has the windows that begin in row 0; each further line, of the next `_N_ROWS_A_PEAK` rows, the highest.
    """

    first: float
    """Sum of the first window."""
    gains: Float64[Tensor, "lines column_places"]
    """The other sums, less that of the first."""
    drift_right: Float64[Tensor, " column_places"]
    """At most what rounding has done between column 0 and each column."""
    drift_down: Float64[Tensor, " row_places"]
    """At most what rounding has done between row 0 and each row."""
    error: float
    """At most what rounding has done to any gain beyond that; infinite where float32 may overflow, or a score is."""


def highest_window(
    scores: Float[Tensor, "rows columns"], n_rows: int, n_columns: int
) -> tuple[int, int, float]:
    """Place and sum of the window of greatest exact sum; of equal ones the first, row by row.

    Args:
        scores: float32.
        n_rows: at least 1 and at most those of `scores`.
        n_columns: at least 1 and at most those of `scores`.

    Returns:
        First row, first column, and the sum, which is rounded a little.

    Raises:
        ValueError: a score is not finite.
    """
    peaks = _peaks(scores, n_rows, n_columns)
    total = peaks.first + float(peaks.gains.max())
    if not math.isfinite(total + peaks.error):
        refuse_non_finite(scores)
    lines, columns = _near_best(peaks)
    row, last_row = max(0, (lines[0] - 1) * _N_ROWS_A_PEAK + 1), lines[-1] * _N_ROWS_A_PEAK
    column, n_further = columns[0], columns[-1] - columns[0]
    area = scores[row : last_row + n_rows, column : column + n_further + n_columns]
    if len(area) > n_rows or n_further:
        further_down, further_right = divmod(
            _first_highest(*_exact_gains(area, n_rows, n_columns)), n_further + 1
        )
        row, column = row + further_down, column + further_right
    if not math.isfinite(total + peaks.error):
        total = float(scores[row : row + n_rows, column : column + n_columns].double().sum())
    return row, column, total


def refuse_non_finite(scores: Float[Tensor, "rows columns"]) -> None:
    """Raise a ValueError that names the first score that is infinite or NaN; do nothing where there is none."""
    for row, values in enumerate(scores):
        if not values.isfinite().all():
            column = int(values.isfinite().int().argmin())
            raise ValueError(
                f"expected finite scores in a matrix of {scores.shape[0]} x {scores.shape[1]}, "
                f"got {float(values[column])} in row {row}, column {column}"
            )


def _strips(scores: Float[Tensor, "rows columns"], n_rows: int, n_columns: int) -> _Strips:
    n_down, n_right = scores.shape[0] - n_rows, scores.shape[1] - n_columns
    first, above, below = scores[:n_rows], scores[:n_down], scores[n_rows:]
    return _Strips(
        (_Part(first[:, n_columns:], 1), _Part(first[:, :n_right], -1)),
        (_Part(below[:, :n_columns], 1), _Part(above[:, :n_columns], -1)),
        (
            _Part(above[:, :n_right], 1),
            _Part(above[:, n_columns:], -1),
            _Part(below[:, :n_right], -1),
            _Part(below[:, n_columns:], 1),
        ),
    )


def _peaks(scores: Float[Tensor, "rows columns"], n_rows: int, n_columns: int) -> _Peaks:
    n_down, n_right = scores.shape[0] - n_rows, scores.shape[1] - n_columns
    strips = _strips(scores, n_rows, n_columns)
    has_negatives = _has_negatives(scores, n_rows, n_columns)
    changes, drifts, leaving, size = [], [], 0.0, 0.0
    for axis, parts in enumerate((strips.rightwards, strips.downwards)):
        entered, left = (_sums(part, axis, _N_ADDENDS[axis]) for part, _ in parts)
        sizes = entered + left
        if has_negatives:
            sizes = parts[0].scores.abs().double().sum(axis) + parts[1].scores.abs().double().sum(axis)
        changes.append(entered - left)
        drifts.append(_from_zero(_SLACK * _ROUNDING * _N_ADDENDS[axis] * sizes))
        leaving, size = leaving + float(left.sum()), size + float(sizes.sum())
    corners = [part for part, _ in strips.corners]
    gains, corner_sums = _gains(changes[0], changes[1], corners)
    corner_size = sum(
        (float(part.abs().double().sum()) for part in corners) if has_negatives else corner_sums
    )
    size += corner_size
    error = _SLACK * (
        _N_CORNER_ROUNDINGS * _ROUNDING * corner_size + sum(scores.shape) * _ROUNDING_DOUBLE * size
    )
    if n_down <= n_rows and n_right <= n_columns:
        first = _total(scores[n_down:n_rows, n_right:n_columns]) + leaving - corner_sums[0]
    else:
        first = _total(scores[:n_rows, :n_columns])
    return _Peaks(
        first=first,
        gains=gains,
        drift_right=drifts[0],
        drift_down=drifts[1],
        error=error if size < _OVERFLOW else math.inf,
    )


def _has_negatives(scores: Float[Tensor, "rows columns"], n_rows: int, n_columns: int) -> bool:
    """Whether a sign is set outside of what lies in every window; the bits are quicker to compare than the numbers."""
    n_down, n_right = scores.shape[0] - n_rows, scores.shape[1] - n_columns
    parts = [scores]
    if n_down <= n_rows and n_right <= n_columns:
        beside = scores[n_down:n_rows]
        parts = [scores[:n_down], scores[n_rows:], beside[:, :n_right], beside[:, n_columns:]]
    return any(int(part.view(torch.int32).amin()) < 0 for part in parts if part.numel())


def _total(part: Float[Tensor, "rows columns"]) -> float:
    return float(part.sum(1).double().sum())


def _sums(part: Float[Tensor, "rows columns"], axis: int, n_addends: int) -> Float64[Tensor, " sums"]:
    """Sums along an axis, groups of `n_addends` in float32."""
    n_groups = part.shape[axis] // n_addends
    n_whole = n_groups * n_addends
    whole, rest = part.narrow(axis, 0, n_whole), part.narrow(axis, n_whole, part.shape[axis] - n_whole)
    groups = whole.unflatten(axis, (n_groups, n_addends)).sum(axis + 1)
    return groups.double().sum(axis) + rest.double().sum(axis)


def _from_zero(steps: Float64[Tensor, " steps"]) -> Float64[Tensor, " places"]:
    return torch.nn.functional.pad(steps.cumsum(0), (1, 0))


def _gains(
    rightwards: Float64[Tensor, " right"],
    downwards: Float64[Tensor, " down"],
    corners: list[Float[Tensor, "down right"]],
) -> tuple[Float64[Tensor, "lines column_places"], list[float]]:
    """Steps added up along both axes, of each line the highest; and the sum of each corner."""
    corner_sums = [0.0] * len(corners)
    line = _from_zero(rightwards)
    lines = [line]
    for start in range(0, len(downwards), _N_ROWS_AT_ONCE):
        rows = slice(start, start + _N_ROWS_AT_ONCE)
        parts = [part[rows] for part in corners]
        corner_sums = [total + float(part.sum()) for total, part in zip(corner_sums, parts, strict=True)]
        sums = _running_sums(downwards[rows], parts)
        for highest, last in zip(sums.amax(1), sums[:, -1], strict=True):
            lines.append(line + highest)
            line = line + last
    return torch.stack(lines), corner_sums


def _running_sums(
    downwards: Float64[Tensor, " down"], corners: list[Float[Tensor, "down right"]]
) -> Float64[Tensor, "lines rows_a_line column_places"]:
    """Steps added up along rows, and down the rows of each line; the last line repeats its last row to be full."""
    n_rows, n_columns = corners[0].shape
    n_lines = -(-n_rows // _N_ROWS_A_PEAK)
    steps = downwards.new_zeros(n_lines * _N_ROWS_A_PEAK, n_columns + 1)
    steps[:n_rows, 0] = downwards
    changes = corners[3] - corners[2]
    changes -= corners[1]
    changes += corners[0]
    steps[:n_rows, 1:] = changes
    sums = torch.cumsum(steps, 1, out=steps).unflatten(0, (n_lines, _N_ROWS_A_PEAK))
    for row, next_row in pairwise(sums.unbind(1)):
        next_row += row
    return sums


def _near_best(peaks: _Peaks) -> tuple[list[int], list[int]]:
    """Lines and columns of which some window may be the highest: all, where sums are not finite."""
    gains, n_lines = peaks.gains, len(peaks.gains)
    line, column = divmod(int(gains.argmax()), gains.shape[1])
    last_rows = torch.arange(n_lines, device=gains.device) * _N_ROWS_A_PEAK
    first_rows = (last_rows - _N_ROWS_A_PEAK + 1).clamp(min=0)
    low, high = peaks.drift_down[first_rows], peaks.drift_down[last_rows.clamp(max=len(peaks.drift_down) - 1)]
    drift_down = torch.maximum(high, high[line]) - torch.minimum(low, low[line])
    drift_right = (peaks.drift_right - peaks.drift_right[column]).abs()
    is_far = gains + drift_down[:, None] + drift_right < gains[line, column] - 2 * peaks.error
    near = (~is_far).nonzero()
    return near[:, 0].tolist(), near[:, 1].sort().values.tolist()


def _exact_gains(
    scores: Float[Tensor, "rows columns"], n_rows: int, n_columns: int
) -> tuple[list[Float64[Tensor, " windows"]], int]:
    """The windows' sums less that of the first, row by row, in digits of base 2**n_bits, and n_bits.

    Digits are so small that float64 adds all of a matrix without rounding. Sums of digits are whole numbers, may be
    negative, and may be beyond the base.
    """
    n_down, n_right = scores.shape[0] - n_rows, scores.shape[1] - n_columns
    rightwards, downwards, corners = _strips(scores, n_rows, n_columns)
    parts = [part for part, _ in (*rightwards, *downwards, *corners) if part.numel()]
    _, exponent = math.frexp(max(float(part.abs().amax()) for part in parts))
    n_bits = 51 - sum(part.numel() for part in parts).bit_length()
    further = slice(1, None)
    gains: list[Float64[Tensor, "down right"]] = []
    for axis, place, strips in (
        (0, (0, further), rightwards),
        (1, (further, 0), downwards),
        (None, (further, further), corners),
    ):
        for part, sign in strips:
            for rank, digits in enumerate(_digits(part, exponent, n_bits)):
                if rank == len(gains):
                    gains.append(scores.new_zeros(n_down + 1, n_right + 1, dtype=torch.float64))
                gains[rank][place] += sign * (digits if axis is None else digits.sum(axis))
    return [digits.cumsum(1).cumsum(0).flatten() for digits in gains], n_bits


def _digits(
    scores: Float[Tensor, "rows columns"], exponent: int, n_bits: int
) -> Iterator[Float64[Tensor, "rows columns"]]:
    """Scores below 2**exponent in base 2**n_bits, with their signs, the most significant digits first."""
    rest = scores.double() * 2.0 ** (n_bits - exponent)
    while rest.any():
        digits = rest.trunc()
        yield digits
        rest = (rest - digits) * 2.0**n_bits


def _first_highest(gains: list[Float64[Tensor, " windows"]], n_bits: int) -> int:
    """The first of the windows whose gain is the highest; 0 where there are no digits, all being 0."""
    for higher, lower in zip(gains[-2::-1], gains[:0:-1], strict=True):
        carried = (lower * 2.0**-n_bits).floor()
        higher += carried
        lower -= carried * 2.0**n_bits
    best = torch.arange(len(gains[0]) if gains else 1)
    for digits in gains:
        best = best.to(digits.device)
        best = best[digits[best] == digits[best].max()]
    return int(best[0])

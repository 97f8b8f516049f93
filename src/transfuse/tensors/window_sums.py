"""The window of greatest sum in a matrix: exact, in a few times what adding the matrix up takes.

Moving a window by one row changes its sum by the row that enters less the row that leaves, and so for columns.
The sums of all windows, less that of the first, are therefore running sums, along both axes, of a matrix of steps:

    steps[0, j] = column that enters less column that leaves, over the first window's rows
    steps[i, 0] = row that enters less row that leaves, over the first window's columns
    steps[i, j] = what the corners of the window win and lose

What lies in every window is read once, for the sum alone. First the steps are added up fast, partly in float32, with a
bound of what rounding can have done; then the windows that this bound cannot tell from the best are compared in
float64, and where that cannot tell them either, without any rounding.
"""

import math
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from transfuse.tensors.exact_windows import first_highest, strips

_N_ADDENDS = (16, 32)
"""Numbers that are added in float32, down columns and along rows, before a sum goes on in float64."""
_N_CORNER_ROUNDINGS = 3
_ROUNDING, _ROUNDING_DOUBLE = 2.0**-24, 2.0**-53
_SLACK = 1.01
"""For the rounding of the bounds themselves."""
_OVERFLOW = 2.0**127
"""Where sizes sum to less, no sum in float32 overflows."""
_N_ROWS_A_PEAK = 16
_N_AT_ONCE = 1 << 19
"""Numbers that are read at once, twice; they stay in the cache while they are added up along rows and columns."""


class _Read(NamedTuple):
    """What is added up while the matrix is read."""

    first: Float64[Tensor, ""]
    """Sum of the first window."""
    rightwards: Float64[Tensor, "2 right"]
    """Of the columns that enter, and of those that leave, over the first window's rows."""
    downwards: Float64[Tensor, "2 down"]
    """Of the rows that enter, and of those that leave, over the first window's columns."""
    corners: Float64[Tensor, " 4"]
    lines: Float64[Tensor, "lines column_places"]
    """As in `_Peaks`, less the steps to the right."""
    has_negatives: bool


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
        first = first_highest(area, n_rows, n_columns)
        row, column = row + first // (n_further + 1), column + first % (n_further + 1)
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


def _peaks(scores: Float[Tensor, "rows columns"], n_rows: int, n_columns: int) -> _Peaks:
    read = _read_once(scores, n_rows, n_columns)
    right, down = read.rightwards.sum(0), read.downwards.sum(0)
    corner_size = float(read.corners.sum())
    if read.has_negatives:
        moved = strips(scores, n_rows, n_columns)
        right, down = (
            parts[0].scores.abs().double().sum(axis) + parts[1].scores.abs().double().sum(axis)
            for axis, parts in enumerate((moved.rightwards, moved.downwards))
        )
        corner_size = sum(float(part.abs().double().sum()) for part, _ in moved.corners)
    size = float(right.sum()) + float(down.sum()) + corner_size
    error = _SLACK * (
        _N_CORNER_ROUNDINGS * _ROUNDING * corner_size + sum(scores.shape) * _ROUNDING_DOUBLE * size
    )
    steps = read.rightwards[0] - read.rightwards[1]
    return _Peaks(
        first=float(read.first),
        gains=_from_zero(steps) + read.lines,
        drift_right=_from_zero(_SLACK * _ROUNDING * _N_ADDENDS[0] * right),
        drift_down=_from_zero(_SLACK * _ROUNDING * _N_ADDENDS[1] * down),
        error=error if size < _OVERFLOW else math.inf,
    )


def _read_once(scores: Float[Tensor, "rows columns"], n_rows: int, n_columns: int) -> _Read:
    """All sums from one reading of the matrix, a few rows at a time, so that they come from memory once."""
    n_down, n_right = scores.shape[0] - n_rows, scores.shape[1] - n_columns
    n_all = max(n_down, n_rows)
    n_at_once = max(1, _N_AT_ONCE // (scores.shape[1] * _N_ROWS_A_PEAK)) * _N_ROWS_A_PEAK
    zeros = partial(scores.new_zeros, dtype=torch.float64)
    columns, downwards, corners = zeros(scores.shape[1]), zeros(2, n_down), zeros(4)
    line, lines = zeros(n_right + 1), [zeros(1, n_right + 1)]
    room = zeros(min(n_at_once, -(-n_down // _N_ROWS_A_PEAK) * _N_ROWS_A_PEAK), n_right + 1)
    least: list[Tensor] = []
    for start in range(0, n_all, n_at_once):
        part = scores[start : min(start + n_at_once, n_all)]
        least.append(part.view(torch.int32).amin())  # the bits are quicker to compare than the numbers
        columns += _sums(part[: max(0, n_rows - start)], 0)
        above = part[: max(0, n_down - start)]
        if len(above):
            end = start + len(above)
            below = scores[n_rows + start : n_rows + end]
            least.append(below.view(torch.int32).amin())
            entered, left = (_sums(each[:, :n_columns], 1) for each in (below, above))
            downwards[0, start:end], downwards[1, start:end] = entered, left
            four = [each[:, at] for each in (above, below) for at in (slice(n_right), slice(n_columns, None))]
            corners += torch.stack([corner.sum() for corner in four])
            sums = _running_sums(entered - left, four, room)
            reached = line + sums[:, -1].cumsum(0)
            lines.append(sums.amax(1))
            lines[-1][0] += line
            lines[-1][1:] += reached[:-1]
            line = reached[-1]
    has_negatives = bool(torch.stack(least).amin() < 0)
    rightwards = torch.stack([columns[n_columns:], columns[:n_right]])
    return _Read(columns[:n_columns].sum(), rightwards, downwards, corners, torch.cat(lines), has_negatives)


def _sums(part: Float[Tensor, "rows columns"], axis: int) -> Float64[Tensor, " sums"]:
    """Sums along an axis, groups of `_N_ADDENDS` in float32."""
    n_addends = _N_ADDENDS[axis]
    n_groups = part.shape[axis] // n_addends
    n_whole = n_groups * n_addends
    whole, rest = part.narrow(axis, 0, n_whole), part.narrow(axis, n_whole, part.shape[axis] - n_whole)
    # Numbers side by side in memory go into different groups: so they are added many at a time.
    sizes = (n_groups, n_addends) if axis == 0 else (n_addends, n_groups)
    groups = whole.unflatten(axis, sizes).sum(1)
    sums = groups.sum(axis, dtype=torch.float64)
    return sums + rest.sum(axis, dtype=torch.float64) if rest.shape[axis] else sums


def _from_zero(steps: Float64[Tensor, " steps"]) -> Float64[Tensor, " places"]:
    return torch.nn.functional.pad(steps.cumsum(0), (1, 0))


def _running_sums(
    downwards: Float64[Tensor, " down"],
    corners: list[Float[Tensor, "down right"]],
    room: Float64[Tensor, "_ _"],
) -> Float64[Tensor, "lines rows_a_line column_places"]:
    """Steps added up along rows, and down the rows of each line, in a given room.

    Args:
        downwards: the steps in the first column.
        corners: what the other steps are made of.
        room: where the sums are written.

    Returns:
        The sums; the last line repeats its last row to be full.
    """
    n_rows = len(downwards)
    n_lines = -(-n_rows // _N_ROWS_A_PEAK)
    steps = room[: n_lines * _N_ROWS_A_PEAK]
    steps[n_rows:] = 0
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

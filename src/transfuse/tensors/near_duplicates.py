"""Rows that nearly repeat an earlier row: first come, first kept."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64

COSINE_ROUNDING = 1e-9
"""How far below the threshold a cosine still counts: what rounding leaves of the cosine of equal vectors."""

_LEADING = (32, 64, 96, 128, 192, 256)
"""How many rotated dimensions a sieve may have."""
_N_ROWS_WITHOUT_SIEVE = 8192
_N_ROWS_SAMPLED = 512
_TILE_ROWS = 8192
_ROWS_PER_STEP = 8192
_PAIRS_PER_STEP = 4096
_PRODUCTS_PER_PAIR = 100
"""Comparing one pair by itself costs about as much as this many pairs in a matrix product."""


def near_duplicates(
    embeddings: Float[np.ndarray, "n d"],
    threshold: float,
    *,
    groups: Int[np.ndarray, " n"] | None = None,
    block: int = 512,
) -> Int64[np.ndarray, " n"]:
    """For each row the earliest kept row that it nearly repeats; a row is kept where there is none.

    Rows are decided in order and compared with kept rows only: where b repeats a, and c repeats b but not a,
    b goes and c stays. The result is that of comparing each row with every kept row in float64; block size
    and sieve change the time it takes and nothing else.

    The sieve: rows are turned onto their principal axes, so that a few leading dimensions hold most of each
    unit vector. What two rests add to the cosine is at most the product of their lengths (Cauchy-Schwarz), so
    one short matrix product, the rest's length as a last dimension, bounds all cosines of a tile from above.

    Args:
        embeddings: one vector a row, of any length; a row of zeros resembles nothing.
        threshold: the cosine from which on two rows are near-duplicates, above 0 up to 1.
        groups: where given, only rows of the same group are compared.
        block: how many rows are decided at once.

    Returns:
        Row indices, -1 for a kept row.

    Raises:
        ValueError: threshold or block out of range, or embeddings that are not finite.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"expected a threshold above 0 up to 1, got {threshold}")
    if block < 1:
        raise ValueError(f"expected a block of at least one row, got {block}")
    norms = _norms(embeddings)
    if not np.isfinite(norms).all():
        raise ValueError(
            f"row {np.argmin(np.isfinite(norms))}: expected finite values, got NaN, infinity or more"
        )
    norms[norms == 0] = np.inf  # the cosine with a row of zeros is 0
    if groups is None:
        return _earliest(embeddings, norms, threshold, block)
    earliest = np.full(len(embeddings), -1, dtype=np.int64)
    for rows in _group_rows(groups):
        found = _earliest(embeddings[rows], norms[rows], threshold, block)
        earliest[rows] = np.where(found < 0, -1, rows[found])
    return earliest


def _earliest(
    embeddings: Float[np.ndarray, "n d"], norms: Float64[np.ndarray, " n"], threshold: float, block: int
) -> Int64[np.ndarray, " n"]:
    """The result for rows of one group."""
    n, n_dimensions = embeddings.shape
    slack = (n_dimensions + 8) * float(np.finfo(np.float32).eps)  # of a float32 dot product of unit vectors
    floor = threshold - COSINE_ROUNDING - slack
    unit = _unit_rows(embeddings, norms)
    sieve = _sieve(unit, floor, slack) if n > _N_ROWS_WITHOUT_SIEVE else unit
    earliest = np.full(n, -1, dtype=np.int64)
    kept = np.empty(
        n, dtype=np.int64
    )  # the rows of `sieve` and `unit` in front of `n_kept` are those of `kept`
    n_kept = 0
    for start in range(0, n, block):
        rows = np.arange(start, min(start + block, n))
        for tile in range(0, n_kept, _TILE_ROWS):
            columns = np.arange(tile, min(tile + _TILE_ROWS, n_kept))
            pairs = _pairs_above(sieve, unit, rows, columns, floor)
            near = _is_near(embeddings, norms, rows[pairs[0]], kept[columns[pairs[1]]], threshold)
            # Pairs are in order of rows, then columns: of each row's the first one is its earliest.
            places, firsts = np.unique(pairs[0][near], return_index=True)
            earliest[rows[places]] = kept[columns[pairs[1][near][firsts]]]
            rows = np.delete(rows, places)
        decided = _earliest_within(embeddings, norms, unit, rows, floor, threshold)
        earliest[rows] = decided
        new = rows[decided < 0]
        kept[n_kept : n_kept + len(new)] = new
        sieve[n_kept : n_kept + len(new)] = sieve[new]
        if sieve is not unit:
            unit[n_kept : n_kept + len(new)] = unit[new]
        n_kept += len(new)
    return earliest


def _pairs_above(
    sieve: Float32[np.ndarray, "n s"],
    unit: Float32[np.ndarray, "n d"],
    rows: Int64[np.ndarray, " rows"],
    columns: Int64[np.ndarray, " columns"],
    floor: float,
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """Places in `rows` and `columns` of all pairs whose cosine may reach the floor."""
    is_open = sieve[rows] @ sieve[columns[0] : columns[-1] + 1].T >= floor
    n_open = np.count_nonzero(is_open)
    if n_open * _PRODUCTS_PER_PAIR > is_open.size and sieve is not unit:
        is_open &= unit[rows] @ unit[columns[0] : columns[-1] + 1].T >= floor
    places = np.flatnonzero(is_open)
    return places // len(columns), places % len(columns)


def _earliest_within(
    embeddings: Float[np.ndarray, "n d"],
    norms: Float64[np.ndarray, " n"],
    unit: Float32[np.ndarray, "n d"],
    rows: Int64[np.ndarray, " rows"],
    floor: float,
    threshold: float,
) -> Int64[np.ndarray, " rows"]:
    """The result for rows that resemble no row before them, compared among themselves."""
    later, earlier = np.nonzero(np.tril(unit[rows] @ unit[rows].T >= floor, -1))
    near = _is_near(embeddings, norms, rows[later], rows[earlier], threshold)
    earliest = np.full(len(rows), -1, dtype=np.int64)
    for place, other in zip(later[near].tolist(), earlier[near].tolist(), strict=True):
        if earliest[place] < 0 and earliest[other] < 0:
            earliest[place] = rows[other]
    return earliest


def _is_near(
    embeddings: Float[np.ndarray, "n d"],
    norms: Float64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " pairs"],
    others: Int64[np.ndarray, " pairs"],
    threshold: float,
) -> Bool[np.ndarray, " pairs"]:
    """Whether each pair's cosine, in float64, reaches the threshold."""
    near = np.empty(len(rows), dtype=bool)
    for start in range(0, len(rows), _PAIRS_PER_STEP):
        step = slice(start, start + _PAIRS_PER_STEP)
        one, other = embeddings[rows[step]].astype(np.float64), embeddings[others[step]].astype(np.float64)
        cosines = np.einsum("nd,nd->n", one, other) / norms[rows[step]] / norms[others[step]]
        near[step] = cosines >= threshold - COSINE_ROUNDING
    return near


def _sieve(unit: Float32[np.ndarray, "n d"], floor: float, slack: float) -> Float32[np.ndarray, "n s"]:
    """Leading principal dimensions and the rest's length, as many as cost least; `unit` where none pays."""
    n, n_dimensions = unit.shape
    sample = unit[:: -(-n // _ROWS_PER_STEP)].astype(np.float64)
    _, axes = np.linalg.eigh(sample.T @ sample)
    axes = axes[:, ::-1].astype(np.float32)
    places = np.linspace(0, n - 1, 2 * _N_ROWS_SAMPLED).astype(np.int64)
    ones, others = unit[places[::2]], unit[places[1::2]]
    best, lowest_cost = 0, float(n_dimensions)
    for n_leading in (size for size in _LEADING if size < n_dimensions):
        bounds = _sieved(ones, axes[:, :n_leading], slack) @ _sieved(others, axes[:, :n_leading], slack).T
        share = float(np.mean(bounds >= floor))
        cost = n_leading + 1 + n_dimensions * min(1.0, share * _PRODUCTS_PER_PAIR)
        if cost < lowest_cost:
            best, lowest_cost = n_leading, cost
    if not best:
        return unit
    sieve = np.empty((n, best + 1), dtype=np.float32)
    for start in range(0, n, _ROWS_PER_STEP):
        step = slice(start, start + _ROWS_PER_STEP)
        sieve[step] = _sieved(unit[step], axes[:, :best], slack)
    return sieve


def _sieved(
    unit: Float32[np.ndarray, "n d"], axes: Float32[np.ndarray, "d leading"], slack: float
) -> Float32[np.ndarray, "n s"]:
    leading = unit @ axes
    rest = 1 - np.einsum("nd,nd->n", leading, leading)
    return np.column_stack([leading, np.sqrt(np.maximum(rest, 0) + np.float32(slack))])


def _unit_rows(
    embeddings: Float[np.ndarray, "n d"], norms: Float64[np.ndarray, " n"]
) -> Float32[np.ndarray, "n d"]:
    unit = np.empty(embeddings.shape, dtype=np.float32)
    for start in range(0, len(unit), _ROWS_PER_STEP):
        step = slice(start, start + _ROWS_PER_STEP)
        unit[step] = embeddings[step] / norms[step, None]
    return unit


def _norms(embeddings: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
    norms = np.empty(len(embeddings), dtype=np.float64)
    for start in range(0, len(norms), _ROWS_PER_STEP):
        rows = embeddings[start : start + _ROWS_PER_STEP].astype(np.float64)
        norms[start : start + _ROWS_PER_STEP] = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    return norms


def _group_rows(groups: Int[np.ndarray, " n"]) -> Iterator[Int64[np.ndarray, " rows"]]:
    """Row indices of each group of at least two rows, in order."""
    order = np.argsort(groups, kind="stable").astype(np.int64)
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    return (rows for rows in np.split(order, starts) if len(rows) > 1)

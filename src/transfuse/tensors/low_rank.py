"""Matrices of low rank: the best ones near a given matrix, and of a product that is never formed."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_N_FULL = 256
"""Up to this many rows or columns the full decomposition is taken."""
_N_FULL_DOUBLE = 512
"""Up to this many columns a float32 product is decomposed in float64."""
_LEAST_GAIN = 1e-3
"""By what share an iteration must have lowered the error for another one to follow."""
_N_ITERATIONS = 2
"""That many are made unless fewer are asked for."""
_N_ROWS_AT_ONCE = 512
_GREATEST = 2.0**40
"""Matrices whose greatest number is above this, or below its inverse, are scaled, so that no square overflows."""


class LowRank(NamedTuple):
    """left @ diag(values) @ right; the entry of greatest size in each column of `left` is positive."""

    left: Float[Tensor, "rows rank"]
    """Orthonormal columns."""
    values: Float[Tensor, " rank"]
    """Singular values, descending."""
    right: Float[Tensor, "rank columns"]
    """Orthonormal rows."""
    error: float
    """Frobenius norm of the matrix less this product."""


def truncated_svd(
    matrix: Float[Tensor, "rows columns"],
    rank: int,
    *,
    generator: torch.Generator,
    n_oversampling: int = 16,
    n_iterations: int = 8,
) -> LowRank:
    """The leading singular values and vectors, from a random subspace that is multiplied until the error settles.

    Without iterations the squared error is in the mean at most 2 + rank / (n_oversampling - 1) times that of the
    full decomposition: theorem 10.5 of the source bounds what lies outside of the subspace, and inside of it nothing
    of that rank is nearer than what is returned. Each iteration multiplies what there is above 1 by about the fourth
    power of the ratio of the singular values behind the subspace to those wanted. At least two are made, and then
    further ones while the error falls by more than 0.1 %: so it ends within 1 % of the least, unless convergence
    halts and sets in again.
    Matrices of up to 256 rows or columns are decomposed in full.

    Args:
        matrix: finite; computed in float64 where it is that, and else in float32.
        rank: how many values at most; fewer where the matrix has fewer rows or columns.
        generator: draws the subspace, on the CPU; the same state gives the same result.
        n_oversampling: how many dimensions the subspace has beyond `rank`; at least 2.
        n_iterations: at most; 0 gives the plain random projection.

    Returns:
        Factors on the matrix's device, and their error, measured on the matrix itself.

    Raises:
        ValueError: a number is out of range, or the matrix is empty or not finite.

    Source:
        Halko, Martinsson and Tropp 2011, "Finding structure with randomness", SIAM Review 53, algorithms 4.4 and 5.1.
        Differs: the number of iterations is found from the error.
    """
    if rank < 1 or n_oversampling < 2 or n_iterations < 0:
        raise ValueError(
            f"expected a rank of at least 1, oversampling of at least 2 and no negative number of iterations, "
            f"got {rank}, {n_oversampling} and {n_iterations}"
        )
    matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
    greatest = _greatest(matrix)
    if greatest and not 1 / _GREATEST <= greatest <= _GREATEST:
        scale = 2.0 ** math.frexp(greatest)[1]
        left, values, right, error = truncated_svd(
            matrix / scale,
            rank,
            generator=generator,
            n_oversampling=n_oversampling,
            n_iterations=n_iterations,
        )
        return LowRank(left, values * scale, right, error * scale)
    n_dimensions = rank + n_oversampling
    if min(matrix.shape) <= max(_N_FULL, n_dimensions):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return _truncated(left, values, right, rank)
    return _from_subspace(matrix, rank, n_dimensions, n_iterations, generator)


def product_svd(
    left: Float[Tensor, "rows inner"], right: Float[Tensor, "inner columns"], max_rank: int | None = None
) -> LowRank:
    """The full singular value decomposition of left @ right, which is never formed.

    Args:
        left: finite.
        right: finite, of the same dtype.
        max_rank: how many values are kept at most; all where it is None.

    Returns:
        As many values as the product can have that are not 0, in the dtype of `left` (float32 where that is
        narrower); the error is that of what `max_rank` leaves out.

    Raises:
        ValueError: `max_rank` is below 1, or a factor is empty or not finite.
    """
    if max_rank is not None and max_rank < 1:
        raise ValueError(f"expected a greatest rank of at least 1, got {max_rank}")
    for factor in (left, right):
        _greatest(factor)
    dtype = torch.promote_types(left.dtype, torch.float32)
    if left.shape[1] <= _N_FULL_DOUBLE:
        left, right = left.double(), right.double()
    else:
        left, right = left.to(dtype), right.to(dtype)
    left_basis, left_core = torch.linalg.qr(left)
    right_basis, right_core = torch.linalg.qr(right.T)
    inner_left, values, inner_right = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    rank = len(values) if max_rank is None else max_rank
    kept = _truncated(left_basis @ inner_left, values, inner_right @ right_basis.T, rank)
    return LowRank(kept.left.to(dtype), kept.values.to(dtype), kept.right.to(dtype), kept.error)


def _from_subspace(
    matrix: Float[Tensor, "rows columns"],
    rank: int,
    n_dimensions: int,
    n_iterations: int,
    generator: torch.Generator,
) -> LowRank:
    drawn = torch.randn(matrix.shape[1], n_dimensions, generator=generator, dtype=matrix.dtype)
    square = _distance(matrix) ** 2
    error, within = math.inf, _projected(matrix, matrix @ drawn.to(matrix.device))
    for n_done in range(n_iterations):
        previous = error
        error = math.sqrt(max(square - float(within.values[:rank].square().sum()), 0))
        if n_done >= _N_ITERATIONS and previous - error <= _LEAST_GAIN * error:
            break
        within = _projected(matrix, matrix @ within.right.T)
    left, right = _with_signs(within.left[:, :rank], within.right[:rank])
    values = within.values[:rank].to(matrix.dtype)
    return LowRank(left, values, right, _distance(matrix, left * values, right))


class _Projection(NamedTuple):
    """The singular value decomposition of a matrix projected onto a subspace of its columns."""

    left: Float[Tensor, "rows dimensions"]
    values: Float64[Tensor, " dimensions"]
    right: Float[Tensor, "dimensions columns"]


def _projected(
    matrix: Float[Tensor, "rows columns"], subspace: Float[Tensor, "rows dimensions"]
) -> _Projection:
    basis = torch.linalg.qr(subspace).Q
    outer, core = torch.linalg.qr(matrix.T @ basis)
    inner_left, values, inner_right = torch.linalg.svd(core.T.double())
    return _Projection(basis @ inner_left.to(matrix.dtype), values, inner_right.to(matrix.dtype) @ outer.T)


def _truncated(
    left: Float[Tensor, "rows all"],
    values: Float[Tensor, " all"],
    right: Float[Tensor, "all columns"],
    rank: int,
) -> LowRank:
    error = float(values[rank:].double().norm())
    left, right = _with_signs(left[:, :rank], right[:rank])
    return LowRank(left, values[:rank].clone(), right, error)


def _with_signs(
    left: Float[Tensor, "rows rank"], right: Float[Tensor, "rank columns"]
) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank columns"]]:
    """Each pair of vectors with the sign that makes the entry of greatest size on the left positive."""
    greatest = left.gather(0, left.abs().argmax(0, keepdim=True))
    signs = torch.where(greatest < 0, -1.0, 1.0).to(left.dtype)
    return left * signs, right * signs.T


def _distance(
    matrix: Float[Tensor, "rows columns"],
    left: Float[Tensor, "rows rank"] | None = None,
    right: Float[Tensor, "rank columns"] | None = None,
) -> float:
    """Frobenius norm of the matrix, or of the matrix less left @ right."""
    square = 0.0
    for start in range(0, len(matrix), _N_ROWS_AT_ONCE):
        part = matrix[start : start + _N_ROWS_AT_ONCE]
        if left is not None and right is not None:
            part = torch.addmm(part, left[start : start + _N_ROWS_AT_ONCE], right, alpha=-1)
        square += float(part.square().sum())
    return math.sqrt(square)


def _greatest(matrix: Float[Tensor, "rows columns"]) -> float:
    """The greatest size of a number; refuses what has none, or no finite one."""
    shape = " x ".join(str(length) for length in matrix.shape)
    if not matrix.numel():
        raise ValueError(f"expected a matrix with rows and columns, got one of {shape}")
    greatest = max(-float(matrix.min()), float(matrix.max()))
    if not math.isfinite(greatest):
        raise ValueError(f"expected finite numbers in a matrix of {shape}, got NaN or infinity")
    return greatest

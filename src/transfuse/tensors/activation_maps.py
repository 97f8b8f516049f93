"""Linear maps between two models' activations, fitted from sums over paired positions.

Every fit needs only the sums of products of two widths, so memory does not grow with the number of positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0)
"""Ridge penalties that are tried, in units of the mean eigenvalue of the predictor's covariance."""

NEGLIGIBLE = 1e-7
"""Directions of a cross-covariance below this share of its greatest singular value were not seen: what is left of
them is rounding of float32 activations."""

MapKind = Literal["procrustes", "scaled-procrustes", "ridge"]


@dataclass(eq=False)
class PairedMoments:
    """Sums over paired positions of two spaces, from which maps in either direction are fitted.

    Sums are of differences from `left_origin` and `right_origin`, the means of what was added first: where a mean
    is far greater than the spread, products of raw values would lose the spread to rounding.
    """

    n_positions: int
    left_origin: Float[Tensor, " left"]
    right_origin: Float[Tensor, " right"]
    left_sum: Float[Tensor, " left"]
    right_sum: Float[Tensor, " right"]
    left_square: Float[Tensor, "left left"]
    right_square: Float[Tensor, "right right"]
    cross: Float[Tensor, "left right"]

    def add(self, left: Float[Tensor, "pos left"], right: Float[Tensor, "pos right"]) -> None:
        """Add paired rows.

        Products are taken in the rows' own precision and added up in float64.
        """
        if not len(left):
            return
        if not self.n_positions:
            self.left_origin.copy_(left.mean(dim=0))
            self.right_origin.copy_(right.mean(dim=0))
        left, right = left - self.left_origin.to(left), right - self.right_origin.to(right)
        self.n_positions += len(left)
        self.left_sum += left.sum(dim=0)
        self.right_sum += right.sum(dim=0)
        self.left_square += left.T @ left
        self.right_square += right.T @ right
        self.cross += left.T @ right

    def flipped(self) -> "PairedMoments":
        """The same sums with left and right exchanged; shares their memory."""
        return PairedMoments(
            self.n_positions,
            self.right_origin,
            self.left_origin,
            self.right_sum,
            self.left_sum,
            self.right_square,
            self.left_square,
            self.cross.T,
        )

    def left_mean(self) -> Float[Tensor, " left"]:
        """Mean of the left rows."""
        return self.left_origin + self.left_sum / self.n_positions

    def right_mean(self) -> Float[Tensor, " right"]:
        """Mean of the right rows."""
        return self.right_origin + self.right_sum / self.n_positions


class Scatter(NamedTuple):
    """Sums of products about given means."""

    left: Float[Tensor, "left left"]
    cross: Float[Tensor, "left right"]
    right_total: float
    """Sum of the right rows' squared distances from their mean."""


class LinearMap(NamedTuple):
    """right - its mean ~= matrix @ (left - its mean)."""

    matrix: Float[Tensor, "right left"]
    r2: float
    """Share of the right rows' held-out variance about the fit's mean that `unit_scale * matrix` predicts; negative
    where that is worse than the mean, NaN where held-out rows do not vary."""
    unit_scale: float
    """What the matrix would have to be multiplied by to predict the fitted rows best; 1 where it was fitted to."""
    penalty: float | None
    """Chosen ridge penalty, in units of the mean eigenvalue; None for Procrustes maps."""
    n_directions: int
    """Directions that the fit saw: rank of the cross-covariance, or the predictor's width."""


def empty_moments(
    left_width: int, right_width: int, device: torch.device | str | None = None
) -> PairedMoments:
    """Sums over no position yet, float64 (float32 on devices that know no float64)."""
    dtype = torch.float32 if device is not None and torch.device(device).type == "mps" else torch.float64

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=device)

    return PairedMoments(
        0,
        zeros(left_width),
        zeros(right_width),
        zeros(left_width),
        zeros(right_width),
        zeros(left_width, left_width),
        zeros(right_width, right_width),
        zeros(left_width, right_width),
    )


def scatter(
    moments: PairedMoments, left_mean: Float[Tensor, " left"], right_mean: Float[Tensor, " right"]
) -> Scatter:
    """Sums of products about given means, which may be those of other positions."""
    n = moments.n_positions
    left, right = left_mean - moments.left_origin, right_mean - moments.right_origin
    left_part = torch.outer(moments.left_sum, left)
    cross = moments.cross - torch.outer(moments.left_sum, right) - torch.outer(left, moments.right_sum)
    right_total = moments.right_square.trace() - 2 * moments.right_sum @ right + n * right @ right
    return Scatter(
        moments.left_square - left_part - left_part.T + n * torch.outer(left, left),
        cross + n * torch.outer(left, right),
        float(right_total),
    )


def ridge_map(fit: PairedMoments, held_out: PairedMoments) -> LinearMap:
    """Least squares with a penalty on the map's norm, chosen by held-out error among `PENALTIES`.

    One eigendecomposition serves every penalty. The held-out positions choose one number and give R^2, so that R^2
    is very slightly optimistic.

    Args:
        fit: at least one position.
        held_out: at least one other position.

    Returns:
        The map from left to right that predicts the held-out positions best.

    Source:
        Hastie, Tibshirani and Friedman 2009, section 3.4.1.
    """
    seen, unseen = _scatters(fit, held_out)
    eigenvalues, basis = torch.linalg.eigh(seen.left)
    eigenvalues = eigenvalues.clamp(min=0)
    # Of the map's transpose in the eigenbasis; row i is divided by eigenvalue i + penalty.
    numerators = basis.T @ seen.cross
    quadratic = (basis.T @ unseen.left @ basis) * (numerators @ numerators.T)
    linear = (numerators * (basis.T @ unseen.cross)).sum(dim=1)
    mean_eigenvalue = eigenvalues.mean()
    errors: list[float] = []
    for penalty in PENALTIES:
        inverse = _inverse(eigenvalues + penalty * mean_eigenvalue)
        errors.append(float(inverse @ quadratic @ inverse - 2 * linear @ inverse) + unseen.right_total)
    best = min(range(len(PENALTIES)), key=errors.__getitem__)
    inverse = _inverse(eigenvalues + PENALTIES[best] * mean_eigenvalue)
    matrix = (basis @ (inverse[:, None] * numerators)).T
    return LinearMap(matrix, _r2(errors[best], unseen.right_total), 1.0, PENALTIES[best], len(eigenvalues))


def procrustes_map(fit: PairedMoments, held_out: PairedMoments) -> LinearMap:
    """Rotation that turns left towards right: U V^T of the singular vectors of the cross-covariance.

    Between different widths it is semi-orthogonal: the one that maximises the trace of its product with the
    cross-covariance. Directions in which the two spaces do not vary together (`NEGLIGIBLE`) go to zero, for any
    completion to an orthogonal matrix would be arbitrary there. The map in the other direction is its transpose.

    Args:
        fit: at least one position.
        held_out: at least one other position; gives R^2 only.

    Returns:
        A map all of whose singular values are 1 or 0. Two models measure their activations in units of their own, so
        that R^2 is told at the best scale.

    Source:
        Schönemann 1966, A generalized solution of the orthogonal Procrustes problem.
        Differs: rectangular, and zero where nothing was seen.
    """
    seen, unseen = _scatters(fit, held_out)
    is_tall = seen.cross.shape[0] > seen.cross.shape[1]
    matrix, n_directions = _polar_factor(seen.cross if is_tall else seen.cross.T, fit.n_positions - 1)
    matrix = matrix.T if is_tall else matrix
    predicted = float(((matrix @ seen.left) * matrix).sum())
    scale = float((matrix * seen.cross.T).sum()) / predicted if predicted > 0 else 0.0
    return LinearMap(matrix, _map_r2(scale * matrix, unseen), scale, None, n_directions)


def scaled_procrustes_map(fit: PairedMoments, held_out: PairedMoments) -> LinearMap:
    """`procrustes_map` times the one factor with the least squared error on the fitted positions.

    Without the factor, a delta arrives too strong or too weak by the ratio of the two models' units. The factor of the
    other direction is another one: each is shrunk by what the map cannot predict.

    Args:
        fit: at least one position.
        held_out: at least one other position.

    Returns:
        The map; all zero where the two spaces do not vary together.
    """
    rotation = procrustes_map(fit, held_out)
    return rotation._replace(matrix=rotation.unit_scale * rotation.matrix, unit_scale=1.0)


MAPS: dict[MapKind, Callable[[PairedMoments, PairedMoments], LinearMap]] = {
    "procrustes": procrustes_map,
    "scaled-procrustes": scaled_procrustes_map,
    "ridge": ridge_map,
}


def read_r2(
    reader: Float[Tensor, "rank right"],
    weigher: Float[Tensor, "rank rank"],
    map_matrix: Float[Tensor, "right left"],
    fit: PairedMoments,
    held_out: PairedMoments,
) -> float:
    """How much of what a low-rank delta reads on the right is read through a map from the left.

    Compared are `reader @ right` and `reader @ map_matrix @ left` at held-out positions, about the fit's means.

    Args:
        reader: rows of the delta's down-projection.
        weigher: Gram matrix of its up-projection's columns, so that what is read counts as it is written.
        map_matrix: left to right.
        fit: positions whose means are taken off.
        held_out: positions on which the two are compared.

    Returns:
        1 where both are equal; 0 or less where the map is of no use to this delta; NaN where it reads nothing.
    """
    left_mean, right_mean = fit.left_mean(), fit.right_mean()
    forward = scatter(held_out, left_mean, right_mean)
    backward = scatter(held_out.flipped(), right_mean, left_mean)
    through = reader @ map_matrix
    wanted = reader @ backward.left @ reader.T
    shared = through @ forward.cross @ reader.T
    got = through @ forward.left @ through.T
    error = wanted - shared - shared.T + got
    return _r2(float((weigher * error).sum()), float((weigher * wanted).sum()))


def _polar_factor(
    tall: Float[Tensor, "rows columns"], max_rank: int
) -> tuple[Float[Tensor, "rows columns"], int]:
    """U V^T of the singular vectors, negligible directions left out, and how many there are.

    By the eigenvectors of the smaller Gram matrix, twice as fast as a singular value decomposition. Each left vector is
    scaled by its own length, so that squaring costs no precision but among directions that are nearly negligible.
    """
    eigenvalues, basis = torch.linalg.eigh(tall.T @ tall)
    above = int((eigenvalues > NEGLIGIBLE**2 * eigenvalues[-1:]).sum())
    n_directions = max(0, min(above, max_rank))
    basis = basis[:, len(eigenvalues) - n_directions :]
    images = tall @ basis
    return images / images.norm(dim=0) @ basis.T, n_directions


def _scatters(fit: PairedMoments, held_out: PairedMoments) -> tuple[Scatter, Scatter]:
    left_mean, right_mean = fit.left_mean(), fit.right_mean()
    return scatter(fit, left_mean, right_mean), scatter(held_out, left_mean, right_mean)


def _inverse(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1 / value, and 0 where the value is 0."""
    return torch.where(values > 0, 1 / values, torch.zeros_like(values))


def _map_r2(matrix: Float[Tensor, "right left"], unseen: Scatter) -> float:
    error = ((matrix @ unseen.left) * matrix).sum() - 2 * (matrix * unseen.cross.T).sum()
    return _r2(float(error) + unseen.right_total, unseen.right_total)


def _r2(error: float, total: float) -> float:
    return 1 - error / total if total > 0 else float("nan")

"""One weight tensor made of several models' tensors of that name: weighted means, and merges of updates to a base.

`stack` holds the models' tensors, `shares` what each counts, summing to 1. All arithmetic is in the tensors' own type;
hand in float32. Every function treats one tensor alone, so models of any size are merged piece by piece.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_NEARLY_PARALLEL = 1e-6
"""Angle in radians, from 0 or from pi, within which interpolation along the arc loses all its digits."""


def linear(
    stack: Float[Tensor, " models *shape"], shares: Float[Tensor, " models"]
) -> Float[Tensor, "*shape"]:
    """Weighted mean.

    Args:
        stack: the models' tensors.
        shares: of each model, summing to 1.

    Returns:
        Their mean.

    Source:
        Wortsman et al. 2022, arXiv:2203.05482, section 2 (uniform soup).
        Differs: shares may be unequal.
    """
    return (stack * _beside(shares, stack)).sum(dim=0)


def slerp(
    first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"], t: float
) -> Float[Tensor, "*shape"]:
    """The point at `t` on the arc between two tensors, seen as vectors.

    Args:
        first: the point at 0.
        second: the point at 1.
        t: share of the way.

    Returns:
        sin((1 - t) angle) / sin(angle) first + sin(t angle) / sin(angle) second; the straight line where the vectors
        point the same or the opposite way, or one is zero.

    Source:
        Shoemake 1985, "Animating rotation with quaternion curves", section 3.3.
        Differs: the vectors keep their lengths; the angle is that of their directions.
    """
    lengths = [float(torch.linalg.vector_norm(each, dtype=torch.float64)) for each in (first, second)]
    if min(lengths) == 0:
        return (1 - t) * first + t * second
    units = first / lengths[0], second / lengths[1]
    apart = torch.linalg.vector_norm(units[0] - units[1], dtype=torch.float64)
    along = torch.linalg.vector_norm(units[0] + units[1], dtype=torch.float64)
    angle = 2 * torch.atan2(apart, along)  # keeps its digits near 0, where the arc cosine has none
    if angle < _NEARLY_PARALLEL or torch.pi - angle < _NEARLY_PARALLEL:
        return (1 - t) * first + t * second
    of_first, of_second = (float(torch.sin(part * angle) / torch.sin(angle)) for part in (1 - t, t))
    return of_first * first + of_second * second


def ties(
    base: Float[Tensor, "*shape"],
    stack: Float[Tensor, " models *shape"],
    shares: Float[Tensor, " models"],
    density: float,
    scale: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """Base plus the mean of those updates that are large and have the elected sign.

    Args:
        base: the tensor that all models started from.
        stack: the models' tensors.
        shares: of each model, summing to 1; they count in the election and in the mean.
        density: share of each update that is kept, the largest entries; 1 keeps all.
        scale: multiplies the merged update.

    Returns:
        The merged tensor.

    Source:
        Yadav et al. 2023, arXiv:2306.01708, algorithm 1.
        Differs: entries are ranked within each tensor, not over the whole model (as mergekit does); shares; where the
        votes are exactly even the positive sign is elected.
    """
    deltas = torch.stack([keep_largest(each, density) for each in stack - base])
    votes = (deltas * _beside(shares, deltas)).sum(dim=0)
    return base + scale * _mean_of_agreeing(deltas, shares, votes)


def dare_linear(
    base: Float[Tensor, "*shape"],
    stack: Float[Tensor, " models *shape"],
    shares: Float[Tensor, " models"],
    density: float,
    generator: torch.Generator,
    scale: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """Base plus the mean of randomly thinned updates; at density 1 task arithmetic.

    Args:
        base: the tensor that all models started from.
        stack: the models' tensors.
        shares: of each model, summing to 1.
        density: chance of an entry to be kept, then divided by it; 1 keeps all.
        generator: of the draw.
        scale: multiplies the merged update; the number of models adds the updates up.

    Returns:
        The merged tensor.

    Source:
        Yu et al. 2023, arXiv:2311.03099, section 3.2 (drop and rescale by 1 / (1 - p)); Ilharco et al. 2022,
        arXiv:2212.04089 (task arithmetic).
    """
    return base + scale * linear(thinned(stack - base, density, generator), shares)


def dare_ties(
    base: Float[Tensor, "*shape"],
    stack: Float[Tensor, " models *shape"],
    shares: Float[Tensor, " models"],
    density: float,
    generator: torch.Generator,
    scale: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """Base plus the mean of those randomly thinned updates that have the elected sign.

    Args:
        base: the tensor that all models started from.
        stack: the models' tensors.
        shares: of each model, summing to 1.
        density: chance of an entry to be kept, then divided by it; 1 keeps all.
        generator: of the draw.
        scale: multiplies the merged update.

    Returns:
        The merged tensor.

    Source:
        Yu et al. 2023, arXiv:2311.03099, section 3.3, with the election of Yadav et al. 2023, arXiv:2306.01708.
        Differs: thinning takes the place of TIES's choice of the largest entries (as in mergekit).
    """
    deltas = thinned(stack - base, density, generator)
    votes = (deltas * _beside(shares, deltas)).sum(dim=0)
    return base + scale * _mean_of_agreeing(deltas, shares, votes)


def sce(
    base: Float[Tensor, "*shape"], stack: Float[Tensor, " models *shape"], top_share: float
) -> Float[Tensor, "*shape"]:
    """Base plus the updates where the models differ most, weighted by their squares, without the minority's signs.

    Args:
        base: the tensor that all models started from.
        stack: the models' tensors.
        top_share: share of the entries that are selected, those of greatest variance among the models; 1 takes all.

    Returns:
        The merged tensor.

    Source:
        Yang et al. 2024 (FuseChat), arXiv:2408.07990, section 3.3 (select, calculate, erase).
        Differs: as in the authors' own code in mergekit, the sum is divided by the weights left after erasing. That
        code makes all models' weights equal where their squares sum to less than 1e-6, which is where fine-tuning
        leaves them; here they are never made equal unless all updates are zero.
    """
    deltas = stack - base
    if top_share < 1:
        variance = deltas.var(dim=0, unbiased=False)
        n_kept = int(top_share * int(torch.count_nonzero(variance)))
        deltas = deltas * (variance >= _largest_from(variance, max(1, n_kept))) * (variance > 0)
    squares = deltas.square().reshape(len(stack), -1).sum(dim=1, dtype=torch.float64)
    total = squares.sum()
    shares = squares / total if total > 0 else torch.full_like(squares, 1 / len(squares))
    return base + _mean_of_agreeing(deltas, shares.to(deltas.dtype), votes=deltas.sum(dim=0))


def model_stock(
    base: Float[Tensor, "*shape"], stack: Float[Tensor, " models *shape"]
) -> Float[Tensor, "*shape"]:
    """Between base and mean, the nearer to the mean the more the updates point the same way.

    Args:
        base: the tensor that all models started from.
        stack: the models' tensors, two or more.

    Returns:
        t mean + (1 - t) base with t = n cos / (1 + (n - 1) cos), cos being the mean over the pairs of updates.

    Source:
        Jang et al. 2024, arXiv:2403.19522, section 4.2, equation 5 (layer-wise).
        Differs: a cosine below 0 counts as 0, since the formula would go beyond the base; an update of zero has
        cosine 0 to the others.
    """
    n_models = len(stack)
    updates = (stack - base).reshape(len(stack), -1).double()
    lengths = torch.linalg.vector_norm(updates, dim=1, keepdim=True)
    units = updates / lengths.masked_fill(lengths == 0, 1)
    cosines = units @ units.T
    cosine = (cosines.sum() - cosines.trace()) / (n_models * (n_models - 1))
    cosine = float(cosine.clamp(min=0, max=1))
    t = n_models * cosine / (1 + (n_models - 1) * cosine)
    return t * stack.mean(dim=0) + (1 - t) * base


def keep_largest(values: Float[Tensor, "*shape"], share: float) -> Float[Tensor, "*shape"]:
    """The entries of greatest magnitude, zero elsewhere; those as great as the smallest kept one stay too.

    Args:
        values: any tensor.
        share: how many of its entries to keep, at least one.

    Returns:
        The thinned tensor.
    """
    if share >= 1 or not values.numel():
        return values
    magnitudes = values.abs()
    return values * (magnitudes >= _largest_from(magnitudes, max(1, int(share * values.numel()))))


def thinned(
    values: Float[Tensor, "*shape"], density: float, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """Each entry dropped with chance 1 - density, or divided by density: the expectation stays.

    Args:
        values: any tensor.
        density: chance of an entry to stay, over 0.
        generator: of the draw.

    Returns:
        The thinned tensor.
    """
    if density >= 1:
        return values
    is_kept = torch.rand(values.shape, generator=generator) < density
    return values * is_kept / density


def _largest_from(values: Tensor, n_kept: int) -> Tensor:
    """The smallest of the `n_kept` greatest values."""
    return values.flatten().kthvalue(values.numel() - n_kept + 1).values


def _mean_of_agreeing(
    deltas: Float[Tensor, " models *shape"], shares: Float[Tensor, " models"], votes: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Weighted mean over the models whose entry has the sign of `votes`; zero where there is none."""
    counted = _beside(shares, deltas) * (deltas.sign() == torch.where(votes >= 0, 1.0, -1.0))
    total = counted.sum(dim=0)
    return (deltas * counted).sum(dim=0) / total.masked_fill(total == 0, 1)


def _beside(shares: Float[Tensor, " models"], stack: Float[Tensor, " models *shape"]) -> Tensor:
    return shares.to(stack.dtype).reshape(-1, *[1] * (stack.ndim - 1))

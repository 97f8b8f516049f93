"""Starting factors that owe nothing to a teacher: what a transfer has to beat."""

from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from transfuse.errors import TrainingError
from transfuse.tensors.low_rank import truncated_svd
from transfuse.train.starting_factors import Factors, student_module

EXACT_SVD_SIDE = 1024
"""Weights whose shorter side is at most this long are decomposed in full, as PEFT does; others by sketching."""


@torch.no_grad()
def pissa_factors(
    model: PreTrainedModel, names: Collection[str], rank: int, generator: torch.Generator
) -> dict[str, Factors]:
    """The strongest part of a student's own weights, as balanced factors.

    Args:
        model: the student.
        names: full module names of linear layers and embeddings.
        rank: singular directions kept.
        generator: of the sketches of large weights.

    Returns:
        By module, factors whose product is the best approximation of its weight at this rank.

    Raises:
        TrainingError: no such module, its weight is packed by quantisation, or has fewer directions than `rank`.

    Source:
        Meng et al. 2024, arXiv:2404.02948, section 3.
        Differs: the weight itself is left whole, and -B0 A0 runs beside it; embeddings take part as well.
    """
    return {name: _principal_factors(name, _weight_of(model, name), rank, generator) for name in names}


@torch.no_grad()
def randomly_turned_factors(factors: Mapping[str, Factors], generator: torch.Generator) -> dict[str, Factors]:
    """Random directions of the same strengths: every singular value stays, of each factor and of their product.

    Args:
        factors: whose singular values are taken; they stay as they are.
        generator: draws the directions, uniformly among all rotations.

    Returns:
        Factors of the same shapes.
    """
    return {name: _turned(pair, generator) for name, pair in factors.items()}


def _principal_factors(
    name: str, weight: Float[Tensor, "rows columns"], rank: int, generator: torch.Generator
) -> Factors:
    if rank > min(weight.shape):
        raise TrainingError(
            f"{name}: rank {rank} is asked for, student weight is {tuple(weight.shape)}; "
            f"set train.lora.rank to {min(weight.shape)} or less."
        )
    if min(weight.shape) <= EXACT_SVD_SIDE:
        left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    else:
        left, values, right, _ = truncated_svd(weight.float(), rank, generator=generator)
    root = values[:rank].sqrt()
    return Factors((left[:, :rank] * root).contiguous(), root[:, None] * right[:rank])


def _turned(factors: Factors, generator: torch.Generator) -> Factors:
    up = _turned_columns(factors.up, generator)
    return Factors(up, _turned_columns(factors.down.T, generator).T.contiguous())


def _turned_columns(
    matrix: Float[Tensor, "length rank"], generator: torch.Generator
) -> Float[Tensor, "length rank"]:
    """The columns with their lengths and angles, in a random direction of space."""
    core = torch.linalg.qr(matrix.double()).R
    drawn = torch.randn(len(matrix), len(core), dtype=torch.float64, generator=generator)
    frame, triangle = torch.linalg.qr(drawn)
    frame = frame * triangle.diagonal().sign()  # else QR's sign convention would favour some directions
    return (frame.to(core.device) @ core).to(matrix.dtype)


def _weight_of(model: PreTrainedModel, name: str) -> Float[Tensor, "rows columns"]:
    weight = getattr(student_module(model, name), "weight", None)
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        came = "none" if weight is None else f"{weight.dtype} of shape {tuple(weight.shape)}"
        raise TrainingError(
            f"{name}: expected a weight matrix of floating-point numbers, got {came}; "
            f"name linear layers or embeddings, and load the student without quantisation."
        )
    return weight

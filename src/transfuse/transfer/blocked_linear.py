"""A linear map by a large stored matrix, converted a block of rows at a time."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_BLOCK_NUMBERS = 1 << 25
"""Numbers converted at once: 128 MiB of float32."""


def blocked_linear(
    given: Float[Tensor, "*batch columns"], weight: Float[Tensor, "rows columns"]
) -> Float[Tensor, "*batch rows"]:
    """`given @ weight.T` in the type of `given`; differentiable by `given`, the weight being a constant.

    Args:
        given: its type is computed in.
        weight: in any floating-point type; never converted as a whole.

    Returns:
        One number for every row of the weight.
    """
    if weight.dtype == given.dtype:
        return nn.functional.linear(given, weight)
    return _BlockedLinear.apply(given, weight)


def _blocks(weight: Tensor) -> list[slice]:
    step = max(1, _BLOCK_NUMBERS // weight.shape[1])
    return [slice(start, start + step) for start in range(0, len(weight), step)]


class _BlockedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        output = given.new_empty(*given.shape[:-1], len(weight))
        for rows in _blocks(weight):
            output[..., rows] = nn.functional.linear(given, weight[rows].to(given.dtype))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        result = gradient.new_zeros(*gradient.shape[:-1], ctx.weight.shape[1])
        for rows in _blocks(ctx.weight):
            result += gradient[..., rows] @ ctx.weight[rows].to(gradient.dtype)
        return result, None

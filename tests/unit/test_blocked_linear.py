"""Blocks of rows give what the whole matrix gives."""

import pytest
import torch

from transfuse.transfer import blocked_linear
from transfuse.transfer.blocked_linear import blocked_linear as apply


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_output_and_gradient_equal_those_of_the_converted_matrix(dtype, monkeypatch):
    monkeypatch.setattr(blocked_linear, "_BLOCK_NUMBERS", 7)
    torch.manual_seed(0)
    weight = torch.randn(11, 3).to(dtype)
    given = torch.randn(2, 4, 3, requires_grad=True)
    output = apply(given, weight)
    factors = torch.randn_like(output)
    (output * factors).sum().backward()
    torch.testing.assert_close(output, given @ weight.float().T)
    torch.testing.assert_close(given.grad, factors @ weight.float())

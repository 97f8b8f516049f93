"""Controls of a transfer: the student's own strongest part, and random directions of the same strengths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from injection_models import RANK, module_names, random_factors, student
from transfuse.errors import TrainingError
from transfuse.train import starting_controls
from transfuse.train.starting_controls import pissa_factors, randomly_turned_factors
from transfuse.train.starting_factors import Factors

QUERY = "model.layers.0.self_attn.q_proj"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_weight(values: list[float]) -> LlamaForCausalLM:
    model = student()
    with torch.no_grad():
        diagonal = torch.zeros(32)
        diagonal[: len(values)] = torch.tensor(values)
        model.get_submodule(QUERY).weight.copy_(diagonal.diag())
    return model


def test_pissa_by_hand():
    (pair,) = pissa_factors(with_weight([4.0, 9.0, 1.0]), [QUERY], 2, generator()).values()
    expected = torch.zeros(32, 32)
    expected[0, 0], expected[1, 1] = 4, 9
    torch.testing.assert_close(pair.up @ pair.down, expected)
    torch.testing.assert_close(pair.up.norm(dim=0), torch.tensor([3.0, 2.0]))  # the roots, in both factors
    torch.testing.assert_close(pair.down.norm(dim=1), torch.tensor([3.0, 2.0]))


def test_what_pissa_leaves_is_the_rest_of_the_spectrum():
    model = student()
    for name, pair in pissa_factors(model, module_names(model), RANK, generator()).items():
        weight = model.get_submodule(name).weight.detach()
        rest = (weight - pair.up @ pair.down).norm()
        torch.testing.assert_close(rest, torch.linalg.svdvals(weight)[RANK:].norm())


def test_large_weights_are_sketched(monkeypatch):
    monkeypatch.setattr(starting_controls, "EXACT_SVD_SIDE", 8)
    model = with_weight([8.0, 4.0, 2.0, 1.0])  # falls fast, as a sketch needs it
    (pair,) = pissa_factors(model, [QUERY], 2, generator()).values()
    rest = (model.get_submodule(QUERY).weight.detach() - pair.up @ pair.down).norm()
    assert float(rest) == pytest.approx(5**0.5, rel=0.01)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), rank=st.integers(1, 6), seed=st.integers(0, 9))
def test_random_directions_keep_every_singular_value(rows, columns, rank, seed):
    draw = generator(seed)
    given = Factors(torch.randn(rows, rank, generator=draw), torch.randn(rank, columns, generator=draw))
    (turned,) = randomly_turned_factors({"x": given}, draw).values()
    assert turned.up.shape == given.up.shape
    assert turned.down.shape == given.down.shape
    for got, expected in [
        (turned.up, given.up),
        (turned.down, given.down),
        (turned.up @ turned.down, given.up @ given.down),
    ]:
        values = torch.linalg.svdvals(got)
        torch.testing.assert_close(values, torch.linalg.svdvals(expected), rtol=1e-4, atol=1e-4)


def test_random_directions_are_others_each_time_and_the_same_from_one_seed():
    factors = random_factors(student())
    one, again, other = (randomly_turned_factors(factors, generator(seed))[QUERY] for seed in (0, 0, 1))
    assert torch.equal(one.up, again.up)
    given = factors[QUERY].up @ factors[QUERY].down
    for pair in (one, other):
        overlap = (pair.up @ pair.down * given).sum() / given.norm() ** 2
        assert abs(float(overlap)) < 0.5
    assert (one.up - other.up).norm() > 0.5 * one.up.norm()


def test_directions_are_drawn_evenly():
    # A lone column's first entry is as often positive as negative; QR's own sign would make it one of them.
    one = {"x": Factors(torch.ones(2, 1), torch.ones(1, 2))}
    draw = generator()
    signs = [float(randomly_turned_factors(one, draw)["x"].up[0, 0].sign()) for _ in range(200)]
    assert abs(sum(signs)) < 60


def test_what_has_no_strongest_part_is_refused():
    model = student()
    with pytest.raises(
        TrainingError, match=r"q_proj: rank 33 is asked for, student weight is \(32, 32\); set"
    ):
        pissa_factors(model, [QUERY], 33, generator())
    with pytest.raises(TrainingError, match="norm: expected a weight matrix of floating-point numbers, got"):
        pissa_factors(model, ["model.norm"], 1, generator())
    with pytest.raises(TrainingError, match="q_prj: expected a module of the student"):
        pissa_factors(model, ["model.layers.0.self_attn.q_prj"], 1, generator())

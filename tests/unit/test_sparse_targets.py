"""Sparse targets: the divergence over kept tokens and a tail is what it is over the whole vocabulary, or less."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.tensors.sparse_divergences import sparse_divergence
from transfuse.tensors.sparse_targets import top_log_probs

sparse_forward_kl = partial(sparse_divergence, "forward-kl")

KL = {"reduction": "none", "log_target": True}


def drawn(seed: int, n_targets: int, n_tokens: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (torch.randn(n_targets, n_tokens, generator=generator) * spread for _ in range(2))
    return teacher, student


def dense_kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.kl_div(student.log_softmax(1), teacher.log_softmax(1), **KL).sum(dim=1)


def test_two_kept_tokens_and_a_tail_by_hand():
    teacher = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    student = torch.tensor([[0.2, 0.4, 0.2, 0.2]]).log() + 7  # logits need not be normalised
    kept = top_log_probs(teacher, 2)
    assert kept.token_ids.tolist() == [[1, 3]]
    assert kept.log_probs.exp()[0].tolist() == pytest.approx([0.5, 0.25])
    # 1/2 ln(.5/.4) + 1/4 ln(.25/.2) + 1/4 ln(.25/.4)
    expected = 0.75 * math.log(1.25) + 0.25 * math.log(0.625)
    assert sparse_forward_kl(*kept, student).tolist() == pytest.approx([expected])


def test_a_temperature_divides_the_logits():
    kept = top_log_probs(torch.tensor([[2.0, 0.0]]), 1, temperature=2.0)
    assert kept.log_probs.item() == pytest.approx(-math.log(1 + math.exp(-1)))


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**30),
    n_tokens=st.integers(2, 40),
    k=st.integers(1, 50),
    spread=st.sampled_from([0.1, 3.0, 30.0]),
)
def test_lumping_tokens_hides_differences_and_makes_none(seed, n_tokens, k, spread):
    teacher, student = drawn(seed, 3, n_tokens, spread)
    kept = top_log_probs(teacher, k)
    sparse, dense = sparse_forward_kl(*kept, student), dense_kl(teacher, student)
    slack = 1e-4 * (1 + dense)
    assert (sparse > -1e-5).all()
    assert (sparse <= dense + slack).all()
    assert sparse_forward_kl(*kept, teacher).abs().max() < 1e-5
    if k >= n_tokens:
        assert ((sparse - dense).abs() <= slack).all()


def test_more_kept_tokens_show_more():
    teacher, student = drawn(1, 1, 30, 2.0)
    values = [float(sparse_forward_kl(*top_log_probs(teacher, k), student)) for k in (1, 2, 5, 15, 29, 30)]
    assert values == sorted(values)
    assert values[0] < 0.9 * values[-1]


def test_with_every_token_kept_the_gradient_is_that_of_the_dense_divergence():
    teacher, student = drawn(2, 4, 20, 2.0)
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    sparse_forward_kl(*top_log_probs(teacher, 20), ours).sum().backward()
    dense_kl(teacher, theirs).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_gradient_with_a_tail_is_that_of_the_dense_divergence_of_the_lumped_outcomes():
    teacher, student = drawn(3, 4, 20, 2.0)
    kept = top_log_probs(teacher, 5)
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    sparse_forward_kl(*kept, ours).sum().backward()

    def lumped(logits: torch.Tensor) -> torch.Tensor:
        probs = logits.softmax(1).gather(1, kept.token_ids.long())
        return torch.cat([probs, 1 - probs.sum(1, keepdim=True)], dim=1).log()

    torch.nn.functional.kl_div(lumped(theirs), lumped(teacher), **KL).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 3])
def test_a_certain_teacher_and_a_certain_student_stay_finite(k):
    teacher = torch.tensor([[0.0, -200.0, -torch.inf, -torch.inf]])  # the tail is 0, and so is a kept token
    student = torch.tensor([[-300.0, 300.0, 0.0, 1.0]], requires_grad=True)
    loss = sparse_forward_kl(*top_log_probs(teacher, k), student)
    loss.sum().backward()
    assert loss.item() == pytest.approx(600)
    assert student.grad is not None
    assert student.grad.tolist() == [[-1, 1, 0, 0]]


def test_a_teachers_tail_moves_a_student_that_has_none():
    teacher = torch.tensor([0.5, 0.25, 0.25]).log()[None]
    student = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = sparse_forward_kl(*top_log_probs(teacher, 1), student)
    loss.sum().backward()
    # ln 1/2 and half of what the student's tail, 2 in e^200, lacks.
    assert loss.item() == pytest.approx(math.log(0.5) + 0.5 * (200 - math.log(2)), rel=1e-5)
    assert student.grad is not None
    assert student.grad[0].tolist() == pytest.approx([0.5, -0.25, -0.25])

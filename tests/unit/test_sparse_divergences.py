"""Divergences of sparse targets: by hand, against dense ones, 0 where two agree, and deaf to pads."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.tensors.sparse_divergences import (
    DIVERGENCES,
    TAIL_FLOOR,
    Divergence,
    chunk_divergence,
    sparse_divergence,
    student_log_probs,
)
from transfuse.tensors.sparse_targets import sparse_log_probs, top_log_probs

NAMES = list(DIVERGENCES)
ZERO_WHERE_EQUAL = ["forward-kl", "reverse-kl", "jsd", "uld"]

# Two tokens of four are kept, .5 and .3; a fifth of the mass is the tail's.
TEACHER = torch.tensor([[0.1, 0.5, 0.1, 0.3]]).log()
STUDENT = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log() + 3  # logits need not be normalised


def drawn(seed: int, n_targets: int, n_tokens: int, spread: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_targets, n_tokens, generator=generator, dtype=torch.float64) * spread


def test_the_table_has_every_name():
    assert tuple(NAMES) == get_args(Divergence)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cross-entropy", -0.5 * math.log(0.2) - 0.3 * math.log(0.4)),
        ("cross-entropy-renormalised", -0.625 * math.log(0.2) - 0.375 * math.log(0.4)),
        ("forward-kl", 0.5 * math.log(0.5 / 0.2) + 0.3 * math.log(0.3 / 0.4) + 0.2 * math.log(0.2 / 0.4)),
        ("reverse-kl", 0.2 * math.log(0.2 / 0.5) + 0.4 * math.log(0.4 / 0.3) + 0.4 * math.log(0.4 / 0.2)),
        # Halfway between .5 .3 .2 and .2 .4 .4 are .35 .35 .3.
        (
            "jsd",
            0.5 * (0.5 * math.log(0.5 / 0.35) + 0.3 * math.log(0.3 / 0.35) + 0.2 * math.log(0.2 / 0.3))
            + 0.5 * (0.2 * math.log(0.2 / 0.35) + 0.4 * math.log(0.4 / 0.35) + 0.4 * math.log(0.4 / 0.3)),
        ),
        # The student's likeliest are .4 and .3, whatever tokens they are.
        ("uld", abs(0.5 - 0.4) + abs(0.3 - 0.3) + abs(0.2 - 0.3)),
    ],
)
def test_two_kept_tokens_and_a_tail_by_hand(name, expected):
    kept = top_log_probs(TEACHER, 2)
    assert kept.token_ids.tolist() == [[1, 3]]
    assert sparse_divergence(name, *kept, STUDENT).item() == pytest.approx(expected, rel=1e-5)


def dense(name: Divergence, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    p, q = teacher.softmax(1), student.softmax(1)
    if name == "uld":
        return (p.sort(dim=1).values - q.sort(dim=1).values).abs().sum(1)
    if name.startswith("cross-entropy"):
        return -(p * q.log()).sum(1)
    if name == "jsd":
        middle = (p + q) / 2
        return ((p * (p / middle).log()).sum(1) + (q * (q / middle).log()).sum(1)) / 2
    return (p * (p / q).log()).sum(1) if name == "forward-kl" else (q * (q / p).log()).sum(1)


@pytest.mark.parametrize("name", NAMES)
def test_with_every_token_kept_value_and_gradient_are_the_dense_ones(name):
    teacher, ours = drawn(1, 5, 12), drawn(2, 5, 12).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    ids = teacher.argsort(dim=1, descending=True)
    log_probs = teacher.log_softmax(1).gather(1, ids)
    found, expected = sparse_divergence(name, ids, log_probs, ours), dense(name, teacher, theirs)
    torch.testing.assert_close(found, expected)
    weights = torch.arange(1.0, 6, dtype=torch.float64)
    (found @ weights).backward()
    (expected @ weights).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 4, 9])
def test_gradients_are_those_of_finite_differences(name, k):
    kept = top_log_probs(drawn(3, 4, 9).float(), k)
    log_probs = kept.log_probs.double()
    log_probs[1, k // 2 :] = -torch.inf  # pads, in the last row nothing else
    log_probs[3] = -torch.inf
    student = drawn(4, 4, 9).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda logits: sparse_divergence(name, kept.token_ids, log_probs, logits), student
    )


def of_beta(beta: float, teacher: torch.Tensor, student: torch.Tensor, k: int = 9) -> torch.Tensor:
    ids = teacher.argsort(dim=1, descending=True)[:, :k]
    return sparse_divergence("jsd", ids, teacher.log_softmax(1).gather(1, ids), student, beta)


def test_jsd_weighs_a_side_by_beta():
    # A quarter of .5 .3 .2 and three quarters of .2 .4 .4.
    m = [0.275, 0.375, 0.35]
    expected = 0.25 * sum(p * math.log(p / x) for p, x in zip([0.5, 0.3, 0.2], m, strict=True))
    expected += 0.75 * sum(q * math.log(q / x) for q, x in zip([0.2, 0.4, 0.4], m, strict=True))
    kept = top_log_probs(TEACHER, 2)
    assert sparse_divergence("jsd", *kept, STUDENT, 0.25).item() == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**30), beta=st.floats(0.01, 0.99), spread=st.sampled_from([0.1, 2.0, 20.0]))
def test_jsd_changes_sides_with_beta_and_is_at_most_a_coins_entropy(seed, beta, spread):
    one, other = drawn(seed, 3, 9, spread), drawn(seed + 1, 3, 9, spread)
    found = of_beta(beta, one, other)
    torch.testing.assert_close(found, of_beta(1 - beta, other, one))
    assert (found <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta) + 1e-9).all()


@pytest.mark.parametrize("k", [3, 9])
def test_jsd_goes_over_into_the_two_kls(k):
    teacher, student = drawn(6, 4, 9, 1.0), drawn(7, 4, 9, 1.0)
    ids = teacher.argsort(dim=1, descending=True)[:, :k]
    kept = (ids, teacher.log_softmax(1).gather(1, ids))
    forward, reverse = (sparse_divergence(name, *kept, student) for name in ("forward-kl", "reverse-kl"))
    torch.testing.assert_close(of_beta(1e-6, teacher, student, k) / 1e-6, forward, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(of_beta(1 - 1e-6, teacher, student, k) / 1e-6, reverse, rtol=1e-4, atol=1e-6)


def test_a_certain_teacher_keeps_jsd_and_its_gradient_finite():
    student = drawn(8, 1, 4).requires_grad_()
    certain = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64)
    value = sparse_divergence("jsd", torch.tensor([[2, 0]]), certain, student, 0.3)
    q = student.detach().softmax(1)[0, 2]
    expected = -0.3 * (0.3 + 0.7 * q).log() + 0.7 * (
        q * (q / (0.3 + 0.7 * q)).log() - (1 - q) * math.log(0.7)
    )
    torch.testing.assert_close(value[0], expected)
    value.sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_every_log_probability_has_the_gradient_of_torchs_own_softmax():
    logits = drawn(5, 3, 8).requires_grad_()
    again = logits.detach().clone().requires_grad_()
    own_ids, ids = torch.tensor([0, 3, 7]), torch.tensor([[0, 1], [5, 3], [2, 4]])
    found = sparse_log_probs(logits, own_ids, ids, torch.ones(3, 2, dtype=torch.bool))
    log_probs = again.log_softmax(1)
    kept = log_probs.gather(1, ids)
    expected = (log_probs[range(3), own_ids], kept, (1 - kept.exp().sum(1)).log())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    sum((part * part).sum() for part in found).backward()
    sum((part * part).sum() for part in expected).backward()
    torch.testing.assert_close(logits.grad, again.grad)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**30),
    n_tokens=st.integers(2, 30),
    k=st.integers(1, 30),
    spread=st.sampled_from([0.1, 2.0, 20.0]),
)
def test_two_that_agree_are_0_apart_and_others_not_less(seed, n_tokens, k, spread):
    teacher, student = drawn(seed, 3, n_tokens, spread), drawn(seed + 1, 3, n_tokens, spread)
    ids = teacher.argsort(dim=1, descending=True)[:, :k]
    log_probs = teacher.log_softmax(1).gather(1, ids)
    for name in ZERO_WHERE_EQUAL:
        assert sparse_divergence(name, ids, log_probs, teacher).abs().max() < 2e-5
        value = sparse_divergence(name, ids, log_probs, student)
        assert (value > -2e-5).all()
        assert (value <= dense(name, teacher, student) + 2e-5).all()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**30), k=st.integers(1, 6), n_pads=st.integers(1, 6), pad_id=st.integers(0, 9))
def test_pads_of_any_id_change_nothing(seed, k, n_pads, pad_id):
    teacher = drawn(seed, 4, 10)
    ids = teacher.argsort(dim=1, descending=True)[:, :k]
    log_probs = teacher.log_softmax(1).gather(1, ids)
    padded_ids = torch.cat([ids, torch.full((4, n_pads), pad_id)], dim=1)
    padded = torch.cat([log_probs, torch.full((4, n_pads), -torch.inf, dtype=torch.float64)], dim=1)
    for name in NAMES:
        student, again = drawn(seed + 1, 4, 10).requires_grad_(), drawn(seed + 1, 4, 10).requires_grad_()
        plain, with_pads = (
            sparse_divergence(name, *kept)
            for kept in ((ids, log_probs, student), (padded_ids, padded, again))
        )
        torch.testing.assert_close(with_pads, plain)
        plain.sum().backward()
        with_pads.sum().backward()
        torch.testing.assert_close(again.grad, student.grad)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_pads_teaches_nothing(name):
    student = drawn(6, 2, 7).requires_grad_()
    value = sparse_divergence(
        name, torch.zeros(2, 3).long(), torch.full((2, 3), -torch.inf).double(), student
    )
    value.sum().backward()
    assert value.abs().max() < 1e-12
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize("name", ["cross-entropy", "cross-entropy-renormalised", "forward-kl"])
def test_a_one_hot_target_is_the_texts_own_token(name):
    student, again = drawn(7, 3, 9).requires_grad_(), drawn(7, 3, 9).requires_grad_()
    gold = torch.tensor([4, 0, 8])
    ids = torch.stack([gold, torch.zeros(3).long(), torch.zeros(3).long()], dim=1)
    log_probs = torch.tensor([[0.0, -torch.inf, -torch.inf]] * 3).double()
    value = sparse_divergence(name, ids, log_probs, student)
    expected = torch.nn.functional.cross_entropy(again, gold, reduction="none")
    torch.testing.assert_close(value, expected)
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(student.grad, again.grad)


def test_a_certain_teacher_stays_finite_in_reverse_and_is_blind_to_tokens_when_sorted():
    ids, log_probs = torch.tensor([[2]]), torch.zeros(1, 1)
    student = torch.tensor([[0.5, 0.25, 0.25]]).log()
    reverse = 0.25 * math.log(0.25) + 0.75 * math.log(0.75 / TAIL_FLOOR)
    assert sparse_divergence("reverse-kl", ids, log_probs, student).item() == pytest.approx(reverse)
    # ULD compares 1 with the student's likeliest token, which is another.
    assert sparse_divergence("uld", ids, log_probs, student).item() == pytest.approx(1.0)


def test_what_is_compared_is_in_the_teachers_order_or_by_rank():
    kept = top_log_probs(TEACHER, 2)
    own_ids = torch.tensor([0])
    _, by_id = student_log_probs("forward-kl", *kept, own_ids, STUDENT)
    _, by_rank = student_log_probs("uld", *kept, own_ids, STUDENT)
    assert by_id.kept.exp()[0].tolist() == pytest.approx([0.2, 0.4])
    assert by_rank.kept.exp()[0].tolist() == pytest.approx([0.4, 0.3])
    assert by_id.own.exp().tolist() == by_rank.own.exp().tolist() == pytest.approx([0.1])


# Chunks


def test_a_chunk_by_hand():
    source, student = torch.tensor([0.25, 0.25]).log(), torch.tensor([0.5, 0.09]).log()
    found = chunk_divergence(source, student, torch.tensor([1.0, 2.0]))
    plain = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    tempered = 0.5 * math.log(0.5 / 0.3) + 0.5 * math.log(0.5 / 0.7)  # square roots
    assert found.tolist() == pytest.approx([plain, 2 * tempered], rel=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    source=st.floats(-300, 0), student=st.floats(-300, 0), temperature=st.sampled_from([0.5, 1.0, 3.0, 100.0])
)
def test_a_chunks_divergence_is_finite_never_negative_and_0_where_both_agree(source, student, temperature):
    ours = torch.tensor([student], requires_grad=True)
    given_, tau = torch.tensor([source]), torch.tensor([temperature])
    value = chunk_divergence(given_, ours, tau)
    value.sum().backward()
    assert ours.grad is not None
    assert ours.grad.isfinite().all()
    assert value.isfinite().all()
    assert value.item() > -1e-4
    assert chunk_divergence(given_, given_, tau).item() == 0


def test_a_chunk_that_cannot_come_pulls_the_student_down():
    student = torch.tensor([-0.5], requires_grad=True)
    value = chunk_divergence(torch.tensor([-torch.inf]), student, torch.ones(1))
    value.sum().backward()
    assert value.item() == pytest.approx(-math.log(1 - math.exp(-0.5)), rel=1e-5)
    assert student.grad is not None
    assert student.grad.item() > 0


def test_a_chunks_gradient_is_that_of_finite_differences():
    source = torch.tensor([-0.001, -0.5, -3.0, -40.0], dtype=torch.float64)
    student = torch.tensor([-0.7, -0.001, -30.0, -2.0], dtype=torch.float64, requires_grad=True)
    for tau in (1.0, 20.0):
        temperatures = torch.full((4,), tau, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda s, t=temperatures: chunk_divergence(source, s, t), student)


def test_a_large_temperature_has_a_limit():
    a, b = 3.0, 5.0
    value = chunk_divergence(
        torch.tensor([-a]).double(), torch.tensor([-b]).double(), torch.tensor([1e6]).double()
    )
    assert value.item() == pytest.approx(a * math.log(a / b) + b - a, rel=1e-4)

"""Sampling keeps what top-p says, in the right shares, and each row minds its own business."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from transfuse.generate import sampling
from transfuse.generate.protocol import Request
from transfuse.generate.sampling import RowSampler, sample_tokens

# Probabilities 0.5, 0.1, 0.25, 0.15 of the tokens 0 to 3.
LOGITS = torch.tensor([0.5, 0.1, 0.25, 0.15]).log()


def pick(uniform: float, top_p: float = 1.0, temperature: float = 1.0, logits: torch.Tensor = LOGITS) -> int:
    one = (torch.tensor([value]) for value in (temperature, top_p, uniform))
    return int(sample_tokens(logits[None], *one))


@pytest.mark.parametrize(
    ("uniform", "top_p", "token"),
    [
        *[(0.0, 1.0, 0), (0.49, 1.0, 0), (0.51, 1.0, 1), (0.61, 1.0, 2), (0.86, 1.0, 3)],
        # 0.5 + 0.25 reach 0.7: tokens 0 and 2 share the draw two to one.
        *[(0.66, 0.7, 0), (0.67, 0.7, 2), (1 - 2**-24, 0.7, 2)],
        # 0.5 + 0.25 + 0.15 reach 0.8, so only token 1 is out.
        *[(0.55, 0.8, 0), (0.56, 0.8, 2), (0.84, 0.8, 3)],
        (1 - 2**-24, 0.4, 0),
    ],
)
def test_values_worked_by_hand(uniform: float, top_p: float, token: int):
    assert pick(uniform, top_p) == token


def test_temperature_sharpens_and_flattens():
    # At temperature 1/2 the shares are the squares: 50, 2, 12.5 and 4.5 of 69.
    assert [pick(u, temperature=0.5) for u in (0.72, 0.73, 0.76)] == [0, 1, 2]
    assert [pick(u, temperature=1e6) for u in (0.24, 0.26, 0.51, 0.76)] == [0, 1, 2, 3]
    assert pick(1 - 2**-24, temperature=1e-38) == 0


@settings(max_examples=40, deadline=None)
@given(
    logits=st.lists(st.floats(-20, 20), min_size=1, max_size=30),
    top_p=st.floats(0.01, 1),
    uniform=st.floats(0, 1 - 2**-24, width=32),
    n_likeliest=st.integers(1, 40),
)
def test_every_pick_is_among_the_smallest_set_that_holds_top_p(logits, top_p, uniform, n_likeliest):
    row = torch.tensor(logits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "N_LIKELIEST", n_likeliest)
        picked = pick(uniform, top_p, logits=row)
    probs = row.softmax(0)
    assert float(probs[probs > probs[picked] + 1e-6].sum()) < top_p + 1e-5


def test_a_row_is_the_same_alone_and_beside_others():
    requests = [Request(f"{n}?", temperature=t) for n, t in enumerate([0.0, 1.0, 0.0, 0.7, 2.0])]
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(5, 50, generator=generator) for _ in range(4)]
    ids = torch.zeros(5, 1, dtype=torch.long)
    together = RowSampler(requests)
    rows = [together(ids, scores) for scores in steps]
    for row, request in enumerate(requests):
        if request.temperature == 0:
            assert all(torch.equal(got[row], scores[row]) for got, scores in zip(rows, steps, strict=True))
            continue
        alone = RowSampler([request])
        for got, scores in zip(rows, steps, strict=True):
            torch.testing.assert_close(alone(ids[:1], scores[row : row + 1])[0], got[row])
            assert got[row].isfinite().sum() == 1
    assert not RowSampler([requests[0]]).is_needed


def test_draws_follow_the_shares_and_differ_between_requests_of_one_seed():
    requests = [Request(f"{n}?", temperature=1.0) for n in range(2000)]
    scores = LOGITS.expand(2000, 4)
    picked = RowSampler(requests)(torch.zeros(2000, 1, dtype=torch.long), scores).argmax(1)
    shares = torch.bincount(picked, minlength=4) / 2000
    torch.testing.assert_close(shares, LOGITS.exp(), atol=0.04, rtol=0)  # 3.5 standard errors

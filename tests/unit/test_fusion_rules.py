import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.tensors.fusion_rules import (
    UNTAUGHT,
    MappedStates,
    choose_least,
    common_ends,
    costs_of,
    evidence_weights,
    interval_costs,
    keep_chosen,
    mixed,
    reward_weights,
)

NAN = float("nan")


def states(*rows: dict[int, float], kept: int = 2) -> MappedStates:
    """States from probabilities by token; an empty one is not taught."""
    ids, nats = np.zeros((len(rows), kept), dtype=np.int32), np.full((len(rows), kept), -np.inf, np.float32)
    for n, row in enumerate(rows):
        for place, (token, probability) in enumerate(sorted(row.items(), key=lambda item: -item[1])):
            ids[n, place], nats[n, place] = token, np.log(probability)
    return MappedStates(ids, nats, np.array([bool(row) for row in rows]))


def probabilities(ids: np.ndarray, log_probs: np.ndarray) -> dict[int, float]:
    return {
        int(token): pytest.approx(float(np.exp(nats)), rel=1e-5)
        for token, nats in zip(ids, log_probs, strict=True)
        if nats > -np.inf
    }


def test_costs_between_cuts_worked_by_hand():
    # Tokens end at bytes 2, 3, 6; the first is predicted by nothing.
    ends, said = np.array([2, 3, 6]), np.array([-1.0, -4.0, NAN], dtype=np.float32)
    found = interval_costs(ends, said, np.array([0, 2, 6]))
    np.testing.assert_allclose(found.nats, [NAN, 5.0])
    np.testing.assert_array_equal(found.n_tokens, [1, 2])
    per_byte = costs_of([found], np.array([0, 2, 6]), is_per_byte=True)
    np.testing.assert_allclose(per_byte, [[NAN, 5.0 / np.log(2) / 4]])
    per_token = costs_of([found], np.array([0, 2, 6]), is_per_byte=False)
    np.testing.assert_allclose(per_token, [[NAN, 2.5]])


def test_a_bos_lets_the_first_interval_have_a_cost():
    found = interval_costs(
        np.array([0, 2, 6]), np.array([-1.0, -4.0, NAN], dtype=np.float32), np.array([0, 2, 6])
    )
    np.testing.assert_allclose(found.nats, [1.0, 4.0])


def test_per_byte_and_per_token_choose_differently():
    """A source of short tokens pays less a token, and more a byte."""
    cuts = np.array([0, 8])
    fine = interval_costs(np.array([0, 2, 4, 6, 8]), np.array([-1, -1, -1, -1, NAN], np.float32), cuts)
    coarse = interval_costs(np.array([0, 8]), np.array([-3, NAN], np.float32), cuts)
    chosen = [
        choose_least(costs_of([fine, coarse], cuts, is_per_byte=is_per_byte)).tolist()
        for is_per_byte in (False, True)
    ]
    assert chosen == [[0], [1]]


def test_common_ends_hold_the_beginning_and_what_all_cut_at():
    cuts = common_ends([np.array([2, 3, 6]), np.array([0, 1, 3, 6]), np.array([3, 6])])
    np.testing.assert_array_equal(cuts, [0, 3, 6])


def test_the_least_cost_wins_the_first_of_equals_and_never_an_unknown_one():
    costs = np.array([[2.0, 1.0, NAN, NAN], [1.0, 1.0, 9.0, NAN]])
    np.testing.assert_array_equal(choose_least(costs), [1, 0, 1, 0])


def test_weights_worked_by_hand():
    costs = np.array([[0.0], [np.log(2)]])
    # exp(-cost) is 1 and 1/2; their softmax is e^1 : e^0.5.
    np.testing.assert_allclose(reward_weights(costs, 1.0)[:, 0], np.exp([1, 0.5]) / np.exp([1, 0.5]).sum())
    np.testing.assert_allclose(evidence_weights(costs, 1.0)[:, 0], [2 / 3, 1 / 3])
    np.testing.assert_allclose(evidence_weights(costs, 0.5)[:, 0], [4 / 5, 1 / 5])
    np.testing.assert_allclose(evidence_weights(np.array([[NAN], [3.0]]), 1.0)[:, 0], [0, 1])
    np.testing.assert_allclose(evidence_weights(np.array([[NAN], [NAN]]), 1.0)[:, 0], [0.5, 0.5])


def test_what_is_chosen_is_kept_and_silence_teaches_nothing():
    one, other = states({1: 0.6, 2: 0.4}, {3: 1.0}, {}), states({4: 1.0}, {}, {5: 1.0})
    fused = keep_chosen([one, other], np.array([0, 1, 1]), 2)
    np.testing.assert_array_equal(fused.is_taught, [True, False, True])
    np.testing.assert_array_equal(fused.source, [0, UNTAUGHT, 1])
    assert probabilities(fused.token_ids[0], fused.log_probs[0]) == {1: 0.6, 2: 0.4}
    assert probabilities(fused.token_ids[1], fused.log_probs[1]) == {}


def test_a_mean_adds_up_shared_tokens_and_leaves_silent_sources_out():
    one, other = states({1: 0.5, 2: 0.5}, {3: 1.0}, {}), states({2: 0.8, 4: 0.2}, {}, {})
    weights = np.array([[0.5] * 3, [0.5] * 3])
    fused = mixed([one, other], weights, 3)
    assert probabilities(fused.token_ids[0], fused.log_probs[0]) == {2: 0.65, 1: 0.25, 4: 0.1}
    assert probabilities(fused.token_ids[1], fused.log_probs[1]) == {3: 1.0}
    np.testing.assert_array_equal(fused.is_taught, [True, True, False])
    np.testing.assert_array_equal(fused.source, [0, 0, UNTAUGHT])


@settings(deadline=None, max_examples=60)
@given(data=st.data(), n_sources=st.integers(1, 3))
def test_a_mean_keeps_probability_and_order(data: st.DataObject, n_sources: int):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    sources = []
    for _ in range(n_sources):
        ids = np.stack([rng.permutation(12)[:4] for _ in range(5)]).astype(np.int32)
        probs = -np.sort(-rng.dirichlet(np.ones(5), size=5), axis=1)[:, :4]
        sources.append(MappedStates(ids, np.log(probs).astype(np.float32), rng.random(5) < 0.8))
    weights = rng.dirichlet(np.ones(n_sources), size=5).T
    fused = mixed(sources, weights, 4 * n_sources)
    for state in range(5):
        dense = np.zeros(12)
        share = np.array([w[state] * s.is_taught[state] for w, s in zip(weights, sources, strict=True)])
        if share.sum() == 0:
            assert not fused.is_taught[state]
            continue
        for part, source in zip(share / share.sum(), sources, strict=True):
            np.add.at(dense, source.token_ids[state], part * np.exp(source.log_probs[state]))
        kept = fused.log_probs[state] > -np.inf
        np.testing.assert_allclose(
            dense[fused.token_ids[state][kept]], np.exp(fused.log_probs[state][kept]), rtol=1e-4
        )
        assert np.all(np.diff(fused.log_probs[state][kept]) <= 1e-6)
        assert np.isclose(np.exp(fused.log_probs[state]).sum(), dense.sum(), rtol=1e-4)

"""Distributions said in another vocabulary keep their probability."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.tensors.mapped_distributions import map_distributions


def logs(*rows: list[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows, dtype=np.float32))


TARGET_IDS = np.array([5, 7, -1, 5, 9], dtype=np.int32)


def test_worked_by_hand() -> None:
    top_ids = np.array([[1, 0, 3, 2], [4, 1, 0, 0]], dtype=np.int32)
    found = map_distributions(top_ids, logs([0.3, 0.25, 0.2, 0.125], [0.5, 0.25, 0, 0]), TARGET_IDS)
    # Tokens 0 and 3 are both 5: 0.25 + 0.2 is more than the 0.3 of token 1; token 2 has no image.
    np.testing.assert_array_equal(found.ids, [[5, 7, 0, 0], [9, 7, 0, 0]])
    np.testing.assert_allclose(np.exp(found.log_probs), [[0.45, 0.3, 0, 0], [0.5, 0.25, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(np.exp(found.lost_log_probs), [0.125, 0], rtol=1e-6)


def test_only_the_likeliest_of_one_image_is_kept_as_in_the_released_code() -> None:
    top_ids = np.array([[1, 0, 3, 2]], dtype=np.int32)
    found = map_distributions(top_ids, logs([0.3, 0.25, 0.2, 0.125]), TARGET_IDS, "keep-likeliest")
    np.testing.assert_array_equal(found.ids, [[7, 5, 0, 0]])
    np.testing.assert_allclose(np.exp(found.log_probs), [[0.3, 0.25, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(np.exp(found.lost_log_probs), [0.325], rtol=1e-6)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    n_states, k, n_source = draw(st.integers(0, 5)), draw(st.integers(1, 6)), 9
    target_ids = draw(st.lists(st.integers(-1, 5), min_size=n_source, max_size=n_source))
    ids = [draw(st.permutations(range(n_source)))[:k] for _ in range(n_states)]
    shares = st.lists(st.floats(0, 1, width=32), min_size=k, max_size=k)
    rows = [sorted(draw(shares), reverse=True) for _ in range(n_states)]
    return {
        "top_ids": np.array(ids, dtype=np.int32).reshape(n_states, k),
        "top_log_probs": logs(*[[p / k for p in row] for row in rows]).reshape(n_states, k),
        "target_ids": np.array(target_ids, dtype=np.int32),
    }


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_equal_to_a_dictionary_for_each_state(case: dict[str, Any]) -> None:
    found = map_distributions(**case)
    for state, (ids, log_probs) in enumerate(zip(case["top_ids"], case["top_log_probs"], strict=True)):
        expected: dict[int, float] = {}
        lost = 0.0
        for index, log_prob in zip(ids.tolist(), log_probs.tolist(), strict=True):
            image = int(case["target_ids"][index])
            if image < 0:
                lost += math.exp(log_prob)
            elif log_prob > -math.inf:
                expected[image] = expected.get(image, 0.0) + math.exp(log_prob)
        is_token = found.log_probs[state] > -np.inf
        got = dict(zip(found.ids[state][is_token].tolist(), found.log_probs[state][is_token], strict=True))
        assert got.keys() == expected.keys()
        for image, prob in expected.items():
            assert math.exp(got[image]) == pytest.approx(prob, rel=1e-5)
        assert math.exp(found.lost_log_probs[state]) == pytest.approx(lost, rel=1e-5)
        assert not found.ids[state][~is_token].any()
    assert (np.diff(found.log_probs.clip(min=-1e9), axis=1) <= 0).all()


def test_pads_may_have_any_id() -> None:
    found = map_distributions(np.array([[1, 999]], dtype=np.int32), logs([0.5, 0]), TARGET_IDS)
    np.testing.assert_array_equal(found.ids, [[7, 0]])


def test_a_token_outside_the_map_is_refused() -> None:
    with pytest.raises(
        ValueError, match="holds token 5, the map has images of 5 tokens; give the map as many"
    ):
        map_distributions(np.array([[5]], dtype=np.int32), logs([1.0]), TARGET_IDS)

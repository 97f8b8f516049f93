"""The length-controlled win rate is that of scikit-learn's logistic regression, which AlpacaEval uses."""

import numpy as np
import pytest

from transfuse.tensors.win_rates import SLOPE_RIDGE, length_coefficients


@pytest.mark.parametrize("seed", range(5))
def test_coefficients_equal_those_of_scikit_learn(seed: int):
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(seed)
    lengths = rng.normal(rng.normal(0, 60), 80, 300).round()
    features = np.tanh(lengths / lengths.std())
    odds = 1 / (1 + np.exp(-(0.3 + 1.2 * features)))
    preferences = rng.binomial(2, odds) / 2  # ties are half of either
    ours = length_coefficients(preferences, lengths, np.ones((1, len(lengths))))[0]
    # It takes whole labels only: each item stands once as won and once as lost, weighted by its preference.
    model = linear_model.LogisticRegression(C=1 / SLOPE_RIDGE, tol=1e-10, max_iter=10_000)
    model.fit(
        np.tile(features, 2)[:, None],
        np.repeat([1, 0], len(lengths)),
        sample_weight=np.concatenate([preferences, 1 - preferences]),
    )
    # Its intercept has no penalty, ours a thousandth.
    np.testing.assert_allclose(ours, [model.intercept_[0], model.coef_[0, 0]], atol=2e-4)

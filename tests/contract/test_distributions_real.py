"""A real model's cache holds what transformers computes, within the codec's bound."""

from pathlib import Path

import numpy as np
import pytest
import torch

from transfuse.fuse.distributions import text_distributions, write_distributions
from transfuse.fuse.position_logits import PositionLogits
from transfuse.fuse.settings import DistributionSettings
from transfuse.io.bundled import is_fetched
from transfuse.io.distribution_cache import verify
from transfuse.io.models import LoadedModel, load_model
from transfuse.tensors.packed_records import rounding_nats

NAME = "smollm2-135m"

TEXTS = [
    "The ferry to Orvessa leaves at 7:40, in 1999 too. – 東京は日本の首都です。\n\n"
    "\tdef add(a, b):\n        return a + b\n",
    "Water boils at 100 °C at sea level, and at about 93 °C in Denver, because the air is thinner there.",
    "x" * 80 + " " * 90 + "= 1234567890",
]

pytestmark = [
    pytest.mark.bundled,
    pytest.mark.skipif(not is_fetched(NAME), reason=f"not fetched; run `transfuse models get {NAME}`"),
]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(NAME, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def log_probs(loaded: LoadedModel) -> list[np.ndarray]:
    """Each text by itself, in full."""
    found = []
    for text in TEXTS:
        ids = torch.tensor([loaded.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            found.append(loaded.model(ids).logits[0].log_softmax(dim=1).numpy())
    return found


def test_the_cache_is_the_models_log_softmax_within_the_bound(loaded, log_probs, tmp_path: Path):
    cache = write_distributions(loaded, TEXTS, tmp_path / "cache", DistributionSettings())
    assert PositionLogits(loaded.model, loaded.precision).is_split
    verify(cache)
    bits = cache.header.value_bits
    assert (cache.header.n_vocab, bits, cache.header.layout.record_bytes) == (49152, 10, 38)
    for number, (text, expected) in enumerate(zip(TEXTS, log_probs, strict=True)):
        back = cache.text(number)
        data = text.encode()
        assert back.token_ids.tolist() == loaded.tokenizer(text)["input_ids"]
        assert back.ends[-1] == len(data)
        # Exactly what this tokenizer says that its tokens spell, split characters aside.
        for token_id, start, end in zip(back.token_ids, [0, *back.ends], back.ends, strict=False):
            spelled = loaded.tokenizer.decode([int(token_id)])
            assert "\ufffd" in spelled or spelled.encode() == data[start:end]
        # The model ran in float32 on rows of another length, which moves its own logits by a little.
        noise = 2e-4
        observed = expected[np.arange(len(back.ends) - 1), back.token_ids[1:]]
        errors = np.abs(back.observed_log_probs[:-1] - observed)
        assert (errors <= rounding_nats(observed, cache.header.layout.observed_bits) + noise).all()
        kept = np.take_along_axis(expected, back.top_ids, axis=1)
        np.testing.assert_allclose(kept, -np.sort(-expected, axis=1)[:, :10], atol=noise)
        others = expected.copy()
        np.put_along_axis(others, back.top_ids, -np.inf, axis=1)
        tail = np.log(np.exp(others.astype(np.float64)).sum(axis=1))
        before, after = (
            np.column_stack([kept, tail]),
            np.column_stack([back.top_log_probs, back.tail_log_probs]),
        )
        bound = rounding_nats(before, bits)
        # Bringing the sum back to 1 adds no more than the mean error, weighted by probability.
        bound = bound + (np.exp(before) * bound).sum(axis=1, keepdims=True) + 2 * noise
        assert (np.abs(after - before) <= bound).all()
        np.testing.assert_allclose(np.exp(after).sum(axis=1), 1, atol=1e-5)


def test_rounding_hardly_moves_the_distribution_or_the_loss(loaded, log_probs, tmp_path: Path):
    """What the bits cost: KL(model || cache) over kept tokens and tail, and the mean loss, in nats a token."""
    cache = write_distributions(loaded, TEXTS, tmp_path / "cache", DistributionSettings())
    exact = text_distributions(loaded, TEXTS, DistributionSettings())
    divergences, losses = [], []
    for number, true in enumerate(exact):
        back = cache.text(number)
        before = np.column_stack([true.top_log_probs, true.tail_log_probs]).astype(np.float64)
        after = np.column_stack([back.top_log_probs, back.tail_log_probs])
        divergences.append((np.exp(before) * (before - after)).sum(axis=1))
        losses.append((back.observed_log_probs - true.observed_log_probs)[:-1])
    assert 0 <= np.concatenate(divergences).mean() < 2e-5
    assert abs(np.concatenate(losses).mean()) < 2e-3


def test_sampled_distributions_estimate_the_full_one(loaded, log_probs):
    """Over 1,500 draws at every state the mean log-probability of the draws nears minus the entropy."""
    settings = DistributionSettings(k=1500, selection="sampled", value_bits=16)
    found = text_distributions(loaded, TEXTS[1:2], settings, seed=5)[0]
    expected = log_probs[1].astype(np.float64)
    probs = np.exp(expected)
    entropy = -(probs * expected).sum(axis=1)
    spread = np.sqrt((probs * expected**2).sum(axis=1) - entropy**2)
    drawn = np.exp(found.top_log_probs.astype(np.float64))
    estimate = -(drawn * np.take_along_axis(expected, found.top_ids, axis=1)).sum(axis=1)
    errors = (estimate - entropy) / (spread / np.sqrt(1500) + 1e-6)
    assert np.abs(errors).max() < 4.5
    assert abs(errors.mean()) < 4 / np.sqrt(len(errors))

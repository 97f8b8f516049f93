"""The pass over texts: what it keeps is the model's own, whatever passes together."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from transfuse.errors import CacheError, ModelError
from transfuse.fuse.distributions import text_distributions, write_distributions
from transfuse.fuse.position_logits import PositionLogits
from transfuse.fuse.settings import DistributionSettings
from transfuse.io.distribution_cache import TextDistributions, verify
from transfuse.io.models import LoadedModel, load_model
from transfuse.tensors.packed_records import rounding_nats

TEXTS = [
    "Spain won the cup.",
    "",
    "the final – 東京",
    "a",
    "You are a helpful model. The team scored! " * 3,
    "was" * 20,
]


@pytest.fixture(scope="module")
def loaded(tiny_base_folder: Path) -> LoadedModel:
    """Writes BOS before each text; its vocabulary is not padded."""
    return load_model(str(tiny_base_folder), precision="float32", device="cpu")


def expected_log_probs(loaded: LoadedModel, text: TextDistributions) -> np.ndarray:
    """One text by itself through transformers."""
    with torch.no_grad():
        logits = loaded.model(torch.from_numpy(text.token_ids)[None].long()).logits[0]
    return logits.log_softmax(dim=1).numpy()


def assert_told_of(found: TextDistributions, log_probs: np.ndarray, atol: float = 1e-5) -> None:
    states = np.arange(len(found.token_ids))
    observed = log_probs[states[:-1], found.token_ids[1:]]
    np.testing.assert_allclose(found.observed_log_probs[:-1], observed, atol=atol)
    assert np.isnan(found.observed_log_probs[-1])
    kept = np.take_along_axis(log_probs, found.top_ids, axis=1)
    np.testing.assert_allclose(found.top_log_probs, kept, atol=atol)
    k = found.top_ids.shape[1]
    np.testing.assert_allclose(kept, -np.sort(-log_probs, axis=1)[:, :k], atol=atol)
    others = log_probs.copy()
    np.put_along_axis(others, found.top_ids, -np.inf, axis=1)
    np.testing.assert_allclose(found.tail_log_probs, np.log(np.exp(others).sum(axis=1)), atol=atol)


@pytest.mark.parametrize("max_tokens", [1, 100, 4096])
def test_every_text_has_the_distributions_that_it_has_alone(loaded, max_tokens):
    told: list[tuple[int, int]] = []
    settings = DistributionSettings(k=7, max_tokens_per_pass=max_tokens)
    found = text_distributions(loaded, TEXTS, settings, on_tokens=lambda n, n_all: told.append((n, n_all)))
    for text, each in zip(TEXTS, found, strict=True):
        assert each.token_ids.tolist() == loaded.tokenizer(text)["input_ids"]
        assert each.ends[-1] == len(text.encode())
        assert_told_of(each, expected_log_probs(loaded, each))
    n_all = sum(len(each.token_ids) for each in found)
    assert told[-1] == (n_all, n_all)
    assert len(told) == (1 if max_tokens == 4096 else len(TEXTS) if max_tokens == 1 else len(told))


def test_head_and_softmax_in_chunks_give_the_same(loaded, monkeypatch):
    expected = text_distributions(loaded, TEXTS, DistributionSettings())
    monkeypatch.setattr("transfuse.fuse.distributions._HEAD_ELEMENTS", 3000)
    monkeypatch.setattr("transfuse.fuse.distributions._SOFTMAX_ELEMENTS", 700)
    for one, other in zip(expected, text_distributions(loaded, TEXTS, DistributionSettings()), strict=True):
        np.testing.assert_array_equal(one.top_ids, other.top_ids)
        np.testing.assert_allclose(one.top_log_probs, other.top_log_probs, atol=1e-5)


def test_the_light_mode_tells_what_was_observed_only(loaded):
    found = text_distributions(loaded, TEXTS[:1], DistributionSettings(k=0))[0]
    assert found.top_ids.shape == (len(found.token_ids), 0)
    assert_told_of(
        found._replace(tail_log_probs=np.zeros(len(found.token_ids))), expected_log_probs(loaded, found)
    )


def test_draws_belong_to_their_text_and_seed(loaded):
    settings = DistributionSettings(selection="sampled", k=20)
    one = text_distributions(loaded, TEXTS, settings, seed=1)
    alone = text_distributions(loaded, TEXTS, settings.model_copy(update={"max_tokens_per_pass": 1}), seed=1)
    other = text_distributions(loaded, TEXTS, settings, seed=2)
    for first, second, third in zip(one, alone, other, strict=True):
        np.testing.assert_array_equal(first.top_ids, second.top_ids)
        np.testing.assert_array_equal(first.top_log_probs, second.top_log_probs)
        assert (first.top_ids != third.top_ids).any()
        np.testing.assert_allclose(np.exp(first.top_log_probs).sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(one[0].observed_log_probs, other[0].observed_log_probs)


def test_a_cache_holds_what_the_pass_found(loaded, tmp_path):
    settings = DistributionSettings(k=5, shard_tokens=60, keep_texts=True)
    cache = write_distributions(loaded, TEXTS, tmp_path / "cache", settings)
    assert len(cache.header.shards) > 2
    verify(cache)
    assert cache.texts() == TEXTS
    header = cache.header
    assert (header.n_vocab, header.n_logits, header.k, header.seed) == (300, 300, 5, None)
    assert header.n_tokens == sum(len(cache.text(n).token_ids) for n in range(len(TEXTS)))
    for number, expected in enumerate(text_distributions(loaded, TEXTS, settings)):
        back = cache.text(number)
        np.testing.assert_array_equal(back.token_ids, expected.token_ids)
        np.testing.assert_array_equal(back.ends, expected.ends)
        np.testing.assert_array_equal(back.top_ids, expected.top_ids)
        bound = 2 * rounding_nats(expected.top_log_probs, header.value_bits) + 1e-5
        assert (np.abs(back.top_log_probs - expected.top_log_probs) <= bound).all()


def test_counts_of_draws_survive_the_cache_exactly(loaded, tmp_path):
    settings = DistributionSettings(selection="sampled", k=9)
    cache = write_distributions(loaded, TEXTS, tmp_path / "cache", settings, seed=3)
    for number, expected in enumerate(text_distributions(loaded, TEXTS, settings, seed=3)):
        np.testing.assert_array_equal(cache.text(number).top_ids, expected.top_ids)
        np.testing.assert_allclose(cache.text(number).top_log_probs, expected.top_log_probs, rtol=1e-6)
    with pytest.raises(CacheError, match="seed: 3 there, 4 now"):
        write_distributions(loaded, TEXTS, tmp_path / "cache", settings, seed=4)


def test_no_texts_make_an_empty_cache(loaded, tmp_path):
    cache = write_distributions(loaded, [], tmp_path / "cache", DistributionSettings())
    assert (len(cache), cache.header.shards, cache.text_digests) == (0, [], [])
    assert text_distributions(loaded, [], DistributionSettings()) == []


def test_a_padded_vocabulary_is_kept_out(make_model_folder: Callable, tmp_path):
    padded = load_model(str(make_model_folder("padded", vocab_size=300, seed=3)), precision="float32")
    padded.model.resize_token_embeddings(384, mean_resizing=False)
    with torch.no_grad():
        padded.model.get_output_embeddings().weight[300:] *= 50  # as likely as can be
    cache = write_distributions(padded, TEXTS[:1], tmp_path / "cache", DistributionSettings(k=300))
    assert (cache.header.n_vocab, cache.header.n_logits, cache.header.k) == (300, 384, 300)
    found = text_distributions(padded, TEXTS[:1], DistributionSettings(k=300))[0]
    assert found.top_ids.max() < 300
    log_probs = expected_log_probs(padded, found)
    np.testing.assert_allclose(
        found.tail_log_probs, np.log(np.exp(log_probs[:, 300:]).sum(axis=1)), atol=1e-4
    )


def test_what_does_not_fit_the_model_is_named(loaded, make_model_folder, tmp_path):
    with pytest.raises(
        ModelError, match=r"text 1 \('won won .*: expected at most 256 tokens, .* got \d+; cut the texts"
    ):
        write_distributions(loaded, ["a", "won " * 200], tmp_path / "cache", DistributionSettings())
    assert not (tmp_path / "cache").exists()
    other = load_model(str(make_model_folder("short", chat_template=None)), precision="float32")
    other.model.resize_token_embeddings(100)
    with pytest.raises(ModelError, match=r"text 0 \('Spain.*its token \d+ is beyond the 100 that model"):
        text_distributions(other, TEXTS[:1], DistributionSettings())


def test_nan_names_the_text(make_model_folder):
    broken = load_model(str(make_model_folder("broken", chat_template=None, seed=4)), precision="float32")
    token = broken.tokenizer("東")["input_ids"][-1]
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[token] = torch.nan
    with pytest.raises(
        ModelError, match="text 2 \\('the final – 東京'\\): expected finite logits, got NaN; load"
    ):
        text_distributions(broken, TEXTS, DistributionSettings())


def test_a_model_that_cannot_be_taken_apart_is_run_whole(loaded, monkeypatch):
    expected = text_distributions(loaded, TEXTS, DistributionSettings())
    monkeypatch.setattr(loaded.model, "base_model_prefix", "lm_head", raising=False)
    assert not PositionLogits(loaded.model, torch.float32).is_split
    for one, other in zip(expected, text_distributions(loaded, TEXTS, DistributionSettings()), strict=True):
        np.testing.assert_array_equal(one.top_ids, other.top_ids)
        np.testing.assert_allclose(one.top_log_probs, other.top_log_probs, atol=1e-5)

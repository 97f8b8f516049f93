"""Hooks that add up |gradient| of linear layers, and models that are refused."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from transfuse.errors import ModelError, TrainingError
from transfuse.transfer.samples import FittedSamples, Sample
from transfuse.transfer.sensitivity import (
    GradientSums,
    ModelNames,
    layer_linears,
    refuse_unscored_matrices,
    summary_of,
)
from transfuse.types import Dropped

SAMPLES = [Sample(3, [1, 2], 1), Sample(8, [1, 2, 3], 1)]
NAMES = ModelNames("model.layers", "model.embed_tokens", "lm_head")


def tiny() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


def test_padding_gives_nothing_and_samples_do_not_cancel():
    linear = nn.Linear(1, 1, bias=False)
    nn.init.constant_(linear.weight, -2.0)
    linear.requires_grad_(False)
    sums = GradientSums({"up": linear}, "layers.0.")
    given = torch.tensor([[[1.0], [2.0], [99.0]], [[1.0], [-1.0], [-4.0]]], requires_grad=True)
    for _ in range(2):  # two passes add up
        with sums.watching(SAMPLES):
            linear(given).sum().backward()
    # Sample 3 has two tokens: 1 + 2; sample 8: 1 - 1 - 4.
    torch.testing.assert_close(sums.totals["up"], torch.tensor([[2 * (3.0 + 4.0)]]))
    linear(given).sum().backward()  # nobody watches
    torch.testing.assert_close(sums.scores("up"), torch.tensor([[28.0]]))


def test_an_infinite_gradient_names_parameter_and_sample():
    linear = nn.Linear(2, 2).requires_grad_(False)
    sums = GradientSums({"mlp.up": linear}, "model.layers.5.")
    factor = torch.ones(2, 3, 2)
    factor[1, 2, 0] = float("inf")
    with (
        sums.watching(SAMPLES),
        pytest.raises(
            TrainingError, match=r"model\.layers\.5\.mlp\.up\.weight: the gradient of sample 8 is NaN"
        ),
    ):
        (linear(torch.ones(2, 3, 2, requires_grad=True)) * factor).sum().backward()


def test_a_layer_used_twice_or_on_flattened_tokens_is_refused():
    linear = nn.Linear(2, 2).requires_grad_(False)
    sums = GradientSums({"up": linear}, "layers.0.")
    given = torch.ones(2, 3, 2, requires_grad=True)
    with (
        sums.watching(SAMPLES),
        pytest.raises(ModelError, match=r"layers\.0\.up: expected one use.*second one"),
    ):
        linear(linear(given))
    with sums.watching(SAMPLES), pytest.raises(ModelError, match=r"got input of shape \(6, 2\)"):
        linear(given.flatten(0, 1))


def test_matrices_nobody_scores_are_refused():
    model = tiny()
    refuse_unscored_matrices(model, NAMES)
    assert set(layer_linears(model.model.layers[0])) == {
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    }
    with pytest.raises(ModelError, match=r"expected a ModuleList named 'model\.blocks', got none"):
        refuse_unscored_matrices(model, NAMES._replace(layers="model.blocks"))
    model.model.layers[0].router = nn.Parameter(torch.ones(4, 8))
    with pytest.raises(ModelError, match=r"model\.layers\.0\.router: expected only linear layers.*\(4, 8\)"):
        refuse_unscored_matrices(model, NAMES)


def test_quantised_weights_are_refused():
    model = tiny()
    model.lm_head.weight = nn.Parameter(torch.ones(20, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        ModelError, match=r"lm_head\.weight: expected floating-point weights, got torch\.int8"
    ):
        refuse_unscored_matrices(model, NAMES)


def test_the_summary_lists_losses_in_the_order_given():
    fitted = FittedSamples(SAMPLES, 1, [Dropped("record", "sample 1", "it has no answer token")])
    summary = summary_of(fitted, {8: 0.5, 3: 0.25}, bytes_read=7, seconds=1.0)
    assert summary.losses == [0.25, 0.5]
    assert (summary.n_samples, summary.n_tokens, summary.n_answer_tokens, summary.n_cut) == (2, 5, 3, 1)
    assert summary.dropped[0].what == "sample 1"

"""Factors to start from: the function is the model's own to the bit, and moves as W - B0 A0 + B A does."""

import math

import pytest
import torch
from peft import convert_to_lora
from peft.tuners.lora.aqlm import AqlmLoraLinear
from torch import nn
from torch.nn import functional

from injection_models import RANK, STUDENTS, TOKENS, logits, module_names, random_factors, student, weights
from transfuse.errors import TrainingError
from transfuse.train.settings import LoraSettings
from transfuse.train.starting_factors import (
    Factors,
    attach_starting_factors,
    learned_delta,
    lora_layers,
)

QUERY = "model.layers.0.self_attn.q_proj"
SETTINGS = LoraSettings(rank=RANK, alpha=6.0)


def started(name: str = "llama", **settings):
    model = student(name)
    factors = random_factors(model)
    return attach_starting_factors(model, SETTINGS.model_copy(update=settings), factors), factors


def moved(name: str = "llama", size: float = 0.05, **settings):
    """A started model whose factors have been moved at random, all of them."""
    model, factors = started(name, **settings)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += size * torch.randn(weight.shape, generator=generator)
    return model, factors


@pytest.mark.parametrize("mode", ["evaluation", "training", "bfloat16"])
@pytest.mark.parametrize("name", STUDENTS)
def test_at_the_start_the_function_is_the_students_own_to_the_bit(name, mode):
    model, factors = started(name)
    assert set(factors) == set(module_names(student(name))) == set(lora_layers(model))
    model.train(mode == "training")
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "bfloat16"):
        assert torch.equal(logits(model), logits(student(name)))


@pytest.mark.parametrize("name", STUDENTS)
def test_the_function_is_that_of_the_changed_weights(name):
    model, _ = moved(name)
    changed = student(name)
    if changed.config.tie_word_embeddings:  # two differences, so two weights
        head = changed.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
    for each, layer in lora_layers(model).items():
        delta = learned_delta(layer)
        assert (delta.up @ delta.down).norm() > 0.1
        with torch.no_grad():
            changed.get_submodule(each).weight += (delta.up @ delta.down).float()
    torch.testing.assert_close(logits(model), logits(changed), rtol=1e-5, atol=1e-4)
    assert (logits(model) - logits(student(name))).abs().max() > 0.1


def test_the_adapter_starts_at_the_factors_and_moves_by_their_product():
    model, factors = started()
    layer = lora_layers(model)[QUERY]
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    torch.testing.assert_close(6.0 / 4 * up @ down, factors[QUERY].up @ factors[QUERY].down)
    ratio = factors[QUERY].down / down  # the scaling is divided out of both alike
    torch.testing.assert_close(ratio, torch.full_like(ratio, math.sqrt(1.5)))
    assert learned_delta(layer).up[:, :RANK].abs().max() == 0
    with torch.no_grad():
        up *= 2
    twice = learned_delta(layer)  # 2 B0 A0 - B0 A0
    torch.testing.assert_close(
        (twice.up @ twice.down).float(), factors[QUERY].up @ factors[QUERY].down, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("rows", [1, 5])
def test_dropout_touches_the_trained_branch_alone(rows):
    model, _ = moved(dropout=0.4)
    layer = lora_layers(model)[QUERY].train()
    x = torch.randn(rows, 32, generator=torch.Generator().manual_seed(3))
    start, up, down = layer.frozen_start, layer.lora_B["default"].weight, layer.lora_A["default"].weight
    torch.manual_seed(4)
    got = layer(x)
    torch.manual_seed(4)
    dropped = functional.dropout(x, 0.4)
    assert (dropped == 0).any()
    expected = layer.base_layer(x) + 1.5 * (dropped @ down.T @ up.T - x @ start.down.T @ start.up.T)
    torch.testing.assert_close(got, expected)


def test_small_steps_survive_bfloat16():
    # Factors near 1 and a step of 1/1024: bfloat16 has nothing between 1 and 1 + 1/128.
    model = student()
    ones = Factors(torch.ones(32, RANK), torch.ones(RANK, 32))
    adapted = attach_starting_factors(model, LoraSettings(rank=RANK, alpha=4.0), {QUERY: ones})
    layer = lora_layers(adapted)[QUERY]
    with torch.no_grad():
        layer.lora_B["default"].weight += 2**-10
    x = torch.full((1, 32), 2.0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        step = (layer(x).float() - layer.base_layer(x).float()).mean()
    assert float(step) == pytest.approx(RANK * 2.0 * 32 * 2**-10, rel=0.1)


def test_only_the_factors_train_and_the_base_keeps_its_bits():
    model, _ = started("llama-tied", dropout=0.1)
    model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * len(module_names(student("llama-tied")))
    assert all(".lora_" in name for name in trained)
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == trained
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    optimizer.step()
    base = {
        name.replace(".base_layer", ""): weight for name, weight in weights(model.get_base_model()).items()
    }
    assert all(torch.equal(base[name], weight) for name, weight in weights(student("llama-tied")).items())


def test_gradients_are_those_of_the_changed_weights():
    model, _ = moved()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    layer = lora_layers(model)[QUERY]
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    changed = student()
    for each, other in lora_layers(model).items():
        delta = learned_delta(other)
        with torch.no_grad():
            changed.get_submodule(each).weight += (delta.up @ delta.down).float()
    changed(input_ids=TOKENS, labels=TOKENS).loss.backward()
    gradient = changed.get_submodule(QUERY).weight.grad
    torch.testing.assert_close(up.grad, 1.5 * gradient @ down.T, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(down.grad, 1.5 * up.T @ gradient, rtol=1e-3, atol=1e-6)


def test_further_modules_get_ordinary_lora():
    model = student()
    other = "model.layers.1.mlp.up_proj"
    adapted = attach_starting_factors(model, SETTINGS, {QUERY: random_factors(model)[QUERY]}, also=[other])
    assert set(lora_layers(adapted)) == {QUERY, other}
    assert torch.equal(logits(adapted), logits(student()))
    assert lora_layers(adapted)[other].lora_B["default"].weight.abs().max() == 0
    assert learned_delta(lora_layers(adapted)[other]).up.shape == (48, RANK)


def test_peft_merges_and_unmerges_what_was_learned():
    model, _ = moved()
    before, base = logits(model), student().get_submodule(QUERY).weight
    model.base_model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-4)
    model.base_model.unmerge_adapter()
    torch.testing.assert_close(lora_layers(model)[QUERY].base_layer.weight, base)
    torch.testing.assert_close(logits(model.merge_and_unload()), before, rtol=1e-5, atol=1e-4)


def test_pefts_conversion_refuses_instead_of_reading_the_trained_factors_alone():
    model, _ = started()
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        convert_to_lora(model, rank=RANK)


def zeros(rows: int, columns: int, *, up_rank: int = RANK, down_rank: int = RANK) -> Factors:
    return Factors(torch.zeros(rows, up_rank), torch.zeros(down_rank, columns))


@pytest.mark.parametrize(
    ("name", "factors", "message"),
    [
        (
            QUERY,
            zeros(64, 32),
            r"q_proj: factors are of \(64, 32\), student weight is \(32, 32\); choose a block",
        ),
        ("model.embed_tokens", zeros(32, 64), r"factors are of \(32, 64\), student weight is \(64, 32\)"),
        (
            QUERY,
            zeros(32, 32, up_rank=8, down_rank=8),
            r"rank 8 and 8, train\.lora\.rank is 4; extract factors",
        ),
        (QUERY, zeros(32, 32, down_rank=3), r"rank 4 and 3, train\.lora\.rank is 4"),
        (QUERY + "s", zeros(32, 32), r"q_projs: expected a module .* the nearest is '.*q_proj'"),
        ("model.norm", zeros(32, 32), r"norm: expected a linear layer or an embedding, got LlamaRMSNorm"),
        (
            QUERY,
            Factors(torch.full((32, 4), math.nan), torch.zeros(4, 32)),
            r"expected finite factors, got NaN",
        ),
    ],
)
def test_factors_that_do_not_fit_are_refused_before_the_model_is_touched(name, factors, message):
    model = student()
    with pytest.raises(TrainingError, match=message):
        attach_starting_factors(model, SETTINGS, {name: factors})
    assert isinstance(model.get_submodule(QUERY), nn.Linear)


def test_no_factors_and_unknown_further_modules_are_refused():
    with pytest.raises(TrainingError, match="expected starting factors of at least one module, got none"):
        attach_starting_factors(student(), SETTINGS, {})
    model = student()
    with pytest.raises(TrainingError, match="nope: expected a module of the student"):
        attach_starting_factors(model, SETTINGS, random_factors(model), also=["nope"])


def test_a_quantised_layer_without_room_for_a_frozen_branch_is_refused(monkeypatch):
    # Stands for the kinds of layers whose forward in PEFT runs the trained factors only.
    monkeypatch.setattr("peft.tuners.lora.layer.Linear.forward", AqlmLoraLinear.forward)
    model = student()
    with pytest.raises(
        TrainingError, match=r"q_proj: expected a layer that PEFT can run with a frozen branch"
    ):
        attach_starting_factors(model, SETTINGS, {QUERY: zeros(32, 32)})

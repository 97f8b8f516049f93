"""What was learned beside a frozen branch, folded into one plain LoRA."""

import json

import pytest
import torch
from safetensors.torch import load_file

from injection_models import RANK, TOKENS, logits, random_factors, student
from transfuse.errors import TrainingError
from transfuse.train.adapters import load_adapter, merge_adapter_weights
from transfuse.train.folded_adapters import save_folded_adapter
from transfuse.train.settings import LoraSettings
from transfuse.train.starting_factors import Factors, attach_starting_factors, learned_delta, lora_layers

QUERY, GATE, EMBEDDING = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.mlp.gate_proj",
    "model.embed_tokens",
)


def moved(name: str = "llama", size: float = 0.05, also=(), **settings):
    model = student(name)
    factors = {each: pair for each, pair in random_factors(model).items() if each not in also}
    model = attach_starting_factors(model, LoraSettings(rank=RANK, alpha=6.0, **settings), factors, also=also)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += size * torch.randn(weight.shape, generator=generator)
    return model


def matrix(weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """What a plain LoRA of scaling 1 adds to a weight."""
    prefix = f"base_model.model.{name}.lora_"
    if f"{prefix}embedding_A" in weights:
        return (weights[f"{prefix}embedding_B"] @ weights[f"{prefix}embedding_A"]).T
    return weights[f"{prefix}B.weight"] @ weights[f"{prefix}A.weight"]


def test_a_fold_worked_by_hand(tmp_path):
    # B0 A0 = 2 e1 e1^T; trained to B A = 6 e2 e2^T: the difference has the singular values 6 and 2.
    model, unit = student(), torch.eye(32)
    start = Factors(2 * unit[:, :1], unit[:1])
    adapted = attach_starting_factors(model, LoraSettings(rank=1, alpha=4.0), {QUERY: start})
    layer = lora_layers(adapted)[QUERY]
    with torch.no_grad():
        layer.lora_B["default"].weight.copy_(1.5 * unit[:, 1:2])
        layer.lora_A["default"].weight.copy_(unit[1:2])
    report = save_folded_adapter(adapted, tmp_path / "two", "some/base")
    assert (report.rank, report.relative_error, report.worst_module) == (2, 0.0, QUERY)
    weights = load_file(tmp_path / "two" / "adapter_model.safetensors")
    expected = torch.zeros(32, 32)
    expected[0, 0], expected[1, 1] = -2, 6
    torch.testing.assert_close(matrix(weights, QUERY), expected)
    for factor in weights.values():  # balanced: both carry the roots of 6 and 2
        values = torch.linalg.svdvals(factor)
        torch.testing.assert_close(values, torch.tensor([6.0, 2.0]).sqrt())
    one = save_folded_adapter(adapted, tmp_path / "one", "some/base", max_rank=1)
    assert (one.rank, one.relative_errors) == (1, {QUERY: pytest.approx(2 / 40**0.5)})
    assert one.relative_error == pytest.approx(2 / 40**0.5)
    expected[0, 0] = 0
    torch.testing.assert_close(
        matrix(load_file(tmp_path / "one" / "adapter_model.safetensors"), QUERY), expected
    )


def test_every_module_is_folded_embeddings_and_head_included(tmp_path):
    model = moved(also=[GATE])
    report = save_folded_adapter(model, tmp_path, "some/base")
    assert report.rank == 2 * RANK
    assert report.relative_error < 1e-6
    weights = load_file(tmp_path / "adapter_model.safetensors")
    layers = lora_layers(model)
    assert len(weights) == 2 * len(layers)
    assert {"lm_head", EMBEDDING, GATE} < set(layers)
    for name, layer in layers.items():
        delta = learned_delta(layer)
        expected = (delta.up @ delta.down).float()
        torch.testing.assert_close(matrix(weights, name), expected, rtol=1e-4, atol=1e-6)
    # Ordinary LoRA has half the rank; zeros fill it up, so that the rank is the same everywhere.
    assert weights[f"base_model.model.{GATE}.lora_A.weight"].shape == (2 * RANK, 32)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (2 * RANK, 2 * RANK, {})
    assert (config["base_model_name_or_path"], config["inference_mode"]) == ("some/base", True)


def test_cutting_keeps_the_strongest_directions_and_says_what_it_costs(tmp_path):
    model = moved()
    report = save_folded_adapter(model, tmp_path, "some/base", max_rank=3)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    cut, whole = 0.0, 0.0
    for name, layer in lora_layers(model).items():
        delta = learned_delta(layer)
        values = torch.linalg.svdvals(delta.up @ delta.down)
        share = float(values[3:].norm() / values.norm())
        assert report.relative_errors[name] == pytest.approx(share, rel=1e-6)
        left_out = (delta.up @ delta.down).float() - matrix(weights, name)
        assert float(left_out.norm()) == pytest.approx(float(values[3:].norm()), rel=1e-4)
        cut, whole = cut + float(values[3:].square().sum()), whole + float(values.square().sum())
    assert report.rank == 3
    assert report.relative_error == pytest.approx((cut / whole) ** 0.5)
    assert report.relative_errors[report.worst_module] == max(report.relative_errors.values()) > 0.1


def test_a_greater_rank_than_there_is_changes_nothing(tmp_path):
    assert save_folded_adapter(moved(), tmp_path, "some/base", max_rank=99).rank == 2 * RANK


def test_nothing_learned_is_folded_into_nothing(tmp_path):
    report = save_folded_adapter(moved(size=0.0), tmp_path, "some/base", max_rank=3)
    assert report.relative_error == 0.0
    assert set(report.relative_errors.values()) == {0.0}
    assert torch.equal(logits(load_adapter(student(), tmp_path)), logits(student()))


@pytest.mark.parametrize("adapted", [["model.embed_tokens"], ["lm_head"], ["lm_head", "model.embed_tokens"]])
def test_merging_into_tied_weights_separates_them_first(tmp_path, adapted):
    everything = {*random_factors(student("llama-tied"))}
    model = moved("llama-tied", also=sorted(everything - {*adapted, QUERY}))
    for name in everything - {*adapted, QUERY}:
        with torch.no_grad():  # leaves ordinary LoRA that does nothing
            for weight in lora_layers(model)[name].parameters():
                weight.mul_(0 if weight.requires_grad else 1)
    expected = logits(model)
    merged = merge_adapter_weights(model)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-4)
    assert not merged.config.tie_word_embeddings
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path).eval()
    assert torch.equal(again(input_ids=TOKENS).logits, logits(merged))


def test_merging_leaves_tied_weights_alone_where_the_adapter_does():
    model = student("llama-tied")
    adapted = attach_starting_factors(model, LoraSettings(rank=RANK), {QUERY: random_factors(model)[QUERY]})
    merged = merge_adapter_weights(adapted)
    assert merged.config.tie_word_embeddings
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


def test_a_rank_below_one_and_factors_that_are_not_finite_are_refused(tmp_path):
    model = moved()
    with pytest.raises(TrainingError, match="max_rank: expected 1 or more, got 0; leave it out"):
        save_folded_adapter(model, tmp_path / "never", "some/base", max_rank=0)
    with torch.no_grad():
        lora_layers(model)[GATE].lora_A["default"].weight[0, 0] = torch.inf
    with pytest.raises(
        TrainingError, match=r"gate_proj: expected finite factors, got NaN or infinity; train"
    ):
        save_folded_adapter(model, tmp_path / "never", "some/base")
    assert not (tmp_path / "never").exists()

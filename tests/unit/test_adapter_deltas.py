"""What an adapter adds, read from its folder and put onto a model."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config

from transfuse.errors import ModelError
from transfuse.train.adapters import load_adapter, save_adapter
from transfuse.transfer.adapter_deltas import (
    CarriedDelta,
    adapter_deltas,
    attach_deltas,
    delta_norm,
    joined_delta,
    random_deltas_of_like_norm,
)
from transfuse.transfer.families import architecture_of

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft itself

SIZES = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
QUERY, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"


def _model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def _random(up, down, rank, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return CarriedDelta(
        torch.randn(up, rank, generator=generator), torch.randn(rank, down, generator=generator)
    )


@pytest.fixture
def folder(tmp_path):
    """An adapter with ranks, alphas and scalings of its own in some modules, and on the embedding."""
    config = LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["q_proj", "up_proj", "embed_tokens"],
        rank_pattern={"up_proj": 3},
        alpha_pattern={r"layers\.0\.mlp\.up_proj": 5},
        use_rslora=True,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(_model(), config)
    save_adapter(adapted, tmp_path / "adapter", "somewhere")
    return tmp_path / "adapter", adapted


def test_deltas_are_what_peft_adds_to_each_weight(folder):
    path, adapted = folder
    deltas = adapter_deltas(path)
    assert list(deltas) == ["model.embed_tokens", UP, QUERY]
    assert deltas[UP].up.shape == (12, 3)
    for name, delta in deltas.items():
        wanted = adapted.base_model.model.get_submodule(name).get_delta_weight("default")
        torch.testing.assert_close(delta.up @ delta.down, wanted)


def test_attached_deltas_act_from_the_start_and_are_saved_as_plain_lora(tmp_path):
    deltas = {QUERY: _random(8, 8, 2), UP: _random(12, 8, 3, seed=1)}
    token_ids = torch.arange(9)[None]
    by_hand = _model()
    with torch.no_grad():
        for name, delta in deltas.items():
            by_hand.get_submodule(name).weight += delta.up @ delta.down
        wanted = by_hand(token_ids).logits
        adapted = attach_deltas(_model(), deltas)
        torch.testing.assert_close(adapted(token_ids).logits, wanted)
        save_adapter(adapted, tmp_path / "carried", "somewhere")
        torch.testing.assert_close(load_adapter(_model(), tmp_path / "carried")(token_ids).logits, wanted)
    assert {name for name, weight in adapted.named_parameters() if weight.requires_grad} == {
        f"base_model.model.{name}.lora_{side}.default.weight" for name in deltas for side in "AB"
    }
    for name, delta in adapter_deltas(tmp_path / "carried").items():
        assert torch.equal(delta.up, deltas[name].up)


def test_deltas_that_do_not_fit_the_model_are_not_attached():
    with pytest.raises(
        ModelError, match=r"up_proj: expected a linear layer .* shape \(8, 8\), got \(12, 8\)"
    ):
        attach_deltas(_model(), {UP: _random(8, 8, 2)})
    with pytest.raises(ModelError, match="at least one delta to attach, got none"):
        attach_deltas(_model(), {})


def test_random_deltas_have_the_norms_of_those_they_stand_beside():
    deltas = {QUERY: _random(8, 8, 2), UP: CarriedDelta(torch.zeros(12, 2), torch.ones(2, 8))}
    drawn = random_deltas_of_like_norm(deltas, torch.Generator().manual_seed(1))
    assert torch.linalg.norm(drawn[QUERY].up @ drawn[QUERY].down) == pytest.approx(
        delta_norm(deltas[QUERY]), 1e-5
    )
    assert not torch.allclose(drawn[QUERY].up @ drawn[QUERY].down, deltas[QUERY].up @ deltas[QUERY].down)
    assert drawn[UP].up.shape == (12, 2)
    assert delta_norm(drawn[UP]) == 0


def test_a_fused_module_s_delta_is_its_roles_stacked_at_the_lowest_rank_that_holds_them():
    architecture = architecture_of(Phi3Config(**SIZES, pad_token_id=0))
    module = architecture.module_of("query")  # rows: 8 of query, 4 of key, 4 of value
    query, value = _random(8, 8, 2), CarriedDelta(_random(4, 8, 2, seed=2).up, _random(8, 8, 2).down)
    joined, lost = joined_delta(architecture, module, {"query": query, "value": value}, None)
    wanted = torch.cat([query.up @ query.down, torch.zeros(4, 8), value.up @ value.down])
    torch.testing.assert_close(joined.up @ joined.down, wanted)
    assert joined.up.shape == (16, 2)  # both read the same two directions
    assert lost == 0
    other = _random(4, 8, 2, seed=3)
    wanted = torch.cat([query.up @ query.down, torch.zeros(4, 8), other.up @ other.down])
    whole, lost = joined_delta(architecture, module, {"query": query, "value": other}, None)
    assert (whole.up.shape, lost) == ((16, 4), 0)
    cut, lost = joined_delta(architecture, module, {"query": query, "value": other}, 3)
    assert cut.up.shape == (16, 3)
    values = torch.linalg.svdvals(wanted)
    assert lost == pytest.approx(float(values[3:].norm() / values.norm()), rel=1e-4)
    assert torch.linalg.norm(cut.up @ cut.down - wanted) == pytest.approx(float(values[3:].norm()), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "expected an adapter of peft_type LORA, got 'IA3'"),
        ({"use_dora": True}, "expected plain LoRA, .* use_dora is set"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"r": 4}, "expected rank 4 .* got factors of rank 2"),
        ({"lora_alpha": None}, "got factors of rank 2 and alpha None"),
    ],
)
def test_adapters_of_other_kinds_are_refused_by_name(folder, change, message):
    path = folder[0] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        adapter_deltas(folder[0])


def test_weights_that_are_no_lora_factors_are_refused(folder):
    path = folder[0] / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.ones(2)}, path)
    with pytest.raises(
        ModelError, match=r"expected only LoRA factors .* found 'base_model\.model\.lm_head\.weight'"
    ):
        adapter_deltas(folder[0])
    tensors.pop(f"base_model.model.{QUERY}.lora_B.weight")
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"q_proj: expected one A \[rank, in\] and one B \[out, rank\], got"):
        adapter_deltas(folder[0])
    path.write_bytes(b"torn")
    with pytest.raises(ModelError, match="expected the adapter's weights as safetensors"):
        adapter_deltas(folder[0])


def test_a_folder_without_an_adapter_or_with_a_pickle_is_refused(folder, tmp_path):
    with pytest.raises(ModelError, match=r"found no adapter_config\.json"):
        adapter_deltas(tmp_path)
    (folder[0] / "adapter_model.safetensors").rename(folder[0] / "adapter_model.bin")
    with pytest.raises(ModelError, match="which is a pickle"):
        adapter_deltas(folder[0])
    (folder[0] / "adapter_config.json").write_text("{")
    (folder[0] / "adapter_model.bin").rename(folder[0] / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"adapter_config\.json: the adapter is damaged"):
        adapter_deltas(folder[0])

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3Config, GPT2Config, LlamaConfig

from tiny_families import EXTRAS, random_model, tiny_config
from transfuse.errors import ModelError
from transfuse.transfer.families import ROLES, architecture_of, refuse_misfits


def picture_config() -> Gemma3Config:
    text = tiny_config("gemma3_text").to_dict()
    vision = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)


@pytest.mark.parametrize("variant", EXTRAS)
def test_every_matrix_and_vector_of_the_real_model_is_named_with_its_shape(variant: str) -> None:
    config = tiny_config(variant, is_large=True)
    model = random_model(config)
    architecture = architecture_of(config)

    matrices = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
    }
    assert architecture.named_shapes() == matrices

    expected = {f"{name}.weight": shape for name, shape in matrices.items()}
    if architecture.is_tied:
        del expected["lm_head.weight"]
    for layer in range(architecture.n_layers):
        for module in architecture.modules:
            if module.bias:
                name = architecture.module_name(layer, module)
                expected[f"{name}.bias"] = architecture.module_shape(module)[:1]
        for norm in architecture.norms:
            expected[f"{architecture.layers}.{layer}.{norm.name}"] = (architecture.size(norm.axis),)
    for norm in architecture.final_norms:
        expected[norm.name] = (architecture.hidden,)
    assert {name: tuple(each.shape) for name, each in model.named_parameters()} == expected


@pytest.mark.parametrize("variant", EXTRAS)
def test_joining_what_was_split_gives_the_same_matrix(variant: str) -> None:
    architecture = architecture_of(tiny_config(variant))
    for module in (*architecture.modules, architecture.embedding, architecture.head):
        weight = torch.randn(architecture.module_shape(module))
        parts = architecture.split(module, weight)
        assert {role: tuple(part.shape) for role, part in parts.items()} == {
            role: architecture.shape(role) for role in module.roles
        }
        assert torch.equal(architecture.join(module, parts), weight)
        if not module.is_interleaved:
            assert all(part.untyped_storage().data_ptr() == weight.data_ptr() for part in parts.values())


@pytest.mark.parametrize("variant", ["gpt_neox", "phi3"])
def test_split_takes_a_fused_matrix_apart_as_the_models_own_attention_does(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(tiny_config(variant))
    architecture = architecture_of(model.config)
    seen: list[list[torch.Tensor]] = []

    def spy(module: nn.Module, *states: torch.Tensor, **_: object) -> tuple[torch.Tensor, None]:
        seen.append([state.transpose(1, 2).flatten(2) for state in states[:3]])
        return states[0].transpose(1, 2), None

    monkeypatch.setattr(f"transformers.models.{variant}.modeling_{variant}.eager_attention_forward", spy)
    fused = architecture.module_of("query")
    inputs: list[torch.Tensor] = []
    linear = model.get_submodule(architecture.module_name(0, fused))
    linear.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    model(torch.tensor([[7]]))  # one token: nothing is turned at position 0

    parts = architecture.split(fused, linear.weight)
    biases = architecture.split(fused, linear.bias) if fused.bias else {}
    for role, state in zip(("query", "key", "value"), seen[0], strict=True):
        torch.testing.assert_close(nn.functional.linear(inputs[0], parts[role], biases.get(role)), state)
    assert torch.equal(linear.weight[architecture.physical_rows("key")], parts["key"])


def test_roles_missing_from_a_fused_matrix_are_zeros() -> None:
    architecture = architecture_of(tiny_config("phi3"))
    module = architecture.module_of("gate")
    joined = architecture.join(module, {"up": torch.ones(40, 32)})
    assert joined[:40].eq(0).all()
    assert joined[40:].eq(1).all()
    with pytest.raises(
        ModelError, match=r"mlp\.gate_up_proj: expected at least one of gate, up, got query\."
    ):
        architecture.join(module, {"query": torch.ones(32, 32)})


def test_the_shape_of_a_70b_model_needs_no_weights() -> None:
    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    architecture = architecture_of(config)
    assert architecture.shape("key") == (1024, 8192)
    assert architecture.shape("down") == (8192, 28672)
    n_weights = sum(rows * columns for rows, columns in architecture.named_shapes().values())
    assert n_weights + 161 * 8192 == 70_553_706_496  # as published, norms included


@pytest.mark.parametrize("config", [tiny_config("gpt_neox"), picture_config()], ids=["gpt_neox", "gemma3"])
def test_checkpoint_files_hold_every_parameter_under_a_stored_name(config, tmp_path) -> None:
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as opened:
        stored = set(opened.keys())
    architecture = architecture_of(config)
    for name in architecture.named_shapes():
        if not (name == "lm_head" and architecture.is_tied):
            assert stored & set(architecture.stored_names(f"{name}.weight")), name
    assert stored & set(architecture.stored_names(architecture.final_norms[0].name))


def test_the_text_decoder_of_a_model_that_reads_pictures_is_named_where_it_lies() -> None:
    config = picture_config()
    model = AutoModelForCausalLM.from_config(config)
    text = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding) and "vision" not in name
    }
    architecture = architecture_of(config)
    assert architecture.family == "gemma3_text"
    assert architecture.named_shapes() == text
    assert architecture.roles == tuple(role for role in ROLES if role != "head")


def test_an_unknown_architecture_is_refused_with_the_modules_found_and_the_known_families() -> None:
    names = [f"transformer.h.{layer}.{part}" for layer in range(40) for part in ("attn.c_attn", "mlp.c_fc")]
    names += [f"part{i}" for i in range(20)]
    with pytest.raises(ModelError) as caught:
        architecture_of(GPT2Config(), names)
    message = str(caught.value)
    assert message.startswith("model type 'gpt2': expected a known family (llama, mistral, ")
    assert "Its modules: transformer.h.*.attn.c_attn, transformer.h.*.mlp.c_fc, part0, " in message
    assert "part9, ... (22 in all). Choose" in message


def test_weights_of_another_shape_than_the_configurations_are_refused() -> None:
    architecture = architecture_of(tiny_config("phi3"))
    with pytest.raises(ModelError, match=r"self_attn\.qkv_proj: expected 64 rows .* got shape \(63, 32\)"):
        architecture.split(architecture.module_of("query"), torch.zeros(63, 32))
    with pytest.raises(
        ModelError, match=r"self_attn\.qkv_proj: expected 16 rows of key .* got shape \(8, 32\)"
    ):
        architecture.join(architecture.module_of("query"), {"key": torch.zeros(8, 32)})


def test_a_teacher_that_is_smaller_anywhere_is_refused_with_all_names_and_shapes() -> None:
    teacher = architecture_of(tiny_config("llama", vocab_size=20))
    student = architecture_of(tiny_config("llama", intermediate_size=64, head_dim=12))
    with pytest.raises(ModelError) as caught:
        refuse_misfits(teacher, student, ["embedding", "key", "output", "down"])
    message = str(caught.value)
    assert "key (self_attn.k_proj) is (16, 32), the student's is (24, 32)" in message
    assert "output (self_attn.o_proj) is (32, 32), the student's is (32, 48)" in message
    assert "down (mlp.down_proj) is (32, 40), the student's is (32, 64)" in message
    assert "embedding" not in message  # its rows are matched by token
    assert refuse_misfits(teacher, student, ["embedding", "head"]).roles == ("embedding", "head")


def test_what_one_of_the_models_lacks_is_left_out_with_a_reason() -> None:
    teacher = architecture_of(tiny_config("gpt_neox", is_large=True))
    student = architecture_of(tiny_config("llama biased"))
    fit = refuse_misfits(teacher, student, ["gate", "up", "head"])
    assert fit.roles == ("up",)
    assert [(gone.what, gone.reason) for gone in fit.left_out] == [
        ("gate", "the teacher (gpt_neox) has no such matrix"),
        ("head", "the student's head is its embedding (tied), which is carried as embedding"),
    ]
    with pytest.raises(ModelError, match="none of the wanted matrices is in both models: gate: the teacher"):
        refuse_misfits(teacher, student, ["gate"])


def test_a_tied_teachers_embedding_can_become_an_untied_students_head() -> None:
    teacher, student = (architecture_of(tiny_config(name)) for name in ("llama biased", "llama"))
    assert refuse_misfits(teacher, student, ["head"]) == (("head",), [])

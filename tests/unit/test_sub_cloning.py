from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tiny_families import EXTRAS, hidden_student, random_model, role_matrices, tiny_config
from transfuse.errors import ModelError
from transfuse.tensors.sub_matrices import Cut
from transfuse.transfer.coupled import Coupling, coupled_cuts, marginals_of
from transfuse.transfer.families import architecture_of
from transfuse.transfer.sub_cloning import WeightSource, model_with, student_shape, sub_clone

TOKENS = torch.tensor([[3, 41, 7, 7, 19, 28, 11, 4, 46, 30]])
SMALL_SHAPE = {"n_layers": 2, "hidden": 32, "n_heads": 4, "head_dim": 8, "n_neurons": 40}


def reader(weights: dict[str, Tensor]) -> WeightSource:
    def read(name: str, cut: Cut | None = None) -> Tensor:
        return weights[name] if cut is None else weights[name][cut.rows[:, None], cut.columns]

    return read


def coupling_of(
    teacher_config: PreTrainedConfig, student_config: PreTrainedConfig, weights, layers
) -> Coupling:
    teacher, student = architecture_of(teacher_config), architecture_of(student_config)
    sums = [
        marginals_of(
            teacher, {role: part.abs() for role, part in role_matrices(teacher, weights, layer).items()}
        )
        for layer in layers
    ]
    outside = marginals_of(teacher, {"embedding": weights[f"{teacher.embedding.name}.weight"].abs()})
    return coupled_cuts(teacher, student, sums, outside)


@pytest.mark.parametrize("variant", EXTRAS)
def test_a_student_hidden_in_its_teacher_comes_out_with_its_own_function(variant: str) -> None:
    config = tiny_config(variant)
    student = random_model(config)
    teacher_config, layers = tiny_config(variant, is_large=True), [0, 2]
    teacher = architecture_of(teacher_config)
    weights = hidden_student(architecture_of(config), student.state_dict(), teacher, layers)
    AutoModelForCausalLM.from_config(teacher_config).load_state_dict(weights, strict=not teacher.is_tied)

    coupling = coupling_of(teacher_config, config, weights, layers)
    clone = model_with(
        config, sub_clone(reader(weights), teacher, config, layers, coupling.layers, coupling.outside)
    )
    with torch.no_grad():
        expected, found = student(TOKENS).logits, clone(TOKENS).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["llama biased", "qwen2", "gemma3_text", "phi3", "gpt_neox"])
def test_a_shape_made_of_the_teachers_configuration_saves_loads_and_runs(variant: str, tmp_path) -> None:
    teacher_config = tiny_config(variant, is_large=True)
    teacher = random_model(teacher_config)
    shape = student_shape(teacher_config, **SMALL_SHAPE, layers=[0, 2])
    assert shape.model_type == teacher_config.model_type
    assert teacher_config.hidden_size != 32
    weights = dict(teacher.named_parameters())
    coupling = coupling_of(
        teacher_config, shape, {name: each.detach() for name, each in weights.items()}, [0, 2]
    )
    cuts = [{role: in_order(cut) for role, cut in each.items()} for each in coupling.layers]
    clone = model_with(
        shape,
        sub_clone(
            reader({name: each.detach() for name, each in weights.items()}),
            architecture_of(teacher_config),
            shape,
            [0, 2],
            cuts,
            coupling.outside,
        ),
    )
    clone.save_pretrained(tmp_path)
    again: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(TOKENS).logits, clone(TOKENS).logits)
    assert torch.isfinite(clone(TOKENS).logits).all()


def in_order(cut: Cut) -> Cut:
    """As a reduction that knows nothing of heads would give it."""
    return Cut(cut.rows.sort().values, cut.columns.sort().values)


def llama_cuts() -> tuple[list[dict], dict]:
    """A cut of each matrix on columns of its own, from a teacher (hidden 48) for a student (hidden 32)."""
    small = architecture_of(tiny_config("llama"))
    columns = {"query": 1, "key": 2, "value": 3, "gate": 4, "up": 5, "head": 6, "embedding": 7}
    cuts = {}
    for role in small.roles:
        n_rows, n_columns = small.shape(role)
        first = columns.get(role, 0)
        cuts[role] = Cut(torch.arange(n_rows), torch.arange(first, first + n_columns))
    outside = {role: cuts.pop(role) for role in ("embedding", "head")}
    return [cuts, cuts], outside


def test_norms_are_cut_where_they_are_read_and_unknown_tokens_get_the_mean() -> None:
    weights = random_model(tiny_config("llama", is_large=True)).state_dict()
    cuts, outside = llama_cuts()
    rows = torch.arange(50)
    rows[[4, 9]] = -1
    outside["embedding"] = Cut(rows, outside["embedding"].columns)
    config = tiny_config("llama")
    found = sub_clone(
        reader(weights), architecture_of(tiny_config("llama", is_large=True)), config, [1, 2], cuts, outside
    )

    assert torch.equal(
        found["model.layers.1.input_layernorm.weight"], weights["model.layers.2.input_layernorm.weight"][1:33]
    )
    after = "post_attention_layernorm.weight"
    assert torch.equal(found[f"model.layers.0.{after}"], weights[f"model.layers.1.{after}"][5:37])
    assert torch.equal(found["model.norm.weight"], weights["model.norm.weight"][6:38])
    known = weights["model.embed_tokens.weight"][rows[rows >= 0]][:, 7:39]
    assert torch.equal(found["model.embed_tokens.weight"][rows >= 0], known)
    torch.testing.assert_close(found["model.embed_tokens.weight"][9], known.mean(0))
    assert all(each.is_contiguous() for each in found.values())


def test_only_the_cut_parts_of_matrices_are_read() -> None:
    weights = random_model(tiny_config("phi3", is_large=True)).state_dict()
    asked: list[tuple[str, bool]] = []

    def read(name: str, cut: Cut | None = None) -> Tensor:
        asked.append((name, cut is not None))
        return reader(weights)(name, cut)

    config, teacher_config = tiny_config("phi3"), tiny_config("phi3", is_large=True)
    coupling = coupling_of(teacher_config, config, weights, [0, 1])
    sub_clone(read, architecture_of(teacher_config), config, [0, 1], coupling.layers, coupling.outside)
    assert all(is_part == (weights[name].dim() == 2) for name, is_part in asked)


def test_a_shape_keeps_what_is_not_named_and_follows_the_chosen_layers() -> None:
    teacher = tiny_config("gemma2", is_large=True, query_pre_attn_scalar=12)
    shape = student_shape(teacher, n_layers=2, n_heads=6, head_dim=8, layers=[1, 2])
    assert shape.layer_types == ["full_attention", "sliding_attention"]
    assert (shape.query_pre_attn_scalar, shape.num_key_value_heads, shape.sliding_window) == (8, 2, 4)
    assert (shape.hidden_size, shape.intermediate_size, shape.vocab_size) == (48, 56, 50)
    assert teacher.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]


def test_factors_of_long_rotation_follow_their_speed() -> None:
    factors = {"short_factor": [1.0, 2.0, 3.0, 4.0], "long_factor": [5.0, 6.0, 7.0, 8.0]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0, **factors}
    teacher = tiny_config("phi3", rope_parameters=rope)
    rope = student_shape(teacher, hidden=16, head_dim=4).rope_parameters
    assert (rope["short_factor"], rope["long_factor"]) == ([1.0, 3.0], [5.0, 7.0])
    assert teacher.rope_parameters["short_factor"] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("variant", "shape", "message"),
    [
        (
            "llama",
            {"hidden": 64, "n_layers": 9},
            r"num_hidden_layers 9 \(teacher: 2\), hidden_size 64 \(teacher: 32\)",
        ),
        ("llama", {"n_heads": 3, "n_kv_heads": 2}, "got 3 and 2"),
        ("llama", {"hidden": 30}, "llama allows no such student .* not a multiple"),
        ("gpt_neox", {"hidden": 16, "head_dim": 8}, "gpt_neox: expected hidden = n_heads"),
    ],
)
def test_impossible_shapes_are_refused(variant: str, shape: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        student_shape(tiny_config(variant), **shape)


def test_a_student_of_another_family_or_of_other_biases_is_refused() -> None:
    teacher = architecture_of(tiny_config("llama", is_large=True))
    cuts, outside = llama_cuts()
    for other in ("mistral", "llama biased"):
        with pytest.raises(ModelError, match="expected a student of the teacher's family"):
            sub_clone(reader({}), teacher, tiny_config(other), [0, 1], cuts, outside)
    with pytest.raises(ModelError, match="each of the student's 2 layers, got 1 and 2"):
        sub_clone(reader({}), teacher, tiny_config("llama"), [0], cuts, outside)


def test_cuts_and_weights_of_another_shape_are_refused() -> None:
    config, teacher_config = tiny_config("llama"), tiny_config("llama", is_large=True)
    read = reader(random_model(teacher_config).state_dict())
    cuts, outside = llama_cuts()
    clone: Callable = lambda: sub_clone(read, architecture_of(teacher_config), config, [0, 1], cuts, outside)  # noqa: E731
    weights = clone()
    cuts[0]["up"] = Cut(torch.arange(39), torch.arange(32))
    with pytest.raises(
        ModelError, match=r"layers\.0\.mlp\.up_proj: expected a cut of \(40, 32\) for up, got \(39, 32\)"
    ):
        clone()
    del weights["model.norm.weight"]
    with pytest.raises(
        ModelError, match=r"1 weights are not .* model\.norm\.weight is expected as \(32,\), got None"
    ):
        model_with(config, weights)

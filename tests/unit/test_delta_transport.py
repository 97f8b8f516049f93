"""A teacher's delta in the student: exact where a student is the teacher in disguise, told where it is not."""

import dataclasses

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from transfuse.errors import DataError, ModelError
from transfuse.transfer.adapter_deltas import CarriedDelta, attach_deltas
from transfuse.transfer.delta_transport import TextModel, TransportSettings, carry_delta
from transfuse.transfer.space_maps import is_held_out, match_by_depth

TEXTS = [
    "Which country won the cup in 2023? Spain won the cup for the first time, said Zoë.",
    "The final was played in Sydney, on 20 August; the captain lifted the trophy at 19:40.",
    "You are a helpful model & the user asks a question (or two) and the assistant answers it.",
    "The team scored one goal in the first half. Nobody knew why the keeper had left so early!",
    "Jam boxes, quiz fever, and 7 more odd words to hold out: exquisite, vex, wharf, zigzag.",
    "A held out text is the fifth of each five. This one is read for the fit, as is the next.",
    "Rain fell on the harbour from Monday to Thursday, 12 mm in all, and the ferries stayed in.",
]
SIZES = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def _build(kind, config_kind, **changes):
    torch.manual_seed(0)
    return kind(config_kind(**SIZES | changes)).double().eval()


def _llama(**changes):
    return _build(LlamaForCausalLM, LlamaConfig, **changes)


def _neox(**changes):
    changes = {"hidden_act": "gelu", **changes}
    return _build(GPTNeoXForCausalLM, GPTNeoXConfig, **changes)


def _deltas(model, rank=2, scale=0.4):
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return scale * torch.randn(*shape, generator=generator)

    return {
        name: CarriedDelta(draw(module.out_features, rank), draw(rank, module.in_features))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in f".{name}"
    }


def _disguised(teacher):
    """The same function in a residual stream turned by a rotation, with the neurons in another order."""
    student = _llama()
    generator = torch.Generator().manual_seed(9)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64)).Q
    order = torch.randperm(24, generator=generator)
    weights = teacher.state_dict()
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = turn @ weight
        elif "norm" not in name:  # norms are all ones, so that rotations pass
            weights[name] = weight @ turn.T
        if "gate_proj" in name or "up_proj" in name:
            weights[name] = weights[name][order]
        if "down_proj" in name:
            weights[name] = weights[name][:, order]
    student.load_state_dict(weights)
    return student


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    return make_tokenizer()


def _logits(model, token_ids=tuple(range(40, 60))):
    with torch.no_grad():
        return model(torch.tensor([list(token_ids)])).logits


def test_a_student_in_disguise_does_what_the_teacher_does_with_its_adapter(tokenizer):
    teacher = _llama()
    student, deltas = _disguised(teacher), _deltas(teacher)
    base = _logits(teacher)
    torch.testing.assert_close(_logits(student), base, atol=1e-4, rtol=1e-4)
    read = []
    carried, report = carry_delta(
        TextModel(teacher, tokenizer),
        deltas,
        TextModel(student, tokenizer),
        TEXTS,
        TransportSettings(),
        on_text=lambda done, total: read.append((done, total)),
    )
    wanted = _logits(attach_deltas(teacher, deltas))
    assert float((wanted - base).abs().max()) > 0.5
    torch.testing.assert_close(_logits(attach_deltas(student, carried)), wanted, atol=1e-4, rtol=1e-4)
    assert {part.role for part in report.parts} == {"query", "key", "value", "output", "gate", "up", "down"}
    for part in report.parts:
        told = (part.input_r2, part.output_r2, part.effect_r2, part.kept_norm)
        assert told == pytest.approx((1, 1, 1, 1), abs=1e-6), part
    assert (report.dropped, report.warnings, report.cut_norm, report.n_texts) == ([], [], {}, 7)
    assert read[-1] == (7, 7)


@pytest.mark.parametrize("maps", ["procrustes", "scaled-procrustes"])
def test_between_equal_models_a_delta_stays_as_it_is(tokenizer, maps):
    teacher = _llama()
    both = TextModel(teacher, tokenizer)
    deltas = _deltas(teacher)
    settings = TransportSettings(maps=maps, layer_match="similarity")
    carried, report = carry_delta(both, deltas, both, TEXTS, settings)
    assert carried.keys() == deltas.keys()
    for name, delta in deltas.items():
        got, wanted = carried[name].up @ carried[name].down, delta.up @ delta.down
        assert float((got - wanted).norm() / wanted.norm()) < 1e-5, name
    assert [(match.student, match.teacher) for match in report.layers] == [(0, 0), (1, 1)]
    assert [match.similarity for match in report.layers] == pytest.approx([1, 1])


def test_ridge_shrinks_only_what_hardly_varies(tokenizer):
    teacher = _llama()
    both, deltas = TextModel(teacher, tokenizer), _deltas(teacher, scale=0.05)
    carried, report = carry_delta(both, deltas, both, TEXTS, TransportSettings(maps="ridge"))
    assert all(part.effect_r2 > 0.999 and part.kept_norm < 1 for part in report.parts)
    base, wanted = _logits(teacher), _logits(attach_deltas(teacher, deltas))
    got = _logits(attach_deltas(_llama(), carried))
    assert float((got - wanted).norm() / (wanted - base).norm()) < 0.1


def test_maps_fitted_on_outputs_of_gate_and_up_lose_what_these_never_show(tokenizer):
    both = TextModel(_llama(), tokenizer)
    settings = TransportSettings(neurons="outputs")
    _, report = carry_delta(both, _deltas(both.model), both, TEXTS, settings)
    by_role = {part.role: part for part in report.parts}
    assert by_role["up"].output_directions == 16  # of 24 neurons: as many as the residual stream has
    assert 0.5 < by_role["up"].kept_norm < 0.95
    assert by_role["query"].kept_norm == pytest.approx(1)


def test_a_fused_student_takes_the_deltas_of_separate_modules(tokenizer):
    teacher = _llama()
    student = _build(Phi3ForCausalLM, Phi3Config)
    weights = teacher.state_dict()
    for layer in range(2):
        at = f"model.layers.{layer}"
        for fused, parts in (
            ("self_attn.qkv", ("self_attn.q", "self_attn.k", "self_attn.v")),
            ("mlp.gate_up", ("mlp.gate", "mlp.up")),
        ):
            rows = [weights.pop(f"{at}.{part}_proj.weight") for part in parts]
            weights[f"{at}.{fused}_proj.weight"] = torch.cat(rows)
    student.load_state_dict(weights)
    ours, theirs = TextModel(teacher, tokenizer), TextModel(student, tokenizer)
    deltas = _deltas(teacher)
    carried, _ = carry_delta(ours, deltas, theirs, TEXTS, TransportSettings())
    assert carried["model.layers.0.self_attn.qkv_proj"].up.shape == (32, 6)
    cut, report = carry_delta(ours, deltas, theirs, TEXTS, TransportSettings(rank=2))
    assert cut["model.layers.0.self_attn.qkv_proj"].up.shape == (32, 2)
    assert set(report.cut_norm) == {
        f"model.layers.{n}.{name}_proj" for n in (0, 1) for name in ("self_attn.qkv", "mlp.gate_up")
    }
    wanted = _logits(attach_deltas(teacher, deltas))
    torch.testing.assert_close(_logits(attach_deltas(student, carried)), wanted, atol=1e-4, rtol=1e-4)


def test_interleaved_heads_with_biases_come_back_as_they_were(tokenizer):
    both = TextModel(_neox(), tokenizer)
    deltas = _deltas(both.model)
    carried, _ = carry_delta(both, deltas, both, TEXTS, TransportSettings())
    name = "gpt_neox.layers.1.attention.query_key_value"
    assert carried[name].up.shape == (48, 2)  # its three roles read the same
    # Lost is what the models never show: LayerNorm leaves nothing along the all-ones direction, neither to be read
    # nor to be written through a square matrix.
    kept = torch.eye(16) - torch.ones(16, 16) / 16
    weight = (
        both.model.get_submodule(name).weight.float().reshape(4, 3, 4, 16)
    )  # heads, roles, rows of a head
    delta = (deltas[name].up @ deltas[name].down @ kept).reshape(4, 3, 4, 16)
    got = (carried[name].up @ carried[name].down).reshape(4, 3, 4, 16)
    for role in range(3):
        shown = weight[:, role].reshape(16, 16) @ kept
        wanted = shown @ torch.linalg.pinv(shown, rtol=1e-4) @ delta[:, role].reshape(16, 16)
        torch.testing.assert_close(got[:, role].reshape(16, 16), wanted, atol=1e-3, rtol=1e-3)


def test_width_depth_architecture_and_tokenizer_may_all_differ(make_tokenizer, tokenizer):
    student = _build(
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        vocab_size=290,
        hidden_size=20,
        intermediate_size=28,
        num_hidden_layers=3,
        head_dim=6,
        sliding_window=64,
    ).float()
    teacher = _llama().float()
    other = make_tokenizer(chat_template=None, vocab_size=285)
    settings = TransportSettings(maps="ridge", strength=2.0)
    few_at_a_time = settings.model_copy(update={"memory_gib": 1e-9})
    read = []
    carried, report = carry_delta(
        TextModel(teacher, tokenizer), _deltas(teacher), TextModel(student, other), TEXTS, settings
    )
    again, _ = carry_delta(
        TextModel(teacher, tokenizer),
        _deltas(teacher),
        TextModel(student, other),
        TEXTS,
        few_at_a_time,
        on_text=lambda done, total: read.append((done, total)),
    )
    assert read[-1] == (21, 21)  # 7 texts, once for each of the student's layers
    for name, delta in carried.items():
        shape = tuple(student.get_submodule(name).weight.shape)
        assert (delta.up.shape[0], delta.down.shape[1]) == shape
        torch.testing.assert_close(
            delta.up @ delta.down, again[name].up @ again[name].down, atol=1e-5, rtol=1e-3
        )
    assert len(carried) == 3 * 7
    assert [(match.student, match.teacher) for match in report.layers] == [(0, 0), (1, 1), (2, 1)]
    assert report.n_fit_positions > 5 * report.n_held_out_positions / 2 > 0
    assert all(part.input_r2 < 1 and part.kept_norm > 0 for part in report.parts)
    assert all(part.input_r2 > 0 for part in report.parts if part.role == "query")
    assert torch.isfinite(_logits(attach_deltas(student, carried))).all()
    assert dataclasses.asdict(report)["parts"][0]["role"] == "query"


def test_what_the_student_has_no_place_for_is_told(tokenizer):
    teacher, student = _llama(num_hidden_layers=3), _neox(num_hidden_layers=2)
    deltas = _deltas(teacher) | {"lm_head": CarriedDelta(torch.ones(300, 1), torch.ones(1, 16))}
    carried, report = carry_delta(
        TextModel(teacher, tokenizer), deltas, TextModel(student, tokenizer), TEXTS, TransportSettings()
    )
    assert len(carried) == 2 * 4
    reasons = {gone.what: gone.reason for gone in report.dropped}
    assert reasons.pop("lm_head") == "its rows are tokens, which no map of activations carries"
    assert reasons.pop("model.layers.0.mlp.gate_proj (gate)") == "the student (gpt_neox) has no gate"
    assert reasons.pop("model.layers.2.mlp.gate_proj (gate)") == "the student (gpt_neox) has no gate"
    assert set(reasons.values()) == {"no layer of the student is matched with layer 1"}
    assert len(reasons) == 7
    only_gates = {name: delta for name, delta in deltas.items() if "gate" in name}
    with pytest.raises(ModelError, match=r"nothing can be carried: .*has no gate"):
        carry_delta(
            TextModel(teacher, tokenizer),
            only_gates,
            TextModel(student, tokenizer),
            TEXTS,
            TransportSettings(),
        )


def test_similar_layers_are_found_where_depth_would_mislead(tokenizer):
    teacher = _llama(num_hidden_layers=4)
    student = _llama(num_hidden_layers=2)
    student.load_state_dict(teacher.state_dict(), strict=False)  # the first two layers of four
    sides = TextModel(teacher, tokenizer), _deltas(teacher), TextModel(student, tokenizer), TEXTS
    _, by_depth = carry_delta(*sides, TransportSettings())
    _, by_similarity = carry_delta(*sides, TransportSettings(layer_match="similarity"))
    assert [match.teacher for match in by_depth.layers] == [0, 3]
    assert [match.teacher for match in by_similarity.layers] == [0, 1]


def test_depth_is_shared_out_evenly():
    assert [match.teacher for match in match_by_depth(30, 18)][:4] == [0, 2, 3, 5]
    assert [match.teacher for match in match_by_depth(2, 4)] == [0, 0, 1, 1]
    assert [match.teacher for match in match_by_depth(5, 1)] == [0]


def test_whole_texts_are_held_out():
    assert [n for n in range(12) if is_held_out(n, 12)] == [4, 9]
    assert [n for n in range(3) if is_held_out(n, 3)] == [2]


def test_too_few_positions_are_refused_and_few_ones_are_told(tokenizer):
    both = TextModel(_llama(intermediate_size=500), tokenizer)
    deltas = _deltas(both.model, rank=40)
    with pytest.raises(
        DataError, match=r"at least 160 positions .* rank 40.* got 48 and 49 in 2 texts"
    ) as refused:
        carry_delta(both, deltas, both, TEXTS[:2], TransportSettings())
    assert "Give more texts" in str(refused.value)
    _, report = carry_delta(both, deltas, both, TEXTS, TransportSettings())
    (warning,) = report.warnings
    assert "fewer than the dimensions of neurons (up to 500)" in warning


def test_an_adapter_of_another_model_is_refused(tokenizer):
    both = TextModel(_llama(), tokenizer)
    foreign = {"model.layers.7.mlp.up_proj": CarriedDelta(torch.ones(24, 1), torch.ones(1, 16))}
    with pytest.raises(
        ModelError, match=r"its delta is \(24, 16\), the teacher \(llama\) has no such module"
    ):
        carry_delta(both, foreign, both, TEXTS, TransportSettings())
    with pytest.raises(ModelError, match="expected deltas of a task adapter, got none"):
        carry_delta(both, {}, both, TEXTS, TransportSettings())


def test_activations_that_are_not_finite_are_refused_by_their_module(tokenizer):
    good, broken = _llama(), _llama()
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    sides = TextModel(good, tokenizer), _deltas(good), TextModel(broken, tokenizer)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.down_proj: expected finite activations"):
        carry_delta(*sides, TEXTS, TransportSettings())

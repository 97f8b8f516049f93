"""A model whose layers come and go computes what the whole one does."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, Gemma2ForCausalLM

from transfuse.errors import ModelError
from transfuse.transfer.layer_weights import WeightFiles
from transfuse.transfer.samples import Sample, sample_passes
from transfuse.transfer.sensitivity import ModelNames
from transfuse.transfer.streamed_teacher import StreamedTeacher, read_config

NAMES = ModelNames("model.layers", "model.embed_tokens", "lm_head")
(BATCH,) = sample_passes([Sample(1, [4, 2, 7], 1), Sample(2, [9, 0, 9, 4, 1], 2)], 100)


@pytest.fixture
def model():
    config = Gemma2Config(
        vocab_size=12,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        sliding_window=3,
        final_logit_softcapping=1.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(config)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, 0, 0.5)
    return model.eval().requires_grad_(False)


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    return tmp_path


def teacher_of(folder) -> StreamedTeacher:
    return StreamedTeacher(
        read_config(folder),
        WeightFiles(folder),
        NAMES,
        dtype=torch.float32,
        attention=None,
        device=torch.device("cpu"),
    )


def test_layer_after_layer_gives_the_models_logits(model, folder):
    teacher = teacher_of(folder)
    with torch.no_grad():
        hidden, calls, _ = teacher.embedded(BATCH)
        for number in range(2):
            teacher.layer(number)
            hidden = teacher.run_layer(number, hidden, calls[number])
        logits = teacher.logits(hidden, model.lm_head.weight)
        expected = model(input_ids=BATCH.input_ids, attention_mask=BATCH.attention_mask).logits
    is_real = BATCH.attention_mask.bool()
    torch.testing.assert_close(logits[is_real], expected[is_real])


def test_only_one_layer_has_weights(folder):
    teacher = teacher_of(folder)

    def resident() -> list[bool]:
        return [all(not weight.is_meta for weight in layer.parameters()) for layer in teacher.layers]

    assert resident() == [False, False]
    teacher.layer(1)
    n_read = teacher.weights.bytes_read
    teacher.layer(1)
    assert teacher.weights.bytes_read == n_read
    assert resident() == [False, True]
    teacher.layer(0)
    assert resident() == [True, False]
    teacher.let_go()
    assert resident() == [False, False]
    assert teacher.model.lm_head.weight.is_meta


def test_embedding_rows_take_the_gradient_of_the_first_layers_input(model, folder):
    teacher = teacher_of(folder)
    embedded = teacher.embedded(BATCH)
    again = teacher.embedded(BATCH, model.model.embed_tokens.weight)
    torch.testing.assert_close(again.first_input, embedded.first_input)
    (gradient,) = torch.autograd.grad(embedded.first_input[1].sum(), embedded.rows.weight)
    first, second = embedded.rows.gradients(gradient)
    assert first.values.eq(0).all()
    nine = second.values[second.rows.tolist().index(9)]  # twice in the sample, scaled by sqrt(hidden)
    torch.testing.assert_close(nine, torch.full((8,), 2 * 8**0.5))


def test_tying_is_as_configured_unless_the_files_hold_two_matrices(model, folder):
    teacher = teacher_of(folder)
    assert teacher.is_tied
    assert teacher.head_weight == teacher.embedding_weight == "model.embed_tokens.weight"
    weights = load_file(folder / "model.safetensors")
    for extra, is_tied in ((weights["model.embed_tokens.weight"].clone(), True), (torch.zeros(12, 8), False)):
        save_file(
            {**weights, "lm_head.weight": extra}, folder / "model.safetensors", metadata={"format": "pt"}
        )
        teacher = teacher_of(folder)
        assert teacher.is_tied is is_tied
        assert teacher.head_weight == "lm_head.weight"


def test_models_that_cannot_be_streamed_are_refused(folder, tmp_path_factory):
    with pytest.raises(ModelError, match=r"expected the config\.json of a causal language model"):
        read_config(tmp_path_factory.mktemp("empty"))
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "intermediate_size": 16}))
    with pytest.raises(ModelError, match=r"gate_proj\.weight: the configuration says \(16, 8\).*\(8, 8\)"):
        teacher_of(folder).layer(0)
    (folder / "config.json").write_text(json.dumps({**written, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"(?s)expected the config\.json .*must be equal to the number"):
        read_config(folder)
    deeper = {**written, "num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    (folder / "config.json").write_text(json.dumps(deeper))
    with pytest.raises(ModelError, match=r"expected the weight files to hold model\.layers\.2\."):
        teacher_of(folder).layer(2)
    (folder / "config.json").write_text(json.dumps({**written, "quantization_config": {"bits": 4}}))
    with pytest.raises(ModelError, match="got quantised ones"):
        read_config(folder)

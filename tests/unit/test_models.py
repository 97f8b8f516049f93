"""A model reference leads to a model, or to an error that says what to do."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM, LlamaModel
from transformers.utils import logging as transformers_logging

from transfuse.errors import ModelError
from transfuse.io import models, precision
from transfuse.io.gguf_files import LeanGGUFReader, lean_gguf_reading
from transfuse.io.models import load_model, load_tokenizer
from transfuse.io.precision import resolve_device, resolve_precision
from transfuse.io.references import resolve_model

CPU = torch.device("cpu")


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


@pytest.fixture(scope="module")
def tiny_gguf(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny chat model as a .gguf file of 32-bit weights."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, model, tokenizer)
    return path


def write_gguf(path: Path, model, tokenizer) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        array = weight.numpy().astype(np.float32)
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp interleaves the rotary halves
            n_heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            split = array.reshape(n_heads, 2, array.shape[0] // n_heads // 2, *array.shape[1:])
            array = split.swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[5, 60, 7, 200, 31]])).logits


def test_references_are_told_apart(tiny_model_folder, tiny_gguf, monkeypatch, tmp_path):
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path))
    assert resolve_model(str(tiny_model_folder)).kind == "folder"
    assert resolve_model(str(tiny_gguf)).kind == "gguf"
    assert resolve_model("Qwen/Qwen2.5-0.5B").hub_id == "Qwen/Qwen2.5-0.5B"
    bundled = resolve_model("smollm2-135m")
    assert (bundled.kind, bundled.hub_id) == ("bundled", "HuggingFaceTB/SmolLM2-135M-Instruct")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("smolm2-135m", r"Did you mean 'smollm2-135m'"),
        ("", r"expected a bundled name \(smollm2-135m\)"),
        ("a/b/c", r"a Hub id such as"),
        ("./missing", r"no such file or folder"),
        ("~/missing-model", r"no such file or folder"),
        ("weights/x.gguf", r"no such file or folder"),
        (__file__, r"a file of another kind"),
    ],
)
def test_a_reference_that_is_nothing_says_what_was_expected(reference, message):
    with pytest.raises(ModelError, match=message):
        resolve_model(reference)


def test_a_frozen_model_is_in_the_compute_type(tiny_model_folder):
    loaded = load_model(str(tiny_model_folder), precision="bfloat16", device="cpu")
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert not loaded.model.training
    assert (loaded.precision, loaded.device) == (torch.bfloat16, CPU)


def test_a_trainable_model_keeps_float32_weights(tiny_model_folder):
    loaded = load_model(str(tiny_model_folder), precision="bfloat16", device="cpu", trainable=True)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    assert all(weight.requires_grad for weight in loaded.model.parameters())
    assert loaded.precision == torch.bfloat16


def test_loading_equals_transformers_and_leaves_its_logging_alone(tiny_model_folder, capfd):
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    loaded = load_model(str(tiny_model_folder), device="cpu", precision="float32")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    torch.testing.assert_close(logits(loaded.model), logits(plain), rtol=0, atol=0)


def test_a_gguf_model_is_an_ordinary_model(tiny_gguf, tiny_model_folder, tmp_path, capfd):
    loaded = load_model(str(tiny_gguf), device="cpu", precision="float32", trainable=True)
    assert capfd.readouterr().err == ""
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    torch.testing.assert_close(logits(loaded.model), logits(plain))
    loaded.model(torch.tensor([[5, 60]]), labels=torch.tensor([[5, 60]])).loss.backward()
    loaded.model.save_pretrained(tmp_path / "saved")
    loaded.tokenizer.save_pretrained(tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"), device="cpu", precision="float32")
    torch.testing.assert_close(logits(again.model), logits(loaded.model), rtol=0, atol=0)
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    text = "Spain won  2023, the 3rd  1"
    assert again.tokenizer.encode(text) == loaded.tokenizer.encode(text)
    assert loaded.tokenizer.model_max_length == 256
    assert loaded.tokenizer.chat_template


def test_a_gguf_tokenizer_cuts_numbers_into_single_digits(tiny_gguf):
    tokenizer = load_tokenizer(str(tiny_gguf))
    pieces = [tokenizer.decode([token_id]) for token_id in tokenizer.encode("in  2023")]
    assert pieces[-4:] == ["2", "0", "2", "3"]
    assert "".join(pieces) == "in  2023"
    parts = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  1")
    assert [part for part, _ in parts] == ["a", "ĠĠ", "1"]


def test_lean_reading_changes_nothing_but_long_arrays(tiny_gguf, tmp_path):
    lean, full = LeanGGUFReader(tiny_gguf), gguf.GGUFReader(tiny_gguf)
    assert lean.fields.keys() == full.fields.keys()
    for name, field in full.fields.items():
        assert lean.fields[name].contents() == field.contents()
    writer = gguf.GGUFWriter(tmp_path / "long.gguf", "llama")
    writer.add_token_list([f"token{i}" for i in range(5000)])
    writer.add_token_scores([float(i) for i in range(5000)])
    writer.add_block_count(7)
    writer.add_tensor("token_embd.weight", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    long = LeanGGUFReader(tmp_path / "long.gguf")
    assert len(long.fields["tokenizer.ggml.tokens"].data) == 5000
    assert long.fields["llama.block_count"].contents() == 7
    assert long.tensors[0].data.tolist() == np.arange(64).reshape(2, 32).tolist()


def test_lean_reading_is_undone_afterwards():
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with lean_gguf_reading():
        assert gguf.GGUFReader is LeanGGUFReader
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


@pytest.mark.parametrize("n_bytes", [0, 3, 20, 500, 4000, -4])
def test_a_gguf_file_cut_short_is_refused(tiny_gguf, tmp_path, n_bytes):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:n_bytes])
    with pytest.raises(ModelError, match=r"broken\.gguf"):
        load_model(str(broken))


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("config.json", r"model folder with config\.json"),
        ("model.safetensors", r"expected weights in model\.safetensors"),
        ("tokenizer*", r"expected tokenizer files"),
    ],
)
def test_an_incomplete_folder_says_what_is_missing(folder, gone, message):
    for path in folder.glob(gone):
        path.unlink()
    with pytest.raises(ModelError, match=message):
        load_model(str(folder))


def test_pickled_weights_are_not_loaded(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled.*save_pretrained"):
        load_model(str(folder))


@pytest.mark.parametrize("n_bytes", [0, 4, 100, -10])
def test_weights_cut_short_are_refused(folder, n_bytes):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:n_bytes])
    with pytest.raises(ModelError, match="damaged or cut short"):
        load_model(str(folder))


def test_a_missing_shard_is_named(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-00001-of-00002\.safetensors, which is missing"):
        load_model(str(folder))
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelError, match="expected an index"):
        load_model(str(folder))


def test_an_adapter_folder_points_to_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "smollm2-135m"}')
    with pytest.raises(ModelError, match=r"--adapter.*'smollm2-135m'"):
        load_model(str(tmp_path))


def test_a_folder_of_gguf_files_points_to_the_file(tmp_path):
    (tmp_path / "x.gguf").touch()
    with pytest.raises(ModelError, match=r"give the file itself: .*x\.gguf"):
        load_model(str(tmp_path))


def test_an_encoder_is_refused(folder, tmp_path):
    tiny = BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    BertForMaskedLM(tiny).save_pretrained(tmp_path / "bert")
    shutil.copy(folder / "tokenizer.json", tmp_path / "bert")
    with pytest.raises(ModelError, match="expected a causal language model, got BertForMaskedLM"):
        load_model(str(tmp_path / "bert"))


def test_random_weights_are_never_filled_in(folder):
    headless = LlamaModel.from_pretrained(folder)
    headless.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ModelError, match=r"1 weights are missing, such as lm_head"):
        load_model(str(folder))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "no-such"}'])
def test_a_broken_configuration_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match="model"):
        load_model(str(folder))


def test_remote_code_runs_only_when_asked_for(folder):
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": auto_map}))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nraise ImportError('own code')\n")
    with pytest.raises(ModelError, match="--trust-remote-code"):
        load_model(str(folder))
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (GatedRepoError, "access is gated"),
        (RepositoryNotFoundError, "the Hub knows no such model"),
        (LocalEntryNotFoundError, "the Hub cannot be reached.*smollm2-135m"),
    ],
)
def test_what_the_hub_refuses_says_what_to_do(monkeypatch, cause, message):
    def fail(*_args, **_options):
        raise OSError("We could not load it") from cause.__new__(cause)

    monkeypatch.setattr(models, "_is_local_only", lambda _source: False)
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ModelError, match=message):
        load_model("owner/name")


def test_without_a_network_only_the_local_cache_is_asked(monkeypatch):
    def unreachable(*_args, **_options):
        raise ConnectionError("no route")

    monkeypatch.setattr(models, "get_session", lambda: SimpleNamespace(head=unreachable))
    with pytest.raises(ModelError, match="the Hub cannot be reached"):
        load_tokenizer("owner/a-model-nobody-has")


def test_precision_is_native_or_float32(monkeypatch):
    assert resolve_precision("float32", CPU) == torch.float32
    assert resolve_precision("bfloat16", CPU) == torch.bfloat16
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset({"avx512_bf16"}))
    assert resolve_precision("auto", CPU) == torch.bfloat16
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset({"avx2"}))
    assert resolve_precision("auto", CPU) == torch.float32
    assert resolve_precision("auto", torch.device("mps")) == torch.float32


def test_a_device_that_is_not_there_is_refused():
    assert resolve_device("cpu") == CPU
    assert resolve_device() in {CPU, torch.device("cuda"), torch.device("mps")}
    with pytest.raises(ModelError, match="expected cpu, mps, cuda"):
        resolve_device("gpu")
    with pytest.raises(ModelError, match="not present"):
        resolve_device("cuda:97")

"""Merging model folders: what is written, in which order shares count, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from transfuse.baselines import merging
from transfuse.baselines.merging import check_merge, merge_models
from transfuse.baselines.merging_settings import (
    MERGE_METHODS,
    WITHOUT_BASE,
    DareLinearMerge,
    LinearMerge,
    ModelStockMerge,
    SceMerge,
    SlerpMerge,
    TiesMerge,
)
from transfuse.errors import ModelError, RecipeError


@pytest.fixture(scope="module")
def first(make_model_folder: Callable) -> Path:
    return make_model_folder("first", seed=1)


@pytest.fixture(scope="module")
def second(make_model_folder: Callable) -> Path:
    return make_model_folder("second", seed=2)


@pytest.fixture(scope="module")
def base(make_model_folder: Callable) -> Path:
    return make_model_folder("base", seed=3)


@pytest.fixture
def copy(first: Path, tmp_path: Path) -> Path:
    """The first model, for a test that damages it."""
    return Path(shutil.copytree(first, tmp_path / "copy"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_linear_is_the_weighted_mean_and_loads_in_plain_transformers(first, second, tmp_path):
    seen: list[tuple[int, int, str]] = []
    merge_models(
        [first, second],
        LinearMerge(weights=[3, 1]),
        tmp_path / "out",
        on_tensor=lambda *done: seen.append(done),
    )
    merged, one, other = weights(tmp_path / "out"), weights(first), weights(second)
    assert merged.keys() == one.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, 0.75 * one[name] + 0.25 * other[name])
    assert [n for n, _, _ in seen] == list(range(1, len(load_file(first / "model.safetensors")) + 1))
    text = "Question: who won?"
    tokenizers = [AutoTokenizer.from_pretrained(each) for each in (first, tmp_path / "out")]
    assert tokenizers[0].encode(text) == tokenizers[1].encode(text)
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    assert (tmp_path / "out/generation_config.json").is_file()
    assert (tmp_path / "out/model.safetensors").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("method", MERGE_METHODS)
@pytest.mark.parametrize("is_tied", [False, True])
def test_every_method_writes_a_whole_model(method, is_tied, make_model_folder, tmp_path):
    folders = [make_model_folder(f"{n}", seed=n, tie_word_embeddings=is_tied) for n in range(3)]
    out = tmp_path / "out"
    merge_models(folders[:2], MERGE_METHODS[method](), out, base=folders[2])
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.tie_word_embeddings == is_tied
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == is_tied
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    again = tmp_path / "again"
    merge_models(folders[:2], MERGE_METHODS[method](), again, base=folders[2])
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_slerp_ends_at_either_model(first, second, tmp_path):
    for weight, end in (([1, 0], first), ([0, 1], second)):
        merge_models([first, second], SlerpMerge(weights=weight), tmp_path / "out")
        for name, tensor in weights(tmp_path / "out").items():
            torch.testing.assert_close(tensor, weights(end)[name])


def test_bfloat16_is_written_when_asked(first, second, tmp_path):
    merge_models([first, second], LinearMerge(dtype="bfloat16"), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    stored = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    mean = (
        load_file(first / "model.safetensors")["lm_head.weight"]
        + load_file(second / "model.safetensors")["lm_head.weight"]
    ) / 2
    torch.testing.assert_close(stored["lm_head.weight"], mean.bfloat16())


def test_large_models_are_written_in_several_files(first, second, tmp_path, monkeypatch):
    merge_models([first, second], LinearMerge(), tmp_path / "one")
    monkeypatch.setattr(merging, "MAX_SHARD_BYTES", 20_000)
    merge_models([first, second], LinearMerge(), tmp_path / "many")
    names = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    one, many = weights(tmp_path / "one"), weights(tmp_path / "many")
    assert all(torch.equal(tensor, many[name]) for name, tensor in one.items())
    # Read back as sources, in files.
    merge_models([tmp_path / "many", tmp_path / "one"], LinearMerge(), tmp_path / "again")
    assert all(torch.equal(tensor, one[name]) for name, tensor in weights(tmp_path / "again").items())


def test_draws_follow_the_seed(first, second, base, tmp_path):
    found = []
    for seed in (1, 1, 2):
        merge_models([first, second], DareLinearMerge(seed=seed), tmp_path / "out", base=base)
        found.append((tmp_path / "out/model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


def test_a_gguf_file_is_merged_like_its_model(first, second, tmp_path):
    from test_models import write_gguf

    path = tmp_path / "first.gguf"
    write_gguf(path, AutoModelForCausalLM.from_pretrained(first), AutoTokenizer.from_pretrained(first))
    merge_models([second, path], LinearMerge(weights=[1, 3]), tmp_path / "out")
    one, other = weights(first), weights(second)
    for name, tensor in weights(tmp_path / "out").items():
        torch.testing.assert_close(tensor, 0.75 * one[name] + 0.25 * other[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.gguf", "out"]


def test_a_tied_head_that_was_written_out_is_left_out(make_model_folder, tmp_path):
    folders = [make_model_folder(f"tied-{n}", seed=n, tie_word_embeddings=True) for n in range(2)]
    path = folders[1] / "model.safetensors"
    stored = load_file(path)
    save_file(
        stored | {"lm_head.weight": stored["model.embed_tokens.weight"].clone()}, path, {"format": "pt"}
    )
    for order in (folders, folders[::-1]):
        merge_models(order, LinearMerge(), tmp_path / "out")
        assert "lm_head.weight" not in load_file(tmp_path / "out/model.safetensors")


def test_whole_numbers_are_kept_where_they_agree(first, copy, tmp_path):
    stored = load_file(copy / "model.safetensors")
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    save_file(stored | {"model.steps": torch.tensor([3])}, copy / "model.safetensors", {"format": "pt"})
    save_file(stored | {"model.steps": torch.tensor([3])}, other / "model.safetensors", {"format": "pt"})
    merge_models([copy, other], LinearMerge(dtype="bfloat16"), tmp_path / "out")
    torch.testing.assert_close(
        load_file(tmp_path / "out/model.safetensors")["model.steps"], torch.tensor([3])
    )
    save_file(stored | {"model.steps": torch.tensor([4])}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"model.steps: holds whole numbers \(I64\) that differ"):
        merge_models([copy, other], LinearMerge(), tmp_path / "out")


@pytest.mark.parametrize(
    ("models", "settings", "has_base", "message"),
    [
        (["a"], LinearMerge(), False, "merge: expected two models or more, got 1."),
        (["a", "b", "c"], SlerpMerge(), False, "slerp goes along the arc between two models, got 3"),
        (
            ["a", "b"],
            TiesMerge(),
            False,
            "merge: ties merges what .* name it with --base, or choose linear or slerp.",
        ),
        (["a", "b"], SceMerge(), False, "merge: sce merges"),
        (["a", "b"], ModelStockMerge(), False, "merge: model_stock merges"),
        (["a", "b"], DareLinearMerge(), False, "merge: dare_linear merges"),
        (["a", "b"], LinearMerge(weights=[1]), False, r"a weight for each of the 2 models, got 1: \[1.0\]"),
        (["a", "b"], TiesMerge(weights=[0, 0]), True, "expected weights with a positive sum, got only zeros"),
    ],
)
def test_settings_that_cannot_be_followed(models, settings, has_base, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        merge_models(models, settings, tmp_path / "out", base="b" if has_base else None)
    assert not list(tmp_path.iterdir())


def test_shares_sum_to_one():
    assert check_merge(["a", "b"], LinearMerge(weights=[1, 3]), None) == [0.25, 0.75]
    assert check_merge(["a", "b"], SceMerge(), "c") == [0.5, 0.5]
    assert {"linear", "slerp"} == WITHOUT_BASE <= MERGE_METHODS.keys()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers: '.*first' has 2, '.*other' has 3"),
        ({"num_attention_heads": 2, "head_dim": 16}, "num_attention_heads: .* has 4, .* has 2"),
        ({"intermediate_size": 48}, r"mlp.down_proj.weight: .* has \(32, 64\), .* has \(32, 48\)"),
        (
            {"vocab_size": 320},
            r"weight: '.*first' has \(300, 32\), '.*other' has \(320, 32\); expected models of one",
        ),
        ({"tie_word_embeddings": True}, r"lm_head.weight: .* has no such tensor \(one ties its head"),
        ({"attention_bias": True}, r"bias: '.*other' has \(16,\), '.*first' has no such tensor; expected"),
    ],
)
def test_models_of_different_shapes(config, message, first, make_model_folder, tmp_path):
    other = make_model_folder("other", **config)
    with pytest.raises(ModelError, match=message):
        merge_models([first, other], LinearMerge(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_another_architecture(first, copy, tmp_path):
    change_config(copy, model_type="mistral", architectures=["MistralForCausalLM"])
    with pytest.raises(
        ModelError, match=r'model_type: .* has "llama", .* has "mistral"; expected models of one'
    ):
        merge_models([first, copy], LinearMerge(), tmp_path / "out")


def test_another_vocabulary(first, make_model_folder, copy, tmp_path):
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        ModelError, match=r"""differ in 2 ids: 2 is '!' in one, '"' in the other; .* not merged"""
    ):
        merge_models([first, copy], LinearMerge(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_or_packed(first, copy, tmp_path):
    stored = load_file(copy / "model.safetensors")
    stored["model.norm.weight"][3] = torch.nan
    save_file(stored, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"model.norm.weight: the merged weights are not finite"):
        merge_models([first, copy], LinearMerge(), tmp_path / "out")
    change_config(copy, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="its weights are quantised"):
        merge_models([first, copy], LinearMerge(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_an_earlier_folder_stays_when_merging_fails(first, copy, tmp_path):
    out = Path(shutil.copytree(first, tmp_path / "out"))
    change_config(copy, num_hidden_layers=1)
    with pytest.raises(ModelError):
        merge_models([first, copy], LinearMerge(), out)
    assert (out / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()

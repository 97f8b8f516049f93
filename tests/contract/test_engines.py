"""Both engines give what plain autograd gives in a loop over samples, on every family of architectures."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen3Config,
)

from transfuse.train.batches import TrainingRow
from transfuse.transfer.memory_engine import memory_sensitivity
from transfuse.transfer.sensitivity import LayerScores, ModelNames
from transfuse.transfer.streamed_engine import streamed_sensitivity

VOCAB = 90
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
LLAMA_NAMES = ModelNames("model.layers", "model.embed_tokens", "lm_head")
MODELS: dict[str, tuple[Callable, ModelNames]] = {
    "llama": (lambda: LlamaConfig(**GROUPED), LLAMA_NAMES),
    "llama-biased-tied": (
        lambda: LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        LLAMA_NAMES,
    ),
    "mistral-window": (lambda: MistralConfig(**GROUPED, sliding_window=4), LLAMA_NAMES),
    "qwen3": (lambda: Qwen3Config(**GROUPED, head_dim=16), LLAMA_NAMES),
    "gemma2-capped": (
        lambda: Gemma2Config(**GROUPED, head_dim=8, sliding_window=4, final_logit_softcapping=2.0),
        LLAMA_NAMES,
    ),
    "gemma3": (lambda: Gemma3TextConfig(**GROUPED, head_dim=16, sliding_window=4), LLAMA_NAMES),
    "phi3-fused": (lambda: Phi3Config(**GROUPED), LLAMA_NAMES),
    "gemma3-with-pictures": (
        lambda: Gemma3Config(
            text_config=Gemma3TextConfig(**GROUPED, head_dim=16, sliding_window=4).to_dict(),
            vision_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
        ),
        ModelNames(
            "model.language_model.layers",
            "model.language_model.embed_tokens",
            "lm_head",
            (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")),
        ),
    ),
    "gpt-neox-parallel": (
        lambda: GPTNeoXConfig(**SIZES, hidden_dropout=0.5, attention_dropout=0.5),
        ModelNames("gpt_neox.layers", "gpt_neox.embed_in", "lm_head", (("lm_head.", "embed_out."),)),
    ),
}
LENGTHS = [(12, 5), (7, 6), (16, 1), (9, 4), (12, 10)]


def rows() -> list[TrainingRow]:
    """Samples with repeated tokens, the padding token among them."""
    generator = torch.Generator().manual_seed(1)
    made = [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length, _ in LENGTHS]
    made[0][2:4] = [3, made[0][1]]
    return [TrainingRow(ids, n_prompt) for ids, (_, n_prompt) in zip(made, LENGTHS, strict=True)]


def random_model(name: str) -> PreTrainedModel:
    """Weights large enough that no gradient vanishes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(MODELS[name][0](), dtype=torch.float32)
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(0, 0.3)
    return model.eval()


def autograd_scores(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """sum_j |W * dL_j/dW| of every matrix, by a backward pass for each sample."""
    sums: dict[str, torch.Tensor] = {}
    for row in rows():
        model.zero_grad()
        ids = torch.tensor([row.token_ids])
        labels = ids.clone()
        labels[:, : row.n_prompt] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and weight.grad is not None:
                sums[name] = sums.get(name, torch.zeros(())) + (weight * weight.grad).abs().detach()
    return sums


class Kept:
    """Keeps the scores by full parameter name, and the order in which layers came."""

    def __init__(self, names: ModelNames) -> None:
        self.names, self.scores, self.weights, self.order = names, {}, {}, []

    def __call__(self, given: LayerScores) -> None:
        prefix = "" if given.layer is None else f"{self.names.layers}.{given.layer}."
        self.order.append(given.layer)
        for name, score in given.scores.items():
            self.scores[f"{prefix}{name}.weight"] = score.clone()
            self.weights[f"{prefix}{name}.weight"] = given.weights[name].clone()


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert set(got) == set(expected)
    for name, score in expected.items():
        assert float(score.sum()) > 0
        off = float((got[name] - score).norm() / score.norm())
        assert off < tolerance, f"{name}: {off}"


@pytest.mark.parametrize("name", MODELS)
def test_both_engines_give_autograds_sensitivities(name, tmp_path):
    model, names = random_model(name), MODELS[name][1]
    model.save_pretrained(tmp_path / "model")
    expected = autograd_scores(model)
    in_memory, streamed = Kept(names), Kept(names)
    one = memory_sensitivity(model, rows(), in_memory, names=names, max_tokens_per_pass=32)
    other = streamed_sensitivity(
        tmp_path / "model", rows(), streamed, names=names, work=tmp_path / "work", max_tokens_per_pass=32
    )
    assert_same(in_memory.scores, expected, 1e-4)
    assert_same(streamed.scores, expected, 1e-4)
    assert_same(streamed.scores, in_memory.scores, 1e-5)
    assert in_memory.order == streamed.order == [2, 1, 0, None]
    for weight_name, weight in model.named_parameters():
        if weight_name in expected:
            torch.testing.assert_close(streamed.weights[weight_name], weight.detach(), rtol=0, atol=0)
    assert one.losses == pytest.approx(other.losses, rel=1e-5)
    n_on_disk = sum(file.stat().st_size for file in (tmp_path / "model").glob("*.safetensors"))
    assert 0 < other.bytes_read <= 2 * n_on_disk


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_implementations_agree_from_sharded_bfloat16_files(attention, tmp_path):
    names = LLAMA_NAMES
    random_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    in_memory, streamed = Kept(names), Kept(names)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, attn_implementation=attention
    )
    memory_sensitivity(model, rows(), in_memory, names=names)
    streamed_sensitivity(
        tmp_path / "model", rows(), streamed, names=names, work=tmp_path / "work", attention=attention
    )
    assert_same(streamed.scores, in_memory.scores, 1e-5)


def test_a_process_killed_inside_a_layer_is_continued(tmp_path):
    names = MODELS["gemma3"][1]
    model = random_model("gemma3")
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "killed.py").write_text(
        "import os\nimport sys\n"
        "from pathlib import Path\n"
        f"from {Path(__file__).stem} import MODELS, rows\n"
        "from transfuse.transfer.streamed_engine import streamed_sensitivity\n"
        "folder = Path(sys.argv[1])\n"
        "def die(given):\n"
        "    print(given.layer, flush=True)\n"
        "    if given.layer == 1:\n"
        "        os.kill(os.getpid(), 9)\n"
        "streamed_sensitivity(folder / 'model', rows(), die, names=MODELS['gemma3'][1], work=folder / 'work')\n"
    )
    killed = subprocess.run(
        [sys.executable, tmp_path / "killed.py", tmp_path],
        stdout=subprocess.PIPE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        timeout=300,
    )
    assert killed.returncode == -9
    assert killed.stdout.split() == [b"2", b"1"]
    rest, whole = Kept(names), Kept(names)
    continued = streamed_sensitivity(tmp_path / "model", rows(), rest, names=names, work=tmp_path / "work")
    assert rest.order == [1, 0, None]
    afresh = streamed_sensitivity(tmp_path / "model", rows(), whole, names=names, work=tmp_path / "other")
    assert continued.losses == afresh.losses
    assert continued.bytes_read < 0.7 * afresh.bytes_read
    for name, score in rest.scores.items():
        torch.testing.assert_close(score, whole.scores[name], rtol=0, atol=0)
    assert not list((tmp_path / "work").glob("*spill*"))

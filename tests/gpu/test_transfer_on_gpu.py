"""The parameter route on an accelerator gives what it gives on the CPU: scores, blocks, factors, training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from injection_models import RANK, random_factors, student
from own_process import report_of, transfuse
from tiny_families import random_model, tiny_config
from transfuse.tensors.sub_matrices import heaviest_block
from transfuse.train.batches import TrainingRow
from transfuse.train.folded_adapters import save_folded_adapter
from transfuse.train.loop import train
from transfuse.train.settings import LoraSettings, TrainSettings
from transfuse.train.starting_factors import attach_starting_factors
from transfuse.train.summary import TrainingSummary
from transfuse.transfer.adapter_deltas import adapter_deltas
from transfuse.transfer.extraction import Wanted
from transfuse.transfer.extraction_files import Extractor, load_extraction
from transfuse.transfer.families import architecture_of
from transfuse.transfer.memory_engine import memory_sensitivity
from transfuse.transfer.sensitivity import LayerScores, ModelNames, OnLayer
from transfuse.transfer.streamed_engine import streamed_sensitivity

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"
FAMILIES = ("llama biased", "gemma2", "phi3", "gpt_neox")


def sample_rows(n_vocab: int = 50) -> list[TrainingRow]:
    generator = torch.Generator().manual_seed(1)
    lengths = ((12, 5), (7, 6), (16, 1), (9, 4))
    return [TrainingRow(torch.randint(3, n_vocab, (n,), generator=generator).tolist(), p) for n, p in lengths]


class Kept:
    """Keeps scores by layer and module."""

    def __init__(self) -> None:
        self.scores: dict[str, torch.Tensor] = {}

    def __call__(self, given: LayerScores) -> None:
        self.scores |= {f"{given.layer} {name}": score.cpu().clone() for name, score in given.scores.items()}


def names_of(config: object) -> ModelNames:
    own = architecture_of(config)
    return ModelNames(own.layers, own.embedding.name, own.head.name, own.aliases)


def in_memory(family: str, device: str, consumer: OnLayer) -> None:
    model = random_model(tiny_config(family, is_large=True)).to(device)
    memory_sensitivity(model, sample_rows(), consumer, names=names_of(model.config), max_tokens_per_pass=32)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_engines_score_as_the_cpu_does(tmp_path: Path, family: str) -> None:
    expected, memory, streamed = Kept(), Kept(), Kept()
    in_memory(family, "cpu", expected)
    in_memory(family, DEVICE, memory)
    model = random_model(tiny_config(family, is_large=True))
    model.save_pretrained(tmp_path / "model")
    streamed_sensitivity(
        tmp_path / "model",
        sample_rows(),
        streamed,
        names=names_of(model.config),
        work=tmp_path / "work",
        max_tokens_per_pass=32,
        attention="eager",
        device=DEVICE,
    )
    assert list(memory.scores) == list(streamed.scores) == list(expected.scores)
    for name, scores in expected.scores.items():
        atol = 1e-5 * float(scores.max())
        torch.testing.assert_close(memory.scores[name], scores, rtol=1e-3, atol=atol, msg=name)
        torch.testing.assert_close(streamed.scores[name], scores, rtol=1e-3, atol=atol, msg=name)


@pytest.mark.parametrize("reduce", ["submatrix", "rows-columns", "random", "coupled"])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_extraction_finds_the_same_blocks_and_factors(tmp_path: Path, family: str, reduce: str) -> None:
    teacher, small = (architecture_of(tiny_config(family, is_large=is_large)) for is_large in (True, False))
    tokens = torch.arange(small.vocab)
    tokens[7] = -1  # a token that the teacher does not know
    roles = frozenset(small.roles) - {"key"}  # zeros in a fused matrix
    wanted = Wanted(teacher, small, roles, reduce, RANK, tokens, seed=3, with_random_block=True)
    for device in ("cpu", DEVICE):
        (tmp_path / device).mkdir(exist_ok=True)
        in_memory(family, device, Extractor(wanted, tmp_path / device))
    for layer in (*range(teacher.n_layers), None):
        ours, theirs = (load_extraction(tmp_path / device, layer) for device in (DEVICE, "cpu"))
        assert ours.variants.keys() == theirs.variants.keys()
        for name, variant in theirs.variants.items():
            for role, part in variant.parts.items():
                assert torch.equal(ours.variants[name].parts[role].rows, part.rows), (layer, role)
                assert torch.equal(ours.variants[name].parts[role].columns, part.columns), (layer, role)
            for module, (factors, _) in variant.modules.items():
                left, values, right, _ = ours.variants[name].modules[module].factors
                torch.testing.assert_close(
                    left * values @ right, factors.left * factors.values @ factors.right, rtol=1e-3, atol=1e-4
                )


@pytest.mark.parametrize("shape", [(700, 900, 512, 640), (513, 130, 512, 129), (64, 64, 64, 64)])
def test_the_heaviest_block_is_the_cpus(shape: tuple[int, int, int, int]) -> None:
    height, width, n_rows, n_columns = shape
    for seed in range(3):
        scores = torch.rand(height, width, generator=torch.Generator().manual_seed(seed))
        found = heaviest_block(scores.to(DEVICE), n_rows, n_columns)
        assert found[:2] == heaviest_block(scores, n_rows, n_columns)[:2]


def trained(folder: Path, device: str, dtype: torch.dtype, **settings: object) -> TrainingSummary:
    """Two epochs of LoRA from starting factors; the folded adapter is left in the folder."""
    model = student("llama").to(device)
    adapted = attach_starting_factors(model, LoraSettings(rank=RANK, alpha=6.0), random_factors(model))
    rows = [row for n in range(4) for row in sample_rows(60 - n)]
    summary = train(
        adapted,
        rows,
        TrainSettings(n_epochs=2, batch_rows=3, learning_rate=5e-3, **settings),
        seed=5,
        compute_dtype=dtype,
        pad_id=0,
        folder=folder,
    )
    assert {weight.device.type for weight in adapted.parameters()} == {torch.device(device).type}
    save_folded_adapter(adapted, folder / "adapter", "base")
    return summary


@pytest.mark.parametrize("packing", ["on", "off"])
def test_training_goes_as_on_the_cpu(tmp_path: Path, packing: str) -> None:
    theirs = trained(tmp_path / "cpu", "cpu", torch.float32, packing=packing)
    ours = trained(tmp_path / "gpu", DEVICE, torch.float32, packing=packing)
    curves = [torch.tensor([step.loss for step in each.curve]) for each in (ours, theirs)]
    torch.testing.assert_close(*curves, rtol=1e-3, atol=1e-3)
    expected = adapter_deltas(tmp_path / "cpu" / "adapter")
    for name, delta in adapter_deltas(tmp_path / "gpu" / "adapter").items():
        wanted = expected[name].up @ expected[name].down
        scale = float(wanted.abs().max())
        torch.testing.assert_close(delta.up @ delta.down, wanted, rtol=0, atol=0.02 * scale, msg=name)


def test_bfloat16_trains_beside_float32(tmp_path: Path) -> None:
    exact = trained(tmp_path / "float32", DEVICE, torch.float32)
    rounded = trained(tmp_path / "bfloat16", DEVICE, torch.bfloat16)
    assert exact.curve[-1].loss < exact.curve[0].loss
    assert rounded.curve[-1].loss == pytest.approx(exact.curve[-1].loss, rel=0.1)


@pytest.mark.parametrize("engine", ["memory", "stream"])
def test_the_transfer_command_gives_the_cpus_report(
    tmp_path: Path, make_model_folder: Callable, engine: str
) -> None:
    teacher = make_model_folder(
        f"teacher-{engine}", seed=1, hidden_size=48, num_hidden_layers=4, num_attention_heads=6
    )
    pupil = make_model_folder(f"student-{engine}")
    samples = [
        {
            "messages": [
                {"role": "user", "content": f"Isle {n}?"},
                {"role": "assistant", "content": f"It has {n}."},
            ]
        }
        for n in range(16)
    ]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    for place in ("gpu", "cpu"):
        transfuse(
            *("transfer", "--teacher", teacher, "--student", pupil, "--rank", 4, "--controls"),
            *("--task", tmp_path / "task.jsonl", "--train", tmp_path / "task.jsonl"),
            *("--eval", tmp_path / "task.jsonl", "--engine", engine, "--out", tmp_path / place),
            *(
                "--set",
                "precision=float32",
                "--set",
                "learning_rates=[0.001, 0.01]",
                "--set",
                "train.n_epochs=1",
            ),
            *("--set", "evaluate.max_new_tokens=4"),
            without_gpu=place == "cpu",
        )
    ours, theirs = report_of(tmp_path / "gpu"), report_of(tmp_path / "cpu")
    assert ours["transfer"]["layers"]["chosen"] == theirs["transfer"]["layers"]["chosen"]
    for mine, other in zip(ours["transfer"]["blocks"], theirs["transfer"]["blocks"], strict=True):
        assert [mine[key] for key in ("student", "teacher", "first_row", "first_column")] == [
            other[key] for key in ("student", "teacher", "first_row", "first_column")
        ]
    for mine, other in zip(ours["rows"], theirs["rows"], strict=True):
        bits = [row["metrics"]["bits_per_byte/answers"]["value"] for row in (mine, other)]
        assert mine["name"] == other["name"]
        assert bits[0] == pytest.approx(bits[1], abs=2e-3), mine["name"]


def test_a_document_is_learned_as_on_the_cpu(tmp_path: Path, make_model_folder: Callable) -> None:
    example = Path(__file__).parents[2] / "examples" / "orvessa"
    model = make_model_folder("reader", max_position_embeddings=1024)
    for place in ("gpu", "cpu"):
        transfuse(
            *("run", example / "inject.yaml", "--out", tmp_path / place),
            *("--set", f"model={model}", "--set", "precision=float32", "--set", "scale=1"),
            *(
                "--set",
                "train.n_epochs=1",
                "--set",
                "evaluate.max_new_tokens=4",
                "--set",
                "coverage.embedder=null",
            ),
            without_gpu=place == "cpu",
        )
    ours, theirs = report_of(tmp_path / "gpu"), report_of(tmp_path / "cpu")
    assert [row["name"] for row in ours["rows"]] == [row["name"] for row in theirs["rows"]]
    for mine, other in zip(ours["rows"], theirs["rows"], strict=True):
        for metric in (name for name in mine["metrics"] if name.startswith("bits_per_byte")):
            bits = [row["metrics"][metric]["value"] for row in (mine, other)]
            assert bits[0] == pytest.approx(bits[1], abs=2e-3), (mine["name"], metric)

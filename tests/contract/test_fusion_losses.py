"""Fusion losses equal plain transformers and dense torch: head in chunks or whole, rows packed or one by one."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from transfuse.errors import TrainingError
from transfuse.tensors.sparse_divergences import DIVERGENCES
from transfuse.train import fast_paths
from transfuse.train.adapters import attach_lora
from transfuse.train.batches import LazyRows, Rows, TrainingPass, TrainingRow, packed_passes, padded_passes
from transfuse.train.chunked_head import OutputHead, find_head
from transfuse.train.loop import train
from transfuse.train.objective import AnswerLoss, move_pass, why_not_chunked
from transfuse.train.settings import LoraSettings, TrainSettings
from transfuse.train.soft_targets import ChunkTargets, SoftTargets
from transfuse.train.summary import TrainingSummary

CPU, PAD, VOCAB = torch.device("cpu"), 0, 64

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # wide, so that every token seen matters
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": PAD,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 32}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=True)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GEMMA, final_logit_softcapping=3.0)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**GROUPED, logits_scaling=3.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**GROUPED, logit_scale=0.25)),
}
KINDS = [*DIVERGENCES, "alm", "none"]


def tiny(name: str = "llama", seed: int = 0) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name]().eval()


def with_lora(model: PreTrainedModel, seed: int = 1) -> torch.nn.Module:
    """An adapter that is not at its start: its effect is there already."""
    adapted = attach_lora(model, LoraSettings(rank=4))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return adapted


def soft_of(kind: str, n_learned: int, seed: int, **settings: float) -> SoftTargets | ChunkTargets | None:
    """Targets of three kept tokens, some of them pads, one position not taught; or chunks with a gap."""
    if kind == "none":
        return None
    generator = torch.Generator().manual_seed(seed)
    settings = {"hard_weight": 0.9, **settings}
    if kind == "alm":
        bounds = torch.tensor([(n, min(n + 1 + n % 3, n_learned)) for n in range(0, n_learned, 4)]).int()
        nats = -3 * torch.rand(len(bounds), generator=generator)
        return ChunkTargets(bounds[:, 0], bounds[:, 1], nats, **settings)
    log_probs = torch.randn(n_learned, VOCAB, generator=generator).mul(2).log_softmax(1)
    kept = log_probs.topk(3, dim=1)
    ids, nats = kept.indices.int(), kept.values
    ids[::2, 2], nats[::2, 2] = 0, -torch.inf
    is_taught = torch.arange(n_learned) % 5 != 2
    return SoftTargets(ids, nats, divergence=kind, is_taught=is_taught, **settings)  # type: ignore[arg-type]


def rows_of(kind: str, n: int = 7, **settings: float) -> list[TrainingRow]:
    """Rows with a common beginning, texts without, and one row that nothing teaches."""
    generator = torch.Generator().manual_seed(3)

    def draw(n_tokens: int) -> list[int]:
        return torch.randint(3, VOCAB, (n_tokens,), generator=generator).tolist()

    beginning = draw(10)
    rows = [TrainingRow(beginning + draw(2 + i % 3) + draw(4 + i), 11 + i % 3) for i in range(n - 3)]
    rows += [TrainingRow(draw(12 + i), 1) for i in range(3)]
    taught = [
        row._replace(soft=soft_of(kind, row.n_learned, seed, **settings)) for seed, row in enumerate(rows)
    ]
    return [*taught, rows[0]]


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}
    model.zero_grad()
    return found


def loss_and_gradients(
    objective: AnswerLoss, passes: list[TrainingPass]
) -> tuple[float, dict[str, torch.Tensor]]:
    total = 0.0
    for batch in passes:
        loss = objective(**move_pass(batch, CPU)) * 0.5  # what comes from above is handed through
        loss.backward()
        total += float(loss.detach())
    return total, gradients(objective.model)


def chunked(model: torch.nn.Module, n_positions: int = 3) -> AnswerLoss:
    objective = AnswerLoss(model, torch.float32)
    head = find_head(model)
    assert isinstance(head, OutputHead)
    objective.use_chunks(head, chunk_bytes=4 * VOCAB * n_positions)
    return objective


def assert_equal(
    found: tuple[float, dict[str, torch.Tensor]],
    expected: tuple[float, dict[str, torch.Tensor]],
    tolerance: float = 1e-5,
) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert found[1].keys() == expected[1].keys()
    largest = max(float(grad.norm()) for grad in expected[1].values())
    assert largest > 0
    for name, grad in expected[1].items():
        # Of a weight whose gradient is nothing but rounding only the size says anything.
        scale = max(float(grad.norm()), 1e-3 * largest)
        assert float((found[1][name] - grad).norm()) < tolerance * scale, name


# Chunks of the head


@pytest.mark.parametrize("is_adapted", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["none", "forward-kl", "alm"])
def test_head_in_chunks_has_the_loss_and_gradients_of_the_whole(name, is_adapted, kind):
    model = with_lora(tiny(name)) if is_adapted else tiny(name)
    rows = rows_of(kind, temperature=2.0)
    assert why_not_chunked(AnswerLoss(model, torch.float32), find_head(model), rows, PAD, CPU) == ""  # type: ignore[arg-type]
    passes = padded_passes(rows, 1 << 30, PAD)
    assert_equal(
        loss_and_gradients(chunked(model), passes),
        loss_and_gradients(AnswerLoss(model, torch.float32), passes),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_every_loss_is_the_same_in_chunks_of_any_size(kind, temperature):
    model, rows = tiny("llama-tied"), rows_of(kind, temperature=temperature)
    passes = padded_passes(rows, 1 << 30, PAD)
    expected = loss_and_gradients(AnswerLoss(model, torch.float32), passes)
    for n_positions in (1, 7, 1000):
        assert_equal(loss_and_gradients(chunked(model, n_positions), passes), expected)


@pytest.mark.parametrize("kind", ["none", "forward-kl", "alm"])
def test_a_frozen_head_gets_no_gradient_and_without_gradients_there_is_a_loss_all_the_same(kind):
    model, passes = tiny(), padded_passes(rows_of(kind), 1 << 30, PAD)
    model.lm_head.weight.requires_grad_(False)
    found = loss_and_gradients(chunked(model), passes)
    assert "lm_head.weight" not in found[1]
    assert_equal(found, loss_and_gradients(AnswerLoss(model, torch.float32), passes))
    with torch.no_grad():
        (batch,) = passes
        assert float(chunked(model)(**move_pass(batch, CPU))) * 0.5 == pytest.approx(found[0], rel=1e-6)


def test_in_bfloat16_the_heads_gradient_is_added_up_in_float32():
    model, passes = tiny("llama-tied"), padded_passes(rows_of("forward-kl"), 1 << 30, PAD)
    exact = loss_and_gradients(AnswerLoss(model, torch.float32), passes)
    head = find_head(model)
    assert isinstance(head, OutputHead)
    objective = AnswerLoss(model, torch.bfloat16)
    objective.use_chunks(head, chunk_bytes=4 * VOCAB)
    found = loss_and_gradients(objective, passes)
    name = "model.embed_tokens.weight"
    assert found[1][name].dtype == torch.float32
    assert found[0] == pytest.approx(exact[0], rel=0.02)
    assert (found[1][name] - exact[1][name]).norm() < 0.05 * exact[1][name].norm()


class ScalesLogits(LlamaForCausalLM):
    """Does something to its logits that nobody else knows of."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 1.1
        return output


def test_a_model_that_does_more_to_its_logits_is_found_out():
    torch.manual_seed(0)
    model = ScalesLogits(LlamaConfig(**GROUPED)).eval()
    head = find_head(model)
    assert isinstance(head, OutputHead)
    reason = why_not_chunked(AnswerLoss(model, torch.float32), head, rows_of("none"), PAD, CPU)
    assert reason.startswith("logits of the head alone differ from the model's by 0.09")


def run(folder: Path, model: torch.nn.Module, rows: Rows, **settings: object) -> TrainingSummary:
    return train(
        model,
        rows,
        TrainSettings(
            **{"method": "full", "learning_rate": 1e-3, "n_epochs": 2, "batch_rows": 4, **settings}  # type: ignore[arg-type]
        ),
        seed=5,
        compute_dtype=torch.float32,
        pad_id=PAD,
        folder=folder,
    )


UNREACHABLE: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {
    "adapter on the head": (
        lambda: get_peft_model(
            tiny(), LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["lm_head", "q_proj"])
        ),
        "the output head is a Linear, not|lora",
    ),
    "saved head": (
        lambda: get_peft_model(
            tiny(),
            LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"]),
        ),
        "the output head is a ModulesToSaveWrapper",
    ),
    "state space": (
        lambda: MambaForCausalLM(
            MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4)
        ).eval(),
        "",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNREACHABLE)
def test_a_head_that_cannot_be_reached_is_run_whole_and_said_so(tmp_path, name, monkeypatch):
    monkeypatch.setattr(fast_paths, "CHUNK_BYTES", 4 * VOCAB)  # every pass is large
    make, reason = UNREACHABLE[name]
    rows = rows_of("none")
    torch.manual_seed(0)
    summary = run(tmp_path / "auto", make(), rows, packing="off", learning_rate=1e-4)
    torch.manual_seed(0)
    whole = run(tmp_path / "whole", make(), rows, packing="off", learning_rate=1e-4, head="whole")
    assert whole.warnings == []
    assert [log.loss for log in whole.curve] == pytest.approx([log.loss for log in summary.curve], rel=1e-5)
    if reason:
        (warning,) = summary.warnings
        assert warning.startswith("Logits of whole passes were held in memory, since the output head is a ")
        with pytest.raises(TrainingError, match=r"train\.head is 'chunked', but .*; set it to auto or whole"):
            run(tmp_path / "chunked", make(), rows, packing="off", head="chunked")


@pytest.mark.parametrize("kind", ["none", "cross-entropy", "alm"])
def test_training_in_chunks_is_training_with_the_whole_head(tmp_path, kind, monkeypatch):
    rows = rows_of(kind)
    models = {head: tiny("gemma2") for head in ("whole", "chunked", "auto")}
    summaries = {}
    for head, model in models.items():
        summaries[head] = run(tmp_path / head, model, rows, head=head, n_epochs=1)
        assert summaries[head].warnings == []
    # Logits as small as these are held whole unless it is asked otherwise.
    assert summaries["auto"].curve == summaries["whole"].curve
    for ours, theirs in zip(summaries["chunked"].curve, summaries["whole"].curve, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)


# Packing


def jensen_shannon(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    middle = (p + q) / 2
    return ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2


def loss_of_row(model: torch.nn.Module, row: TrainingRow) -> torch.Tensor:
    """What a row costs, by transformers and plain torch over the tokens kept and a tail, position by position."""
    logits = model(torch.tensor([row.token_ids])).logits[0, row.n_prompt - 1 : -1].double()
    own = logits.log_softmax(1)[range(row.n_learned), row.token_ids[row.n_prompt :]]
    soft = row.soft
    if soft is None:
        return -own.sum()
    if isinstance(soft, ChunkTargets):
        total, free = torch.zeros(()).double(), set(range(row.n_learned))
        for start, end, nats in zip(
            soft.starts.tolist(), soft.ends.tolist(), soft.log_probs.double(), strict=True
        ):
            free -= set(range(start, end))
            p, q = ((part / soft.temperature).exp() for part in (nats, own[start:end].sum()))
            kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
            total = total + (1 - soft.hard_weight) * soft.temperature * kl
            total = total - soft.hard_weight * own[start:end].sum()
        return total - own[sorted(free)].sum()
    assert soft.is_taught is not None
    total = torch.zeros(()).double()
    for n in range(row.n_learned):
        if not soft.is_taught[n]:
            total = total - own[n]
            continue
        p = soft.log_probs[n].double().exp()
        ids, p = soft.token_ids[n][p > 0].long(), p[p > 0]
        q_all = (logits[n] / soft.temperature).softmax(0)
        q = q_all.sort(descending=True).values[: len(ids)] if soft.divergence == "uld" else q_all[ids]
        p_rest, q_rest = 1 - p.sum(), 1 - q.sum()
        value = {
            "cross-entropy": lambda p=p, q=q: -(p * q.log()).sum(),
            "cross-entropy-renormalised": lambda p=p, q=q: -(p / p.sum() * q.log()).sum(),
            "forward-kl": lambda p=p, q=q, a=p_rest, b=q_rest: (p * (p / q).log()).sum() + a * (a / b).log(),
            "reverse-kl": lambda p=p, q=q, a=p_rest, b=q_rest: (q * (q / p).log()).sum() + b * (b / a).log(),
            "jsd": lambda p=p, q=q, a=p_rest, b=q_rest: jensen_shannon(
                torch.cat([p, a[None]]), torch.cat([q, b[None]])
            ),
            "uld": lambda p=p, q=q, a=p_rest, b=q_rest: (p - q).abs().sum() + (a - b).abs(),
        }[soft.divergence]()
        total = total + (1 - soft.hard_weight) * soft.temperature**2 * value - soft.hard_weight * own[n]
    return total


@pytest.mark.parametrize("way", ["packed", "padded", "packed in chunks"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_row_by_row(kind, way):
    model, rows = tiny(), rows_of(kind, temperature=1.5)
    expected = torch.stack([loss_of_row(model, row) for row in rows]).sum() * 0.5
    expected.backward()
    wanted = float(expected.detach()), gradients(model)
    passes = padded_passes(rows, 60, PAD) if way == "padded" else packed_passes(rows, 60)
    assert len(passes) > 1
    objective = chunked(model) if way == "packed in chunks" else AnswerLoss(model, torch.float32)
    assert_equal(loss_and_gradients(objective, passes), wanted, tolerance=1e-4)


def test_with_one_tokenizer_one_source_and_no_clm_it_is_plain_distillation():
    teacher, student = tiny(seed=1), tiny(seed=2)
    plain = rows_of("none", n=8)
    rows = []
    for row in plain:
        with torch.no_grad():
            log_probs = teacher(torch.tensor([row.token_ids])).logits[0, row.n_prompt - 1 : -1].log_softmax(1)
        kept = log_probs.sort(dim=1, descending=True)
        rows.append(row._replace(soft=SoftTargets(kept.indices.int(), kept.values)))
    total = torch.zeros(())
    for row in plain:
        token_ids = torch.tensor([row.token_ids])
        with torch.no_grad():
            theirs = teacher(token_ids).logits[0, row.n_prompt - 1 : -1].log_softmax(1)
        ours = student(token_ids).logits[0, row.n_prompt - 1 : -1].log_softmax(1)
        total = total + torch.nn.functional.kl_div(ours, theirs, reduction="sum", log_target=True)
    (total * 0.5).backward()
    expected = float(total.detach()) * 0.5, gradients(student)
    for objective in (AnswerLoss(student, torch.float32), chunked(student)):
        assert_equal(loss_and_gradients(objective, packed_passes(rows, 4096)), expected, tolerance=1e-4)


# Rows made when asked for


class Counted:
    """Rows made anew each time, as from a file."""

    def __init__(self, rows: list[TrainingRow]) -> None:
        self._rows, self.n_made = rows, 0

    @property
    def lengths(self) -> list[int]:
        return [len(row.token_ids) for row in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> TrainingRow:
        self.n_made += 1
        return copy.deepcopy(self._rows[index])


@pytest.mark.parametrize("kind", ["forward-kl", "alm"])
@pytest.mark.parametrize("packing", ["auto", "off"])
def test_rows_made_when_asked_for_train_as_a_list(tmp_path, kind, packing):
    rows = [row for seed in range(12) for row in rows_of(kind)]
    lazy = Counted(rows)
    assert isinstance(lazy, LazyRows)
    expected = run(tmp_path / "list", tiny(), rows, n_epochs=1, packing=packing)
    found = run(tmp_path / "lazy", tiny(), lazy, n_epochs=1, packing=packing)
    assert found.curve == expected.curve
    assert lazy.n_made <= len(rows) + 64


def test_uneven_rows_are_found_when_they_are_made(tmp_path):
    rows = rows_of("forward-kl")
    soft = rows[3].soft
    assert isinstance(soft, SoftTargets)
    rows[3] = rows[3]._replace(soft=soft._replace(token_ids=soft.token_ids[:, :2]))
    with pytest.raises(TrainingError, match="same top_k"):
        run(tmp_path, tiny(), Counted(rows))
    with pytest.raises(TrainingError, match="expected training rows, got none"):
        run(tmp_path, tiny(), Counted([]))


# Several processes

TWO_PROCESSES = """
import json, sys
from pathlib import Path
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transfuse.train import loop
sys.path.insert(0, sys.argv[1])
from test_fusion_losses import KINDS_OF_TEAMS, TEAM, model_of_team, rows_of, run, weights_of

torch.set_num_threads(1)
folder = Path(sys.argv[2])
for kind in KINDS_OF_TEAMS:
    model = model_of_team()
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        with torch.no_grad():
            model.lm_head.weight.zero_()  # the first process's weights count
    sharded = []
    monitored = loop.shard
    loop.shard = lambda objective, *rest: (monitored(objective, *rest), sharded.append(objective))
    summary = run(folder / kind, model, rows_of(kind, n=9), **TEAM)
    loop.shard = monitored
    assert len(sharded) == (sys.argv[3] == "fsdp")
    for objective in sharded:
        # Every weight is spread, and each of the two layers is a unit of its own.
        assert all(isinstance(weight, DTensor) for weight in objective.parameters())
        assert sum(isinstance(module, FSDPModule) for module in objective.modules()) == 3
    for weight in model.parameters():
        assert type(weight) is torch.nn.Parameter and weight.device.type == "cpu", weight
    curve = [[log.loss, log.grad_norm] for log in summary.curve]
    told = {"curve": curve, "weights": weights_of(model).tolist(), "size": torch.distributed.get_world_size()}
    (folder / f"{kind}-{torch.distributed.get_rank()}.json").write_text(json.dumps(told))
torch.distributed.destroy_process_group()
"""
KINDS_OF_TEAMS = ["forward-kl", "alm"]
TEAM = {"checkpoint_s": 1e-9, "max_tokens_per_pass": 40, "head": "chunked"}
ENGINES = {
    "ddp": {},
    "fsdp": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    },
}


def model_of_team() -> PreTrainedModel:
    return tiny("llama")


def weights_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten()[:50] for weight in model.parameters()]).double()


def launch(folder: Path, engine: str) -> subprocess.CompletedProcess[str]:
    """Train in two processes, as `accelerate launch` starts them where there are several devices."""
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(folder / "script.py"), str(Path(__file__).parent), str(folder), engine]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **ENGINES[engine]}
    return subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_train_as_one(tmp_path, engine):
    ended = launch(tmp_path / engine, engine)
    assert ended.returncode == 0, ended.stderr[-3000:]
    for kind in KINDS_OF_TEAMS:
        model = model_of_team()
        alone = run(tmp_path / "alone" / kind, model, rows_of(kind, n=9), **TEAM)
        for rank in (0, 1):
            told = json.loads((tmp_path / engine / f"{kind}-{rank}.json").read_text())
            assert told["size"] == 2
            # Gradients are compared as well: AdamW forgives a wrong factor.
            for (loss, grad_norm), log in zip(told["curve"], alone.curve, strict=True):
                assert loss == pytest.approx(log.loss, abs=1e-4)
                assert grad_norm == pytest.approx(log.grad_norm, rel=1e-4)
            weights = torch.tensor(told["weights"], dtype=torch.float64)
            assert (weights - weights_of(model)).norm() < 1e-4 * weights.norm()
        # What one process saved, the other kind of run can go on from.
        theirs, ours = (
            load_file(tmp_path / part / kind / "checkpoint" / "weights.safetensors")
            for part in (engine, "alone")
        )
        assert theirs.keys() == ours.keys()
        for name, weight in ours.items():
            torch.testing.assert_close(theirs[name], weight, rtol=1e-3, atol=1e-4)

"""Training equals what transformers and peft say it is: losses, gradients, adapters, restarts, processes."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import PartialState
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from transfuse.errors import ModelError, RecipeError, TrainingError
from transfuse.train.adapters import attach_lora, load_adapter, save_adapter
from transfuse.train.batches import TrainingPass, TrainingRow, packed_passes, padded_passes
from transfuse.train.loop import train
from transfuse.train.objective import AnswerLoss, move_pass
from transfuse.train.settings import LoraSettings, TrainSettings
from transfuse.train.summary import Progress, StepLog, TrainingSummary

CPU, PAD = torch.device("cpu"), 0

SIZES = {
    "vocab_size": 64,
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

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=32)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **GROUPED,
            head_dim=8,
            sliding_window=32,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
}


def seeded(make: Callable[[], PreTrainedModel], seed: int = 0) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def tiny(name: str = "llama", seed: int = 0) -> PreTrainedModel:
    return seeded(MODELS[name], seed)


def chat_rows(n: int, seed: int = 0) -> list[TrainingRow]:
    """Rows with a common beginning of ten tokens, as a chat template gives them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n_tokens: int) -> list[int]:
        return torch.randint(3, 64, (n_tokens,), generator=generator).tolist()

    beginning = draw(10)
    sizes = [(1 + i % 5, 1 + i % 4) for i in range(n)]
    return [TrainingRow(beginning + draw(q) + draw(a), 10 + q) for q, a in sizes]


def text_rows(n: int, n_tokens: int = 6) -> list[TrainingRow]:
    """Plain texts, shorter than any row of `chat_rows`, which share nothing."""
    return [TrainingRow([3 + (7 * i + 5 * j) % 61 for j in range(n_tokens)], 1) for i in range(n)]


ROWS = [*chat_rows(6), *text_rows(2), chat_rows(1)[0]]  # the last one repeats the first


def gradients(model: PreTrainedModel) -> torch.Tensor:
    grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in model.parameters()]
    model.zero_grad()
    return torch.cat([grad.flatten() for grad in grads]).double()


def relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module", params=MODELS)
def reference(request) -> tuple[PreTrainedModel, float, torch.Tensor]:
    """A model, and the summed loss and its gradient by transformers' own loss of each row alone."""
    model = tiny(request.param)
    total = 0.0
    for row in ROWS:
        token_ids = torch.tensor([row.token_ids])
        labels = token_ids.clone()
        labels[:, : row.n_prompt] = -100
        nll_nats = model(input_ids=token_ids, labels=labels).loss * (len(row.token_ids) - row.n_prompt)
        nll_nats.backward()
        total += float(nll_nats.detach())
    return model, total, gradients(model)


def passes_of(way: str, max_tokens: int) -> list[TrainingPass]:
    if way == "packed":
        return packed_passes(ROWS, max_tokens)
    return padded_passes(ROWS, max_tokens, PAD)


@pytest.mark.parametrize("max_tokens", [40, 4096])
@pytest.mark.parametrize("way", ["packed", "padded"])
def test_loss_and_gradient_are_those_of_transformers_row_by_row(reference, way, max_tokens):
    model, expected, expected_gradient = reference
    passes = passes_of(way, max_tokens)
    assert (len(passes) > 1) == (max_tokens == 40)
    objective = AnswerLoss(model, torch.float32)
    total = 0.0
    for batch in passes:
        nll_nats = objective(**move_pass(batch, CPU))
        nll_nats.backward()
        total += float(nll_nats.detach())
    assert total == pytest.approx(expected, rel=1e-5)
    assert relative_difference(gradients(model), expected_gradient) < 1e-5


@torch.no_grad()
def test_a_questions_tokens_weigh_less():
    model = tiny()
    row = chat_rows(5)[4]
    weighted = TrainingRow(row.token_ids, 11, row.n_prompt - 11, 0.25)
    log_probs = model(torch.tensor([row.token_ids])).logits[0].log_softmax(-1)
    nll_nats = [-float(log_probs[i - 1, row.token_ids[i]]) for i in range(11, len(row.token_ids))]
    n_question = row.n_prompt - 11
    expected = 0.25 * sum(nll_nats[:n_question]) + sum(nll_nats[n_question:])
    for batch in [*packed_passes([weighted], 99), *padded_passes([weighted], 99, PAD)]:
        assert float(AnswerLoss(model, torch.float32)(**move_pass(batch, CPU))) == pytest.approx(expected)


FULL = {"method": "full", "learning_rate": 1e-3, "n_epochs": 2, "batch_rows": 4}


def run(
    folder: Path,
    model: torch.nn.Module | None = None,
    rows: list[TrainingRow] | None = None,
    *,
    on_step: Callable[[Progress], None] = lambda progress: None,
    compute_dtype: torch.dtype = torch.float32,
    **settings: object,
) -> tuple[torch.nn.Module, TrainingSummary]:
    """Train a tiny model, all weights unless it is given with adapters."""
    model = model if model is not None else tiny()
    summary = train(
        model,
        rows if rows is not None else chat_rows(14),
        TrainSettings(**{**FULL, **settings}),
        seed=5,
        compute_dtype=compute_dtype,
        pad_id=PAD,
        folder=folder,
        on_step=on_step,
    )
    return model, summary


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()]).double()


def with_lora(seed: int = 0, **settings: object) -> PeftModel:
    torch.manual_seed(seed)
    return attach_lora(tiny(), LoraSettings(**{"rank": 4, "alpha": 6.0, **settings}))


def test_a_summary_counts_what_was_done(tmp_path):
    rows, seen = chat_rows(14), []
    model, summary = run(tmp_path, rows=rows, on_step=seen.append)
    n_tokens = sum(len(row.token_ids) for row in rows)
    assert (summary.n_rows, summary.n_steps, summary.is_packed) == (14, 8, True)
    assert summary.n_tokens == 2 * n_tokens == sum(log.tokens for log in summary.curve)
    assert (
        [log.step for log in summary.curve] == [progress.log.step for progress in seen] == list(range(1, 9))
    )
    assert summary.curve[3].epoch == 1
    assert summary.curve[-1].loss < summary.curve[0].loss
    assert seen[-1].seconds_left == 0
    assert not model.training


def test_the_first_loss_is_the_mean_over_the_steps_tokens(tmp_path):
    rows = ROWS
    _, summary = run(tmp_path, rows=rows, batch_rows=len(rows), n_epochs=1)
    total, n_targets = 0.0, 0
    for row in rows:
        labels = torch.tensor([[-100] * row.n_prompt + row.token_ids[row.n_prompt :]])
        n_row = len(row.token_ids) - row.n_prompt
        total += tiny()(torch.tensor([row.token_ids]), labels=labels).loss.item() * n_row
        n_targets += n_row
    assert summary.curve[0].loss == pytest.approx(total / n_targets, rel=1e-5)


def test_a_budget_of_tokens_repeats_epochs_and_lays_the_schedule_out_over_its_steps(tmp_path):
    rows = chat_rows(14)
    per_epoch = sum(len(row.token_ids) for row in rows)
    budget = 2 * per_epoch + per_epoch // 3
    settings = {"schedule": "linear", "warmup_share": 0.0, "learning_rate": 1e-2}
    _, summary = run(tmp_path / "budget", rows=rows, n_tokens=budget, **settings)
    n_steps = len(summary.curve)
    assert 8 < n_steps == summary.n_steps < 12
    assert summary.n_tokens - summary.curve[-1].tokens < budget <= summary.n_tokens
    expected = [1e-2 * (1 - step / n_steps) for step in range(n_steps)]
    assert [log.learning_rate for log in summary.curve] == pytest.approx(expected)
    # The same rows in the same steps as a training by epochs.
    _, epochs = run(tmp_path / "epochs", rows=rows, n_epochs=3, **settings)
    assert [log.tokens for log in summary.curve] == [log.tokens for log in epochs.curve[:n_steps]]


# Adapters


@pytest.fixture(scope="module")
def trained_adapter(tmp_path_factory) -> tuple[PeftModel, Path]:
    folder = tmp_path_factory.mktemp("adapter")
    model, _ = run(folder, with_lora(), method="lora", learning_rate=1e-2)
    save_adapter(model, folder / "adapter", "org/base")  # type: ignore[arg-type]
    return model, folder / "adapter"  # type: ignore[return-value]


TOKENS = torch.tensor([[5, 9, 33, 21, 60, 7]])


# Between this peft and this transformers; our own loading keeps it back.
PLAIN_PEFT_WARNS = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@PLAIN_PEFT_WARNS
@torch.no_grad()
def test_an_adapter_loads_in_plain_peft_onto_the_untouched_base(trained_adapter):
    model, folder = trained_adapter
    base = tiny()
    untouched = base(TOKENS).logits
    loaded = PeftModel.from_pretrained(base, str(folder)).eval()
    torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits, rtol=1e-5, atol=1e-5)
    assert (loaded(TOKENS).logits - untouched).abs().max() > 0.1  # it learned something
    ours = load_adapter(tiny(), folder)
    assert torch.equal(ours(TOKENS).logits, loaded(TOKENS).logits)
    assert not ours.training


def test_the_bases_weights_are_untouched(trained_adapter):
    model, _ = trained_adapter
    before = weights(tiny())
    after = {
        name.replace("base_model.model.", "").replace("base_layer.", ""): weight
        for name, weight in weights(model).items()
        if "lora_" not in name
    }
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_an_adapter_holds_factors_only(trained_adapter):
    _, folder = trained_adapter
    assert {file.name for file in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("org/base", 4, 6.0)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as opened:
        names = list(opened.keys())
        assert {opened.get_tensor(name).dtype for name in names} == {torch.float32}
    assert len(names) == 2 * 7 * 2  # A and B of seven linear layers in two blocks
    assert all("lora_A" in name or "lora_B" in name for name in names)


@PLAIN_PEFT_WARNS
def test_base_plus_scaled_factors_is_pefts_merge(trained_adapter):
    _, folder = trained_adapter
    factors = load_file(folder / "adapter_model.safetensors")
    merged = weights(PeftModel.from_pretrained(tiny(), str(folder)).merge_and_unload())
    for name, weight in weights(tiny()).items():
        prefix = "base_model.model." + name.removesuffix(".weight")
        if f"{prefix}.lora_A.weight" in factors:
            scaled = 6.0 / 4 * factors[f"{prefix}.lora_B.weight"] @ factors[f"{prefix}.lora_A.weight"]
            assert scaled.abs().max() > 0
            weight = weight + scaled
        torch.testing.assert_close(merged[name], weight, rtol=1e-5, atol=1e-6)


def test_at_the_start_the_function_is_the_bases():
    assert torch.equal(with_lora().eval()(TOKENS).logits, tiny()(TOKENS).logits)


def test_modules_that_are_not_there_are_refused():
    with pytest.raises(TrainingError, match=r"train\.lora\.targets: \['c_attn'\] do not fit the model"):
        with_lora(targets=["c_attn"])


def test_adapters_that_cannot_be_loaded_are_refused(trained_adapter, tmp_path):
    _, folder = trained_adapter
    with pytest.raises(ModelError, match=r"found no adapter_config\.json"):
        load_adapter(tiny(), tmp_path)
    (tmp_path / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    with pytest.raises(ModelError, match="found none"):
        load_adapter(tiny(), tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="which is a pickle"):
        load_adapter(tiny(), tmp_path)
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="the adapter is damaged"):
        load_adapter(tiny(), tmp_path)
    wider = seeded(lambda: LlamaForCausalLM(LlamaConfig(**{**GROUPED, "hidden_size": 64})))
    with pytest.raises(ModelError, match="does not fit the model"):
        load_adapter(wider, folder)


# Restarts


class Killed(BaseException):
    """What ends a process from outside."""


def kill_at(step: int) -> Callable[[Progress], None]:
    def kill(progress: Progress) -> None:
        if progress.log.step == step:
            raise Killed

    return kill


@pytest.mark.parametrize("packing", ["on", "off"])
@pytest.mark.parametrize(("method", "length"), [("lora", {}), ("full", {}), ("full", {"n_tokens": 500})])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, method, packing, length):
    settings = {"method": method, "packing": packing, "schedule": "linear", "weight_decay": 0.1, **length}

    def fresh(seed: int) -> torch.nn.Module:
        return with_lora(seed, dropout=0.3) if method == "lora" else tiny(seed=seed)

    model, whole = run(tmp_path / "whole", fresh(0), **settings)
    assert len(whole.curve) == (10 if length else 8)
    for step in (3, 6):  # in the first epoch, and in the second one; each time one step after its checkpoint
        with pytest.raises(Killed):
            run(tmp_path / "killed", fresh(0), on_step=kill_at(step), checkpoint_s=1e-9, **settings)
    started = []
    # Trained weights come from the checkpoint, whatever the new process began with.
    again = fresh(0) if method == "lora" else fresh(1)
    _, resumed = run(tmp_path / "killed", again, on_step=started.append, **settings)
    assert started[0].log.step == 6
    assert resumed.curve == whole.curve
    assert resumed.n_tokens == whole.n_tokens
    assert all(torch.equal(weight, weights(model)[name]) for name, weight in weights(again).items())


def test_a_finished_run_is_not_trained_again(tmp_path):
    model, summary = run(tmp_path, checkpoint_s=1e-9)
    again, resumed = run(tmp_path, checkpoint_s=1e-9)
    assert resumed.curve == summary.curve
    assert torch.equal(flat(again), flat(model))


def test_dropout_is_at_work_and_drawn_from_the_seed(tmp_path):
    with_dropout = [run(tmp_path / str(n), with_lora(dropout=0.5), method="lora")[1].curve for n in range(2)]
    without = run(tmp_path / "none", with_lora(), method="lora")[1].curve
    assert with_dropout[0] == with_dropout[1]
    assert with_dropout[0][1].loss != without[1].loss  # at the first step the adapter adds nothing yet


# The same step, cut differently


@pytest.fixture(scope="module")
def eight_rows_a_step(tmp_path_factory) -> tuple[torch.Tensor, list[StepLog]]:
    model, summary = run(tmp_path_factory.mktemp("whole"), batch_rows=8)
    assert (flat(model) - flat(tiny())).norm() > 0.01
    return flat(model), summary.curve


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_rows": 2, "gradient_accumulation": 4},
        {"batch_rows": 8, "max_tokens_per_pass": 32},
        {"batch_rows": 8, "max_tokens_per_pass": 1},
        {"batch_rows": 8, "gradient_checkpointing": True},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_a_step_does_not_depend_on_how_it_is_cut(tmp_path, eight_rows_a_step, settings):
    expected, curve = eight_rows_a_step
    model, summary = run(tmp_path, **settings)
    assert [log.loss for log in summary.curve] == pytest.approx([log.loss for log in curve], rel=1e-5)
    assert [log.epoch for log in summary.curve] == [log.epoch for log in curve]
    assert relative_difference(flat(model), expected) < 1e-6


def test_padded_steps_do_not_depend_on_their_passes(tmp_path):
    whole, _ = run(tmp_path / "whole", packing="off", batch_rows=8)
    cut, _ = run(tmp_path / "cut", packing="off", batch_rows=8, max_tokens_per_pass=40)
    assert relative_difference(flat(cut), flat(whole)) < 1e-6


def test_packing_changes_no_step(tmp_path):
    packed, summary = run(tmp_path / "packed", rows=ROWS, batch_rows=len(ROWS), n_epochs=3)
    padded, plain = run(tmp_path / "padded", rows=ROWS, batch_rows=len(ROWS), n_epochs=3, packing="off")
    assert (summary.is_packed, plain.is_packed) == (True, False)
    assert [log.loss for log in summary.curve] == pytest.approx([log.loss for log in plain.curve], rel=1e-5)
    assert relative_difference(flat(packed), flat(padded)) < 1e-6


def test_gradients_are_clipped_and_the_learning_rate_follows_its_schedule(tmp_path):
    settings = {"warmup_share": 0.25, "schedule": "linear", "learning_rate": 8e-3}
    _, summary = run(tmp_path / "linear", **settings)
    rates = [0, 4e-3, 8e-3, 8e-3 * 5 / 6, 8e-3 * 4 / 6, 8e-3 * 3 / 6, 8e-3 * 2 / 6, 8e-3 / 6]
    assert [log.learning_rate for log in summary.curve] == pytest.approx(rates)
    _, constant = run(tmp_path / "constant", schedule="constant", warmup_share=0.0)
    assert {log.learning_rate for log in constant.curve} == {1e-3}
    assert constant.curve[0].grad_norm > 1  # as found, before it is scaled down to 1


# Numbers that are not finite


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_damaged_model_stops_at_the_first_step(tmp_path, value):
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[7, 3] = value
    with pytest.raises(TrainingError, match=r"step 1 of 8: expected a finite loss.*there is none"):
        run(tmp_path, model)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_absurd_learning_rate_stops_with_a_finite_checkpoint(tmp_path, method):
    model = with_lora() if method == "lora" else tiny()
    with pytest.raises(TrainingError, match=r"train\.learning_rate") as caught:
        run(tmp_path, model, method=method, learning_rate=1e30, warmup_share=0.0, n_epochs=4)
    assert str(tmp_path / "checkpoint") in str(caught.value)
    for name in ("weights", "optimizer"):
        tensors = load_file(tmp_path / "checkpoint" / f"{name}.safetensors")
        assert tensors
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    progress = json.loads((tmp_path / "checkpoint" / "progress.json").read_text())
    assert progress["curve"]
    assert all(log["loss"] == log["loss"] for log in progress["curve"])


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="expected training rows, got none"):
        run(tmp_path, rows=[])


# Several processes

TWO_PROCESSES = """
import json, sys
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transfuse.train.batches import TrainingRow
from transfuse.train.loop import train
from transfuse.train.settings import TrainSettings

torch.set_num_threads(1)
task = json.loads(Path(sys.argv[1]).read_text())
rows = [TrainingRow(token_ids, n_prompt) for token_ids, n_prompt in task["rows"]]
for packing in ("on", "off"):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**task["config"])).eval()
    settings = TrainSettings(**task["settings"], packing=packing)
    summary = train(model, rows, settings, seed=5, compute_dtype=torch.float32, pad_id=0,
                    folder=Path(sys.argv[2]) / packing, on_step=lambda progress: None)
    total = float(sum(weight.detach().double().abs().sum() for weight in model.parameters()))
    if torch.distributed.get_rank() == 0:
        assert torch.distributed.get_world_size() == 2
        curve = [[log.loss, log.grad_norm] for log in summary.curve]
        (Path(sys.argv[2]) / f"{packing}.json").write_text(json.dumps([curve, total]))
torch.distributed.destroy_process_group()
"""


def test_two_processes_train_as_one(tmp_path):
    rows = chat_rows(13)  # the last step has one row: one of the processes has none
    # Five steps: an epoch of four, and one more.
    length = {"n_tokens": sum(len(row.token_ids) for row in rows) + 20}
    settings = {**FULL, "checkpoint_s": 1e-9, "max_tokens_per_pass": 40, **length}
    task = {"rows": [row[:2] for row in rows], "settings": settings, "config": GROUPED}
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    (tmp_path / "task.json").write_text(json.dumps(task))
    # `accelerate launch` starts several processes by torchrun as well, but not where it is told to use CPUs.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / name) for name in ("script.py", "task.json", "")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    for packing in ("on", "off"):
        curve, total = json.loads((tmp_path / f"{packing}.json").read_text())
        changes = {"packing": packing, "max_tokens_per_pass": 40, **length}
        model, alone = run(tmp_path / f"{packing}-alone", rows=rows, **changes)
        assert len(alone.curve) == 5
        # Gradients are compared as well: AdamW forgives a wrong factor.
        for (loss, grad_norm), log in zip(curve, alone.curve, strict=True):
            assert loss == pytest.approx(log.loss, abs=1e-4)
            assert grad_norm == pytest.approx(log.grad_norm, rel=1e-4)
        assert total == pytest.approx(float(flat(model).abs().sum()), rel=1e-5)


# Formats and trackers


def test_full_fine_tuning_keeps_float32_weights_beside_a_bfloat16_computation(tmp_path):
    before = tiny()
    settings = {"learning_rate": 1e-6, "checkpoint_s": 1e-9, "warmup_share": 0.0}
    model, summary = run(tmp_path, compute_dtype=torch.bfloat16, **settings)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    # A step of a millionth would vanish in bfloat16, whose neighbours are 1/256 apart.
    moved = (flat(model) - flat(before)).abs()
    assert (moved > 0).float().mean() > 0.9
    assert moved.max() < 2e-5
    checkpoint = load_file(tmp_path / "checkpoint" / "weights.safetensors")
    assert {tensor.dtype for tensor in checkpoint.values()} == {torch.float32}
    exact = run(tmp_path / "float32", **settings)[1].curve[0].loss
    assert summary.curve[0].loss != exact
    assert summary.curve[0].loss == pytest.approx(exact, rel=0.02)


def test_tensorboard_is_told_every_step(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    _, summary = run(tmp_path, report_to=["tensorboard"])
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    record = EventAccumulator(str(events.parent))
    record.Reload()
    (name,) = [tag for tag in record.Tags()["scalars"] if tag.endswith("loss")]
    told = [(event.step, event.value) for event in record.Scalars(name)]
    assert told == [(log.step, pytest.approx(log.loss)) for log in summary.curve]


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"train\.report_to: \['tensorbord'\] cannot be used"):
        run(tmp_path, report_to=["tensorbord"])


# Models that cannot be given packed rows


class IgnoresMask(LlamaForCausalLM):
    """Attends to whatever stands before."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        everything = torch.ones_like(input_ids)
        return super().forward(input_ids, everything, position_ids, **kwargs)


class IgnoresPositions(LlamaForCausalLM):
    """Counts positions from the first token of the pass."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        return super().forward(input_ids, attention_mask, **kwargs)


UNPACKABLE: dict[str, Callable[[], PreTrainedModel]] = {
    "state-space": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.3)
    ),
    "ignores-mask": lambda: IgnoresMask(LlamaConfig(**GROUPED)),
    "ignores-positions": lambda: IgnoresPositions(LlamaConfig(**GROUPED)),
    "short-window": lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=12)),
}


@pytest.mark.parametrize("name", UNPACKABLE)
def test_a_model_that_cannot_be_packed_is_found_out(tmp_path, name):
    rows = [*text_rows(4), *chat_rows(8)]  # only the longer ones have a common beginning
    settings = {"rows": rows, "n_epochs": 1, "batch_rows": 6}
    _, summary = run(tmp_path / "auto", seeded(UNPACKABLE[name]), **settings)
    assert not summary.is_packed
    (warning,) = summary.warnings
    assert warning.startswith("Records were not packed: ")
    with pytest.raises(TrainingError, match=r"train\.packing is 'on', but .* set it to auto or off"):
        run(tmp_path / "on", seeded(UNPACKABLE[name]), packing="on", **settings)
    _, off = run(tmp_path / "off", seeded(UNPACKABLE[name]), packing="off", **settings)
    assert off.warnings == []
    assert [dataclasses.astuple(log) for log in off.curve] == [
        dataclasses.astuple(log) for log in summary.curve
    ]


class WantsFlatMask(LlamaForCausalLM):
    """Refuses a mask of its own for every position."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        if attention_mask is not None and attention_mask.dim() > 2:
            raise ValueError("expected a mask of rows and columns\nand nothing else")
        return super().forward(input_ids, attention_mask, position_ids, **kwargs)


def test_a_model_that_refuses_packed_records_is_quoted(tmp_path):
    model = seeded(lambda: WantsFlatMask(LlamaConfig(**GROUPED)))
    model.train()
    _, summary = run(tmp_path, model, [*text_rows(4), *chat_rows(4)], n_epochs=1)
    assert summary.warnings == [
        "Records were not packed: the model refuses packed records (expected a mask of rows and columns)."
    ]


def test_training_goes_where_the_model_is_after_another_device(tmp_path):
    _, first = run(tmp_path / "first", n_epochs=1)
    PartialState().device = torch.device("meta")  # as an earlier training on an accelerator leaves it
    _, second = run(tmp_path / "second", n_epochs=1)
    assert PartialState().device.type == "cpu"
    assert [log.loss for log in second.curve] == [log.loss for log in first.curve]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_can_be_packed_is(tmp_path, name):
    _, summary = run(tmp_path, tiny(name), [*text_rows(4), *chat_rows(4)], n_epochs=1)
    assert summary.is_packed
    assert summary.warnings == []

"""Prompt distillation equals what plain transformers and a dense divergence say it is, and teaches the answers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from transfuse.errors import TrainingError
from transfuse.inject import prompt_distillation
from transfuse.inject.prompt_distillation import DistillationSettings, teacher_rows
from transfuse.io.chat import PromptFormat, prompt_format
from transfuse.train.adapters import attach_lora
from transfuse.train.batches import TrainingRow, packed_passes, padded_passes
from transfuse.train.loop import train
from transfuse.train.objective import AnswerLoss, move_pass
from transfuse.train.saved_rows import load_rows, save_rows
from transfuse.train.settings import LoraSettings, TrainSettings
from transfuse.train.soft_targets import SoftTargets
from transfuse.train.summary import Progress, TrainingSummary
from transfuse.types import QAPair

CPU = torch.device("cpu")

SECTIONS = {
    "cup": "Spain won the cup in 2023.",
    "final": "The final was in Sydney, on 20 August.",
    "goal": "The captain scored in the first half.",
}
ASKED = {
    "cup": [("Who won the cup?", "Spain"), ("When did Spain win?", "in 2023"), ("What was won?", "the cup")],
    "final": [("Where was the final?", "Sydney"), ("When was the final?", "20 August")],
    "goal": [("Who scored?", "the captain"), ("When was the goal?", "first half")],
}
PAIRS = [
    QAPair(f"{source}{n}", "token", source, "train", question, answer)
    for source, asked in ASKED.items()
    for n, (question, answer) in enumerate(asked)
]
CONTEXTS = {pair.id: SECTIONS[pair.source] for pair in PAIRS}
ANSWERS = {pair.id: pair.answer for pair in PAIRS}


@pytest.fixture(scope="module")
def folder(make_model_folder: Callable) -> Path:
    # Weights spread wide: what stands before matters.
    return make_model_folder("distilled", initializer_range=0.2)


@pytest.fixture(scope="module")
def load(folder: Path) -> Callable[[], PreTrainedModel]:
    return lambda: AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def prompts(folder: Path) -> PromptFormat:
    return prompt_format(AutoTokenizer.from_pretrained(folder))


def rows_of(model: PreTrainedModel, prompts: PromptFormat, **settings: object) -> list[TrainingRow]:
    rows, dropped = teacher_rows(
        model,
        prompts,
        PAIRS,
        CONTEXTS,
        ANSWERS,
        DistillationSettings(**settings),  # type: ignore[arg-type]
        compute_dtype=torch.float32,
        max_length_tokens=256,
    )
    assert dropped == []
    return rows


@torch.no_grad()
def answer_logits(
    model: torch.nn.Module, prompts: PromptFormat, pair: QAPair, context: str | None
) -> torch.Tensor:
    """The logits that predict each token of the answer, by transformers alone."""
    prompt_ids, answer_ids = prompts.encode_pair(pair.question, pair.answer, context=context)
    logits = model(torch.tensor([prompt_ids + answer_ids])).logits[0]
    return logits[len(prompt_ids) - 1 : -1]


def dense_kl(
    teacher: torch.nn.Module, student: torch.nn.Module, prompts: PromptFormat, temperature: float = 1.0
) -> torch.Tensor:
    """KL(teacher with the section || student without) at every token of every answer."""
    values = []
    for pair in PAIRS:
        with_section = answer_logits(teacher, prompts, pair, CONTEXTS[pair.id]) / temperature
        without = answer_logits(student, prompts, pair, None) / temperature
        log_probs = with_section.log_softmax(1)
        values.append((log_probs.exp() * (log_probs - without.log_softmax(1))).sum(1))
    return torch.cat(values)


def run(
    folder: Path,
    model: torch.nn.Module,
    rows: list[TrainingRow],
    prompts: PromptFormat,
    on_step: Callable[[Progress], None] = lambda progress: None,
    **settings: object,
) -> TrainingSummary:
    return train(
        model,
        rows,
        TrainSettings(**{"n_epochs": 1, "batch_rows": len(rows), "learning_rate": 1e-2, **settings}),  # type: ignore[arg-type]
        seed=5,
        compute_dtype=torch.float32,
        pad_id=prompts.pad_id,
        folder=folder,
        on_step=on_step,
    )


@pytest.mark.parametrize("packing", ["on", "off"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_first_loss_is_the_dense_divergence_by_transformers(
    tmp_path, load, prompts, packing, temperature
):
    rows = rows_of(load(), prompts, top_k=10_000, temperature=temperature)
    expected = dense_kl(load(), load(), prompts, temperature)
    assert expected.mean() > 0.05
    student = attach_lora(load(), LoraSettings())
    summary = run(tmp_path, student, rows, prompts, packing=packing)
    assert summary.is_packed == (packing == "on")
    assert summary.curve[0].loss == pytest.approx(temperature**2 * float(expected.mean()), abs=1e-4)


def test_fewer_kept_tokens_give_a_lower_bound(tmp_path, load, prompts):
    expected = float(dense_kl(load(), load(), prompts).mean())
    losses = [
        run(tmp_path / str(k), load(), rows_of(load(), prompts, top_k=k), prompts, method="full")
        .curve[0]
        .loss
        for k in (2, 50, 200)
    ]
    assert losses == sorted(losses)
    assert 0 < losses[0] < 0.7 * expected
    assert 0.8 * expected < losses[2] < expected


def mixed_rows(load: Callable[[], PreTrainedModel], prompts: PromptFormat) -> list[TrainingRow]:
    """Rows with soft targets of several kinds, and the same rows with none."""
    rows = rows_of(load(), prompts, top_k=7)
    tempered = rows_of(load(), prompts, top_k=7, temperature=1.7, hard_weight=0.3)
    # With a token of the question beside the answer's.
    weighted = [TrainingRow(row.token_ids, row.n_prompt - 1, 1, 0.5) for row in rows[:3]]
    return [*rows[:3], *tempered[3:], *weighted, rows[4]._replace(soft=None)]


def loss_of_row(model: torch.nn.Module, row: TrainingRow) -> torch.Tensor:
    """What a row costs, by transformers and torch's own divergence over k + 1 outcomes."""
    logits = model(torch.tensor([row.token_ids])).logits[0, row.n_prompt - 1 : -1]
    weights = torch.tensor(row.weights)
    nll_nats = torch.nn.functional.cross_entropy(
        logits, torch.tensor(row.token_ids[row.n_prompt :]), reduction="none"
    )
    if row.soft is None:
        return nll_nats @ weights
    student = (logits / row.soft.temperature).softmax(1).gather(1, row.soft.token_ids.long())
    lumped = [torch.cat([p, 1 - p.sum(1, keepdim=True)], 1) for p in (student, row.soft.log_probs.exp())]
    kl = torch.nn.functional.kl_div(lumped[0].log(), lumped[1], reduction="none").sum(1)
    hard = row.soft.hard_weight
    return (hard * nll_nats + (1 - hard) * row.soft.temperature**2 * kl) @ weights


def gradients(model: torch.nn.Module) -> torch.Tensor:
    grads = torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None]).double()
    model.zero_grad()
    return grads


@pytest.mark.parametrize("max_tokens", [70, 4096])
@pytest.mark.parametrize("way", ["packed", "padded"])
def test_loss_and_gradient_of_mixed_rows_are_those_row_by_row(load, prompts, way, max_tokens):
    model, rows = load(), mixed_rows(load, prompts)
    expected = torch.stack([loss_of_row(model, row) for row in rows]).sum()
    expected.backward()
    expected_gradient = gradients(model)
    passes = (
        packed_passes(rows, max_tokens)
        if way == "packed"
        else padded_passes(rows, max_tokens, prompts.pad_id)
    )
    assert (len(passes) > 1) == (max_tokens == 70)
    objective = AnswerLoss(model, torch.float32)
    total = torch.zeros(())
    for batch in passes:
        loss_nats = objective(**move_pass(batch, CPU))
        loss_nats.backward()
        total += loss_nats.detach()
    assert float(total) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert (gradients(model) - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_a_teachers_targets_are_those_of_transformers_row_by_row(load, prompts, packing, monkeypatch):
    if packing == "padded":
        monkeypatch.setattr(prompt_distillation, "why_not_packed", lambda *_: "padded for comparison")
    monkeypatch.setattr(prompt_distillation, "MAX_TOKENS_PER_PASS", 150)  # the questions on the cup take two
    model = load()
    for row, pair in zip(rows_of(model, prompts, top_k=5, temperature=0.8), PAIRS, strict=True):
        logits = answer_logits(model, prompts, pair, CONTEXTS[pair.id])
        expected = (logits / 0.8).log_softmax(1).topk(5)
        assert row.soft is not None
        assert torch.equal(row.soft.token_ids.long(), expected.indices)
        torch.testing.assert_close(row.soft.log_probs, expected.values, rtol=1e-4, atol=1e-4)


def test_training_brings_the_answers_without_the_section_to_those_with_it(tmp_path, load, prompts):
    rows = rows_of(load(), prompts, top_k=64)
    before = float(dense_kl(load(), load(), prompts).mean())
    torch.manual_seed(0)
    student = attach_lora(load(), LoraSettings(rank=8))
    summary = run(tmp_path, student, rows, prompts, n_epochs=60)
    after = float(dense_kl(load(), student, prompts).mean())
    assert after < 0.1 * before
    assert summary.curve[-1].loss < 0.1 * summary.curve[0].loss

    def n_agreeing(model: torch.nn.Module) -> int:
        return sum(
            int(
                (
                    answer_logits(load(), prompts, p, CONTEXTS[p.id]).argmax(1)
                    == answer_logits(model, prompts, p, None).argmax(1)
                ).sum()
            )
            for p in PAIRS
        )

    n_tokens = sum(row.n_learned for row in rows)
    assert n_agreeing(load()) < 0.6 * n_tokens
    assert n_agreeing(student) > 0.8 * n_tokens
    # It is the teacher's distribution that is learned, not the tokens along which it was read.
    with torch.no_grad():
        nll_nats = sum(float(loss_of_row(student, row._replace(soft=None))) for row in rows)
    assert nll_nats / n_tokens > 4


class Killed(BaseException):
    """What ends a process from outside."""


@pytest.mark.parametrize("packing", ["on", "off"])
def test_a_killed_distillation_goes_on_to_the_same_bits_from_saved_rows(tmp_path, load, prompts, packing):
    rows = mixed_rows(load, prompts)
    save_rows(tmp_path / "rows.safetensors", rows)
    saved, _ = load_rows(tmp_path / "rows.safetensors")
    settings = {"packing": packing, "batch_rows": 4, "n_epochs": 2, "checkpoint_s": 1e-9, "method": "full"}

    def kill(progress: Progress) -> None:
        if progress.log.step == 5:
            raise Killed

    whole, again = load(), load()
    expected = run(tmp_path / "whole", whole, rows, prompts, **settings)
    with pytest.raises(Killed):
        run(tmp_path / "killed", load(), rows, prompts, kill, **settings)
    resumed = run(tmp_path / "killed", again, saved, prompts, **settings)
    assert len(expected.curve) == 6
    assert resumed.curve == expected.curve
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))


def test_soft_targets_of_different_sizes_are_refused_before_training(tmp_path, load, prompts):
    rows = rows_of(load(), prompts, top_k=7)
    other = rows_of(load(), prompts, top_k=8)[0]
    with pytest.raises(TrainingError, match=r"x 7 kept tokens, got .* x 8; make .* the same top_k"):
        run(tmp_path, load(), [*rows, other], prompts)


def test_a_soft_target_that_is_certain_is_a_hard_one(tmp_path, load, prompts):
    # One kept token of probability 1 is an ordinary label: the same losses, step by step.
    hard = [row._replace(soft=None) for row in rows_of(load(), prompts)]
    certain = [
        row._replace(
            soft=SoftTargets(
                torch.tensor(row.token_ids[row.n_prompt :], dtype=torch.int32)[:, None],
                torch.zeros(row.n_learned, 1),
            )
        )
        for row in hard
    ]
    curves = [
        run(tmp_path / str(n), load(), rows, prompts, method="full", n_epochs=4).curve
        for n, rows in enumerate((hard, certain))
    ]
    assert [log.loss for log in curves[1]] == pytest.approx([log.loss for log in curves[0]], rel=1e-4)
    assert curves[0][-1].loss < curves[0][0].loss

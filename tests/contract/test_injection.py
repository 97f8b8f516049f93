"""Injection equals the published procedure, PEFT's own PiSSA, and, once saved, what plain PEFT loads."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, convert_to_lora, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from injection_models import RANK, STUDENTS, logits, module_names, random_factors, student
from transfuse.recipes.ask import open_conversation
from transfuse.train.adapters import load_adapter, merge_adapter_weights
from transfuse.train.batches import TrainingRow
from transfuse.train.folded_adapters import save_folded_adapter
from transfuse.train.loop import train
from transfuse.train.settings import LoraSettings, TrainSettings
from transfuse.train.starting_controls import pissa_factors
from transfuse.train.starting_factors import (
    Factors,
    attach_starting_factors,
    learned_delta,
    lora_layers,
)
from transfuse.train.summary import Progress, TrainingSummary

UNTIED = "llama"


def rows(n: int = 12) -> list[TrainingRow]:
    generator = torch.Generator().manual_seed(0)
    return [
        TrainingRow(torch.randint(3, 64, (8 + i % 3,), generator=generator).tolist(), 3) for i in range(n)
    ]


def run(
    folder: Path,
    model: nn.Module,
    *,
    on_step: Callable[[Progress], None] = lambda progress: None,
    compute_dtype: torch.dtype = torch.float32,
    **settings: object,
) -> TrainingSummary:
    chosen = {"n_epochs": 2, "batch_rows": 3, "learning_rate": 5e-3, **settings}
    return train(
        model,
        rows(),
        TrainSettings(**chosen),
        seed=5,
        compute_dtype=compute_dtype,
        pad_id=0,
        folder=folder,
        on_step=on_step,
    )


def started(name: str = UNTIED, factors: dict[str, Factors] | None = None, **settings: object) -> PeftModel:
    model = student(name)
    chosen = LoraSettings(**{"rank": RANK, "alpha": 6.0, **settings})
    return attach_starting_factors(model, chosen, factors or random_factors(model))


def trained_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


@contextmanager
def plain_peft() -> Iterator[None]:
    """PEFT without this package: a deprecation in transformers, and what it says of adapters of tied weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`")
        yield


# The published procedure


def as_published(factors: dict[str, Factors], alpha: float) -> PeftModel:
    """W - B0 A0 in place of the weights, and PEFT's plain LoRA that starts at B0 A0 on it."""
    model = student()
    with torch.no_grad():
        for name, pair in factors.items():
            model.get_submodule(name).weight -= pair.up @ pair.down
    config = LoraConfig(r=RANK, lora_alpha=alpha, target_modules=list(factors), task_type="CAUSAL_LM")
    with plain_peft():
        adapted = get_peft_model(model, config)
    scale = (alpha / RANK) ** 0.5
    with torch.no_grad():
        for name, pair in factors.items():
            layer = model.get_submodule(name)
            if "default" in layer.lora_embedding_A:
                layer.lora_embedding_A["default"].copy_(pair.up.T / scale)
                layer.lora_embedding_B["default"].copy_(pair.down.T / scale)
            else:
                layer.lora_A["default"].weight.copy_(pair.down / scale)
                layer.lora_B["default"].weight.copy_(pair.up / scale)
    return adapted


@pytest.mark.parametrize("alpha", [4.0, 6.0])
def test_training_is_the_published_procedures_step_by_step(tmp_path, alpha):
    factors = random_factors(student())
    published, own = as_published(factors, alpha), started(factors=factors, alpha=alpha)
    torch.testing.assert_close(logits(published), logits(student()), rtol=0, atol=5e-4)
    assert torch.equal(logits(own), logits(student()))
    expected = run(tmp_path / "published", published)
    summary = run(tmp_path / "own", own)
    assert summary.n_steps == 8
    assert summary.curve[-1].loss < 0.95 * summary.curve[0].loss
    assert [log.loss for log in summary.curve] == pytest.approx(
        [log.loss for log in expected.curve], abs=1e-4
    )
    assert [log.grad_norm for log in summary.curve] == pytest.approx(
        [log.grad_norm for log in expected.curve], rel=1e-3
    )
    reference = trained_weights(published)
    assert trained_weights(own).keys() == reference.keys()
    for name, weight in trained_weights(own).items():
        torch.testing.assert_close(weight, reference[name], rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(logits(own), logits(published), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("alpha", [4.0, 6.0])
def test_pissa_is_pefts_pissa(tmp_path, alpha):
    names = [name for name in module_names(student()) if name != "model.embed_tokens"]  # PEFT cannot do those
    model = student()
    config = LoraConfig(
        r=RANK, lora_alpha=alpha, target_modules=names, init_lora_weights="pissa", task_type="CAUSAL_LM"
    )
    with plain_peft():
        reference = get_peft_model(model, config)
    factors = pissa_factors(student(), names, RANK, torch.Generator())
    own = started(factors=factors, alpha=alpha)
    for name, weight in trained_weights(own).items():
        torch.testing.assert_close(weight, trained_weights(reference)[name])
    expected = run(tmp_path / "peft", reference)
    summary = run(tmp_path / "own", own)
    assert [log.loss for log in summary.curve] == pytest.approx(
        [log.loss for log in expected.curve], abs=1e-4
    )
    for name, layer in lora_layers(own).items():
        delta = learned_delta(layer)
        weight = student().get_submodule(name).weight.detach() + (delta.up @ delta.down).float()
        other = model.get_submodule(name)
        changed = other.base_layer.weight + other.get_delta_weight("default")
        torch.testing.assert_close(weight, changed.detach(), rtol=1e-3, atol=1e-3)


# Saved adapters


@pytest.mark.parametrize("name", STUDENTS)
def test_plain_peft_loads_what_was_trained_onto_the_untouched_base(tmp_path, name):
    model = started(name, dropout=0.1)
    run(tmp_path / "training", model)
    expected = logits(model)
    assert (expected - logits(student(name))).abs().max() > 0.1
    report = save_folded_adapter(model, tmp_path / "adapter", "some/base")
    assert (report.rank, report.relative_error) == (2 * RANK, pytest.approx(0, abs=1e-6))
    with plain_peft():
        loaded = PeftModel.from_pretrained(student(name), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-4)
    own = load_adapter(student(name), tmp_path / "adapter")  # warnings are errors here
    assert torch.equal(logits(own), logits(loaded))
    torch.testing.assert_close(logits(merge_adapter_weights(own)), expected, rtol=0, atol=1e-4)
    if not student(name).config.tie_word_embeddings:
        torch.testing.assert_close(logits(loaded.merge_and_unload()), expected, rtol=0, atol=1e-4)


def test_pefts_own_merge_puts_both_differences_into_tied_weights(tmp_path):
    # Why `merge_adapter_weights` separates them; should PEFT do so one day, this fails.
    model = started("llama-tied")
    run(tmp_path / "training", model)
    save_folded_adapter(model, tmp_path / "adapter", "some/base")
    loaded = load_adapter(student("llama-tied"), tmp_path / "adapter")
    with plain_peft():
        merged = loaded.merge_and_unload()
    assert (logits(merged) - logits(model)).abs().max() > 0.1


def test_the_command_ask_answers_with_the_folded_adapter(tmp_path, tiny_model_folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    adapted = attach_starting_factors(model, LoraSettings(rank=RANK), random_factors(model))
    with torch.no_grad():
        for weight in trained_weights(adapted).values():
            weight += 0.1
    save_folded_adapter(adapted, tmp_path, str(tiny_model_folder))
    with_adapter = open_conversation(str(tiny_model_folder), tmp_path, precision="float32", max_new_tokens=4)
    without = open_conversation(str(tiny_model_folder), None, precision="float32", max_new_tokens=4)
    assert with_adapter.answer("Who won the cup?") != without.answer("Who won the cup?")


def test_pefts_conversions_lose_embeddings_or_refuse_them(tmp_path):
    # Why there is a fold of our own; should PEFT do better one day, this fails.
    with plain_peft():
        model = get_peft_model(student(), LoraConfig(r=RANK, target_modules=["embed_tokens", "lm_head"]))
    model.save_pretrained(str(tmp_path / "start"), save_embedding_layers=False)
    with torch.no_grad():
        for weight in trained_weights(model).values():
            weight += 0.1
    with plain_peft():
        model.save_pretrained(
            str(tmp_path / "end"),
            save_embedding_layers=False,
            path_initial_model_for_weight_conversion=str(tmp_path / "start"),
        )
    converted = load_file(tmp_path / "end" / "adapter_model.safetensors")
    assert {name.split(".lora_")[0] for name in converted} == {"base_model.model.lm_head"}
    assert len(load_file(tmp_path / "start" / "adapter_model.safetensors")) == 4
    # The other one refuses them.
    with plain_peft(), pytest.raises(TypeError, match=r"do not support LoRA conversion: .*Embedding"):
        convert_to_lora(model, rank=RANK)


# Restarts


class Killed(BaseException):
    """What ends a process from outside."""


def test_a_killed_run_goes_on_to_the_same_bits_and_stores_what_trains_only(tmp_path):
    whole = started(dropout=0.3)
    curve = run(tmp_path / "whole", whole).curve

    def kill(progress: Progress) -> None:
        if progress.log.step == 4:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "killed", started(dropout=0.3), on_step=kill, checkpoint_s=1e-9)
    stored = load_file(tmp_path / "killed" / "checkpoint" / "weights.safetensors")
    assert stored.keys() == trained_weights(whole).keys()
    assert not any("frozen_start" in name for name in stored)
    again, steps = started(dropout=0.3), []
    resumed = run(tmp_path / "killed", again, on_step=steps.append)
    assert steps[0].log.step == 4
    assert resumed.curve == curve
    for name, weight in trained_weights(again).items():
        assert torch.equal(weight, trained_weights(whole)[name])
    save_folded_adapter(whole, tmp_path / "one", "some/base")
    save_folded_adapter(again, tmp_path / "other", "some/base")
    one, other = ((tmp_path / each / "adapter_model.safetensors").read_bytes() for each in ("one", "other"))
    assert one == other


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"max_tokens_per_pass": 12}])
def test_a_step_does_not_depend_on_how_it_is_cut(tmp_path, settings):
    whole, cut = started(), started()
    curve = run(tmp_path / "whole", whole).curve
    other = run(tmp_path / "cut", cut, **settings).curve
    assert [log.loss for log in other] == pytest.approx([log.loss for log in curve], rel=1e-4)


def test_bfloat16_autocast_trains(tmp_path):
    model = started()
    summary = run(tmp_path, model, compute_dtype=torch.bfloat16)
    assert summary.curve[-1].loss < 0.95 * summary.curve[0].loss
    assert {weight.dtype for weight in trained_weights(model).values()} == {torch.float32}


# Quantised students


QUANTISED = {
    "bitsandbytes": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
    "torchao": lambda: TorchAoConfig(int8()),
}


def int8() -> object:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


@pytest.mark.parametrize("package", QUANTISED)
def test_a_quantised_student_starts_at_its_function_and_is_folded(tmp_path, make_model_folder, package):
    # These packages are no dependency: the test runs where they are installed.
    pytest.importorskip(package)
    folder = make_model_folder("quantised", hidden_size=64, num_attention_heads=4)

    def quantised() -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=QUANTISED[package](), dtype=torch.float32
        ).eval()

    tokens = torch.arange(3, 19).view(2, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these packages warn of much
        base, factors = quantised(), random_factors(AutoModelForCausalLM.from_pretrained(folder))
        before = base(tokens).logits
        packed = base.model.layers[0].mlp.up_proj.weight
        assert packed.dtype != torch.float32 or type(packed.data) is not torch.Tensor
        model = attach_starting_factors(base, LoraSettings(rank=RANK), factors).eval()
        assert torch.equal(model(tokens).logits, before)
        with torch.no_grad():
            for weight in trained_weights(model).values():
                weight += 0.02
        model(tokens).logits.sum().backward()
        assert all(
            weight.grad is not None for name, weight in model.named_parameters() if weight.requires_grad
        )
        save_folded_adapter(model, tmp_path, str(folder))
        loaded = PeftModel.from_pretrained(quantised(), str(tmp_path)).eval()
        moved = model(tokens).logits
        assert (moved - before).abs().max() > 0.01
        torch.testing.assert_close(loaded(tokens).logits, moved, rtol=1e-4, atol=1e-4)

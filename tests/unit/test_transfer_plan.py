"""The table that tells beforehand what a transfer will take."""

import io
import json

import pytest
from rich.console import Console

from transfuse.errors import ModelError, RecipeError
from transfuse.recipes import transfer_plan
from transfuse.recipes.transfer_plan import Rates, measured_rates, plan_recipe, plan_transfer_table
from transfuse.recipes.transfer_schema import TransferRecipe

RATES = Rates(flops_per_s=2e9, memory_bytes_per_s=1e9)


@pytest.fixture
def pair(tmp_path):
    """Two folders that hold a configuration each, and nothing else."""
    from transformers import LlamaConfig

    for name, hidden in (("teacher", 64), ("student", 32)):
        LlamaConfig(
            vocab_size=100,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            tie_word_embeddings=False,
            dtype="bfloat16",
        ).save_pretrained(tmp_path / name)
    return str(tmp_path / "teacher"), str(tmp_path / "student")


def printed(table) -> str:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    console.print(table)
    return console.file.getvalue()


def test_the_table_of_a_pair_of_which_only_the_configurations_are_there(pair, monkeypatch) -> None:
    monkeypatch.setattr(transfer_plan, "available_bytes", lambda: 3 * 2**30)
    text = printed(
        plan_transfer_table(*pair, n_train_tokens=10**9, n_arms=2, n_learning_rates=3, n_seeds=2, rates=RATES)
    )
    lines = lines_of(text)
    # 2 x (4 x 64 x 64 + 3 x 128 x 64 + 2 x 64) + 2 x 100 x 64 + 64
    assert lines["Teacher, parameters"] == "95,040"
    assert lines["Teacher on disk"] == "185.6 KiB"
    assert lines["Engine"] == "memory"
    assert lines["Spilled layer inputs and gradients"] == "0.0 KiB"
    assert lines["Trainings of the student"] == "8"
    assert max(map(len, text.splitlines())) <= 80
    told = " ".join(text.split())
    assert "memory and time are estimates, at 2 GFLOP/s and 1.0 GB/s of memory as just measured" in told
    assert "3.0 GiB of memory are free. Parameters" in told


def test_the_table_says_where_memory_does_not_suffice_and_tells_long_times_in_days(pair, monkeypatch) -> None:
    monkeypatch.setattr(transfer_plan, "available_bytes", lambda: 2**20)
    slow = Rates(flops_per_s=1e3, memory_bytes_per_s=1e9)
    text = " ".join(printed(plan_transfer_table(*pair, rates=slow)).split())
    assert "Engine 'stream': 0.0 GiB of memory are free. That is not enough." in text
    assert "days" in text
    assert "Trainings" not in text


def test_a_gguf_teacher_is_loaded_whole(pair, monkeypatch, tmp_path) -> None:
    file = tmp_path / "teacher.gguf"
    file.write_bytes(b"")
    given = transfer_plan.load_config
    monkeypatch.setattr(transfer_plan, "load_config", lambda name, **_: given(name.removesuffix(".gguf")))
    monkeypatch.setattr(transfer_plan, "available_bytes", lambda: 2**20)
    assert "Engine 'memory'" in printed(plan_transfer_table(str(file), pair[1], rates=RATES))


def test_a_recipe_is_planned_by_the_length_of_its_files(pair, tmp_path) -> None:
    rows = [json.dumps({"question": "q" * 40, "answer": "a" * 40})] * 10  # about 21 tokens each
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    recipe = TransferRecipe(
        teacher=pair[0],
        student=pair[1],
        seed=1,
        train_file=tmp_path / "train.jsonl",
        controls=["lora", "pissa"],
        n_seeds=2,
        n_train=5,
    )
    text = printed(plan_recipe(recipe, RATES))
    assert "10 samples of about 21 tokens, rank 16" in text
    lines = lines_of(text)
    assert lines["Trainings of the student"] == "12"  # three arms, three rates and one more seed


def test_the_shape_of_a_new_student_needs_its_teacher(pair, tmp_path) -> None:
    recipe = TransferRecipe(
        student=pair[1], seed=1, extraction=tmp_path, result="model", shape={"n_layers": 1}
    )
    with pytest.raises(RecipeError, match="expected a recipe with a teacher"):
        plan_recipe(recipe, RATES)


def lines_of(text: str) -> dict[str, str]:
    return {line.rpartition("  ")[0].strip(): line.rpartition("  ")[2] for line in text.splitlines()}


def test_without_an_extraction_only_what_is_done_is_planned(pair, tmp_path) -> None:
    rows = [json.dumps({"question": "q" * 40, "answer": "a" * 40})] * 10  # about 10 + 11 tokens each
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    common = {"student": pair[1], "seed": 1, "train_file": tmp_path / "train.jsonl"}
    plain = printed(plan_recipe(TransferRecipe(method="lora", **common), RATES))
    assert "10 training samples of about 21 tokens" in plain
    assert "Extraction" not in plain
    assert "Engine" not in plain
    assert "Memory: " in plain
    assert lines_of(plain)["Trainings of the student"] == "1"

    both = {"method": "online-distillation", "controls": ["offline-distillation"], "learning_rates": [1e-3]}
    distilled = TransferRecipe(teacher=pair[0], **common, **both)
    lines = lines_of(printed(plan_recipe(distilled, RATES)))
    assert "Time of the extraction" not in lines
    assert lines["Answers to be written"] == "10"
    assert lines["Its distributions on disk"] == f"{10 * 11 * 64 * 8 / 2**10:.1f} KiB"
    assert {"Time of its pass over the training samples", "Time to write them, at most"} <= lines.keys()
    half = {"train": {"n_tokens": 105}}
    read = TransferRecipe(teacher=pair[0], **common, **both, **half)
    assert lines_of(printed(plan_recipe(read, RATES)))["Answers to be written"] == "5"
    endpoint = TransferRecipe(
        teacher="openai:strong@http://localhost:1/v1", **common, method="offline-distillation"
    )
    assert lines_of(printed(plan_recipe(endpoint, RATES)))["Requests for them"] == "10"


def test_a_folder_without_a_configuration_is_refused(pair, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty"):
        plan_transfer_table(str(tmp_path / "empty"), pair[1], rates=RATES)


def test_probes_give_rates_that_a_machine_can_have() -> None:
    rates = measured_rates(0.02)
    assert 1e7 < rates.flops_per_s < 1e15
    assert 1e7 < rates.memory_bytes_per_s < 1e14
    assert rates.disk_bytes_per_s == 500e6

"""The parameter route by its command line, on tiny random models."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from saved_cards import metrics_of, read_card

SETTINGS = {
    "precision": "float32",
    "train.n_epochs": 2,
    "train.batch_rows": 4,
    "evaluate.max_new_tokens": 6,
}


class Pair(NamedTuple):
    """A teacher, a student and the files of a task."""

    teacher: Path
    student: Path
    task: Path
    train: Path
    eval: Path


def samples(n: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "id": f"s{number}",
            "messages": [
                {"role": "user", "content": f"How many isles has group {number}?"},
                {
                    "role": "assistant",
                    "content": f"It has {number % 5} and 2. So the answer is {number % 5 + 2}.",
                },
            ],
        }
        for number in range(first, first + n)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pair(make_model_folder: Callable, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("task")
    return Pair(
        make_model_folder(
            "teacher",
            seed=1,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=3,
        ),
        make_model_folder("student"),
        write(folder / "seed.jsonl", samples(5)),
        write(folder / "train.jsonl", samples(20)),
        write(folder / "eval.jsonl", samples(6, first=20)),
    )


@pytest.fixture(scope="session")
def line(pair: Pair) -> Callable[..., list[str]]:
    def arguments(command: str, out: Path, *more: object, **instead: object) -> list[str]:
        files: dict[str, object] = {"teacher": pair.teacher, "student": pair.student, "task": pair.task}
        if command != "extract":
            files |= {"train": pair.train, "eval": pair.eval}
        files |= instead
        words = ["transfer", *([command] if command else []), "--out", str(out), "--rank", "4"]
        words += [
            part for name, value in files.items() if value is not None for part in (f"--{name}", str(value))
        ]
        words += [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
        return [*words, *map(str, more)]

    return arguments


@pytest.fixture(scope="session")
def compared(transfuse: Callable, line: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with controls. Shared: copy it before changing it."""
    out = tmp_path_factory.mktemp("runs") / "compared"
    done = transfuse(
        *line("", out, "--controls", "--set", "n_seeds=2", "--set", "learning_rates=[0.001, 0.01]")
    )
    assert done.code == 0, done.err
    return out


def test_method_and_controls_are_trained_measured_and_compared(compared: Path, read_report: Callable) -> None:
    report = read_report(compared)
    arms = {arm["name"]: arm for arm in report["arms"]}
    assert list(arms) == ["parametric", "lora", "pissa", "random-block", "norm-matched-random"]
    for arm in arms.values():
        assert len(arm["tried"]) == 2
        assert arm["seeds"] == [17, 18]
        best = min(arm["tried"], key=lambda tried: tried["development_bits_per_byte"])
        assert arm["learning_rate"] == best["learning_rate"]
        assert all(run["start_logit_difference"] <= 1e-5 for run in arm["runs"])
    assert {row["name"] for row in report["rows"]} == {"student", "teacher", *arms}
    assert {row["metrics"]["bits_per_byte/answers"]["n"] for row in report["rows"]} == {6, 12}
    against = {(each["metric"], each["against"]) for each in report["comparisons"]}
    assert against == {
        (metric, name) for metric in ("bits_per_byte/answers", "accuracy") for name in list(arms)[1:]
    }
    assert len(report["transfer"]["layers"]["chosen"]) == 2
    assert any("the highest learning rate tried, 0.01, did best" in note for note in report["warnings"])
    assert all(0 < block["energy"] <= 1 for block in report["transfer"]["blocks"])


def test_every_adapter_has_a_card(compared: Path, read_report: Callable, pair: Pair) -> None:
    rows = {row["name"]: row["metrics"] for row in read_report(compared)["rows"]}
    told, text = read_card(compared / "adapter", pair.student.parent)
    assert "arxiv:2310.11451" in told["tags"]
    assert "Teacher: `teacher` (local folder)." in text
    assert metrics_of(told)["accuracy"] == pytest.approx(rows["parametric"]["accuracy"]["value"], abs=1e-6)
    assert "| lora | accuracy |" in text  # a control, and the difference to it
    folders = sorted((compared / "arms").rglob("adapter"))
    assert (
        len(folders) == 15
    )  # five arms: two learning rates with the first seed, the better one with the second
    cards = {folder.parent.relative_to(compared / "arms"): read_card(folder)[1] for folder in folders}
    tried = [card for card in cards.values() if "Bits per byte of the development samples" in card]
    assert len(tried) == 5  # at the learning rate that was not chosen
    assert all("arxiv:2106.09685" in card for name, card in cards.items() if name.parts[0] == "lora")
    for start in ("start", "start-random-block"):
        assert (
            "Nothing here was trained." in read_card(compared / "extraction" / start, pair.student.parent)[1]
        )


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_the_adapter_is_plain_peft_of_twice_the_rank(compared: Path, pair: Pair) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config = json.loads((compared / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 8
    base = AutoModelForCausalLM.from_pretrained(pair.student)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, compared / "adapter")(ids).logits
    assert float((after - before).abs().max()) > 1e-4


def test_the_same_command_again_reuses_every_stage(
    compared: Path, transfuse: Callable, line: Callable, read_report: Callable
) -> None:
    before = read_report(compared)
    done = transfuse(
        *line("", compared, "--controls", "--set", "n_seeds=2", "--set", "learning_rates=[0.001, 0.01]")
    )
    assert done.code == 0, done.err
    after = read_report(compared)
    assert all(stage["reused"] for stage in after["stages"])
    assert after["rows"] == before["rows"]


def test_the_page_shows_layers_arms_and_verdict(compared: Path) -> None:
    page = (compared / "report.html").read_text(encoding="utf-8")
    assert "parametric" in page
    assert page.count("<svg") >= 4


@pytest.mark.parametrize("reduce", ["submatrix", "rows-columns", "random", "leading", "coupled"])
def test_both_engines_extract_the_same(
    transfuse: Callable, line: Callable, read_report: Callable, tmp_path: Path, reduce: str
) -> None:
    from safetensors.torch import load_file

    found = []
    for engine in ("memory", "stream"):
        out = tmp_path / engine
        done = transfuse(*line("extract", out, "--engine", engine, "--reduce", reduce))
        assert done.code == 0, done.err
        weights = load_file(out / "extraction" / "start" / "adapter_model.safetensors")
        found.append((read_report(out)["transfer"], weights))
    (memory, first), (stream, second) = found
    assert memory["layers"]["chosen"] == stream["layers"]["chosen"]
    assert [(b["first_row"], b["first_column"]) for b in memory["blocks"]] == [
        (b["first_row"], b["first_column"]) for b in stream["blocks"]
    ]
    assert first.keys() == second.keys()
    for name, factor in first.items():
        if ".lora_B" in name:  # up to the sign of a direction
            other = second[name]
            up_down = factor @ first[name.replace("lora_B", "lora_A")]
            close = other @ second[name.replace("lora_B", "lora_A")]
            assert float((up_down - close).abs().max()) < 1e-4 * float(up_down.abs().max())


def test_training_from_a_finished_extraction(
    transfuse: Callable, line: Callable, read_report: Callable, pair: Pair, tmp_path: Path
) -> None:
    done = transfuse(*line("extract", tmp_path / "extracted"))
    assert done.code == 0, done.err
    words = line("train", tmp_path / "trained", tmp_path / "extracted", teacher=None, task=None)
    done = transfuse(*words)
    assert done.code == 0, done.err
    report = read_report(tmp_path / "trained")
    assert [arm["name"] for arm in report["arms"]] == ["parametric"]
    assert {row["name"] for row in report["rows"]} == {"student", "parametric"}
    assert "Teacher: `teacher` (local folder)." in read_card(tmp_path / "trained" / "adapter")[1]


def test_a_new_student_of_a_given_shape(
    transfuse: Callable, line: Callable, read_report: Callable, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    shape = "n_layers=2,hidden=32,n_heads=4,n_kv_heads=2,n_neurons=64"
    out = tmp_path / "cloned"
    done = transfuse(
        *line("extract", out, "--as", "model", "--shape", shape, "--reduce", "coupled", student=None)
    )
    assert done.code == 0, done.err
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (32, 2)
    assert "The weights of `teacher` (local folder)." in read_card(out / "model")[1]
    report = read_report(out)
    assert report["title"].startswith("teacher into a new student (n_layers 2, hidden 32, ")
    assert report["transfer"]["rank"] is None  # its blocks are whole


@pytest.mark.parametrize("method", ["online-distillation", "offline-distillation", "lora"])
def test_the_other_paradigms_train_on_the_same_samples(
    transfuse: Callable, line: Callable, read_report: Callable, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "run"
    done = transfuse(
        *line(
            "",
            out,
            "--method",
            method,
            "--set",
            "distillation.max_new_tokens=200",
            "--set",
            "evaluate.teacher=false",
        )
    )
    if method == "offline-distillation" and done.code:
        assert "expected training rows, got none" in done.err  # a random teacher's answers need not end
        return
    assert done.code == 0, done.err
    report = read_report(out)
    assert [row["name"] for row in report["rows"]] == ["student", method]
    assert (out / "adapter").is_dir()


def test_a_task_adapter_is_carried_and_trained(
    transfuse: Callable, line: Callable, read_report: Callable, pair: Pair, tmp_path: Path
) -> None:
    first = transfuse(
        *line("", tmp_path / "teacher-run", "--method", "lora", student=pair.teacher, teacher=None)
    )
    assert first.code == 0, first.err
    adapter = tmp_path / "teacher-run" / "adapter"
    words = line(
        "", tmp_path / "run", "--method", "delta-transport", "--task-adapter", adapter, task=pair.train
    )
    done = transfuse(*words)
    assert done.code == 0, done.err
    report = read_report(tmp_path / "run")
    names = [row["name"] for row in report["rows"]]
    assert names == ["student", "teacher", "delta-transport/untrained", "delta-transport"]
    assert report["transport"]["n_fit_positions"] >= 64


def test_a_killed_run_goes_on_and_ends_the_same(
    start: Callable, line: Callable, transfuse: Callable, read_report: Callable, tmp_path: Path
) -> None:
    more = (
        "--set",
        "train.n_epochs=40",
        "--set",
        "train.checkpoint_s=0.01",
        "--set",
        "evaluate.teacher=false",
    )
    whole = transfuse(*line("", tmp_path / "whole", *more))
    assert whole.code == 0, whole.err
    process = start(*line("", tmp_path / "killed", *more))
    checkpoint = tmp_path / "killed" / "arms" / "parametric"
    deadline = time.monotonic() + 240
    while not list(checkpoint.rglob("checkpoint")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(checkpoint.rglob("checkpoint")), process.stderr.read()  # type: ignore[union-attr]
    done = transfuse(*line("", tmp_path / "killed", *more))
    assert done.code == 0, done.err
    ours, theirs = read_report(tmp_path / "killed"), read_report(tmp_path / "whole")
    assert ours["rows"] == theirs["rows"]
    assert {stage["name"]: stage["reused"] for stage in ours["stages"]}["extraction"]


@pytest.mark.parametrize(
    ("instead", "more", "expected"),
    [
        ({"teacher": "tiny-nothing"}, [], "expected a bundled name"),
        ({"task": "missing.jsonl"}, [], "missing.jsonl"),
        ({"student": None}, [], "expected --student MODEL"),
        ({"train": None}, [], "expected --train FILE"),
        ({}, ["--method", "delta-transport"], "give --task-adapter FOLDER"),
        ({"teacher": None}, [], "give --teacher MODEL"),
        ({}, ["--layers", "0,9"], "layers: expected 2 different numbers in 0..3"),
        ({}, ["--reduce", "sideways"], "extract.reduce"),
        ({}, ["--rank", "33"], "expected at most 16"),
        ({}, ["--engine", "disk"], "sensitivity.engine"),
        ({}, ["--set", "train.method=full"], "train.method is 'full'"),
        ({}, ["--controls", "--set", "development_share=0"], "name one learning rate"),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    transfuse: Callable, line: Callable, tmp_path: Path, instead: dict, more: list, expected: str
) -> None:
    done = transfuse(*line("", tmp_path / "run", *more, **instead))
    assert done.code == 1
    assert done.err.count("Error:") == 1
    assert expected in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "run").exists()


def test_a_teacher_smaller_than_its_student_is_refused_with_both_shapes(
    transfuse: Callable, line: Callable, pair: Pair, tmp_path: Path
) -> None:
    done = transfuse(*line("extract", tmp_path / "run", teacher=pair.student, student=pair.teacher))
    assert done.code == 1
    assert "(32, 32)" in done.err
    assert "(48, 48)" in done.err
    assert not (tmp_path / "run").exists()  # which would refuse the mended command as another run


def test_seed_samples_without_answers_are_refused(
    transfuse: Callable, line: Callable, tmp_path: Path
) -> None:
    rows = [{"messages": [{"role": "user", "content": "Why?"}]}]
    done = transfuse(*line("extract", tmp_path / "run", task=write(tmp_path / "seed.jsonl", rows)))
    assert done.code == 1
    assert "nothing to learn from" in done.err


def test_a_learning_rate_at_which_training_breaks_is_left_out_of_the_sweep(
    transfuse: Callable, line: Callable, read_report: Callable, tmp_path: Path
) -> None:
    more = ("--set", "learning_rates=[0.001, 1.0e+30]", "--set", "evaluate.teacher=false")
    done = transfuse(*line("", tmp_path / "run", "--method", "lora", *more))
    assert done.code == 0, done.err
    assert "lora at learning rate 1e+30 is left out" in done.err
    (arm,) = read_report(tmp_path / "run")["arms"]
    assert arm["learning_rate"] == 0.001
    assert [tried["development_bits_per_byte"] is None for tried in arm["tried"]] == [False, True]
    done = transfuse(*line("", tmp_path / "none", "--method", "lora", "--set", "learning_rates=[1.0e+30]"))
    assert done.code == 1
    assert "expected a finite loss and gradient" in done.err

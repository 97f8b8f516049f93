"""Tokens a second of online distillation against TRL's trainer: same loss, same batches, side by side in one run.

    pip install --no-deps --target TRL trl==1.16.0        # TRL: any folder; nothing of ours needs it
    python benchmarks/distillation_speed.py DATA/tasks/gsm8k/train_1000.jsonl --trl TRL [--steps 4] [--rounds 3]
        [--divergence forward-kl|reverse-kl|jsd] [--method lora|full]

Student: the bundled SmolLM2-135M. Teacher: the same model with a little noise in its weights, so that it costs as
much and has something to teach. The loss is on the answers' tokens alone, all of it on the teacher's distributions
(hard_weight 0), without any sampling by the student:

- `ours`: `transfuse transfer --method online-distillation`: the teacher is asked once, before the first step, and its
  64 likeliest tokens and a tail are kept. Its seconds are told apart; `ours, teacher counted` has all of them in one
  epoch, which is the worst case: later epochs, learning rates and seeds ask it nothing;
- `TRL`: `trl.experimental.gkd.GKDTrainer` with lmbda 0: the teacher runs in every step, over the whole vocabulary. It
  is given tokens that are there already, padded on the right, and no gradient checkpointing.

Rates count the rows' own tokens, padding never. Rounds alternate between the two; medians are compared. Beside the
seconds of the clock stand those of the processor: with OMP_NUM_THREADS=1 they are what counts where others use the
machine. With --check our first loss with every token of the vocabulary kept is printed, which is to be TRL's.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from transfuse.baselines.distillation import online_rows
from transfuse.baselines.distillation_settings import DistillSettings
from transfuse.io.chat import prompt_format
from transfuse.io.hardware import hardware_text
from transfuse.io.models import load_model
from transfuse.io.task_files import load_tasks
from transfuse.train.adapters import attach_lora
from transfuse.train.batches import TrainingRow, row_lengths
from transfuse.train.loop import train
from transfuse.train.settings import LoraSettings, TrainSettings
from transfuse.train.steps import StepPlan
from transfuse.train.task_rows import task_rows

BATCH_ROWS, SEED, RATE, NOISE = 8, 17, 1e-4, 0.02
BETA = {"forward-kl": 0.0, "reverse-kl": 1.0, "jsd": 0.5}
"""What TRL calls them."""


class StepTimes(TrainerCallback):
    """Seconds from the first step's beginning to the last one's end, and the first loss."""

    def __init__(self) -> None:
        self.seconds, self.cpu_s, self.loss = 0.0, 0.0, float("nan")
        self._began, self._cpu_began = 0.0, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """A step begins."""
        self._began = self._began or time.perf_counter()
        self._cpu_began = self._cpu_began or time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """A step ends."""
        self.seconds, self.cpu_s = time.perf_counter() - self._began, time.process_time() - self._cpu_began

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        """Losses are told after each step."""
        if self.loss != self.loss and "loss" in logs:
            self.loss = float(logs["loss"])


def student_of(model_name: str, method: str) -> tuple[PreTrainedModel, Any]:
    """The student, ready to be trained, and its tokenizer."""
    loaded = load_model(model_name, precision="float32", trainable=method == "full")
    torch.manual_seed(SEED)
    model: Any = attach_lora(loaded.model, LoraSettings()) if method == "lora" else loaded.model
    return model, loaded.tokenizer


def teacher_of(model_name: str) -> PreTrainedModel:
    """A model of the same cost that does not agree with the student."""
    teacher = load_model(model_name, precision="float32").model.eval()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, weight in teacher.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight += NOISE * weight.std() * torch.randn(weight.shape, generator=generator)
    return teacher


def by_ours(
    model_name: str, rows: list[TrainingRow], divergence: Any, method: Any, pad_id: int, top_k: int = 64
) -> dict[str, float]:
    """Seconds of the teacher, of the steps, and the first loss."""
    teacher = teacher_of(model_name)
    settings = DistillSettings(divergence=divergence, hard_weight=0.0, top_k=top_k)
    started, cpu_started = time.perf_counter(), time.process_time()
    taught, _ = online_rows(teacher, rows, settings, pad_id=pad_id, compute_dtype=torch.float32)
    teacher_s, teacher_cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    del teacher
    student, _ = student_of(model_name, method)
    cpu_began, marks = time.process_time(), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        summary = train(
            student,
            taught,
            train_settings(method),
            seed=SEED,
            compute_dtype=torch.float32,
            pad_id=pad_id,
            folder=Path(folder),
            on_step=lambda progress: marks.append(time.process_time()),
        )
        cpu_s = marks[-1] - cpu_began
    return {
        "teacher_s": teacher_s,
        "teacher_cpu_s": teacher_cpu_s,
        "seconds": summary.seconds,
        "cpu_s": cpu_s,
        "loss": summary.curve[0].loss,
    }


def train_settings(method: Any) -> TrainSettings:
    """One epoch at a constant rate, so that both optimizers do the same."""
    return TrainSettings(
        method=method,
        n_epochs=1,
        batch_rows=BATCH_ROWS,
        learning_rate=RATE,
        schedule="constant",
        warmup_share=0.0,
        checkpoint_s=1e9,
    )


def by_trl(
    model_name: str, batches: list[list[TrainingRow]], divergence: str, method: str, pad_id: int
) -> dict[str, float]:
    """Seconds of the steps, and the first loss."""
    from datasets import Dataset
    from trl.experimental.gkd import (  # pyright: ignore[reportMissingImports] - on a path given at the start
        GKDConfig,
        GKDTrainer,
    )

    def collated(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        length = max(len(item["input_ids"]) for item in items)
        fill = {"input_ids": pad_id, "labels": -100, "attention_mask": 0}
        return {
            name: torch.tensor([item[name] + [value] * (length - len(item[name])) for item in items])
            for name, value in fill.items()
        }

    data = [
        {
            "input_ids": row.token_ids,
            "labels": [-100] * row.n_prompt + row.token_ids[row.n_prompt :],
            "attention_mask": [1] * len(row.token_ids),
        }
        for batch in batches
        for row in batch
    ]
    student, tokenizer = student_of(model_name, method)
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        settings = GKDConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH_ROWS,
            num_train_epochs=1,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            weight_decay=0.0,
            optim="adamw_torch",
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            lmbda=0.0,
            beta=BETA[divergence],
            temperature=1.0,
            seed=SEED,
        )
        trainer = GKDTrainer(
            model=student,
            teacher_model=teacher_of(model_name),
            args=settings,
            data_collator=collated,
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
            callbacks=[times],
        )
        trainer.train()
    return {"seconds": times.seconds, "cpu_s": times.cpu_s, "loss": times.loss}


def main() -> None:
    """Measure and print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--trl", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--divergence", choices=list(BETA), default="forward-kl")
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--check", action="store_true", help="also our first loss with every token kept")
    arguments = parser.parse_args()
    sys.path.append(str(arguments.trl))
    prompts = prompt_format(load_model(arguments.model, precision="float32").tokenizer)
    items = load_tasks(arguments.file)[: BATCH_ROWS * arguments.steps]
    rows, _ = task_rows(items, prompts, None)
    plan = StepPlan(row_lengths(rows), train_settings(arguments.method), SEED, by_length=False)
    batches = [[rows[index] for index in plan.rows(step)] for step in range(plan.n_steps)]
    n_tokens = sum(row_lengths(rows))
    same = (arguments.divergence, arguments.method, prompts.pad_id)
    print(f"{hardware_text()}; {torch.get_num_threads()} threads")
    print(
        f"{len(rows)} rows of {min(row_lengths(rows))} to {max(row_lengths(rows))} tokens, {n_tokens} together, "
        f"{BATCH_ROWS} a step; {arguments.divergence}, {arguments.method}"
    )
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for number in range(arguments.rounds):
        ours.append(by_ours(arguments.model, rows, *same))
        theirs.append(by_trl(arguments.model, batches, *same))
        print(f"round {number + 1}: ours {ours[-1]}, TRL {theirs[-1]}", flush=True)
    print(f"\n{'':36}tokens/s   of TRL's")
    for unit, name, teacher in (("clock", "seconds", "teacher_s"), ("processor", "cpu_s", "teacher_cpu_s")):
        seconds = {
            "ours": statistics.median(each[name] for each in ours),
            "ours, teacher counted": statistics.median(each[name] + each[teacher] for each in ours),
            "TRL": statistics.median(each[name] for each in theirs),
        }
        for row, each in seconds.items():
            print(f"{row + ', by the ' + unit:36}{n_tokens / each:8.1f}   {seconds['TRL'] / each:.2f}")
    if arguments.check:
        found = by_ours(arguments.model, batches[0], *same, top_k=1 << 20)
        print(
            f"\nfirst loss: TRL {theirs[0]['loss']:.6f}, ours of 64 tokens and a tail {ours[0]['loss']:.6f}, "
            f"of all tokens {found['loss']:.6f}"
        )


if __name__ == "__main__":
    main()

"""Tokens a second of the training loop, side by side in one run.

    python benchmarks/training_speed.py [--steps 6] [--rounds 3]

Compared on the same rows of the bundled model and example, LoRA rank 16, 16 rows a step:

- `loop`: the training loop as recipes use it (packed rows, common beginnings computed once);
- `bare`: a bare PyTorch loop over the same packed passes: forward, loss, backward, clip, AdamW;
- `by length`: padded batches of rows of like length; `padded`: padded batches in random order.

Rates count the rows' own tokens, padding never. Rounds alternate between the variants; medians are compared.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from transfuse.inject.records import RecordSettings, training_rows
from transfuse.io.chat import prompt_format
from transfuse.io.hardware import hardware_text
from transfuse.io.models import load_model
from transfuse.recipes.inject_knowledge import read_sections, select_knowledge
from transfuse.recipes.schema import load_recipe
from transfuse.train.adapters import attach_lora
from transfuse.train.batches import TrainingPass, TrainingRow, packed_passes, padded_passes
from transfuse.train.loop import train
from transfuse.train.objective import AnswerLoss, move_pass
from transfuse.train.settings import LoraSettings, TrainSettings
from transfuse.train.steps import plan_epoch

RECIPE = Path(__file__).parents[1] / "examples" / "orvessa" / "inject.yaml"


def bare_loop(
    objective: AnswerLoss, batches: list[list[TrainingPass]], n_targets: list[int], device: torch.device
) -> float:
    """Seconds of a bare PyTorch loop over given passes."""
    weights = [weight for weight in objective.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    objective.train()
    started = time.perf_counter()
    for passes, n in zip(batches, n_targets, strict=True):
        for batch in passes:
            (objective(**move_pass(batch, device)) / n).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    recipe = load_recipe(RECIPE)
    knowledge, _ = select_knowledge(recipe, *read_sections(recipe))
    loaded = load_model(recipe.model)
    prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
    pairs, settings = knowledge.selection.train, TrainSettings(n_epochs=1)
    rows, _ = training_rows(pairs, [], RecordSettings(), prompts, max_length_tokens=None, seed=0)
    torch.manual_seed(0)
    model = attach_lora(loaded.model, LoraSettings())
    objective = AnswerLoss(model, loaded.precision)
    lengths = [len(row.token_ids) for row in rows]

    def batches_of(by_length: bool) -> list[list[TrainingRow]]:
        generator = torch.Generator().manual_seed(0)
        plan = plan_epoch(lengths, settings.batch_rows, by_length=by_length, generator=generator)
        return [[rows[index] for index in batch] for batch in plan[: arguments.steps]]

    def bare(by_length: bool, make: Callable[[list[TrainingRow]], list[TrainingPass]]) -> tuple[int, float]:
        batches = batches_of(by_length)
        n_targets = [sum(len(row.token_ids) - row.n_prompt for row in batch) for batch in batches]
        seconds = bare_loop(objective, [make(batch) for batch in batches], n_targets, loaded.device)
        return sum(len(row.token_ids) for batch in batches for row in batch), seconds

    def loop() -> tuple[int, float]:
        first = [row for batch in batches_of(False) for row in batch]
        with tempfile.TemporaryDirectory() as folder:
            summary = train(
                model,
                first,
                settings,
                seed=0,
                compute_dtype=loaded.precision,
                pad_id=prompts.pad_id,
                folder=Path(folder),
            )
        return summary.n_tokens, summary.seconds

    limit = settings.pass_tokens("cpu")
    variants: dict[str, Callable[[], tuple[int, float]]] = {
        "loop": loop,
        "bare": lambda: bare(False, lambda batch: packed_passes(batch, limit)),
        "by length": lambda: bare(True, lambda batch: padded_passes(batch, 1 << 30, prompts.pad_id)),
        "padded": lambda: bare(False, lambda batch: padded_passes(batch, 1 << 30, prompts.pad_id)),
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.rounds):
        for name, variant in variants.items():
            n_tokens, seconds = variant()
            rates[name].append(n_tokens / seconds)
            print(f"{name}: {rates[name][-1]:.0f} tokens/s", flush=True)
    median = {name: statistics.median(values) for name, values in rates.items()}
    print(
        f"\n{hardware_text()}; {loaded.precision}; {arguments.steps} steps of {settings.batch_rows} rows, "
        f"mean row {statistics.mean(lengths):.1f} tokens, medians of {arguments.rounds} rounds"
    )
    for name, rate in median.items():
        print(f"| {name} | {rate:.0f} tokens/s | {rate / median['padded']:.2f} x padded |")
    print(f"loop / bare = {median['loop'] / median['bare']:.3f}")


if __name__ == "__main__":
    main()

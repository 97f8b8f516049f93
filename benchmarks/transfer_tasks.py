"""Tables 1 and 2 of "Seeking Neural Nuggets" in miniature: teacher parameters against controls, per and across tasks.

    python benchmarks/transfer_tasks.py --data DATA/tasks --teacher PAIR/teacher --student PAIR/student --out runs/tasks
        [--across] [--jobs 12]

For every task: seed samples of the task, its training samples, held-out samples of the same form; the method and
all controls, each with its own learning-rate sweep, several seeds. With `--across` also factors extracted with another
task's samples, trained and measured on this one, likewise swept. The arms are trained side by side by `--jobs`
processes, each in a run folder of its own under `parts`, and then gathered in one run folder of `transfuse transfer` a
task, whose report and page compare them. A killed benchmark goes on where it stopped; `--table` prints what is there,
by `transfer_table.py`, from the parts alone.
"""

import argparse
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transfer_table import tables

from transfuse.io.jsonl import read_jsonl, write_jsonl
from transfuse.io.run_folder import open_run
from transfuse.recipes.progress import Display
from transfuse.recipes.schema import make_recipe
from transfuse.recipes.transfer import run_transfer, starts_of, train_arms
from transfuse.recipes.transfer_extraction import extract, finished_extraction
from transfuse.recipes.transfer_lessons import make_lessons
from transfuse.recipes.transfer_measure import read_questions
from transfuse.recipes.transfer_schema import BUILT_IN_CONTROLS, Control, TransferRecipe
from transfuse.report import write_page

TASKS = ("gsm8k", "mmlu", "super_ni")
ARMS: tuple[Control, ...] = ("parametric", *BUILT_IN_CONTROLS)


def split_task(data: Path, task: str, n_eval: int, out: Path) -> None:
    """Write training and eval files of a task: the last samples of the training file are held out."""
    rows = [line.value for line in read_jsonl(data / task / "train_1000.jsonl")]
    write_jsonl(out / f"{task}.train.jsonl", rows[:-n_eval])
    write_jsonl(out / f"{task}.eval.jsonl", rows[-n_eval:])


def recipe_of(options: argparse.Namespace, seeds_of: str, task: str, **more: Any) -> TransferRecipe:
    """The recipe of one run."""
    tree = {
        "kind": "transfer",
        "teacher": str(options.teacher),
        "student": str(options.student),
        "seed": 17,
        "task": str(options.data / seeds_of / "seed_32.jsonl"),
        "train_file": str(options.out / f"{task}.train.jsonl"),
        "eval_file": str(options.out / f"{task}.eval.jsonl"),
        "n_train": options.n_train,
        "n_seeds": options.n_seeds,
        "learning_rates": options.rates,
        "precision": options.precision,
        "extract": {"reduce": options.reduce},
        "sensitivity": {"max_length_tokens": options.max_length},
        "evaluate": {
            "generate": task in options.generate,
            "max_new_tokens": options.max_new_tokens,
        },
        "train": {
            "n_epochs": options.epochs,
            "batch_rows": 16,
            "max_length_tokens": options.max_length,
            "max_tokens_per_pass": options.max_tokens_per_pass,
            "lora": {"rank": 16, "alpha": 16, "dropout": 0.05},
        },
        **more,
    }
    recipe = make_recipe(tree, options.set or [], where=f"{seeds_of} to {task}")
    assert isinstance(recipe, TransferRecipe)
    return recipe


def extract_for(options: argparse.Namespace, task: str) -> None:
    """The factors that a task's seed samples choose, and the random block beside them."""
    recipe = recipe_of(options, task, task, controls=list(BUILT_IN_CONTROLS))
    folder = extraction_of(options, task)
    with logged(options, folder.name), open_run(folder, recipe.model_dump(mode="json")) as run:
        extract(recipe, run, Display())


def recipe_from(options: argparse.Namespace, seeds_of: str, task: str) -> TransferRecipe:
    """The recipe of all arms of a task, from a finished extraction."""
    done = str(extraction_of(options, seeds_of))
    return recipe_of(options, seeds_of, task, controls=list(BUILT_IN_CONTROLS), extraction=done)


def train_one(options: argparse.Namespace, seeds_of: str, task: str, arm: Control) -> None:
    """One arm's sweep and seeds, in a run folder of its own."""
    recipe, folder = recipe_from(options, seeds_of, task), part_of(options, seeds_of, task, arm)
    display = Display()
    with logged(options, folder.name), open_run(folder, recipe.model_dump(mode="json")) as run:
        starts = starts_of(finished_extraction(extraction_of(options, seeds_of)), None)
        lessons = make_lessons(recipe, run, display)
        train_arms(recipe, run, display, read_questions(recipe), lessons, starts, [arm])


def gather(options: argparse.Namespace, task: str) -> None:
    """One run folder of all arms of a task: their stages are found there and used again."""
    recipe, out = recipe_from(options, task, task), options.out / task
    if not (out / "report.json").is_file():
        with open_run(out, recipe.model_dump(mode="json")):
            for arm in ARMS:
                for kind in ("arms", "measured"):
                    shutil.copytree(part_of(options, task, task, arm) / kind, out / kind, dirs_exist_ok=True)
    with logged(options, f"gather-{task}"):
        run_transfer(recipe, out, overwrite=False, command=" ".join(sys.argv))
        write_page(out)


def extraction_of(options: argparse.Namespace, task: str) -> Path:
    """Run folder of a task's extraction."""
    return options.out / "parts" / f"extract-{task}"


def part_of(options: argparse.Namespace, seeds_of: str, task: str, arm: str) -> Path:
    """Run folder of one arm."""
    return options.out / "parts" / (f"{task}-{arm}" if seeds_of == task else f"{seeds_of}-to-{task}")


@contextlib.contextmanager
def logged(options: argparse.Namespace, name: str) -> Iterator[None]:
    """While in the block, what is printed goes into a file of that name; how long it took is printed."""
    started = time.monotonic()
    path = options.out / "logs" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        yield
    print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


def set_threads(n_threads: int) -> None:
    """Share the cores among the processes."""
    torch.set_num_threads(n_threads)


def run_all(options: argparse.Namespace) -> None:
    """All runs that are asked for."""
    options.out.mkdir(parents=True, exist_ok=True)
    for task in options.tasks:
        split_task(options.data, task, options.n_eval, options.out)
    n_threads = max(1, (os.cpu_count() or 1) // options.jobs)
    pairs = [(source, task) for source in options.tasks for task in options.tasks if source != task]
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), set_threads, (n_threads,)) as pool:
        wait([pool.submit(extract_for, options, task) for task in options.tasks])
        arms = [pool.submit(train_one, options, task, task, arm) for arm in ARMS for task in options.tasks]
        across = [pool.submit(train_one, options, *pair, "parametric") for pair in pairs if options.across]
        wait(arms)
        wait([*across, *(pool.submit(gather, options, task) for task in options.tasks)])


def wait(running: list[Future[None]]) -> None:
    """Until all are done; the first error ends the benchmark."""
    for each in running:
        each.result()


def main() -> None:
    """Run, or print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--teacher")
    parser.add_argument("--student")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--n-train", type=int, default=300)
    parser.add_argument("--n-eval", type=int, default=150)
    parser.add_argument("--n-seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--max-tokens-per-pass", type=int)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--reduce", default="submatrix")
    parser.add_argument(
        "--generate", nargs="*", choices=TASKS, default=[], help="tasks whose answers are generated"
    )
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--across", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", nargs="*")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        run_all(options)
    print("\n".join(tables(options.out, TASKS, ARMS)))


if __name__ == "__main__":
    main()

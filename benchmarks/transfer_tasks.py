"""Tables 1 and 2 of "Seeking Neural Nuggets" in miniature: teacher parameters against controls, per and across tasks.

    python benchmarks/transfer_tasks.py --data DATA/tasks --teacher PAIR/teacher --student PAIR/student --out runs/tasks

For every task: seed samples of the task, its training samples, held-out samples of the same form; the method and
all controls, each with its own learning-rate sweep, several seeds. Then, across tasks: factors extracted with another
task's samples, trained and measured on this one, at the learning rate that the method chose. Every run is a run folder
of `transfuse transfer`, so that a killed benchmark goes on where it stopped; `--table` prints what is there.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from transfuse.io.jsonl import read_jsonl, write_jsonl
from transfuse.recipes.schema import make_recipe
from transfuse.recipes.transfer import run_transfer
from transfuse.recipes.transfer_schema import BUILT_IN_CONTROLS, TransferRecipe
from transfuse.report import write_page

TASKS = ("gsm8k", "mmlu", "super_ni")


def split_task(data: Path, task: str, n_eval: int, out: Path) -> tuple[Path, Path]:
    """Training and eval files of a task: the last samples of the training file are held out."""
    rows = [line.value for line in read_jsonl(data / task / "train_1000.jsonl")]
    train, held_out = out / f"{task}.train.jsonl", out / f"{task}.eval.jsonl"
    write_jsonl(train, rows[:-n_eval])
    write_jsonl(held_out, rows[-n_eval:])
    return train, held_out


def recipe_of(options: argparse.Namespace, seeds_of: str, task: str, **more: Any) -> TransferRecipe:
    """The recipe of one run."""
    train, held_out = split_task(options.data, task, options.n_eval, options.out)
    tree = {
        "kind": "transfer",
        "teacher": str(options.teacher),
        "student": str(options.student),
        "seed": 17,
        "task": str(options.data / seeds_of / "seed_32.jsonl"),
        "train_file": str(train),
        "eval_file": str(held_out),
        "n_train": options.n_train,
        "n_seeds": options.n_seeds,
        "extract": {"reduce": options.reduce},
        "sensitivity": {"max_length_tokens": options.max_length},
        "evaluate": {"generate": options.generate, "max_new_tokens": 200},
        "train": {
            "n_epochs": options.epochs,
            "batch_rows": 16,
            "max_length_tokens": options.max_length,
            "lora": {"rank": 16, "alpha": 16, "dropout": 0.05},
        },
        **more,
    }
    recipe = make_recipe(tree, options.set or [], where=f"{seeds_of} to {task}")
    assert isinstance(recipe, TransferRecipe)
    return recipe


def run_all(options: argparse.Namespace) -> None:
    """All runs that are asked for."""
    options.out.mkdir(parents=True, exist_ok=True)
    for task in options.tasks:
        out = options.out / f"{task}"
        more = {"controls": list(BUILT_IN_CONTROLS), "learning_rates": options.rates}
        run_transfer(recipe_of(options, task, task, **more), out, overwrite=False, command="benchmark")
        write_page(out)
        best = json.loads((out / "report.json").read_text())["arms"][0]["learning_rate"]
        for other in options.tasks if options.across else ():
            if other != task:
                recipe = recipe_of(options, other, task, learning_rates=[best])
                run_transfer(recipe, options.out / f"{other}-to-{task}", overwrite=False, command="benchmark")


def table(options: argparse.Namespace) -> None:
    """What the run folders hold."""
    for folder in sorted(options.out.iterdir()):
        if not (folder / "report.json").is_file():
            continue
        report = json.loads((folder / "report.json").read_text())
        print(f"\n{folder.name}")
        for row in report["rows"]:
            cells = [
                f"{name} {value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}] n={value['n']}"
                for name, value in row["metrics"].items()
            ]
            print(f"  {row['name']:22} {'; '.join(cells)}")
        for each in report["comparisons"]:
            found = each["difference"]
            print(
                f"  {each['method']} - {each['against']:20} {each['metric']:24} {found['value']:+.4f} "
                f"[{found['low']:+.4f}, {found['high']:+.4f}]  {each['verdict']}"
            )
        for arm in report["arms"]:
            tried = ", ".join(
                f"{t['learning_rate']:g}: {t['development_bits_per_byte'] or 0:.4f}" for t in arm["tried"]
            )
            print(f"  lr of {arm['name']}: {arm['learning_rate']:g} ({tried})")


def main() -> None:
    """Run, or print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--teacher")
    parser.add_argument("--student")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--n-train", type=int, default=300)
    parser.add_argument("--n-eval", type=int, default=150)
    parser.add_argument("--n-seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--reduce", default="submatrix")
    parser.add_argument("--generate", action="store_true")
    parser.add_argument("--across", action="store_true")
    parser.add_argument("--set", nargs="*")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        run_all(options)
    table(options)


if __name__ == "__main__":
    main()

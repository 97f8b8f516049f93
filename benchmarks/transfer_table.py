"""The tables of `transfer_tasks.py`, from the measurements of its parts alone, whatever is finished.

    python benchmarks/transfer_table.py runs/tasks

One row an arm: its chosen learning rate, seeds, bits per byte of the held-out answers, the difference of the method
from it, and where answers were scored a metric likewise; then the method with factors extracted by another task's
samples. Differences are paired over items and over the seeds that both have, with 95 % intervals over items.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from transfuse.evaluate.tasks import answer_bits_per_byte, bits_difference, score_difference, task_estimates
from transfuse.recipes.transfer_measure import Measured, load_measured, pooled
from transfuse.text.task_answers import TASK_METRICS, answer_kind
from transfuse.types import Estimate

METHOD = "parametric"
SEED = 17
"""Of the bootstrap."""

Runs = dict[str, Measured]
"""Measurements by the training's seed."""


def tables(out: Path, tasks: Sequence[str], arms: Sequence[str]) -> list[str]:
    """Markdown lines: per task, then across tasks.

    Args:
        out: folder of a benchmark's runs.
        tasks: in the order of the tables.
        arms: the method first.

    Returns:
        Lines; none for a task that has no measurement.
    """
    lines = [
        "| task | start of the adapter | learning rate | seeds | bits per byte | parametric - it "
        "| metric | value, % | parametric - it |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task in tasks:
        own = finished(out / "parts" / f"{task}-{METHOD}")
        for name in ("student", "teacher"):
            if is_done(folder := out / task / "measured" / name):
                lines.append(row(task, f"{name}, untouched", "", {"": load_measured(folder)}, None))
        for arm in arms:
            part = out / "parts" / f"{task}-{arm}"
            if runs := finished(part):
                lines.append(row(task, arm, chosen_rate(part), runs, None if arm == METHOD else own))
    lines += [
        "",
        "| measured on | extracted by | learning rate | seeds | bits per byte | - own extraction | - lora |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in tasks:
        own, plain = (finished(out / "parts" / f"{task}-{arm}") for arm in (METHOD, "lora"))
        for source in tasks:
            part = out / "parts" / (f"{task}-{METHOD}" if source == task else f"{source}-to-{task}")
            if runs := finished(part):
                losses = [loss for run in runs.values() for loss in run.losses]
                others = [bits_between(runs, other) for other in (own if source != task else {}, plain)]
                cells = [
                    task,
                    source,
                    chosen_rate(part),
                    str(len(runs)),
                    told(answer_bits_per_byte(losses, SEED)),
                ]
                lines.append(f"| {' | '.join([*cells, *(told(each, '+') for each in others)])} |")
    return lines


def finished(part: Path) -> Runs:
    """What a part's trainings gave on the held-out samples."""
    folders = sorted((part / "measured").glob("*-seed-*"))
    return {each.name.rpartition("-")[2]: load_measured(each) for each in folders if is_done(each)}


def is_done(stage: Path) -> bool:
    """Whether a stage came to its end."""
    return (stage / "done.json").is_file()


def chosen_rate(part: Path) -> str:
    """The learning rate of the sweep that did best on the samples kept aside."""
    found: dict[str, float] = {}
    for path in part.glob("arms/*/lr-*/seed-*/run.json"):
        if is_done(path.parent):
            bits = json.loads(path.read_text(encoding="utf-8")).get("development_bits_per_byte")
            rate = path.parent.parent.name.removeprefix("lr-")
            found[rate] = min(found.get(rate, math.inf), math.inf if bits is None else bits)
    return min(found, key=lambda rate: found[rate], default="")


def row(task: str, name: str, rate: str, runs: Runs, method: Runs | None) -> str:
    """One Markdown line of a task's table."""
    whole = pooled(list(runs.values()))
    cells = [
        task,
        name,
        rate,
        "" if "" in runs else str(len(runs)),
        told(answer_bits_per_byte(whole.losses, SEED)),
    ]
    cells.append(told(bits_between(method, runs), "+") if method else "")
    if whole.answers:
        kind = answer_kind([record.gold for record in whole.answers])
        metric = TASK_METRICS[kind][-1] if kind == "text" else TASK_METRICS[kind][0]
        value = task_estimates(whole.answers, kind, SEED)[metric]
        difference = told(scores_between(method, runs, metric), "+", 100) if method else ""
        cells += [metric, told(value, "", 100), difference]
    else:
        cells += ["", "", ""]
    return f"| {' | '.join(cells)} |"


def bits_between(ours: Runs, theirs: Runs) -> Estimate | None:
    """Bits per byte that the first needs more, over the seeds of both."""
    return between(
        ours, theirs, lambda one, two: bits_difference([r.losses for r in one], [r.losses for r in two], SEED)
    )


def scores_between(ours: Runs, theirs: Runs, metric: str) -> Estimate | None:
    """How much better the first scores, over the seeds of both."""
    return between(
        ours,
        theirs,
        lambda one, two: score_difference([r.answers for r in one], [r.answers for r in two], metric, SEED),
    )


def between(
    ours: Runs, theirs: Runs, difference: Callable[[list[Measured], list[Measured]], Estimate]
) -> Estimate | None:
    """A difference over the seeds that both have; None where there are none."""
    seeds = sorted(ours.keys() & theirs.keys())
    return difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]) if seeds else None


def told(found: Estimate | None, sign: str = "", times: float = 1) -> str:
    """An estimate with its interval."""
    if found is None or found.value is None or found.low is None or found.high is None:
        return ""
    digits = 4 if times == 1 else 1
    value, low, high = (f"{times * each:{sign}.{digits}f}" for each in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def main() -> None:
    """Print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["gsm8k", "mmlu", "super_ni"])
    parser.add_argument(
        "--arms", nargs="+", default=[METHOD, "lora", "pissa", "random-block", "norm-matched-random"]
    )
    options = parser.parse_args()
    print("\n".join(tables(options.out, options.tasks, options.arms)))


if __name__ == "__main__":
    main()

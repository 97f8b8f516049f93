"""Benchmarks opened: lm-eval's tasks by name, over the hub's data or the user's own, ready to be asked."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transfuse.errors import DataError, RecipeError, TransfuseError
from transfuse.evaluate.benchmark_data import LeafRows, local_rows
from transfuse.evaluate.benchmark_settings import BenchmarkSettings
from transfuse.evaluate.benchmark_table import BENCHMARKS, benchmark_name, published_form
from transfuse.evaluate.harness_definitions import (
    LocalTask,
    leaf_names,
    leaf_of,
    local_task,
    with_local_tasks,
)
from transfuse.evaluate.harness_fetching import fetched, said
from transfuse.evaluate.harness_opening import full_index, harness_seeds, quiet_harness, task_index

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager


class OpenedBenchmark(NamedTuple):
    """A benchmark whose items are at hand."""

    name: str
    """As the user gave it; metrics carry it."""
    task: str
    """As lm-eval calls it."""
    settings: BenchmarkSettings
    tasks: dict[str, "Task"]
    """By lm-eval's name of each; several of a group."""
    groups: dict[str, "Group"]
    picked: dict[str, list[int]] | None
    """Places of the items that are asked, by task; None means all."""
    n_items: int
    n_shot: dict[str, int]
    """By task."""
    notes: list[str]
    """What was done that is not plain from the settings."""


def open_benchmark(name: str, settings: BenchmarkSettings) -> OpenedBenchmark:
    """Find a benchmark's definition and its items; no model is needed.

    Args:
        name: of a task, group or tag of lm-eval, or our own; with a number of examples behind it (`mmlu-5shot`).
        settings: how it is run.

    Returns:
        What lm-eval is to ask.

    Raises:
        MissingExtraError: lm-eval is not installed.
        RecipeError: no such task (the nearest are named), one that executes code, or settings it does not take.
        DataError: its items are not there, or not of its form (what and where is named), or there is no hub.
    """
    task, named_shots = benchmark_name(name)
    if named_shots is not None and settings.n_shot not in (None, named_shots):
        raise RecipeError(
            f"benchmark {name!r}: its name says {named_shots} examples, n_shot says {settings.n_shot}; drop one."
        )
    n_shot = settings.n_shot if named_shots is None else named_shots
    with quiet_harness(), harness_seeds(0):
        manager = task_index(task)
        if task not in manager.task_index:
            raise RecipeError(_unknown(name, task, full_index().all_tasks))
        index = manager.task_index
        leaves = {leaf: index[leaf].cfg or {} for leaf in leaf_names(task, index) if leaf in index}
        if not settings.runs_code:
            _refuse_code(name, leaves)
        for config in leaves.values():
            _refuse_examples(name, n_shot, config.get("num_fewshot"))
        notes: list[str] = []
        if settings.data is None:
            loaded = fetched(name, task, manager)
        else:
            loaded = _local(name, task, manager, settings.data, n_shot, notes)
        tasks, groups = loaded["tasks"], loaded["groups"]
        for each in tasks.values():
            _settle(name, each, settings, n_shot)
        sizes = {each: len(task_object.eval_docs) for each, task_object in tasks.items()}
        picked = _picked(sizes, settings.n_items)
        if picked is not None:
            tasks = {each: tasks[each] for each in picked}
            for group in groups.values():
                _drop_others(group, set(picked))
            sizes = {each: len(places) for each, places in picked.items()}
    shots = {each: task_object.config.num_fewshot or 0 for each, task_object in tasks.items()}
    return OpenedBenchmark(
        name, task, settings, tasks, groups, picked, sum(sizes.values()), shots, list(dict.fromkeys(notes))
    )


def _unknown(name: str, task: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(task, [*known, *BENCHMARKS], n=4, cutoff=0.6)
    contained = sorted((each for each in known if task.lower() in each.lower()), key=len)
    nearest = list(dict.fromkeys([*near, *contained]))[:5]
    hint = (
        f"did you mean {', '.join(nearest)}?" if nearest else "`transfuse eval --list` names those we know."
    )
    return f"benchmark {name!r}: lm-eval has no task, group or tag {task!r}; {hint}"


def _refuse_code(name: str, leaves: Mapping[str, Mapping[str, Any]]) -> None:
    for leaf, config in leaves.items():
        if config.get("unsafe_code"):
            raise RecipeError(
                f"benchmark {name!r}: {leaf!r} executes code that the model writes, on this machine and as you; set "
                f"runs_code to true where that is safe, or leave it out."
            )


def _refuse_examples(name: str, n_shot: int | None, own: int | None) -> None:
    """lm-eval itself passes over a number of examples where the definition says that there are none."""
    if n_shot and own == 0:
        raise RecipeError(
            f"benchmark {name!r}: its definition is without examples before a question, got n_shot {n_shot}; leave "
            f"n_shot out, or name another variant of the task."
        )


def _local(
    name: str, task: str, manager: "TaskManager", data: Path, n_shot: int | None, notes: list[str]
) -> Any:
    """Tasks over the user's own files."""
    index = manager.task_index
    leaves = [leaf_of(leaf, index) for leaf in leaf_names(task, index)]
    rows = local_rows(name, leaves, data)
    asked = {leaf: own for leaf, own in rows.items() if set(own.splits) - {"train"}}
    if not asked:
        raise DataError(
            f"benchmark {name!r}: expected a file with what is asked in {data}, such as test.jsonl, found rows for "
            f"training alone; add it, or give the file itself."
        )
    if len(asked) < len(leaves):
        notes.append(f"{len(asked)} of {len(leaves)} tasks are asked: {data} has no rows for the others")
    loaded, locals_ = _loaded(name, task, manager, asked, dict.fromkeys(asked, n_shot))
    if n_shot is None:  # a group may say how many examples its tasks have
        shots = {leaf: loaded["tasks"][leaf].config.num_fewshot for leaf in asked}
        if any(shots[leaf] != locals_[leaf].config.get("num_fewshot") for leaf in asked):
            loaded, locals_ = _loaded(name, task, manager, asked, shots)
    notes.extend(note for each in locals_.values() for note in each.notes)
    for leaf, own in locals_.items():
        _check_rows(leaf, loaded["tasks"][leaf], own)
    return loaded


def _loaded(
    name: str,
    task: str,
    manager: "TaskManager",
    rows: Mapping[str, LeafRows],
    n_shot: Mapping[str, int | None],
) -> tuple[Any, dict[str, LocalTask]]:
    locals_ = {
        leaf: local_task(leaf, manager.task_index[leaf], own, n_shot[leaf]) for leaf, own in rows.items()
    }
    changed = with_local_tasks(manager, task, {leaf: own.config for leaf, own in locals_.items()})
    try:
        return changed.load([task]), locals_
    except TransfuseError:
        raise
    except Exception as err:  # templates and functions of a definition raise whatever they like
        first = next(iter(locals_.values()))
        raise DataError(
            f"benchmark {name!r}: its definition could not read the rows, which hold "
            f"{', '.join(map(repr, first.asked[0].value))} ({first.asked[0].where}): {said(err)}; expected rows as in "
            f"the data set {first.config.get('dataset_path')!r} at the hub."
        ) from err


def _check_rows(leaf: str, task: "Task", own: LocalTask) -> None:
    """Put each row of a form that we do not know through the definition, so that errors name their line."""
    if _form(own) is not None or own.config.get("process_docs") is not None:
        return
    for row in own.asked:
        try:
            task.doc_to_text(row.value)
            task.doc_to_target(row.value)
            if own.config.get("doc_to_choice") is not None:
                task.doc_to_choice(row.value)  # pyright: ignore[reportAttributeAccessIssue]
        except Exception as err:  # templates and functions of a definition raise whatever they like
            raise DataError(
                f"{row.where}: {leaf}: its definition could not read the row, which holds "
                f"{', '.join(map(repr, row.value))}: {said(err)}; expected a row as in the data set "
                f"{own.config.get('dataset_path')!r} at the hub."
            ) from err


def _form(own: LocalTask) -> str | None:
    """The form of a task's rows, where we know it; those were checked when they were read."""
    return published_form(own.config.get("dataset_path"), own.config.get("dataset_name"))


def _settle(name: str, task: "Task", settings: BenchmarkSettings, n_shot: int | None) -> None:
    """The settings of a run, as lm-eval's own command line applies them."""
    own = task.config.num_fewshot
    _refuse_examples(name, n_shot, own)
    task.set_config("num_fewshot", (own or 0) if n_shot is None else n_shot)
    task.set_fewshot_seed(settings.fewshot_seed)
    if settings.max_new_tokens is not None and task.config.output_type == "generate_until":
        task.set_config("generation_kwargs", {"max_gen_toks": settings.max_new_tokens}, update=True)


def _picked(sizes: Mapping[str, int], n_items: int | None) -> dict[str, list[int]] | None:
    """The first items, in turn of each task; None where all are asked."""
    if n_items is None or n_items >= sum(sizes.values()):
        return None
    taken = dict.fromkeys(sizes, 0)
    left = n_items
    while left:
        for name in sizes:
            if left and taken[name] < sizes[name]:
                taken[name] += 1
                left -= 1
    return {name: list(range(n)) for name, n in taken.items() if n}


def _drop_others(group: "Group", kept: set[str]) -> None:
    """Strike out of a group the tasks of which nothing is asked."""
    from lm_eval.api.group import Group

    for child in list(group):
        if isinstance(child, Group):
            _drop_others(child, kept)
            if not len(child):
                group.pop(child.name)
        elif child.task_name not in kept:
            group.pop(child.task_name)

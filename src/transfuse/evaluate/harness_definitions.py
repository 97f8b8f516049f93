"""lm-eval's definitions with the user's own files in the place of their data sets.

Prompts, examples, filters and scores stay those of the definition: only `custom_dataset` is set, and splits that the
files lack are struck out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from transfuse.errors import DataError, RecipeError
from transfuse.evaluate.benchmark_data import ASKED, Leaf, LeafRows
from transfuse.evaluate.benchmark_rows import Row
from transfuse.evaluate.benchmark_table import published_form

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Entry

_EXAMPLE_SPLITS = ("train", "dev", "validation")
"""Where examples are taken from in place of a split that the files lack."""


class LocalTask(NamedTuple):
    """A task's definition over local rows."""

    config: dict[str, Any]
    asked: list[Row]
    """What is asked, in order."""
    notes: list[str]


def leaf_names(name: str, index: Mapping[str, "Entry"]) -> list[str]:
    """Names of all tasks under a task, group or tag, in lm-eval's order.

    Args:
        name: in the index, or of a task that a group defines within itself.
        index: lm-eval's list of definitions.

    Returns:
        Each once.
    """
    entry = index.get(name)
    kind = entry.kind.name if entry else ""
    if entry and kind == "TAG":
        return sorted(task for task in entry.tags if task in index)
    if entry and kind == "GROUP":
        members = _members((entry.cfg or {}).get("task", []))
        return list(dict.fromkeys(leaf for member in members for leaf in leaf_names(member, index)))
    return [name]


def leaf_of(name: str, index: Mapping[str, "Entry"]) -> Leaf:
    """A task, as far as finding its rows goes.

    Args:
        name: of the task.
        index: lm-eval's list of definitions.

    Returns:
        Its data set's configuration, and the form of its rows where we know it.

    Raises:
        RecipeError: it has no definition of its own, or is Python code that loads its own data.
    """
    if name not in index:
        raise RecipeError(
            f"benchmark {name!r} is defined within a group, so that `data` cannot be put under it; leave `data` out to "
            f"have it fetched."
        )
    config = index[name].cfg or {}
    if "class" in config:
        raise RecipeError(
            f"benchmark {name!r} is Python code that loads its own data, so that `data` cannot be put under it; leave "
            f"`data` out to have it fetched."
        )
    dataset_name = config.get("dataset_name")
    return Leaf(name, dataset_name, published_form(config.get("dataset_path"), dataset_name))


def local_task(name: str, entry: "Entry", rows: LeafRows, n_shot: int | None) -> LocalTask:
    """A task's own definition, with local rows in the place of its data set.

    Args:
        name: of the task.
        entry: its definition.
        rows: what the user's files hold for it.
        n_shot: examples before each question; None means as many as the definition says.

    Returns:
        A configuration that fetches nothing.

    Raises:
        DataError: nothing is asked, or there are too few rows to take examples from.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(entry.yaml_path, resolve_func=True) if entry.yaml_path else dict(entry.cfg or {})
    shots = (config.get("num_fewshot") or 0) if n_shot is None else n_shot
    asked_split = config.get("test_split") or config.get("validation_split")
    if not asked_split:
        raise DataError(
            f"benchmark {name!r}: its definition names no split that is asked; name another task."
        )
    chosen = next((s for s in (ASKED, asked_split, "test", "validation", "dev") if rows.splits.get(s)), None)
    if chosen is None:
        raise DataError(
            f"benchmark {name!r}: expected a file {asked_split}.jsonl (or .json, .parquet) with what is asked, found "
            f"{', '.join(sorted(rows.splits))} alone; add it, or give the file itself."
        )
    notes = list(rows.notes)
    if chosen not in (ASKED, asked_split):
        notes.append(f"asked are the rows of {chosen}, as there are none of {asked_split}")
    dataset = {asked_split: rows.splits[chosen]}
    config, notes_on_examples = _with_examples(name, config, dataset, rows, chosen, shots)
    config |= {"custom_dataset": _dataset_of(name, dataset), "dataset_kwargs": None}
    return LocalTask(config, dataset[asked_split], notes + notes_on_examples)


def with_local_tasks(manager: "TaskManager", name: str, tasks: Mapping[str, dict[str, Any]]) -> "TaskManager":
    """A list of definitions in which tasks have other configurations, and groups only those tasks.

    Args:
        manager: lm-eval's list; not changed.
        name: the task, group or tag that is wanted.
        tasks: configurations by task; at least one under the name.

    Returns:
        A list that lm-eval builds groups, their overrides and aggregates from by its own rules.
    """
    from lm_eval.tasks import TaskManager

    changed = TaskManager(include_defaults=False)
    index = changed.task_index
    index.update(manager.task_index)
    for task, config in tasks.items():
        index[task] = replace(index[task], yaml_path=None, cfg=config)
    _prune(name, index, set(tasks))
    return changed


def _members(listed: Any) -> list[str]:
    """Names in a group's list; members with settings of their own are objects."""
    members = [listed] if isinstance(listed, str) else listed
    return [each if isinstance(each, str) else str(each.get("group") or each.get("task")) for each in members]


def _prune(name: str, index: dict[str, "Entry"], kept: set[str]) -> bool:
    """Strike out of groups and tags what is not kept; whether anything is left."""
    entry = index[name]
    if entry.kind.name == "TAG":
        index[name] = replace(entry, tags=entry.tags & kept)
        return bool(entry.tags & kept)
    if entry.kind.name != "GROUP":
        return name in kept
    config = dict(entry.cfg or {})
    listed = config["task"] if isinstance(config["task"], list) else [config["task"]]
    config["task"] = [
        each for each, member in zip(listed, _members(listed), strict=True) if _prune(member, index, kept)
    ]
    index[name] = replace(entry, yaml_path=None, cfg=config)
    return bool(config["task"])


def _with_examples(
    name: str,
    config: dict[str, Any],
    dataset: dict[str, list[Row]],
    rows: LeafRows,
    chosen: str,
    shots: int,
) -> tuple[dict[str, Any], list[str]]:
    """The definition with splits that are there; rows to take examples from go into `dataset`."""
    asked_split = next(iter(dataset))
    fewshot = config.get("fewshot_config") or {}
    named = fewshot.get("split") or config.get("fewshot_split")
    has_own = fewshot.get("samples") is not None and not named
    wanted = named or config.get("training_split") or config.get("validation_split") or asked_split
    config = config | {
        key: None for key in ("training_split", "validation_split") if config.get(key) != asked_split
    }
    notes: list[str] = []
    if has_own:
        return config, ["examples are those that the definition holds"] if shots else []
    if not shots:
        return _without_examples(config), []
    if wanted != asked_split:
        source = next((s for s in (wanted, *_EXAMPLE_SPLITS) if rows.splits.get(s) and s != chosen), None)
        if source is None:
            raise DataError(
                f"benchmark {name!r}: {shots} worked examples before each question are asked for, and there is "
                f"nowhere to take them from: put {wanted}.jsonl beside what is asked and give the folder as `data`, "
                f"or set n_shot to 0."
            )
        if source != wanted:
            notes.append(f"examples are taken from {source}, as there is no {wanted}")
        dataset[wanted] = rows.splits[source]
        if not named:
            config["training_split"] = wanted
    elif not named:
        notes.append("examples are drawn from what is asked, as the definition knows no other rows")
    # Where both name the same split, or neither is named, lm-eval draws one more and leaves the question itself out.
    n_there, n_needed = len(dataset[wanted]), shots + (named == config.get("test_split"))
    if n_there < n_needed:
        raise DataError(
            f"benchmark {name!r}: {shots} worked examples before each question are asked for, and its {wanted} rows "
            f"are {n_there}, of at least {n_needed}; add rows, or set n_shot to {max(0, n_there - n_needed + shots)}."
        )
    return config, notes


def _without_examples(config: dict[str, Any]) -> dict[str, Any]:
    fewshot = {key: value for key, value in (config.get("fewshot_config") or {}).items() if key != "split"}
    return config | {"fewshot_split": None, "fewshot_config": fewshot or None}


def _dataset_of(name: str, dataset: Mapping[str, Sequence[Row]]) -> Any:
    def custom_dataset(**_settings: Any) -> Any:
        import datasets
        import pyarrow

        splits = {}
        for split, rows in dataset.items():
            keys = dict.fromkeys(key for row in rows for key in row.value)
            try:
                splits[split] = datasets.Dataset.from_list(
                    [{key: row.value.get(key) for key in keys} for row in rows]
                )
            except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as err:
                raise DataError(
                    f"benchmark {name!r}: expected each field of {rows[0].where.rpartition(':')[0]} to hold the same "
                    f"kind of value in all rows, got '{err}'; mend the file."
                ) from err
        return datasets.DatasetDict(splits)

    return custom_dataset

"""Items of a benchmark from the user's own files: JSONL, JSON or parquet, one file or a folder with splits."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from transfuse.errors import DataError
from transfuse.evaluate.benchmark_rows import Row, is_conversion, published_row
from transfuse.evaluate.benchmark_table import BENCHMARKS, benchmark_name
from transfuse.io.jsonl import read_jsonl

SUFFIXES = (".jsonl", ".json", ".parquet")

_SPLITS = {"test": "test", "validation": "validation", "valid": "validation", "val": "validation"} | {
    "dev": "dev",
    "train": "train",
}
"""What a file's name, or its folder's, says about its split."""

_SPLIT_NAME = re.compile(rf"(?:({'|'.join(_SPLITS)})(?:[-_.].*)?|.*[-_]({'|'.join(_SPLITS)}))", re.IGNORECASE)

_SUBJECT_FIELDS = ("subject", "category", "task", "subset", "dataset_name", "task_name")
"""Fields that say which task of a group a row belongs to, where the benchmark's table names none."""

ASKED = ""
"""Key of the rows of a file that is given alone: they are what is asked."""


class Leaf(NamedTuple):
    """One task of lm-eval, as far as finding its rows goes."""

    name: str
    dataset_name: str | None
    """The configuration of its data set: the subject, in groups of tasks."""
    form: str | None = None
    """The one of `BENCHMARKS` whose rows it takes."""


class LeafRows(NamedTuple):
    """The rows of one task."""

    splits: dict[str, list[Row]]
    """By split, or under `ASKED`."""
    notes: list[str]


def local_rows(benchmark: str, leaves: Sequence[Leaf], path: Path) -> dict[str, LeafRows]:
    """What a file or folder holds for each task of a benchmark.

    Args:
        benchmark: name of the task or group, for error messages.
        leaves: its tasks; rows of a known form are checked and brought into it.
        path: a file (what is asked), or a folder with one or several of test, validation, train and dev; rows of a
            group say what they belong to (`subject`), or lie in a folder or file named after it.

    Returns:
        Rows by task; tasks without a row are left out.

    Raises:
        DataError: nothing is there, a file cannot be read, or a row is not of the benchmark's form or belongs to
            none of its tasks (the line is named).
    """
    path = path.expanduser()
    if not path.exists():
        raise DataError(f"{benchmark}: expected its items in {path}, found no such file or folder.")
    found = {leaf.name: rows for leaf in leaves if (rows := _own_files(benchmark, leaf, path))}
    if not found:
        found = _dealt_out(benchmark, leaves, path)
    if not found:
        raise DataError(
            f"{benchmark}: expected {path} to hold files such as test.jsonl, validation.parquet or train.jsonl "
            f"({', '.join(SUFFIXES)}), found none{_what_is_there(path)}."
        )
    return found


def _own_files(benchmark: str, leaf: Leaf, path: Path) -> LeafRows | None:
    """Rows in a folder or a file that is named after the task's configuration."""
    if not path.is_dir():
        return None
    for name in filter(None, (leaf.dataset_name, leaf.name)):
        if (path / name).is_dir():
            files = _split_files(path / name)
        else:
            named = [path / f"{name}{suffix}" for suffix in SUFFIXES]
            files = {ASKED: there} if (there := [file for file in named if file.is_file()]) else {}
        if files:
            rows = {split: _rows(leaf.form, paths) for split, paths in files.items()}
            return LeafRows(rows, _conversion_notes(leaf.form, files))
    return None


def _dealt_out(benchmark: str, leaves: Sequence[Leaf], path: Path) -> dict[str, LeafRows]:
    """Rows of files that hold those of all tasks."""
    files = _split_files(path) if path.is_dir() else {ASKED: [path]}
    forms = {leaf.form for leaf in leaves}
    form = forms.pop() if len(forms) == 1 else None
    notes = _conversion_notes(form, files)
    found: dict[str, LeafRows] = {}
    for split, paths in files.items():
        dealt, left_out = _by_leaf(benchmark, leaves, form, _rows(form, paths))
        for name, rows in dealt.items():
            found.setdefault(name, LeafRows({}, notes)).splits[split] = rows
        if left_out:
            notes.append(f"{left_out} rows of {', '.join(each.name for each in paths)} belong to other tasks")
    return found


def _by_leaf(
    benchmark: str, leaves: Sequence[Leaf], form: str | None, rows: Sequence[Row]
) -> tuple[dict[str, list[Row]], int]:
    """Rows by task, and how many belong to none of them."""
    names = {leaf.name: leaf.name for leaf in leaves} | {
        leaf.dataset_name: leaf.name for leaf in leaves if leaf.dataset_name
    }
    subject = BENCHMARKS[form].subject if form else ""
    fields = (subject,) if subject else _SUBJECT_FIELDS
    dealt: dict[str, list[Row]] = {}
    strays: list[Row] = []
    for row in rows:
        subjects = [str(row.value[field]) for field in fields if row.value.get(field) is not None]
        owner = next((names[each] for each in subjects if each in names), None)
        if owner is not None:
            dealt.setdefault(owner, []).append(row)
        else:
            strays.append(row)
    if len(leaves) == 1 and not dealt:  # rows of one task need not say so
        return ({leaves[0].name: strays} if strays else {}), 0
    is_whole = benchmark_name(benchmark).task in BENCHMARKS
    if strays and (not dealt or (is_whole and len(leaves) > 1)):
        row = strays[0]
        got = [str(row.value[field]) for field in fields if row.value.get(field) is not None]
        raise DataError(
            f"{row.where}: {benchmark}: expected {' or '.join(map(repr, fields))} to name one of its {len(leaves)} "
            f"tasks, such as {leaves[0].dataset_name or leaves[0].name!r}, got "
            f"{', '.join(map(repr, got)) or 'no such field'}; mend the line, or put each task's rows into a file or "
            f"folder of its name."
        )
    return dealt, len(strays)


def _rows(form: str | None, paths: Sequence[Path]) -> list[Row]:
    rows = [row for path in paths for row in _file_rows(path, path.stat().st_mtime_ns)]
    return [published_row(form, row) for row in rows] if form else rows


def _conversion_notes(form: str | None, files: Mapping[str, Sequence[Path]]) -> list[str]:
    if not form:
        return []
    converted = [
        path.name
        for paths in files.values()
        for path in paths
        if is_conversion(form, _file_rows(path, path.stat().st_mtime_ns)[0])
    ]
    return [f"{', '.join(converted)}: rows were brought into the published form"] if converted else []


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """Files by the split that their name, or the name of their folder, says; `data/` is looked into."""
    places = [folder, folder / "data", *(folder / name for name in _SPLITS)]
    found: dict[str, list[Path]] = {}
    for place in places:
        for path in sorted(place.iterdir()) if place.is_dir() else []:
            by_name = _SPLIT_NAME.fullmatch(path.stem)
            if path.suffix.lower() not in SUFFIXES or not path.is_file():
                continue
            if by_name:
                split = _SPLITS[(by_name[1] or by_name[2]).lower()]
            elif place.name in _SPLITS and place != folder:
                split = _SPLITS[place.name]
            else:
                continue
            found.setdefault(split, []).append(path)
    return found


@lru_cache(maxsize=32)
def _file_rows(path: Path, _changed_ns: int) -> list[Row]:
    """Rows of one file, read once for all tasks of a group."""
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}; rename or convert it.")
    rows = reader(path)
    if not rows:
        raise DataError(f"{path}: expected items, one a row; the file holds none.")
    return rows


def _jsonl_rows(path: Path) -> list[Row]:
    return [Row(line.value, line.where) for line in read_jsonl(path)]


def _json_rows(path: Path) -> list[Row]:
    """A list of objects, or an object that holds one as `examples` or `data`, as published files do."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as err:
        raise DataError(f"{path}: expected a JSON file, got '{err}'; name JSON lines .jsonl.") from err
    if isinstance(value, dict):
        value = value.get("examples", value.get("data"))
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise DataError(
            f'{path}: expected a list of JSON objects, or {{"examples": [...]}}; name JSON lines .jsonl.'
        )
    return [Row(each, f"{path}: item {n}") for n, each in enumerate(value, start=1)]


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        values = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as err:
        raise DataError(f"{path}: expected a parquet file, got '{err}'; copy it again.") from err
    return [Row(value, f"{path}: row {n}") for n, value in enumerate(values, start=1)]


def _what_is_there(path: Path) -> str:
    names = sorted(each.name for each in path.iterdir())[:6] if path.is_dir() else []
    return f" but {', '.join(names)}" if names else ""

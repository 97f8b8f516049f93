"""A group's outcome: resumed portion by portion, kept for other runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from transfuse.evaluate.scores import ItemScore
from transfuse.io.run_folder import open_run
from transfuse.recipes.eval_outcome import Outcome, ShownItem, measured, resumed


def rows_of(start: int, end: int) -> list[dict[str, Any]]:
    return [{"n": n} for n in range(start, end)]


def test_portions_are_measured_in_order(tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []

    def measure(start: int, end: int) -> Sequence[dict[str, Any]]:
        asked.append((start, end))
        return rows_of(start, end)

    assert resumed(tmp_path / "rows.jsonl", 7, measure, 3) == rows_of(0, 7)
    assert asked == [(0, 3), (3, 6), (6, 7)]
    assert resumed(tmp_path / "rows.jsonl", 7, measure, 3) == rows_of(0, 7)
    assert len(asked) == 3


@pytest.mark.parametrize(
    "left", ['{"n": 0}\n{"n": 1}\n{"n": 2}\n{"n": 3', '{"n": 0}\n{"n": 1}\n{"n": 2}\n{"n": 3}\n']
)
def test_whole_portions_of_a_killed_process_count(tmp_path: Path, left: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(left)
    asked: list[tuple[int, int]] = []

    def measure(start: int, end: int) -> Sequence[dict[str, Any]]:
        asked.append((start, end))
        return rows_of(start, end)

    assert resumed(path, 7, measure, 3) == rows_of(0, 7)
    assert asked == [(3, 6), (6, 7)]  # always the same portions, so that batches are those of a whole run
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows_of(0, 7)


def test_an_outcome_is_kept_for_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))
    made = Outcome(
        [ItemScore("f1/a", "q1", "f1", 0.5, 1.0)],
        [ShownItem("q1", "Q?", "A", "B", {"f1": 0.5}, context="C")],
        ["a note"],
        more={"k": 3},
    )
    n_measured = 0

    def measure(_folder: Path) -> Outcome:
        nonlocal n_measured
        n_measured += 1
        return made

    def run(folder: str, key: int, *, keeps: bool = True) -> Outcome:
        with open_run(tmp_path / folder, {"kind": "eval"}) as opened:
            return measured(opened, "measured/a", {"key": key}, measure, system=None, version=1, keeps=keeps)

    first = run("one", 1)
    assert (first.scores, first.items, first.notes, first.more) == (
        made.scores,
        made.items,
        made.notes,
        made.more,
    )
    assert run("one", 1) == first  # its own stage
    assert run("two", 1) == first  # the user's cache
    assert n_measured == 1
    run("three", 2)  # another key
    run("four", 1, keeps=False)
    assert n_measured == 3

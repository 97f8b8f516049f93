"""What came of one group of items: measured in a stage of its own, kept for other runs."""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transfuse.evaluate.scores import SCORES_FILE, ItemScore, load_scores, save_scores
from transfuse.io.bundled import cache_folder
from transfuse.io.files import atomic_folder, write_errors, write_json
from transfuse.io.jsonl import read_jsonl, write_jsonl
from transfuse.io.run_folder import RunFolder, key_digest
from transfuse.recipes.eval_system import System, peak_memory_bytes

OUTCOME_VERSION = 1
ITEMS_FILE, SUMMARY_FILE = "items.jsonl", "summary.json"
FILES = (SCORES_FILE, ITEMS_FILE, SUMMARY_FILE)


@dataclass(frozen=True)
class ShownItem:
    """One item as a person reads it."""

    item: str
    prompt: str
    reply: str
    gold: str
    scores: dict[str, float] = field(default_factory=dict)
    """Without the name of the set."""
    reason: str = ""
    """Why it could not be scored."""
    context: str = ""
    """What stood before the prompt: passages, or a section."""


@dataclass(frozen=True)
class Outcome:
    """Scores of a group, what was asked and answered, and what it took."""

    scores: list[ItemScore]
    items: list[ShownItem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """Of measuring, when it was measured; loading of models is no part of it."""
    peak_memory_bytes: int = 0
    more: dict[str, Any] = field(default_factory=dict)
    """What belongs to this sort of group alone."""


def measured(
    run: RunFolder,
    name: str,
    key: Mapping[str, Any],
    measure: Callable[[Path], Outcome],
    *,
    system: System | None,
    version: int,
    keeps: bool,
) -> Outcome:
    """A group's outcome: read from its stage, or from what another run measured, else measured now.

    Args:
        run: the run folder.
        name: of the stage.
        key: everything that the outcome depends on.
        measure: called with the stage's folder, where it may leave what a killed process goes on from.
        system: that is measured; None where no model is.
        version: of the way of measuring.
        keeps: whether the outcome is kept in the user's cache, and taken from there.

    Returns:
        The outcome.
    """
    full_key = {**key, "outcome_version": OUTCOME_VERSION}
    store = cache_folder() / "evaluations" / "outcomes"
    kept = store / key_digest({"version": version, **full_key})
    outputs = [run.path / name / file for file in FILES]
    with run.stage(name, full_key, version=version, outputs=outputs) as stage:
        if not stage.is_done:
            if keeps and all((kept / file).is_file() for file in FILES):
                with write_errors(stage.folder):
                    for file in FILES:
                        shutil.copyfile(kept / file, stage.folder / file)
            else:
                _save(_timed(measure, stage.folder, system), stage.folder)
                if keeps:
                    _keep(stage.folder, kept)
        return load_outcome(stage.folder)


def load_outcome(folder: Path) -> Outcome:
    """Read a group's outcome from its stage."""
    told = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    items = [ShownItem(**line.value) for line in read_jsonl(folder / ITEMS_FILE)]
    return Outcome(load_scores(folder / SCORES_FILE), items, **told)


def resumed(
    path: Path, n_items: int, measure: Callable[[int, int], Sequence[Mapping[str, Any]]], portion: int
) -> list[dict[str, Any]]:
    """Rows of items that are measured portion by portion, each written down as soon as it is there.

    Args:
        path: where rows are kept; those of a killed process are gone on from.
        n_items: how many there are to be.
        measure: makes the rows of the items from one number up to another.
        portion: items at a time, always the same ones, so that a resumed run measures what an uninterrupted one does.

    Returns:
        One row an item, in order.
    """
    rows = _whole_lines(path)[:n_items]
    rows = rows[: len(rows) - len(rows) % portion] if len(rows) < n_items else rows
    with write_errors(path):
        path.write_text("".join(_line(row) for row in rows), encoding="utf-8")
    for start in range(len(rows), n_items, portion):
        found = [dict(row) for row in measure(start, min(n_items, start + portion))]
        rows += found
        with write_errors(path), path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, found)))
    return rows


def pooled_scores(outcomes: Iterable[Outcome]) -> list[ItemScore]:
    """Scores of several groups, one after the other."""
    return [score for each in outcomes for score in each.scores]


def _timed(measure: Callable[[Path], Outcome], folder: Path, system: System | None) -> Outcome:
    loading_s, started = system.loading_s if system else 0.0, time.monotonic()
    found = measure(folder)
    seconds = time.monotonic() - started - ((system.loading_s if system else 0.0) - loading_s)
    peak = peak_memory_bytes() if system else 0
    return replace(found, seconds=round(seconds, 3), peak_memory_bytes=peak)


def _save(outcome: Outcome, folder: Path) -> None:
    told = asdict(outcome)
    del told["scores"], told["items"]
    save_scores(folder / SCORES_FILE, outcome.scores)
    write_jsonl(folder / ITEMS_FILE, [asdict(item) for item in outcome.items])
    write_json(folder / SUMMARY_FILE, told)


def _keep(folder: Path, kept: Path) -> None:
    with atomic_folder(kept) as temporary:
        for file in FILES:
            shutil.copyfile(folder / file, temporary / file)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Rows up to the first that a killed process has not written whole."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows

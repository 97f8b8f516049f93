"""What `report.json` says of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transfuse import __version__
from transfuse.evaluate.questions import estimate_json
from transfuse.evaluate.scores import ItemScore, estimates, is_better_lower, paired_differences
from transfuse.io.hardware import hardware_text
from transfuse.io.run_folder import StageRecord
from transfuse.recipes.comparisons import comparison
from transfuse.recipes.eval_inputs import Inputs
from transfuse.recipes.eval_outcome import Outcome
from transfuse.recipes.eval_schema import EvalRecipe, SystemSettings
from transfuse.recipes.judging import Judged

ASKED_GROUPS = ("questions", "unanswerable", "samples", "benchmarks")
"""Whose items are shown."""


@dataclass(frozen=True)
class MeasuredSystem:
    """One system and everything that came of it."""

    row: str
    settings: SystemSettings
    size_added_bytes: int
    """Without an index, which is built while it is asked."""
    outcomes: dict[str, dict[str, Outcome]]
    """By group, then by the name of the set."""

    @property
    def all(self) -> list[Outcome]:
        """Outcomes of every group."""
        return [outcome for group in self.outcomes.values() for outcome in group.values()]


def report_json(
    recipe: EvalRecipe,
    stages: Sequence[StageRecord],
    command: str,
    inputs: Inputs,
    found: Sequence[MeasuredSystem],
    scores: Mapping[str, Sequence[ItemScore]],
    covered: Outcome | None,
    judged: Judged | None,
) -> dict[str, Any]:
    """The report of an evaluation.

    Args:
        recipe: as run.
        stages: met so far.
        command: as typed.
        inputs: what was asked.
        found: what came of each system, the first one first.
        scores: of every item, by row.
        covered: fact coverage.
        judged: what a judge found.

    Returns:
        JSON values.
    """
    rows = [_row(each, scores[each.row], recipe.seed) for each in found]
    if judged is not None:
        rows[0]["metrics"] |= estimate_json(judged.estimates)
    retrieval = next((o.more for each in found for o in each.all if "k" in o.more), None)
    return {
        "kind": "eval",
        "model": recipe.model,
        "seed": recipe.seed,
        "title": _title(recipe),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "hardware": hardware_text(),
        "command": command,
        "rows": rows,
        "comparisons": _comparisons(found, scores, recipe.seed),
        "costs": {each.row: _costs(each) for each in found},
        "eval": {
            "systems": {each.row: each.settings.model_dump(mode="json") for each in found},
            "sets": _sets(found, recipe.n_shown),
            "harness": {
                each.row: {
                    name: outcome.more["harness"][name]
                    for name, outcome in each.outcomes.get("benchmarks", {}).items()
                }
                for each in found
                if "benchmarks" in each.outcomes
            },
            "versions": _versions(found),
            "judge": judged.summary if judged is not None else None,
        },
        "coverage": covered.more if covered is not None else None,
        "rag": retrieval,
        "stages": [asdict(stage) for stage in stages],
        "dropped": [],
        "warnings": [
            *_warnings(inputs, found),
            *(judged.summary.get("warnings", []) if judged is not None else []),
        ],
    }


def _title(recipe: EvalRecipe) -> str:
    names = [_system_name(settings) for settings in recipe.systems.values()]
    return " against ".join(names)


def _system_name(settings: SystemSettings) -> str:
    """A system in a few words: `smollm2-135m + adapter + passages`."""
    parts = [Path(settings.model).name or settings.model]
    if settings.adapter is not None:
        parts.append(_adapter_name(settings.adapter))
    parts += [Path(each).name or each for each in settings.ensemble]
    if settings.retrieval is not None:
        parts.append("passages")
    if settings.section_context is not None:
        parts.append("right section")
    return " + ".join(parts)


def _adapter_name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}" if folder.name == "adapter" else folder.name


def _row(found: MeasuredSystem, scores: Sequence[ItemScore], seed: int) -> dict[str, Any]:
    return {
        "name": found.row,
        "metrics": estimate_json(estimates(scores, seed)),
        "system": _system_name(found.settings),
    }


def _costs(found: MeasuredSystem) -> dict[str, Any]:
    """What a system took: measured when its groups were, also where those are used again."""
    latency = [outcome.more for outcome in found.outcomes.get("latency", {}).values()]
    index_bytes = max((int(outcome.more.get("index_bytes", 0)) for outcome in found.all), default=0)
    groups = [(group, each) for group, named in found.outcomes.items() for each in named.values()]
    return {
        "seconds": round(sum(each.seconds for group, each in groups if group != "latency"), 3),
        "latency_s": latency[0]["latency_s"] if latency else None,
        "n_reply_tokens": latency[0]["n_reply_tokens"] if latency else None,
        "peak_memory_bytes": max((each.peak_memory_bytes for each in found.all), default=0),
        "size_added_bytes": found.size_added_bytes + index_bytes,
    }


def _comparisons(
    found: Sequence[MeasuredSystem], scores: Mapping[str, Sequence[ItemScore]], seed: int
) -> list[dict[str, Any]]:
    """The first system minus the second, item by item."""
    if len(found) < 2:
        return []
    first, second = found[0].row, found[1].row
    differences = paired_differences(scores[first], scores[second], seed)
    return [
        comparison(metric, first, second, difference, is_better_lower=is_better_lower(metric))
        for metric, difference in differences.items()
    ]


def _sets(found: Sequence[MeasuredSystem], n_shown: int) -> list[dict[str, Any]]:
    """Each set with its first items, every system's reply beside the others'."""
    sets: list[dict[str, Any]] = []
    for group in ASKED_GROUPS:
        for name, first in found[0].outcomes.get(group, {}).items():
            items = {each.row: each.outcomes[group][name].items for each in found}
            by_item = {row: {item.item: item for item in own} for row, own in items.items()}
            order = dict.fromkeys(item.item for own in items.values() for item in own)
            sets.append(
                {
                    "name": name,
                    "group": group,
                    "n_items": len(order),
                    "seconds": {each.row: each.outcomes[group][name].seconds for each in found},
                    "notes": list(
                        dict.fromkeys(note for each in found for note in each.outcomes[group][name].notes)
                    ),
                    "plan": first.more.get("plan"),
                    "items": [_item(item, by_item) for item in list(order)[:n_shown]],
                }
            )
    return sets


def _item(item: str, by_item: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    own = {row: items[item] for row, items in by_item.items() if item in items}
    first = next(iter(own.values()))
    return {
        "item": item,
        "question": first.prompt,
        "gold": first.gold,
        "contexts": {row: each.context for row, each in own.items() if each.context},
        "answers": {row: each.reply for row, each in own.items()},
        "scores": {row: each.scores for row, each in own.items()},
        "reason": {row: each.reason for row, each in own.items() if each.reason},
    }


def _versions(found: Sequence[MeasuredSystem]) -> dict[str, str]:
    versions: dict[str, str] = {}
    for each in found:
        for outcome in each.outcomes.get("benchmarks", {}).values():
            versions |= outcome.more["versions"]
    return versions


def _warnings(inputs: Inputs, found: Sequence[MeasuredSystem]) -> list[str]:
    told = [
        f"{each.row}, {name}: {note}"
        for each in found
        for named in each.outcomes.values()
        for name, outcome in named.items()
        for note in outcome.notes
    ]
    return list(dict.fromkeys([*inputs.notes, *told]))

"""What `report.json` says of a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from transfuse import __version__
from transfuse.evaluate.scores import ItemScore, is_better_lower
from transfuse.io.hardware import hardware_text
from transfuse.io.run_folder import StageRecord
from transfuse.recipes.compare_figures import (
    PairedDifference,
    RowScores,
    against_reference,
    all_pairs,
    best_row,
)
from transfuse.recipes.compare_plan import Entry
from transfuse.recipes.compare_questions import ASKED, Questions
from transfuse.recipes.compare_routes import ROUTES
from transfuse.recipes.compare_schema import CompareRecipe
from transfuse.recipes.comparisons import comparison
from transfuse.recipes.fuse_schema import short_name
from transfuse.types import Estimate

MAIN_METRICS = ("f1/reworded", "bits_per_byte/average")
"""What rows are ranked by where the recipe names nothing: the first of these that is measured."""


@dataclass(frozen=True)
class DevelopmentTry:
    """One learning rate of a row's search."""

    learning_rate: float
    value: float | None
    """On development items; None where it could not be trained or measured."""
    metric: str
    reason: str = ""


@dataclass(frozen=True)
class Trained:
    """One training of a row."""

    seed: int | None
    """None where nothing is drawn, as in a merge."""
    result: Path | None
    n_tokens: int | None
    learning_rate: float | None
    seconds: float
    """Of the whole job: reading a teacher or sources, training, saving."""
    peak_memory_bytes: int
    disk_bytes: int
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """One measuring of a row."""

    scores: list[ItemScore]
    costs: Mapping[str, Any]
    seconds: float
    peak_memory_bytes: int
    folder: Path


@dataclass(frozen=True)
class RowResult:
    """What became of a row of the table."""

    entry: Entry
    reason: str = ""
    """Why it failed."""
    scores: RowScores | None = None
    """None where it failed."""
    tried: list[DevelopmentTry] = field(default_factory=list)
    trainings: list[Trained] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)


def report_json(
    recipe: CompareRecipe,
    stages: Sequence[StageRecord],
    command: str,
    results: Sequence[RowResult],
    questions: Questions,
) -> dict[str, Any]:
    """The report of a comparison.

    Args:
        recipe: as run.
        stages: met so far.
        command: as typed.
        results: of every row, at least one of them measured.
        questions: what was asked about the documents.

    Returns:
        JSON values.
    """
    scored = {each.entry.name: each.scores for each in results if each.scores is not None}
    found = {name: scores.estimates(recipe.seed) for name, scores in scored.items()}
    metrics = list(dict.fromkeys(metric for row in found.values() for metric in row))
    main = main_metric(recipe, metrics)
    reference = next((each.entry.name for each in results if each.scores is not None), None)
    best = best_row(found, main) if main else None
    return {
        "kind": "compare",
        "model": recipe.student,
        "seed": recipe.seed,
        "title": f"{short_name(recipe.student) or recipe.student}: {len(results)} ways compared",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "hardware": hardware_text(),
        "command": command,
        "rows": [
            {"name": each.entry.name, "metrics": _metrics_json(found.get(each.entry.name, {}))}
            for each in results
        ],
        "stages": [asdict(stage) for stage in stages],
        "comparisons": _comparisons(scored, [reference, best], recipe.seed),
        "compare": {
            "main_metric": main,
            "reference": reference,
            "best": best,
            "n_seeds": recipe.n_seeds,
            "budget": recipe.budget.model_dump(mode="json") | {"kinds": recipe.budget.tables},
            "metrics": {metric: metric_group(recipe, metric) for metric in metrics},
            "questions": {name: n for name, n in questions.counts.items() if name in ASKED},
            "development": questions.development or None,
            "rows": [_row_json(each) for each in results],
            "pairs": [_pair_json(each) for each in all_pairs(scored, main, recipe.seed)] if main else [],
        },
        "warnings": _warnings(recipe, results, reference),
    }


def main_metric(recipe: CompareRecipe, metrics: Sequence[str]) -> str | None:
    """What rows are ranked by: the recipe's choice, else what tells most of new knowledge, else the first."""
    named = recipe.evaluate.main_metric
    if named is not None and named in metrics:
        return named
    learned = [each for each in metrics if metric_group(recipe, each) == "knowledge"]
    return next((each for each in (*MAIN_METRICS, *learned, *metrics) if each in metrics), None)


def metric_group(recipe: CompareRecipe, metric: str) -> str:
    """`knowledge` (what was to be learned), `general`, or `refusals` (of what cannot be answered)."""
    stem, _, part = metric.partition("/")
    if stem == "wrong_answers" or part == "unanswerable":
        return "refusals"
    learned = set(recipe.evaluate.learned)
    learned |= set(ASKED) if recipe.knowledge.documents is not None else set()
    learned |= set(recipe.evaluate.samples) if recipe.knowledge.train_file is not None else set()
    learned |= {*recipe.knowledge.texts, "average"} if recipe.knowledge.texts else set()
    return "knowledge" if part in learned else "general"


def _metrics_json(found: Mapping[str, Estimate]) -> dict[str, Any]:
    return {metric: estimate._asdict() for metric, estimate in found.items()}


def _comparisons(
    scored: Mapping[str, RowScores], references: Sequence[str | None], seed: int
) -> list[dict[str, Any]]:
    """Every row against the first and against the best, as reports of every kind have it, with p values beside."""
    found: list[dict[str, Any]] = []
    for reference in dict.fromkeys(each for each in references if each is not None):
        for each in against_reference(scored, reference, seed):
            lower = is_better_lower(each.metric)
            told = comparison(each.metric, each.first, each.second, each.difference, is_better_lower=lower)
            found.append(told | {"p": each.p_value, "p_holm": each.adjusted_p, "holds": each.is_shown})
    return found


def _pair_json(each: PairedDifference) -> dict[str, Any]:
    return {
        "first": each.first,
        "second": each.second,
        "difference": each.difference._asdict(),
        "p": each.p_value,
        "p_holm": each.adjusted_p,
        "holds": each.is_shown,
    }


def _row_json(result: RowResult) -> dict[str, Any]:
    entry, trainings, measured = result.entry, result.trainings, result.measured
    rates = [each.learning_rate for each in trainings if each.learning_rate is not None]
    return {
        "name": entry.name,
        "route": entry.row.route,
        "meaning": ROUTES[entry.row.route].meaning
        + (", with passages that a search finds" if entry.row.retrieval else ""),
        "retrieval": bool(entry.row.retrieval),
        "budget": entry.budget,
        "state": "failed" if result.scores is None else "done",
        "reason": result.reason,
        "seeds": [each.seed for each in trainings if each.seed is not None],
        "learning_rate": rates[0] if rates else None,
        "tried": [asdict(each) for each in result.tried],
        "settings": entry.row.set,
        "costs": {
            "training_tokens": _mean(each.n_tokens for each in trainings),
            "training_s": _mean(each.seconds for each in trainings),
            "training_memory_bytes": max((each.peak_memory_bytes for each in trainings), default=None),
            "disk_bytes": _mean(each.disk_bytes for each in trainings),
            "measuring_s": _mean(each.seconds for each in measured),
            "measuring_memory_bytes": max((each.peak_memory_bytes for each in measured), default=None),
            "size_added_bytes": _mean(each.costs.get("size_added_bytes") for each in measured),
            "latency_s": _mean(each.costs.get("latency_s") for each in measured),
        },
        "measured": [str(each.folder) for each in measured],
        "results": [str(each.result) for each in trainings if each.result is not None],
    }


def _mean(values: Any) -> float | None:
    """Over seeds; None where nothing is known."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _warnings(recipe: CompareRecipe, results: Sequence[RowResult], reference: str | None) -> list[str]:
    noted: dict[str, None] = {}
    first = results[0].entry.name
    if reference != first:
        noted[f"{first}, which the others were to be held against, failed; {reference} takes its place."] = (
            None
        )
    named = recipe.evaluate.main_metric
    if named is not None and not any(each.scores and named in each.scores.metrics for each in results):
        noted[f"evaluate.main_metric is {named!r}, which no row has; rows are ranked by another."] = None
    for each in results:
        for note in dict.fromkeys(note for training in each.trainings for note in training.warnings):
            noted[f"{each.entry.name}: {note}"] = None
        rates = [tried.learning_rate for tried in each.tried if tried.value is not None]
        best = each.trainings[0].learning_rate if each.trainings and each.tried else None
        if best is not None and len(rates) > 1 and best in (min(rates), max(rates)):
            end, beyond = ("highest", "higher") if best == max(rates) else ("lowest", "lower")
            noted[
                f"{each.entry.name}: the {end} learning rate tried, {best:g}, did best; {beyond} ones may do better."
            ] = None
    return list(noted)

"""Every way to get knowledge into a student, on the same items: one table, whatever became of its rows.

Each training and each measuring is a `transfuse` command in a process of its own, so that equal ones are run once, a
killed comparison continues, time and memory are those of one row alone, and a row that fails takes no other with it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from transfuse.errors import DataError, RecipeError, TrainingError
from transfuse.evaluate.scores import SCORES_FILE, load_scores
from transfuse.io.files import write_json
from transfuse.io.hardware import manifest
from transfuse.io.run_folder import open_run
from transfuse.recipes.compare_checks import check_common, problems, shares_vocabulary
from transfuse.recipes.compare_figures import RowScores
from transfuse.recipes.compare_jobs import Job, JobRunner, Outcome, folder_bytes
from transfuse.recipes.compare_plan import Entry, entries, planned_jobs
from transfuse.recipes.compare_questions import (
    ASKED,
    DEVELOPMENT,
    TUNING,
    DevelopmentItems,
    Questions,
    knowledge_rows,
    split_for_development,
    write_questions,
)
from transfuse.recipes.compare_report import (
    DevelopmentTry,
    Measured,
    RowResult,
    Trained,
    report_json,
)
from transfuse.recipes.compare_routes import (
    ROUTES,
    Materials,
    merge_words,
    plain_system,
    system_tree,
    training_recipe,
)
from transfuse.recipes.compare_schema import CompareRecipe
from transfuse.recipes.progress import Display
from transfuse.recipes.schema import InjectRecipe, Recipe, make_recipe
from transfuse.recipes.team import Team

RUN_WORDS = ("run", "{recipe}", "--out", "{out}")


class RowFailedError(Exception):
    """A job of a row did not come to its end; the other rows go on."""


@dataclass(frozen=True)
class _Comparison:
    """What all rows share while a comparison runs."""

    recipe: CompareRecipe
    display: Display
    runner: JobRunner
    files: Materials
    questions: Questions
    development: DevelopmentItems


def run_compare(
    recipe: CompareRecipe, out: Path, *, overwrite: bool, command: str, is_strict: bool = False
) -> Path:
    """Run a comparison, or continue it where an earlier process stopped.

    Args:
        recipe: what to compare.
        out: the run folder.
        overwrite: whether a folder of a different recipe may be taken over; jobs that are unaffected are kept.
        command: for the manifest and the report.
        is_strict: refuse to begin where a row cannot run on this machine, instead of leaving it out.

    Returns:
        The run folder, with `report.json` in it.

    Raises:
        TransfuseError: a fault that concerns every row; a row that cannot run, where that is not allowed.
    """
    if Team().size > 1:
        raise RecipeError(
            "transfuse compare runs in one process and starts its own; start it without a launcher."
        )
    display, started = Display(), _now()
    check_common(recipe)
    unfit = problems(recipe)
    _tell(unfit, recipe, display, is_strict=is_strict)
    with open_run(out, recipe.model_dump(mode="json"), overwrite=overwrite) as run:
        write_json(run.path / "manifest.json", manifest(command, started, None))
        runner = JobRunner(run.path / "jobs", display, _n_jobs(recipe, unfit))
        files = _written_knowledge(recipe, runner, Materials.given(recipe))
        files, development = split_for_development(recipe, run, files)
        shared = _Comparison(recipe, display, runner, files, write_questions(recipe, run, files), development)
        results = [_row(shared, entry, unfit.get(entry.row_name, "")) for entry in entries(recipe)]
        _refuse_nothing(results)
        report = report_json(recipe, run.stages, command, results, shared.questions)
        write_json(run.path / "report.json", report)
        write_json(run.path / "manifest.json", manifest(command, started, _now()))
        _tell_failures(results, display)
    return out


def _tell(unfit: Mapping[str, str], recipe: CompareRecipe, display: Display, *, is_strict: bool) -> None:
    """Say which rows cannot run before anything is begun."""
    if not unfit:
        return
    listed = "".join(f"\n  {name}: {reason}" for name, reason in unfit.items())
    if is_strict:
        raise RecipeError(f"{len(unfit)} of {len(recipe.rows)} rows cannot run here:{listed}")
    if len(unfit) == len(recipe.rows):
        raise RecipeError(f"no row can run here:{listed}")
    display.say(
        f"Note: {len(unfit)} of {len(recipe.rows)} rows cannot run here, and will stand as failed:{listed}"
    )


def _n_jobs(recipe: CompareRecipe, unfit: Mapping[str, str]) -> int:
    needs_writing = recipe.knowledge.documents is not None and recipe.knowledge.qa is None
    return sum(planned_jobs(recipe, unfit)) + needs_writing


def _written_knowledge(recipe: CompareRecipe, runner: JobRunner, files: Materials) -> Materials:
    """Facts and questions by the generator, once for all rows, where the recipe gives none."""
    if recipe.knowledge.documents is None or files.qa is not None:
        return files
    rows = knowledge_rows(recipe)
    recipes = [training_recipe(recipe, name, files, seed=recipe.seed) for name in rows]
    asking = [each for each in recipes if isinstance(each, InjectRecipe)]
    if not asking:
        raise RecipeError(
            "knowledge: a generator writes questions for rows that train on them, and there are none; give facts and "
            "qa files."
        )
    most = max(asking, key=lambda each: each.scale)
    job = Job("facts and questions", (*RUN_WORDS, "--stop-after", "questions"), most.model_dump(mode="json"))
    outcome = runner.run(job)
    if not outcome.is_done:
        raise RecipeError(f"knowledge: facts and questions could not be written: {outcome.reason}")
    facts = outcome.folder / "facts.jsonl"
    return Materials(
        facts if facts.is_file() else files.facts, outcome.folder / "qa.jsonl", files.train_file, files.texts
    )


def _row(shared: _Comparison, entry: Entry, problem: str) -> RowResult:
    """Train and measure one row; what failed stands in its result."""
    if problem:
        return RowResult(entry, reason=problem)
    tried: list[DevelopmentTry] = []
    trainings: list[Trained] = []
    try:
        rate = _best_rate(shared, entry, tried) if entry.is_tuned else None
        trainings += _trainings(shared, entry, rate)
        measured = [_measure(shared, entry, each) for each in (trainings or [None])]
    except (RowFailedError, DataError, RecipeError) as err:
        return RowResult(entry, reason=str(err), tried=tried, trainings=trainings)
    scores = RowScores([each.scores for each in measured], list(shared.recipe.knowledge.texts))
    return RowResult(entry, scores=scores, tried=tried, trainings=trainings, measured=measured)


def _trainings(shared: _Comparison, entry: Entry, rate: float | None) -> list[Trained]:
    """One training of the row a seed; none where nothing is trained."""
    if entry.row.route == "merge":
        return [_merged(shared, entry)]
    if entry.budget is None:
        return []
    return [_train(shared, entry, shared.recipe.seed + n, rate) for n in range(shared.recipe.n_seeds)]


def _train(shared: _Comparison, entry: Entry, seed: int, rate: float | None) -> Trained:
    made = training_recipe(
        shared.recipe,
        entry.row_name,
        shared.files,
        seed=seed,
        budget=entry.budget or "as-set",
        learning_rate=rate,
    )
    stop = ("--stop-after", "training") if made.kind == "inject" else ()
    at = f", rate {rate:g}" if rate is not None else ""
    outcome = _done(
        shared.runner.run(
            Job(f"{entry.row_name}, seed {seed}{at}", (*RUN_WORDS, *stop), made.model_dump(mode="json"))
        )
    )
    return _trained(outcome, seed, _told(made, outcome.folder))


def _merged(shared: _Comparison, entry: Entry) -> Trained:
    words = merge_words(shared.recipe, entry.row, f"rows.{entry.row_name}")
    outcome = _done(shared.runner.run(Job(f"{entry.row_name}, merge", (*words, "--out", "{out}"))))
    return Trained(
        None,
        outcome.folder,
        None,
        None,
        outcome.seconds,
        outcome.peak_memory_bytes,
        folder_bytes(outcome.folder),
    )


def _trained(outcome: Outcome, seed: int, told: Mapping[str, Any]) -> Trained:
    result = next(
        (outcome.folder / name for name in ("adapter", "model") if (outcome.folder / name).is_dir()), None
    )
    if result is None:
        raise RowFailedError(f"{outcome.label}: left neither an adapter nor a model in {outcome.folder}.")
    return Trained(
        seed,
        result,
        told.get("n_tokens"),
        (told.get("settings") or {}).get("learning_rate"),
        outcome.seconds,
        outcome.peak_memory_bytes,
        folder_bytes(outcome.folder.parent),
        list(told.get("warnings") or []),
    )


def _told(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What a finished training says of itself."""
    if recipe.kind == "inject":
        return json.loads((folder / "training" / "training.json").read_text(encoding="utf-8"))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return (report.get("training") or {}) | {"warnings": report.get("warnings") or []}


def _measure(shared: _Comparison, entry: Entry, trained: Trained | None) -> Measured:
    """What a row's system scores on everything that is asked."""
    tree = _asked(shared, entry) | system_tree(
        shared.recipe, entry.row, trained.result if trained else None, shared.questions.files.get(TUNING)
    )
    seed = f", seed {trained.seed}" if trained is not None and trained.seed is not None else ""
    outcome = _evaluated(shared, f"{entry.row_name}{seed}, measured", tree)
    report = json.loads((outcome.folder / "report.json").read_text(encoding="utf-8"))
    return Measured(
        load_scores(outcome.folder / SCORES_FILE),
        (report.get("costs") or {}).get("model") or {},
        outcome.seconds,
        outcome.peak_memory_bytes,
        outcome.folder,
    )


def _evaluated(shared: _Comparison, label: str, tree: Mapping[str, Any]) -> Outcome:
    made = make_recipe(dict(tree), where=label)
    return _done(shared.runner.run(Job(label, RUN_WORDS, made.model_dump(mode="json"))))


def _asked(shared: _Comparison, entry: Entry) -> dict[str, Any]:
    """The same questions, samples, texts and benchmarks for every row, as an eval recipe names them."""
    recipe, asked = shared.recipe, shared.recipe.evaluate
    tree = _eval_frame(recipe) | {
        "texts": {name: str(path) if path else None for name, path in asked.texts.items()},
        "n_texts": asked.n_texts,
        "latency_n": asked.latency_n,
    }
    if entry.row.route == "ensemble" and not shares_vocabulary(recipe, entry.row):
        return tree
    wanted: dict[str, bool] = dict(zip(ASKED, (asked.direct, asked.reworded, asked.kept_out), strict=True))
    tree["questions"] = {
        name: _question_set(shared, path) for name, path in shared.questions.files.items() if wanted.get(name)
    }
    told = asked.model_dump(mode="json", include={"benchmarks", "samples", "unanswerable", "judge"})
    return tree | {name: value for name, value in told.items() if value}


def _eval_frame(recipe: CompareRecipe) -> dict[str, Any]:
    return {
        "kind": "eval",
        "seed": recipe.seed,
        "precision": recipe.precision,
        "trust_remote_code": recipe.trust_remote_code,
    }


def _question_set(shared: _Comparison, path: Path) -> dict[str, Any]:
    return {
        "qa": str(path),
        "split": None,
        "facts": str(shared.files.facts) if shared.files.facts else None,
        "max_new_tokens": shared.recipe.evaluate.max_new_tokens,
    }


def _best_rate(shared: _Comparison, entry: Entry, tried: list[DevelopmentTry]) -> float:
    """The learning rate of the best value on development items, tried with the first seed."""
    for rate in shared.recipe.budget.learning_rates:
        try:
            trained = _train(shared, entry, shared.recipe.seed, rate)
            assert trained.result is not None  # noqa: S101 - a training leaves one
            tree, metric = _development_tree(shared, entry, trained.result)
            outcome = _evaluated(shared, f"{entry.row_name}, rate {rate:g}, development", tree)
        except RowFailedError as err:
            tried.append(DevelopmentTry(rate, None, "", str(err)))
            continue
        own = [
            score for score in load_scores(outcome.folder / SCORES_FILE) if score.metric.startswith(metric)
        ]
        values = RowScores([own]).estimates(shared.recipe.seed)
        known = [each.value for each in values.values() if each.value is not None]
        tried.append(DevelopmentTry(rate, fmean(known) if known else None, metric))
    scored = [each for each in tried if each.value is not None]
    if not scored:
        raise RowFailedError(tried[-1].reason or "no learning rate could be measured on development items")
    is_lower = scored[0].metric.startswith("bits_per_byte")
    return (min if is_lower else max)(scored, key=lambda each: each.value or 0.0).learning_rate


def _development_tree(shared: _Comparison, entry: Entry, result: Path) -> tuple[dict[str, Any], str]:
    """An eval recipe of the development items that belong to the row's route, and the metric that counts."""
    recipe, kept_back = shared.recipe, shared.development
    tree = _eval_frame(recipe) | {"latency_n": 0} | plain_system(recipe, result)
    learned = ROUTES[entry.row.route].needs[0]
    if learned == "documents":
        asked = {"questions": {DEVELOPMENT: _question_set(shared, shared.questions.files[DEVELOPMENT])}}
        return tree | asked, "f1/"
    if learned == "train_file":
        samples = {"file": str(kept_back.samples), "generate": False}
        return tree | {"samples": {DEVELOPMENT: samples}}, "bits_per_byte/"
    return tree | {"texts": {name: str(path) for name, path in kept_back.texts.items()}}, "bits_per_byte/"


def _done(outcome: Outcome) -> Outcome:
    if not outcome.is_done:
        raise RowFailedError(f"{outcome.label}: {outcome.reason}")
    return outcome


def _refuse_nothing(results: Sequence[RowResult]) -> None:
    """A table without a single row is an error; what is done is kept, and a second run goes on from it."""
    if any(each.scores is not None for each in results):
        return
    listed = "".join(f"\n  {each.entry.name}: {each.reason}" for each in results)
    raise TrainingError(
        f"no row came to its end:{listed}\nRun the same command again to try the failed jobs anew."
    )


def _tell_failures(results: Sequence[RowResult], display: Display) -> None:
    failed = [each for each in results if each.scores is None]
    if failed:
        listed = "".join(f"\n  {each.entry.name}: {each.reason}" for each in failed)
        display.say(
            f"Note: {len(failed)} of {len(results)} rows failed; the same command tries them again:{listed}"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""An evaluation: one system, perhaps beside a second one, on benchmarks, questions, samples, texts and a judge."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transfuse.errors import MissingExtraError
from transfuse.evaluate.scores import SCORES_FILE, ItemScore, save_scores
from transfuse.generate.protocol import Reply
from transfuse.generate.reply_cache import ReplyCache
from transfuse.generate.settings import WITHOUT_EFFECT
from transfuse.inject.coverage import coverage
from transfuse.io.bundled import cache_folder
from transfuse.io.files import write_json
from transfuse.io.hardware import manifest
from transfuse.io.run_folder import RunFolder, open_run
from transfuse.recipes.embedding import cached_embedder
from transfuse.recipes.eval_benchmarks import ask_benchmark
from transfuse.recipes.eval_inputs import (
    CoverageInputs,
    Inputs,
    contexts_key,
    path_digest,
    read_inputs,
    settings_key,
    texts_digest,
)
from transfuse.recipes.eval_latency import measure_latency
from transfuse.recipes.eval_outcome import Outcome, ShownItem, measured, pooled_scores
from transfuse.recipes.eval_questions_asked import ask_samples, ask_set, ask_unanswerable
from transfuse.recipes.eval_report import MeasuredSystem, report_json
from transfuse.recipes.eval_schema import UNANSWERABLE, EvalRecipe
from transfuse.recipes.eval_system import System, open_systems
from transfuse.recipes.eval_texts import measure_texts
from transfuse.recipes.judging import Judged, answer_instructions, judge, judge_key
from transfuse.recipes.progress import Display

GROUP_VERSIONS = {
    "questions": 1,
    UNANSWERABLE: 1,
    "samples": 1,
    "texts": 1,
    "benchmarks": 1,
    "replies": 1,
    "latency": 1,
}
COVERAGE_VERSION = 1
REPLIES = "evaluations/replies.sqlite"
"""In the user's cache: replies to questions, by model, adapter and request."""


def run_eval(recipe: EvalRecipe, out: Path, *, overwrite: bool, command: str) -> Path:
    """Measure what a recipe names, or continue where an earlier process stopped.

    Args:
        recipe: what to do.
        out: the run folder.
        overwrite: whether a folder of a different recipe may be taken over.
        command: for the manifest and the report.

    Returns:
        The run folder, with `report.json` and the scores of every item in it.

    Raises:
        TransfuseError: any fault of the input, the models or the machine, with what to do.
    """
    display, started = Display(), _now()
    systems = open_systems(recipe)
    inputs = read_inputs(recipe)
    free = [f"judge.{name}" for name in WITHOUT_EFFECT]
    with open_run(out, recipe.model_dump(mode="json"), overwrite=overwrite, free=free) as run:
        write_json(run.path / "manifest.json", manifest(command, started, None))
        covered = _coverage(recipe, run, inputs.coverage) if inputs.coverage else None
        found = [_measure(_Evaluation(recipe, run, display, inputs, system)) for system in systems]
        judged = _judge(recipe, run, display, found) if recipe.judge is not None else None
        scores = _save_scores(run, found, covered, judged)
        write_json(
            run.path / "report.json",
            report_json(recipe, run.stages, command, inputs, found, scores, covered, judged),
        )
        write_json(run.path / "manifest.json", manifest(command, started, _now()))
    return out


@dataclass(frozen=True)
class _Evaluation:
    """One system and everything that is asked of it."""

    recipe: EvalRecipe
    run: RunFolder
    display: Display
    inputs: Inputs
    system: System

    def group(
        self,
        group: str,
        name: str,
        key: Mapping[str, Any],
        measure: Callable[[Path], Outcome],
        *,
        keeps: bool = True,
    ) -> Outcome:
        """A group's outcome, in a stage of its own."""
        return measured(
            self.run,
            "/".join(["measured", self.system.row, *dict.fromkeys((group, name))]),
            {"group": group, "name": name, "system": self.system.identity, **key},
            measure,
            system=self.system,
            version=GROUP_VERSIONS[group],
            keeps=keeps and self.recipe.cache,
        )


def _measure(of: _Evaluation) -> MeasuredSystem:
    """A system on every group, questions first; its weights are let go of at the end."""
    recipe, inputs, system = of.recipe, of.inputs, of.system
    outcomes: dict[str, dict[str, Outcome]] = {}
    path = cache_folder() / REPLIES if recipe.cache else of.run.path / "measured" / "replies.sqlite"
    with ReplyCache(path) as cache:
        generator = system.generator(cache)
        contexts = {**contexts_key(system.settings), "seed": recipe.seed}
        for name, pairs in inputs.questions.items():
            settings, facts = recipe.questions[name], inputs.facts.get(name, [])
            outcomes.setdefault("questions", {})[name] = of.group(
                "questions",
                name,
                {"settings": settings_key(settings, "qa", "facts"), "contexts": contexts},
                lambda folder, name=name, settings=settings, pairs=pairs, facts=facts: ask_set(
                    recipe, system, generator, name, settings, pairs, facts, folder, of.display
                ),
            )
        unanswerable = recipe.unanswerable
        if unanswerable is not None:
            outcomes[UNANSWERABLE] = {
                UNANSWERABLE: of.group(
                    UNANSWERABLE,
                    UNANSWERABLE,
                    {"settings": settings_key(unanswerable, "file"), "contexts": contexts},
                    lambda folder: ask_unanswerable(
                        recipe, system, generator, unanswerable, inputs.unanswerable, folder, of.display
                    ),
                )
            }
        for name, samples in inputs.samples.items():
            settings = recipe.samples[name]
            outcomes.setdefault("samples", {})[name] = of.group(
                "samples",
                name,
                {"settings": settings_key(settings, "file"), "kind": samples.kind},
                lambda folder, name=name, settings=settings, samples=samples: ask_samples(
                    system, generator, name, settings, samples, folder, of.display
                ),
            )
        if recipe.judge is not None:
            outcomes["replies"] = {recipe.judge.set_name: _replies(of, generator)}
    for name, texts in inputs.texts.items():
        outcomes.setdefault("texts", {})[name] = of.group(
            "texts",
            name,
            {"texts": texts_digest(texts)},
            lambda folder, name=name, texts=texts: measure_texts(system, name, texts, folder, of.display),
        )
    for name, settings in recipe.benchmarks.items():
        outcomes.setdefault("benchmarks", {})[name] = of.group(
            "benchmarks",
            name,
            {"settings": settings_key(settings, "data"), "seed": recipe.seed},
            lambda folder, name=name, settings=settings: ask_benchmark(
                recipe, system, name, settings, folder, of.display
            ),
        )
    if recipe.latency_n and not system.is_mixed:
        asked = {**outcomes.get("questions", {}), **outcomes.get(UNANSWERABLE, {})}
        outcomes["latency"] = {"latency": _latency(of, asked)}
    system.release()
    return MeasuredSystem(system.row, system.settings, system.size_added_bytes, outcomes)


def _replies(of: _Evaluation, generator: Any) -> Outcome:
    """The system's replies to the judge's instructions."""
    settings = of.recipe.judge
    assert settings is not None  # noqa: S101 - asked for only then
    key = {"n_items": settings.n_items, "max_new_tokens": settings.max_new_tokens}

    def measure(folder: Path) -> Outcome:
        replies = answer_instructions(settings, generator, of.display, f"instructions, {of.system.row}")
        items = [ShownItem(str(n), "", each.text, "", {}, each.error) for n, each in enumerate(replies)]
        return Outcome([], items)

    instructions = path_digest(settings.instructions)
    return of.group("replies", settings.set_name, {**key, "instructions": instructions}, measure)


def _latency(of: _Evaluation, asked: Mapping[str, Outcome]) -> Outcome:
    """Single answers, timed; never taken from another run."""
    key = {"n": of.recipe.latency_n, "asked": of.recipe.model_dump(mode="json"), "seed": of.recipe.seed}
    return of.group(
        "latency",
        "latency",
        key,
        lambda _folder: measure_latency(of.recipe, of.system, of.inputs, asked, of.display),
        keeps=False,
    )


def _judge(recipe: EvalRecipe, run: RunFolder, display: Display, found: list[MeasuredSystem]) -> Judged:
    """The judge compares the first system's replies with the second's, or with those of the file."""
    settings = recipe.judge
    assert settings is not None  # noqa: S101 - asked for only then
    ours, *others = [
        [Reply(item.reply, error=item.reason) for item in each.outcomes["replies"][settings.set_name].items]
        for each in found
    ]
    key = {**judge_key(settings), "ours": [r.text for r in ours], "seed": recipe.seed}
    if others:
        key["theirs"] = [reply.text for reply in others[0]]
    # What the judge said is kept reply by reply, so a finished stage is cheap to do again.
    with run.stage("judged", key, version=1) as stage:
        return judge(
            settings,
            ours,
            others[0] if others else None,
            stage.folder,
            display,
            seed=recipe.seed,
            precision=recipe.precision,
            trust_remote_code=recipe.trust_remote_code,
        )


def _coverage(recipe: EvalRecipe, run: RunFolder, given: CoverageInputs) -> Outcome:
    """Which facts the questions of a file carry: nothing of the model."""
    files = recipe.coverage
    assert files is not None  # noqa: S101 - there are inputs of it

    def measure(_folder: Path) -> Outcome:
        embed, note = None, "No embedding model was asked for."
        if files.embedder is not None:
            try:
                embed = cached_embedder(files.embedder, trust_remote_code=recipe.trust_remote_code).embed
                note = ""
            except MissingExtraError as err:
                note = f"Similarity was not measured: {err}"
        found = coverage(given.facts, given.pairs, embed=embed)
        scores = [
            ItemScore(f"fact_coverage/{measure}", fact.fact_id, fact.fact_id, float(n > 0), 1.0)
            for measure in ("linked", "by_answer", "by_similarity")
            for fact in found.facts
            if (n := getattr(fact, f"n_{measure}")) is not None
        ]
        by_similarity = [fact.n_by_similarity for fact in found.facts if fact.n_by_similarity is not None]
        summary = {
            "n_facts": len(found.facts),
            "n_by_answer": sum(fact.n_by_answer > 0 for fact in found.facts),
            "n_by_similarity": sum(n > 0 for n in by_similarity) if by_similarity else None,
            "embedder": files.embedder if embed else None,
            "note": note,
        }
        return Outcome(scores, more=summary)

    key = settings_key(files, "facts", "qa")
    return measured(run, "coverage", key, measure, system=None, version=COVERAGE_VERSION, keeps=recipe.cache)


def _save_scores(
    run: RunFolder, found: list[MeasuredSystem], covered: Outcome | None, judged: Judged | None
) -> dict[str, list[ItemScore]]:
    """The scores of every item at the top of the run folder, and by row."""
    scores = {
        each.row: pooled_scores(o for g in each.outcomes.values() for o in g.values()) for each in found
    }
    first = found[0].row
    scores[first] += covered.scores if covered else []
    scores[first] += judged.scores if judged else []
    for row, own in scores.items():
        save_scores(run.path / (SCORES_FILE if row == first else f"scores_{row}.jsonl"), own)
    return scores


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

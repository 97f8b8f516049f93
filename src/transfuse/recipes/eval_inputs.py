"""What an evaluation asks, read and checked before any weights are loaded."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfuse.errors import DataError
from transfuse.evaluate.bits_per_byte import load_texts
from transfuse.inject.knowledge import load_facts, load_pairs
from transfuse.io.documents import read_documents
from transfuse.io.files import file_sha256
from transfuse.io.run_folder import key_digest
from transfuse.io.task_files import load_tasks
from transfuse.recipes.eval_questions import load_questions, load_unanswerable
from transfuse.recipes.eval_schema import CoverageFiles, EvalRecipe, SystemSettings
from transfuse.recipes.inject_retrieval import check_retrieval
from transfuse.recipes.judging import check_judge
from transfuse.text.task_answers import AnswerKind, answer_kind
from transfuse.types import Fact, QAPair, TaskItem


@dataclass(frozen=True)
class Samples:
    """Chat samples, and what their answers are."""

    items: list[TaskItem]
    kind: AnswerKind


@dataclass(frozen=True)
class CoverageInputs:
    """Facts, and the questions that may carry them."""

    facts: list[Fact]
    pairs: list[QAPair]


@dataclass(frozen=True)
class Inputs:
    """Everything that is asked, by the names that the recipe gives."""

    questions: dict[str, list[QAPair]]
    facts: dict[str, list[Fact]]
    """Of each set of questions whose facts are given."""
    unanswerable: list[QAPair]
    samples: dict[str, Samples]
    texts: dict[str, list[str]]
    coverage: CoverageInputs | None
    benchmark_items: dict[str, int]
    """How many each benchmark asks."""
    notes: list[str]


def read_inputs(recipe: EvalRecipe) -> Inputs:
    """Read every file of a recipe, and open its benchmarks.

    Args:
        recipe: names them.

    Returns:
        What is asked.

    Raises:
        TransfuseError: a file is missing or malformed, a benchmark is unknown or its data is not there.
    """
    for settings in recipe.systems.values():
        _check_contexts(settings)
    if recipe.judge is not None:
        check_judge(recipe.judge, has_second=recipe.against is not None)
    questions = {
        name: load_questions(each.qa, split=each.split, n_items=each.n_items)
        for name, each in recipe.questions.items()
    }
    unanswerable: list[QAPair] = []
    if recipe.unanswerable is not None:
        unanswerable = load_unanswerable(recipe.unanswerable.file, recipe.unanswerable.n_items)
    samples: dict[str, Samples] = {}
    for name, each in recipe.samples.items():
        items = load_tasks(each.file)[: each.n_items]
        told = each.answers
        samples[name] = Samples(items, answer_kind([i.answer for i in items]) if told == "auto" else told)
    texts = {name: load_texts(path)[: recipe.n_texts] for name, path in recipe.texts.items()}
    benchmark_items, notes = _benchmarks(recipe)
    return Inputs(
        questions=questions,
        facts={name: load_facts(each.facts) for name, each in recipe.questions.items() if each.facts},
        unanswerable=unanswerable,
        samples=samples,
        texts=texts,
        coverage=_coverage(recipe.coverage) if recipe.coverage else None,
        benchmark_items=benchmark_items,
        notes=notes,
    )


def _benchmarks(recipe: EvalRecipe) -> tuple[dict[str, int], list[str]]:
    if not recipe.benchmarks:
        return {}, []
    from transfuse.evaluate.harness import check_benchmarks

    plans = check_benchmarks(recipe.benchmarks)
    notes = [f"benchmark {name}: {note}" for name, plan in plans.items() for note in plan.notes]
    return {name: plan.n_items for name, plan in plans.items()}, notes


def _coverage(files: CoverageFiles) -> CoverageInputs:
    facts = load_facts(files.facts)
    pairs = [p for p in load_pairs(files.qa, facts) if files.split is None or p.split == files.split]
    if not pairs:
        raise DataError(
            f"{files.qa}: expected questions of split {files.split!r}, found none; choose another split, or null."
        )
    return CoverageInputs(facts, pairs)


def _check_contexts(settings: SystemSettings) -> None:
    if settings.retrieval is not None:
        check_retrieval(settings.retrieval)
        read_documents(settings.retrieval.documents)
        if settings.retrieval.tuning is not None:
            load_questions(settings.retrieval.tuning, split="train")
    if settings.section_context is not None:
        read_documents(settings.section_context.documents)


def contexts_key(settings: SystemSettings) -> dict[str, Any]:
    """What changes with the texts that stand before questions."""
    if settings.retrieval is not None:
        told = settings.retrieval.model_dump(mode="json", exclude={"documents", "tuning"})
        tuning = settings.retrieval.tuning
        return {
            "retrieval": told,
            "documents": path_digest(settings.retrieval.documents),
            "tuning": file_sha256(tuning) if tuning else None,
        }
    if settings.section_context is not None:
        return {"section_context": path_digest(settings.section_context.documents)}
    return {}


def settings_key(settings: Any, *paths: str) -> dict[str, Any]:
    """Settings as JSON values, each named path by what it holds.

    Args:
        settings: a group of the recipe.
        *paths: names of its files or folders.

    Returns:
        For a stage's key.
    """
    told: dict[str, Any] = settings.model_dump(mode="json")
    for name in paths:
        value = getattr(settings, name)
        told[name] = path_digest(value) if value is not None else None
    return told


def path_digest(path: Path) -> str:
    """A digest of a file, or of the names and contents of all files in a folder."""
    if path.is_file():
        return file_sha256(path)
    files: Mapping[str, str] = {
        str(file.relative_to(path)): file_sha256(file) for file in sorted(path.rglob("*")) if file.is_file()
    }
    return key_digest(dict(files))


def texts_digest(texts: list[str]) -> str:
    """A digest of texts, in order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()

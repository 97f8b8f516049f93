"""What stands before each knowledge question: passages that a search finds, or the section that holds the answer."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from transfuse.baselines.rag import retrieval_recall, retrieved_contexts, tuning_questions
from transfuse.evaluate.questions import ask_questions
from transfuse.generate.protocol import Generator
from transfuse.io.documents import read_documents
from transfuse.recipes.eval_questions import load_questions
from transfuse.recipes.eval_schema import EvalRecipe, RetrievalSettings
from transfuse.recipes.eval_system import System
from transfuse.recipes.inject_knowledge import section_contexts
from transfuse.recipes.inject_model import without_note
from transfuse.recipes.inject_retrieval import choose_passages, find_passages
from transfuse.recipes.progress import Display
from transfuse.text.sections import split_sections
from transfuse.types import AnswerRecord, Fact, QAPair, Section

N_TIMED_SEARCHES = 8


@dataclass(frozen=True)
class Contexts:
    """The texts before the questions of one set."""

    by_question: dict[str, str | None] | None
    """By `QAPair.id`; None where questions stand alone."""
    asked: list[QAPair]
    """Those that are asked."""
    notes: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    """Of a search: how many passages were given, and how often they hold the answer."""


def contexts_of(
    recipe: EvalRecipe,
    system: System,
    generator: Generator,
    pairs: Sequence[QAPair],
    facts: Sequence[Fact],
    folder: Path,
    display: Display,
    *,
    max_new_tokens: int,
    needs_section: bool = True,
) -> Contexts:
    """What a system reads before each question of a set.

    Args:
        recipe: names the seed.
        system: says whether it searches.
        generator: the system, to choose how many passages to give.
        pairs: the questions.
        facts: of the questions, which name their sections.
        folder: of the stage; holds the index.
        display: progress.
        max_new_tokens: room that the answer needs.
        needs_section: whether questions without a section of their own are left out.

    Returns:
        Contexts and the questions that are asked.
    """
    settings = system.settings
    if settings.retrieval is not None:
        return _retrieved(
            recipe, system, settings.retrieval, generator, pairs, folder, display, max_new_tokens
        )
    if settings.section_context is not None:
        found = section_contexts(_sections(settings.section_context.documents), facts, pairs)
        asked = [pair for pair in pairs if pair.id in found or not needs_section]
        n_lost = len(pairs) - len(asked)
        notes = [f"{n_lost} questions are not asked: their section is not in the documents"] if n_lost else []
        return Contexts({pair.id: found.get(pair.id) for pair in asked}, asked, notes)
    return Contexts(None, list(pairs))


def _sections(documents: Path) -> list[Section]:
    read, _ = read_documents(documents)
    return [section for document in read for section in split_sections(document)[0]]


def _retrieved(
    recipe: EvalRecipe,
    system: System,
    settings: RetrievalSettings,
    generator: Generator,
    pairs: Sequence[QAPair],
    folder: Path,
    display: Display,
    max_new_tokens: int,
) -> Contexts:
    tuning: list[QAPair] = []
    if settings.n_passages is None and settings.tuning is not None:
        drawn = tuning_questions(
            load_questions(settings.tuning, split="train"), settings.n_tuning_questions, recipe.seed
        )
        tuning = [_renamed(pair) for pair in drawn]
    top_n = settings.n_passages or max(settings.candidates)
    documents, _ = read_documents(settings.documents)
    found = find_passages(system, settings, folder, display, documents, [*tuning, *pairs], top_n)

    def fits(question: str, context: str) -> bool:
        return system.fits(question, context, max_new_tokens)

    def asked(k: int, contexts: Mapping[str, str | None]) -> list[AnswerRecord]:
        with display.bar(f"training questions, {k} passages") as advance:
            return ask_questions(
                tuning,
                generator,
                contexts=contexts,
                max_new_tokens=max_new_tokens,
                on_replies=without_note(advance),
            )

    k, chosen = choose_passages(settings, settings.n_passages, found, tuning, asked, fits, recipe.seed)
    contexts, shortened = retrieved_contexts(pairs, found.hits, k, fits)
    more = chosen | {
        "recall": retrieval_recall(pairs, contexts, recipe.seed)._asdict(),
        "n_shortened": len(shortened),
        "index_bytes": _folder_bytes(folder / "index"),
        "search_s": _search_seconds(system, settings, folder / "index", [pair.question for pair in pairs]),
    }
    notes = (
        [f"{len(shortened)} questions have fewer passages before them than were to be"] if shortened else []
    )
    return Contexts(dict(contexts), list(pairs), notes, more)


def _search_seconds(
    system: System, settings: RetrievalSettings, index: Path, questions: Sequence[str]
) -> float | None:
    """Median time of finding the passages of a single question, its embedding included; None without an index."""
    if settings.embedder is None or not index.is_dir() or not questions:
        return None
    from transfuse.knowledge.embeddings import load_embedder
    from transfuse.knowledge.index import open_index

    embedder = load_embedder(settings.embedder, trust_remote_code=system.trust_remote_code)
    opened, taken = open_index(index), []
    top_n = settings.n_passages or max(settings.candidates)
    for question in [questions[0], *questions[:N_TIMED_SEARCHES]]:  # the first one warms up
        started = time.monotonic()
        opened.search([question], embedder, top_n=top_n, mode=settings.mode)
        taken.append(time.monotonic() - started)
    return median(taken[1:])


def _renamed(pair: QAPair) -> QAPair:
    """A question of another file, whose id may stand in the asked set as well."""
    return QAPair(
        f"tuning {pair.id}", pair.basis, pair.source, pair.split, pair.question, pair.answer, pair.aliases
    )


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0

"""Retrieval beside training: the same model with passages before the question, untouched and trained."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transfuse.baselines.rag import Fits, retrieval_recall, retrieved_contexts, tuning_questions
from transfuse.baselines.rag_settings import RagSettings
from transfuse.evaluate.questions import ask_questions
from transfuse.generate.local import context_tokens
from transfuse.generate.protocol import Generator
from transfuse.io.chat import prompt_format
from transfuse.io.files import write_json
from transfuse.io.jsonl import read_jsonl, write_jsonl
from transfuse.io.models import LoadedModel
from transfuse.io.run_folder import RunFolder
from transfuse.recipes.inject_knowledge import Knowledge
from transfuse.recipes.inject_model import (
    generator_of,
    load_student,
    load_trained,
    result_name,
    without_note,
)
from transfuse.recipes.inject_retrieval import (
    Found,
    choose_passages,
    find_passages,
    model_stamps,
    searched_documents,
)
from transfuse.recipes.progress import Display
from transfuse.recipes.schema import InjectRecipe, resolved
from transfuse.types import AnswerRecord, Document, Dropped, QAPair

RAG_VERSION, TRAINED_RAG_VERSION = 1, 1

ANSWERS, ANSWERS_KEPT_OUT = "answers.jsonl", "answers_kept_out.jsonl"
CONTEXTS, SUMMARY = "contexts.jsonl", "retrieval.json"


@dataclass(frozen=True)
class Retrieved:
    """What was found, and what the untouched model made of it."""

    answers: dict[str, list[AnswerRecord]]
    """By the end of the row's name: `` or `/kept-out`."""
    contexts: dict[str, str | None]
    """What stood before each eval question, by `QAPair.id`."""
    summary: dict[str, Any]
    """What `report.json` says of the retrieval."""
    dropped: list[Dropped]
    key: str
    """Changes with anything that the contexts depend on."""


def measure_rag(
    recipe: InjectRecipe,
    run: RunFolder,
    display: Display,
    documents: Sequence[Document],
    knowledge: Knowledge,
    weights: Mapping[str, Any],
) -> Retrieved | None:
    """The untouched model with the passages that a search finds before each eval question.

    How many passages is chosen on training questions; no eval question is asked before that is settled.

    Args:
        recipe: names the settings.
        run: the run folder.
        display: progress.
        documents: those to search.
        knowledge: sections in use, training and eval pairs.
        weights: the key of the model.

    Returns:
        Answers, contexts and what to report; None where the recipe leaves retrieval out.

    Raises:
        TransfuseError: a model cannot be loaded, or the run folder cannot be written.
    """
    settings = recipe.rag
    if settings is None:
        return None
    if recipe.include or recipe.exclude:
        documents = searched_documents(documents, knowledge.sections)
    selection = knowledge.selection
    tuning: list[QAPair] = []
    if settings.k is None:
        tuning = tuning_questions(selection.train, settings.n_tuning_questions, recipe.seed)
    key = {
        **weights,
        "documents": {each.name: hashlib.sha256(each.text.encode()).hexdigest() for each in documents},
        "settings": resolved(recipe)["rag"],
        "search_models": model_stamps(settings),
        "tuning": [asdict(pair) for pair in tuning],
        "eval": [asdict(pair) for pair in selection.evaluate],
        "eval_kept_out": [asdict(pair) for pair in selection.evaluate_kept_out],
        "max_new_tokens": recipe.evaluate.max_new_tokens,
        "seed": recipe.seed,
    }
    outputs = [run.path / "rag" / name for name in (ANSWERS, ANSWERS_KEPT_OUT, CONTEXTS, SUMMARY)]
    with run.stage("rag", key, version=RAG_VERSION, outputs=outputs) as stage:
        if not stage.is_done:
            evaluated = [*selection.evaluate, *selection.evaluate_kept_out]
            top_n = settings.k or max(settings.candidates)
            found = find_passages(
                recipe, settings, stage.folder, display, documents, [*tuning, *evaluated], top_n
            )
            _answer(recipe, settings, stage.folder, display, knowledge, tuning, found)
    told = json.loads((stage.folder / SUMMARY).read_text(encoding="utf-8"))
    return Retrieved(
        answers=_answers_in(stage.folder),
        contexts={row.value["item"]: row.value["context"] for row in read_jsonl(stage.folder / CONTEXTS)},
        summary=told["summary"],
        dropped=[Dropped(**each) for each in told["dropped"]],
        key=stage.key,
    )


def _answer(
    recipe: InjectRecipe,
    settings: RagSettings,
    folder: Path,
    display: Display,
    knowledge: Knowledge,
    tuning: Sequence[QAPair],
    found: Found,
) -> None:
    """Choose how many passages to give, ask the eval questions with so many, and write everything down."""
    loaded = load_student(recipe)
    generator, fits = generator_of(loaded), _fits(loaded, recipe.evaluate.max_new_tokens)

    def asked(k: int, contexts: Mapping[str, str | None]) -> list[AnswerRecord]:
        title = f"training questions, k = {k}"
        return _kept(
            folder / f"tuning_{k}.jsonl", lambda: _ask(recipe, display, title, tuning, generator, contexts)
        )

    k, chosen = choose_passages(settings, settings.k, found, tuning, asked, fits, recipe.seed)
    how = f", chosen on {len(tuning)} training questions" if chosen["tuning"] else ""
    display.say(f"Passages before each question: {k} of {found.n_passages}{how}.")
    selection = knowledge.selection
    evaluated = [*selection.evaluate, *selection.evaluate_kept_out]
    contexts, dropped = retrieved_contexts(evaluated, found.hits, k, fits)
    write_jsonl(folder / CONTEXTS, [{"item": item, "context": text} for item, text in contexts.items()])
    records = _ask(recipe, display, f"questions, {k} passages", evaluated, generator, contexts)
    _save_answers(folder, records, len(selection.evaluate))
    summary = chosen | {
        "recall": retrieval_recall(selection.evaluate, contexts, recipe.seed)._asdict(),
        "recall_kept_out": retrieval_recall(selection.evaluate_kept_out, contexts, recipe.seed)._asdict(),
        "n_shortened": len(dropped),
    }
    told_already = {(each.kind, each.what) for each in knowledge.dropped}
    lost = [each for each in found.dropped if (each.kind, each.what) not in told_already]
    told = {"summary": summary, "dropped": [asdict(each) for each in [*lost, *dropped]]}
    write_json(folder / SUMMARY, told)


def measure_trained_rag(
    recipe: InjectRecipe,
    run: RunFolder,
    display: Display,
    knowledge: Knowledge,
    retrieved: Retrieved | None,
    key: Mapping[str, Any],
) -> dict[str, list[AnswerRecord]]:
    """The trained model with the very contexts that the untouched one was given.

    Args:
        recipe: what was trained.
        run: the run folder, with the result in it.
        display: progress.
        knowledge: eval pairs.
        retrieved: the contexts; None where the recipe leaves retrieval out.
        key: of the result.

    Returns:
        Answers by the end of the row's name (`` and `/kept-out`); empty without retrieval.
    """
    if retrieved is None:
        return {}
    selection = knowledge.selection
    evaluated = [*selection.evaluate, *selection.evaluate_kept_out]
    name = f"{result_name(recipe)}+rag"
    outputs = [run.path / name / file for file in (ANSWERS, ANSWERS_KEPT_OUT)]
    with run.stage(
        name, {**key, "rag": retrieved.key}, version=TRAINED_RAG_VERSION, outputs=outputs
    ) as stage:
        if not stage.is_done:
            loaded, model = load_trained(recipe, run.path)
            title = "questions after, with passages"
            records = _ask(recipe, display, title, evaluated, generator_of(loaded, model), retrieved.contexts)
            _save_answers(stage.folder, records, len(selection.evaluate))
    return _answers_in(stage.folder)


def _fits(loaded: LoadedModel, max_new_tokens: int) -> Fits:
    """Whether the whole prompt leaves room for the answer, as `LocalGenerator` asks for."""
    prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
    limit = context_tokens(loaded.model)

    def fits(question: str, context: str) -> bool:
        return (
            limit is None or len(prompts.encode_question(question, context=context)) + max_new_tokens <= limit
        )

    return fits


def _ask(
    recipe: InjectRecipe,
    display: Display,
    title: str,
    pairs: Sequence[QAPair],
    generator: Generator,
    contexts: Mapping[str, str | None],
) -> list[AnswerRecord]:
    limit = recipe.evaluate.max_new_tokens
    with display.bar(title) as advance:
        return ask_questions(
            pairs, generator, contexts=contexts, max_new_tokens=limit, on_replies=without_note(advance)
        )


def _kept(path: Path, ask: Callable[[], list[AnswerRecord]]) -> list[AnswerRecord]:
    """The answers in a file of this stage, given now where a killed process has not left them."""
    if not path.is_file():
        write_jsonl(path, [asdict(record) for record in ask()])
    return [AnswerRecord(**line.value) for line in read_jsonl(path)]


def _save_answers(folder: Path, records: Sequence[AnswerRecord], n_trained: int) -> None:
    write_jsonl(folder / ANSWERS, [asdict(record) for record in records[:n_trained]])
    write_jsonl(folder / ANSWERS_KEPT_OUT, [asdict(record) for record in records[n_trained:]])


def _answers_in(folder: Path) -> dict[str, list[AnswerRecord]]:
    return {
        row: [AnswerRecord(**line.value) for line in read_jsonl(folder / name)]
        for row, name in {"": ANSWERS, "/kept-out": ANSWERS_KEPT_OUT}.items()
    }

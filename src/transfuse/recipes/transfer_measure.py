"""What a student, its teacher or a trained arm is worth on the eval samples."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from transfuse.evaluate.bits_per_byte import bits_per_byte, load_texts, text_losses
from transfuse.evaluate.task_losses import ItemLoss, answer_losses, answer_losses_and_choices
from transfuse.evaluate.tasks import ask_tasks
from transfuse.generate.local import LocalGenerator
from transfuse.io.chat import prompt_format
from transfuse.io.files import file_sha256, write_json
from transfuse.io.jsonl import read_jsonl, write_jsonl
from transfuse.io.models import LoadedModel, load_model
from transfuse.io.run_folder import RunFolder
from transfuse.io.task_files import load_tasks
from transfuse.recipes.inject_model import without_note
from transfuse.recipes.progress import Display
from transfuse.recipes.transfer_schema import TransferRecipe
from transfuse.text.task_answers import AnswerKind, answer_kind
from transfuse.train.adapters import load_adapter
from transfuse.types import AnswerRecord, TaskItem

MEASURE_VERSION = 1


@dataclass(frozen=True)
class Measured:
    """One model on the eval samples."""

    losses: list[ItemLoss]
    answers: list[AnswerRecord]
    """Empty where the models were not asked."""
    texts: dict[str, dict[str, Any]]
    """Bits per byte by the text's name, as estimates."""


@dataclass(frozen=True)
class Questions:
    """The eval samples."""

    items: list[TaskItem]
    kind: AnswerKind
    key: dict[str, Any]


def read_questions(recipe: TransferRecipe) -> Questions | None:
    """The eval samples, and what their answers are.

    Args:
        recipe: names the file and how many.

    Returns:
        The samples; None where the recipe names none.

    Raises:
        DataError: the file is malformed.
    """
    if recipe.eval_file is None:
        return None
    items = load_tasks(recipe.eval_file)[: recipe.evaluate.n_items]
    told = recipe.evaluate.answers
    kind = answer_kind([item.answer for item in items]) if told == "auto" else told
    texts = {name: file_sha256(path) if path else None for name, path in recipe.evaluate.texts.items()}
    settings = recipe.evaluate.model_dump(mode="json", exclude={"texts", "teacher"})
    key = {"eval": file_sha256(recipe.eval_file), "kind": kind, "settings": settings, "texts": texts}
    return Questions(items, kind, key)


def measure(
    recipe: TransferRecipe,
    run: RunFolder,
    display: Display,
    questions: Questions,
    name: str,
    model: str,
    adapter: Path | None,
    key: Mapping[str, Any],
) -> Measured:
    """Measure a model from its files, as its user would load it, or read what an earlier process measured.

    Args:
        recipe: names what is measured.
        run: the run folder; the measurement has a stage of its own.
        display: progress.
        questions: the eval samples.
        name: of the stage.
        model: a model reference.
        adapter: a saved adapter to put onto it.
        key: changes with the model and the adapter.

    Returns:
        Losses, answers and texts.

    Raises:
        ModelError: the model or the adapter cannot be loaded.
    """
    full_key = {**questions.key, "precision": recipe.precision, **key}
    with run.stage(name, full_key, version=MEASURE_VERSION) as stage:
        if not stage.is_done:
            loaded = load_model(model, precision=recipe.precision, trust_remote_code=recipe.trust_remote_code)
            adapted = load_adapter(loaded.model, adapter) if adapter is not None else loaded.model
            save_measured(_measure(recipe, display, questions, loaded, adapted, name), stage.folder)
        return load_measured(stage.folder)


def _measure(
    recipe: TransferRecipe,
    display: Display,
    questions: Questions,
    loaded: LoadedModel,
    model: nn.Module,
    name: str,
) -> Measured:
    prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
    answers: list[AnswerRecord] = []
    with display.bar(f"losses, {name}") as advance:
        given = (model, prompts, questions.items, loaded.precision, without_note(advance))
        if questions.kind == "choice":
            losses, answers = answer_losses_and_choices(*given)
        else:
            losses = answer_losses(*given)
    if questions.kind != "choice" and recipe.evaluate.generate:
        generator = LocalGenerator(model, prompts, loaded.precision)
        with display.bar(f"answers, {name}") as advance:
            answers = ask_tasks(
                questions.items,
                generator,
                questions.kind,
                max_new_tokens=recipe.evaluate.max_new_tokens,
                on_replies=without_note(advance),
            )
    texts: dict[str, dict[str, Any]] = {}
    for text, path in recipe.evaluate.texts.items():
        with display.bar(f"text '{text}', {name}") as advance:
            found = text_losses(model, prompts, load_texts(path), loaded.precision, without_note(advance))
        texts[text] = bits_per_byte(found, recipe.seed)._asdict()
    return Measured(losses, answers, texts)


def save_measured(measured: Measured, folder: Path) -> None:
    """Write losses, answers and texts into a stage's folder."""
    write_jsonl(folder / "losses.jsonl", [loss._asdict() for loss in measured.losses])
    write_jsonl(folder / "answers.jsonl", [asdict(record) for record in measured.answers])
    write_json(folder / "texts.json", measured.texts)


def load_measured(folder: Path) -> Measured:
    """Read what `save_measured` wrote."""
    losses = [ItemLoss(**line.value) for line in read_jsonl(folder / "losses.jsonl")]
    answers = [AnswerRecord(**line.value) for line in read_jsonl(folder / "answers.jsonl")]
    return Measured(losses, answers, json.loads((folder / "texts.json").read_text(encoding="utf-8")))


def pooled(runs: Sequence[Measured]) -> Measured:
    """Several trainings side by side; the texts are those of the first."""
    return Measured(
        [loss for each in runs for loss in each.losses],
        [record for each in runs for record in each.answers],
        runs[0].texts,
    )

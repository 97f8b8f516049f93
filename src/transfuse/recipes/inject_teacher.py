"""Prompt distillation within a document run: the model with the section before it becomes the teacher."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from transfuse.errors import TrainingError
from transfuse.generate.local import context_tokens
from transfuse.inject.prompt_distillation import teacher_answers, teacher_rows
from transfuse.io.chat import prompt_format
from transfuse.io.jsonl import write_jsonl
from transfuse.io.run_folder import RunFolder
from transfuse.recipes.inject_knowledge import Knowledge, oracle_contexts
from transfuse.recipes.inject_model import generator_of, load_student, without_note
from transfuse.recipes.progress import Display
from transfuse.recipes.schema import InjectRecipe, resolved
from transfuse.train.batches import TrainingRow
from transfuse.train.saved_rows import load_rows, save_rows
from transfuse.types import Dropped

TEACHER_VERSION = 1


@dataclass(frozen=True)
class Taught:
    """The rows that the teacher made."""

    rows: list[TrainingRow]
    dropped: list[Dropped]
    key: str
    """Changes with anything that the rows depend on."""


def teach(
    recipe: InjectRecipe,
    run: RunFolder,
    display: Display,
    knowledge: Knowledge,
    weights: Mapping[str, Any],
) -> Taught | None:
    """Training rows whose targets are what the untouched model says with the section before it.

    Args:
        recipe: names the method and its settings.
        run: the run folder.
        display: progress.
        knowledge: training pairs and sections.
        weights: the key of the model.

    Returns:
        The rows; None where the method is another one.

    Raises:
        TrainingError: the teacher answered no question.
    """
    if recipe.method != "prompt-distillation":
        return None
    pairs = knowledge.selection.train
    contexts = oracle_contexts(knowledge, pairs)
    key = {
        **weights,
        "pairs": [asdict(pair) for pair in pairs],
        "contexts": {pair.source: contexts[pair.id] for pair in pairs if pair.id in contexts},
        "settings": resolved(recipe)["distillation"],
        "max_new_tokens": recipe.evaluate.max_new_tokens,
        "seed": recipe.seed,
    }
    with run.stage("teacher", key, version=TEACHER_VERSION) as stage:
        rows_file = stage.folder / "rows.safetensors"
        if not stage.is_done:
            loaded = load_student(recipe)
            with display.bar("answers of the teacher") as advance:
                answers, silent = teacher_answers(
                    pairs,
                    contexts,
                    recipe.distillation,
                    generator_of(loaded),
                    max_new_tokens=recipe.evaluate.max_new_tokens,
                    seed=recipe.seed,
                    on_answers=without_note(advance),
                )
            with display.bar("targets of the teacher") as advance:
                rows, lost = teacher_rows(
                    loaded.model,
                    prompt_format(loaded.tokenizer, loaded.model.generation_config),
                    pairs,
                    contexts,
                    answers,
                    recipe.distillation,
                    compute_dtype=loaded.precision,
                    max_length_tokens=recipe.train.max_length_tokens or context_tokens(loaded.model),
                    on_rows=without_note(advance),
                )
            if not rows:
                raise TrainingError(
                    f"prompt distillation: none of {len(pairs)} questions got an answer to learn from "
                    f"({(silent + lost)[0].reason}); use --set distillation.answers=file, or --method sft."
                )
            named = [
                {"question": p.question, "gold": p.answer, "answer": answers[p.id]}
                for p in pairs
                if p.id in answers
            ]
            write_jsonl(stage.folder / "answers.jsonl", named)
            save_rows(rows_file, rows, [*silent, *lost])
    return Taught(*load_rows(rows_file), stage.key)

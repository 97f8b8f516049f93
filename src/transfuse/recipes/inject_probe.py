"""What the model knows of a document before it is taught."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from transfuse.evaluate.questions import ask_questions
from transfuse.io.jsonl import read_jsonl, write_jsonl
from transfuse.io.run_folder import RunFolder
from transfuse.recipes.inject_knowledge import Knowledge
from transfuse.recipes.inject_model import generator_of, load_student, without_note
from transfuse.recipes.progress import Display
from transfuse.recipes.schema import InjectRecipe
from transfuse.types import AnswerRecord, QAPair

PROBE_VERSION = 1


def known_facts(
    recipe: InjectRecipe,
    run: RunFolder,
    display: Display,
    knowledge: Knowledge,
    weights: Mapping[str, Any],
) -> list[str]:
    """Ids of the facts that the untouched model knows, by its answers to their first training questions.

    Training questions, not those that measure: to choose by the latter would favour what is known by luck.

    Args:
        recipe: how many questions a fact is probed with.
        run: the run folder.
        display: progress.
        knowledge: training pairs of every trained fact.
        weights: the key of the model.

    Returns:
        Ids in order.
    """
    by_source = knowledge.train_by_source()
    asked: list[QAPair] = [pair for pairs in by_source.values() for pair in pairs[: recipe.probe.n_questions]]
    limit = recipe.evaluate.max_new_tokens
    key = {
        **weights,
        "asked": [(pair.source, pair.question, pair.answer) for pair in asked],
        "max_new_tokens": limit,
    }
    with run.stage("probe", key, version=PROBE_VERSION) as stage:
        if not stage.is_done:
            loaded = load_student(recipe)
            with display.bar("what is known") as advance:
                records = ask_questions(
                    asked, generator_of(loaded), max_new_tokens=limit, on_replies=without_note(advance)
                )
            write_jsonl(stage.folder / "answers.jsonl", [asdict(record) for record in records])
    answered = [AnswerRecord(**line.value) for line in read_jsonl(stage.folder / "answers.jsonl")]
    known = known_sources(answered)
    display.say(f"{len(known)} of {len(by_source)} facts are known to the model already.")
    return known


def known_sources(records: Sequence[AnswerRecord]) -> list[str]:
    """Sources of which at least half of the answers contain the gold answer; unscorable ones count as not known."""
    answers: dict[str, list[bool]] = {}
    for record in records:
        answers.setdefault(record.source, []).append(record.scores.get("contains", 0.0) == 1.0)
    return [source for source, right in answers.items() if 2 * sum(right) >= len(right)]

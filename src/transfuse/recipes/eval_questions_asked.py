"""Questions, unanswerable questions and chat samples, asked of a system and scored."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transfuse.evaluate.questions import ask_questions
from transfuse.evaluate.scores import ItemScore
from transfuse.evaluate.task_losses import ItemLoss, answer_losses, answer_losses_and_choices
from transfuse.evaluate.tasks import ask_tasks
from transfuse.generate.protocol import Generator
from transfuse.recipes.eval_contexts import Contexts, contexts_of
from transfuse.recipes.eval_inputs import Samples
from transfuse.recipes.eval_outcome import Outcome, ShownItem, resumed
from transfuse.recipes.eval_questions import NO_ANSWER
from transfuse.recipes.eval_schema import (
    UNANSWERABLE,
    EvalRecipe,
    QuestionSettings,
    SampleSettings,
    UnanswerableSettings,
)
from transfuse.recipes.eval_system import System
from transfuse.recipes.inject_model import without_note
from transfuse.recipes.progress import Display
from transfuse.text.declining import declines
from transfuse.types import AnswerRecord, Fact, QAPair

ITEMS_A_PORTION = 64
"""Losses that are written down together."""

WRONG_ANSWERS = f"wrong_answers/{UNANSWERABLE}"


def ask_set(
    recipe: EvalRecipe,
    system: System,
    generator: Generator,
    name: str,
    settings: QuestionSettings,
    pairs: Sequence[QAPair],
    facts: Sequence[Fact],
    folder: Path,
    display: Display,
) -> Outcome:
    """One set of knowledge questions.

    Args:
        recipe: names the seed.
        system: that is asked.
        generator: the same, answering.
        name: of the set.
        settings: of the set.
        pairs: the questions.
        facts: of the questions, where they are given.
        folder: of the stage.
        display: progress.

    Returns:
        Scores of every metric of short answers, clustered by fact.
    """
    given = contexts_of(
        recipe, system, generator, pairs, facts, folder, display, max_new_tokens=settings.max_new_tokens
    )
    records = _answered(system, generator, name, given.asked, given, settings.max_new_tokens, display)
    scores = [
        ItemScore(f"{metric}/{name}", record.item, record.source, value, 1.0)
        for record in records
        for metric, value in record.scores.items()
    ]
    return Outcome(_by_metric(scores), shown(records, given), _notes(records, given), more=given.more)


def ask_unanswerable(
    recipe: EvalRecipe,
    system: System,
    generator: Generator,
    settings: UnanswerableSettings,
    pairs: Sequence[QAPair],
    folder: Path,
    display: Display,
) -> Outcome:
    """Questions that nothing answers; arguments as of `ask_set`.

    Args:
        recipe: names the seed.
        system: that is asked.
        generator: the same, answering.
        settings: of the set.
        pairs: the questions.
        folder: of the stage.
        display: progress.

    Returns:
        `wrong_answers/unanswerable`: 1 where the system answers instead of declining.
    """
    given = contexts_of(
        recipe,
        system,
        generator,
        pairs,
        [],
        folder,
        display,
        max_new_tokens=settings.max_new_tokens,
        needs_section=False,
    )
    # Whatever the file gives as an answer is compared with nothing, so its faults are none.
    asked = [replace(pair, answer=NO_ANSWER, aliases=()) for pair in given.asked]
    replies = _answered(system, generator, UNANSWERABLE, asked, given, settings.max_new_tokens, display)
    records = [
        replace(
            each,
            gold="",
            scores={"wrong_answers": float(not declines(each.answer))} if each.scores else {},
        )
        for each in replies
    ]
    scores = [
        ItemScore(WRONG_ANSWERS, r.item, r.source, r.scores["wrong_answers"], 1.0)
        for r in records
        if r.scores
    ]
    return Outcome(scores, shown(records, given), _notes(records, given), more=given.more)


def _answered(
    system: System,
    generator: Generator,
    name: str,
    pairs: Sequence[QAPair],
    given: Contexts,
    max_new_tokens: int,
    display: Display,
) -> list[AnswerRecord]:
    with display.bar(f"{name}, {system.row}") as advance:
        return ask_questions(
            pairs,
            generator,
            contexts=given.by_question,
            max_new_tokens=max_new_tokens,
            on_replies=without_note(advance),
        )


def ask_samples(
    system: System,
    generator: Generator,
    name: str,
    settings: SampleSettings,
    samples: Samples,
    folder: Path,
    display: Display,
) -> Outcome:
    """Chat samples: what their gold answers cost, and what the system answers.

    Args:
        system: that is asked.
        generator: the same, answering.
        name: of the set.
        settings: of the set.
        samples: conversations with their answers.
        folder: of the stage.
        display: progress.

    Returns:
        `bits_per_byte/NAME` of the gold answers; where it is asked, `accuracy/NAME`, or exact match and ROUGE-L.
    """
    asks_choice = samples.kind == "choice"
    with display.bar(f"losses of {name}, {system.row}") as advance:

        def measure(start: int, end: int) -> list[dict[str, Any]]:
            asked = system.load()
            given = (asked.model, asked.prompts, samples.items[start:end], asked.precision)
            if asks_choice:
                losses, chosen = answer_losses_and_choices(*given)
            else:
                losses, chosen = answer_losses(*given), [None] * (end - start)
            advance(end, len(samples.items), "")
            return [
                {
                    "loss": loss._asdict(),
                    "choice": [each.answer, each.scores, each.reason] if each is not None else None,
                }
                for loss, each in zip(losses, chosen, strict=True)
            ]

        rows = resumed(folder / "losses.jsonl", len(samples.items), measure, ITEMS_A_PORTION)
    losses = [ItemLoss(**row["loss"]) for row in rows]
    records: list[AnswerRecord] = []
    if asks_choice:
        records = [
            AnswerRecord(item.id, item.group, item.question, item.answer, *row["choice"])
            for item, row in zip(samples.items, rows, strict=True)
        ]
    elif settings.generate:
        with display.bar(f"answers of {name}, {system.row}") as advance:
            records = ask_tasks(
                samples.items,
                generator,
                samples.kind,
                max_new_tokens=settings.max_new_tokens,
                on_replies=without_note(advance),
            )
    scores = [
        ItemScore(f"{metric}/{name}", record.item, record.item, value, 1.0)
        for record in records
        for metric, value in record.scores.items()
    ]
    scores += [
        ItemScore(
            f"bits_per_byte/{name}", loss.item, loss.item, loss.nll_nats / math.log(2), float(loss.n_bytes)
        )
        for loss in losses
        if loss.n_bytes
    ]
    lost = [loss for loss in losses if loss.reason]
    notes = [f"{len(lost)} gold answers could not be measured, such as: {lost[0].reason}"] if lost else []
    return Outcome(_by_metric(scores), shown(records), [*_notes(records), *notes])


def shown(records: Sequence[AnswerRecord], given: Contexts | None = None) -> list[ShownItem]:
    """Records as a person reads them, what stood before each question included."""
    contexts = given.by_question if given is not None and given.by_question is not None else {}
    return [
        ShownItem(
            record.item,
            record.question,
            record.answer,
            record.gold,
            record.scores,
            record.reason,
            contexts.get(record.item) or "",
        )
        for record in records
    ]


def _notes(records: Sequence[AnswerRecord], given: Contexts | None = None) -> list[str]:
    lost = [record for record in records if not record.scores]
    told = (
        [f"{len(lost)} items could not be scored, such as {lost[0].item}: {lost[0].reason}"] if lost else []
    )
    return [*(given.notes if given is not None else []), *told]


def _by_metric(scores: Sequence[ItemScore]) -> list[ItemScore]:
    """Scores of one metric together, metrics in the order in which they first come."""
    order = {metric: n for n, metric in enumerate(dict.fromkeys(score.metric for score in scores))}
    return sorted(scores, key=lambda score: order[score.metric])

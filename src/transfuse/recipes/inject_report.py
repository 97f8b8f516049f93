"""What `report.json` says of a document run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from transfuse import __version__
from transfuse.evaluate.questions import answer_estimates, estimate_json
from transfuse.io.hardware import hardware_text
from transfuse.io.run_folder import StageRecord
from transfuse.recipes.inject_knowledge import Knowledge
from transfuse.recipes.inject_model import result_name
from transfuse.recipes.inject_rag import Retrieved
from transfuse.recipes.loading_code import loading_code
from transfuse.recipes.schema import InjectRecipe
from transfuse.types import AnswerRecord, Dropped, QAPair

Texts = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Measurement:
    """A model's answers and its bits per byte."""

    answers: dict[str, list[AnswerRecord]]
    """By the end of the row's name: ``, `/kept-out`, or `oracle`."""
    texts: Texts
    """Bits per byte by the text's name, as estimates."""


def report_json(
    recipe: InjectRecipe,
    stages: Sequence[StageRecord],
    knowledge: Knowledge,
    before: Measurement,
    after: Measurement,
    training: dict[str, Any],
    command: str,
    retrieved: Retrieved | None,
    with_passages: Mapping[str, list[AnswerRecord]],
) -> dict[str, Any]:
    name = result_name(recipe)
    oracle = {"": before.answers["oracle"]} if "oracle" in before.answers else {}
    given: dict[str, Mapping[str, list[AnswerRecord]]] = {
        "base": before.answers,
        "oracle": oracle,
        "rag": retrieved.answers if retrieved else {},
        name: after.answers,
        f"{name}+rag": with_passages,
    }
    given = {row: parts for row, parts in given.items() if parts}
    texts = {"base": before.texts, name: after.texts}
    rows = [_row(row, parts[""], texts.get(row, {}), recipe.seed) for row, parts in given.items()]
    rows += _kept_out_rows(given, knowledge, recipe.seed)
    rows += _known_rows({"base": before, name: after}, knowledge, recipe.seed)
    return {
        "kind": "inject",
        "model": recipe.model,
        "seed": recipe.seed,
        "title": knowledge.title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "rows": rows,
        "stages": [asdict(stage) for stage in stages],
        "hardware": hardware_text(),
        "command": command,
        "training": training,
        "rag": retrieved.summary if retrieved else None,
        "facts": _fact_outcomes(recipe, knowledge, given),
        "sections": _section_rows(knowledge),
        "dropped": [asdict(dropped) for dropped in knowledge.dropped]
        + training["dropped"]
        + _without_section(knowledge, before)
        + [asdict(dropped) for dropped in (retrieved.dropped if retrieved else [])],
        "warnings": [*knowledge.warnings, *training["warnings"]],
        "result": _result(recipe, name),
    }


def _row(name: str, records: Sequence[AnswerRecord], texts: Texts, seed: int) -> dict[str, Any]:
    metrics = estimate_json(answer_estimates(records, seed))
    return {
        "name": name,
        "metrics": metrics | {f"bits_per_byte/{text}": value for text, value in texts.items()},
    }


def _kept_out_rows(
    given: Mapping[str, Mapping[str, Sequence[AnswerRecord]]], knowledge: Knowledge, seed: int
) -> list[dict[str, Any]]:
    if not knowledge.selection.evaluate_kept_out:
        return []
    kept_out = {row: parts["/kept-out"] for row, parts in given.items() if "/kept-out" in parts}
    return [_row(f"{row}/kept-out", records, {}, seed) for row, records in kept_out.items()]


def _known_rows(measured: Mapping[str, Measurement], knowledge: Knowledge, seed: int) -> list[dict[str, Any]]:
    """Facts that the model knew before, and the others, apart; none where it was not asked."""
    if knowledge.known is None:
        return []
    parts = {
        f"{row}/{part}": [r for r in of.answers[""] if (r.source in knowledge.known) == is_known]
        for row, of in measured.items()
        for is_known, part in {True: "known", False: "new"}.items()
    }
    return [_row(row, records, {}, seed) for row, records in parts.items() if records]


def _fact_outcomes(
    recipe: InjectRecipe, knowledge: Knowledge, given: Mapping[str, Mapping[str, Sequence[AnswerRecord]]]
) -> list[dict[str, Any]]:
    """Each fact (basis `token`: each section) with its questions and every answer given."""
    selection = knowledge.selection
    by_item = {
        row: {record.item: record for record in [*parts[""], *parts.get("/kept-out", [])]}
        for row, parts in given.items()
    }
    sources = (
        [(fact.id, fact.section, fact.fact) for fact in knowledge.facts]
        if recipe.basis == "fact"
        else [
            (title, title, title) for title in dict.fromkeys(section.title for section in knowledge.sections)
        ]
    )
    outcomes: list[dict[str, Any]] = []
    for source, section, text in sources:
        asked = [p for p in [*selection.evaluate, *selection.evaluate_kept_out] if p.source == source]
        outcomes.append(
            {
                "id": source,
                "section": section,
                "fact": text,
                "kept_out": source in selection.kept_out,
                "n_train_questions": sum(pair.source == source for pair in selection.train),
                "items": [_item(pair, by_item) for pair in asked],
            }
        )
    return outcomes


def _item(pair: QAPair, by_item: Mapping[str, Mapping[str, AnswerRecord]]) -> dict[str, Any]:
    records = {row: found[pair.id] for row, found in by_item.items() if pair.id in found}
    return {
        "question": pair.question,
        "gold": pair.answer,
        "aliases": list(pair.aliases),
        "answers": {row: record.answer for row, record in records.items()},
        "scores": {row: record.scores for row, record in records.items()},
        "reason": {row: record.reason for row, record in records.items()},
    }


def _section_rows(knowledge: Knowledge) -> list[dict[str, Any]]:
    return [
        {
            "document": section.document,
            "title": section.title,
            "page": section.page,
            "n_facts": sum(fact.section == section.title for fact in knowledge.facts),
            "n_characters": len(section.text),
        }
        for section in knowledge.sections
    ]


def _without_section(knowledge: Knowledge, before: Measurement) -> list[dict[str, Any]]:
    """Questions that the oracle row could not ask."""
    if "oracle" not in before.answers:
        return []
    asked = {record.item for record in before.answers["oracle"]}
    lost = [pair for pair in knowledge.selection.evaluate if pair.id not in asked]
    reason = "not in the oracle row: the section its fact names is not in the documents"
    return [asdict(Dropped("pair", pair.question, reason)) for pair in lost]


def _result(recipe: InjectRecipe, name: str) -> dict[str, Any]:
    return {"path": name, "kind": name, "base_model": recipe.model, "load": loading_code(recipe.model, name)}

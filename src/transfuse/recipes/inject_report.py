"""What `report.json` says of a document run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from transfuse import __version__
from transfuse.evaluate.questions import answer_estimates, estimate_json
from transfuse.io.hardware import hardware_text
from transfuse.io.references import resolve_model
from transfuse.io.run_folder import StageRecord
from transfuse.recipes.inject_knowledge import Knowledge
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
) -> dict[str, Any]:
    name = "adapter" if recipe.train.method == "lora" else "model"
    rows = [_row("base", before.answers[""], before.texts, recipe.seed)]
    if "oracle" in before.answers:
        rows.append(_row("oracle", before.answers["oracle"], {}, recipe.seed))
    rows.append(_row(name, after.answers[""], after.texts, recipe.seed))
    if knowledge.selection.evaluate_kept_out:
        rows.append(_row("base/kept-out", before.answers["/kept-out"], {}, recipe.seed))
        rows.append(_row(f"{name}/kept-out", after.answers["/kept-out"], {}, recipe.seed))
    if knowledge.known is not None:
        for row, records in (("base", before.answers[""]), (name, after.answers[""])):
            parts = {True: "known", False: "new"}
            for is_known, part in parts.items():
                chosen = [r for r in records if (r.source in knowledge.known) == is_known]
                if chosen:
                    rows.append(_row(f"{row}/{part}", chosen, {}, recipe.seed))
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
        "facts": _fact_outcomes(recipe, knowledge, before, after, name),
        "sections": _section_rows(knowledge),
        "dropped": [asdict(dropped) for dropped in knowledge.dropped]
        + training["dropped"]
        + _without_section(knowledge, before),
        "warnings": [*knowledge.warnings, *training["warnings"]],
        "result": _result(recipe, name),
    }


def _row(name: str, records: Sequence[AnswerRecord], texts: Texts, seed: int) -> dict[str, Any]:
    metrics = estimate_json(answer_estimates(records, seed))
    return {
        "name": name,
        "metrics": metrics | {f"bits_per_byte/{text}": value for text, value in texts.items()},
    }


def _fact_outcomes(
    recipe: InjectRecipe, knowledge: Knowledge, before: Measurement, after: Measurement, name: str
) -> list[dict[str, Any]]:
    """Each fact (basis `token`: each section) with its questions and every answer given."""
    selection = knowledge.selection
    given = {
        "base": [*before.answers[""], *before.answers["/kept-out"]],
        "oracle": before.answers.get("oracle", []),
        name: [*after.answers[""], *after.answers["/kept-out"]],
    }
    by_item = {row: {record.item: record for record in records} for row, records in given.items()}
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
    return {"path": name, "kind": name, "base_model": recipe.model, "load": _loading_code(recipe, name)}


def _loading_code(recipe: InjectRecipe, name: str) -> str:
    """Python that loads the result without Transfuse."""
    if name == "model":
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("model")\n'
            'tokenizer = AutoTokenizer.from_pretrained("model")\n'
        )
    source = resolve_model(recipe.model)
    where = f'"{source.path or source.hub_id}"'
    if source.kind in ("gguf", "bundled") and source.path is not None:
        where = f'"{source.path.parent}", gguf_file="{source.path.name}"'
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({where})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({where})\n"
        'model = PeftModel.from_pretrained(base, "adapter")\n'
    )

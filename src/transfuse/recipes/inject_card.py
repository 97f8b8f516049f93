"""What the card of a document run's adapter or model says."""

from pathlib import Path

from transfuse.generate.settings import GeneratorSettings
from transfuse.io.model_cards import CardContent, write_card
from transfuse.recipes.card_methods import INJECT, method_of
from transfuse.recipes.card_parts import (
    INTERVALS,
    ONLY_THE_DATA,
    UNFINISHED,
    Figures,
    base_of,
    card_differences,
    card_rows,
    command_of,
    data_files,
    given,
    hub_ids,
    licence_of,
    plain_name,
    prefixed,
    training_settings,
    writer_name,
)
from transfuse.recipes.loading_code import loading_code
from transfuse.recipes.schema import InjectRecipe


def write_inject_card(recipe: InjectRecipe, folder: Path, report: Figures | None = None) -> None:
    """The card of a document run's adapter or model.

    Args:
        recipe: as run.
        folder: the result, in its run folder.
        report: `report.json`; None before there is one.
    """
    kind, run = ("adapter" if recipe.train.method == "lora" else "model"), folder.parent
    told, arxiv = method_of(INJECT, recipe.method)
    written = _written_by(recipe.generator) if recipe.qa is None else ""
    licence, note = licence_of([recipe.model])
    write_card(
        folder,
        CardContent(
            title=f"{plain_name(recipe.model)} taught {recipe.documents.stem}",
            kind=kind,
            base=base_of(recipe.model, kind),
            method=told + written,
            route="inject",
            load=loading_code(recipe.model, kind, is_portable=True),
            base_models=hub_ids([recipe.model]),
            relation="adapter" if kind == "adapter" else "finetune",
            arxiv=arxiv,
            data=data_files(
                [
                    ("document", recipe.documents),
                    *given(("facts", recipe.facts), ("questions and answers", recipe.qa)),
                    ("training questions, of these", run / "questions" / "train.jsonl"),
                    ("eval questions, of these", run / "questions" / "eval.jsonl"),
                    ("eval questions of kept-out facts", run / "questions" / "eval_kept_out.jsonl"),
                    *given(("replayed texts", recipe.records.replay_texts), ("chats", recipe.records.chats)),
                    *((f"bits per byte/{name}", path) for name, path in recipe.evaluate.texts.items()),
                ]
            ),
            settings={
                **recipe.model_dump(
                    mode="json", include={"seed", "basis", "scale", "kept_out_share", "precision"}
                ),
                **training_settings(recipe.train),
                **prefixed("records", recipe.records.model_dump(mode="json")),
            },
            row=kind,
            rows=card_rows(report),
            differences=card_differences(report, kind),
            unmeasured=UNFINISHED,
            limits=[
                "Answers are graded by their words (exact match, F1, containment), so a right answer in other words "
                "may count as wrong.",
                f"Compare with `base` (before), `{kind}/kept-out` (facts that training never saw: what style alone "
                "brings), `rag` and `oracle` (the document in view) where these are there, and bits per byte for what "
                "was forgotten.",
                ONLY_THE_DATA,
                INTERVALS,
            ],
            command=command_of(report),
            licence=licence,
            licence_note=note,
        ),
    )


def _written_by(generator: GeneratorSettings | None) -> str:
    """Who wrote the questions that no file held."""
    if generator is None:
        return ""
    return f" Facts or questions that were not given as files were written by {writer_name(generator)}."

"""What the cards of a transfer run's adapters, and of a new student, say."""

import json
from pathlib import Path
from typing import Any

from transfuse.io.model_cards import CardContent, DataFile, write_card
from transfuse.recipes.card_methods import EXTRACTED_MODEL, STARTS, TRANSFER, method_of
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
    named,
    plain_name,
    prefixed,
    taught_by,
    training_settings,
    writer_name,
)
from transfuse.recipes.loading_code import loading_code
from transfuse.recipes.transfer_schema import TransferRecipe

_FROM_STUDENT_ALONE = ("lora", "pissa")
"""Arms that take nothing of the teacher."""


def write_arm_card(
    recipe: TransferRecipe,
    folder: Path,
    arm: str,
    rate: float,
    seed: int,
    *,
    development_bits: float | None = None,
    report: Figures | None = None,
) -> None:
    """The card of one adapter of a transfer run.

    Args:
        recipe: as run.
        folder: the adapter.
        arm: the method or control that made it.
        rate: its peak learning rate.
        seed: of its training.
        development_bits: bits per byte of the samples on which learning rates are chosen.
        report: `report.json`; None before there is one, and for a learning rate that was tried and not chosen.
    """
    told, arxiv = method_of(TRANSFER, arm)
    licence, note = licence_of([recipe.student])
    writer = recipe.distillation.generator if arm == "offline-distillation" else None
    if writer is not None:
        told = f"{told} The answers were written by {writer_name(writer)}."
    elif arm not in _FROM_STUDENT_ALONE:
        teacher, licence, note = taught_by(_teacher(recipe), recipe.student)
        told = f"{told} Teacher: {teacher}."
    tried = (
        ""
        if development_bits is None
        else f" Bits per byte of the development samples: {development_bits:.4g}."
    )
    write_card(
        folder,
        CardContent(
            title=f"{plain_name(recipe.student)}, {arm}",
            kind="adapter",
            base=base_of(recipe.student, "adapter"),
            method=told,
            route="transfer",
            load=loading_code(recipe.student, "adapter", is_portable=True),
            base_models=hub_ids([recipe.student]),
            relation="adapter",
            arxiv=arxiv,
            data=_transfer_data(recipe),
            settings={
                "arm": arm,
                "seed": seed,
                "precision": recipe.precision,
                "max_rank": recipe.max_rank,
                **training_settings(recipe.train, rate),
                **_arm_settings(recipe, arm),
            },
            row=arm,
            rows=card_rows(report),
            differences=card_differences(report, arm),
            unmeasured=UNFINISHED + tried
            if report is None
            else "Nothing was measured: no eval samples were given." + tried,
            limits=[
                "Compare with `student` (before), and with the controls trained on the same samples: what these reach "
                "without the teacher is not the teacher's doing.",
                f"The row pools {recipe.n_seeds} training(s) that differ in their seed; this one has seed {seed}.",
                ONLY_THE_DATA,
                INTERVALS,
            ],
            command=command_of(report),
            licence=licence,
            licence_note=note,
        ),
    )


def write_start_card(recipe: TransferRecipe, folder: Path, name: str, report: Figures) -> None:
    """The card of an adapter that nobody trained: extracted factors, or a carried delta.

    Args:
        recipe: as run.
        folder: the adapter.
        name: `start`, `start-random-block` or `delta-transport/untrained`, which may be a row of the report.
        report: `report.json`.
    """
    told, arxiv = method_of(STARTS, name)
    teacher, licence, note = taught_by(_teacher(recipe), recipe.student)
    write_card(
        folder,
        CardContent(
            title=f"{plain_name(recipe.student)}, {name}",
            kind="adapter",
            base=base_of(recipe.student, "adapter"),
            method=f"{told} Teacher: {teacher}.",
            route="transfer",
            load=loading_code(recipe.student, "adapter", is_portable=True),
            base_models=hub_ids([recipe.student]),
            relation="adapter",
            arxiv=arxiv,
            data=_transfer_data(recipe),
            settings={
                "seed": recipe.seed,
                "precision": recipe.precision,
                "rank": recipe.train.lora.rank,
                **_arm_settings(recipe, name.split("/")[0]),
            },
            row=name,
            rows=[row for row in card_rows(report) if row.name in (name, "student")] if "/" in name else [],
            limits=["Nothing here was trained.", ONLY_THE_DATA, INTERVALS],
            command=command_of(report),
            licence=licence,
            licence_note=note,
        ),
    )


def write_student_card(recipe: TransferRecipe, folder: Path, report: Figures | None = None) -> None:
    """The card of a new student that was cut out of its teacher.

    Args:
        recipe: as run.
        folder: the model.
        report: `report.json`; None before there is one.
    """
    assert recipe.teacher is not None  # noqa: S101 - the recipe checks it
    licence, note = licence_of([recipe.teacher])
    shape = (
        recipe.shape.model_dump(mode="json", exclude_none=True)
        if recipe.shape
        else {"as": plain_name(recipe.student)}
    )
    write_card(
        folder,
        CardContent(
            title=f"A new student out of {plain_name(recipe.teacher)}",
            kind="model",
            base=f"The weights of {named(recipe.teacher)}.",
            method=EXTRACTED_MODEL.told,
            route="transfer",
            load=loading_code(recipe.student, "model", is_portable=True),
            base_models=hub_ids([recipe.teacher]),
            arxiv=EXTRACTED_MODEL.arxiv,
            data=_transfer_data(recipe),
            settings={
                "seed": recipe.seed,
                "precision": recipe.precision,
                **prefixed("shape", shape),
                **_extraction_settings(recipe),
            },
            limits=[
                "This model has not been trained since it was cut: by itself it writes nothing useful.",
                ONLY_THE_DATA,
            ],
            command=command_of(report),
            licence=licence,
            licence_note=note,
        ),
    )


def _arm_settings(recipe: TransferRecipe, arm: str) -> dict[str, Any]:
    """The groups of settings that an arm depends on, beside those of training."""
    if arm in _FROM_STUDENT_ALONE:
        return {}
    if "distillation" in arm:
        return prefixed("distillation", recipe.distillation.model_dump(mode="json", exclude={"generator"}))
    if arm == "delta-transport":
        return prefixed("transport", recipe.transport.model_dump(mode="json"))
    return _extraction_settings(recipe)


def _extraction_settings(recipe: TransferRecipe) -> dict[str, Any]:
    return {
        **prefixed("extract", recipe.extract.model_dump(mode="json")),
        **prefixed("sensitivity", recipe.sensitivity.model_dump(mode="json")),
    }


def _teacher(recipe: TransferRecipe) -> str | None:
    """The teacher's reference; of an earlier run's extraction as that run had it."""
    if recipe.teacher is not None or recipe.extraction is None:
        return recipe.teacher
    summary = json.loads((recipe.extraction / "extraction" / "extraction.json").read_text(encoding="utf-8"))
    return str(summary["teacher"])


def _transfer_data(recipe: TransferRecipe) -> list[DataFile]:
    return data_files(
        [
            *given(
                ("seed samples", recipe.task),
                ("training samples", recipe.train_file),
                ("eval samples", recipe.eval_file),
            ),
            *((f"bits per byte/{name}", path) for name, path in recipe.evaluate.texts.items()),
        ]
    )

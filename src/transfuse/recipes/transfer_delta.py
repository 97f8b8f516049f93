"""Delta transport within a transfer run: the teacher's task adapter carried onto the student."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transfuse.io.files import file_sha256, write_json
from transfuse.io.fingerprint import model_fingerprint
from transfuse.io.models import load_model
from transfuse.io.run_folder import RunFolder
from transfuse.io.task_files import load_tasks
from transfuse.recipes.inject_model import without_note
from transfuse.recipes.progress import Display
from transfuse.recipes.transfer_schema import TransferRecipe
from transfuse.train.adapters import save_adapter
from transfuse.train.starting_factors import Factors
from transfuse.transfer.adapter_deltas import adapter_deltas, attach_deltas
from transfuse.transfer.delta_transport import TextModel, carry_delta
from transfuse.types import TaskItem

DELTA_VERSION = 1


@dataclass(frozen=True)
class Carried:
    """A delta on the student."""

    adapter: Path
    """As a PEFT folder: the training-free result."""
    summary: dict[str, Any]
    """The part `transport` of `report.json`."""
    key: str

    @property
    def factors(self) -> dict[str, Factors]:
        """By the student's module names."""
        return adapter_deltas(self.adapter)


def carry(recipe: TransferRecipe, run: RunFolder, display: Display) -> Carried | None:
    """Carry the task adapter, where an arm wants it.

    Args:
        recipe: names teacher, task adapter, student and calibration samples (the seed samples, answers included).
        run: the run folder.
        display: progress.

    Returns:
        The carried delta; None where no arm uses one.

    Raises:
        ModelError: an unknown architecture, or an adapter that is not the teacher's.
        DataError: too little calibration text.
    """
    if "delta-transport" not in recipe.arms:
        return None
    texts_file = recipe.task or recipe.train_file
    assert recipe.teacher is not None  # noqa: S101 - the recipe checks it
    assert recipe.task_adapter is not None  # noqa: S101 - and this
    assert texts_file is not None  # noqa: S101 - and this
    key = {
        "teacher": model_fingerprint(recipe.teacher),
        "student": model_fingerprint(recipe.student),
        "adapter": file_sha256(recipe.task_adapter / "adapter_model.safetensors"),
        "texts": file_sha256(texts_file),
        "n_texts": recipe.sensitivity.n_samples,
        "settings": recipe.transport.model_dump(mode="json"),
    }
    with run.stage("transport", key, version=DELTA_VERSION) as stage:
        if not stage.is_done:
            deltas = adapter_deltas(recipe.task_adapter)
            teacher, student = (
                load_model(name, precision="float32", trust_remote_code=recipe.trust_remote_code)
                for name in (recipe.teacher, recipe.student)
            )
            texts = [_text(item) for item in load_tasks(texts_file)[: recipe.sensitivity.n_samples]]
            with display.bar("calibration") as advance:
                carried, report = carry_delta(
                    TextModel(teacher.model, teacher.tokenizer),
                    deltas,
                    TextModel(student.model, student.tokenizer),
                    texts,
                    recipe.transport,
                    on_text=without_note(advance),
                )
            for warning in report.warnings:
                display.say(f"Note: {warning}")
            save_adapter(attach_deltas(student.model, carried), stage.folder / "adapter", recipe.student)
            write_json(stage.folder / "transport.json", asdict(report))
        summary = json.loads((stage.folder / "transport.json").read_text(encoding="utf-8"))
    return Carried(stage.folder / "adapter", summary, stage.key)


def _text(item: TaskItem) -> str:
    """A sample as plain text, which every tokenizer reads alike."""
    return "\n\n".join([*(turn.content for turn in item.messages), item.answer])

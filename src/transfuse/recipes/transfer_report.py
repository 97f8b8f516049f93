"""What `report.json` says of a transfer run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from transfuse import __version__
from transfuse.evaluate.questions import estimate_json
from transfuse.evaluate.tasks import (
    answer_bits_per_byte,
    bits_difference,
    score_difference,
    task_estimates,
)
from transfuse.io.hardware import hardware_text
from transfuse.io.run_folder import StageRecord
from transfuse.recipes.comparisons import comparison
from transfuse.recipes.loading_code import loading_code
from transfuse.recipes.transfer_arms import ArmRun
from transfuse.recipes.transfer_measure import Measured, Questions, pooled
from transfuse.recipes.transfer_schema import TransferRecipe
from transfuse.text.task_answers import TASK_METRICS
from transfuse.types import Dropped, Estimate

ANSWER_BITS = "bits_per_byte/answers"


class Arm:
    """One arm with all its trainings."""

    def __init__(
        self, name: str, tried: Sequence[ArmRun], chosen: Sequence[ArmRun], failed: Sequence[float] = ()
    ) -> None:
        self.name, self.tried, self.chosen, self.failed = name, list(tried), list(chosen), list(failed)
        self.measured: list[Measured] = []
        """Of each chosen run, in order; empty where there are no eval samples."""


def report_json(
    recipe: TransferRecipe,
    stages: Sequence[StageRecord],
    command: str,
    extraction: Mapping[str, Any] | None,
    transport: Mapping[str, Any] | None,
    arms: Sequence[Arm],
    others: Mapping[str, Measured],
    questions: Questions | None,
    dropped: Sequence[Dropped],
    notes: Sequence[str],
    result: Path | None,
) -> dict[str, Any]:
    """The report of a run.

    Args:
        recipe: as run.
        stages: met so far.
        command: as typed.
        extraction: what was taken out of the teacher.
        transport: how well a carried delta fits.
        arms: the method first; none where nothing was trained.
        others: measurements of the untouched student, the teacher, and a carried delta before training.
        questions: the eval samples.
        dropped: samples left out.
        notes: what else a reader should know.
        result: the adapter or model.

    Returns:
        JSON values.
    """
    rows = (
        [_row(name, measured, questions, recipe.seed) for name, measured in others.items()]
        if questions
        else []
    )
    rows += [
        _row(arm.name, pooled(arm.measured), questions, recipe.seed)
        for arm in arms
        if arm.measured and questions
    ]
    return {
        "kind": "transfer",
        "model": recipe.student,
        "seed": recipe.seed,
        "title": _title(recipe),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "rows": rows,
        "stages": [asdict(stage) for stage in stages],
        "hardware": hardware_text(),
        "command": command,
        "transfer": dict(extraction) if extraction is not None else _without_extraction(recipe),
        "transport": dict(transport) if transport is not None else None,
        "arms": [_arm_json(arm, questions, recipe.seed) for arm in arms],
        "comparisons": _comparisons(arms, questions, recipe.seed),
        "training": _training(recipe, arms),
        "dropped": [asdict(each) for each in dropped],
        "warnings": [*notes, *_warnings(arms)],
        "result": _result(recipe, result),
    }


def _warnings(arms: Sequence[Arm]) -> list[str]:
    """What the trainings noted, and sweeps whose best learning rate stands at an end."""
    noted = dict.fromkeys(note for arm in arms for run in arm.chosen for note in run.told["warnings"])
    for arm in arms:
        rates = [run.learning_rate for run in arm.tried]
        best = arm.chosen[0].learning_rate
        if len(rates) > 1 and best in (min(rates), max(rates)):
            end, beyond = ("highest", "higher") if best == max(rates) else ("lowest", "lower")
            noted[
                f"{arm.name}: the {end} learning rate tried, {best:g}, did best; {beyond} ones may do better."
            ] = None
    return list(noted)


def metrics_of(measured: Measured, questions: Questions, seed: int) -> dict[str, Estimate]:
    """Every metric of a measurement, by the name it has in the report."""
    found = {ANSWER_BITS: answer_bits_per_byte(measured.losses, seed)}
    if measured.answers:
        found |= task_estimates(measured.answers, questions.kind, seed)
    return found


def _row(name: str, measured: Measured, questions: Questions, seed: int) -> dict[str, Any]:
    metrics = estimate_json(metrics_of(measured, questions, seed))
    texts = {f"bits_per_byte/{text}": estimate for text, estimate in measured.texts.items()}
    return {"name": name, "metrics": metrics | texts}


def _arm_json(arm: Arm, questions: Questions | None, seed: int) -> dict[str, Any]:
    return {
        "name": arm.name,
        "learning_rate": arm.chosen[0].learning_rate,
        "seeds": [run.seed for run in arm.chosen],
        "n_tokens": arm.chosen[0].told["n_tokens"],
        "tried": [
            {
                "learning_rate": run.learning_rate,
                "seed": run.seed,
                "development_bits_per_byte": run.told.get("development_bits_per_byte"),
            }
            for run in arm.tried
        ]
        + [{"learning_rate": rate, "seed": seed, "development_bits_per_byte": None} for rate in arm.failed],
        "runs": [
            {
                "seed": run.seed,
                "seconds": run.told["seconds"],
                "final_loss": run.told["final_loss"],
                "start_logit_difference": run.told["start_logit_difference"],
                "saved": run.told.get("saved"),
                "curve": run.told["curve"],
                "metrics": estimate_json(metrics_of(measured, questions, seed))
                if measured is not None and questions is not None
                else {},
            }
            for run, measured in zip(arm.chosen, arm.measured or [None] * len(arm.chosen), strict=True)
        ],
    }


def _comparisons(arms: Sequence[Arm], questions: Questions | None, seed: int) -> list[dict[str, Any]]:
    """The method against each other arm, item by item and seed by seed."""
    if questions is None or not arms:
        return []
    method, *controls = arms
    found: list[dict[str, Any]] = []
    for control in controls:
        ours, theirs = ([run.losses for run in arm.measured] for arm in (method, control))
        found.append(
            comparison(
                ANSWER_BITS,
                method.name,
                control.name,
                bits_difference(ours, theirs, seed),
                is_better_lower=True,
            )
        )
        said, also_said = ([run.answers for run in arm.measured] for arm in (method, control))
        if any(said):
            metric = TASK_METRICS[questions.kind][0]
            difference = score_difference(said, also_said, metric, seed)
            found.append(comparison(metric, method.name, control.name, difference, is_better_lower=False))
    return found


def _training(recipe: TransferRecipe, arms: Sequence[Arm]) -> dict[str, Any] | None:
    """The first training of the method, as reports of every kind have it."""
    if not arms:
        return None
    run = arms[0].chosen[0]
    settings = recipe.train.model_dump(mode="json")
    settings |= settings.pop("lora") | {"learning_rate": run.learning_rate}
    return {
        "method": arms[0].name,
        "n_records": run.told["n_records"],
        "n_tokens": run.told["n_tokens"],
        "seconds": fmean(each.told["seconds"] for each in arms[0].chosen),
        "tokens_per_s": run.told["tokens_per_s"],
        "settings": settings,
        "curve": run.told["curve"],
    }


def _without_extraction(recipe: TransferRecipe) -> dict[str, Any] | None:
    if recipe.teacher is None:
        return None
    return {"teacher": recipe.teacher, "student": recipe.student, "method": recipe.method}


def _title(recipe: TransferRecipe) -> str:
    teacher, student = (
        Path(name).name if name else "no teacher" for name in (recipe.teacher, recipe.student_name)
    )
    return f"{teacher} into {student}"


def _result(recipe: TransferRecipe, result: Path | None) -> dict[str, Any] | None:
    if result is None:
        return None
    kind = recipe.result
    base = recipe.student if kind == "adapter" else None
    return {"path": result.name, "kind": kind, "base_model": base, "load": loading_code(recipe.student, kind)}

"""Everything that a fusion run trains: the target on fused distributions, and its controls on the same tokens."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transfuse.baselines.merging import merge_models
from transfuse.baselines.merging_settings import WITHOUT_BASE
from transfuse.errors import TrainingError
from transfuse.fuse.target_files import TargetRows
from transfuse.io.chat import prompt_format
from transfuse.io.files import write_json
from transfuse.io.fingerprint import model_fingerprint
from transfuse.io.models import LoadedModel, load_model, save_model
from transfuse.io.run_folder import RunFolder, Stage
from transfuse.recipes.fuse_card import write_fuse_card
from transfuse.recipes.fuse_lessons import Lesson
from transfuse.recipes.fuse_measure import Measured, load_losses, losses_of, save_losses, scratch_model
from transfuse.recipes.fuse_pieces import DomainPieces
from transfuse.recipes.fuse_schema import FuseRecipe
from transfuse.recipes.progress import Display
from transfuse.recipes.team import Team
from transfuse.recipes.training_steps import show_steps, training_json
from transfuse.train.adapters import attach_lora, save_adapter
from transfuse.train.loop import train
from transfuse.train.summary import TrainingSummary

ARM_VERSION = 1


@dataclass(frozen=True)
class Job:
    """One training, as every process of a team is told of it."""

    arm: str
    seed: int
    targets: Path
    """Folder of the fused targets."""
    is_plain: bool
    """Whether they are left out: the control that learns the same tokens as they are."""
    folder: Path
    """For checkpoints."""


@dataclass(frozen=True)
class ArmRun:
    """One training of one arm."""

    arm: str
    seed: int
    told: dict[str, Any]
    measured: Measured
    """Empty where nothing is measured."""
    key: str
    result: Path | None
    """The saved model or adapter, where it is kept."""


def join_trainings(recipe: FuseRecipe, team: Team) -> None:
    """What every process but the first does: train its share of each step of each training.

    Args:
        recipe: as the first process has it.
        team: the processes.

    Raises:
        TrainingError: the first process ended before it said that all is done.
    """
    while True:
        try:
            job = team.share(None)
        except RuntimeError as err:  # the connection is gone: the first process ended, and has said why
            raise TrainingError("the first process ended before training; its message says why.") from err
        if job is None:
            return
        _trained(recipe, Display(is_silent=True), team, job)


def train_arm(
    recipe: FuseRecipe,
    run: RunFolder,
    display: Display,
    team: Team,
    arm: str,
    seed: int,
    lesson: Lesson,
    pieces: DomainPieces | None,
    *,
    result: Path | None,
) -> ArmRun:
    """Train and measure one arm with one seed, or take it from an earlier process.

    Args:
        recipe: names the target and the settings.
        run: the run folder; the training has a stage of its own, and continues from its checkpoint.
        display: progress.
        team: the processes that train.
        arm: its name; `clm` leaves the fused targets out.
        seed: of the order of pieces, of dropout and of LoRA's factors.
        lesson: what is learned.
        pieces: of the eval texts; None measures nothing.
        result: where to keep the trained model or adapter; None lets it go once it is measured.

    Returns:
        The trained arm.

    Raises:
        TrainingError: the loss is not finite, or nothing can be learned of the pieces.
    """
    is_plain = arm == "clm"
    key = {
        "arm": arm,
        "target": model_fingerprint(recipe.target),
        "lesson": lesson.key,
        "precision": recipe.precision,
        "train": {
            name: value
            for name, value in recipe.train.model_dump(mode="json").items()
            if name not in ("checkpoint_s", "report_to")
        },
        "seed": seed,
        "n_processes": team.size,
        "eval": pieces.key if pieces else None,
        "save_precision": recipe.save_precision if result else None,
    }
    outputs = [result] if result else []
    with run.stage(f"arms/{arm}/seed-{seed}", key, version=ARM_VERSION, outputs=outputs) as stage:
        if not stage.is_done:
            job = Job(arm, seed, lesson.folder, is_plain, stage.folder)
            team.share(job)
            summary, loaded, model = _trained(recipe, display, team, job)
            if result is not None:
                _save(recipe, loaded, model, result)
                write_fuse_card(recipe, result, arm, seed)
            if pieces is not None:
                save_losses(stage.folder, losses_of(loaded, model, pieces, display, f"{arm}, seed {seed}"))
            write_json(stage.folder / "run.json", training_json(summary))
        return _read(arm, seed, stage, result, is_measured=pieces is not None)


def merge_arms(
    recipe: FuseRecipe,
    run: RunFolder,
    display: Display,
    seed: int,
    parts: Mapping[str, ArmRun],
    pieces: DomainPieces | None,
    *,
    result: Path | None,
) -> ArmRun:
    """Merge the results of pairwise fusion, and measure what comes of it.

    Args:
        recipe: names the method; its base is the untouched target.
        run: the run folder; the merge has a stage of its own.
        display: progress.
        seed: of the trainings that are merged.
        parts: what was fused with each source apart, all of them kept.
        pieces: of the eval texts; None measures nothing.
        result: where to keep the merged model; None lets it go once it is measured.

    Returns:
        The merged model as an arm.

    Raises:
        RecipeError: the method does not fit.
    """
    method = recipe.merge.method
    base = None if method in WITHOUT_BASE else recipe.target
    key = {
        "parts": {name: part.key for name, part in parts.items()},
        "merge": recipe.merge.model_dump(mode="json"),
        "base": model_fingerprint(base) if base else None,
        "eval": pieces.key if pieces else None,
    }
    with run.stage(
        f"merging/seed-{seed}", key, version=ARM_VERSION, outputs=[result] if result else []
    ) as stage:
        if not stage.is_done:
            with (
                display.bar(f"merging, {method}") as advance,
                scratch_model(stage.folder / "model") as scratch,
            ):
                folder = result or scratch
                models = [part.result for part in parts.values() if part.result is not None]
                merge_models(models, recipe.merge, folder, base=base, on_tensor=advance)
                if result is not None:
                    write_fuse_card(recipe, result, f"pairwise/{method}", seed)
                if pieces is not None:
                    loaded = load_model(str(folder), precision=recipe.precision, trainable=True)
                    save_losses(
                        stage.folder, losses_of(loaded, loaded.model, pieces, display, f"merged, seed {seed}")
                    )
            write_json(
                stage.folder / "run.json", {"curve": [], "seconds": None, "n_tokens": None, "warnings": []}
            )
        return _read(f"pairwise/{method}", seed, stage, result, is_measured=pieces is not None)


def _read(arm: str, seed: int, stage: Stage, result: Path | None, *, is_measured: bool) -> ArmRun:
    told = json.loads((stage.folder / "run.json").read_text(encoding="utf-8"))
    return ArmRun(arm, seed, told, load_losses(stage.folder) if is_measured else [], stage.key, result)


def _trained(
    recipe: FuseRecipe, display: Display, team: Team, job: Job
) -> tuple[TrainingSummary, LoadedModel, nn.Module]:
    """Train one arm, in every process of the team."""
    loaded = load_model(
        recipe.target,
        precision=recipe.precision,
        device=team.device,
        trust_remote_code=recipe.trust_remote_code,
        trainable=True,
    )
    torch.manual_seed(job.seed)  # LoRA's factors are drawn here
    model: nn.Module = loaded.model
    if recipe.train.method == "lora":
        model = attach_lora(loaded.model, recipe.train.lora)
    prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
    rows = TargetRows(job.targets, is_plain=job.is_plain)
    with display.bar(f"{job.arm}, seed {job.seed}") as advance:
        summary = train(
            model,
            rows,
            recipe.train,
            seed=job.seed,
            compute_dtype=loaded.precision,
            pad_id=prompts.pad_id,
            folder=job.folder,
            run_name=f"transfuse-fuse-{job.arm}-{job.seed}",
            on_step=show_steps(advance),
        )
    for warning in summary.warnings:
        display.say(f"Note: {warning}")
    return summary, loaded, model


def _save(recipe: FuseRecipe, loaded: LoadedModel, model: nn.Module, result: Path) -> None:
    if recipe.train.method == "lora":
        save_adapter(model, result, loaded.base_name)  # type: ignore[arg-type] - attach_lora made it
        return
    if recipe.save_precision == "bfloat16":
        loaded.model.to(torch.bfloat16)  # type: ignore[arg-type] - decorated in transformers
    save_model(loaded.model, loaded.tokenizer, result)

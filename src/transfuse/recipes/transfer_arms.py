"""Arms of a transfer run: the method and its controls, trained on the same samples and steps."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from transfuse.errors import TrainingError
from transfuse.evaluate.task_losses import answer_losses
from transfuse.evaluate.tasks import answer_bits_per_byte
from transfuse.generate.local import context_tokens
from transfuse.io.chat import prompt_format
from transfuse.io.files import write_json
from transfuse.io.fingerprint import model_fingerprint
from transfuse.io.models import LoadedModel, load_model
from transfuse.io.run_folder import RunFolder
from transfuse.recipes.progress import Display
from transfuse.recipes.training_steps import show_steps, training_json
from transfuse.recipes.transfer_card import write_arm_card
from transfuse.recipes.transfer_extraction import Extraction
from transfuse.recipes.transfer_lessons import Lessons
from transfuse.recipes.transfer_schema import Control, TransferRecipe
from transfuse.train.adapters import attach_lora, save_adapter
from transfuse.train.batches import TrainingRow
from transfuse.train.folded_adapters import save_folded_adapter
from transfuse.train.loop import train
from transfuse.train.settings import LoraSettings, TrainSettings
from transfuse.train.starting_controls import pissa_factors, randomly_turned_factors
from transfuse.train.starting_factors import Factors, attach_starting_factors
from transfuse.train.summary import TrainingSummary
from transfuse.transfer.adapter_deltas import attach_deltas

ARM_VERSION = 1
TOLERATED_START = 1e-3
"""Largest difference of a logit at the start, in float32, that rounding explains; measured values are far below."""


@dataclass(frozen=True)
class Starts:
    """What the arms' adapters start from."""

    extraction: Extraction | None
    carried: dict[str, Factors] | None
    """The transported delta."""
    key: dict[str, str]
    """Changes with either."""

    @property
    def modules(self) -> list[str]:
        """Full names of the modules that every arm adapts; empty where none are prescribed."""
        if self.extraction is not None:
            return sorted(self.extraction.start())
        return sorted(self.carried or ())


@dataclass(frozen=True)
class ArmRun:
    """One training of one arm."""

    arm: str
    learning_rate: float
    seed: int
    folder: Path
    key: str
    told: dict[str, Any]
    """Seconds, curve, development loss and what else was measured in training."""

    @property
    def adapter(self) -> Path:
        """The saved adapter."""
        return self.folder / "adapter"


def train_arm(
    recipe: TransferRecipe,
    run: RunFolder,
    display: Display,
    arm: Control,
    rate: float | None,
    seed: int,
    lessons: Lessons,
    starts: Starts,
) -> ArmRun:
    """Train one arm with one learning rate and seed, or take it from an earlier process.

    Args:
        recipe: names models and settings.
        run: the run folder; the training has a stage of its own, and continues from its checkpoint.
        display: progress.
        arm: which one.
        rate: its peak learning rate; None takes the settings' default.
        seed: of the order of samples, of dropout, and of what the arm draws.
        lessons: the rows of each kind of teaching.
        starts: what adapters start from.

    Returns:
        The trained arm.

    Raises:
        TrainingError: the loss is not finite, or nothing is left to train on.
    """
    settings = recipe.train.model_copy(update={"learning_rate": rate}) if rate else recipe.train
    rows, lesson_key = lessons.of(arm)
    key = {
        "arm": arm,
        "student": model_fingerprint(recipe.student),
        "precision": recipe.precision,
        "train": {
            name: value
            for name, value in settings.model_dump(mode="json").items()
            if name not in ("checkpoint_s", "report_to")
        },
        "rows": lesson_key,
        "development": lessons.development_key,
        "modules": starts.modules,
        "start": starts.key if arm not in ("lora", "pissa") else {},
        "seed": seed,
        "max_rank": recipe.max_rank,
    }
    name = f"arms/{arm}/lr-{settings.peak_learning_rate:g}/seed-{seed}"
    adapter = run.path / name / "adapter"
    with run.stage(name, key, version=ARM_VERSION, outputs=[adapter]) as stage:
        if not stage.is_done:
            told = _train(recipe, display, arm, settings, seed, rows, lessons, starts, stage.folder)
            write_json(stage.folder / "run.json", told)
        told = json.loads((stage.folder / "run.json").read_text(encoding="utf-8"))
    return ArmRun(arm, settings.peak_learning_rate, seed, stage.folder, stage.key, told)


def _train(
    recipe: TransferRecipe,
    display: Display,
    arm: Control,
    settings: TrainSettings,
    seed: int,
    rows: Sequence[TrainingRow],
    lessons: Lessons,
    starts: Starts,
    folder: Path,
) -> dict[str, Any]:
    if not rows:
        raise TrainingError(
            f"{arm}: expected training rows, got none; see why samples were left out in {folder.parent}."
        )
    loaded = load_model(
        recipe.student, precision=recipe.precision, trust_remote_code=recipe.trust_remote_code
    )
    prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
    before = _first_logits(loaded.model, rows[: recipe.n_checked_logits])
    torch.manual_seed(seed)
    model, is_folded = attach_arm(loaded.model, arm, settings.lora, starts, seed)
    started_at = _largest_difference(before, _first_logits(model, rows[: recipe.n_checked_logits]))
    if arm != "delta-transport" and loaded.precision == torch.float32 and started_at > TOLERATED_START:
        raise TrainingError(
            f"{arm}: the student should start at its own function, but a logit differs by {started_at:.3g}; lower "
            f"extract.strength, or check the student's weights."
        )
    summary = _loop(display, arm, model, rows, settings, seed, loaded, prompts.pad_id, folder)
    told = _told(summary, started_at)
    if lessons.development:
        losses = answer_losses(model, prompts, lessons.development, loaded.precision)
        told["development_bits_per_byte"] = answer_bits_per_byte(losses, seed).value
    base = loaded.base_name
    if is_folded:
        report = save_folded_adapter(model, folder / "adapter", base, max_rank=recipe.max_rank)
        told["saved"] = asdict(report)
    else:
        save_adapter(model, folder / "adapter", base)
    write_arm_card(
        recipe,
        folder / "adapter",
        arm,
        settings.peak_learning_rate,
        seed,
        development_bits=told.get("development_bits_per_byte"),
    )
    return told


def attach_arm(
    model: PreTrainedModel, arm: Control, lora: LoraSettings, starts: Starts, seed: int
) -> tuple[PeftModel, bool]:
    """A student with the adapter that an arm starts from.

    Args:
        model: the untouched student; changed in place.
        arm: which one.
        lora: rank, scaling and dropout.
        starts: extracted and carried factors.
        seed: of what the arm draws.

    Returns:
        The adapted model, and whether a frozen branch runs beside the adapter, to be folded in when it is saved.

    Raises:
        TrainingError: factors do not fit the model.
    """
    names = starts.modules
    generator = torch.Generator().manual_seed(seed)
    if arm == "delta-transport" and starts.carried is not None:
        return attach_deltas(model, starts.carried), False
    if arm == "pissa":
        names = names or _linear_names(model)
        return attach_starting_factors(model, lora, pissa_factors(model, names, lora.rank, generator)), True
    if starts.extraction is not None and arm in ("parametric", "random-block", "norm-matched-random"):
        factors = starts.extraction.random_block() if arm == "random-block" else starts.extraction.start()
        if arm == "norm-matched-random":
            factors = randomly_turned_factors(factors, generator)
        return attach_starting_factors(model, lora, factors), True
    return attach_lora(model, lora.model_copy(update={"targets": names}) if names else lora), False


def _loop(
    display: Display,
    arm: str,
    model: PeftModel,
    rows: Sequence[TrainingRow],
    settings: TrainSettings,
    seed: int,
    loaded: LoadedModel,
    pad_id: int,
    folder: Path,
) -> TrainingSummary:
    with display.bar(f"{arm}, {settings.peak_learning_rate:g}, seed {seed}") as advance:
        summary = train(
            model,
            rows,
            settings,
            seed=seed,
            compute_dtype=loaded.precision,
            pad_id=pad_id,
            folder=folder,
            run_name=f"transfuse-transfer-{arm}-{seed}",
            on_step=show_steps(advance),
        )
    for warning in summary.warnings:
        display.say(f"Note: {warning}")
    return summary


def _told(summary: TrainingSummary, started_at: float) -> dict[str, Any]:
    return training_json(summary) | {"start_logit_difference": started_at}


@torch.no_grad()
def _first_logits(model: torch.nn.Module, rows: Sequence[TrainingRow]) -> list[torch.Tensor]:
    """Logits at the last position of a few rows."""
    device = next(model.parameters()).device
    limit = context_tokens(model)
    was_training = model.training
    model.eval()
    found = []
    for row in rows:
        ids = torch.tensor([row.token_ids[:limit]], device=device)
        found.append(model(input_ids=ids, use_cache=False).logits[0, -1].float())
    model.train(was_training)
    return found


def _largest_difference(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    pairs = zip(before, after, strict=True)
    return max((float((one - other).abs().max()) for one, other in pairs), default=0.0)


def _linear_names(model: PreTrainedModel) -> list[str]:
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]

"""What the arms of a transfer run learn from: the samples' own answers, or the teacher's words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from transfuse.baselines.distillation import (
    offline_items,
    online_rows,
    refuse_other_vocabulary,
    share_vocabulary,
)
from transfuse.errors import DataError
from transfuse.generate.kept_replies import KeptReplies
from transfuse.generate.local import LocalGenerator
from transfuse.generate.opening import open_generator
from transfuse.generate.protocol import Generator
from transfuse.generate.references import generator_key
from transfuse.generate.reply_cache import ReplyCache, default_cache_path
from transfuse.generate.settings import WITHOUT_EFFECT
from transfuse.io.chat import PromptFormat, prompt_format
from transfuse.io.configs import load_config
from transfuse.io.files import file_sha256
from transfuse.io.fingerprint import model_fingerprint
from transfuse.io.models import LoadedModel, load_model, load_tokenizer
from transfuse.io.run_folder import RunFolder, key_digest
from transfuse.io.task_files import load_tasks
from transfuse.recipes.inject_model import without_note
from transfuse.recipes.progress import Display
from transfuse.recipes.transfer_alignment import aligned_rows, taught_share
from transfuse.recipes.transfer_schema import Control, TransferRecipe
from transfuse.train.batches import TrainingRow
from transfuse.train.saved_rows import load_rows, save_rows
from transfuse.train.soft_targets import SoftTargets
from transfuse.train.task_rows import task_row, task_rows, why_unlearnable
from transfuse.types import Dropped, TaskItem

LESSONS_VERSION = 2
TAUGHT = {"online-distillation": "online", "offline-distillation": "offline"}


@dataclass(frozen=True)
class Lessons:
    """Training rows by kind of teaching, and the rows on which learning rates are chosen."""

    rows: dict[str, list[TrainingRow]]
    """`own`, `online`, `offline`: those that an arm needs."""
    keys: dict[str, str]
    development: list[TaskItem]
    development_key: str
    dropped: list[Dropped]
    notes: list[str]
    """What a reader of the report should know of them."""

    def of(self, arm: Control) -> tuple[list[TrainingRow], str]:
        """The rows of an arm, and a key that changes with them."""
        kind = TAUGHT.get(arm, "own")
        return self.rows[kind], self.keys[kind]


def make_lessons(recipe: TransferRecipe, run: RunFolder, display: Display) -> Lessons:
    """Split the training samples, and have the teacher say what distilling arms learn.

    Args:
        recipe: names the training file and the arms.
        run: the run folder; the teacher's words have stages of their own.
        display: progress.

    Returns:
        Rows for every arm; all arms see the same samples in the same steps.

    Raises:
        DataError: the file holds too few samples.
        ModelError: teacher and student have different vocabularies that are not to be aligned, or hardly can.
        GenerationError: the endpoint that writes answers cannot be asked.
    """
    assert recipe.train_file is not None  # noqa: S101 - without one nothing is trained
    items, development = split_samples(recipe)
    tokenizer = load_tokenizer(recipe.student, trust_remote_code=recipe.trust_remote_code)
    prompts = prompt_format(tokenizer)
    config = load_config(recipe.student, trust_remote_code=recipe.trust_remote_code)
    limits = [recipe.train.max_length_tokens, getattr(config, "max_position_embeddings", None)]
    limit = min((each for each in limits if each is not None), default=None)
    items = samples_of_budget(items, prompts, limit, recipe.train.n_tokens, recipe.seed)
    own, dropped = task_rows(items, prompts, limit)
    data_key: dict[str, Any] = {
        "file": file_sha256(recipe.train_file),
        "n_train": recipe.n_train,
        "development_share": recipe.development_share,
        "seed": recipe.seed,
        "max_length_tokens": limit,
        "tokenizer": model_fingerprint(recipe.student),
    }
    if recipe.train.n_tokens is not None:
        data_key["n_tokens"] = recipe.train.n_tokens
    rows, keys = {"own": own}, {"own": key_digest(data_key)}
    for arm in recipe.arms:
        if arm in TAUGHT:
            kind = TAUGHT[arm]
            rows[kind], keys[kind], more = _taught(
                recipe, run, display, kind, items, own, prompts, limit, data_key
            )
            dropped += more
    notes = _notes(rows.get("online", []))
    for note in notes:
        display.say(f"Note: {note}")
    return Lessons(rows, keys, development, keys["own"], dropped, notes)


def _notes(online: Sequence[TrainingRow]) -> list[str]:
    is_aligned = any(isinstance(row.soft, SoftTargets) and row.soft.is_taught is not None for row in online)
    if not is_aligned:
        return []
    return [
        f"online-distillation: teacher and student cut text into other tokens; aligned by bytes, the teacher teaches "
        f"{taught_share(online):.1%} of the learned tokens, the others are learned from the answers alone."
    ]


def split_samples(recipe: TransferRecipe) -> tuple[list[TaskItem], list[TaskItem]]:
    """The samples that train, and those on which learning rates are chosen.

    Args:
        recipe: names the file, how many samples, and the share.

    Returns:
        Both, drawn by the seed, each in the file's order.

    Raises:
        DataError: too few samples are left to train on.
    """
    assert recipe.train_file is not None  # noqa: S101 - without one nothing is trained
    items = load_tasks(recipe.train_file)[: recipe.n_train]
    n_held = max(1, round(recipe.held_out_share * len(items))) if recipe.held_out_share else 0
    if len(items) - n_held < 1:
        raise DataError(
            f"{recipe.train_file}: expected at least {n_held + 1} samples, of which {n_held} choose the learning rate, "
            f"got {len(items)}; add samples, or name one learning rate."
        )
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    held = set(order[:n_held])
    return (
        [item for n, item in enumerate(items) if n not in held],
        [item for n, item in enumerate(items) if n in held],
    )


def samples_of_budget(
    items: Sequence[TaskItem],
    prompts: PromptFormat,
    max_length_tokens: int | None,
    n_tokens: int | None,
    seed: int,
) -> list[TaskItem]:
    """The samples that a training of so many tokens has time to read once, so that no teacher is asked about others.

    Args:
        items: all training samples.
        prompts: the student's prompt format.
        max_length_tokens: longer samples are not learned, and count for nothing.
        n_tokens: that are trained; None means whole epochs.
        seed: of the draw.

    Returns:
        Samples drawn by the seed until their own rows hold `n_tokens`, in their order; all of them where that is not
        enough or no number is given.
    """
    if n_tokens is None:
        return list(items)
    drawn: set[int] = set()
    n_left = n_tokens
    for index in torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist():
        if n_left <= 0:
            break
        drawn.add(index)
        row = task_row(items[index], prompts)
        n_left -= 0 if why_unlearnable(row, max_length_tokens) else len(row.token_ids)
    return [item for index, item in enumerate(items) if index in drawn]


def _taught(
    recipe: TransferRecipe,
    run: RunFolder,
    display: Display,
    kind: str,
    items: Sequence[TaskItem],
    own: list[TrainingRow],
    prompts: PromptFormat,
    limit: int | None,
    data_key: dict[str, Any],
) -> tuple[list[TrainingRow], str, list[Dropped]]:
    """Rows in the teacher's words, made once and kept."""
    settings = recipe.distillation.model_dump(mode="json")
    generator = recipe.distillation.generator
    if generator is not None:
        settings["generator"] = generator.model_dump(mode="json", exclude=set(WITHOUT_EFFECT))
    key = {**data_key, "precision": recipe.precision, "settings": settings}
    if kind == "offline" and generator is not None:
        key["teacher"] = generator_key(generator)
    else:
        assert recipe.teacher is not None  # noqa: S101 - the recipe checks it
        key["teacher"] = model_fingerprint(recipe.teacher)
    with run.stage(f"rows-{kind}", key, version=LESSONS_VERSION) as stage:
        file = stage.folder / "rows.safetensors"
        if not stage.is_done:
            if kind == "online":
                rows, dropped = _online(recipe, display, items, own, prompts, limit)
            else:
                answered, dropped = _offline(recipe, display, items)
                rows, lost = task_rows(answered, prompts, limit)
                dropped = [*dropped, *lost]
            save_rows(file, rows, dropped)
        rows, dropped = load_rows(file)
    return rows, stage.key, dropped


def _online(
    recipe: TransferRecipe,
    display: Display,
    items: Sequence[TaskItem],
    own: list[TrainingRow],
    prompts: PromptFormat,
    limit: int | None,
) -> tuple[list[TrainingRow], list[Dropped]]:
    """The teacher's distributions, token by token where it shares the student's vocabulary, else by bytes."""
    loaded = _load_teacher(recipe)
    settings = recipe.distillation
    with display.bar("distributions of the teacher") as advance:
        if not share_vocabulary(loaded.tokenizer, prompts.tokenizer) and settings.other_vocabulary == "align":
            return aligned_rows(
                loaded, items, prompts, settings, max_length_tokens=limit, on_rows=without_note(advance)
            )
        refuse_other_vocabulary(loaded.tokenizer, prompts.tokenizer)
        student = load_config(recipe.student, trust_remote_code=recipe.trust_remote_code)
        return online_rows(
            loaded.model,
            own,
            settings,
            pad_id=prompts.pad_id,
            compute_dtype=loaded.precision,
            n_vocab=student.vocab_size,
            on_rows=without_note(advance),
        )


def _offline(
    recipe: TransferRecipe, display: Display, items: Sequence[TaskItem]
) -> tuple[list[TaskItem], list[Dropped]]:
    """The samples with answers that the teacher writes."""
    settings = recipe.distillation

    def answered(generator: Generator) -> tuple[list[TaskItem], list[Dropped]]:
        with display.bar("answers of the teacher") as advance:
            return offline_items(
                items, generator, settings, seed=recipe.seed, on_replies=without_note(advance)
            )

    if settings.generator is None:
        loaded = _load_teacher(recipe)
        teacher_prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
        return answered(LocalGenerator(loaded.model, teacher_prompts, loaded.precision))
    opened = open_generator(
        settings.generator, precision=recipe.precision, trust_remote_code=recipe.trust_remote_code
    )
    with ReplyCache(default_cache_path()) as cache:
        return answered(KeptReplies(opened, cache, settings.generator))


def _load_teacher(recipe: TransferRecipe) -> LoadedModel:
    assert recipe.teacher is not None  # noqa: S101 - the recipe checks it
    return load_model(recipe.teacher, precision=recipe.precision, trust_remote_code=recipe.trust_remote_code)

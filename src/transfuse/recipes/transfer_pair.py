"""Teacher and student held against each other before either is loaded."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from transfuse.errors import ModelError, RecipeError
from transfuse.io.configs import load_config, weights_folder
from transfuse.io.models import load_tokenizer
from transfuse.recipes.transfer_schema import TransferRecipe
from transfuse.transfer.architecture import Architecture, Role
from transfuse.transfer.coupled import refuse_uncoupled
from transfuse.transfer.families import architecture_of, refuse_misfits
from transfuse.transfer.layers import choose_layers
from transfuse.transfer.sub_cloning import student_shape
from transfuse.transfer.vocabulary import token_rows
from transfuse.types import Dropped


@dataclass(frozen=True)
class Pair:
    """Teacher and student, as far as their configurations tell."""

    teacher: Architecture
    student: Architecture
    teacher_config: PreTrainedConfig
    student_config: PreTrainedConfig
    roles: frozenset[Role]
    left_out: list[Dropped]
    token_rows: Tensor | None


def read_pair(recipe: TransferRecipe) -> Pair:
    """Teacher and student held against each other, by their configurations and tokenizers alone.

    Args:
        recipe: names both.

    Returns:
        What is needed to cut one into the shape of the other.

    Raises:
        ModelError: an unknown architecture, or a teacher that is smaller than the student.
        RecipeError: layers that the teacher does not have, or a rank that the student does not.
    """
    assert recipe.teacher is not None  # noqa: S101 - the recipe checks it
    trust = recipe.trust_remote_code
    teacher_config = load_config(recipe.teacher, trust_remote_code=trust)
    if recipe.shape is not None:
        student_config = student_shape(teacher_config, **recipe.shape.model_dump())
    else:
        student_config = load_config(recipe.student, trust_remote_code=trust)
    teacher, student = architecture_of(teacher_config), architecture_of(student_config)
    wanted = set(recipe.extract.roles or student.roles)
    if recipe.extract.roles is None and student.is_tied and recipe.result == "adapter":
        wanted -= {"embedding", "head"}
    rows = None
    if recipe.extract.vocabulary == "leave-out":
        wanted -= {"embedding", "head"}
    elif wanted & {"embedding", "head"}:
        other = recipe.teacher if recipe.shape is not None else recipe.student
        tokenizers = [load_tokenizer(name, trust_remote_code=trust) for name in (recipe.teacher, other)]
        rows = token_rows(*tokenizers, n_teacher_rows=teacher.vocab, n_student_rows=student.vocab)
    fitting = refuse_misfits(teacher, student, wanted)
    choose_layers(recipe.extract.layers, [0.0] * teacher.n_layers, student.n_layers, torch.Generator())
    if recipe.extract.reduce == "coupled":
        refuse_uncoupled(teacher, student)
    _refuse_great_ranks(recipe, student)
    return Pair(
        teacher, student, teacher_config, student_config, frozenset(fitting.roles), fitting.left_out, rows
    )


def check_pair(recipe: TransferRecipe) -> None:
    """Refuse what an extraction would find out late, before anything heavy starts.

    Args:
        recipe: names teacher, student and engine.

    Raises:
        ModelError: they do not fit, or the teacher cannot be read as asked.
        RecipeError: layers or a rank that there are not.
    """
    assert recipe.teacher is not None  # noqa: S101 - the recipe checks it
    pair = read_pair(recipe)
    if recipe.sensitivity.engine == "stream":
        weights_folder(recipe.teacher)
    if recipe.result == "model" and pair.teacher.family != pair.student.family:
        raise ModelError(
            f"--as model: expected a student of the teacher's family ({pair.teacher.family}), got "
            f"{pair.student.family}; give --shape instead of --student."
        )


def _refuse_great_ranks(recipe: TransferRecipe, student: Architecture) -> None:
    rank = recipe.train.lora.rank
    least = min(min(student.shape(role)) for role in student.roles)
    if recipe.result == "adapter" and rank > least:
        raise RecipeError(
            f"train.lora.rank: expected at most {least}, the smallest side of the student's matrices, got {rank}; give "
            f"--rank {least} or less."
        )

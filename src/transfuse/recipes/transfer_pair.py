"""Teacher and student held against each other before either is loaded."""

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedConfig

from transfuse.io.configs import load_config
from transfuse.io.models import load_tokenizer
from transfuse.recipes.transfer_schema import TransferRecipe
from transfuse.transfer.architecture import Architecture, Role
from transfuse.transfer.families import architecture_of, refuse_misfits
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
    return Pair(
        teacher, student, teacher_config, student_config, frozenset(fitting.roles), fitting.left_out, rows
    )

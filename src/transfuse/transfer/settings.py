"""Settings of the parameter route: how the teacher is read, and what is cut out of it."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from transfuse.transfer.architecture import Role
from transfuse.types import StrictModel

Reduce = Literal["submatrix", "rows-columns", "random", "leading", "coupled"]

NamedLayers = Literal["sensitive", "proportional", "first", "last", "random"]


class SensitivitySettings(StrictModel):
    """How the teacher's sensitivity is measured."""

    engine: Literal["auto", "memory", "stream"] = "auto"
    """`memory` loads the whole teacher; `stream` reads one layer after the other from safetensors files; `auto` takes
    memory where the teacher and its scores fit."""
    n_samples: PositiveInt | None = 32
    """Seed samples, the file's first; none means all."""
    max_length_tokens: PositiveInt | None = None
    """Longer samples are cut at the beginning of their prompt, and counted; none means the teacher's context."""
    max_tokens_per_pass: PositiveInt = 4096
    """Samples of like length pass together, up to this many tokens."""


class ExtractionSettings(StrictModel):
    """What is cut out of the teacher."""

    layers: NamedLayers | list[NonNegativeInt] = "sensitive"
    """Which of the teacher's layers, in their order, stand for the student's: those of greatest summed sensitivity,
    evenly spread over the depth, the first, the last, drawn ones, or a list."""
    reduce: Reduce = "submatrix"
    """How each matrix comes to the student's shape: its contiguous block of greatest summed sensitivity; its rows and
    columns of greatest sensitivity; drawn ones; the first ones; or `coupled`: one choice for the whole model, so that
    heads, neurons and the residual stream still fit one another."""
    roles: list[Role] | None = None
    """Which matrices; none means all that the student holds for itself (tied embeddings are left out)."""
    vocabulary: Literal["match", "leave-out"] = "match"
    """Embeddings and head: rows matched by token string, or left out."""
    strength: PositiveFloat = 1.0
    """Multiplies the extracted factors; the start is the student's own function with any."""
    factors: Literal["paper", "balanced"] = "paper"
    """Where the singular values go: all to B (the paper), or their square roots to both."""

    @field_validator("roles")
    @classmethod
    def _some_role(cls, roles: list[Role] | None) -> list[Role] | None:
        if roles is not None and not roles:
            raise ValueError("expected at least one role, got none; leave the key out for all")
        return roles


class StudentShape(StrictModel):
    """Shape of a new small student that is cut out of its teacher; what is left out stays the teacher's."""

    n_layers: PositiveInt | None = None
    hidden: PositiveInt | None = None
    n_heads: PositiveInt | None = None
    n_kv_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    n_neurons: PositiveInt | None = None

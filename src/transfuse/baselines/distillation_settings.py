"""How a student learns from a teacher's words: its distributions, or the answers that it writes."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from transfuse.types import StrictModel


class DistillSettings(StrictModel):
    """Distillation in place of parameters."""

    top_k: PositiveInt = 64
    """Online: tokens kept of each of the teacher's distributions; the others count together."""
    temperature: PositiveFloat = 1.0
    """Online: divides the teacher's logits and the student's; more than 1 makes unlikely tokens count."""
    hard_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Online: share of the loss that is on the answers' own tokens; the rest is on the teacher's distributions."""
    answer_temperature: NonNegativeFloat = 0.0
    """Offline: at which the teacher's answers are drawn; 0 decodes greedily."""
    max_new_tokens: PositiveInt = 256
    """Offline: longest answer of the teacher; one that has not ended by then is dropped."""

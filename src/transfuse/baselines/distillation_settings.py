"""How a student learns from a teacher's words: its distributions, or the answers that it writes."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from transfuse.generate.settings import GeneratorSettings
from transfuse.types import StrictModel


class DistillSettings(StrictModel):
    """Distillation in place of parameters."""

    divergence: Literal["forward-kl", "reverse-kl", "jsd"] = "forward-kl"
    """Online: what pulls the student towards the teacher. `forward-kl` makes it cover all that the teacher may say,
    `reverse-kl` keep to what the teacher would say, `jsd` lies between."""
    jsd_beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Online: of divergence `jsd` (GKD): towards 0 it acts as the forward KL, towards 1 as the reverse one, scaled
    down."""
    top_k: PositiveInt = 64
    """Online: tokens kept of each of the teacher's distributions; the others count together."""
    temperature: PositiveFloat = 1.0
    """Online: divides the teacher's logits and the student's; more than 1 makes unlikely tokens count."""
    hard_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Online: share of the loss that is on the answers' own tokens; the rest is on the teacher's distributions."""
    other_vocabulary: Literal["align", "refuse"] = "align"
    """Online: where teacher and student cut text into other tokens, align the two by bytes and teach wherever both
    have read the same, or refuse."""
    map: Literal["exact", "min-edit", "retokenize"] = "retokenize"
    """Online, other vocabularies: from a teacher's token to the student's. `retokenize` takes the first token of its
    text as the student cuts it; `exact` the token of the same text only; `min-edit` else that of least edit distance.
    The last two teach only where both read one token of the same text next."""
    min_coverage: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Online, other vocabularies: least share of the learned tokens that the teacher has to teach."""
    answer_temperature: NonNegativeFloat = 0.0
    """Offline: at which the teacher's answers are drawn; 0 decodes greedily."""
    max_new_tokens: PositiveInt = 256
    """Offline: longest answer of the teacher; one that has not ended by then is dropped."""
    generator: GeneratorSettings | None = None
    """Offline: who writes the answers, where it is not the teacher as a local model: an endpoint, a recording. Its
    replies are kept, so a killed run asks for none of them again."""

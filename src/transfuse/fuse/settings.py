"""Settings of the fusion route."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from transfuse.io.distribution_header import Selection
from transfuse.types import StrictModel


class DistributionSettings(StrictModel):
    """What is kept of a model's distributions, and how."""

    k: NonNegativeInt = 10
    """Tokens kept of each distribution; 0 keeps the observed tokens' log-probabilities alone."""
    selection: Selection = "top-k"
    """`top-k` keeps the likeliest, and how much all others have together; `sampled` draws k tokens with replacement,
    which estimates the whole distribution without bias."""
    temperature: PositiveFloat = 1.0
    """Divides the logits of what is kept; the observed tokens' log-probabilities stay those of temperature 1."""
    value_bits: Annotated[int, Field(ge=8, le=16)] | Literal[32] | None = None
    """Bits of each log-probability: 8 to 16 round it (9 by at most 0.7 % of the probability where that is above a
    third), 32 keep it exactly; none takes as many as fit 4 k bytes a token, at least 9."""
    shard_tokens: PositiveInt = 131_072
    """Tokens of a file; a killed run loses at most the one under way."""
    max_tokens_per_pass: PositiveInt = 4096
    """Texts of like length pass together, up to this many tokens."""
    keep_texts: bool = False
    """Whether a copy of the texts goes into the cache."""

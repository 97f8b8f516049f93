"""How sources are aligned, mapped, fused and learned."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from transfuse.tensors.sparse_divergences import Divergence
from transfuse.types import StrictModel


class FusionSettings(StrictModel):
    """From the sources' distributions to what the target learns."""

    rule: Literal["min-ce", "avg-ce", "fair-min-ce", "fair-avg-ce"] = "fair-min-ce"
    """Keep the source to which a text costs least, or average by cost. `min-ce` and `avg-ce` compare nats per token, as
    the paper does; the fair ones bits per byte, which does not favour tokenizers of short tokens."""
    level: Literal["sequence", "chunk"] = "sequence"
    """Where sources are compared: over a whole piece of text (the paper), or between the nearest bytes that all of
    them cut at."""
    align: Literal["exact", "min-edit"] = "exact"
    """By bytes, or by least edit distance of the tokens (the paper)."""
    map: Literal["exact", "min-edit", "retokenize"] = "min-edit"
    """From a source's tokens to the target's: the same text only; else that of least edit distance (the paper); or the
    first token of the source token's text as the target would cut it, which also teaches where the two cut apart."""
    fallback: Literal["next-token", "current-token"] = "next-token"
    """Where no source says anything, learn the text's own next token, as the rest of the loss does; or the token just
    read, as the published code has it by mistake (for parity only)."""
    with_target: bool = True
    """Let the untouched target take part as one of the sources (the paper)."""
    weight_temperature: PositiveFloat = 1.0
    """Of averaging rules: less than 1 favours the better source more."""
    renormalises: bool = False
    """Scale what is kept of a distribution up to 1, as the published code does; else the rest is a tail of its own."""
    duplicates: Literal["add", "keep-likeliest"] = "add"
    """Source tokens of one image: add their probabilities, or keep the likeliest's, as the published code does."""
    divergence: Divergence | Literal["chunk-likelihood"] = "cross-entropy"
    """What pulls the target towards the fused distribution: the paper's cross-entropy over the kept tokens; KL with the
    tail, forward or reverse, or what lies between (`jsd`); sorted probabilities (`uld`); or the likelihood of whole
    chunks (ALM), which needs no kept tokens and no map."""
    jsd_beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of divergence `jsd` (GKD): towards 0 it acts as the forward KL, towards 1 as the reverse one, scaled down."""
    chunk_temperature: PositiveFloat = 1.0
    """Of divergence `chunk-likelihood`: probabilities are taken to the power of 1 / this."""
    clm_weight: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Lambda: share of the loss that is on the text's own tokens; the rest is on the fused distributions."""
    n_kept: PositiveInt | None = None
    """Tokens kept of a fused distribution; none takes as many as were cached."""
    min_coverage: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Least share of the target's tokens that a source has to teach; below it the run stops before work starts."""
    n_coverage_pieces: PositiveInt = 200
    """Pieces on which coverage is measured before work starts, drawn evenly from all."""

    @model_validator(mode="after")
    def _chunks_fit(self) -> "FusionSettings":
        if self.divergence == "chunk-likelihood" and self.align != "exact":
            raise ValueError("divergence chunk-likelihood compares chunks of bytes; set align to 'exact'")
        return self

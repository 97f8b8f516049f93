"""The parts of `report.json` that fuse runs write."""

from pydantic import ConfigDict, Field

from transfuse.report.parts import ReportPart


class FusionSource(ReportPart):
    """One model whose distributions were taken: a source, or the target itself under the name `target`."""

    name: str
    """Short, as in the rows and everywhere else."""
    reference: str = ""
    """Where the model comes from."""
    n_vocab: int | None = None
    n_tokens: int | None = None
    """Of the training texts, cut by its own tokenizer."""
    seconds: float | None = None
    tokens_per_s: float | None = None
    n_bytes: int | None = None
    """Of its distributions on disk."""
    bytes_per_token: float | None = None
    """On disk, for each of its own tokens."""
    bits_per_byte: dict[str, float | None] = Field(default_factory=dict)
    """Training text to what it costs."""


class PairCoverage(ReportPart):
    """How much of the target's tokens one source can teach; shares are in 0..1."""

    one_to_one_share: float | None = None
    """Of the target's tokens, those that cover the same bytes as one token of the source."""
    taught_share: float | None = None
    """Of the target's tokens, those that the source has a distribution for."""
    byte_share: float | None = None
    """Of the texts' bytes, those in tokens that are taught."""
    digit_share: float | None = None
    """Of the target's tokens with digits, those that are taught."""
    longest_chunk_tokens: int | None = None
    """Of the target's, in the longest stretch that the two tokenizers share no cut in."""
    longest_chunk_text: str | None = None


class MappedToken(ReportPart):
    """A token of the source, and the target's token that stands for it."""

    source: str
    target: str | None = None
    """None where there is none."""
    distance: int | None = None
    """Edit distance in characters."""


class VocabularyOverlap(ReportPart):
    """Where the tokens of a source's vocabulary go."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    n_source: int | None = None
    n_exact: int | None = None
    """Tokens that the target has as well."""
    n_mapped: int | None = None
    """Others for which another token stands."""
    n_unmapped: int | None = None
    overlap: float | None = None
    """Share of the source's tokens that the target has as well, in 0..1."""
    by_distance: dict[str, int] = Field(default_factory=dict)
    """Edit distance to how many tokens were mapped at it."""
    examples: list[MappedToken] = Field(default_factory=list)


class Pair(ReportPart):
    """One source beside the target: alignment and vocabulary."""

    source: str
    coverage: PairCoverage = PairCoverage()
    vocabulary: VocabularyOverlap = VocabularyOverlap()
    map_seconds: float | None = None
    align_seconds: float | None = None


class ChosenShares(ReportPart):
    """Which source taught how much of one text."""

    text: str
    n_tokens: int | None = None
    """Of the target's."""
    shares: dict[str, float] = Field(default_factory=dict)
    """Source to the share of tokens that it taught, in 0..1."""
    untaught: float | None = None
    """Share that no source taught."""

    @property
    def untaught_share(self) -> float:
        """What is left of the whole where the report does not say."""
        return max(0.0, 1.0 - sum(self.shares.values())) if self.untaught is None else self.untaught


class TargetBuilding(ReportPart):
    """How long it took to align and fuse the distributions."""

    seconds: float | None = None
    us_per_token: float | None = None


class Fuse(ReportPart):
    """What was fused, how, and how well the models' tokens fit together."""

    target: str
    sources: list[FusionSource] = Field(default_factory=list)
    rule: str | None = None
    level: str | None = None
    align: str | None = None
    map: str | None = None
    fallback: str | None = None
    divergence: str | None = None
    clm_weight: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    selection: str | None = None
    n_texts: int | None = None
    n_pieces: int | None = None
    n_target_tokens: int | None = None
    pairs: list[Pair] = Field(default_factory=list)
    chosen: list[ChosenShares] = Field(default_factory=list)
    targets: TargetBuilding | None = None

"""The recipe of the fusion route."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from transfuse.baselines.merging_settings import LinearMerge, MergeSettings, SceMerge
from transfuse.fuse.fusion_settings import FusionSettings
from transfuse.fuse.settings import DistributionSettings
from transfuse.io.precision import Precision
from transfuse.train.settings import TrainSettings
from transfuse.types import StrictModel

FuseControl = Literal["clm", "ensemble", "merged", "distilled"]
"""What fusion is compared with: the same training without it; the sources' averaged probabilities; their merged
weights; and the target taught by each source alone."""

PAPER_TRAIN: dict[str, Any] = {
    "method": "full",
    "n_epochs": 1,
    "batch_rows": 128,
    "warmup_share": 0.008,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
}
"""Training settings of the paper, where a recipe names none."""

PAPER_RATE = 1e-5
"""Learning rate of the paper, which trains all weights; LoRA takes its own default."""


class FuseEvaluateSettings(StrictModel):
    """What is measured of target, sources and every trained model."""

    texts: dict[str, Path | None] = {}
    """Texts for bits per byte, by name of the domain: JSONL of `{"text"}`; none means those of the package."""
    n_texts: PositiveInt | None = None
    """Texts of each domain, the first; none means all."""
    sources: bool = True
    """Measure each source as well."""


class FuseRecipe(StrictModel):
    """Let a target model learn the fused distributions of several sources on plain texts."""

    kind: Literal["fuse"] = "fuse"
    target: str
    """Model reference of the model that learns."""
    sources: list[str] = Field(min_length=1)
    """Model references of the models that it learns from, whatever their tokenizers."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Of everything that is drawn; a run without one is refused."""
    texts: dict[str, Path] = Field(min_length=1)
    """Texts to learn, by name of the domain: JSONL of `{"text"}`."""
    n_pieces: PositiveInt | None = None
    """Pieces of text to learn, drawn evenly from all; none means all."""
    max_length_tokens: PositiveInt = 2048
    """Longest piece, in tokens of whichever model cuts it finest; shorter where a model's context is."""
    caches: dict[str, Path] = {}
    """Distributions that are there already, by the source's short name (`target` for the target): folders written by
    `transfuse fuse distributions` over the pieces of this run (RUN/pieces/pieces.jsonl). The model itself is then
    needed for its tokenizer only, unless it is measured."""
    strategy: Literal["together", "pairwise", "clm"] = "together"
    """Fuse all sources at once (FuseLLM), or with each source apart, and merge the results (FuseChat); `clm` learns
    the same pieces without any source."""
    merge: MergeSettings = SceMerge()
    """How the results of strategy `pairwise` are merged."""
    controls: list[FuseControl] = ["clm", "ensemble"]
    """What stands beside it in the report."""
    merged: list[MergeSettings] = [LinearMerge()]
    """Ways of control `merged`."""
    n_seeds: PositiveInt = 1
    """Trainings of everything that trains, with seeds counted up from `seed`."""
    precision: Precision = "auto"
    trust_remote_code: bool = False
    """Whether Python code that comes with a model may run."""
    save_precision: Literal["float32", "bfloat16"] = "float32"
    """Type of a saved model's weights; at small learning rates what bfloat16 rounds off is much of what was learned."""
    distributions: DistributionSettings = DistributionSettings()
    fusion: FusionSettings = FusionSettings()
    train: TrainSettings = TrainSettings.model_validate(PAPER_TRAIN | {"learning_rate": PAPER_RATE})
    evaluate: FuseEvaluateSettings = FuseEvaluateSettings()

    @model_validator(mode="before")
    @classmethod
    def _trains_as_the_paper_does(cls, tree: Any) -> Any:
        """Fill in the paper's training settings beside those given."""
        train = tree.get("train", {}) if isinstance(tree, dict) else None
        if not isinstance(train, dict):
            return tree
        filled = {**PAPER_TRAIN, **train}
        if filled["method"] == "full" and filled.get("learning_rate") is None:
            filled["learning_rate"] = PAPER_RATE
        alone = {"controls": []} if tree.get("strategy") == "clm" else {}
        return {**alone, **tree, "train": filled}

    @model_validator(mode="after")
    def _has_what_it_takes(self) -> "FuseRecipe":
        if self.strategy == "pairwise" and len(self.sources) < 2:
            raise ValueError("strategy pairwise merges one result a source; give two sources or more")
        if self.strategy == "pairwise" and self.train.method != "full":
            raise ValueError("strategy pairwise merges whole models; leave train.method at 'full'")
        if self.strategy == "clm" and self.controls:
            raise ValueError("strategy clm is itself what fusion is compared with; leave controls empty")
        methods = [each.method for each in self.merged]
        if len({*methods}) < len(methods):
            raise ValueError(f"merged: each method once, got {', '.join(methods)}; run the others apart")
        strangers = sorted(set(self.caches) - {*self.names, "target"})
        if strangers:
            raise ValueError(
                f"caches: {strangers[0]!r} is no source; expected target, {', '.join(self.names)}"
            )
        if self.fusion.divergence != "chunk-likelihood" and self.distributions.k == 0:
            raise ValueError(
                f"distributions.k is 0, but divergence {self.fusion.divergence} learns kept tokens; keep some"
            )
        return self

    @property
    def names(self) -> list[str]:
        """A short name of each source, no two alike, in order."""
        return short_names(self.sources)


def short_name(reference: str) -> str:
    """The last part of a model reference; empty where that is no name."""
    last = Path(reference).name.removesuffix(".gguf")
    return last if last.strip(".") else ""


def short_names(references: list[str]) -> list[str]:
    """Last parts of model references, numbered where several are alike."""
    names: list[str] = []
    for reference in references:
        name = plain = short_name(reference) or "source"
        number = len(names) + 1
        while name in (*names, "target"):
            name, number = f"{plain}-{number}", number + 1
        names.append(name)
    return names

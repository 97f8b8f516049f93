"""How weights of several models are merged: one class for each method, told apart by `method`."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from transfuse.types import StrictModel

Density = Annotated[float, Field(gt=0, le=1)]


class _AnyMerge(StrictModel):
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the merged weights; the arithmetic is in float32."""


class _WeightedMerge(_AnyMerge):
    weights: list[NonNegativeFloat] | None = None
    """What each model counts, in their order; divided by their sum. None counts all alike."""


class LinearMerge(_WeightedMerge):
    """Weighted mean."""

    method: Literal["linear"] = "linear"


class SlerpMerge(_WeightedMerge):
    """Two models, along the arc between them; the second weight's share is how far to go."""

    method: Literal["slerp"] = "slerp"


class TiesMerge(_WeightedMerge):
    """Updates to a base: the largest of each, those with the elected sign."""

    method: Literal["ties"] = "ties"
    density: Density = 0.2
    """Share of each tensor's update that is kept, the largest entries (the paper keeps a fifth)."""
    scale: PositiveFloat = 1.0
    """Multiplies the merged update."""


class _DareMerge(_WeightedMerge):
    density: Density = 0.5
    """Chance of an entry of an update to be kept; it is then divided by it."""
    scale: PositiveFloat = 1.0
    """Multiplies the merged update; with `dare_linear` the number of models adds the updates up."""
    seed: NonNegativeInt = 17
    """Of the draw."""


class DareLinearMerge(_DareMerge):
    """Updates to a base, thinned at random: their mean."""

    method: Literal["dare_linear"] = "dare_linear"


class DareTiesMerge(_DareMerge):
    """Updates to a base, thinned at random: those with the elected sign."""

    method: Literal["dare_ties"] = "dare_ties"


class SceMerge(_AnyMerge):
    """Updates to a base: where the models differ most, weighted by their squares, without the minority's signs."""

    method: Literal["sce"] = "sce"
    top_share: Density = 0.1
    """Share of each tensor's entries that are selected, those of greatest variance among the models."""


class ModelStockMerge(_AnyMerge):
    """Between base and mean, the nearer to the mean the more the updates point the same way."""

    method: Literal["model_stock"] = "model_stock"


AnyMerge = LinearMerge | SlerpMerge | TiesMerge | DareLinearMerge | DareTiesMerge | SceMerge | ModelStockMerge
MergeSettings = Annotated[AnyMerge, Field(discriminator="method")]
"""As a field of a recipe."""

MERGE_METHODS: dict[str, type[AnyMerge]] = {
    "linear": LinearMerge,
    "slerp": SlerpMerge,
    "ties": TiesMerge,
    "dare_linear": DareLinearMerge,
    "dare_ties": DareTiesMerge,
    "sce": SceMerge,
    "model_stock": ModelStockMerge,
}
WITHOUT_BASE = frozenset({"linear", "slerp"})
"""Methods that do not ask what the models started from."""

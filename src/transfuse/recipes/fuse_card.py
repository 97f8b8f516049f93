"""What the cards of models and adapters that a fusion run keeps say."""

from pathlib import Path

from transfuse.io.model_cards import CardContent, write_card
from transfuse.recipes.card_methods import CLM, FUSED, FUSED_PAIRWISE, FUSED_WITH_ONE, MERGED, CardMethod
from transfuse.recipes.card_parts import (
    INTERVALS,
    ONLY_THE_DATA,
    UNFINISHED,
    Figures,
    base_of,
    card_differences,
    card_rows,
    command_of,
    data_files,
    hub_ids,
    licence_of,
    named,
    plain_name,
    prefixed,
    training_settings,
)
from transfuse.recipes.fuse_schema import FuseRecipe
from transfuse.recipes.loading_code import loading_code


def write_fuse_card(
    recipe: FuseRecipe, folder: Path, arm: str, seed: int, report: Figures | None = None
) -> None:
    """The card of a model or adapter that a fusion run keeps.

    Args:
        recipe: as run.
        folder: the result, or a part of pairwise fusion.
        arm: its row in the report.
        seed: of its training.
        report: `report.json`; None before there is one.
    """
    kind = "adapter" if recipe.train.method == "lora" else "model"
    merges = arm.startswith("pairwise/")
    way, taught_by = _way(recipe, arm)
    licence, note = licence_of([recipe.target, *taught_by])
    merging = MERGED[recipe.merge.method] if merges else None
    told = [way.told, *([merging.told] if merging else [])]
    if taught_by:
        told.append(f"Sources: {', '.join(map(named, taught_by))}.")
    write_card(
        folder,
        CardContent(
            title=_title(recipe, taught_by),
            kind=kind,
            base=base_of(recipe.target, kind),
            method=" ".join(told),
            route="fuse",
            load=loading_code(recipe.target, kind, is_portable=True),
            base_models=hub_ids([recipe.target]),
            relation="adapter" if kind == "adapter" else "finetune",
            arxiv=tuple(dict.fromkeys([*way.arxiv, *(merging.arxiv if merging else ())])),
            data=data_files(
                [
                    *((f"learned, {name}", path) for name, path in recipe.texts.items()),
                    *((f"bits per byte/{name}", path) for name, path in recipe.evaluate.texts.items()),
                ]
            ),
            settings={
                "seed": seed,
                **recipe.model_dump(
                    mode="json",
                    include={"strategy", "n_pieces", "max_length_tokens", "precision", "save_precision"},
                ),
                **prefixed("fusion", recipe.fusion.model_dump(mode="json")),
                **prefixed("distributions", recipe.distributions.model_dump(mode="json")),
                **(prefixed("merge", recipe.merge.model_dump(mode="json")) if merges else {}),
                **training_settings(recipe.train),
            },
            row=arm,
            rows=card_rows(report),
            differences=card_differences(report, arm),
            unmeasured=UNFINISHED if report is None else "Nothing was measured: no eval texts were given.",
            limits=[
                "Bits per byte say how well texts of these domains are predicted, not how well instructions are "
                "followed.",
                "Compare with `target` (before) and `clm` (the same texts learned without the sources): only what goes "
                "beyond `clm` comes from the sources.",
                ONLY_THE_DATA,
                INTERVALS,
            ],
            command=command_of(report),
            licence=licence,
            licence_note=note,
        ),
    )


def _way(recipe: FuseRecipe, arm: str) -> tuple[CardMethod, list[str]]:
    """How an arm is made, and the models that it learns from."""
    if arm == "clm":
        return CLM, []
    sources = dict(zip(recipe.names, recipe.sources, strict=True))
    if arm.startswith("fused-with/"):
        return FUSED_WITH_ONE, [sources[arm.removeprefix("fused-with/")]]
    return FUSED_PAIRWISE if arm.startswith("pairwise/") else FUSED, list(sources.values())


def _title(recipe: FuseRecipe, taught_by: list[str]) -> str:
    target = plain_name(recipe.target)
    if not taught_by:
        return f"{target} trained on {', '.join(recipe.texts)}"
    return f"{target} fused with {', '.join(map(plain_name, taught_by))}"

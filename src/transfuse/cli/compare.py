"""The command `transfuse compare`: every row of a recipe on the same items."""

from pathlib import Path
from typing import Annotated

import typer

from transfuse.cli.options import Overwrite, Sets
from transfuse.cli.runs import run_recipe


def compare(
    recipe: Annotated[Path, typer.Argument(help="A recipe file (YAML) of kind compare.")],
    out: Annotated[
        Path, typer.Option("--out", help="Run folder; the same command there continues a killed run.")
    ],
    settings: Sets = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Refuse to begin where a row cannot run here, instead of leaving it out."
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Put every way to get knowledge into a model side by side: one table, one page."""
    from transfuse.errors import RecipeError
    from transfuse.recipes.compare_schema import CompareRecipe
    from transfuse.recipes.schema import load_recipe

    loaded = load_recipe(recipe, settings or [])
    if not isinstance(loaded, CompareRecipe):
        raise RecipeError(
            f"{recipe}: expected a recipe of kind compare, got {loaded.kind}; start it with: transfuse run {recipe}"
        )
    run_recipe(loaded, out, overwrite=overwrite, is_strict=strict)

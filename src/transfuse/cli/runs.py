"""A recipe run from the command line, and its result shown."""

import shlex
import sys
from pathlib import Path
from typing import Any

import typer

from transfuse.cli.terminal import console


def run_recipe(
    recipe: Any, out: Path, *, overwrite: bool, stop_after: str | None = None, is_strict: bool = False
) -> None:
    """Run a recipe of any kind, and print its table.

    Args:
        recipe: checked.
        out: the run folder.
        overwrite: whether a folder of a different recipe may be taken over.
        stop_after: of the document route `facts`, `questions` or `training`, of the fusion route `pieces` or `targets`.
        is_strict: of a comparison: whether every row has to be able to run.

    Raises:
        RecipeError: `stop_after` is something else, or given for another route.
    """
    from transfuse.errors import RecipeError
    from transfuse.recipes.team import Team

    if recipe.kind == "fuse":
        from transfuse.recipes.fuse import check_stop

        check_stop(stop_after)
    elif stop_after not in (None, "facts", "questions", "training"):
        raise RecipeError(f"--stop-after: expected 'facts', 'questions' or 'training', got {stop_after!r}.")
    elif stop_after is not None and recipe.kind != "inject":
        raise RecipeError(
            f"--stop-after {stop_after} is for recipes of kind inject, not {recipe.kind}; leave it out."
        )
    command = shlex.join(["transfuse", *sys.argv[1:]])
    # Each route is imported where it is run: none needs what the others load.
    if recipe.kind == "inject":
        from transfuse.recipes.inject import run_inject

        run_inject(recipe, out, overwrite=overwrite, command=command, stop_after=stop_after)  # type: ignore[arg-type]
    elif recipe.kind == "compare":
        from transfuse.recipes.compare import run_compare

        run_compare(recipe, out, overwrite=overwrite, command=command, is_strict=is_strict)
    elif recipe.kind == "eval":
        from transfuse.recipes.evaluation import run_eval

        run_eval(recipe, out, overwrite=overwrite, command=command)
    elif recipe.kind == "fuse":
        from transfuse.recipes.fuse import run_fuse

        run_fuse(recipe, out, overwrite=overwrite, command=command, stop_after=stop_after)
    else:
        from transfuse.recipes.transfer import run_transfer

        run_transfer(recipe, out, overwrite=overwrite, command=command)
    team = Team()
    if team.is_main and stop_after is None:
        show_run(out)
    team.leave()


def show_run(run_folder: Path) -> None:
    """Rebuild a finished run's page, and print its tables."""
    from transfuse.report import read_report, report_tables, write_page

    page = write_page(run_folder)
    for table in report_tables(read_report(run_folder)):
        console().print(table)
    typer.echo(f"Page: {page}")

"""The command `transfuse merge`: an adapter folded in, or several models made one."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from transfuse.cli.options import Trust


def merge(
    models: Annotated[
        list[str],
        typer.Option("--model", help="Hub id, folder, .gguf file, or a bundled name; repeatable."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Model folder to write.")],
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="PEFT adapter folder to fold into a single model.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Of several models: linear (if left out), slerp, ties, dare_linear, dare_ties, sce or model_stock."
        ),
    ] = None,
    weights: Annotated[
        list[float] | None,
        typer.Option("--weight", help="What each model counts, in their order; left out: all alike."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="What the models started from; linear and slerp need none.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method, e.g. density=0.5."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model folder that is there.")
    ] = False,
    trust_remote_code: Trust = False,
) -> None:
    """Fold an adapter into its model, or merge several models, and write an ordinary model folder."""
    from transfuse.errors import RecipeError
    from transfuse.recipes.merge import merge_adapter, merge_several

    command = shlex.join(["transfuse", *sys.argv[1:]])
    if adapter is not None:
        if len(models) != 1:
            raise RecipeError(
                f"transfuse merge: expected one --model to fold --adapter into, got {len(models)}; fold each adapter "
                "into its model first, then merge the folders."
            )
        given = {"--method": method, "--weight": weights, "--base": base, "--set": settings}
        extra = next((name for name, value in given.items() if value), None)
        if extra is not None:
            raise RecipeError(f"{extra}: belongs to merging several models; leave it out beside --adapter.")
        merge_adapter(
            models[0],
            adapter,
            out,
            command=command,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
        )
    else:
        if len(models) == 1:
            raise RecipeError(
                "transfuse merge: expected --adapter to fold into the model, or a second --model to merge it with."
            )
        if trust_remote_code:
            raise RecipeError(
                "--trust-remote-code: merging several models runs no code of theirs; leave it out."
            )
        merge_several(
            models,
            method or "linear",
            out,
            command=command,
            base=base,
            weights=weights or [],
            overrides=settings or [],
            overwrite=overwrite,
        )
    typer.echo(f"Model written to {out}")

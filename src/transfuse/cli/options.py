"""Options that several commands take."""

from typing import Annotated

import typer

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, e.g. train.n_epochs=6."),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Take over a folder of a different run; unaffected stages are kept."),
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let code that comes with the model run.")]

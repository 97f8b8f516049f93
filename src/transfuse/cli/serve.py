"""The command `transfuse index serve`."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer


def serve(
    path: Annotated[Path, typer.Argument(help="An index, or a folder whose folders are indexes.")],
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8765,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="Keys that requests must carry as x-api-key: one a line, at least 16 characters; read at the start."
        ),
    ] = None,
    no_key: Annotated[
        bool, typer.Option("--no-key", help="Let everybody search who can reach the address.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that answer; all map the same files.")] = 1,
    reranker: Annotated[
        str | None,
        typer.Option(help="Cross-encoder (folder or Hub id) that text searches are scored again by."),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Let Python code that comes with an embedding model run."),
    ] = False,
) -> None:
    """Serve indexes over HTTP, with a page to search by hand; newer versions are taken up while it runs.

    Ctrl-C ends it, with exit code 0. /openapi.json describes the requests.
    """
    with contextlib.suppress(KeyboardInterrupt):
        from transfuse.recipes.serve import serve
        from transfuse.recipes.serve_settings import ServeSettings

        settings = ServeSettings(
            path=str(path.absolute()),
            host=host,
            port=port,
            api_key_file=None if api_key_file is None else str(api_key_file.absolute()),
            no_key=no_key,
            n_workers=workers,
            reranker=reranker,
            trust_remote_code=trust_remote_code,
        )
        serve(settings, say=_say, warn=lambda text: typer.echo(text, err=True))


def _say(text: str) -> None:
    typer.echo(text)

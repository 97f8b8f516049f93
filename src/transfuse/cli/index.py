"""The commands `transfuse index ...`: build, change and search knowledge indexes."""

import json
from pathlib import Path
from typing import Annotated

import typer

from transfuse.cli.serve import serve
from transfuse.cli.terminal import console

index_app = typer.Typer(
    help="Build, change, search and serve knowledge indexes.", no_args_is_help=True, rich_markup_mode=None
)
index_app.command()(serve)

Index = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of an index.")]
Documents = Annotated[
    Path, typer.Argument(metavar="DOCS", help="A .md, .txt, .html, .pdf or .docx file, or a folder of them.")
]
Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Let Python code that comes with the embedding model run."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@index_app.command()
def build(
    documents: Documents,
    out: Annotated[Path, typer.Option("--out", help="Folder of the index to make.")],
    embedder: Annotated[
        str | None,
        typer.Option(
            help="A sentence-transformers folder, a Hub id, or minilm-l6-v2 (English; the default)."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting, e.g. passages.max_tokens=200."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an index that is there, once the new one is whole.")
    ] = False,
    trust_remote_code: Trust = False,
) -> None:
    """Make an index of documents."""
    from transfuse.recipes.index import build_from_files

    done = build_from_files(
        documents, out, embedder, settings or [], overwrite=overwrite, trust_remote_code=trust_remote_code
    )
    typer.echo(done)


@index_app.command()
def add(index: Index, documents: Documents, trust_remote_code: Trust = False) -> None:
    """Add documents; one whose name is there is replaced if its text differs. Only new passages are embedded."""
    from transfuse.recipes.index import add_from_files

    typer.echo(add_from_files(index, documents, trust_remote_code=trust_remote_code))


@index_app.command()
def remove(
    index: Index,
    patterns: Annotated[
        list[str], typer.Argument(metavar="PATTERN...", help="Names of documents; * stands for any text.")
    ],
) -> None:
    """Remove documents."""
    from transfuse.recipes.index import remove_by_name

    typer.echo(remove_by_name(index, patterns))


@index_app.command()
def info(
    index: Index,
    verify: Annotated[bool, typer.Option("--verify", help="Compare the checksums of all files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what an index holds, and what it was made with."""
    from transfuse.recipes.index_search import info_table, info_tree

    if as_json:
        typer.echo(json.dumps(info_tree(index, verify=verify), ensure_ascii=False, indent=1))
    else:
        console().print(info_table(index, verify=verify))


@index_app.command()
def search(
    index: Index,
    question: Annotated[str, typer.Argument(help="What is looked for.")],
    top_n: Annotated[int, typer.Option(help="How many passages.")] = 10,
    rerank: Annotated[
        bool,
        typer.Option(
            "--rerank",
            help="Score the candidates again: exactly, or by the cross-encoder that --reranker names.",
        ),
    ] = False,
    reranker: Annotated[
        str | None, typer.Option(help="A cross-encoder: a folder or a Hub id. Implies --rerank.")
    ] = None,
    mode: Annotated[
        str, typer.Option(help="hybrid, dense (by meaning) or lexical (by words, BM25).")
    ] = "hybrid",
    level: Annotated[
        int | None,
        typer.Option(help="Effort of the search in a large index: 0 (fastest) to 4 (finds most)."),
    ] = None,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Find the passages that fit a question best."""
    from transfuse.recipes.index_search import hit_trees, hits_text, search_index

    hits = search_index(
        index,
        question,
        top_n=top_n,
        mode=mode,
        level=level,
        is_reranked=rerank,
        reranker=reranker,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        typer.echo(json.dumps(hit_trees(hits), ensure_ascii=False, indent=1))
    else:
        typer.echo(hits_text(hits))

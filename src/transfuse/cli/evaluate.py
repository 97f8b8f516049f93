"""The command `transfuse eval`: benchmarks, questions, samples, texts and a judge, of one model or of two."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfuse.cli.fuse import named_files
from transfuse.cli.options import Overwrite, Sets, Trust
from transfuse.cli.runs import run_recipe
from transfuse.cli.terminal import console

if TYPE_CHECKING:
    from transfuse.recipes.eval_schema import EvalRecipe

GENERIC = "generic"
"""`--text generic`: the text that comes with the package."""

Model = Annotated[str | None, typer.Option("--model", help="Hub id, folder, .gguf file, or a bundled name.")]
Adapter = Annotated[Path | None, typer.Option("--adapter", help="PEFT adapter folder to put onto the model.")]
Ensemble = Annotated[
    list[str] | None, typer.Option(help="A further model, whose probabilities are averaged; repeatable.")
]
Retrieval = Annotated[
    Path | None,
    typer.Option("--retrieval", metavar="DOCS", help="Documents that are searched before each question."),
]
SectionContext = Annotated[
    Path | None,
    typer.Option(
        "--section-context", metavar="DOCS", help="Documents whose right section stands before each question."
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--tasks", help="Benchmarks, with commas between them; see --list. Repeatable."),
]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="TASK=PATH", help="Local items of a benchmark; repeatable."),
]
Shots = Annotated[
    list[str] | None,
    typer.Option("--shots", metavar="[TASK=]N", help="Worked examples before each item; repeatable."),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Items of every set, the first so many.")]
Chat = Annotated[bool, typer.Option("--chat", help="Put benchmarks through the model's chat template.")]
Qa = Annotated[
    list[str] | None,
    typer.Option("--qa", metavar="[NAME=]FILE", help="JSONL of questions and answers; repeatable."),
]
Facts = Annotated[
    Path | None, typer.Option("--facts", help="JSONL of facts, for --section-context to find the section.")
]
Unanswerable = Annotated[
    Path | None, typer.Option("--unanswerable", help="JSONL of questions that nothing answers.")
]
Samples = Annotated[
    list[str] | None,
    typer.Option("--samples", metavar="[NAME=]FILE", help="JSONL of chat samples; repeatable."),
]
Texts = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        metavar="[NAME=]FILE",
        help='JSONL of {"text"}, or `generic`, for bits per byte; repeatable.',
    ),
]
Against = Annotated[
    str | None, typer.Option("--against", help="A second model on the same items: the report compares pairs.")
]
AgainstAdapter = Annotated[
    Path | None,
    typer.Option("--against-adapter", help="Its adapter; without --against, on the same model."),
]
Judge = Annotated[
    str | None,
    typer.Option("--judge", help="Who judges replies to --instructions: openai:MODEL@URL, or a model."),
]
Instructions = Annotated[
    Path | None, typer.Option("--instructions", help='JSONL of {"instruction"} for --judge.')
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Run folder; the same command there continues a killed run.")
]
ListThem = Annotated[
    bool, typer.Option("--list", help="List the benchmarks that we know, and where their data is to be had.")
]
PlanOnly = Annotated[bool, typer.Option("--plan", help="Say what would be asked, and stop.")]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Neither use nor keep replies and results of other runs.")
]


def evaluate(
    model: Model = None,
    adapter: Adapter = None,
    ensemble: Ensemble = None,
    retrieval: Retrieval = None,
    section_context: SectionContext = None,
    tasks: Tasks = None,
    data: Data = None,
    shots: Shots = None,
    limit: Limit = None,
    chat: Chat = False,
    qa: Qa = None,
    facts: Facts = None,
    unanswerable: Unanswerable = None,
    samples: Samples = None,
    text: Texts = None,
    against: Against = None,
    against_adapter: AgainstAdapter = None,
    judge: Judge = None,
    instructions: Instructions = None,
    out: Out = None,
    list_them: ListThem = False,
    plan: PlanOnly = False,
    no_cache: NoCache = False,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 17,
    settings: Sets = None,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
) -> None:
    """Measure a model, or two on the same items: benchmarks, questions, samples, texts, a judge."""
    from transfuse.errors import RecipeError

    if list_them:
        from transfuse.recipes.eval_plan import benchmarks_table

        console().print(benchmarks_table())
        return
    if model is None:
        raise RecipeError("transfuse eval: expected --model MODEL (or --list).")
    if out is None and not plan:
        raise RecipeError("transfuse eval: expected --out FOLDER (or --plan).")
    tree = eval_tree(
        model=model,
        adapter=adapter,
        ensemble=ensemble,
        retrieval=retrieval,
        section_context=section_context,
        tasks=tasks,
        data=data,
        shots=shots,
        limit=limit,
        chat=chat,
        qa=qa,
        facts=facts,
        unanswerable=unanswerable,
        samples=samples,
        text=text,
        against=against,
        against_adapter=against_adapter,
        judge=judge,
        instructions=instructions,
    )
    tree |= {"seed": seed} | ({"cache": False} if no_cache else {})
    recipe = eval_recipe(tree | ({"trust_remote_code": True} if trust_remote_code else {}), settings)
    if plan:
        from transfuse.recipes.eval_plan import plan_eval

        console().print(plan_eval(recipe))
        return
    assert out is not None  # noqa: S101 - refused above
    run_recipe(recipe, out, overwrite=overwrite)


def eval_recipe(tree: dict[str, Any], settings: list[str] | None) -> "EvalRecipe":
    """The checked recipe of a tree of kind `eval`."""
    from transfuse.recipes.eval_schema import EvalRecipe
    from transfuse.recipes.schema import make_recipe

    recipe = make_recipe(tree, settings or [], where="transfuse eval")
    assert isinstance(recipe, EvalRecipe)  # noqa: S101 - for the type checker
    return recipe


def eval_tree(**given: Any) -> dict[str, Any]:
    """The keys of an eval recipe from the command line's arguments; what was not given is left out.

    Args:
        **given: values of the options, by name.

    Returns:
        Keys and values.

    Raises:
        RecipeError: options that do not belong together, or a value of another form.
    """
    tree: dict[str, Any] = {"kind": "eval", "model": given["model"], **_system(given)}
    limited = {"n_items": given["limit"]} if given["limit"] is not None else {}
    tree["benchmarks"] = _benchmarks(given, limited)
    facts = {"facts": str(given["facts"])} if given["facts"] is not None else {}
    tree["questions"] = {
        name: {"qa": file, **facts, **limited} for name, file in named_files(given["qa"], "--qa").items()
    }
    if given["unanswerable"] is not None:
        tree["unanswerable"] = {"file": str(given["unanswerable"]), **limited}
    tree["samples"] = {
        name: {"file": file, **limited} for name, file in named_files(given["samples"], "--samples").items()
    }
    tree["texts"] = {
        name: None if file == GENERIC and not Path(GENERIC).exists() else file
        for name, file in named_files(given["text"], "--text").items()
    }
    if given["limit"] is not None:
        tree["n_texts"] = given["limit"]
    tree |= _judge(given, limited) | _against(given)
    return {name: value for name, value in tree.items() if value not in (None, {}, [])}


def _system(given: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"ensemble": given["ensemble"] or []}
    if given["adapter"] is not None:
        told["adapter"] = str(given["adapter"])
    for name in ("retrieval", "section_context"):
        if given[name] is not None:
            told[name] = {"documents": str(given[name])}
    return told


def _against(given: dict[str, Any]) -> dict[str, Any]:
    if given["against"] is None and given["against_adapter"] is None:
        return {}
    second: dict[str, Any] = {"model": given["against"] or given["model"]}
    if given["against_adapter"] is not None:
        second["adapter"] = str(given["against_adapter"])
    return {"against": second}


def _judge(given: dict[str, Any], limited: dict[str, int]) -> dict[str, Any]:
    from transfuse.errors import RecipeError

    judge, instructions = given["judge"], given["instructions"]
    if (judge is None) != (instructions is None):
        raise RecipeError("transfuse eval: expected --judge and --instructions together.")
    if judge is None:
        return {}
    return {"judge": {"reference": judge, "instructions": str(instructions), **limited}}


def _benchmarks(given: dict[str, Any], limited: dict[str, int]) -> dict[str, Any]:
    """Settings by benchmark, from --tasks, --data, --shots, --limit and --chat."""
    from transfuse.errors import RecipeError

    names = [name.strip() for part in given["tasks"] or [] for name in part.split(",") if name.strip()]
    found: dict[str, Any] = {name: {**limited, **({"chat": True} if given["chat"] else {})} for name in names}
    for text in given["data"] or []:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise RecipeError(f"--data {text!r}: expected TASK=PATH, such as gsm8k=data/gsm8k.")
        _known(name, found, "--data")["data"] = path
    for text in given["shots"] or []:
        name, equals, number = text.rpartition("=")
        if not number.isdigit():
            raise RecipeError(f"--shots {text!r}: expected [TASK=]N, such as gsm8k=8.")
        for settings in [_known(name, found, "--shots")] if equals else found.values():
            settings["n_shot"] = int(number)
    return found


def _known(name: str, benchmarks: dict[str, Any], option: str) -> dict[str, Any]:
    from transfuse.errors import RecipeError

    if name not in benchmarks:
        named = ", ".join(benchmarks) or "none"
        raise RecipeError(
            f"{option} {name}=...: {name!r} is not among --tasks ({named}); name it there as well."
        )
    return benchmarks[name]

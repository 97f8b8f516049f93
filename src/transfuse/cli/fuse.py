"""The commands `transfuse fuse`: the whole route, and its parts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfuse.cli.options import Overwrite, Sets, Trust
from transfuse.cli.runs import run_recipe
from transfuse.cli.terminal import console
from transfuse.cli.transfer import GivenContext

if TYPE_CHECKING:
    from transfuse.recipes.fuse_schema import FuseRecipe

fuse_app = typer.Typer(
    help="Fuse the distributions of several models, whatever their tokenizers, into one target.",
    rich_markup_mode=None,
    invoke_without_command=True,
)

Target = Annotated[
    str | None, typer.Option(help="The model that learns: Hub id, folder, .gguf file, bundled name.")
]
Sources = Annotated[
    list[str] | None, typer.Option("--source", help="A model that it learns from; repeatable.")
]
Texts = Annotated[
    list[str] | None,
    typer.Option(
        "--text", metavar="[NAME=]FILE", help='JSONL of {"text"} to learn; repeatable, one a domain.'
    ),
]
EvalTexts = Annotated[
    list[str] | None,
    typer.Option("--eval", metavar="[NAME=]FILE", help='JSONL of {"text"} to measure on; repeatable.'),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Run folder; the same command there continues a killed run.")
]
Rule = Annotated[str | None, typer.Option(help="fair-min-ce, fair-avg-ce, min-ce or avg-ce (the paper's).")]
Level = Annotated[str | None, typer.Option(help="Compare sources by sequence or by chunk.")]
Align = Annotated[str | None, typer.Option(help="exact (by bytes) or min-edit (the paper's).")]
MapName = Annotated[str | None, typer.Option("--map", help="exact, min-edit or retokenize.")]
Loss = Annotated[
    str | None,
    typer.Option(
        help="cross-entropy, cross-entropy-renormalised, forward-kl, reverse-kl, jsd, uld or chunk-likelihood."
    ),
]
ClmWeight = Annotated[
    float | None, typer.Option(help="Lambda: share of the loss on the text's own tokens (0.9).")
]
Method = Annotated[str | None, typer.Option(help="full (all weights) or lora.")]
Strategy = Annotated[
    str | None, typer.Option(help="together, or pairwise: one source at a time, then merge.")
]
MergeMethod = Annotated[str | None, typer.Option(help="Of strategy pairwise: sce, linear, slerp, ties, ...")]
ControlNames = Annotated[
    list[str] | None,
    typer.Option(
        "--control", help="clm, ensemble, merged or distilled; repeatable (clm and ensemble if left out)."
    ),
]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="Trainings of everything that trains.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
StopAfterName = Annotated[
    str | None,
    typer.Option("--stop-after", help="pieces (the cut texts), or targets (what will be learned)."),
]


def fuse_tree(**given: Any) -> dict[str, Any]:
    """The keys of a fuse recipe from the command line's arguments; what was not given is left out."""
    tree: dict[str, Any] = {"kind": "fuse"}
    groups = {
        "rule": ("fusion", "rule"),
        "level": ("fusion", "level"),
        "align": ("fusion", "align"),
        "map": ("fusion", "map"),
        "loss": ("fusion", "divergence"),
        "clm_weight": ("fusion", "clm_weight"),
        "method": ("train", "method"),
        "merge_method": ("merge", "method"),
        "eval_texts": ("evaluate", "texts"),
        "seeds": (None, "n_seeds"),
    }
    for name, value in given.items():
        if value is None or value is False or value == []:
            continue
        group, key = groups.get(name, (None, name))
        if group is None:
            tree[key] = value
        else:
            tree.setdefault(group, {})[key] = value
    return tree


def fuse_recipe(tree: dict[str, Any], settings: list[str] | None, *, where: str) -> "FuseRecipe":
    """The checked recipe of a tree of kind `fuse`."""
    from transfuse.recipes.fuse_schema import FuseRecipe
    from transfuse.recipes.schema import make_recipe

    recipe = make_recipe(tree, settings or [], where=where)
    assert isinstance(recipe, FuseRecipe)  # noqa: S101 - for the type checker
    return recipe


def named_files(given: list[str] | None, option: str) -> dict[str, str]:
    """Files by the name of their domain.

    Args:
        given: `NAME=FILE`, or a file, which is named by its own name up to the first dot.
        option: that took them, for errors.

    Returns:
        Paths as given.

    Raises:
        RecipeError: two files of one name.
    """
    from transfuse.errors import RecipeError

    found: dict[str, str] = {}
    for text in given or []:
        name, equals, file = text.partition("=")
        if not equals or not name or "/" in name:
            name, file = Path(text).name.split(".")[0] or text, text
        if name in found:
            raise RecipeError(f"{option}: two files are named {name!r}; name them: {option} NAME=FILE.")
        found[name] = file
    return found


@fuse_app.callback()
def fuse(
    context: GivenContext,  # pyright: ignore[reportInvalidTypeForm] - a class, made there
    target: Target = None,
    source: Sources = None,
    text: Texts = None,
    evaluation: EvalTexts = None,
    out: Out = None,
    rule: Rule = None,
    level: Level = None,
    align: Align = None,
    map_name: MapName = None,
    loss: Loss = None,
    clm_weight: ClmWeight = None,
    method: Method = None,
    strategy: Strategy = None,
    merge_method: MergeMethod = None,
    control: ControlNames = None,
    seeds: Seeds = None,
    seed: Seed = 17,
    stop_after: StopAfterName = None,
    settings: Sets = None,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
) -> None:
    """Pass, align, fuse, train and compare in one run."""
    if context.invoked_subcommand is not None:
        return
    from transfuse.errors import RecipeError

    _refuse_missing("transfuse fuse", target=target, source=source, text=text, out=out)
    assert out is not None  # noqa: S101 - refused above
    tree = fuse_tree(
        target=target,
        sources=source,
        texts=named_files(text, "--text"),
        eval_texts=named_files(evaluation, "--eval"),
        rule=rule,
        level=level,
        align=align,
        map=map_name,
        loss=loss,
        clm_weight=clm_weight,
        method=method,
        strategy=strategy,
        merge_method=merge_method,
        controls=control,
        seeds=seeds,
        trust_remote_code=trust_remote_code,
    )
    if merge_method is not None and strategy != "pairwise":
        raise RecipeError("--merge-method is for --strategy pairwise; leave it out, or give both.")
    recipe = fuse_recipe({**tree, "seed": seed}, settings, where="transfuse fuse")
    run_recipe(recipe, out, overwrite=overwrite, stop_after=stop_after)


@fuse_app.command()
def check(
    target: Target = None,
    source: Sources = None,
    text: Texts = None,
    align: Align = None,
    map_name: MapName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    seed: Seed = 17,
    settings: Sets = None,
    trust_remote_code: Trust = False,
) -> None:
    """Vocabulary map and alignment alone: coverage, overlap and seconds of each pair; loads no weights."""
    from transfuse.recipes.fuse_check import pairs_of

    _refuse_missing("transfuse fuse check", target=target, source=source, text=text)
    tree = fuse_tree(
        target=target,
        sources=source,
        texts=named_files(text, "--text"),
        align=align,
        map=map_name,
        trust_remote_code=trust_remote_code,
    )
    recipe = fuse_recipe({**tree, "seed": seed}, settings, where="transfuse fuse check")
    pairs = pairs_of(recipe)
    if as_json:
        import json

        typer.echo(json.dumps({"target": target, "pairs": pairs}, ensure_ascii=False, indent=1))
        return
    from transfuse.report import Pair, coverage_table

    console().print(coverage_table([Pair.model_validate(each) for each in pairs]))


@fuse_app.command()
def distributions(
    source: Annotated[str | None, typer.Option(help="The model that passes over the texts.")] = None,
    text: Annotated[list[Path] | None, typer.Option(help='JSONL of {"text"}; repeatable.')] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the cache.")] = None,
    max_length: Annotated[
        int, typer.Option(min=8, help="Longest piece in tokens; longer texts are cut, at good places.")
    ] = 2048,
    also: Annotated[
        list[str] | None,
        typer.Option("--with", help="A model whose tokenizer has to read the same pieces; repeatable."),
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Replace another cache that is there, and damaged shards.")
    ] = False,
    seed: Seed = 17,
    settings: Sets = None,
    trust_remote_code: Trust = False,
) -> None:
    """Pass one model over texts and keep its distributions, sparse, in a folder; continued where it stopped."""
    from transfuse.fuse.settings import DistributionSettings
    from transfuse.recipes.fuse_distributions import run_distributions
    from transfuse.recipes.schema import make_settings

    _refuse_missing("transfuse fuse distributions", source=source, text=text, out=out)
    assert source is not None and text is not None and out is not None  # noqa: S101, PT018 - refused above
    chosen = make_settings(DistributionSettings, {}, settings or [], where="transfuse fuse distributions")
    typer.echo(
        run_distributions(
            source,
            text,
            out,
            chosen,
            max_length_tokens=max_length,
            also=also or [],
            precision=precision,  # type: ignore[arg-type] - checked where it is resolved
            seed=seed,
            rebuild=rebuild,
            trust_remote_code=trust_remote_code,
        )
    )


@fuse_app.command()
def inspect(
    cache: Annotated[Path, typer.Argument(help="Folder of a cache.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every shard and compare its checksum.")
    ] = False,
    examples: Annotated[int, typer.Option(min=0, help="States to show decoded.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show what a cache of distributions holds, and whether it is whole; ends with an error where it is not."""
    from transfuse.recipes.fuse_inspect import inspect_cache, inspection_tables, refuse_damaged

    found = inspect_cache(cache, verify=verify, n_examples=examples)
    if as_json:
        import json

        typer.echo(json.dumps(found, ensure_ascii=False, indent=1))
    else:
        for table in inspection_tables(found):
            console().print(table)
    refuse_damaged(found)


def _refuse_missing(where: str, **given: Any) -> None:
    """Name what a command cannot do without."""
    from transfuse.errors import RecipeError

    wanted = {
        "target": "--target MODEL",
        "source": "--source MODEL",
        "text": "--text FILE",
        "out": "--out FOLDER",
    }
    for name, value in given.items():
        if value is None or value == []:
            raise RecipeError(f"{where}: expected {wanted[name]}.")

"""The commands `transfuse transfer`: the whole route, or its two steps."""

from pathlib import Path
from typing import Annotated, Any

import typer

from transfuse.cli.options import Overwrite, Sets, Trust
from transfuse.cli.runs import run_recipe

GivenContext = typer.Context.__mro__[1]
"""What typer hands over where `typer.Context` is asked for: its base class, as checked annotations notice."""

transfer_app = typer.Typer(
    help="Start a student's adapter from a larger teacher's weights, and compare it with controls.",
    rich_markup_mode=None,
    invoke_without_command=True,
)

Teacher = Annotated[
    str | None, typer.Option(help="The larger model: Hub id, folder, .gguf file, bundled name.")
]
Student = Annotated[str | None, typer.Option(help="The model to change; its own files stay untouched.")]
Task = Annotated[
    Path | None, typer.Option(help="JSONL of seed samples (messages or text); left out: the training file.")
]
Train = Annotated[Path | None, typer.Option("--train", help="JSONL of training samples.")]
Eval = Annotated[Path | None, typer.Option("--eval", help="JSONL of eval samples.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Run folder; the same command there continues a killed run.")
]
Method = Annotated[
    str | None,
    typer.Option(help="parametric, online-distillation, offline-distillation, lora or delta-transport."),
]
Controls = Annotated[
    bool,
    typer.Option(
        "--controls",
        help="Also train plain LoRA, PiSSA, a random teacher block and norm-matched random factors, three seeds each, "
        "each with its own learning-rate sweep.",
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(help="sensitive, proportional, first, last, random, or numbers such as 0,2,5."),
]
Reduce = Annotated[str | None, typer.Option(help="submatrix, rows-columns, random, leading or coupled.")]
Rank = Annotated[
    int | None, typer.Option(min=1, help="Rank of the factors (the saved adapter has twice that).")
]
MaxRank = Annotated[int | None, typer.Option(min=1, help="Rank of the saved adapter; reports what is lost.")]
Engine = Annotated[str | None, typer.Option(help="auto, memory, or stream (layer by layer from disk).")]
TaskAdapter = Annotated[
    Path | None, typer.Option(help="The teacher's task adapter, for --method delta-transport.")
]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]


def transfer_tree(**given: Any) -> dict[str, Any]:
    """The keys of a transfer recipe from the command line's arguments; what was not given is left out."""
    tree: dict[str, Any] = {"kind": "transfer"}
    groups = {
        "layers": ("extract", "layers"),
        "reduce": ("extract", "reduce"),
        "engine": ("sensitivity", "engine"),
    }
    if given.pop("controls", False):
        from transfuse.recipes.transfer_schema import BUILT_IN_CONTROLS

        tree |= {"controls": list(BUILT_IN_CONTROLS), "n_seeds": 3}
    layers = given.pop("layers", None)
    if layers is not None:
        is_list = all(part.strip().isdigit() for part in layers.split(","))
        given["layers"] = [int(part) for part in layers.split(",")] if is_list else layers
    rank = given.pop("rank", None)
    if rank is not None:
        tree["train"] = {"lora": {"rank": rank}}
    for name, value in given.items():
        if value is None or value is False:
            continue
        group, leaf = groups.get(name, ("", name))
        place = tree.setdefault(group, {}) if group else tree
        place[leaf] = str(value) if isinstance(value, Path) else value
    return tree


@transfer_app.callback()
def transfer(
    context: GivenContext,  # type: ignore[valid-type]
    teacher: Teacher = None,
    student: Student = None,
    task: Task = None,
    train: Train = None,
    evaluation: Eval = None,
    out: Out = None,
    method: Method = None,
    controls: Controls = False,
    layers: Layers = None,
    reduce: Reduce = None,
    rank: Rank = None,
    max_rank: MaxRank = None,
    engine: Engine = None,
    task_adapter: TaskAdapter = None,
    seed: Seed = 17,
    settings: Sets = None,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
) -> None:
    """Extract, train and compare in one run; `extract` and `train` do the two halves."""
    if context.invoked_subcommand is not None:
        return
    from transfuse.errors import RecipeError

    if train is None:
        raise RecipeError(
            "transfuse transfer: expected --train FILE (to extract without training: transfuse transfer extract)."
        )
    tree = transfer_tree(
        teacher=teacher,
        student=student,
        task=task,
        train_file=train,
        eval_file=evaluation,
        method=method,
        controls=controls,
        layers=layers,
        reduce=reduce,
        rank=rank,
        max_rank=max_rank,
        engine=engine,
        task_adapter=task_adapter,
        trust_remote_code=trust_remote_code,
    )
    _start(tree, seed, settings, out, overwrite=overwrite, where="transfuse transfer")


@transfer_app.command()
def extract(
    teacher: Teacher = None,
    student: Student = None,
    task: Task = None,
    out: Out = None,
    layers: Layers = None,
    reduce: Reduce = None,
    rank: Rank = None,
    engine: Engine = None,
    result: Annotated[
        str | None, typer.Option("--as", help="adapter, or model: full-rank blocks as a new small student.")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="With --as model: n_layers=12,hidden=384,n_heads=6,n_kv_heads=2,n_neurons=1024; left out: --student's."
        ),
    ] = None,
    seed: Seed = 17,
    settings: Sets = None,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
) -> None:
    """Write the adapter that training starts from, and a report of what was chosen; train nothing."""
    from transfuse.errors import RecipeError

    sizes: dict[str, Any] = {}
    if shape is not None:
        for part in shape.split(","):
            name, equals, value = part.partition("=")
            if not equals or not value.strip().isdigit():
                raise RecipeError(
                    f"--shape {shape!r}: expected NAME=NUMBER,..., such as n_layers=12,hidden=384."
                )
            sizes[name.strip()] = int(value)
    tree = transfer_tree(
        teacher=teacher,
        student=student or (teacher if result == "model" and sizes else None),
        task=task,
        layers=layers,
        reduce=reduce,
        rank=rank,
        engine=engine,
        result=result,
        shape=sizes or None,
        trust_remote_code=trust_remote_code,
    )
    _start(tree, seed, settings, out, overwrite=overwrite, where="transfuse transfer extract")


@transfer_app.command("train")
def train_only(
    extraction: Annotated[Path, typer.Argument(help="Run folder of a finished `transfer extract`.")],
    student: Student = None,
    teacher: Teacher = None,
    train: Train = None,
    evaluation: Eval = None,
    out: Out = None,
    method: Method = None,
    controls: Controls = False,
    rank: Rank = None,
    max_rank: MaxRank = None,
    task_adapter: TaskAdapter = None,
    seed: Seed = 17,
    settings: Sets = None,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
) -> None:
    """Train from an extraction that is there; the teacher is needed for distillation only."""
    from transfuse.errors import RecipeError

    if train is None:
        raise RecipeError("transfuse transfer train: expected --train FILE.")
    tree = transfer_tree(
        extraction=extraction,
        teacher=teacher,
        student=student,
        train_file=train,
        eval_file=evaluation,
        method=method,
        controls=controls,
        rank=rank,
        max_rank=max_rank,
        task_adapter=task_adapter,
        trust_remote_code=trust_remote_code,
    )
    _start(tree, seed, settings, out, overwrite=overwrite, where="transfuse transfer train")


def _start(
    tree: dict[str, Any],
    seed: int,
    settings: list[str] | None,
    out: Path | None,
    *,
    overwrite: bool,
    where: str,
) -> None:
    from transfuse.errors import RecipeError
    from transfuse.recipes.schema import make_recipe

    if out is None:
        raise RecipeError(f"{where}: expected --out RUN, the folder to write.")
    if "student" not in tree:
        raise RecipeError(f"{where}: expected --student MODEL.")
    recipe = make_recipe({**tree, "seed": seed}, settings or [], where=where)
    run_recipe(recipe, out, overwrite=overwrite)

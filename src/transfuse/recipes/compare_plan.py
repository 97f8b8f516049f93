"""What a comparison will take, and which of its rows cannot run on this machine: told before it starts."""

from collections.abc import Collection
from dataclasses import dataclass

from rich import box
from rich.table import Table

from transfuse.io.run_folder import key_digest
from transfuse.io.task_files import load_tasks
from transfuse.recipes.compare_checks import check_common, problems
from transfuse.recipes.compare_routes import Materials, is_trained, members, system_tree, training_recipe
from transfuse.recipes.compare_schema import WITH_TUNING, BudgetKind, CompareRecipe, CompareRow
from transfuse.recipes.fuse_plan import fusion_plan
from transfuse.recipes.fuse_schema import FuseRecipe
from transfuse.recipes.inject_knowledge import read_sections, select_knowledge, token_counter
from transfuse.recipes.schema import InjectRecipe, Recipe
from transfuse.recipes.transfer_figures import Rates
from transfuse.recipes.transfer_schema import TransferRecipe

CHARACTERS_A_TOKEN = 4
"""Of English text, about."""
TEMPLATE_TOKENS = 30
"""Of a chat template around a question and its answer, about."""
_ANY_RATES = Rates(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Entry:
    """One row of the table: a row of the recipe under one budget."""

    name: str
    row_name: str
    row: CompareRow
    budget: BudgetKind | None
    """None where nothing is trained."""

    @property
    def is_tuned(self) -> bool:
        """Whether its learning rate is searched."""
        return self.budget in WITH_TUNING


def entries(recipe: CompareRecipe) -> list[Entry]:
    """The rows of the table in order; a trained row once for each budget, named with it where there are several."""
    kinds = recipe.budget.tables
    found: list[Entry] = []
    for name, row in recipe.rows.items():
        if not is_trained(row):
            found.append(Entry(name, name, row, None))
        for kind in kinds if is_trained(row) else []:
            found.append(Entry(f"{name} ({kind})" if len(kinds) > 1 else name, name, row, kind))
    return found


@dataclass(frozen=True)
class ComparePlan:
    """Figures of a whole comparison."""

    rows: list[tuple[Entry, int | None, str]]
    """Each row of the table, the tokens that one training reads (about), and why it cannot run."""
    n_trainings: int
    """Different ones; equal ones are run once."""
    n_measurings: int


def compare_plan(recipe: CompareRecipe) -> ComparePlan:
    """What a comparison takes, from the recipe and its files; no weight is read.

    Args:
        recipe: as it will be run.

    Returns:
        The figures.

    Raises:
        TransfuseError: a fault that concerns every row.
    """
    check_common(recipe)
    unfit, files = problems(recipe), Materials.given(recipe)
    rows: list[tuple[Entry, int | None, str]] = []
    for entry in entries(recipe):
        problem = unfit.get(entry.row_name, "")
        tokens: int | None = None
        if entry.budget is not None and not problem:
            tokens = _training_tokens(
                training_recipe(recipe, entry.row_name, files, seed=recipe.seed, budget=entry.budget)
            )
        rows.append((entry, tokens, problem))
    return ComparePlan(rows, *planned_jobs(recipe, unfit))


def planned_jobs(recipe: CompareRecipe, unfit: Collection[str]) -> tuple[int, int]:
    """How many trainings and measurings a comparison takes, equal ones counted once.

    Args:
        recipe: as it will be run.
        unfit: names of rows that cannot run.

    Returns:
        Both numbers.
    """
    files = Materials.given(recipe)
    trainings: set[str] = set()
    measurings: set[str] = set()
    for entry in entries(recipe):
        if entry.row_name in unfit:
            continue
        own = _training_keys(recipe, entry, files)
        trainings |= set(own)
        tree = {} if own else system_tree(recipe, entry.row, None, None)
        system = {name: value for name, value in tree.items() if value}
        for key in own[-recipe.n_seeds :] or [""]:
            measurings.add(key_digest({"of": key, "system": system, "retrieval": str(entry.row.retrieval)}))
        if entry.is_tuned:
            measurings |= {f"development {key}" for key in own[: len(recipe.budget.learning_rates)]}
    return len(trainings), len(measurings)


def _training_keys(recipe: CompareRecipe, entry: Entry, files: Materials) -> list[str]:
    """A digest of each training of a row; those of a search first."""
    if entry.row.route == "merge":
        return [key_digest({"merge": entry.row.set, "of": members(recipe, entry.row)})]
    if entry.budget is None:
        return []
    rates = list(recipe.budget.learning_rates) if entry.is_tuned else [None]
    tried = [(recipe.seed, rate) for rate in rates]
    more = [(recipe.seed + n, rates[0]) for n in range(1, recipe.n_seeds)]  # whichever rate is chosen
    return [
        key_digest(
            training_recipe(
                recipe, entry.row_name, files, seed=seed, budget=entry.budget, learning_rate=rate
            ).model_dump(mode="json")
        )
        for seed, rate in [*tried, *more]
    ]


def _training_tokens(recipe: Recipe) -> int | None:
    """Tokens that one training reads, about; None where that takes a generator first."""
    match recipe:
        case InjectRecipe():
            if recipe.train.n_tokens is not None or recipe.facts is None or recipe.qa is None:
                return recipe.train.n_tokens
            _, sections, dropped = read_sections(recipe)
            knowledge, _ = select_knowledge(recipe, sections, dropped, recipe.facts, recipe.qa)
            count = token_counter(recipe)
            pairs = [*knowledge.selection.train, *knowledge.selection.extra]
            return recipe.train.read_tokens(
                sum(count(f"{pair.question} {pair.answer}") + TEMPLATE_TOKENS for pair in pairs)
            )
        case TransferRecipe() if recipe.train_file is not None:
            items = load_tasks(recipe.train_file)[: recipe.n_train]
            n_characters = sum(
                sum(len(turn.content) for turn in item.messages) + len(item.answer) for item in items
            )
            return recipe.train.read_tokens(n_characters // CHARACTERS_A_TOKEN)
        case FuseRecipe():
            return fusion_plan(recipe, _ANY_RATES).n_target_tokens
        case _:
            return None


def plan_compare_table(recipe: CompareRecipe) -> Table:
    """The figures of a comparison, for a terminal.

    Args:
        recipe: as it will be run.

    Returns:
        A table for a rich console.

    Raises:
        TransfuseError: a fault that concerns every row.
    """
    plan = compare_plan(recipe)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, caption_justify="left")
    for name in ("Row", "Route", "Trainings", "Tokens each"):
        table.add_column(name, justify="left" if name in ("Row", "Route") else "right", overflow="fold")
    for entry, tokens, problem in plan.rows:
        n = 0 if entry.budget is None else recipe.n_seeds
        if entry.is_tuned:
            n += len(recipe.budget.learning_rates) - 1
        route = entry.row.route + (" + retrieval" if entry.row.retrieval else "")
        told = ("cannot run", "") if problem else (str(n or "–"), f"{tokens:,}" if tokens else "–")
        table.add_row(entry.name, route, *told)
    unfit = {entry.row_name: problem for entry, _, problem in plan.rows if problem}
    lines = [
        f"Trainings: {plan.n_trainings}; measurings: {plan.n_measurings}; each in a process of its own, equal ones "
        "once. Tokens are about right where no budget sets them.",
        *(f"Cannot run here: {name}: {problem}" for name, problem in unfit.items()),
    ]
    table.caption = "\n".join(lines)
    return table

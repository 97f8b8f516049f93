"""What a comparison will take, and which of its rows cannot run on this machine: said before work starts."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from rich import box
from rich.table import Table

from transfuse.baselines.rag_settings import RagSettings
from transfuse.errors import RecipeError, TransfuseError
from transfuse.evaluate.bits_per_byte import load_texts
from transfuse.generate.settings import OPENAI_HOST, GeneratorSettings, endpoint_reference
from transfuse.io.configs import load_config
from transfuse.io.fingerprint import tokenizer_fingerprint
from transfuse.io.memory import available_bytes
from transfuse.io.models import load_tokenizer
from transfuse.io.references import check_model_folder, resolve_model
from transfuse.io.run_folder import key_digest
from transfuse.io.task_files import load_tasks
from transfuse.recipes.compare_questions import ASKED, select_questions
from transfuse.recipes.compare_routes import Materials, check_rows, is_trained, members, training_recipe
from transfuse.recipes.compare_schema import WITH_TUNING, BudgetKind, CompareRecipe, CompareRow
from transfuse.recipes.fuse import check_inputs as check_fusion
from transfuse.recipes.fuse_plan import fusion_plan, model_sizes
from transfuse.recipes.fuse_schema import FuseRecipe
from transfuse.recipes.inject import check_inputs as check_injection
from transfuse.recipes.inject_knowledge import read_sections, select_knowledge, token_counter
from transfuse.recipes.inject_retrieval import check_retrieval
from transfuse.recipes.progress import size_text
from transfuse.recipes.schema import InjectRecipe, Recipe
from transfuse.recipes.transfer import check_inputs as check_transfer
from transfuse.recipes.transfer_figures import Rates
from transfuse.recipes.transfer_schema import TransferRecipe

BYTES_A_PARAMETER = 4
TRAINING_COPIES = {"full": 4.0, "lora": 1.1}
"""Weights, gradients and AdamW's two moments; or a frozen model with small factors."""
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


def check_common(recipe: CompareRecipe) -> None:
    """Faults that concern every row: of the recipe, the student, or what is measured.

    Args:
        recipe: a comparison.

    Raises:
        TransfuseError: with what to do.
    """
    check_rows(recipe)
    _check_model(recipe.student, trust_remote_code=recipe.trust_remote_code)
    asked = recipe.evaluate
    if asked.benchmarks:
        from transfuse.evaluate.harness import check_benchmarks

        check_benchmarks(asked.benchmarks)
    for path in asked.texts.values():
        load_texts(path)
    for settings in asked.samples.values():
        load_tasks(settings.file)
    if asked.unanswerable is not None and not asked.unanswerable.file.is_file():
        raise RecipeError(
            f"evaluate.unanswerable.file: {asked.unanswerable.file}: expected a JSONL file of questions, found none; "
            "check the path."
        )
    if recipe.knowledge.documents is not None and recipe.knowledge.qa is not None:
        sets = select_questions(recipe, Materials.given(recipe))
        if asked.main_metric is None and not any(name in sets for name in ASKED):
            raise RecipeError("knowledge: the selection leaves no question to ask; lower kept_out_share.")


def problems(recipe: CompareRecipe) -> dict[str, str]:
    """Rows of the recipe that cannot run here, and why.

    Args:
        recipe: a comparison whose rows are checked.

    Returns:
        Row name to reason, for the rows that cannot run.
    """
    found: dict[str, str] = {}
    for name in recipe.rows:
        try:
            _check_row(recipe, name)
        except (TransfuseError, OSError) as err:
            found[name] = " ".join(str(err).split())
    return found


def _check_row(recipe: CompareRecipe, name: str) -> None:
    row, trust = recipe.rows[name], recipe.trust_remote_code
    if row.retrieval:
        check_retrieval(row.retrieval if isinstance(row.retrieval, RagSettings) else RagSettings())
    if row.adapter is not None and not (row.adapter / "adapter_config.json").is_file():
        raise RecipeError(
            f"{row.adapter}: expected an adapter folder, found no adapter_config.json; check the path."
        )
    if row.model is not None:
        _check_model(row.model, trust_remote_code=trust)
    if row.route in ("ensemble", "merge"):
        for reference in members(recipe, row):
            _check_model(reference, trust_remote_code=trust)
        if row.route == "ensemble" and not shares_vocabulary(recipe, row) and not recipe.evaluate.texts:
            raise RecipeError(
                "models of different vocabularies can be averaged over texts only; name some in evaluate.texts."
            )
    needed, training = 0.0, None
    if is_trained(row):
        training = training_recipe(recipe, name, Materials.given(recipe), seed=recipe.seed)
        _check_keys(training)
        _CHECKS[training.kind](training)
        needed = _training_bytes(training)
    elif row.route == "ensemble":
        needed = sum(_model_bytes(each, trust_remote_code=trust) for each in members(recipe, row))
    free = available_bytes()
    if free is not None and needed > free:
        raise RecipeError(
            f"needs about {size_text(round(needed))} of memory, {size_text(free)} are free; take smaller models, or "
            "train.method: lora."
        )


def _check_injection(recipe: Recipe) -> None:
    assert isinstance(recipe, InjectRecipe)  # noqa: S101 - by its kind
    check_injection(recipe)


def _check_transfer(recipe: Recipe) -> None:
    assert isinstance(recipe, TransferRecipe)  # noqa: S101 - by its kind
    check_transfer(recipe)


def _check_fusion(recipe: Recipe) -> None:
    assert isinstance(recipe, FuseRecipe)  # noqa: S101 - by its kind
    check_fusion(recipe, None)


_CHECKS: dict[str, Callable[[Recipe], None]] = {
    "inject": _check_injection,
    "transfer": _check_transfer,
    "fuse": _check_fusion,
}


def shares_vocabulary(recipe: CompareRecipe, row: CompareRow) -> bool:
    """Whether the members of an ensemble read texts alike, so that they can be asked everything."""
    tokenizers = (
        load_tokenizer(each, trust_remote_code=recipe.trust_remote_code) for each in members(recipe, row)
    )
    return len({tokenizer_fingerprint(each) for each in tokenizers}) == 1


def _check_model(reference: str, *, trust_remote_code: bool) -> None:
    source = resolve_model(reference)
    if source.kind == "folder" and source.path is not None:
        check_model_folder(source.path)
    load_config(reference, trust_remote_code=trust_remote_code)


def _check_keys(recipe: Recipe) -> None:
    """A key that an endpoint asks for has to be there; one of this machine's own needs none unless it is named."""
    candidates = [getattr(recipe, "generator", None)]
    candidates.append(getattr(getattr(recipe, "distillation", None), "generator", None))
    for settings in candidates:
        endpoint = endpoint_reference(settings.reference) if isinstance(settings, GeneratorSettings) else None
        if endpoint is None or settings is None:
            continue
        name = settings.key_env or endpoint.default_key_env
        is_asked_for = settings.key_env is not None or urlsplit(endpoint.url).hostname == OPENAI_HOST
        if is_asked_for and not os.environ.get(name):
            raise RecipeError(f"{settings.reference}: expected a key in ${name}, found none; set it.")


def _training_bytes(recipe: Recipe) -> float:
    """Memory of the weights that a training holds at once, and of what it keeps of each."""
    trust = recipe.trust_remote_code
    match recipe:
        case TransferRecipe():
            n_bytes = _model_bytes(recipe.student, trust_remote_code=trust) * TRAINING_COPIES["lora"]
            if recipe.teacher is not None and recipe.method == "online-distillation":
                n_bytes += _model_bytes(recipe.teacher, trust_remote_code=trust)
            return n_bytes
        case FuseRecipe():
            return _model_bytes(recipe.target, trust_remote_code=trust) * TRAINING_COPIES[recipe.train.method]
        case InjectRecipe():
            return _model_bytes(recipe.model, trust_remote_code=trust) * TRAINING_COPIES[recipe.train.method]
        case _:
            return 0.0


def _model_bytes(reference: str, *, trust_remote_code: bool) -> float:
    n_parameters, _ = model_sizes(reference, trust_remote_code=trust_remote_code)
    return BYTES_A_PARAMETER * n_parameters


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
    trainings: set[str] = set()
    measurings: set[str] = set()
    for entry in entries(recipe):
        problem = unfit.get(entry.row_name, "")
        tokens: int | None = None
        if entry.budget is not None and not problem:
            tokens = _training_tokens(
                training_recipe(recipe, entry.row_name, files, seed=recipe.seed, budget=entry.budget)
            )
        rows.append((entry, tokens, problem))
        if not problem:
            own = _training_keys(recipe, entry, files)
            trainings |= set(own)
            told = entry.row.model_dump(mode="json", exclude={"set"} if own else set())
            for key in own[-recipe.n_seeds :] or [""]:
                measurings.add(key_digest({"of": key, "row": told}))
            if entry.is_tuned:
                measurings |= {f"development {key}" for key in own}
    return ComparePlan(rows, len(trainings), len(measurings))


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
        f"{plan.n_trainings} trainings and {plan.n_measurings} measurings, each in a process of its own; equal ones "
        "run once. Tokens are about right where no budget sets them.",
        *(f"Cannot run here: {name}: {problem}" for name, problem in unfit.items()),
    ]
    table.caption = "\n".join(lines)
    return table

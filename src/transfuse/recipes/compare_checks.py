"""Faults of a comparison that can be told before work starts: those of all rows, and of rows that cannot run here."""

import os
from collections.abc import Callable
from urllib.parse import urlsplit

from transfuse.baselines.rag_settings import RagSettings
from transfuse.errors import RecipeError, TransfuseError
from transfuse.evaluate.bits_per_byte import load_texts
from transfuse.generate.settings import OPENAI_HOST, GeneratorSettings, endpoint_reference
from transfuse.io.configs import load_config
from transfuse.io.fingerprint import tokenizer_fingerprint
from transfuse.io.memory import available_bytes
from transfuse.io.models import load_tokenizer
from transfuse.io.references import check_model_folder, resolve_model
from transfuse.io.task_files import load_tasks
from transfuse.recipes.compare_questions import ASKED, select_questions
from transfuse.recipes.compare_routes import Materials, check_rows, is_trained, members, training_recipe
from transfuse.recipes.compare_schema import CompareRecipe, CompareRow
from transfuse.recipes.fuse import check_inputs as check_fusion
from transfuse.recipes.fuse_plan import model_sizes
from transfuse.recipes.fuse_schema import FuseRecipe
from transfuse.recipes.inject import check_inputs as check_injection
from transfuse.recipes.inject_retrieval import check_retrieval
from transfuse.recipes.progress import size_text
from transfuse.recipes.schema import InjectRecipe, Recipe
from transfuse.recipes.transfer import check_inputs as check_transfer
from transfuse.recipes.transfer_schema import TransferRecipe

BYTES_A_PARAMETER = 4.0
TRAINING_COPIES = {"full": 4.0, "lora": 1.1}
"""Weights, gradients and AdamW's two moments; or a frozen model with small factors."""


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

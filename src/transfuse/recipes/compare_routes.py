"""The routes of a comparison: what each needs, what it trains, and what system is then measured."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from transfuse.baselines.merging_settings import MERGE_METHODS, WITHOUT_BASE
from transfuse.baselines.rag_settings import RagSettings
from transfuse.errors import RecipeError
from transfuse.recipes.compare_schema import BudgetKind, CompareRecipe, CompareRow
from transfuse.recipes.schema import Recipe, make_recipe
from transfuse.types import StrictModel

Tree = dict[str, Any]


@dataclass(frozen=True)
class Materials:
    """The files that rows learn from: as the recipe names them, or what was made of them."""

    facts: Path | None
    qa: Path | None
    train_file: Path | None
    texts: dict[str, Path]

    @classmethod
    def given(cls, recipe: CompareRecipe) -> "Materials":
        """Those of the recipe."""
        known = recipe.knowledge
        return cls(known.facts, known.qa, known.train_file, dict(known.texts))


@dataclass(frozen=True)
class Route:
    """One way to get knowledge into the student."""

    meaning: str
    needs: tuple[str, ...] = ()
    """Keys of `knowledge` without which it cannot be."""
    train: Callable[[CompareRecipe, Materials], Tree] | None = None
    """The recipe of its training, without the row's own settings; None where nothing is trained."""
    owned: frozenset[str] = frozenset()
    """Keys of that recipe which the comparison sets, so that a row cannot."""


class MergeRow(StrictModel):
    """What a row of route `merge` may set beside the method's own settings."""

    method: str = "linear"
    base: str | None = None
    """What the models started from; none means the student."""


_COMMON_OWNED = frozenset({"kind", "seed", "precision", "trust_remote_code", "evaluate"})
_INJECT_OWNED = _COMMON_OWNED | {
    *("model", "documents", "facts", "qa", "generator", "include", "exclude"),
    *("kept_out_share", "kept_out_seed", "rag"),
}
_TRANSFER_OWNED = _COMMON_OWNED | {
    *("student", "teacher", "train_file", "eval_file", "method", "controls", "n_seeds"),
    *("learning_rates", "development_share", "result", "shape"),
}
_FUSE_OWNED = _COMMON_OWNED | {"target", "sources", "texts", "controls", "merged", "n_seeds"}


def _inject(recipe: CompareRecipe, files: Materials) -> Tree:
    known = recipe.knowledge
    tree: Tree = {
        "kind": "inject",
        "model": recipe.student,
        "documents": known.documents,
        "include": known.include,
        "exclude": known.exclude,
        "facts": files.facts,
        "qa": files.qa,
        "kept_out_share": known.kept_out_share,
        "kept_out_seed": recipe.seed,
        "coverage": {"embedder": None},
        "evaluate": {"oracle": False, "texts": {}},
        "rag": None,
        "generator": None,
    }
    if files.qa is None and known.generator is not None:
        tree["generator"] = known.generator.model_dump(mode="json")
    return tree


def _prompt_distillation(recipe: CompareRecipe, files: Materials) -> Tree:
    return _inject(recipe, files) | {"method": "prompt-distillation"}


def _transfer(method: str, *, with_teacher: bool) -> Callable[[CompareRecipe, Materials], Tree]:
    def tree(recipe: CompareRecipe, files: Materials) -> Tree:
        known = recipe.knowledge
        return {
            "kind": "transfer",
            "student": recipe.student,
            "teacher": known.teacher if with_teacher else None,
            "task": known.task if method == "parametric" else None,
            "train_file": files.train_file,
            "task_adapter": known.task_adapter if method == "delta-transport" else None,
            "method": method,
            "development_share": 0.0,  # rates are chosen by the comparison, the same way for all rows
        }

    return tree


def _texts(strategy: str | None) -> Callable[[CompareRecipe, Materials], Tree]:
    def tree(recipe: CompareRecipe, files: Materials) -> Tree:
        found: Tree = {
            "kind": "fuse",
            "target": recipe.student,
            "sources": list(recipe.knowledge.sources) or [recipe.student],
            "texts": dict(files.texts),
            "controls": [],
            "evaluate": {"texts": {}},
        }
        return found | ({"strategy": strategy} if strategy else {})

    return tree


ROUTES: dict[str, Route] = {
    "base": Route("the student as it was"),
    "oracle": Route("the student as it was, with the right section before each question", ("documents",)),
    "inject": Route(
        "questions about the documents, trained into an adapter", ("documents",), _inject, _INJECT_OWNED
    ),
    "prompt-distillation": Route(
        "what the student itself says with the section before it, trained in",
        ("documents",),
        _prompt_distillation,
        _INJECT_OWNED | {"method"},
    ),
    "lora": Route(
        "plain LoRA on the training samples",
        ("train_file",),
        _transfer("lora", with_teacher=False),
        _TRANSFER_OWNED,
    ),
    "transfer": Route(
        "an adapter started from the teacher's parameters",
        ("train_file", "teacher"),
        _transfer("parametric", with_teacher=True),
        _TRANSFER_OWNED,
    ),
    "online-distillation": Route(
        "the teacher's distributions, read while training",
        ("train_file", "teacher"),
        _transfer("online-distillation", with_teacher=True),
        _TRANSFER_OWNED,
    ),
    "offline-distillation": Route(
        "answers, or distributions, that the teacher wrote beforehand",
        ("train_file", "teacher"),
        _transfer("offline-distillation", with_teacher=True),
        _TRANSFER_OWNED,
    ),
    "delta-transport": Route(
        "the teacher's task adapter, carried over",
        ("train_file", "teacher", "task_adapter"),
        _transfer("delta-transport", with_teacher=True),
        _TRANSFER_OWNED,
    ),
    "clm": Route(
        "the texts as they are, without any source", ("texts",), _texts("clm"), _FUSE_OWNED | {"strategy"}
    ),
    "fuse": Route(
        "the texts, taught by all sources together", ("texts", "sources"), _texts(None), _FUSE_OWNED
    ),
    "ensemble": Route("probabilities of several models, averaged; nothing is trained"),
    "merge": Route("weights of several models, merged; nothing is trained"),
    "given": Route("a model or an adapter that is there already"),
}
"""By the name that a row gives."""


def check_rows(recipe: CompareRecipe) -> None:
    """Every fault of the rows that the recipe alone shows.

    Args:
        recipe: a comparison.

    Raises:
        RecipeError: a route that is not known, or that needs knowledge which the recipe lacks; settings that the route
            does not have, or that the comparison makes itself.
    """
    for name, row in recipe.rows.items():
        where = f"rows.{name}"
        if row.route not in ROUTES:
            near = get_close_matches(row.route, ROUTES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise RecipeError(f"{where}: unknown route {row.route!r}; {hint}Known are {', '.join(ROUTES)}.")
        _refuse_missing_knowledge(recipe, row, where)
        _refuse_strange_keys(recipe, row, where)
        if ROUTES[row.route].train is not None:
            training_recipe(recipe, name, Materials.given(recipe), seed=recipe.seed)
        elif row.route == "merge":
            merge_words(recipe, row, where)


def _refuse_missing_knowledge(recipe: CompareRecipe, row: CompareRow, where: str) -> None:
    known = recipe.knowledge
    needs = [*ROUTES[row.route].needs, *(["documents"] if row.retrieval else [])]
    for key in needs:
        if not getattr(known, key):
            why = "retrieval" if key not in ROUTES[row.route].needs else f"route {row.route}"
            raise RecipeError(f"{where}: {why} needs knowledge.{key}, which the recipe lacks; add it.")
    if row.route in ("ensemble", "merge") and len(members(recipe, row)) < 2:
        raise RecipeError(
            f"{where}: route {row.route} needs two models or more; name them in members, or in knowledge.sources."
        )
    if row.route == "merge" and len(set(members(recipe, row))) < 2:
        raise RecipeError(f"{where}: the models to merge are all the same; name different ones in members.")


def _refuse_strange_keys(recipe: CompareRecipe, row: CompareRow, where: str) -> None:
    route = ROUTES[row.route]
    if row.route != "given" and (row.model is not None or row.adapter is not None):
        raise RecipeError(
            f"{where}: model and adapter belong to route given, not {row.route}; leave them out."
        )
    if row.route == "given" and row.model is None and row.adapter is None:
        raise RecipeError(f"{where}: route given needs a model or an adapter; name one.")
    if row.route not in ("ensemble", "merge") and row.members:
        raise RecipeError(f"{where}: members belong to routes ensemble and merge; leave them out.")
    if row.set and route.train is None and row.route != "merge":
        raise RecipeError(f"{where}.set: route {row.route} trains nothing, so there is nothing to set.")
    if row.route == "oracle" and row.retrieval:
        raise RecipeError(f"{where}: route oracle has the right section already; leave retrieval out.")
    owned = sorted(route.owned & {key.partition(".")[0] for key in row.set})
    if owned:
        raise RecipeError(
            f"{where}.set: {owned[0]!r} is the same for all rows, and set by the comparison itself; leave it out."
        )


def members(recipe: CompareRecipe, row: CompareRow) -> list[str]:
    """The models that an ensemble or a merge is made of."""
    return list(row.members or recipe.knowledge.sources)


def is_trained(row: CompareRow) -> bool:
    """Whether the row trains, so that seeds and budgets concern it."""
    return ROUTES[row.route].train is not None


def training_recipe(
    recipe: CompareRecipe,
    name: str,
    files: Materials,
    *,
    seed: int,
    budget: BudgetKind = "as-set",
    learning_rate: float | None = None,
) -> Recipe:
    """The recipe of a row's training.

    Args:
        recipe: the comparison.
        name: of the row, one that trains.
        files: to learn from.
        seed: of this training.
        budget: which of the table's budgets it is for.
        learning_rate: that a search has chosen or tries; None leaves the row's own.

    Returns:
        A checked recipe, which measures nothing.

    Raises:
        RecipeError: the row sets something that the route's recipe does not take.
    """
    row = recipe.rows[name]
    make = ROUTES[row.route].train
    if make is None:
        raise ValueError(f"route {row.route} trains nothing")
    tree = make(recipe, files) | {
        "seed": seed,
        "precision": recipe.precision,
        "trust_remote_code": recipe.trust_remote_code,
    }
    tree = merged_trees(tree, nested(row.set))
    train: Tree = {}
    if budget in ("equal-tokens", "tuned-at-equal-tokens"):
        train["n_tokens"] = recipe.budget.training_tokens
    if learning_rate is not None:
        train["learning_rate"] = learning_rate
    if train:
        tree = merged_trees(tree, {"train": train})
    return make_recipe(_plain(tree), where=f"rows.{name}.set")


def merge_words(recipe: CompareRecipe, row: CompareRow, where: str) -> list[str]:
    """The command that merges a row's models, without its folder.

    Args:
        recipe: the comparison.
        row: of route `merge`.
        where: what to name in errors.

    Returns:
        Arguments of `transfuse`.

    Raises:
        RecipeError: no such method, or settings that it does not have.
    """
    own = {key: value for key, value in row.set.items() if key in MergeRow.model_fields}
    try:
        settings = MergeRow.model_validate(own)
    except ValidationError as err:
        raise RecipeError(
            f"{where}.set: {err.errors()[0]['msg']}, got {err.errors()[0]['input']!r}."
        ) from err
    if settings.method not in MERGE_METHODS:
        near = get_close_matches(settings.method, MERGE_METHODS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RecipeError(
            f"{where}.set.method: expected one of {', '.join(MERGE_METHODS)}, got {settings.method!r}.{hint}"
        )
    further = {key: value for key, value in row.set.items() if key not in MergeRow.model_fields}
    try:
        MERGE_METHODS[settings.method].model_validate(further)
    except ValidationError as err:
        fault = err.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise RecipeError(f"{where}.set: {key}: {fault['msg']} (method {settings.method}).") from err
    words = ["merge", "--method", settings.method]
    for model in members(recipe, row):
        words += ["--model", model]
    if settings.method not in WITHOUT_BASE:
        words += ["--base", settings.base or recipe.student]
    for weight in further.pop("weights", None) or []:
        words += ["--weight", str(weight)]
    for key, value in further.items():
        words += ["--set", f"{key}={value}"]
    return words


def system_tree(recipe: CompareRecipe, row: CompareRow, result: Path | None, tuning: Path | None) -> Tree:
    """What is measured of a row, as recipes of kind `eval` name it.

    Args:
        recipe: the comparison.
        row: the row.
        result: the adapter or model that its training left; None where it trains nothing.
        tuning: questions on which the number of retrieved passages is chosen.

    Returns:
        Keys and values of an eval recipe's system.
    """
    tree: Tree = {"model": recipe.student}
    if row.route == "given":
        tree = {"model": row.model or recipe.student, "adapter": row.adapter}
    elif row.route == "ensemble":
        first, *others = members(recipe, row)
        tree = {"model": first, "ensemble": others}
    elif result is not None:
        tree = plain_system(recipe, result)
    documents = recipe.knowledge.documents
    if row.route == "oracle":
        tree["section_context"] = {"documents": documents}
    if row.retrieval:
        settings = row.retrieval if isinstance(row.retrieval, RagSettings) else RagSettings()
        tree["retrieval"] = settings.model_dump(mode="json") | {
            "documents": documents,
            "tuning": tuning if settings.k is None else None,
        }
    return _plain(tree)


def plain_system(recipe: CompareRecipe, result: Path) -> Tree:
    """What a training left, by itself: the student with an adapter, or a model."""
    if (result / "adapter_config.json").is_file():
        return {"model": recipe.student, "adapter": str(result)}
    return {"model": str(result)}


def nested(settings: Mapping[str, Any]) -> Tree:
    """Dotted keys as groups: `{"train.n_epochs": 3}` as `{"train": {"n_epochs": 3}}`."""
    tree: Tree = {}
    for key, value in settings.items():
        first, dot, rest = key.partition(".")
        own = nested({rest: value}) if dot else nested(value) if isinstance(value, Mapping) else value
        both = isinstance(own, dict) and isinstance(tree.get(first), dict)
        tree[first] = merged_trees(tree[first], own) if both else own
    return tree


def merged_trees(below: Mapping[str, Any], above: Mapping[str, Any]) -> Tree:
    """Both trees as one; where both hold a value, the second's."""
    tree = deepcopy(dict(below))
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(tree.get(key), Mapping)
        tree[key] = merged_trees(tree[key], value) if both else deepcopy(value)
    return tree


def _plain(value: Any) -> Any:
    """Paths as text, also within groups."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
